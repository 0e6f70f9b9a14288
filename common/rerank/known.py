"""The ranking steps that the lists of every competition may name; add a module of steps here."""

from __future__ import annotations

from common.rerank import (
    blending,
    decide,
    diffusion,
    discriminative,
    explore,
    grouped,
    labels,
    learned,
    local,
    propagate,
    reciprocal,
    superglobal,
    unknown,
    wild,
)
from common.rerank.checks import check_step as check_step
from common.retrieval import expand, search, whiten
from common.steps import catalog

STEPS = catalog(
    search,
    expand,
    whiten,
    labels,
    discriminative,
    decide,
    local,
    reciprocal,
    propagate,
    diffusion,
    explore,
    blending,
    superglobal,
    learned,
    wild,
    grouped,
    unknown,
)
for _call in ("search", "whitening", "decide"):  # for Python: they do not map an entry of the state
    del STEPS[_call]
