"""The config loader: layers, types, suggestions, explanation."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml

from common.config import ConfigError, command, explain, keys, load, same_run, save

TEXT = """\
# what the file is for
seed: 0          # of everything
data:
  root: null     # a folder
  sizes: [1, 2]  # a list
loss:            # terms
  - {name: arcface, scale: 30.0}

lr: 1.0e-3       # the rate
"""


@dataclass
class Data:
    root: str | None = None
    sizes: list[int] = field(default_factory=list)


@dataclass
class Stage:
    epochs: int = 1
    size: int = 224


@dataclass
class Config:
    seed: int = 1
    data: Data = field(default_factory=Data)
    loss: list[dict[str, Any]] = field(default_factory=list)
    lr: float = 0.1
    stages: list[Stage] = field(default_factory=list)


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(TEXT)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "fast.yaml").write_text("lr: 0.5\ndata: {sizes: [3]}\n")
    return path


def test_yaml_overrides_schema_and_arguments_override_yaml(base):
    config = load(Config, base, ["seed=7", "data.root=/x", "--lr=1e-4"])
    assert (config.seed, config.data.root, config.lr) == (7, "/x", 1e-4)
    assert config.data.sizes == [1, 2]
    assert type(config) is Config
    assert type(config.data) is Data


def test_experiments_are_found_by_name_and_later_wins(base):
    config = load(Config, base, ["fast.yaml", "data.sizes=[9]"])
    assert (config.lr, config.data.sizes) == (0.5, [9])
    assert load(Config, base, ["experiments/fast.yaml"]).lr == 0.5


def test_list_items_can_be_reached_and_extended(base):
    config = load(Config, base, ["loss.0.scale=64", "loss.0.margin={a: 1}"])
    assert config.loss == [{"name": "arcface", "scale": 64, "margin": {"a": 1}}]


def test_scalars_are_read_as_people_mean_them(base):
    for text, value in {
        "1e-4": 1e-4,
        "-.5": -0.5,
        "3": 3.0,
        "1.E3": 1000.0,
        ".inf": float("inf"),
    }.items():
        assert load(Config, base, [f"lr={text}"]).lr == value
    for word in ("off", "no", "on", "yes", "y"):
        assert load(Config, base, [f"data.root={word}"]).data.root == word
    assert load(Config, base, ["loss=[{name: a, x: true, y: 1e3}]"]).loss[0]["x"] is True


def test_lists_of_sections_are_typed(base):
    config = load(Config, base, ["stages=[{epochs: 3}, {size: 9}]", "stages.1.epochs=7"])
    assert config.stages == [Stage(3, 224), Stage(7, 9)]
    with pytest.raises(ConfigError, match="epoch"):
        load(Config, base, ["stages=[{epoch: 3}]"])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.size=3", r"unknown key 'data.size'; did you mean 'data.sizes'\?"),
        ("sed=1", r"did you mean 'seed'\?"),
        ("root=/x", r"did you mean 'data.root'\?"),
        ("lr=fast", "could not be converted to Float"),
        ("seed=1.5", "could not be converted to Integer"),
        ("loss.4.scale=1", "has no loss.4"),
        ("data.sizes=[a]", "could not be converted"),
        ("data.root=[", "not a YAML value"),
        ("fast", "neither an experiment YAML nor key=value"),
        ("slow.yaml", "did you mean 'fast.yaml'"),
        ("unknown_one.yml", r"No experiment unknown_one\.yml\. There are: fast\.yaml"),
    ],
)
def test_mistakes_are_one_line_errors_with_a_way_out(base, argument, message):
    with pytest.raises(ConfigError, match=message) as error:
        load(Config, base, [argument])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("sead: 1", "did you mean 'seed'"), ("a: [", "not valid YAML"), ("- 1", "must hold `key")],
)
def test_mistakes_in_files_name_the_file(base, text, message):
    path = base.parent / "experiments" / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load(Config, base, ["bad.yaml"])
    assert "bad.yaml" in str(error.value)


def test_a_mandatory_key_without_value_is_an_error(base):
    @dataclass
    class Needs(Config):
        where: str = "???"

    with pytest.raises(ConfigError, match="where has no value: add where=VALUE"):
        load(Needs, base)


def test_explain_keeps_comments_and_shows_resolved_values(base):
    text = explain(base, load(Config, base, ["seed=5", "loss=[{name: cosface}]", "lr=2"]))
    assert "# of everything" in text
    assert "# the rate" in text
    assert yaml.safe_load(text) == {
        "seed": 5,
        "data": {"root": None, "sizes": [1, 2]},
        "loss": [{"name": "cosface"}],
        "lr": 2.0,
    }
    assert "stages" not in text  # not in the YAML


def test_explain_reads_block_lists(base):
    text = base.read_text().replace("sizes: [1, 2]", "sizes:\n    - 1\n    - 2")
    base.write_text(text)
    assert "    - 1\n    - 2  # a list\n" in text
    assert explain(base, load(Config, base)) == text
    changed = explain(base, load(Config, base, ["data.sizes=[3]"]))
    assert "- 1" not in changed
    assert yaml.safe_load(changed)["data"] == {"root": None, "sizes": [3]}


def test_saved_config_loads_as_the_same(base, tmp_path):
    config = load(Config, base, ["seed=5", "data.root=/x"])
    save(config, tmp_path / "stored.yaml")
    assert load(Config, base, stored=tmp_path / "stored.yaml") == config


def test_help_prints_the_resolved_config(base, capsys):
    with pytest.raises(SystemExit) as stop:
        command(Config, base, "Trains.", ["--help", "seed=3"], steps="STEPS")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("Trains.")
    assert "seed: 3" in out
    assert "STEPS" in out


def test_a_begun_run_refuses_another_config(base, tmp_path):
    folder = tmp_path / "run"
    same_run(load(Config, base), folder, sections=("lr",))
    (folder / "state").mkdir()
    same_run(load(Config, base, ["seed=9"]), folder, sections=("lr",))  # seed is not checked
    with pytest.raises(ConfigError, match=r"lr=0.001, this one has 0.5"):
        same_run(load(Config, base, ["lr=0.5"]), folder, sections=("lr",))


def test_a_key_that_came_after_a_run_began_had_its_default(base, tmp_path):
    folder = tmp_path / "run"
    (folder / "state").mkdir(parents=True)
    old = "stages: [{epochs: 2}]\n"  # neither lr nor the stage's size
    (folder / "config.yaml").write_text(old)
    same_run(
        load(Config, base, ["lr=0.1", old.strip().replace(": ", "=", 1)]),
        folder,
        sections=("lr", "stages"),
    )
    (folder / "config.yaml").write_text(old)
    with pytest.raises(ConfigError, match=r"lr=0.1, this one has 0.5"):
        same_run(load(Config, base, ["lr=0.5"]), folder, sections=("lr",))


def test_keys_lists_sections_and_leaves():
    assert keys({"a": {"b": 1}, "c": 2}) == ["a", "a.b", "c"]
