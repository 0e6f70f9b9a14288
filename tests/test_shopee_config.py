"""The baseline shows and explains every key, and names that do not exist are errors."""

import pytest
import yaml

from common.config import ConfigError, keys, load
from competitions.shopee.config import BASE, COMMANDS, Config, check, criterion_of


def test_the_baseline_shows_every_key_and_explains_itself():
    shown = yaml.safe_load(BASE.read_text())
    assert list(shown) == list(Config.__dataclass_fields__)
    ours = {key for key in keys(Config()) if not key.startswith("track.")}
    assert ours <= set(keys(shown))
    lines = [line for line in BASE.read_text().splitlines() if line and not line.startswith("#")]
    assert sum("#" in line for line in lines) > len(lines) / 2


def test_the_baseline_loads_and_its_loss_is_built():
    settings = check(load(Config, BASE))
    heads = criterion_of(settings, 16, 5)
    assert len(heads.terms) == 1


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model.uses=pictures", "image, text"),
        ("model.join=sum", "concat, gated"),
        ("loss=[{name: arcfase}]", r"loss\[0\]: no step 'arcfase'; did you mean 'arcface'"),
        ("train.augment=crops", "did you mean 'crop'"),
        ("view.scales=[2.0]", r"view\.scales has 2\.0"),
        ("data.distractor=5", "did you mean 'data.distractors'"),
        ("data.titles=tidy", "choose raw, plain, clean"),
    ],
)
def test_names_that_do_not_exist_are_errors(argument, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        check(load(Config, BASE, [argument]))


def test_what_members_of_an_ensemble_must_share():
    assert COMMANDS.split == ["fold", "folds"]
    assert set(COMMANDS.shared) == {"root", "fold", "folds", "distractors", "strangers", "hidden"}
