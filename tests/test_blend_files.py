"""Submissions of the four formats blended; weights searched on out-of-fold files."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from common.blend_files import blend_files, main
from common.submission import check
from common.weigh_files import load_scores, save_scores, weigh_files
from common.weigh_files import main as weigh

HEADERS = {
    "whale": "Image,Id",
    "landmarks-retrieval": "id,images",
    "landmarks-recognition": "id,landmarks",
    "shopee": "posting_id,matches",
}


def files(folder, competition, *contents):
    """One csv per dict of id: cell."""
    paths = []
    for number, rows in enumerate(contents):
        path = folder / f"{number}.csv"
        lines = [HEADERS[competition], *(f"{i},{cell}" for i, cell in rows.items())]
        path.write_text("\n".join(lines) + "\n")
        paths.append(path)
    return paths


def blended(folder, competition, *contents, **settings):
    paths = files(folder, competition, *contents)
    out = folder / "out.csv"
    blend_files(competition, paths, out, **settings)
    assert check(competition, out, paths[0]) == []
    rows = out.read_text().splitlines()
    assert rows[0] == HEADERS[competition]
    return dict(row.split(",") for row in rows[1:])


def test_whale_adds_reciprocal_ranks(tmp_path):
    a = {"x.jpg": "w_1 w_2 w_3 w_4 w_5", "y.jpg": "new_whale w_1 w_2 w_3 w_4"}
    b = {"y.jpg": "w_1 w_2 w_3 w_4 w_5", "x.jpg": "w_6 w_2 w_1 w_7 w_8"}
    found = blended(tmp_path, "whale", a, b)
    # x: w_1 1 + 1/3, w_2 1/2 + 1/2 = w_6 1, w_3 1/3, then w_4 and w_7 1/4
    assert list(found) == ["x.jpg", "y.jpg"], "rows of the first file"
    assert found["x.jpg"] == "w_1 w_2 w_6 w_3 w_4"
    # y: w_1 1/2 + 1, new_whale 1, w_2 1/3 + 1/2, ...
    assert found["y.jpg"] == "w_1 new_whale w_2 w_3 w_4"
    heavy = blended(tmp_path, "whale", a, b, weights=[1, 3])
    assert heavy["x.jpg"] == "w_6 w_1 w_2 w_7 w_8"


def test_retrieval_keeps_a_hundred(tmp_path):
    first = " ".join(f"g{i:03d}" for i in range(100))
    second = " ".join(f"h{i:03d}" for i in range(100))
    found = blended(
        tmp_path, "landmarks-retrieval", {"q": first, "r": ""}, {"q": second, "r": "g001"}
    )
    assert found["q"].split() == [f"{c}{i:03d}" for i in range(50) for c in "gh"]
    assert found["r"] == "g001"


def test_recognition_adds_scores_or_ranks(tmp_path):
    a = {"p": "7 0.9", "q": "8 0.2", "r": "", "s": "1 0.1"}
    b = {"p": "9 50", "q": "8 10.0", "r": "5 20", "s": ""}
    found = blended(tmp_path, "landmarks-recognition", a, b, weights=[3, 1])
    assert {i: cell.split()[0] for i, cell in found.items()} == {
        "p": "9",
        "q": "8",
        "r": "5",
        "s": "1",
    }
    assert float(found["q"].split()[1]) == pytest.approx((3 * 0.2 + 10) / 4)
    ranks = blended(tmp_path, "landmarks-recognition", a, b, weights=[3, 1], scale="rank")
    assert ranks["p"].split()[0] == "7"
    assert float(ranks["p"].split()[1]) == pytest.approx(0.75)
    assert float(ranks["q"].split()[1]) == pytest.approx((3 * 2 / 3 + 1 / 3) / 4)
    empty = {"p": "", "q": ""}
    assert blended(tmp_path, "landmarks-recognition", empty, empty) == empty


def test_shopee_votes(tmp_path):
    a = {"t1": "t1 t2 t3", "t2": "t2", "t3": "t3"}
    b = {"t1": "t1 t2", "t2": "t2 t3", "t3": "t3 t1"}
    c = {"t1": "t1 t4 t2", "t2": "t2 t3", "t3": "t3"}
    found = blended(tmp_path, "shopee", a, b, c)
    assert found == {"t1": "t1 t2", "t2": "t2 t3", "t3": "t3"}
    assert blended(tmp_path, "shopee", a, b, c, share=0.99) == {
        "t1": "t1 t2",
        "t2": "t2",
        "t3": "t3",
    }
    assert blended(tmp_path, "shopee", a, b, c, share=0)["t1"] == "t1 t2 t3 t4"
    assert blended(tmp_path, "shopee", a, b)["t3"] == "t3", "a draw is no majority"
    heavy = blended(tmp_path, "shopee", a, b, c, weights=[1, 3, 1])
    assert heavy["t3"] == "t3 t1"
    many = {"t0": " ".join(f"t{i}" for i in range(50)), "z": "z"}
    more = {"t0": " ".join(["t0", *(f"u{i}" for i in range(49))]), "z": "z"}
    assert len(blended(tmp_path, "shopee", many, more, share=0)["t0"].split()) == 50


def test_what_does_not_fit_is_said(tmp_path):
    a, b = {"x": "w_1", "y": "w_2"}, {"x": "w_1", "z": "w_2"}
    with pytest.raises(ValueError, match=r"1\.csv does not fit .* Unable to find 1 required"):
        blended(tmp_path, "whale", a, b)
    with pytest.raises(ValueError, match="Submission must have 2 rows, this one has 1"):
        blended(tmp_path, "whale", a, {"x": "w_1"})
    with pytest.raises(ValueError, match="needs the columns Image,Id, has id,landmarks"):
        blend_files("whale", files(tmp_path, "landmarks-recognition", a), tmp_path / "o.csv")
    with pytest.raises(ValueError, match="An entry listed twice"):
        blended(tmp_path, "whale", {"x": "w_1 w_1"})
    for settings, message in (
        ({"weights": [1.0]}, "1 weights for 2 files"),
        ({"weights": [1.0, -1.0]}, "weights must be at least 0"),
        ({"scale": "x"}, "scale must be none or rank"),
        ({"share": 1.0}, r"share must be in \[0, 1\)"),
        ({"offset": -1.0}, "offset must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            blended(tmp_path, "whale", a, a, **settings)
    with pytest.raises(ValueError, match="give at least one file"):
        blend_files("whale", [], tmp_path / "o.csv")
    with pytest.raises(ValueError, match="competition must be one of"):
        blend_files("birds", [], tmp_path / "o.csv")
    (tmp_path / "e.csv").write_text("Image,Id\n")
    with pytest.raises(ValueError, match="has no rows"):
        blend_files("whale", [tmp_path / "e.csv"], tmp_path / "o.csv")


def test_the_command(tmp_path, capsys):
    a, b = files(tmp_path, "whale", {"x": "w_1 w_2"}, {"x": "w_2 w_1"})
    command = [sys.executable, "-m", "common.blend", "whale", str(a), str(b), "--weights", "1,2"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "o.csv")], check=True, capture_output=True, text=True
    )
    assert "2 files as one whale submission" in done.stdout
    assert (tmp_path / "o.csv").read_text() == "Image,Id\nx,w_2 w_1\n"
    with pytest.raises(SystemExit, match="error: No file at"):
        main(["whale", str(tmp_path / "none.csv"), "-o", str(tmp_path / "o.csv")])
    with pytest.raises(SystemExit, match="error: could not convert"):
        main(["whale", str(a), "-o", str(tmp_path / "o.csv"), "--weights", "one"])


def pairs(folder, n=400):
    """A truth, two scores with independent noise (one on another scale), and one without value."""
    random = np.random.default_rng(0)
    same = random.random(n) < 0.3
    ids = np.array([f"p{i}" for i in range(n)])
    good, other = same + random.normal(0, 1, n), same + random.normal(0, 1, n)
    lines = [f"{i},{int(t)}" for i, t in zip(ids, same, strict=True)]
    (folder / "truth.csv").write_text("\n".join(["id,target", *lines]) + "\n")
    shuffled = random.permutation(n)
    rows = [f"{ids[i]},{good.tolist()[i]!r}" for i in shuffled.tolist()]
    (folder / "a.csv").write_text("\n".join(["id,score", *rows]) + "\n")
    save_scores(folder / "b.safetensors", ids, other)
    save_scores(folder / "c.safetensors", ids, random.normal(0, 1, n))
    return same, good, other


def test_weights_of_pair_scores(tmp_path, capsys):
    same, good, other = pairs(tmp_path)
    paths = [tmp_path / name for name in ("a.csv", "b.safetensors", "c.safetensors")]
    weights, best, alone = weigh_files(tmp_path / "truth.csv", paths, "auc", method="simplex")
    assert alone[:2].tolist() == pytest.approx(
        [roc_auc_score(same, good), roc_auc_score(same, other)]
    )
    assert best > alone.max() + 0.03
    assert weights[2] < 0.15
    assert best == pytest.approx(
        roc_auc_score(
            same, weights[0] * good + weights[1] * other + weights[2] * load_scores(paths[2]).values
        )
    )
    _, by_ranks, _ = weigh_files(tmp_path / "truth.csv", paths[:2], "average_precision", by="ranks")
    assert by_ranks > 0.5
    weigh([str(tmp_path / "truth.csv"), *map(str, paths), "--metric", "auc"])
    printed = capsys.readouterr().out
    assert "auc alone" in printed
    assert "--weights 0." in printed
    with pytest.raises(SystemExit, match="error: accuracy needs one score per class"):
        weigh([str(tmp_path / "truth.csv"), str(paths[0]), "--metric", "accuracy"])


def test_weights_of_class_scores(tmp_path):
    (tmp_path / "truth.csv").write_text("id,target\n1,w_b\n2,w_a\n3,w_c\n")
    # Ids stay text, classes may be in any order.
    (tmp_path / "a.csv").write_text("id,w_a,w_b,w_c\n3,.3,.4,.5\n2,.1,.2,.3\n1,.1,.9,.2\n")
    scores = np.array([[0.0, 0.5, 0.4], [0.9, 0.1, 0.0], [0.1, 0.1, 0.1]])
    save_scores(tmp_path / "b.safetensors", ["1", "2", "3"], scores, ["w_a", "w_c", "w_b"])
    paths = [tmp_path / "a.csv", tmp_path / "b.safetensors"]
    weights, best, alone = weigh_files(tmp_path / "truth.csv", paths, "map5")
    assert alone.tolist() == pytest.approx([(1 + 1 / 3 + 1) / 3, (1 / 2 + 1 + 1 / 3) / 3])
    assert best == pytest.approx(1.0)
    assert weights.sum() == pytest.approx(1)
    _, _, alone = weigh_files(tmp_path / "truth.csv", paths, "accuracy")
    assert alone.tolist() == pytest.approx([2 / 3, 1 / 3])


def test_bad_score_files(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    truth = write("t.csv", "id,target\na,1\nb,0\n")
    good = write("g.csv", "id,score\na,0.5\nb,0.1\n")
    for text, message in (
        ("id,score\na,0.5\n", "has 1 ids, the truth 2, 'b' is missing"),
        ("id,score\na,0.5\nb,0.1\nc,0.3\n", "has 3 ids, the truth 2"),
        ("id,score\na,0.5\na,0.1\n", "has id 'a' twice"),
        ("id,score\na,0.5\nb,nan\n", "a score of id 'b' is NaN"),
        ("id,score\na,0.5\nb,x\n", "a score that is no number"),
        ("name,score\na,0.5\n", "needs the columns id,score, has name,score"),
        ("id,score\n", "has no rows"),
        ("id,w_1,w_2\na,1,2\nb,1,2\n", "scores other classes than the first"),
    ):
        with pytest.raises(ValueError, match=message):
            weigh_files(truth, [good, write("x.csv", text)], "auc")
    with pytest.raises(ValueError, match="targets must be 0 and 1, both of them, found 1"):
        weigh_files(write("u.csv", "id,target\na,1\nb,1\n"), [good], "auc")
    with pytest.raises(ValueError, match="no file has a score for class '0'"):
        weigh_files(truth, [write("k.csv", "id,1,2\na,1,2\nb,1,2\n")], "accuracy")
    with pytest.raises(ValueError, match="metric must be one of"):
        weigh_files(truth, [good], "gap")
    with pytest.raises(ValueError, match="at least one file"):
        weigh_files(truth, [], "auc")
    with pytest.raises(FileNotFoundError, match="No file at"):
        weigh_files(truth, [tmp_path / "none.csv"], "auc")
    broken = write("y.safetensors", "no tensors")
    with pytest.raises(ValueError, match="not a file of save_scores"):
        load_scores(broken)
    with pytest.raises(ValueError, match="needs classes"):
        save_scores(tmp_path / "z.safetensors", ["a"], np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"1 classes for \(1, 2\) scores"):
        save_scores(tmp_path / "z.safetensors", ["a"], np.ones((1, 2)), ["k"])
