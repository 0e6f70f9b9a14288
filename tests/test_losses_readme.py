"""The README of the losses names every loss, miner and sampler that YAML can name."""

from pathlib import Path

import pytest

from common.losses import miners
from common.losses.total import KNOWN
from common.pipeline.training import SAMPLERS
from common.steps import catalog

TEXT = (Path(miners.__file__).parent / "README.md").read_text()


@pytest.mark.parametrize("name", [*KNOWN, *catalog(miners), *SAMPLERS])
def test_it_is_named(name):
    assert f"`{name}`" in TEXT
