"""The whale scripts as commands, their data, the unknown identity and twin classes."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from common.config import ConfigError, keys, load, save
from common.data import augment
from common.data.samplers import PK
from common.data.tables import DataError
from common.engine.extract import ViewConfig, embed_table
from common.engine.loop import Progress
from common.losses.pair import TripletLoss
from common.models.embedder import Embedder, ModelConfig
from common.pipeline import training
from common.submission import check as check_file
from common.types import Neighbors, Table
from competitions.whale.config import BASE, COMMANDS, Config, check, criterion_of
from competitions.whale.data import DataConfig, read
from competitions.whale.infer import main as infer_script
from competitions.whale.material import Material
from competitions.whale.ranking import Held, average_precision
from competitions.whale.study import Study
from competitions.whale.train import main as train_script
from competitions.whale.train import train
from competitions.whale.twins import doubled, joined_centers, twin_names
from tests.scripts import succeeds
from tests.test_compare import queries_fit

ROOT = Path(__file__).parents[1]
TINY = [
    "model.backbone=test_efficientnet",
    "model.weights=none",
    "train.stages=[{epochs: 1, size: 32}]",
    "train.batch_size=16",
    "train.workers=0",
    "view.size=32",
    "view.workers=0",
    "data.folds=3",
    "data.unseen=0.2",
    "track.wandb=off",
]
RECIPES = sorted(
    path.stem
    for path in (BASE.parent / "experiments").glob("*.yaml")
    if path.stem not in ("frozen", "twins")
)
POINTS = "Image,x0,y0,x1,y1,x2,y2\n"


def run(script, *arguments, folder="whale"):
    return succeeds(script, *arguments, folder=folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five individuals in coloured squares, one of them with one image, and strangers."""
    folder = tmp_path_factory.mktemp("whale")
    rng = np.random.default_rng(0)
    rows = {"train": [], "test": []}
    for split, each in (("train", 6), ("test", 2)):
        (folder / split).mkdir()
        for who in range(7):  # 5 and 6 are new_whale
            for n in range(1 if (who, split) == (4, "train") else each):
                name = f"{split}{who}{n}.jpg"
                picture = rng.integers(0, 255, (40, 48, 3)).astype(np.uint8)
                picture[8:32, 8:32] = (who * 36, 255 - who * 30, who * 110 % 255)
                cv2.imwrite(str(folder / split / name), picture)
                rows[split].append((name, f"w_{who}" if who < 5 else "new_whale"))
    (folder / "test" / "test00.jpg").write_bytes(b"not a picture")
    frame(rows["train"]).to_csv(folder / "train.csv", index=False)
    frame(rows["test"]).to_csv(folder / "solution.csv", index=False)
    guess = [(name, "new_whale w_0 w_1 w_2 w_3") for name, _ in rows["test"]]
    frame(guess).to_csv(folder / "sample_submission.csv", index=False)
    boxes = [(name, 4, 4, 40, 36) for name, _ in rows["train"]]
    frame(boxes, "Image", "x0", "y0", "x1", "y1").to_csv(folder / "bboxs.csv", index=False)
    return folder


def frame(rows, *columns):
    return pd.DataFrame(rows, columns=columns or ("Image", "Id"))


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "a"
    run("train", f"data.root={root}", f"out={out}", *TINY)
    return out


def test_train_infer_and_ensemble_end_in_checked_submissions(root, trained):
    said = run("infer", f"run={trained}")
    path = trained / "submission.csv"
    assert check_file("whale", path, root / "sample_submission.csv") == []
    answers = pd.read_csv(path).Id.str.split()
    assert (answers.map(len) == 5).all()
    assert all(len(set(row)) == 5 for row in answers)
    assert answers.map(lambda row: "new_whale" in row).all()
    summary = json.loads((trained / "summary.json").read_text())
    assert 0 < summary["test/map5"] <= 1
    assert queries_fit(trained)
    assert "MAP@5" in said
    assert (trained / "report.html").is_file()
    twin = trained.parent / "twin"
    more = ["twins=true", "view.join_flip=true", "train.augment=crop_upright"]
    more += ["train.sampler={name: assigned_pairs}"]
    loss = "loss=[{name: sub_center_arcface}, {name: siamese, weight: 0.5}]"
    points = trained.parent / "points.csv"
    named = [path.name for split in ("train", "test") for path in (root / split).iterdir()]
    points.write_text(POINTS + "".join(f"{name},6,6,34,7,33,34\n" for name in named))
    more += ["data.mask=box", "model.in_chans=4", f"data.keypoints={points}", "train.swa=1"]
    more += ["data.box_mix=[{boxes: bboxs.csv, share: 0.7}, {boxes: none, share: 0.3}]"]
    more += ["model.freeze=none", "train.stages=[{epochs: 1, size: 32, min_images: 2}]"]
    run("train", f"data.root={root}", f"out={twin}", *TINY, *more, loss)
    local = "{name: local, top: 3, floor: 0}"  # inside the boxes
    ranking = f"ranking=[{{name: knn}}, {{name: siamese, top: 5}}, {local}, {{name: vote}}]"
    run("infer", f"run={twin}", "unknown={by: share, value: 0.5}", ranking)
    assert (twin / "embeddings" / "pair_head.safetensors").is_file()
    out = trained.parent / "both.csv"
    run("ensemble", f"runs=[{trained},{twin}]", f"out={out}", "ensemble.weights=[1, 1]")
    assert check_file("whale", out, root / "sample_submission.csv") == []


def test_share_of_unknown_answers_is_the_wished_one(root, trained):
    out = trained.parent / "share.csv"
    run("infer", f"run={trained}", f"out={out}", "unknown={by: share, value: 0.5}")
    first = pd.read_csv(out).Id.str.split().str[0]
    assert (first == "new_whale").mean() == pytest.approx(0.5, abs=0.08)


def test_a_study_scores_steps_as_infer_does(trained):
    steps = "[{name: knn}, {name: vote, top: 50, power: 1.0, reduce: max}]"
    run("infer", f"run={trained}", f"ranking={steps}")
    summary = json.loads((trained / "summary.json").read_text())
    study = Study.of(trained)
    found = study.table({"as infer": steps, "class centres": "[{name: class_centers}]"})
    assert found.loc["as infer", "held-out"] == round(summary["held-out/map5"], 4)
    assert found.loc["as infer", "test"] == round(summary["test/map5"], 4)
    assert found.loc["class centres", "change"] == pytest.approx(
        found.loc["class centres", "held-out"] - found.loc["as infer", "held-out"], abs=2e-4
    )
    assert study.curve(steps).value == pytest.approx(summary["held-out/map5"])


def test_a_copied_folder_works_under_its_own_name(root, tmp_path):
    copy = ROOT / "competitions" / f"copied_whale_{os.getpid()}"
    shutil.copytree(ROOT / "competitions" / "whale", copy, ignore=shutil.ignore_patterns("sample"))
    try:
        said = run("train", f"data.root={root}", f"out={tmp_path / 'a'}", *TINY, folder=copy.name)
        assert "run folder" in said
    finally:
        shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["twins=true"], "set view.join_flip=true"),
        (["view.join_flip=true", "view.flip=false"], "set view.flip=true"),
        (["twins=true", "view.join_flip=true"], "mirrors images at random"),
        (["twin_mask=some"], "choose none, softmax, all"),
        (["data.mask=box"], "set both or neither"),
        (["model.in_chans=4"], "set both or neither"),
        (["data.mask=box", "model.in_chans=4", "train.augment=strong"], "a mask cannot follow"),
        (["unknown.by=luck"], "choose validation, share, quantile, threshold"),
        (["data.fold=-1"], "needs held-out images"),
        (["ranking=[{name: vote}]"], "vote needs neighbors"),
        (["ensemble.by=luck"], "choose embeddings, scores, ranks or stacked"),
        (["ranking=[{name: knn}, {name: siamese}, {name: vote}]"], "sub_center_arcface: add it"),
        (["ranking=[{name: class_logits}]", "loss=[{name: triplet}]"], "triplet has none"),
        (["ranking=[{name: class_logits}]", "train.stages=[]"], "so they are noise"),
        (
            ["ranking=[{name: knn}, {name: vote, class_power: 1.0}]", "train.stages=[]"],
            "vote reads",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        check(load(Config, BASE, arguments))


def test_every_key_has_its_place_and_every_experiment_loads():
    shown = yaml.safe_load(BASE.read_text())
    assert list(shown) == list(Config.__dataclass_fields__)
    known = set(keys(load(Config, BASE)))
    assert {k for k in known - set(keys(shown)) if not k.startswith("track.")} == set()
    for path in sorted((BASE.parent / "experiments").glob("*.yaml")):
        assert len(path.read_text().splitlines()) <= 15
        check(load(Config, BASE, [str(path)]))


def copied(root, tmp_path, name, text):
    for path in root.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / name).unlink()
    (tmp_path / name).write_text(text)
    return DataConfig(root=str(tmp_path))


TRAIN = "Image,Id\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.csv", "", "not a readable csv"),
        ("train.csv", "Image,Name\na.jpg,b\n", "no column 'Id'"),
        ("train.csv", TRAIN + "train00.jpg,w_0\ntrain00.jpg,w_1\n", "occurs twice"),
        ("train.csv", TRAIN + "../train00.jpg,w_0\n", "plain file name"),
        ("train.csv", TRAIN + "train50.jpg,new_whale\n", "nobody to recognise"),
        ("bboxs.csv", "Image,x0,y0,x1,y1\ntrain00.jpg,5,5,5,9\n", "has no area"),
        ("bboxs.csv", "Image,x0,y0,x1,y1\ntrain00.jpg,a,5,5,9\n", "a number of pixels"),
    ],
)
def test_files_that_cannot_be_used_are_named(root, tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read(copied(root, tmp_path, name, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Image,x0,y0,x1,y1\ntrain00.jpg,1,2,3,4\n", "has 2 points"),
        (POINTS + "train00.jpg,1,2,3,four,5,6\n", "y1 'four' is not a number"),
        (POINTS + "train00.jpg,1,1,9,1,9,9\ntrain00.jpg,1,1,9,1,9,9\n", "occurs twice"),
        (POINTS + "../a.jpg,1,1,9,1,9,9\n", "plain file name"),
        (POINTS + "test10.jpg,1,1,9,1,9,9\n", "nothing to align to"),
        (POINTS + "train00.jpg,1,1,5,5,9,9\n", "on a line"),
    ],
)
def test_points_that_cannot_be_used_are_named(root, tmp_path, text, message):
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read(DataConfig(root=str(root), keypoints=str(tmp_path / "points.csv")))


def test_points_align_train_and_test_and_those_outside_are_said(root, tmp_path):
    rows = ["train00.jpg,8,8,32,8,32,32", "train01.jpg,8,8,32,8,,32", "test10.jpg,9,9,30,9,30,30"]
    rows += ["train02.jpg,908,8,932,8,932,32", "nobody.jpg,1,1,9,1,9,9"]
    (tmp_path / "points.csv").write_text(POINTS + "\n".join(rows) + "\n")
    found = read(DataConfig(root=str(root), keypoints=str(tmp_path / "points.csv"), box_margin=0))
    aligned = found.train.ids[found.train.frames.any(1)].tolist()
    assert aligned == ["train00.jpg", "train02.jpg"]
    assert found.test.ids[found.test.frames.any(1)].tolist() == ["test10.jpg"]
    warned = "\n".join(found.warnings)
    assert "1 keypoints are of images that are in neither train nor test" in warned
    assert "have points outside of them, the first is train02.jpg" in warned
    assert "2 train and 1 test images aligned" in found.describe()


def test_boxes_outside_of_their_images_are_said(root, tmp_path):
    text = "Image,x0,y0,x1,y1\ntrain00.jpg,100,1,120,9\ntrain01.jpg,1,1,900,900\n"
    found = read(copied(root, tmp_path, "bboxs.csv", text))
    (warning,) = (text for text in found.warnings if "outside" in text)
    assert warning.startswith("1 of 2 train images")
    assert "train00.jpg" in warning


def test_boxes_of_several_files_take_turns_and_follow_the_twins(root, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("Image,x0,y0,x1,y1\ntrain00.jpg,1,2,3,4\n")
    mix = f"data.box_mix=[{{boxes: bboxs.csv, share: 0.5}}, {{boxes: {other}, share: 0.3}}, "
    mix += "{boxes: none, share: 0.2}]"
    twins = ["twins=true", "view.join_flip=true", "data.fold=-1", "unknown.by=share"]
    config = load(Config, BASE, [f"data.root={root}", "data.box_margin=0", mix, *twins])
    material = Material.of(read(config.data), config, None)
    assert len(material.mix.boxes) == len(material.table) == len(material.table.mirror)
    rows = np.flatnonzero(np.char.startswith(material.table.ids, "train00.jpg"))
    assert len(rows) == 2
    for row in rows:
        assert material.mix.boxes[row].tolist() == [[4, 4, 40, 36], [1, 2, 3, 4]]
    for line in ("{boxes: none, share: 0}", "{boxes: none, share: -1}"):
        config = load(Config, BASE, [f"data.root={root}", f"data.box_mix=[{line}]"])
        with pytest.raises(DataError, match="shares must be positive"):
            Material.of(read(config.data), config, None)
    config = load(Config, BASE, [f"data.root={root}", "data.box_mix=[{boxes: a.csv, share: 1}]"])
    with pytest.raises(FileNotFoundError, match=r"No file a\.csv"):
        Material.of(read(config.data), config, None)


def masked(root, tmp_path, size=(48, 40), names=("train00", "test10")):
    for path in root.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "masks").mkdir()
    for name in names:
        cv2.imwrite(str(tmp_path / "masks" / f"{name}.png"), np.zeros(size[::-1], np.uint8))
    return DataConfig(root=str(tmp_path), mask="files")


def test_masks_of_files_follow_the_rows_and_missing_ones_are_said(root, tmp_path):
    found = read(masked(root, tmp_path))
    there = found.train.ids[found.train.masks != b""].tolist()
    assert there == ["train00.jpg"]
    assert found.train.masks[found.train.ids == "train00.jpg"][0].endswith(b"masks/train00.png")
    count = len(found.train) - 1
    assert f"{count} of {count + 1} train images have no mask: theirs is black." in found.warnings


def test_masks_that_cannot_be_used_are_named(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="must hold a png of each image's name"):
        read(DataConfig(root=str(root), mask="files"))
    for number, (options, message) in enumerate(
        [
            ({"size": (40, 48)}, "has 40 x 48 pixels, its image 48 x 40"),
            ({"names": ["nobody"]}, "has no mask of any train image"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(DataError, match=message):
            read(masked(root, folder, **options))
    with pytest.raises(DataError, match="needs boxes"):
        read(DataConfig(root=str(root), mask="box", boxes="none"))
    with pytest.raises(ValueError, match="choose none, files or box"):
        DataConfig(mask="circle")


def pseudo(root, tmp_path, rows, *arguments):
    path = tmp_path / "pseudo.csv"
    path.write_text("Image,Id,score\n" + "".join(f"{name},{who},0.9\n" for name, who in rows))
    options = [f"data.root={root}", f"data.pseudo={path}", "data.folds=3", *arguments]
    config = load(Config, BASE, options)
    data = read(config.data)
    held = Held.of(data, config)
    return data, held, Material.of(data, config, held)


def test_pseudo_labels_are_trained_on_and_never_validate(root, tmp_path):
    everyone = [(f"test{who}1.jpg", f"w_{who}") for who in range(5)]
    rows = [*everyone, ("test50.jpg", "new_whale")]
    data, held, material = pseudo(root, tmp_path, rows, "data.unseen=0.2")
    extra = ~np.isin(material.table.ids, data.train.ids)
    (unseen,) = set(data.train.labels[held.split.unseen])
    wanted = {name for name, who in rows if who != f"w_{unseen}"}
    assert set(material.table.ids[extra]) == wanted
    labels = dict(zip(material.table.ids.tolist(), material.table.labels.tolist(), strict=True))
    assert all(labels[f"test{who}1.jpg"] == who for who in range(5) if who != unseen)
    assert labels["test50.jpg"] == -1
    assert "1 left out whose individual is held out" in material.remarks[0]
    # What validates is what validates without them, and none of it is trained on.
    config = load(Config, BASE, [f"data.root={root}", "data.folds=3", "data.unseen=0.2"])
    plain = Held.of(read(config.data), config)
    for mine, theirs in zip(held.asked, plain.asked, strict=True):
        assert np.array_equal(mine, theirs)
    validating = held.table.ids[np.union1d(held.asked.queries, held.asked.gallery)]
    assert set(validating).isdisjoint(material.table.ids[extra])
    assert set(held.table.ids[held.asked.queries]).isdisjoint(material.table.ids)
    assert len(data.train) == len(held.table)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("train00.jpg", "w_0"), "train00.jpg is no test image"),
        (("test00.jpg", "w_9"), "w_9 is no Id of train"),
    ],
)
def test_pseudo_labels_that_cannot_be_used_are_named(root, tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        pseudo(root, tmp_path, [row])


def test_a_stage_may_take_frequent_individuals_alone_with_the_same_head(
    root, tmp_path, monkeypatch
):
    stages = "train.stages=[{epochs: 1, size: 32, min_images: 3}, {epochs: 1, size: 32}]"
    options = [f"data.root={root}", f"out={tmp_path}", *TINY, stages, "twins=true"]
    config = load(Config, BASE, [*options, "view.join_flip=true", "train.batch_size=4"])
    config.train.sampler = {"name": "quadruplets"}
    seen, data = [], read(config.data)

    def fit(model, heads, settings, folder, *, loader, **rest):
        seen.append((heads, [loader(stage) for stage in settings.stages]))
        return Progress()

    monkeypatch.setattr(training, "fit", fit)
    train(config, data, Held.of(data, config), tmp_path)
    ((heads, (few, everybody)),) = seen
    assert heads.terms[0].num_classes == 2 * len(data.classes)
    counts = np.bincount(everybody.dataset.labels[everybody.dataset.labels >= 0], minlength=10)
    assert (counts[[4, 9]] == 1).all()
    kept = few.dataset.labels
    assert set(kept[kept >= 0]) == set(np.flatnonzero(counts >= 3))
    assert (kept < 0).sum() == (everybody.dataset.labels < 0).sum() > 0
    drawn = {row for batch in few.batch_sampler for row, _ in batch}
    assert max(drawn) < len(kept) < len(everybody.dataset)
    for row in sorted(drawn)[::7]:
        assert few.dataset[row]["label"] == kept[row]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_runs_where_there_is_little(root, tmp_path, recipe, capsys):
    path = BASE.parent / "experiments" / f"{recipe}.yaml"
    config = load(Config, BASE, [str(path)])
    stages = [{"epochs": 1, "size": 32, "min_images": s.min_images} for s in config.train.stages]
    # Models of pairs have too little to learn from in noise around coloured squares.
    learned = ("plausible", "lightgbm_rerank")
    config.ranking = [step for step in config.ranking if step["name"] not in learned]
    out = tmp_path / recipe
    words = [
        f"data.root={root}",
        f"out={out}",
        *TINY[:2],
        *TINY[3:],
        f"train.stages={stages}",
        f"ranking={config.ranking}",
    ]
    train_script([str(path), *words])
    said = capsys.readouterr().out
    assert ("images. It shows all classes" in said) == (recipe == "whale2019_1st")
    scores = infer_script([f"run={out}"])
    assert 0 < scores["test/map5"] <= 1
    assert check_file("whale", out / "submission.csv", root / "sample_submission.csv") == []


def test_folds_are_joined_when_nothing_is_to_be_scored(root, tmp_path):
    for fold in range(2):
        folder = tmp_path / str(fold)
        options = [f"data.root={root}", f"data.fold={fold}", *TINY[:-1]]
        save(load(Config, BASE, options), folder / "config.yaml")
        (folder / "weights.safetensors").touch()
    runs = f"runs=[{tmp_path}/0,{tmp_path}/1]"
    with pytest.raises(ConfigError, match=r"data\.fold=1.* Add data\.fold=-1"):
        COMMANDS.ensemble("", [runs])
    with pytest.raises(ConfigError, match=r"unknown\.by=validation needs held-out images"):
        COMMANDS.ensemble("", [runs, "data.fold=-1"])
    settings, members = COMMANDS.ensemble("", [runs, "data.fold=-1", "unknown.by=share"])
    assert settings.data.fold == -1
    assert [member.data.fold for member in members] == [0, 1]
    with pytest.raises(ConfigError, match="can be given"):
        COMMANDS.ensemble("", [runs, "data.fold=-1", "data.folds=4", "unknown.by=share"])


@pytest.mark.parametrize("fold", range(3))
def test_each_fold_has_individuals_that_training_never_sees(root, fold):
    options = [f"data.root={root}", "data.folds=3", "data.unseen=0.2", f"data.fold={fold}"]
    config = load(Config, BASE, options)
    data = read(config.data)
    held = Held.of(data, config)
    table = Material.of(data, config, held).table
    unseen = np.unique(data.train.labels[held.split.unseen])
    assert len(unseen) == 1
    assert not np.isin(unseen, table.labels).any()
    assert (held.asked.truth == -1).any()
    assert np.isin(held.table.labels[held.asked.queries], unseen).any()


def test_an_individual_of_mirrored_duplicates_alone_breaks_nothing(root, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(root, folder)
    picture = cv2.imread(str(root / "train" / "train00.jpg"))
    cv2.imwrite(str(folder / "train" / "flipped.jpg"), picture[:, ::-1])
    with (folder / "train.csv").open("a") as file:
        file.write("flipped.jpg,w_7\n")
    lines = (folder / "train.csv").read_text().replace("train00.jpg,w_0", "train00.jpg,w_7")
    (folder / "train.csv").write_text(lines)
    arguments = [f"data.root={folder}", "data.folds=3", "twins=true", "view.join_flip=true"]
    config = load(Config, BASE, arguments)
    data = read(config.data)
    held = Held.of(data, config)
    table = Material.of(data, config, held).table
    assert set(held.asked.queries).isdisjoint(held.asked.gallery)
    sampler = PK(table.labels, batch_size=8, seed=0, k=4)
    drawn = np.concatenate([[row for row, _ in batch] for batch in sampler])
    assert set(drawn) == set(np.flatnonzero(table.labels >= 0))
    rows = np.concatenate([np.flatnonzero(table.labels == c)[:2] for c in np.unique(table.labels)])
    loss = TripletLoss()(torch.randn(len(rows), 4), torch.from_numpy(table.labels[rows]))
    assert loss.isfinite()


def test_oddities_are_warnings(root, tmp_path):
    config = copied(root, tmp_path, "bboxs.csv", "Image,x0,y0,x1,y1\nnobody.jpg,1,1,900,900\n")
    found = read(config)
    assert any("nobody.jpg" in text for text in found.warnings)
    assert not found.train.boxes.any()


def test_ids_that_look_like_numbers_stay_text_and_no_unknown_is_said(root, tmp_path):
    rows = "".join(f"train{who}{n}.jpg,00{who}\n" for who in range(4) for n in range(6))
    found = read(copied(root, tmp_path, "train.csv", TRAIN + rows))
    assert found.classes.tolist() == ["000", "001", "002", "003"]
    assert any("no train image is new_whale" in text for text in found.warnings)


def test_boxes_are_grown_and_follow_the_rows(root):
    found = read(DataConfig(root=str(root), box_margin=0.5))
    assert found.train.boxes[0].tolist() == [0, 0, 58, 52]
    assert found.test.boxes[0].tolist() == [0, 0, 0, 0]


def test_validation_has_the_share_of_unknown_queries_of_the_test(root):
    config = load(Config, BASE, [f"data.root={root}", "data.folds=3", "data.unknown_share=0.2"])
    held = Held.of(read(config.data), config)
    truth = held.asked.truth
    assert (truth < 0).mean() == pytest.approx(0.2, abs=0.1)
    everything = load(Config, BASE, [f"data.root={root}", "data.folds=3", "data.unknown_share=0"])
    assert (Held.of(read(everything.data), everything).asked.truth < 0).sum() > (truth < 0).sum()
    assert set(held.asked.queries).isdisjoint(held.asked.gallery)


def test_average_precision_of_five():
    index = torch.tensor([[3, 1, 0, 2, 4], [3, 1, 0, 2, 4], [0, 1, 2, 4, 5]])
    answers = Neighbors(index, torch.zeros(3, 5))
    assert average_precision(answers, np.array([-1, 1, 3]), 3).tolist() == [1, 0.5, 0]


def test_twins_double_known_rows_and_keep_unknown_ones_unknown():
    table = Table(np.array(["a", "b"]), np.array([b"a", b"b"]), np.array([1, -1]))
    both = doubled(table, 2)
    assert both.labels.tolist() == [1, -1, 3, -1]
    assert both.mirror.tolist() == [False, False, True, True]
    assert len(set(both.ids)) == 4
    assert len(set(twin_names(np.array(["x", "y"])))) == 4


def test_a_mirrored_row_is_embedded_mirrored(tmp_path):
    """Or `assigned_pairs` would take it, as the very same image, for the hardest negative."""
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    cv2.imwrite(str(tmp_path / "b.png"), picture[:, ::-1])
    paths = np.array([os.fsencode(tmp_path / name) for name in ("a.png", "b.png")])
    both = doubled(Table(np.array(["a", "b"]), paths, np.array([0, 1])), 2)
    model = Embedder(ModelConfig(backbone="test_efficientnet", weights="none"))
    view, plain = ViewConfig(size=32, workers=0), augment.build("none", 32, False)
    found = embed_table(model, both, view, plain, torch.device("cpu")).vectors
    torch.testing.assert_close(found[2:], found[:2].flip(0))
    assert (found[0] - found[1]).abs().max() > 1e-3
    assert both.take(np.array([0, 3])).mirror.tolist() == [False, True]


@pytest.mark.parametrize(
    ("whose", "wanted"), [("none", [0, 0]), ("softmax", [3, 0]), ("all", [3, 3])]
)
def test_twin_mask_says_whose_loss_leaves_the_mirrored_class_out(whose, wanted):
    loss = "loss=[{name: arcface}, {name: ohem_sigmoid}, {name: triplet}]"
    settings = load(Config, BASE, ["twins=true", f"twin_mask={whose}", loss])
    criterion = criterion_of(settings, 4, 6)
    assert [term.twins for term in criterion.terms[:2]] == wanted
    settings.twins = False
    assert criterion_of(settings, 4, 6).terms[0].twins == 0


def test_a_joined_centre_has_the_mean_of_both_cosines():
    centers = torch.nn.functional.normalize(torch.randn(4, 1, 3), dim=2)
    plain, mirrored = torch.nn.functional.normalize(torch.randn(2, 3), dim=1)
    joined = torch.nn.functional.normalize(torch.cat([plain, mirrored]), dim=0)
    found = joined_centers(centers)[:, 0] @ joined
    wanted = (centers[:2, 0] @ plain + centers[2:, 0] @ mirrored) / 2
    torch.testing.assert_close(found, wanted)
