"""A competition's files into ./input/<slug>, where `data.root` finds them, by Kaggle's kagglehub.

python -m common.kaggle download whale|landmarks|shopee [task=retrieval] [data=SLUG] [into=input]
"""

from __future__ import annotations

import gzip
import importlib
import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path
from types import ModuleType

from common.data.dataset import check_files
from common.entry import say
from common.kaggle.kernel import slug
from common.kaggle.pack import home

# What requests and urllib call a network that is not there; kagglehub passes it on.
_OFFLINE = ("Timeout", "ConnectionError", "ProxyError", "SSLError", "ChunkedEncodingError")

# The checks of the archives, and of what they are packed with.
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)


class DownloadError(ValueError):
    """Why there is no data, and what to do."""


def download(
    competition: str, *, task: str = "", data: str | None = None, into: str = "input"
) -> Path:
    """The folder with the files of a competition, complete and in Kaggle's layout.

    What has come before an interruption stays in a hidden folder beside it, and the same command
    goes on from there. On Kaggle the data is attached instead, and its mount is returned.

    Args:
        competition: folder below competitions/.
        task: of landmarks: retrieval has the index images, recognition (the default) does not.
        data: the competition's name on Kaggle; unset: the newest that fits the task.
        into: where its folder is made.

    Raises:
        FileExistsError: the folder is there already.
        DownloadError: no kagglehub, no credentials, rules that were not accepted, no network, or
            files that the competition's scripts could not read.
    """
    home(competition)
    name = data or slug(competition, task)
    target = Path(into) / name
    if target.is_dir() and any(target.iterdir()):
        raise FileExistsError(f"{target} is there already: delete it to download it again.")
    hub, draft = _hub(name, target), target.with_name(f".{name}.download")
    draft.mkdir(parents=True, exist_ok=True)
    # Its cache goes on with half an archive, which a download into a folder of ours would not. The
    # same disk: 100 GB are then renamed, not copied.
    os.environ["KAGGLEHUB_CACHE"] = str(draft.resolve())
    try:
        came = Path(hub.competition_download(name))
    except Exception as error:
        raise DownloadError(f"{_told(error, name)} Nothing is in {target} yet.") from error
    if draft.resolve() not in came.resolve().parents:
        shutil.rmtree(draft)
        say(f"attached, not downloaded: {came}")
        return came
    unpack(came)
    try:
        check(competition, came)
    except (OSError, ValueError) as error:
        raise DownloadError(
            f"What Kaggle has as {name} is not what competitions/{competition} reads ({error}). It "
            f"stays in {came}; delete {draft} to download it anew."
        ) from error
    os.replace(came, target)
    shutil.rmtree(draft)
    return target


def unpack(folder: Path) -> None:
    """Replace the archives in `folder` by what is in them: train.zip by train/, a.csv.zip by a.csv.

    Raises:
        DownloadError: an archive that is damaged; it is removed, so that it comes anew.
    """
    for path in sorted(
        p for end in ("zip", "tar", "tar.gz", "tgz") for p in folder.glob(f"*.{end}")
    ):
        name = path.name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")
        name = name.removesuffix(".zip")
        try:
            if path.suffix == ".zip":
                with zipfile.ZipFile(path) as file:
                    inside = _tops(file.namelist())
                    file.extractall(folder if inside == {name} else folder / name)
            else:
                with tarfile.open(path) as tape:
                    inside = _tops(tape.getnames())
                    tape.extractall(folder if inside == {name} else folder / name, filter="data")
        except _DAMAGED as error:
            path.unlink()
            raise DownloadError(f"{path} is damaged ({error}): run this again.") from error
        path.unlink()


def check(competition: str, folder: Path) -> None:
    """Read `folder` as the competition's scripts do, and look for its pictures.

    Raises:
        ValueError: a table that cannot be read, or pictures that are missing; OSError: no table.
    """
    module = importlib.import_module(f"competitions.{competition}.data")
    found = module.read(module.DataConfig(root=str(folder)))
    for name in ("train", "test", "index"):
        table = getattr(found, name, None)
        if table is not None and (missing := check_files(table.paths, table.ids)):
            raise ValueError(f"{missing} of {min(1000, len(table))} {name} images are missing")


def _hub(name: str, target: Path) -> ModuleType:
    try:
        return importlib.import_module("kagglehub")
    except ImportError as error:
        raise DownloadError(
            f"kagglehub is not installed ({error}): pip install kagglehub. Or with Kaggle's own "
            f"client: kaggle competitions download -c {name} -p {target}, and unzip it there."
        ) from error


def _told(error: Exception, name: str) -> str:
    """What went wrong and what to do, in a sentence or two."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    kinds = [kind.__name__ for kind in type(error).__mro__]
    page = f"https://www.kaggle.com/competitions/{name}"
    if status == 401 or {"UnauthenticatedError", "CredentialError"} & set(kinds):
        return (
            "Kaggle does not know you: make a token on kaggle.com/settings, and put it into "
            "KAGGLE_API_TOKEN or ~/.kaggle/access_token."
        )
    if status == 403:
        return f"Kaggle refuses: accept the rules on {page}/rules with your token's account."
    if status == 404:
        return f"There is no {page}: is data={name} right?"
    if isinstance(error, ConnectionError | TimeoutError) or any(
        k.endswith(_OFFLINE) for k in kinds
    ):
        return "No connection to Kaggle: run this again, and it goes on with what has come."
    return f"{type(error).__name__}: {' '.join(str(error).split())}."


def _tops(names: list[str]) -> set[str]:
    """The first parts of paths in an archive."""
    return {name.removeprefix("./").split("/")[0] for name in names if name not in (".", "./")}
