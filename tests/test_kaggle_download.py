"""Kaggle's data by one command: complete or not there, and in words what to do."""

import gzip
import importlib
import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.entry import entry
from common.kaggle.__main__ import main
from common.kaggle.download import DownloadError, download, unpack
from common.paths import find_data

WHALE = "humpback-whale-identification"
FILES = {
    "train.csv": "Image,Id\na.jpg,w_1\nb.jpg,w_1\nc.jpg,new_whale\n",
    "sample_submission.csv": "Image,Id\nd.jpg,new_whale w_1\n",
    **{f"train/{name}.jpg": name for name in "abc"},
    "test/d.jpg": "d",
}


class Http(OSError):
    """As requests.HTTPError, which kagglehub raises: an OSError with a response."""

    def __init__(self, status):
        super().__init__(f"{status} Client Error.\n\nYou don't have permission to access")
        self.response = SimpleNamespace(status_code=status)


class UnauthenticatedError(Exception):
    """kagglehub's word for no credentials."""


class ConnectTimeout(OSError):
    """As in requests."""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in for kagglehub: `files` come, or `error` is raised; its cache is as theirs."""
    fake = SimpleNamespace(files=FILES, error=None, asked=[], mount=None)

    def competition_download(handle):
        fake.asked.append(handle)
        folder = Path(os.environ["KAGGLEHUB_CACHE"]) / "competitions" / handle
        for name, content in fake.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if fake.error:
            raise fake.error
        return str(fake.mount or folder)

    fake.competition_download = competition_download
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    return fake


def below(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def encoded(files):
    return {name: text.encode() for name, text in files.items()}


def test_the_files_are_there_and_found(hub, tmp_path):
    folder = download("whale")
    assert folder == Path("input") / WHALE
    assert below(folder) == encoded(FILES)
    assert [path.name for path in Path("input").iterdir()] == [WHALE]  # no draft, no cache
    none = tmp_path / "none"
    found = find_data(None, slugs=(WHALE,), marker="train.csv", sample=none, kaggle=none)
    assert found == (folder, "./input")
    with pytest.raises(FileExistsError, match="is there already: delete it"):
        download("whale")
    assert hub.asked == [WHALE]


def archive(files, kind="zip"):
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            for name, text in files.items():
                file.writestr(name, text)
    else:
        with tarfile.open(fileobj=buffer, mode="w:gz") as tape:
            for name, text in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(text)
                tape.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_inside_become_kaggles_layout(hub, kind):
    """Older competitions: train.zip with flat files, test with its folder, a csv by itself."""
    hub.files = {
        "sample_submission.csv": FILES["sample_submission.csv"],
        "train.csv.zip": archive({"train.csv": FILES["train.csv"]}),
        f"train.{kind}": archive({f"{name}.jpg": name for name in "abc"}, kind),
        f"test.{kind}": archive({"test/d.jpg": "d"}, kind),
    }
    assert below(download("whale")) == encoded(FILES)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_archive_that_does_not_unpack_is_removed(tmp_path, kind):
    """Neither is what the archives' own checks raise: zlib's error, and gzip's, an OSError."""
    if kind == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a.txt", "words " * 99)
        data = bytearray(buffer.getvalue())
        data[30 + len("a.txt")] = 0x07  # a block of a kind that there is not
    else:
        tape = gzip.decompress(archive({"a.txt": "words " * 999}, kind))
        data = gzip.compress(tape[:2000]) + b"no further part"
    path = tmp_path / f"train.{kind}"
    path.write_bytes(data)
    with pytest.raises(DownloadError, match=r"is damaged .*: run this again"):
        unpack(tmp_path)
    assert not path.exists()


def test_nothing_leaves_the_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "train.zip").write_bytes(archive({"../../out.txt": "x"}))
    unpack(tmp_path / "in")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "out.txt", "train"]
    assert (tmp_path / "in" / "train" / "out.txt").is_file()
    (tmp_path / "in" / "test.tar.gz").write_bytes(archive({"../out.txt": "x"}, "tar.gz"))
    with pytest.raises(DownloadError, match="is damaged"):
        unpack(tmp_path / "in")
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Http(403), f"accept the rules on https://www.kaggle.com/competitions/{WHALE}/rules"),
        (Http(401), "make a token on kaggle.com/settings, and put it into KAGGLE_API_TOKEN"),
        (UnauthenticatedError("User is not authenticated"), "make a token on kaggle.com/settings"),
        (Http(404), f"is data={WHALE} right?"),
        (Http(500), "Http: 500 Client Error. You don't have permission to access."),
        (ConnectTimeout("max retries"), "No connection to Kaggle: run this again, and it goes on"),
        (ConnectionResetError("by peer"), "No connection to Kaggle"),
        (zipfile.BadZipFile("no end"), "BadZipFile: no end."),
    ],
    ids=lambda value: type(value).__name__ + str(getattr(value, "response", ""))[-4:-1],
)
def test_what_goes_wrong_is_one_line(hub, error, message, monkeypatch, capsys):
    hub.error, hub.files = error, {"train.csv": FILES["train.csv"]}
    monkeypatch.setattr(sys, "argv", ["kaggle", "download", "whale"])
    with pytest.raises(SystemExit):
        entry(main)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (Path("input") / WHALE).exists()  # half of it never looks complete
    hub.error, hub.files = None, FILES
    assert below(download("whale")) == encoded(FILES)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("train.csv", "No train.csv"),
        ("train/b.jpg", "1 of 3 train images are missing"),
        ("test/d.jpg", "None of 1 images looked at exists"),
    ],
)
def test_what_the_scripts_cannot_read_is_no_data(hub, missing, message):
    hub.files = {name: text for name, text in FILES.items() if name != missing}
    with pytest.raises(DownloadError, match=message) as caught:
        download("whale")
    assert f"delete {Path('input') / f'.{WHALE}.download'}" in str(caught.value)
    assert not (Path("input") / WHALE).exists()


def test_landmarks_have_a_name_for_each_task(hub):
    hub.error = Http(403)
    for words in ([], ["task=retrieval"], ["data=landmark-recognition-2020"]):
        with pytest.raises(DownloadError):
            download("landmarks", **dict(word.split("=") for word in words))
    assert hub.asked == [
        "landmark-recognition-2021",
        "landmark-retrieval-2021",
        "landmark-recognition-2020",
    ]
    with pytest.raises(DownloadError):
        download("shopee")
    assert hub.asked[-1] == "shopee-product-matching"
    with pytest.raises(ValueError, match="No competition 'whales'; there are landmarks"):
        download("whales")


@pytest.mark.parametrize("competition", ["landmarks", "shopee"])
def test_the_samples_of_the_others_pass_as_downloads(hub, competition):
    data = importlib.import_module(f"competitions.{competition}.data")
    names = [path for path in data.SAMPLE.rglob("*") if path.is_file()]
    hub.files = {str(path.relative_to(data.SAMPLE)): path.read_bytes() for path in names}
    task = {"task": "retrieval"} if competition == "landmarks" else {}
    folder = download(competition, **task)
    assert folder.name in data.SLUGS
    assert below(folder) == hub.files


def test_on_kaggle_the_data_is_attached(hub, tmp_path, capsys):
    hub.files, hub.mount = {}, tmp_path / "kaggle" / "input" / WHALE
    hub.mount.mkdir(parents=True)
    assert download("whale") == hub.mount
    assert "attached, not downloaded" in capsys.readouterr().out
    assert list(Path("input").iterdir()) == []


def test_without_kagglehub_the_other_way_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # import raises ImportError
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DownloadError, match="pip install kagglehub") as caught:
        download("whale")
    other = f"kaggle competitions download -c {WHALE} -p {Path('input') / WHALE}"
    assert other in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("token", "message"), [(None, "Kaggle does not know you: make a token"), ("x", "No connection")]
)
def test_kagglehub_itself_without_credentials_or_network(token, message, monkeypatch, tmp_path):
    """The library's own errors are told apart, and its cache is where it was told to be."""
    pytest.importorskip("kagglehub", reason="kagglehub is an extra")
    for name in [name for name in os.environ if name.startswith("KAGGLE")]:
        monkeypatch.delenv(name)
    for kind in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        for name in (kind, kind.lower()):
            monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    for name in ("HOME", "KAGGLE_CONFIG_DIR", "KAGGLEHUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    if token:
        monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DownloadError, match=message):
        download("whale")
    assert (tmp_path / "input" / f".{WHALE}.download").is_dir()
    assert not (tmp_path / "home").exists()
