"""The ranking steps that the lists of every competition may name; add a module of steps here."""

from __future__ import annotations

from common.rerank import (
    balance,
    blending,
    centers,
    concat,
    decide,
    diffusion,
    discriminative,
    explore,
    grouped,
    labels,
    learned,
    listwise,
    local,
    propagate,
    reciprocal,
    siamese,
    superglobal,
    unknown,
    wild,
)
from common.rerank.checks import check_step as check_step
from common.retrieval import ann, expand, radius, search, transform, whiten
from common.steps import catalog

STEPS = catalog(
    search,
    radius,
    ann,
    transform,
    concat,
    expand,
    whiten,
    labels,
    centers,
    discriminative,
    decide,
    local,
    reciprocal,
    propagate,
    diffusion,
    explore,
    blending,
    superglobal,
    listwise,
    siamese,
    learned,
    wild,
    grouped,
    balance,
    unknown,
)
# For Python: they do not map an entry of the state.
for _call in (
    "search",
    "whitening",
    "projected",
    "learned_whitening",
    "powered",
    "decide",
    "class_cosines",
    "trimmed_centers",
    "unknown_threshold",
):
    del STEPS[_call]
