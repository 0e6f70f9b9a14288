"""Kits: what is in them, the same bytes again, and what is refused or found out."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from common.kaggle import aboard
from common.kaggle.aboard import Failure
from common.kaggle.pack import bring, code, pack, size
from tests.kits import contents, given_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return given_run(tmp_path_factory.mktemp("runs") / "whale" / "tiny")


@pytest.fixture(scope="module")
def kit(run, tmp_path_factory):
    return pack([str(run)], out=str(tmp_path_factory.mktemp("kit") / "kit"))


def test_a_kit_is_the_same_bytes_again_and_holds_what_it_should(run, kit, tmp_path):
    again = pack([str(run)], out=str(tmp_path / "again"))
    mine, other = contents(kit), contents(again)
    for files in (mine, other):  # the commit may move while others work in the same checkout
        listed = json.loads(files.pop("MANIFEST.json"))
        assert set(listed["files"]) == set(files) - {"dataset-metadata.json"}
    assert mine == other
    assert pack([str(run)], out=str(again)) == again  # a kit is replaced
    assert {"code/common/kaggle/aboard.py", "code/competitions/whale/infer.py"} <= set(mine)
    assert {"runs/tiny/weights.safetensors", "runs/tiny/given/boxes.csv"} <= set(mine)
    assert not [name for name in mine if "/sample/" in name or name.endswith((".jpg", ".pyc"))]
    assert not [name for name in mine if name.startswith(("code/tests", "code/competitions/sho"))]
    config = mine["runs/tiny/config.yaml"].decode()
    assert "boxes: $RUN/given/boxes.csv" in config
    assert str(run.parent) not in config
    described = json.loads(mine["dataset-metadata.json"])
    assert described["id"] == "your-name/whale-kit"
    assert len(described["licenses"]) == 1


def test_a_copied_folder_that_git_does_not_know_is_named(tmp_path):
    with pytest.raises(ValueError, match="No competition 'nothing'; there are .*landmarks"):
        list(pack(["x"], competition="nothing"))
    names = [name for name, _ in code("landmarks")]
    assert "competitions/__init__.py" in names
    assert "competitions/landmarks/config.yaml" in names
    assert not [name for name in names if name.startswith("competitions/whale")]


def test_kits_that_must_not_be_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"limit=0\.0 MB. The largest: .*weights\.safetensors"):
        pack([str(run)], out=str(tmp_path / "a"), limit="10KB")
    assert list(tmp_path.iterdir()) == []  # no draft stays behind
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match="not empty and no kit"):
        pack([str(run)], out=str(tmp_path / "mine"))
    bad = tmp_path / "whale" / "bad"
    bad.mkdir(parents=True)
    with pytest.raises(ValueError, match="is no trained run"):
        pack([str(bad)])
    (bad / "config.yaml").write_text("out: null\n")
    torch.save({"a": torch.zeros(1)}, bad / "weights.safetensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        pack([str(bad)], out=str(tmp_path / "b"))
    save_file({"a": torch.zeros(1)}, bad / "weights.safetensors")
    torch.save({"a": torch.zeros(1)}, bad / "boxes.csv")
    (bad / "config.yaml").write_text(f"data: {{boxes: {bad / 'boxes.csv'}}}\n")
    with pytest.raises(ValueError, match="is a pickle"):
        pack([str(bad)], out=str(tmp_path / "b"))
    (tmp_path / "wheels").mkdir()
    with pytest.raises(ValueError, match=r"No \*\.whl"):
        pack([str(run)], out=str(tmp_path / "b"), wheels=str(tmp_path / "wheels"))


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("10", 10), ("500MB", 500_000_000), ("1.5 gb", 1_500_000_000), ("2K", 2000)],
)
def test_sizes_are_read(text, bytes_):
    assert size(text) == bytes_
    with pytest.raises(ValueError, match="is no size"):
        size(f"{text} apples")


def test_two_files_of_one_name_are_not_mixed_up(tmp_path):
    for number in "ab":
        (tmp_path / number).mkdir()
        (tmp_path / number / "x.csv").write_text(number)
    value = {"one": [str(tmp_path / "a" / "x.csv")], "same": "x.csv", "n": 3}
    assert bring(value, tmp_path / "to") == {"one": ["$RUN/given/x.csv"], "same": "x.csv", "n": 3}
    with pytest.raises(ValueError, match="two different files"):
        bring(str(tmp_path / "b" / "x.csv"), tmp_path / "to")


def test_tampering_is_found(kit, tmp_path):
    mine = tmp_path / "kit"
    shutil.copytree(kit, mine)
    aboard.verify(mine)
    path = mine / "code" / "competitions" / "whale" / "infer.py"
    text = path.read_text()
    path.write_text(text.replace("config", "konfig", 1))
    with pytest.raises(Failure, match=r"infer\.py of the kit is not what was packed"):
        aboard.verify(mine)
    path.unlink()
    with pytest.raises(Failure, match=r"the kit lacks code/competitions/whale/infer\.py"):
        aboard.verify(mine)
