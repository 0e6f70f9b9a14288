import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from common.config import ConfigError
from common.paths import REPOSITORY
from common.pipeline import sweep
from common.pipeline.sweep_file import Bands, check, read
from common.pipeline.sweep_space import parameter

COMPETITIONS = ("landmarks", "shopee", "whale")
MODULE = """
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from common.config import ConfigError
from common.pipeline.commands import Commands

@dataclass
class Data:
    root: str | None = None

@dataclass
class Train:
    lr: float = 0.1
    steps: int = 3
    recipe: str = "plain"
    sizes: list[int] = field(default_factory=list)

@dataclass
class Config:
    out: str | None = None
    run: str | None = None
    runs: list[str] = field(default_factory=list)
    seed: int = 0
    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)

def check(settings):
    if settings.train.lr > 5:
        raise ConfigError("train.lr is at most 5")
    return settings

COMMANDS = Commands(Config, Path(__file__).parent, "tiny", check, lambda: "")
"""
# Its metric is highest at lr 1; `recipe=broken` fails, `recipe=silent` leaves no metric.
SCRIPT = f"""
import json, sys, time
from pathlib import Path
sys.path[:0] = [{str(REPOSITORY)!r}, str(Path(__file__).resolve().parents[2])]
from {{package}}.tiny.config import COMMANDS
config = COMMANDS.train("", sys.argv[1:])
out = Path(config.out)
out.mkdir(parents=True, exist_ok=True)
print("seen", config)
if config.train.recipe == "broken":
    raise SystemExit("this recipe is broken")
best = 0.0
for step in range(config.train.steps):
    value = 1 / (1 + abs(config.train.lr - 1)) * (step + 1) / config.train.steps
    best = max(best, value)
    with open(out / "metrics.jsonl", "a") as file:
        file.write(json.dumps({{{{"step": step, "valid/score": value}}}}) + "\\n")
    if config.train.recipe == "slow":
        time.sleep(0.4)
if config.train.recipe != "silent":
    (out / "summary.json").write_text(json.dumps({{{{"valid/score": best}}}}))
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch, request):
    """The folder of a competition that trains at once."""
    package = f"competitions_{abs(hash(request.node.name)) % 10**8}"
    home = tmp_path / package / "tiny"
    home.mkdir(parents=True)
    (home / "config.py").write_text(MODULE)
    (home / "config.yaml").write_text("seed: 0\n")
    (home / "train.py").write_text(SCRIPT.format(package=package))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return home


def make_file(home, **changes):
    tree = {
        "program": str(home / "train.py"),
        "method": "random",
        "metric": {"name": "valid/score", "goal": "maximize"},
        "parameters": {"train.lr": {"min": 0.5, "max": 2.0}},
        "command": ["${env}", "python", "${program}", "${args_no_hyphens}"],
        **changes,
    }
    path = home / "sweep.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in tree.items() if v is not None}))
    return path


@pytest.mark.parametrize("name", COMPETITIONS)
def test_sweeps_of_competitions_fit_their_config(name):
    path = REPOSITORY / "competitions" / name / "sweep.yaml"
    found = read(path)
    check(found)
    assert found.program.resolve() == REPOSITORY / "competitions" / name / "train.py"
    assert (found.metric, found.maximize) == ("valid/score", True)
    assert found.cap == 40
    last = {key: one.samples[-1] for key, one in found.parameters.items()}
    commands = importlib.import_module(f"competitions.{name}.config").COMMANDS
    # W&B's agent writes values as Python does.
    by_agent = commands.train("", [f"{key}={value}" for key, value in last.items()])
    assert by_agent == commands.train("", found.arguments(last))
    found.parameters = {"train.hed_lr": found.parameters["train.head_lr"]}
    with pytest.raises(ConfigError, match=r"hed_lr.*did you mean 'train.head_lr'"):
        check(found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"paramters": {}}, "unknown key paramters; did you mean 'parameters'"),
        ({"method": "tpe"}, "method='tpe': choose grid, random, bayes"),
        ({"method": None}, "method is missing"),
        ({"metric": {"goal": "maximize"}}, "metric.name is missing"),
        ({"metric": {"name": "x", "goal": "up"}}, "metric.goal='up'"),
        ({"metric": "x"}, "metric must hold"),
        ({"parameters": {}}, "parameters is empty"),
        ({"parameters": {"a": {"value": 1}}}, "all constant"),
        ({"parameters": {"a": 3}}, "value: 3"),
        ({"parameters": {"a": {"values": []}}}, "not empty"),
        ({"parameters": {"a": {"values": [1, 1]}}}, "twice"),
        ({"parameters": {"a": {"values": [1, 2], "probabilities": [1]}}}, "one of at least 0"),
        ({"parameters": {"a": {"values": [1, 2], "probabilities": [1, 1]}}}, "add up to 2"),
        ({"parameters": {"a": {"min": "1e-4", "max": 1.0}}}, "write 1.0e-4"),
        ({"parameters": {"a": {"min": 2.0, "max": 1.0}}}, "not below max"),
        ({"parameters": {"a": {"max": 1.0}}}, "give value, values, or min and max"),
        ({"parameters": {"a": {"distribution": "log_uniform_values", "min": 0, "max": 1}}},
         "above 0"),
        ({"parameters": {"a": {"distribution": "log_uniform_value", "min": 1, "max": 2}}},
         "did you mean 'log_uniform_values'"),
        ({"parameters": {"a": {"distribution": "uniform", "min": 1}}}, "needs max"),
        ({"parameters": {"a": {"distribution": "uniform", "min": 1, "max": 2, "q": 1}}},
         "has no q"),
        ({"parameters": {"a": {"distribution": "int_uniform", "min": 0.5, "max": 2}}},
         "whole numbers"),
        ({"parameters": {"a": {"distribution": "normal", "mu": 1, "sigma": 0}}}, "sigma=0"),
        ({"parameters": {"train": {"parameters": {"lr": {"value": 1}}}}}, "value, values"),
        ({"method": "grid"}, "a grid cannot list uniform"),
        ({"program": "nowhere.py"}, "no such file"),
        ({"run_cap": 0}, "run_cap=0"),
        ({"early_terminate": {"type": "median"}}, "hyperband is the only one"),
        ({"early_terminate": {"type": "hyperband"}}, "min_iter, or max_iter"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}}, "eta above 1"),
        ({"command": ["python", "${args}"]}, "command must be"),
        ({"command": ["${program}", "${args_json}", "${args}"]}, "W&B's agent alone"),
    ],
)  # fmt: skip
def test_files_that_mean_nothing_are_errors(tiny, changes, said):
    path = make_file(tiny, **changes)
    with pytest.raises(ConfigError, match=re.escape(said)) as error:
        read(path)
    assert str(path) in str(error.value)


def test_keys_and_values_are_those_of_the_competition(tiny):
    def said(**parameters):
        return check(read(make_file(tiny, parameters={"seed": {"values": [0, 1]}, **parameters})))

    said()
    with pytest.raises(ConfigError, match="train.lrr=.*did you mean 'train.lr'"):
        said(**{"train.lrr": {"values": [0.1]}})
    with pytest.raises(ConfigError, match=r"with train.lr=fast: "):
        said(**{"train.lr": {"values": [0.1, "fast"]}})
    with pytest.raises(ConfigError, match="with train.lr=9.0: train.lr is at most 5"):
        said(**{"train.lr": {"min": 0.1, "max": 9.0}})
    with pytest.raises(ConfigError, match="with train.steps=1.5"):
        said(**{"train.steps": {"values": [1, 1.5]}})
    said(**{"train.sizes": {"values": [[1, 2], []]}, "data.root": {"value": "a b"}})
    path = make_file(tiny)
    (tiny / "config.py").unlink()
    sys.modules.pop(f"{tiny.parent.name}.tiny.config", None)
    with pytest.raises(ConfigError, match="is no train.py of a competition"):
        check(read(path))


SHARES = np.linspace(0, 1, 2001)


@pytest.mark.parametrize(
    ("given", "low", "high", "median"),
    [
        ({"min": 1.0, "max": 3.0}, 1, 3, 2),
        ({"min": 1, "max": 4}, 1, 4, 3),
        ({"min": -3, "max": 3}, -3, 3, 0),
        ({"distribution": "log_uniform_values", "min": 0.001, "max": 0.1}, 0.001, 0.1, 0.01),
        ({"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.1}, 0, 1, 0.5),
        ({"distribution": "q_uniform", "min": 8, "max": 64, "q": 8}, 8, 64, 36),
        ({"distribution": "normal", "mu": 2.0, "sigma": 0.5}, -0.4, 4.4, 2),
    ],
)
def test_shares_become_values(given, low, high, median):
    one = parameter("a", given)
    drawn = [one.at(share) for share in SHARES]
    assert drawn == sorted(drawn)
    assert low <= min(drawn) <= max(drawn) <= high
    assert np.median(drawn) == pytest.approx(median, rel=0.12)
    if given.get("distribution") == "q_uniform":
        q = given["q"]
        assert {round(v / q, 6) % 1 for v in drawn} == {0.0}
        assert all(isinstance(v, type(q)) for v in drawn)
    if one.kind == "int_uniform":
        assert set(Counter(drawn)) == set(range(low, high + 1))
        assert max(Counter(drawn).values()) - min(Counter(drawn).values()) <= 2
        assert all(isinstance(v, int) for v in drawn)
    if one.kind == "normal":
        assert np.std(drawn) == pytest.approx(0.5, rel=0.02)
        assert np.quantile(drawn, 0.841) == pytest.approx(2.5, abs=0.01)


def test_weighted_choices_come_as_often_as_they_weigh():
    one = parameter("a", {"values": ["x", "y", "z"], "probabilities": [0.5, 0.0, 0.5]})
    assert Counter(one.at(share) for share in SHARES[:-1]) == {"x": 1000, "z": 1000}
    assert one.at(1.0) == "z"


def test_grids_list_what_wandb_lists():
    step = {"distribution": "q_uniform", "min": 0.0, "max": 0.4, "q": 0.1}
    assert parameter("a", step, grid=True).values == [0.0, 0.1, 0.2, 0.3]
    assert parameter("a", {"min": 2, "max": 4}, grid=True).values == [2, 3, 4]
    with pytest.raises(ConfigError, match="more than"):
        parameter("a", {"min": 0, "max": 10**6}, grid=True)


def slow_bands(history, others, at, eta):
    """As W&B: the value at a band must be among the best 1 / eta of all that came so far."""
    n = len(history)
    if n not in at:
        return False
    values = sorted(-one[n - 1] for one in (*others, history) if len(one) >= n)
    return min(-value for value in history) > values[int(len(values) / eta)]


def test_bands_stop_what_is_not_among_the_best():
    rng = np.random.default_rng(0)
    bands, stopped = Bands([1, 2, 4], eta=3.0), 0
    for _ in range(300):
        others = [rng.random(rng.integers(1, 6)).tolist() for _ in range(rng.integers(5, 20))]
        history = rng.random(rng.integers(1, 6)).tolist()
        wanted = slow_bands(history, others, [1, 2, 4], 3.0)
        assert bands.stops(history, others) == wanted
        stopped += wanted
    assert 20 < stopped < 200
    assert not bands.stops([0.0, 0.0], [])  # nothing to compare with
    assert not Bands([2], 2.0).stops([0.9, 0.1], [[0.5, 0.5], [0.2, 0.2]])
    assert Bands([2], 2.0, strict=True).stops([0.9, 0.1], [[0.5, 0.5], [0.2, 0.2]])


@pytest.mark.parametrize(
    ("settings", "at"),
    [({"min_iter": 3, "eta": 3}, [3, 9, 27]), ({"max_iter": 27, "s": 2}, [3, 9]),
     ({"max_iter": 8, "s": 2, "eta": 2}, [2, 4])],
)  # fmt: skip
def test_bands_of_a_file_are_those_of_wandb(tiny, settings, at):
    found = read(make_file(tiny, early_terminate={"type": "hyperband", **settings}))
    assert found.bands.at[: len(at)] == at


def run(path, *words):
    pytest.importorskip("optuna")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "_POLL", 0.1)
        sweep.main([str(path), *words])


def test_further_words_are_not_what_is_searched_and_are_known(tiny):
    path = make_file(tiny)
    for word in ("train.lr=1", "train={lr: 1}"):
        with pytest.raises(ConfigError, match="searches this: take it out"):
            run(path, "--trials", "1", word)
    with pytest.raises(ConfigError, match="^unknown key 'nope.key'"):
        run(path, "--trials", "1", "nope.key=1")


def test_five_failures_in_a_row_end_a_sweep(tiny, capsys):
    lr = {"min": 0.5, "max": 2.0}
    path = make_file(tiny, parameters={"train.recipe": {"value": "broken"}, "train.lr": lr})
    for past in (5, 10):  # the same command goes on
        with pytest.raises(ConfigError, match="No trial in .* has a valid/score"):
            run(path, "--trials", "20")
        assert capsys.readouterr().out.count("5 trials in a row failed: stopped") == 1
        assert len(list(Path("runs/tiny/sweep").glob("trial-*.log"))) == past


def test_grid_runs_every_point_once_and_says_what_failed(tiny, tmp_path, capsys):
    parameters = {
        "train.lr": {"values": [0.5, 1.0]},
        "train.recipe": {"values": ["plain", "broken", "silent"]},
        "train.sizes": {"value": [1, 2]},
    }
    path = make_file(tiny, method="grid", parameters=parameters)
    run(path, "--trials", "5")
    run(path)  # goes on: the last one
    said = capsys.readouterr().out
    assert "all 6 points of the grid are done" in said
    assert said.count("failed with exit 1: this recipe is broken") == 2
    assert said.count("summary.json has no valid/score") == 2
    out = Path("runs/tiny/sweep")
    seen = [(out / f"trial-{n:03d}.log").read_text() for n in range(6)]
    lrs = Counter(re.search(r"lr=([\d.]+).*recipe='(\w+)'", text).groups() for text in seen)
    assert set(lrs.values()) == {1}
    assert len(lrs) == 6
    assert all("sizes=[1, 2]" in text for text in seen)
    best = next(line for line in said.splitlines() if re.match(r"1\.0000  trial \d", line))
    assert "train.lr=1.0 train.recipe=plain" in best
    run(path)
    assert "trial 6" not in capsys.readouterr().out  # nothing is left to do


def test_a_sweep_goes_on_where_it_was_and_never_draws_the_same(tiny, capsys):
    path = make_file(tiny, run_cap=5)
    run(path, "--trials", "2", "seed=3")
    run(path, "--trials", "4", "seed=3")
    said = capsys.readouterr().out
    assert re.findall(r"^trial (\d+): train", said, re.M) == ["0", "1", "2", "3"]
    drawn = re.findall(r"^trial \d+: train.lr=([\d.]+)$", said, re.M)
    assert len(set(drawn)) == 4
    assert all(0.5 <= float(one) <= 2 for one in drawn)
    assert "seed=3" in Path("runs/tiny/sweep/trial-000.log").read_text()
    with pytest.raises(ConfigError, match="other extra: choose another --out"):
        run(path, "--trials", "5")
    make_file(tiny, run_cap=5, parameters={"train.lr": {"min": 0.5, "max": 3.0}})
    with pytest.raises(ConfigError, match="other parameters"):
        run(path, "seed=3")


def test_bayes_finds_the_peak_and_stops_at_its_target(tiny, capsys):
    metric = {"name": "valid/score", "goal": "maximize", "target": 0.8}
    space = {"train.lr": {"values": [0.2, 1.0, 4.0], "probabilities": [0.3, 0.4, 0.3]}}
    run(make_file(tiny, method="bayes", metric=metric, parameters=space), "--trials", "12")
    said = capsys.readouterr().out
    assert re.search(r"valid/score has reached 0\.8 in trial \d", said)
    if again := re.findall(r"trial (\d+) is trial (\d+) again: not run", said):
        assert all(not Path(f"runs/tiny/sweep/trial-{int(one):03d}").exists() for one, _ in again)


def test_a_hopeless_trial_is_stopped_early(tiny, capsys):
    early = {"type": "hyperband", "min_iter": 1, "eta": 2}
    space = {"train.lr": {"values": [1.0, 4.9]}, "train.recipe": {"value": "slow"}}
    run(
        make_file(tiny, method="grid", parameters=space, early_terminate=early), "--seed", "0",
        "train.steps=4",
    )  # fmt: skip
    said = capsys.readouterr().out
    order = re.findall(r"^trial \d+: train.lr=([\d.]+)", said, re.M)
    if order == ["1.0", "4.9"]:
        assert "stopped early" in said
    else:  # the hopeless one came first, and nothing was better
        assert "stopped early" not in said
    assert re.search(r"^1\.0000  trial", said, re.M)


def test_a_killed_sweep_finishes_its_trial(tiny, capsys):
    pytest.importorskip("optuna")
    space = {"train.lr": {"values": [0.7]}, "train.recipe": {"value": "slow"}}
    path = make_file(tiny, parameters=space, run_cap=1)
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tiny.parents[1]}"}
    words = [sys.executable, "-m", "common.pipeline.sweep", str(path), "train.steps=200"]
    process = subprocess.Popen(
        words,
        env=environment,
        stderr=subprocess.PIPE,
        # A shell that puts the tests in the background has Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    metrics = Path("runs/tiny/sweep/trial-000/metrics.jsonl")
    for _ in range(1200):
        if metrics.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    lines = len(metrics.read_text().splitlines())
    time.sleep(1)
    assert len(metrics.read_text().splitlines()) == lines  # the trial has ended with it
    stored = json.loads(Path("runs/tiny/sweep/sweep.json").read_text())
    Path("runs/tiny/sweep/sweep.json").write_text(json.dumps(stored | {"extra": []}))
    run(path)  # three steps
    said = capsys.readouterr().out
    assert re.findall(r"^trial (\d+): train", said, re.M) == ["0"]
    assert len(metrics.read_text().splitlines()) == lines + 3


def test_a_sweep_needs_an_end_and_optuna(tiny, monkeypatch):
    path = make_file(tiny)
    with pytest.raises(ConfigError, match="say --trials or --minutes"):
        sweep.main([str(path)])
    with pytest.raises(ConfigError, match="--trials 0: above 0"):
        sweep.main([str(path), "--trials", "0"])
    with pytest.raises(ConfigError, match="--out says where trials go"):
        sweep.main([str(path), "--trials", "1", "out=x"])
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match="pip install 'optuna>=4'"):
        sweep.main([str(path), "--trials", "1"])
    assert not Path("runs/tiny").exists()


def test_minutes_let_no_trial_begin_that_would_not_end(tiny, capsys):
    run(make_file(tiny), "--minutes", "0.0001")
    said = capsys.readouterr().out
    assert said.count("train.lr=") == 2  # the first, and the line of the best
    assert "would not do for another trial" in said


def test_a_trial_of_wandbs_agent_has_its_own_folder(tiny, monkeypatch):
    commands = __import__(f"{tiny.parent.name}.tiny.config", fromlist=["COMMANDS"]).COMMANDS
    monkeypatch.setenv("WANDB_SWEEP_ID", "sw1")
    monkeypatch.setenv("WANDB_RUN_ID", "r7")
    assert commands.train("", []).out == str(Path("runs/tiny/sweep-sw1/r7"))
    assert commands.train("", ["out=here"]).out == "here"
