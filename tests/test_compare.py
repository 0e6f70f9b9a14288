import csv
import io
import json
import re
import shutil
import time
import types
from pathlib import Path

import numpy as np
import pytest
import yaml

from common import metrics
from common.entry import entry
from common.report import bootstrap, compare, compare_text, experiments, wandb_runs
from common.report.comparison import build, gather
from common.report.queries import Queries, load_queries, of_files, save_queries
from common.report.records import read_folder
from common.track import Run, TrackConfig
from tests.offline import settle
from tests.test_report import EVIL, Page

CONFIG = {
    "out": None, "run": None, "seed": 0, "data": {"root": None, "fold": 0, "folds": 5},
    "loss": [{"name": "arcface", "scale": 30.0, "margin": 0.3}],
    "train": {"lr": 1e-4, "stages": [{"epochs": 3, "size": 32}]}, "track": {"wandb": "off"},
    "ensemble": {"by": "embeddings"}, "runs": [],
}  # fmt: skip
DATA = {"train": 10, "test": 5, "sha256": "aa"}


def config(**changes):
    made = json.loads(json.dumps(CONFIG))
    for key, value in changes.items():
        *parents, last = key.split("__")
        tree = made
        for name in parents:
            tree = tree[name]
        tree[last] = value
    return made


def make_run(
    folder, *, values=None, level=0.5, competition="whale", data=DATA, job="train", **changes
):
    """A run folder as train.py and infer.py leave it; `values` are MAP@5 of its test queries."""
    folder.mkdir(parents=True)
    settings = config(out=str(folder), **changes)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    about = {"name": folder.name, "group": None, "data": data, "changes": {}}
    about["command"] = f"python competitions/{competition}/train.py"
    (folder / "track.json").write_text(json.dumps({job: about}))
    lines = [
        {"step": 10 * e, "epoch": e, "train/loss": 9.0 / e, "train/images_per_second": 20.0 + e,
         "train/memory_gb": 1.5, "valid/map5": level + 0.01 * e}
        for e in (1, 2, 3)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {"minutes": 2.0 + level, "valid/map5": level + 0.03, "valid/map5_step": 30}
    if values is not None:
        found = Queries(np.array([f"q{i}" for i in range(len(values))]), np.asarray(values))
        save_queries(folder, {"test/map5": found})
        summary["test/map5"] = found.metric()
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def make_three(root, queries=200):
    """Two seeds of one experiment and one of another that is better by far."""
    rng = np.random.default_rng(0)
    base = rng.choice([0.0, 0.2, 0.25, 0.5, 1.0], queries)
    for seed in (0, 1):
        own = np.where(rng.random(queries) < 0.1, 0.0, base)
        make_run(root / f"plain-{seed}", values=own, level=0.4 + 0.02 * seed, seed=seed)
    better = np.where(rng.random(queries) < 0.4, 1.0, base)
    make_run(root / "triplet", values=better, level=0.6, train__lr=3e-4)
    return root


def queries_fit(folder):
    """Whether the per-query scores of a run folder give the scores of its summary, all of them."""
    scores = {
        key: value
        for key, value in json.loads((folder / "summary.json").read_text()).items()
        if key.startswith(("held-out/", "test/")) and not key.endswith("recall1")
    }
    found = {key: one.metric() for key, one in load_queries(folder).items()}
    return bool(scores) and found == pytest.approx(scores)


@pytest.fixture
def three(tmp_path):
    return make_three(tmp_path / "runs")


def drawn(runs, draws, seed, place=0):
    """The metric of each draw with every query copied as often as it was drawn."""
    count = len(runs[0])
    rows = np.random.default_rng([seed, place]).integers(count, size=(draws, count))
    found = np.empty((len(runs), draws))
    for b, row in enumerate(rows):
        for r, one in enumerate(runs):
            again = {f"{one.ids[q]} {n}": int(q) for n, q in enumerate(row)}
            if one.score is None:
                found[r, b] = sum(one.value[q] for q in again.values()) / count
                continue
            truth = {name: ["a"] if one.known[q] else [] for name, q in again.items()}
            given = {
                name: ("a" if one.value[q] else "b", float(one.score[q]))
                for name, q in again.items()
                if not np.isnan(one.score[q])
            }
            found[r, b] = metrics.gap(truth, given)
    return found


def ranked(count, seed):
    rng = np.random.default_rng(seed)
    score = rng.random(count).round(1)  # ties
    score[rng.random(count) < 0.2] = np.nan
    known = rng.random(count) < 0.7
    right = known & (rng.random(count) < 0.6)
    return Queries(np.array([f"q{i:02d}" for i in range(count)]), right, score, known)


@pytest.mark.parametrize("kind", ["mean", "gap"])
def test_bootstrap_is_that_of_copied_queries(kind):
    rng = np.random.default_rng(5)
    names = np.array([f"q{i:02d}" for i in range(30)])
    if kind == "gap":
        a, b, c = (ranked(30, seed) for seed in range(3))
        for one in (b, c):  # the same truth
            one.value = np.where(a.known, one.value, 0)
            one.known = a.known
    else:
        a, b, c = (Queries(names, rng.random(30)) for _ in range(3))
    found = bootstrap.compare({"first": [a], "second": [b, c]}, draws=50, seed=7)
    slow = drawn([a, b, c], 50, 7)
    apart = slow[1:].mean(0) - slow[0]
    assert found[0].value == pytest.approx((b.metric() + c.metric()) / 2 - a.metric())
    assert (found[0].low, found[0].high) == pytest.approx(tuple(np.quantile(apart, [0.025, 0.975])))
    tail = min((apart <= 0).sum(), (apart >= 0).sum())
    assert found[0].p == pytest.approx(min(1, 2 * (1 + tail) / 51))


def test_folds_are_drawn_apart_and_only_common_ones_count():
    rng = np.random.default_rng(0)
    folds = [np.array([f"{fold}-{i}" for i in range(20)]) for fold in range(3)]
    a = [Queries(ids, rng.random(20)) for ids in folds]
    b = [Queries(ids, rng.random(20)) for ids in folds[:2]]
    found = bootstrap.compare({"a": a, "b": b}, draws=40, seed=1)[0]
    wanted = np.mean([b[f].metric() - a[f].metric() for f in (0, 1)])
    assert found.queries == 40
    assert found.value == pytest.approx(wanted)
    slow = [drawn([a[f], b[f]], 40, 1, f) for f in (0, 1)]
    apart = np.mean([one[1] - one[0] for one in slow], axis=0)
    assert found.low == pytest.approx(np.quantile(apart, 0.025))
    assert bootstrap.compare({"a": a[2:], "b": b}, draws=5) == []


def test_equal_runs_do_not_differ_and_holm_counts_the_pairs():
    one = Queries(np.array(["a", "b", "c"]), np.array([0.0, 0.5, 1.0]))
    found = bootstrap.compare({name: [one] for name in "xyz"}, draws=20)
    assert [pair.p for pair in found] == [1.0, 1.0, 1.0]
    rng = np.random.default_rng(0)
    base = rng.random(300)
    names = np.array([f"{i}" for i in range(300)])
    runs = {"a": [Queries(names, base)], "b": [Queries(names, base + 0.3)]}
    runs["c"] = [Queries(names, rng.permutation(base))]
    pairs = {(p.first, p.second): p for p in bootstrap.compare(runs, draws=200)}
    assert pairs["a", "b"].p == pytest.approx(2 / 201)
    assert pairs["a", "b"].holm == pytest.approx(3 * 2 / 201)
    assert pairs["a", "c"].holm == pytest.approx(pairs["a", "c"].p)
    only = bootstrap.compare(runs, against="c", draws=5)
    assert [(p.first, p.second) for p in only] == [("a", "c"), ("b", "c")]


@pytest.mark.parametrize("count", [1, 2, 4, 12])
def test_a_handful_of_queries_proves_nothing(count):
    names = np.array([f"{i}" for i in range(count)])
    runs = {"a": [Queries(names, np.zeros(count))], "b": [Queries(names, np.ones(count))]}
    (found,) = bootstrap.compare(runs, draws=2000)
    signs = np.array(np.meshgrid(*[[-1, 1]] * count)).reshape(count, -1).sum(0)
    exact = (np.abs(signs) == count).mean()  # of all ways to swap the two
    assert found.p == pytest.approx(max(exact, 2 / 2001))


SOLUTION = "id,landmarks\na,7 8\nb,\nc,9\nd,5\n"
ANSWERS = "id,landmarks\na,8 0.5\nb,1 0.9\nc,\nd,4 0.9\n"


@pytest.mark.parametrize(
    ("metric", "solution", "answers", "values"),
    [
        ("gap", SOLUTION, ANSWERS, [1, 0, 0, 0]),
        ("map5", "Image,Id\nx,w\ny,v\nz,u\n", "Image,Id\nx,a w\ny,v b\n", [0.5, 1.0, 0.0]),
        ("map100", "id,images\nx,p q\ny,None\n", "id,images\nx,q r p\ny,p\n", [(1 + 2 / 3) / 2]),
        ("f1", "posting_id,matches\nx,x y\ny,x y\n", "posting_id,matches\nx,x\ny,y x z\n",
         [2 / 3, 0.8]),
    ],
)  # fmt: skip
def test_queries_of_files_give_the_score(tmp_path, metric, solution, answers, values):
    truth, given = tmp_path / "solution.csv", tmp_path / "given.csv"
    truth.write_text(solution)
    given.write_text(answers)
    found = of_files(metric, truth, given)
    assert found.value.tolist() == pytest.approx(values)
    assert found.metric() == pytest.approx(metrics.score(metric, truth, given))
    save_queries(tmp_path, {f"test/{metric}": found})
    save_queries(tmp_path, {"held-out/x": Queries(np.array(["b", "a"]), np.array([1.0, 0.0]))})
    again = load_queries(tmp_path)
    assert again[f"test/{metric}"].metric() == found.metric()
    assert again["held-out/x"].ids.tolist() == ["a", "b"]
    assert again["held-out/x"].value.tolist() == [0.0, 1.0]


def test_queries_refuse_what_is_no_set_of_queries(tmp_path):
    with pytest.raises(ValueError, match="length"):
        Queries(np.array(["a"]), np.zeros(2))
    with pytest.raises(ValueError, match="once"):
        Queries(np.array(["a", "a"]), np.zeros(2))
    with pytest.raises(ValueError, match="finite"):
        Queries(np.array(["a"]), np.array([np.nan]))
    (tmp_path / "queries.json").write_text('{"test/x": {"ids": ["a"]}, "test/y": 3}')
    assert load_queries(tmp_path) == {}


def test_runs_that_differ_in_seed_and_fold_are_one_experiment(tmp_path):
    root = tmp_path / "runs"
    for seed in (0, 1):
        make_run(root / f"plain_seed{seed}", level=0.4 + 0.1 * seed, seed=seed)
    make_run(root / "plain_fold1", level=0.6, data__fold=1)
    steps = [{"name": "arcface", "scale": 30.0, "margin": 0.5}]
    make_run(root / "margin", loss=steps, train__lr=2e-4)
    make_run(root / "two", loss=[*steps, {"name": "triplet"}])
    found = build(*gather([str(root)])[:1])
    assert [one.name for one in found.experiments] == ["margin", "plain", "two"]
    plain = found.experiments[1]
    assert len(plain.records) == 3
    mean, spread = plain.scores()["valid/map5"]
    assert mean == pytest.approx(0.53)
    assert spread == pytest.approx(np.std([0.43, 0.53, 0.63], ddof=1))
    assert plain.cost()["memory"] == pytest.approx((1.5, 0.0))
    assert plain.cost()["images/s"][0] == 22
    assert found.settings["train.lr"] == ["0.0002", "0.0001", "0.0001"]
    assert set(found.settings) == {"train.lr", "loss"}  # of different length: as a whole
    two = build(*gather([str(root / "margin"), str(root / "plain_fold1")])[:1])
    assert two.settings["loss.0.margin"] == ["0.5", "0.3"]
    assert "data.fold" not in two.settings
    best = build(*gather([str(root)])[:1], sort="valid/map5")
    assert best.experiments[0].scores()["valid/map5"][0] == max(
        one.scores()["valid/map5"][0] for one in best.experiments
    )


def test_an_ensemble_is_not_held_to_what_its_members_were_trained_with(tmp_path):
    root = tmp_path / "runs"
    make_run(root / "a", train__lr=1e-3)
    folder = make_run(root / "joined", job="ensemble", runs=["a", "b"])
    (folder / "config.yaml").rename(folder / "ensemble.yaml")
    found = build(*gather([str(root)])[:1])
    assert "train.lr" not in found.settings
    text = compare_text.text(found)
    assert "2 experiments" in text


def test_text_says_who_is_better_and_what_it_costs(three, capsys):
    compare.main([str(three), "--draws", "200"])
    said = capsys.readouterr().out
    assert "3 runs of whale in 2 experiments" in said
    row = next(line for line in said.splitlines() if line.startswith("plain "))
    assert "±" in row
    assert re.search(r"triplet - plain +better +200 +\+0\.", said)
    assert re.search(r"train\.lr +0\.0001 +0\.0003", said)
    assert "warning" not in said


def test_markdown_goes_into_a_readme_between_its_markers(three, tmp_path, capsys):
    readme = tmp_path / "README.md"
    told = "`--into` puts it between `<!-- compare -->` and `<!-- /compare -->`\nend\n"
    readme.write_text(f"# Mine\n<!-- compare -->\nbefore it\n<!-- /compare -->\n{told}")
    words = [str(three / "plain-0"), str(three / "plain-1"), str(three / "triplet")]
    compare.main([*words, "--into", str(readme), "--draws", "100"])
    text = readme.read_text()
    assert text.startswith(
        "# Mine\n<!-- compare -->\n|  | what differs | MAP@5 (test) | minutes | peak GiB |"
    )
    assert text.endswith(f"<!-- /compare -->\n{told}")
    assert "before it" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[1].startswith("| plain (2 runs) | `train.lr=0.0001` | .")
    assert rows[2].startswith("| triplet | `train.lr=0.0003` | .")
    assert r"\*" in rows[2]
    once = text
    compare.main([*words, "--into", str(readme), "--draws", "100"])
    assert readme.read_text() == once
    readme.write_text("Put it between `<!-- compare -->` and `<!-- /compare -->`.\n")
    with pytest.raises(ValueError, match="no place for the table"):
        compare.main([*words, "--into", str(readme)])
    capsys.readouterr()
    compare.main([*words, "--md", "--draws", "100"])
    assert capsys.readouterr().out.rstrip() in once


def test_csv_has_a_row_for_each_run(three, capsys):
    compare.main([str(three), "--csv", "--draws", "5"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["experiment"] for row in rows] == ["plain", "plain", "triplet"]
    assert [row["seed"] for row in rows] == ["0", "1", "0"]
    stored = json.loads((three / "plain-1" / "summary.json").read_text())
    assert float(rows[1]["test/map5"]) == stored["test/map5"]
    assert rows[2]["train.lr"] == "0.0003"


def test_page_is_whole_and_escapes(three, tmp_path):
    evil = three / "evil"
    make_run(evil, values=np.zeros(200), model={"backbone": EVIL})
    track = json.loads((evil / "track.json").read_text())
    track["train"]["name"] = EVIL
    (evil / "track.json").write_text(json.dumps(track))
    out = tmp_path / "page.html"
    compare.main([str(three), "--html", "--out", str(out), "--draws", "100"])
    text = out.read_text()
    page = Page(text)
    assert EVIL not in text
    assert EVIL in page.visible
    assert len(page.all("script")) == 1
    assert not re.search(r'(src|href)="(?!#)(?!data:)', text)
    assert len(page.all("svg")) == 4  # scores, differences, validation, loss
    assert "prefers-color-scheme: dark" in text
    assert "train.lr" in page.visible


@pytest.mark.parametrize("many", [1, 9])
def test_page_stands_any_number_of_experiments(tmp_path, many):
    for n in range(many + 1):
        values = np.random.default_rng(n).random(20)
        make_run(tmp_path / f"trial-{n}", values=values, train__lr=1e-4 * (n + 1))
    found = build(*gather([str(tmp_path)])[:1], draws=20)
    pairs = found.differences["test/map5"]
    assert len(pairs) == many
    assert {pair.first for pair in pairs} == {"trial-0"}


def test_bad_input_is_said(three, tmp_path, capsys, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="is no run folder, it holds none"):
        gather([str(three / "plain-0"), str(empty)])
    with pytest.raises(ValueError, match="is no folder"):
        gather([str(tmp_path / "nowhere"), str(three)])
    monkeypatch.chdir(three)
    with pytest.raises(ValueError, match="one run .* takes two"):
        gather([str(three / "plain-0"), "plain-0"])
    silent = tmp_path / "silent"
    silent.mkdir()
    (silent / "track.json").write_text("{}")
    with pytest.raises(ValueError, match="has no metrics yet"):
        gather([str(silent), str(three)])
    shutil.copytree(silent, three / "silent")
    assert any("left out" in remark for remark in gather([str(three)])[1])
    shutil.rmtree(three / "silent")
    (three / "cache").mkdir()
    assert len(gather([str(path) for path in three.iterdir()])[0]) == 3
    with pytest.raises(ValueError, match="did you mean 'test/map5'"):
        build(gather([str(three)])[0], metrics=["test/map"])
    make_run(tmp_path / "shop", competition="shopee")
    with pytest.raises(ValueError, match=r"different competitions \(whale: .*; shopee: "):
        gather([str(three), str(tmp_path / "shop")])
    make_run(three / "other", data={"train": 99, "sha256": "bb"}, values=np.ones(3))
    _, remarks = gather([str(three)])
    assert any("different data" in one and "train 99" in one for one in remarks)
    monkeypatch.setattr("sys.argv", ["compare", str(empty)])
    with pytest.raises(SystemExit):
        entry(compare.main)
    assert capsys.readouterr().err.startswith("error: ")


def test_scores_that_are_not_those_of_the_summary_are_not_believed(three):
    folder = three / "triplet"
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"test/map5": 0.9}))
    record = read_folder(folder)
    assert record.queries == {}
    assert record.stale == ["test/map5"]
    found = build(*gather([str(three)])[:1], draws=5)
    assert "test/map5" not in found.differences


def test_infer_says_what_was_scored(tmp_path):
    folder = make_run(tmp_path / "a", train__lr=1e-3)
    assert read_folder(folder).config["train"]["lr"] == 1e-3
    track = json.loads((folder / "track.json").read_text())
    track["infer"] = {"changes": {"ranking": [[], [{"name": "knn"}]]}}
    (folder / "track.json").write_text(json.dumps(track))
    assert read_folder(folder).config["ranking"] == [{"name": "knn"}]
    (folder / "infer.yaml").write_text(yaml.safe_dump({"ranking": [{"name": "vote"}]}))
    assert read_folder(folder).config == {"ranking": [{"name": "vote"}]}


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Two trainings and an inference that W&B stored offline."""
    pytest.importorskip("wandb")
    root = tmp_path_factory.mktemp("offline")
    for name, lr in (("a", 1e-3), ("b", 2e-3)):
        settings = config(train__lr=lr)
        track = TrackConfig(wandb="offline", project="kaggle-whale", name=name)
        run = Run(root / name, settings, track, best=("valid/map5",), data=DATA)
        for step in (1, 2, 3):
            run.log(10 * step, epoch=step, **{"valid/map5": [0.2, 0.7, 0.5][step - 1]})
        run.summary(minutes=1.5)
        run.finish()
    time.sleep(1.1)  # W&B names its folders by second: they sort as they came
    run = Run(root / "a", config(train__lr=1e-3, extra="x" * 70_000), track, job_type="infer")
    run.finish()
    time.sleep(1.1)
    run = Run(
        root / "a", config(train__lr=1e-3, ranking=[{"name": "knn"}]),
        TrackConfig(wandb="offline", project="kaggle-whale", name="a"), job_type="infer",
        resume=False, data=DATA,
    )  # fmt: skip
    run.summary(**{"test/map5": 0.61})
    run.finish()
    for name in ("a", "b"):
        settle(root / name)
    return root


def test_offline_runs_of_wandb_are_read(offline):
    folders = [str(offline / name / "wandb") for name in ("a", "b")]
    files = wandb_runs.offline_files(Path(folders[0]))
    read = [wandb_runs.read_file(file) for file in files]
    assert [one.job for one in read] == ["train", "infer", "infer"]
    assert len(read[1].config["extra"]) == 70_000  # over three blocks of the log
    records, remarks = gather(folders)
    assert ["no per-query scores" in remark for remark in remarks] == [True]
    first = next(one for one in records if one.name == "a" and one.job == "train")
    assert first.config["ranking"] == [{"name": "knn"}]
    assert first.scores() == {"test/map5": 0.61, "valid/map5": 0.7}
    assert first.series("valid/map5") == ([10, 20, 30], [0.2, 0.7, 0.5])
    assert (first.competition, first.data) == ("whale", DATA)
    assert first.cost()["minutes"] == 1.5


def test_a_resumed_run_of_wandb_is_one(tmp_path):
    pytest.importorskip("wandb")
    track = TrackConfig(wandb="offline", project="kaggle-whale", name="a")
    for first, values in ((1, [0.2, 0.7, 0.9]), (3, [0.4, 0.6])):  # step 3 is done again
        run = Run(tmp_path, config(), track, best=("valid/map5",), data=DATA)
        run.truncate(10 * (first - 1))
        for step, value in enumerate(values, first):
            run.log(10 * step, epoch=step, **{"valid/map5": value})
        run.finish()
        time.sleep(1.1)  # W&B names its folders by second
    run = Run(tmp_path, config(), track, job_type="infer", data=DATA)
    run.summary(**{"test/map5": 0.5})
    run.finish()
    settle(tmp_path)
    make_run(tmp_path / "other", level=0.1)
    files = wandb_runs.offline_files(tmp_path / "wandb")
    assert len(files) == 3
    # As a shell names them, in whatever order: the inference finds its training.
    words = [str(file.parent) for file in reversed(files)]
    records = gather([*words, str(tmp_path / "other")])[0]
    assert [one.name for one in records] == ["a", "other"]
    assert records[0].series("valid/map5") == ([10, 20, 30, 40], [0.2, 0.7, 0.4, 0.6])
    assert records[0].scores() == {"test/map5": 0.5, "valid/map5": 0.7}


def test_offline_files_that_are_cut_or_none_are_said(offline, tmp_path, monkeypatch):
    file = wandb_runs.offline_files(offline / "b" / "wandb")[0]
    whole = wandb_runs.read_file(file)
    data = file.read_bytes()
    (tmp_path / "run-x.wandb").write_bytes(data[: len(data) * 2 // 3])
    part = wandb_runs.read_file(tmp_path / "run-x.wandb")
    assert part.config == whole.config
    assert len(part.lines) < len(whole.lines) == 3
    (tmp_path / "run-y.wandb").write_bytes(b"hello world")
    with pytest.raises(ValueError, match="is no W&B run file"):
        wandb_runs.read_file(tmp_path / "run-y.wandb")
    (tmp_path / "run-z.wandb").write_bytes(data[:7])
    with pytest.raises(ValueError, match="names no run"):
        wandb_runs.read_file(tmp_path / "run-z.wandb")
    monkeypatch.setitem(__import__("sys").modules, "wandb.proto.wandb_internal_pb2", None)
    with pytest.raises(ValueError, match="pip install 'wandb"):
        wandb_runs.read_file(file)


class FakeRun:
    def __init__(self, name, lr, value, job="train"):
        self.name, self.id, self.job_type, self.group = name, f"id-{name}-{job}", job, None
        self.project = "kaggle-whale"
        self.config = {**config(train__lr=lr), "_wandb": {}, "git": {}, "fingerprint": DATA}
        summary = {"valid/map5": {"max": value}, "minutes": 3, "table": {"_type": "table-file"}}
        self.summary = types.SimpleNamespace(
            _json_dict=summary if job == "train" else {"test/map5": 0.5}
        )

    def scan_history(self):
        return iter([{"step": 1, "valid/map5": 0.1}, {"step": 2, "valid/map5": 0.3}, {"_step": 3}])


def test_online_runs_are_read_by_the_api(monkeypatch):
    wandb = pytest.importorskip("wandb")
    asked = []

    class Api:
        def runs(self, path, order):
            asked.append((path, order))
            if path == "me/none":
                raise ValueError("Could not find project none")
            return [
                FakeRun("a", 1e-3, 0.6),
                FakeRun("b", 2e-3, 0.7),
                FakeRun("a", 1e-3, 0, "infer"),
            ]

        def run(self, path):
            asked.append(path)
            return FakeRun("one", 1e-3, 0.4)

    monkeypatch.setattr(wandb, "Api", Api)
    records, _ = gather(["wandb:me/project"])
    assert asked == [("me/project", "+created_at")]
    assert [one.scores() for one in records] == [
        {"test/map5": 0.5, "valid/map5": 0.6}, {"valid/map5": 0.7}
    ]  # fmt: skip
    assert records[0].series("valid/map5") == ([1, 2], [0.1, 0.3])
    assert records[0].config == config(train__lr=1e-3)
    found = build(records)
    assert found.settings == {"train.lr": ["0.001", "0.002"]}
    assert len(gather(["wandb:me/project/abc", "wandb:me/project"])[0]) == 3
    assert asked[1] == "me/project/abc"
    with pytest.raises(ValueError, match="could not be read from W&B: Could not find project"):
        gather(["wandb:me/none"])
    with pytest.raises(ValueError, match="write wandb:ENTITY/PROJECT"):
        gather(["wandb:a/b/c/d"])


def test_whole_parents_are_read_in_natural_order(tmp_path):
    for n in (10, 2, 1):
        make_run(tmp_path / "deep" / f"trial-{n}", train__lr=n * 1e-4)
    records, _ = gather([str(tmp_path)])
    assert [record.name for record in records] == ["trial-1", "trial-2", "trial-10"]


def test_names_of_experiments_are_unlike(tmp_path):
    make_run(tmp_path / "x" / "base", train__lr=1e-4)
    make_run(tmp_path / "y" / "base", train__lr=2e-4)
    found = experiments.group(gather([str(tmp_path)])[0])
    assert [one.name for one in found] == ["x/base", "y/base"]
