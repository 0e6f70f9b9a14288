import json
import logging
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
import yaml

from common import environment, remote
from common.paths import REPOSITORY
from common.track import Run, TrackConfig

OFF = TrackConfig(wandb="off")


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("WANDB_", "KAGGLE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read(path):
    return json.loads(path.read_text())


# ---------------------------------------------------------------- files


def test_log_appends_lines_at_once(tmp_path):
    run = Run(tmp_path / "new" / "run", {}, OFF)
    run.log(1, **{"train/loss": 0.5, "epoch": 1})
    assert lines(run.folder) == [{"step": 1, "train/loss": 0.5, "epoch": 1}]  # before finish
    run.log(2, **{"train/loss": np.float32(0.25), "n": torch.tensor(3), "note": "a", "ok": True})
    assert lines(run.folder)[1] == {"step": 2, "train/loss": 0.25, "n": 3, "note": "a", "ok": True}
    assert run.finish() == ""
    run.log(3, x=1)  # after finish the file opens again
    assert len(lines(run.folder)) == 3


def test_not_finite_is_null_and_numbers_are_exact(tmp_path):
    run = Run(tmp_path, {}, OFF)
    run.log(1, a=float("nan"), b=float("inf"), c=0.1 + 0.2)
    assert lines(tmp_path) == [{"step": 1, "a": None, "b": None, "c": 0.1 + 0.2}]


@pytest.mark.parametrize("value", [np.zeros(3), torch.zeros(2), [1, 2], {"a": 1}])
def test_metric_must_be_a_scalar(tmp_path, value):
    with pytest.raises(ValueError, match="'loss' must be one number"):
        Run(tmp_path, {}, OFF).log(1, loss=value)


def test_unknown_mode_names_the_choices(tmp_path):
    with pytest.raises(ValueError, match="auto, online, offline or off"):
        Run(tmp_path, {}, TrackConfig(wandb="yes"))


def test_summary_merges(tmp_path):
    run = Run(tmp_path, {}, OFF)
    run.summary(gap=0.5, threshold=0.1)
    run.summary(gap=np.float64(0.75), bad=float("nan"))
    assert read(tmp_path / "summary.json") == {"gap": 0.75, "threshold": 0.1, "bad": None}


def test_best_value_and_its_step(tmp_path):
    run = Run(tmp_path, {}, OFF, best=("gap",))
    for step, value in enumerate([0.25, 0.75, float("nan"), 0.5], start=1):
        run.log(step, gap=value, loss=9 - step)
    assert read(tmp_path / "summary.json") == {"gap": 0.75, "gap_step": 2}
    resumed = Run(tmp_path, {}, OFF, best=("gap",))
    resumed.log(5, gap=0.6)
    assert read(tmp_path / "summary.json") == {"gap": 0.75, "gap_step": 2}
    resumed.log(6, gap=0.8)
    assert read(tmp_path / "summary.json") == {"gap": 0.8, "gap_step": 6}


def test_truncate_drops_later_steps_and_their_best(tmp_path):
    run = Run(tmp_path, {}, OFF, best=("gap",))
    run.summary(seconds=12)
    for step in (10, 20, 30, 40):
        run.log(step, gap=step / 100)
    run.truncate(20)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]
    assert read(tmp_path / "summary.json") == {"seconds": 12, "gap": 0.2, "gap_step": 20}
    run.log(30, gap=0.1)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30]
    assert not list(tmp_path.glob(".*"))  # no temporary left


def test_resume_after_a_kill_equals_an_uninterrupted_run(tmp_path):
    def train(run, steps):
        for step in steps:
            run.log(step, loss=1 / step)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(Run(whole, {}, OFF), range(1, 9))
    train(Run(killed, {}, OFF), range(1, 7))
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # the kill came in the middle of a line
    run = Run(killed, {}, OFF)
    assert [line["step"] for line in lines(killed)] == [1, 2, 3, 4, 5, 6]
    run.truncate(4)  # the last checkpoint
    train(run, range(5, 9))
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_process_that_is_killed_leaves_whole_lines(tmp_path):
    code = (
        "import os, sys; from common.track import Run, TrackConfig\n"
        "run = Run(sys.argv[1], {}, TrackConfig(wandb='off'))\n"
        "for step in range(1, 200): run.log(step, loss=1 / step)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, check=False)
    assert done.returncode == -9
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 200))


def test_inference_leaves_a_running_training_alone(tmp_path):
    training = Run(tmp_path, {}, OFF)
    training.log(1, loss=1.0)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"half')
    inode = (tmp_path / "metrics.jsonl").stat().st_ino
    other = Run(tmp_path, {}, OFF, job_type="infer", resume=False)
    assert (tmp_path / "metrics.jsonl").stat().st_ino == inode
    other.log(1, gap=0.5)
    from common.report.files import read_lines

    assert read_lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 1.0},
        {"step": 1, "gap": 0.5},
    ]


def test_a_fresh_training_starts_anew(tmp_path):
    run = Run(tmp_path, {}, OFF, best=("gap",))
    run.log(1, gap=0.9)
    first = read(tmp_path / "track.json")["train"]["id"]
    assert Run(tmp_path, {}, OFF).finish() == ""
    assert read(tmp_path / "track.json")["train"]["id"] == first
    Run(tmp_path, {}, OFF, resume=False)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not (tmp_path / "summary.json").exists()
    assert read(tmp_path / "track.json")["train"]["id"] != first


def test_other_ranks_write_nothing(tmp_path):
    folder = tmp_path / "run"
    run = Run(folder, {}, TrackConfig(wandb="offline"), rank=1, best=("x",))
    run.log(1, x=1.0)
    run.summary(x=1.0)
    run.table("t", [{"query": {"id": "a"}, "results": []}])
    run.truncate(0)
    assert run.finish() == ""
    assert not folder.exists()


def test_full_disk_names_the_file(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    run = Run(tmp_path, {}, OFF)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        run.log(1, x=1)


# ---------------------------------------------------------------- facts


@dataclass
class Config:
    lr: float = 0.1
    out: str = "a"
    model: dict = field(default_factory=lambda: {"name": "x", "dim": 4})
    search: list = field(default_factory=lambda: [{"name": "knn"}])


def test_changes_against_the_default(tmp_path):
    base = tmp_path / "config.yaml"
    base.write_text(yaml.safe_dump({"lr": 0.2, "out": "b", "model": {"name": "x", "dim": 4}}))
    Run(tmp_path, Config(), OFF, default=base, data={"rows": np.int64(3)})
    job = read(tmp_path / "track.json")["train"]
    assert job["changes"] == {"lr": [0.2, 0.1], "search": [None, [{"name": "knn"}]]}
    assert job["data"] == {"rows": 3}
    assert job["name"] == tmp_path.name


def test_git_state(tmp_path):
    assert environment.git_state(tmp_path) == {}

    def git(*words):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *name, *words], check=True, capture_output=True)

    git("init")
    assert environment.git_state(tmp_path) == {}  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    state = environment.git_state(tmp_path)
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "a").write_text("2")
    assert environment.git_state(tmp_path)["dirty"] is True


def test_git_absent(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment.git_state() == {}


def test_machine_line():
    facts = environment.machine()
    assert facts["torch"] == torch.__version__.split("+")[0]
    assert facts["numpy"] == np.__version__
    assert facts["cores"] >= 1
    assert facts["cpu"]
    json.dumps(facts)


def test_command_line(monkeypatch):
    script = str(REPOSITORY / "competitions" / "x" / "train.py")
    monkeypatch.setattr(sys, "argv", [script, "a=b c", "lr=1"])
    assert environment.command_line() == "python competitions/x/train.py 'a=b c' lr=1"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert environment.command_line().startswith("torchrun --nproc-per-node 2 competitions/")
    monkeypatch.setattr(sys, "argv", ["/usr/lib/ipykernel_launcher", "-f", "x"])
    assert environment.command_line() == ""


# ---------------------------------------------------------------- W&B


def test_mode(monkeypatch, tmp_path):
    assert remote.mode("auto") == "offline"  # no key
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai login user password " + "a" * 40)
    monkeypatch.setenv("NETRC", str(netrc))
    assert remote.mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert remote.mode("auto") == "offline"  # the key is another server's
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert remote.mode("auto") == "online"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert remote.mode("auto") == "offline"
    assert remote.mode("online") == "online"  # asked for
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert remote.mode("auto") == "off"


def fails(*_, **__):
    raise RuntimeError("no such luck")


def test_a_failing_start_only_warns(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setattr(wandb, "init", fails)
    with caplog.at_level(logging.WARNING):
        run = Run(tmp_path, {"a": 1}, TrackConfig(wandb="online"), best=("x",))
        run.log(1, x=0.5)
        run.table("t", [{"query": {"id": "a"}, "results": []}])
        run.summary(y=2)
        assert run.finish() == ""
    assert len(caplog.records) == 1
    assert "no such luck" in caplog.text
    assert lines(tmp_path) == [{"step": 1, "x": 0.5}]
    assert read(tmp_path / "summary.json") == {"x": 0.5, "x_step": 1, "y": 2}
    assert "wandb" not in capfd.readouterr().out


def test_a_missing_library_only_warns(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)  # import raises ImportError
    run = Run(tmp_path, {}, TrackConfig(wandb="offline"))
    run.log(1, x=0.5)
    assert run.finish() == ""
    assert len(caplog.records) == 1
    assert lines(tmp_path) == [{"step": 1, "x": 0.5}]


class Broken:
    """A W&B run whose every call fails."""

    calls = 0

    def __getattr__(self, name):
        def call(*_, **__):
            Broken.calls += 1
            raise OSError("the service is gone")

        return call


def test_a_failing_log_only_warns_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(remote, "_define", lambda *_: None)
    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    run = Run(tmp_path, {}, TrackConfig(wandb="offline"))
    for step in range(5):
        run.log(step, x=0.5)
    run.finish()
    assert Broken.calls == 1  # not asked again
    assert len(caplog.records) == 1
    assert len(lines(tmp_path)) == 5


KILLED = """
import os, signal, sys
from pathlib import Path
from common.track import Run, TrackConfig
run = Run(sys.argv[1], {}, TrackConfig(wandb="offline"), best=("x",))
run.log(1, x=0.5)
for stat in Path("/proc").glob("[0-9]*/stat"):
    try:
        name, rest = stat.read_text().rsplit(")", 1)
    except OSError:
        continue
    if int(rest.split()[1]) == os.getpid() and "wandb" in name:
        os.kill(int(stat.parent.name), signal.SIGKILL)
        print("killed", name.split("(")[1])
for step in range(2, 40):
    run.log(step, x=1 / step)
run.summary(y=2)
run.finish()
"""


def test_wandbs_service_may_die_in_the_middle(tmp_path):
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("killed wandb-core")
    assert done.stderr.startswith("W&B failed (")
    assert done.stderr.count("\n") == 1, done.stderr  # no traceback of W&B's own
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 40))
    assert read(tmp_path / "summary.json") == {"x": 0.5, "x_step": 1, "y": 2}


def test_offline_run_and_resume(tmp_path, capfd, caplog, monkeypatch):
    seen = []
    start = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **words: seen.append(words) or start(**words))
    track = TrackConfig(wandb="offline", project="p", group="g", tags=["t"])
    rows = [
        {
            "query": {"id": "q", "path": tmp_path / "none.jpg", "label": 1},
            "results": [{"id": "r", "path": tmp_path / "none.jpg", "label": 2, "right": False}],
        }
    ] * 14  # six worst, six best, two others: sheets of two sizes
    for turn in range(2):
        run = Run(tmp_path, {"lr": 0.1}, track, best=("x",), data="abc")
        run.log(turn, x=0.5)
        if turn == 0:
            run.table("retrieval", rows)
        line = run.finish()
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    name = seen[0]["id"]
    assert {words["id"] for words in seen} == {name}  # one run, two parts
    assert 1 <= len(folders) <= 2  # one folder when both start in the same second
    assert all(list(folder.glob("*.wandb")) for folder in folders)
    assert line == f"wandb sync {tmp_path}/wandb/offline-run-*-{name}"
    assert seen[0]["config"]["lr"] == 0.1
    assert seen[0]["config"]["fingerprint"] == "abc"
    assert {"git", "environment"} <= set(seen[0]["config"])
    assert (seen[0]["project"], seen[0]["group"], seen[0]["tags"]) == ("p", "g", ["t"])
    assert len(list((tmp_path / "wandb").glob("offline-run-*/files/media/images/**/*.png"))) == 3
    assert not [entry for entry in caplog.records if entry.levelno >= logging.WARNING]
    output = capfd.readouterr()
    assert output.out == ""
    assert "wandb" not in output.err


NETWORK = """
import sys
from common import remote
from common.track import Run, TrackConfig
remote._SETTINGS["init_timeout"] = 1
run = Run(sys.argv[1], {}, TrackConfig(wandb=sys.argv[2]), best=("x",))
assert not [name for name in sys.modules if name.startswith("wandb.sdk.launch")]  # slow
run.log(1, x=0.5)
print(run.finish())
"""


@pytest.mark.parametrize(("how", "asks"), [("auto", False), ("online", True)])
def test_only_online_touches_the_network(tmp_path, how, asks):
    """A socket in place of W&B's server: never asked offline, and the detector does see online."""
    met = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                met.append(1)
                connection.close()

        threading.Thread(target=listen, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        proxies = {"HTTP_PROXY": url, "HTTPS_PROXY": url, "WANDB_BASE_URL": url}
        key = {"WANDB_API_KEY": "a" * 40} if how == "online" else {}
        done = subprocess.run(
            [sys.executable, "-c", NETWORK, str(tmp_path), how],
            env={**os.environ, **proxies, **key, "NO_PROXY": ""},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    assert bool(met) == asks
    assert lines(tmp_path) == [{"step": 1, "x": 0.5}]
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))  # online fell back
    assert done.stdout.startswith("wandb sync ")
    assert done.stderr.count("\n") == (1 if asks else 0), done.stderr
