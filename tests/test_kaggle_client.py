"""The commands, Kaggle's own client, and the ledger."""

import csv
import json
import sys

import pytest

from common.entry import entry
from common.kaggle import client, ledger
from common.kaggle.__main__ import main
from common.kaggle.kernel import SUBMISSIONS, kernel
from common.kaggle.pack import pack
from tests.kits import given_run


def test_the_command_line_knows_its_options(tmp_path, monkeypatch, capsys):
    for words, message in (
        (["pakc"], "No command 'pakc'; did you mean 'pack'"),
        (["rehearse"], "rehearse takes COMPETITION"),
        (["rehearse", "whale", "memroy=1GB"], "did you mean 'memory'"),
        (["rehearse", "whale", "gpus=two"], "gpus=two: must be int"),
        (["submit", "whale", "version=1"], "submit needs message=VALUE"),
        (["pack"], "No run to pack"),
        (["rehearse", "whale", f"folder={tmp_path}"], "python -m common.kaggle kernel first"),
    ):
        monkeypatch.setattr(sys, "argv", ["kaggle", *words])
        with pytest.raises(SystemExit):
            entry(main)
        assert message in capsys.readouterr().err
    words = ["kernel", "whale", "runs=[runs/whale/a,runs/b]", "unknown.by=share", "hours=2"]
    main([*words, f"out={tmp_path}"])
    source = "".join(json.loads((tmp_path / "submit.ipynb").read_text())["cells"][2]["source"])
    assert 'runs=["a", "b"]' in source
    assert 'arguments=["unknown.by=share"]' in source
    assert "seconds=7200.0" in source
    main(["pack", "--help"])
    assert "limit: the size" in capsys.readouterr().out


def test_the_ledger_grows_by_lines_that_read_back(tmp_path):
    path = tmp_path / "ledger.csv"
    options = {"competition": "whale", "run": "runs/whale/a", "ledger": str(path)}
    ledger.record(**options, cv=0.1 + 0.2, note='good, "they"\nsay', date="2026-11-25")
    ledger.record(**options, public=0.9, private=0.8)
    with open(path, newline="") as file:
        first, second = csv.DictReader(file)
    assert tuple(first) == ledger.COLUMNS
    assert float(first["cv"]) == 0.1 + 0.2
    assert (first["date"], first["note"], first["public"]) == ("2026-11-25", 'good, "they" say', "")
    assert (second["public"], second["private"]) == ("0.9", "0.8")
    with pytest.raises(ValueError, match="public=nan: a finite number"):
        ledger.record(**options, public=float("nan"))
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match="does not begin with date,competition"):
        ledger.record(**options)
    header = (SUBMISSIONS / "ledger.csv").read_text().splitlines()[0]
    assert header == ",".join(ledger.COLUMNS)


def test_the_client_is_called_as_it_wants(tmp_path, monkeypatch):
    theirs = pack([str(given_run(tmp_path / "runs" / "whale" / "a"))], out=str(tmp_path / "theirs"))
    monkeypatch.setattr(client, "SUBMISSIONS", tmp_path)
    kernel("whale", runs=["tiny"], out=str(tmp_path / "whale"))
    with pytest.raises(ValueError, match="write it again with owner="):
        client.status("whale")
    kernel("whale", runs=["tiny"], owner="me", out=str(tmp_path / "whale"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="pip install kaggle"):
        client.status("whale")
    tool, said = tmp_path / "kaggle", tmp_path / "said.txt"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    tool.chmod(0o755)
    with pytest.raises(ValueError, match="give both the same owner="):
        client.push("whale", kit=str(theirs))
    with pytest.raises(FileNotFoundError, match="No kit in"):
        client.push("whale", kit=str(tmp_path))
    kit = tmp_path / "kit"
    kit.mkdir()
    (kit / "dataset-metadata.json").write_text('{"id": "me/whale-kit"}')
    client.push("whale", kit=str(kit), first=True)
    client.push("whale", kit=str(kit), message="more")
    client.push("whale", kit="none")
    client.output("whale", out=str(tmp_path / "got"))
    client.submit("whale", version=3, message="late")
    push = f"kernels push -p {tmp_path / 'whale'}"
    data = "humpback-whale-identification"
    assert said.read_text().splitlines() == [
        f"datasets create -p {kit} -r zip",
        push,
        f"datasets version -m more -p {kit} -r zip",
        push,
        push,
        f"kernels output me/whale-submission -p {tmp_path / 'got'}",
        f"competitions submit {data} -k me/whale-submission -v 3 -f submission.csv -m late",
    ]
    tool.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(ValueError, match="ended with 3"):
        client.status("whale")
