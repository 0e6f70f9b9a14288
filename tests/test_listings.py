"""Rows with titles: batches, training and extraction of text and joint models as of images."""

import os
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from common.data.augment import build as build_augment
from common.data.dataset import ImageDataset, loader
from common.data.listings import ListingDataset
from common.engine import extract
from common.engine.checkpoint import load_tree
from common.engine.extract import ViewConfig, embed_table
from common.engine.inputs import rows_for
from common.engine.settings import FitConfig, Stage
from common.losses.total import build as build_criterion
from common.models.embedder import ModelConfig
from common.models.joint import JointConfig
from common.models.text import TextConfig
from common.pipeline import training, vectors
from common.types import Table

SIZE, CLASSES, EACH = 32, 4, 6
WORDS = ["red mug", "blue plate", "kopi susu", "gelang hitam"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Products whose colour and words say which they are; one file is no picture."""
    folder = tmp_path_factory.mktemp("listings")
    rng, titles, paths = np.random.default_rng(0), [], []
    for row in range(CLASSES * EACH):
        picture = rng.integers(0, 60, (40, 40, 3)).astype(np.uint8)
        picture[..., row % CLASSES % 3] += 40 * (row % CLASSES)
        path = folder / f"{row:02}.jpg"
        cv2.imwrite(str(path), picture)
        paths.append(os.fsencode(path))
        titles.append(f"{WORDS[row % CLASSES]} promo " + "x " * (row % 5))
    (folder / "03.jpg").write_bytes(b"no picture")
    ids = np.array([f"p{row:02}" for row in range(len(paths))])
    return Table(ids, np.array(paths), np.arange(len(paths)) % CLASSES, titles=np.array(titles))


def config(uses, **train):
    return SimpleNamespace(
        seed=0,
        model=JointConfig(
            uses=uses,
            image=ModelConfig(backbone="test_efficientnet", weights="none", neck="none"),
            text=TextConfig(backbone="bert_tiny", weights="none", max_length=12, neck="none"),
            neck="none",
        ),
        train=FitConfig(
            **{
                "stages": [Stage(epochs=1, size=SIZE)],
                "batch_size": 8,
                "workers": 0,
                "augment": "none",
            }
            | train
        ),
        view=ViewConfig(size=SIZE, batch_size=4, workers=0),
    )


def model_of(uses, table):
    torch.manual_seed(0)
    return training.build(config(uses).model, titles=table.titles).eval()


def pictures(table):
    transform = build_augment("none", SIZE, False)
    return ImageDataset(table.paths, table.labels, size=SIZE, transform=transform)


class Log:
    """Stands for a run of the tracker."""

    def __init__(self):
        self.lines = []

    def log(self, step, **metrics):
        self.lines.append(metrics)

    def truncate(self, step):
        pass

    def summary(self, **facts):
        pass

    def finish(self):
        pass


def train(settings, table, folder, loss=None):
    terms = loss or [{"name": "arcface", "scale": 16.0, "margin": 0.1}]

    def criterion(dim):
        counts = torch.full((CLASSES,), EACH)
        return build_criterion(
            terms, {"embedding_dim": dim, "num_classes": CLASSES, "class_counts": counts}
        )

    log = Log()
    training.train(
        settings,
        folder,
        log,
        classes=np.array(WORDS),
        criterion=criterion,
        images=lambda stage, transform: (
            table,
            ImageDataset(table.paths, table.labels, size=stage.size, transform=transform),
        ),
        validate=lambda model, stage: {},
        columns={},
        root=folder,
        label_column="label",
        competition="test",
        titles=table.titles,
    )
    return log.lines, criterion


@pytest.mark.parametrize("uses", ["text", "both"])
def test_rows_hold_what_their_model_takes_and_keep_their_labels(table, uses):
    data = rows_for(model_of(uses, table), pictures(table), table.titles)
    assert len(data) == len(table)
    keys = [[(3, 99), (1, 5)], [0]]
    first, second = list(loader(data, keys, workers=0, device="cpu"))
    assert first["row"].tolist() == [3, 1]
    assert first["label"].tolist() == [3, 1]  # the file of row 3 is no picture, its title is good
    assert first["ok"].tolist() == [uses == "text", True]
    assert ("image" in first) == (uses == "both")
    alone = data[1]["tokens"]
    assert torch.equal(first["tokens"]["input_ids"][1, : len(alone)], alone)
    assert first["tokens"]["attention_mask"].sum(1).tolist() == [len(data[3]["tokens"]), len(alone)]
    assert second["tokens"]["input_ids"].shape[1] == len(data[0]["tokens"])


def test_titles_are_read_in_this_process_and_no_picture_is_opened(table):
    gone = Table(table.ids, np.char.add(table.paths, b"?"), table.labels, titles=table.titles)
    data = rows_for(model_of("text", table), pictures(gone), gone.titles)
    batches = loader(data, [[0, 1]], workers=3, device="cpu")
    assert batches.num_workers == 0
    assert next(iter(batches))["ok"].all()


def test_a_model_of_titles_needs_titles(table):
    bare = Table(table.ids, table.paths, table.labels)
    with pytest.raises(ValueError, match="reads titles, and the table has none"):
        rows_for(model_of("text", table), pictures(bare), bare.titles)
    images = pictures(table)
    assert rows_for(model_of("image", table), images, None) is images
    with pytest.raises(ValueError, match="24 rows, but 2 titles"):
        ListingDataset(images, model_of("text", table).tokenizer(["a", "b"]), pictures=False)


@pytest.mark.parametrize("uses", ["text", "both"])
def test_vectors_of_a_table_are_those_of_its_rows_one_at_a_time(table, uses):
    model = model_of(uses, table)
    found = embed_table(model, table, config(uses).view, build_augment("none", SIZE, False), CPU)
    assert found.ids.tolist() == table.ids.tolist()
    assert found.card["unreadable"] == (uses == "both")
    data = rows_for(model, pictures(table), table.titles)
    with torch.inference_mode():
        for row in range(len(table)):
            batch = next(iter(loader(data, [[row]], workers=0, device="cpu")))
            expected = model.embed(*(batch[name] for name in model.inputs))[0]
            torch.testing.assert_close(found.vectors[row], expected, rtol=0, atol=1e-5)
    # The title is as good without its picture.
    torch.testing.assert_close(found.vectors.norm(dim=1), torch.ones(len(table)))


def test_titles_of_one_length_share_a_batch(table, monkeypatch):
    seen = []

    def embed(model, inputs, view):
        seen.append(inputs[0]["attention_mask"])
        return torch.ones(len(seen[-1]), model.embedding_dim)

    monkeypatch.setattr(extract, "embed_batch", embed)
    model = model_of("text", table)
    embed_table(model, table, config("text").view, None, CPU)
    widths = [mask.shape[1] for mask in seen]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) > 2
    padding = sum(int((1 - mask).sum()) for mask in seen)
    in_order = model.tokenizer(table.titles).lengths.reshape(-1, 4)
    assert padding < int((in_order.max(1, keepdims=True) - in_order).sum())


def test_mirrored_views_of_a_listing_share_its_title_and_titles_have_no_mirror(table):
    view = ViewConfig(size=SIZE, batch_size=4, workers=0, flip=True, join_flip=True)
    transform = build_augment("none", SIZE, False)
    both, text = model_of("both", table), model_of("text", table)
    rows = table.take(np.arange(5))
    found = embed_table(both, rows, view, transform, CPU).vectors
    assert found.shape == (5, 2 * both.embedding_dim)
    plain = embed_table(both, rows, config("both").view, transform, CPU).vectors
    half = torch.nn.functional.normalize(found[:, : both.embedding_dim])
    torch.testing.assert_close(half, plain, rtol=0, atol=1e-5)
    alone = embed_table(text, rows, view, transform, CPU).vectors
    assert alone.shape == (5, text.embedding_dim)


def test_what_the_vectors_depend_on_says_whether_a_file_is_still_good(table):
    other = Table(table.ids, table.paths, table.labels, titles=table.titles.copy())
    other.titles[1] = "something else"
    moved = Table(table.ids, np.char.add(b"/elsewhere", table.paths), table.labels)
    moved.titles = table.titles
    digest = extract._digest
    assert digest(table, ("tokens",)) != digest(other, ("tokens",))
    assert digest(table) == digest(other)
    assert digest(table, ("tokens",)) == digest(moved, ("tokens",))
    assert digest(table, ("image", "tokens")) not in (
        digest(moved, ("image", "tokens")),
        digest(other, ("image", "tokens")),
    )
    swapped = Table(table.ids[:2], table.paths[:2], table.labels[:2], titles=["ab", "c"])
    joined = Table(table.ids[:2], table.paths[:2], table.labels[:2], titles=["a", "bc"])
    assert digest(swapped, ("tokens",)) != digest(joined, ("tokens",))
    small, large = ViewConfig(size=32), ViewConfig(size=64)
    assert extract._settings(small, ("tokens",)) == extract._settings(large, ("tokens",))


@pytest.mark.parametrize("uses", ["text", "both"])
def test_training_and_extraction_by_the_common_path(table, tmp_path, uses, capsys):
    settings = config(uses, stages=[Stage(epochs=6, size=SIZE)], lr=2e-3, head_lr=2e-2, warmup=0.0)
    lines, criterion = train(settings, table, tmp_path)
    assert lines[-1]["train/loss"] < 0.7 * lines[0]["train/loss"]
    assert lines[-1].get("train/unreadable", 0) == (uses == "both")
    card = load_tree(tmp_path / "weights.safetensors")["card"]
    assert "bert_tiny" in card["backbone"]
    assert (tmp_path / "text" / "tokenizer.json").is_file()

    def embed():
        return vectors.embed(
            tmp_path,
            settings.model,
            settings.view,
            {"train": table, "test": table.take(np.arange(8))},
            np.array(WORDS),
            lambda dim, classes: criterion(dim),
            CPU,
        )

    found = embed()
    said = capsys.readouterr().out
    assert ("match by their titles alone" in said) == (uses == "both")
    torch.testing.assert_close(found.train.vectors[:8], found.test.vectors, rtol=0, atol=1e-5)
    # What was learned: the nearest centre is that of the own product.
    nearest = (found.test.vectors @ found.centers[:, 0].T).argmax(1)
    assert nearest.tolist() == table.labels[:8].tolist()
    made = (tmp_path / "embeddings" / "train.safetensors").stat().st_mtime_ns
    embed()
    assert (tmp_path / "embeddings" / "train.safetensors").stat().st_mtime_ns == made


def test_a_momentum_queue_gets_keys_of_titles_and_a_second_view_only_of_pictures(table, tmp_path):
    queue = [{"name": "momentum_queue", "size": 16, "momentum": 0.5, "view": "same"}]
    lines, _ = train(config("text"), table, tmp_path / "same", queue)
    assert np.isfinite(lines[-1]["train/loss"])
    second = [{**queue[0], "view": "second"}]
    with pytest.raises(ValueError, match="view: same, which is all that titles have"):
        train(config("text"), table, tmp_path / "second", second)
    lines, _ = train(config("both"), table, tmp_path / "both", second)
    assert np.isfinite(lines[-1]["train/loss"])
