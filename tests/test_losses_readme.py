"""The README of the losses names every loss, miner and sampler of YAML, and tests that exist."""

import re
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


def test_the_tests_that_guard_against_peers_defects_exist():
    guards = re.findall(r"`(test_\w+\.py)::(\w+)`", TEXT)
    assert len(guards) > 10
    for file, name in guards:
        assert f"def {name}(" in (Path(__file__).parent / file).read_text(), (file, name)
