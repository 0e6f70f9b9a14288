"""Twin classes: an individual's mirror image is somebody else (Humpback 2019, 1st and 3rd place).

A fluke mirrored is a fluke that no whale has. So training has 2 C classes, class c + C of the
mirrored images of c, and inference compares plain with plain and mirrored with mirrored views
(`view.join_flip`), which averages the two halves again. Whether an image and its mirrored twin have
to be told apart is another matter: `twin_mask` leaves that logit out. Triplets, quadruplets and
pairs have no logits: there an image's mirrored class is a negative like any other.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from common.losses.classify import leave_out_twins
from common.losses.sigmoid import OHEMSigmoid
from common.losses.total import Total
from common.types import Table

MIRRORED = "~mirrored"


def doubled(table: Table, classes: int) -> Table:
    """All rows, then all rows mirrored with label + `classes`; unknown ones (-1) stay unknown."""
    mirrored = replace(
        table,
        ids=np.char.add(table.ids, MIRRORED),
        labels=np.where(table.labels >= 0, table.labels + classes, -1),
        mirror=np.ones(len(table), bool),
    )
    return Table.concatenate([table, mirrored])


def twin_names(classes: np.ndarray) -> np.ndarray:
    """`(2 C,)` names of the doubled classes."""
    return np.concatenate([classes, np.char.add(classes, MIRRORED)])


def mask_twins(criterion: Total, whose: str) -> None:
    """Take an image's mirrored class out of its loss: of `softmax` heads, of `all`, or of `none`.

    Raises:
        ValueError: a head that cannot.
    """
    for term in criterion.terms:
        if whose == "all" or (whose == "softmax" and not isinstance(term, OHEMSigmoid)):
            leave_out_twins(term)


def joined_centers(centers: torch.Tensor) -> torch.Tensor:
    """`(2 C, K, D)` centres of doubled classes as `(C, K, 2 D)` unit centres of joined views."""
    plain, mirrored = centers.chunk(2)
    return F.normalize(torch.cat([plain, mirrored], 2), dim=2)
