"""The kit as a Kaggle data set: code, runs, wheels, a manifest; the same input, the same bytes.

python -m common.kaggle pack runs/whale/baseline [out=FOLDER] [limit=2GB]
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open

from common.entry import say
from common.environment import git_state
from common.kaggle.aboard import sha256
from common.models.transformer import RUN_PART
from common.paths import REPOSITORY

OWNER = "your-name"  # until the account is named
PICTURES = (".jpg", ".jpeg", ".png", ".gif")
PLACES = ("out", "run", "runs", "data.root")  # of this machine; a kernel names its own


def pack(
    runs: Sequence[str],
    *,
    competition: str | None = None,
    out: str | None = None,
    owner: str = OWNER,
    name: str | None = None,
    limit: str = "20GB",
    wheels: str | None = None,
) -> Path:
    """The folder of the kit: `code/`, `runs/<name>/`, `wheels/`, MANIFEST.json, the metadata.

    Args:
        runs: trained run folders.
        competition: folder below competitions/; None: the one that the runs lie under.
        out: the folder to make (runs/<competition>/kit); a kit that is there is replaced.
        owner: Kaggle account.
        name: of the data set (<competition>-kit).
        limit: the size that it must stay under, as 500MB or 2GB.
        wheels: folder of wheels for what Kaggle's image lacks.

    Raises:
        ValueError: a run without weights, files that hide a pickle, or more than `limit`.
    """
    if not runs:
        raise ValueError("No run to pack: python -m common.kaggle pack runs/whale/baseline")
    folders = [Path(run) for run in runs]
    competition = competition or folders[0].resolve().parent.name
    home(competition)
    title = name or f"{competition}-kit"
    check_name("name", title, 6)
    if len({folder.name for folder in folders}) < len(folders):
        raise ValueError("Two of the runs have the same folder name: rename one.")
    target = Path(out or f"runs/{competition}/kit")
    if target.exists() and not (target / "MANIFEST.json").is_file() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty and no kit: choose another out=")
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        for place, source in code(competition):
            copy(source, draft / "code" / place)
        for folder in folders:
            pack_run(folder, draft / "runs" / folder.name)
        for wheel in wheels_of(wheels):
            copy(wheel, draft / "wheels" / wheel.name)
        fits(draft, size(limit))
        write_manifest(draft, competition)
        described = {"title": title, "id": f"{owner}/{title}", "licenses": [{"name": "other"}]}
        text = json.dumps(described, indent=2) + "\n"
        (draft / "dataset-metadata.json").write_text(text, encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def home(competition: str) -> Path:
    """The competition's folder.

    Raises:
        ValueError: there is none of that name.
    """
    folder = REPOSITORY / "competitions" / competition
    if not (folder / "infer.py").is_file():
        known = sorted(path.parent.name for path in folder.parent.glob("*/infer.py"))
        raise ValueError(
            f"No competition {competition!r}; there are {', '.join(known)}: add competition=NAME."
        )
    return folder


def check_name(what: str, text: str, least: int = 5) -> None:
    """Raise ValueError for a name that Kaggle would not take as part of an address."""
    if not (re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", text) and least <= len(text) <= 50):
        raise ValueError(
            f"{what}={text!r}: {least} to 50 small letters, digits and single hyphens."
        )


def code(competition: str) -> Iterator[tuple[str, Path]]:
    """Place in the kit and file of everything that git tracks of `common` and the competition."""
    mine = f"competitions/{competition}"
    parts = ["common", "competitions/__init__.py", mine]
    listed = _git("ls-files", "-z", "--", *parts)
    if not listed:  # no git, or a copied folder that is not committed yet
        found = [path for part in parts for path in sorted((REPOSITORY / part).rglob("*"))]
        found.append(REPOSITORY / "competitions/__init__.py")
        listed = [str(path.relative_to(REPOSITORY)) for path in found if path.is_file()]
    elif not any(name.startswith(f"{mine}/") for name in listed):
        raise ValueError(f"git tracks no file of {mine}: git add it, the kit holds tracked files.")
    else:
        strange = _git("ls-files", "-z", "--others", "--exclude-standard", "--", *parts)
        if strange:
            say(f"warning: {len(strange)} files stay out, git does not track them: {strange[0]}")
    for name in sorted(set(listed)):
        path = REPOSITORY / name
        skipped = {"sample", "__pycache__"} & set(path.relative_to(REPOSITORY).parts)
        if not skipped and path.suffix.lower() not in PICTURES and path.is_file():
            yield name, path


def pack_run(run: Path, to: Path) -> None:
    """Copy what inference reads of a run; files that its config names come along in `given/`.

    In the config of the kit they are `$RUN/given/<name>`, which the kernel fills in.
    """
    weights = run / "weights.safetensors"
    if not ((run / "config.yaml").is_file() and weights.is_file()):
        raise ValueError(f"{run} is no trained run: it needs config.yaml and weights.safetensors.")
    try:
        with safe_open(str(weights), framework="pt") as file:
            file.keys()
    except SafetensorError as error:
        raise ValueError(f"{weights} is not a safetensors file: {error}") from None
    copy(weights, to / weights.name)
    for path in [run / "card.json", *sorted((run / RUN_PART).rglob("*"))]:
        if path.is_file():
            copy(path, to / path.relative_to(run))
    config = OmegaConf.load(run / "config.yaml")
    for place in PLACES:
        if OmegaConf.select(config, place) is not None:
            OmegaConf.update(config, place, [] if place == "runs" else None)
    for place in ("model", "model.image", "model.text"):
        if OmegaConf.select(config, f"{place}.weights"):
            OmegaConf.update(config, f"{place}.weights", "none")  # the run has its own
    text = OmegaConf.to_yaml(OmegaConf.create(bring(OmegaConf.to_container(config), to)))
    (to / "config.yaml").write_text(text, encoding="utf-8")


def bring(value: Any, to: Path) -> Any:
    """The config with every path of an existing file replaced by that of its copy in `to`."""
    if isinstance(value, dict):
        return {key: bring(child, to) for key, child in value.items()}
    if isinstance(value, list):
        return [bring(child, to) for child in value]
    if not (isinstance(value, str) and "/" in value and Path(value).is_file()):
        return value
    name = Path(value).name
    if (to / "given" / name).is_file() and sha256(to / "given" / name) != sha256(Path(value)):
        raise ValueError(f"The config names two different files {name}: rename one of them.")
    copy(Path(value), to / "given" / name)
    return f"$RUN/given/{name}"


def copy(source: Path, target: Path) -> None:
    """Copy the bytes of one file.

    Raises:
        ValueError: it is a pickle, which runs code when it is read.
    """
    with open(source, "rb") as file:
        first = file.read(2)
    pickled = first[:1] == b"\x80" and first[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if zipfile.is_zipfile(source):  # as torch.save writes it
        with zipfile.ZipFile(source) as archive:
            pickled = any(name.endswith(".pkl") for name in archive.namelist())
    if pickled or source.suffix in (".pkl", ".pickle", ".joblib"):
        raise ValueError(f"{source} is a pickle: a kit holds safetensors, text and wheels only.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def wheels_of(folder: str | None) -> list[Path]:
    """The wheels in a folder; a folder without any is an error."""
    found = sorted(Path(folder).glob("*.whl")) if folder else []
    if folder and not found:
        raise ValueError(f"No *.whl in wheels={folder}: pip download -d {folder} PACKAGE")
    return found


def size(text: str) -> int:
    """Bytes of `500MB`, `1.5GB` or a plain number."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)B?", str(text).upper())
    if match is None:
        raise ValueError(f"{text!r} is no size: write 500MB or 2GB.")
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2] or " "))


def fits(kit: Path, limit: int) -> None:
    """Raise ValueError, with the largest files, when the kit has more bytes than `limit`."""
    sizes = {path: path.stat().st_size for path in kit.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > limit:
        largest = sorted(sizes, key=lambda path: (-sizes[path], path))[:3]
        named = ", ".join(f"{path.relative_to(kit)} {sizes[path] / 1e6:.1f} MB" for path in largest)
        raise ValueError(
            f"The kit has {total / 1e6:.1f} MB, limit={limit / 1e6:.1f} MB. The largest: {named}. "
            "Pack fewer runs or raise limit=."
        )


def write_manifest(kit: Path, competition: str) -> None:
    """Write MANIFEST.json: what is packed, from which commit, the SHA-256 of every file."""
    paths = sorted(path for path in kit.rglob("*") if path.is_file())
    files = {str(path.relative_to(kit)): sha256(path) for path in paths}
    for own in ("MANIFEST.json", "dataset-metadata.json"):  # Kaggle does not mount the latter
        files.pop(own, None)
    runs = sorted(path.name for path in (kit / "runs").iterdir())
    listed = {"competition": competition, "runs": runs, **git_state(), "files": files}
    (kit / "MANIFEST.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


def _git(*arguments: str) -> list[str]:
    try:
        done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True)
    except OSError:
        return []
    return [os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
