"""One query looked up in finished runs of all competitions, and what is wrong with a run said."""

import json
import shutil
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
import torch

from common.config import ConfigError
from common.data.images import ImageError
from common.data.tables import DataError
from common.engine.settings import this_device
from common.pipeline import choices
from common.pipeline.finished import Finished
from common.pipeline.lookup import Search
from common.pipeline.vectors import embed
from common.rerank.labels import vote
from common.rerank.local import verify
from common.rerank.reciprocal import k_reciprocal
from common.retrieval.expand import alpha_query_expansion, database_augmentation
from common.retrieval.search import search
from common.types import Embeddings
from competitions.landmarks import config as landmarks
from competitions.landmarks import data as landmarks_data
from competitions.landmarks import train as landmarks_train
from competitions.shopee import config as shopee
from competitions.shopee import data as shopee_data
from competitions.shopee import train as shopee_train
from competitions.whale import config as whale
from competitions.whale import data as whale_data
from competitions.whale import train as whale_train
from tests import test_landmarks, test_shopee, test_whale
from tests.test_landmarks import root as landmarks_root  # noqa: F401
from tests.test_whale import root as whale_root  # noqa: F401

LISTS = {
    "landmarks": [
        "recognition=[{name: knn, k: 20}, {name: vote, top: 3}]",
        "retrieval=[{name: dba, k: 2}, {name: alpha_qe, k: 2}, {name: knn, k: 30}]",
    ],
    "whale": ["ranking=[{name: knn, k: 30}, {name: vote, top: 9, power: 1.0, reduce: max}]"],
    "both": ["matching=[{name: alpha_qe, of: [joint], k: 2}, {name: concat}, {name: union}]"],
    "text": [],
}


def finish(modules, out, words, **view):
    """A run as train.py and infer.py leave it, without their reports."""
    config, data, train = modules
    train.main([f"out={out}", *words, "train.stages=[]"])
    settings = config.COMMANDS.infer("", [f"run={out}"])
    found = data.read(settings.data)
    tables = {name: getattr(found, name, None) for name in ("train", "test", "index", "negatives")}
    embed(
        out,
        settings.model,
        replace(settings.view, **view),
        tables,
        found.classes,
        partial(config.criterion_of, settings),
        this_device(),
    )
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory, landmarks_root, whale_root):  # noqa: F811
    out = tmp_path_factory.mktemp("finished")
    listings = test_shopee.write_files(out / "listings", {"train": range(9), "test": range(9, 12)})
    whales = (whale, whale_data, whale_train)
    shop = (shopee, shopee_data, shopee_train)
    marks = (landmarks, landmarks_data, landmarks_train)
    tiny = [*test_shopee.TINY, f"data.root={listings}"]
    words = [*test_whale.TINY, f"data.root={whale_root}", "data.boxes=none", *LISTS["whale"]]
    # infer.py may have looked at larger pictures than config.yaml says.
    finish(whales, out / "whale", words, size=48, flip=True)
    words = [*test_landmarks.TINY, f"data.root={landmarks_root}", *LISTS["landmarks"]]
    finish(marks, out / "landmarks", words)
    for uses in ("both", "text"):
        finish(shop, out / uses, [*tiny, f"model.uses={uses}", *LISTS[uses]])
    return out


@pytest.fixture(scope="module")
def opened(runs, tmp_path_factory):
    """Searches by name."""
    cache = tmp_path_factory.mktemp("cache")
    return {name: Search(Finished.open(runs / name), cache) for name in LISTS}


def names(answer):
    return [result.id for result in answer.results]


def asked(found, row=7):
    """A train image that can be read, and its embedding."""
    table = found.run.tables["train"]
    path = table.paths[row].decode()
    return path, Embeddings(np.array(["query"]), found.run.vectors.train.vectors[row : row + 1])


@pytest.mark.parametrize("name", ["landmarks", "whale"])
def test_an_image_of_the_gallery_is_embedded_as_infer_did_and_finds_itself(opened, name):
    found = opened[name]
    path, query = asked(found)
    answer = found.ask(path, top=6)
    gallery = found.run.vectors.train
    cosine = (gallery.vectors @ query.vectors[0]).numpy()
    # Other rows may tie with the image itself, whatever their order.
    assert [r.score for r in answer.results] == pytest.approx(np.sort(cosine)[::-1][:6], abs=1e-5)
    assert [cosine[r.row] for r in answer.results] == pytest.approx(np.sort(cosine)[::-1][:6])
    table = found.run.tables["train"]
    for result in answer.results:
        assert result.id == table.ids[result.row]
        label = table.labels[result.row]
        assert result.label == (found.run.classes[label] if label >= 0 else found.run.nobody)
    assert answer.steps == ["knn"]


def test_steps_do_what_their_functions_do(opened):
    found = opened["landmarks"]
    path, query = asked(found)
    gallery, table = found.run.vectors.train, found.run.tables["train"]
    key = {choice.step["name"]: choice.key for choice in found.choices("train")}

    def same(keys, expected):
        answer = found.ask(path, steps=[key[name] for name in keys], top=8)
        scores = expected.score[0, :8].tolist()
        assert [r.score for r in answer.results] == pytest.approx(scores, abs=1e-5)
        return answer

    moved = database_augmentation(gallery, k=5, alpha=3.0)
    same(["knn", "dba"], search(query, moved, 20))
    same(["knn"], search(query, gallery, 20))  # the augmented gallery was of that question only
    more = alpha_query_expansion(query, gallery, k=5, alpha=3.0)
    same(["alpha_qe"], search(more, gallery, 20))
    more = alpha_query_expansion(query, moved, k=5, alpha=3.0)
    answer = same(["dba", "alpha_qe", "knn"], search(more, moved, 20))
    assert answer.steps == ["dba", "alpha_qe", "knn"]
    answer = same(["k_reciprocal", "knn"], k_reciprocal(query, gallery))
    assert answer.steps == ["k_reciprocal"]
    near = search(query, gallery, 20)
    expected = vote(near, torch.from_numpy(table.labels), query, None, top=3)
    answer = same(["knn", "vote"], near)
    assert [score for _, score in answer.classes] == pytest.approx(
        expected.score[0, : len(answer.classes)].tolist(), abs=1e-5
    )
    assert answer.classes[0][0] == found.run.classes[int(expected.index[0, 0])]


def test_local_verification_adds_what_two_pictures_share(opened):
    found = opened["whale"]
    path, query = asked(found)
    key = next(c.key for c in found.choices("train") if c.step["name"] == "local")
    gallery, table = found.run.vectors.train, found.run.tables["train"]
    near = search(query, gallery, 20)  # no more of them are verified
    scores = {}
    for row, score in zip(near.index[0].tolist(), near.score[0].tolist(), strict=True):
        if row >= 0:
            inliers = verify(path, bytes(table.paths[row]), "rootsift").inliers
            scores[row] = score + 0.5 * (min(inliers, 30) * (inliers >= 8)) / 30
    first = sorted(scores.values(), reverse=True)[0]
    answer = found.ask(path, steps=[key], top=5)
    assert answer.results[0].score == pytest.approx(first, abs=1e-4)
    mine, theirs, seen = found.match(path, "train", answer.results[0].row)
    assert mine.shape == cv2.imread(path).shape
    assert seen.inliers == verify(mine, theirs, "rootsift").inliers


def test_a_gallery_has_the_list_that_fits_its_labels(opened):
    found = opened["landmarks"]
    own = {g: [c.step["name"] for c in found.choices(g) if c.own] for g in found.galleries}
    assert own["train"] == ["knn", "vote"]
    assert own["index"] == own["test"] == own["negatives"] == ["dba", "alpha_qe", "knn"]
    extra = [c.step["name"] for c in found.choices("index") if not c.own]
    assert extra == ["k_reciprocal", "local"]
    path, _ = asked(found)
    answer = found.ask(path, gallery="index", steps=found.usual("index"))
    assert answer.steps == ["dba", "alpha_qe", "knn"]
    assert not answer.classes
    assert {result.label for result in answer.results} == {""}


def test_listings_are_found_by_picture_title_or_both(opened):
    found = opened["both"]
    table = found.run.tables["train"]
    assert found.left_out == {"matching": ["concat", "union"]}
    row = 4
    path, title = table.paths[row].decode(), str(table.titles[row])
    vectors = found.run.vectors.train.vectors
    whole = found.ask(path, title)
    assert whole.results[0].score == pytest.approx(1.0, abs=1e-5)
    assert (whole.results[0].title, whole.remarks) == (title, [])
    assert found.ask(path).remarks == ["There is no title: an empty one stands in."]
    alone = found.ask(None, f"  {title} ")
    assert alone.remarks == ["There is no picture: a grey one stands in."]
    assert found.usual("train") == ["alpha_qe k=2"]
    moved = found.ask(path, title, steps=found.usual("train"), top=3)
    query = Embeddings(np.array(["query"]), vectors[row : row + 1])
    expected = search(
        alpha_query_expansion(query, found.run.vectors.train, k=2), found.run.vectors.train, 3
    )
    assert [r.score for r in moved.results] == pytest.approx(expected.score[0].tolist(), abs=1e-5)


def test_a_title_is_spelled_as_those_of_the_run(opened):
    found = opened["text"]
    table = found.run.tables["train"]
    title = str(table.titles[3])
    answer = found.ask(title=title.replace("<", "&lt;"))  # as sellers' escapes are undone
    assert answer.results[0].score == pytest.approx(1.0, abs=1e-5)
    assert "local" not in [c.step["name"] for c in found.choices("train")]


@pytest.mark.parametrize(
    ("name", "image", "title", "message"),
    [
        ("whale", None, "", "Nothing to look up: give this run a picture"),
        ("text", None, " \t", "Nothing to look up: give this run a title"),
        ("both", None, "", "give this run a picture or a title"),
        ("text", "any.jpg", "", "cannot read a picture: give it a title, and nothing else"),
        ("text", "any.jpg", "mug", "cannot read a picture"),
        ("whale", None, "a whale", "cannot read a title: give it a picture"),
        ("whale", "no.jpg", "", "no.jpg: No such file"),
    ],
)
def test_a_query_that_cannot_be_is_refused(opened, name, image, title, message):
    with pytest.raises(ValueError, match=message):
        opened[name].ask(image, title)


def test_a_picture_that_is_none_an_unknown_gallery_and_an_unknown_step(opened, tmp_path):
    found = opened["whale"]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a picture")
    with pytest.raises(ImageError, match="not an image that can be read"):
        found.ask(bad)
    path, _ = asked(found)
    with pytest.raises(ValueError, match="No gallery 'index': there are train, test"):
        found.ask(path, gallery="index")
    with pytest.raises(ValueError, match="No step 'luck' here; there are: knn k=30, vote"):
        found.ask(path, steps=["luck"])


def test_pictures_that_are_gone_are_still_found(opened, tmp_path):
    found = opened["landmarks"]
    path, _ = asked(found)
    copy = tmp_path / "query.jpg"
    shutil.copy(path, copy)
    first = found.ask(copy, top=1).results[0]
    table = found.run.tables["train"]
    paths, table.paths = table.paths, np.array([b"/gone.jpg"] * len(table))
    try:
        again = found.ask(copy, top=1).results[0]
        assert (again.id, again.path) == (first.id, b"/gone.jpg")
        with pytest.raises(ImageError, match="gone.jpg"):
            found.match(copy, "train", again.row)
    finally:
        table.paths = paths


def copied(runs, tmp_path):
    return shutil.copytree(runs / "whale", tmp_path / "copy")


def test_a_run_that_cannot_be_searched_says_what_to_do(runs, tmp_path):
    run = copied(runs, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"None of .* exists.*--data|No train.csv.*--data"):
        Finished.open(run, data=tmp_path)
    weights = run / "weights.safetensors"
    both = runs / "both" / "weights.safetensors"
    whole = weights.read_bytes()
    shutil.copy(both, weights)
    with pytest.raises(DataError, match="of other weights .* trained again.*whale/infer.py run="):
        Finished.open(run)
    weights.write_bytes(whole)
    path = run / "embeddings" / "train.safetensors"
    some = Embeddings.load(path)
    Embeddings(some.ids[1:], some.vectors[1:], some.card).save(path)
    with pytest.raises(DataError, match="are of other images than the data .*--data"):
        Finished.open(run)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="no embeddings of train: first python compet"):
        Finished.open(run)
    weights.unlink()
    with pytest.raises(ConfigError, match="is no trained run: python competitions/whale/train.py"):
        Finished.open(run)


def test_a_card_names_a_competition_that_is_here(runs, tmp_path):
    run = copied(runs, tmp_path)
    card = json.loads((run / "card.json").read_text())
    for name in ("whales", "os", "../whale"):
        (run / "card.json").write_text(json.dumps({**card, "competition": name}))
        with pytest.raises(ConfigError, match=r"which is not here.*landmarks, shopee, whale"):
            Finished.open(run)
    (run / "card.json").unlink()
    with pytest.raises(ConfigError, match="is no trained run, it has no card.json"):
        Finished.open(run)


def planned(own, picked, *, labelled=True, rows=10, picture=True):
    known = choices.choices(own, rows=rows, labelled=labelled, pictures=True)
    keys = [choice.key for choice in known if choice.step["name"] in picked]
    images, classes = choices.plan(known, keys, picture=picture)
    return [step["name"] for step in images], [step["name"] for step in classes]


@pytest.mark.parametrize(
    ("own", "picked", "images", "classes"),
    [
        ([], [], ["knn"], []),
        ([], ["local", "alpha_qe", "dba"], ["dba", "alpha_qe", "knn", "local"], []),
        ([], ["k_reciprocal", "local"], ["k_reciprocal", "local"], []),
        (["knn", "local", "vote"], ["vote"], ["knn"], ["vote"]),
        (["knn", "vote", "logit_mix"], ["knn", "logit_mix"], ["knn"], []),
        (["knn", "gallery_penalty", "vote", "query_penalty"], ["knn", "gallery_penalty", "vote",
         "query_penalty"], ["knn", "gallery_penalty"], ["vote", "query_penalty"]),
        (["class_centers"], ["class_centers", "local"], ["knn", "local"], ["class_centers"]),
        (["knn", "superglobal"], ["superglobal"], ["knn", "superglobal"], []),
        (["diffusion"], ["diffusion", "dba"], ["dba", "diffusion"], []),
        (["power_norm", "knn", "local"], ["power_norm", "knn", "local", "k_reciprocal"],
         ["power_norm", "k_reciprocal", "local"], []),
    ],
)  # fmt: skip
def test_chosen_steps_are_put_in_order(own, picked, images, classes):
    assert planned([{"name": name} for name in own], picked) == (images, classes)


def test_what_a_step_needs_decides_whether_it_is_offered():
    own = [{"name": "knn"}, {"name": "knn"}, {"name": "vote"}]
    known = choices.choices(own, rows=choices.ALL_PAIRS + 1, labelled=False, pictures=False)
    assert [choice.key for choice in known] == ["knn", "knn, again", "alpha_qe k=5 alpha=3.0"]
    assert planned([], ["local"], picture=False) == (["knn"], [])
    learned = choices.choices([{"name": "plausible"}], rows=1, labelled=True, pictures=True)
    assert not learned[0].usual
    assert choices.own_steps({}, labelled=True) == []
