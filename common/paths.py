"""Where files are: Kaggle's mounts, `./input`, the bundled samples; and how they are written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

REPOSITORY = Path(__file__).resolve().parents[1]


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well, and is gone when it does not.

    A reader sees the old file or the whole new one, also after a power cut or `kill -9`.

    Raises:
        OSError: the disk is full or the folder cannot be written, naming `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Same folder: os.replace is atomic only within one file system. Libraries look at the suffix.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # safetensors makes files that only their owner can read
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors wraps the system's own
        why = error.strerror if isinstance(error, OSError) else error
        raise OSError(
            getattr(error, "errno", None),
            f"Could not write {path}: {why}. Free space or choose another out=",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def find_data(
    root: str | Path | None,
    *,
    slugs: tuple[str, ...],
    marker: str,
    sample: Path,
    kaggle: Path = Path("/kaggle/input"),
    local: Path = Path("input"),
) -> tuple[Path, str]:
    """The folder that holds `marker` (for example `train.csv`) and a word on which one it is.

    Args:
        root: `data.root`; when given, nothing else is looked at.
        slugs: the competition's names on Kaggle, newest first.
        marker: a file that the folder must hold.
        sample: the bundled sample, the last resort.
        kaggle: where Kaggle mounts; four layouts are in use (see the list below).
        local: where `python -m common.kaggle download` puts it.

    Raises:
        FileNotFoundError: `root` is given and holds no `marker`, or nothing holds it on Kaggle.
    """
    if root is not None:
        folder = Path(root).expanduser()
        if (folder / marker).is_file():
            return folder, "data.root"
        inner = sorted(folder.glob(f"*/{marker}")) if folder.is_dir() else []
        hint = f"; did you mean data.root={inner[0].parent}?" if inner else ""
        hint = hint or ": point it to the folder in Kaggle's layout."
        raise FileNotFoundError(f"No {marker} under data.root={folder}{hint}")
    looked: list[Path] = []
    for slug in slugs:
        candidates = [kaggle / "competitions" / slug, kaggle / slug]
        candidates += sorted(kaggle.glob(f"datasets/*/{slug}")) + sorted(kaggle.glob(f"*/{slug}"))
        for folder in candidates:
            looked.append(folder)
            if (folder / marker).is_file():
                return folder, "Kaggle mount"
    for slug in slugs:
        looked.append(local / slug)
        if (local / slug / marker).is_file():
            return local / slug, "./input"
    if kaggle.is_dir() and any(kaggle.iterdir()):
        places = ", ".join(str(place) for place in dict.fromkeys(looked))
        raise FileNotFoundError(
            f"No {marker} of this competition among the mounts; looked in: {places}. "
            "Attach the competition data or set data.root."
        )
    return sample, "bundled sample"
