"""Test sets as a hidden rerun may bring them: other ids, more rows, one row, broken pictures."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common.submission import FORMATS

KINDS = ("stub", "odd", "one")
TITLES = (
    "чайник электрический 1,7 л",
    "保温杯 500毫升",
    "كوب قهوة سيراميك",
    "mug \\xf0\\x9f\\x8d\\xb5",
)


@dataclass(frozen=True)
class Layout:
    """Where a competition keeps its test set.

    Attributes:
        folder: of the test images.
        name: id -> path in it.
        fresh: 64 hex digits -> a new id.
        table: csv of the test rows, whose column `image` then names the file.
    """

    folder: str
    name: Callable[[str], str]
    fresh: Callable[[str], str]
    table: str | None = None


def _nested(name: str) -> str:
    return f"{name[0]}/{name[1]}/{name[2]}/{name}.jpg"


_LANDMARKS = Layout("test", _nested, lambda digits: digits[:16])
LAYOUTS = {
    "whale": Layout("test", str, lambda digits: f"{digits[:9]}.jpg"),
    "landmarks-recognition": _LANDMARKS,
    "landmarks-retrieval": _LANDMARKS,
    "shopee": Layout(
        "test_images", str, lambda digits: f"test_{int(digits[:8], 16)}", table="test.csv"
    ),
}


def swap(form: str, source: Path, target: Path, kind: str) -> int:
    """Make `target` the data folder `source` with another test set; the number of its rows.

    Everything but the test set is linked. Solutions stay behind, as does the sample submission of
    another task.

    Args:
        form: a name of `common.submission.FORMATS`.
        source: a folder in the competition's layout.
        target: the folder to make.
        kind: stub (the test set as it is), odd (twice as many rows under other ids, and pictures
            that are broken or of odd kinds and sizes) or one (a single row).

    Raises:
        ValueError: a form whose layout is not known, or data without a sample submission for it.
    """
    if form not in LAYOUTS:
        raise ValueError(
            f"No layout of the test set of {form!r}: add it to common/kaggle/hidden.py"
        )
    layout, columns = LAYOUTS[form], [FORMATS[form].key, FORMATS[form].column]
    rows = sample_rows(source, columns)
    own = {layout.folder} if kind != "stub" else set()
    own |= {layout.table} if kind != "stub" and layout.table else set()
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if not (path.name in own or "solution" in path.name or "submission" in path.name):
            (target / path.name).symlink_to(path.resolve())
    if kind == "stub":
        _write(target / "sample_submission.csv", columns, rows)
        return len(rows)
    images = {name: name for name, _ in rows}
    if layout.table:
        with open(source / layout.table, newline="", encoding="utf-8") as file:
            images = {row[columns[0]]: row["image"] for row in csv.DictReader(file)}
    files = [source / layout.folder / layout.name(image) for image in images.values()]
    files = [path for path in files if path.is_file()]
    if kind == "one":
        contents = [files[0].read_bytes()]
    else:
        contents = [path.read_bytes() for path in (*files, *files)] + list(odd(files[0]))
    written, listed = [], []
    for number, content in enumerate(contents):
        digits = hashlib.sha256(f"{form} {number}".encode()).hexdigest()
        name = layout.fresh(digits)
        image = f"{digits[:32]}.jpg" if layout.table else name
        path = target / layout.folder / layout.name(image)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.append((name, name if layout.table else rows[0][1]))
        listed.append((name, image, digits[:16], TITLES[number % len(TITLES)]))
    _write(target / "sample_submission.csv", columns, written)
    if layout.table:
        _write(target / layout.table, [columns[0], "image", "image_phash", "title"], listed)
    return len(written)


def sample_rows(source: Path, columns: list[str]) -> list[tuple[str, str]]:
    """The rows of the sample submission with these columns."""
    for path in sorted(source.glob("*sample_submission.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            if next(reader, []) == columns:
                return [(row[0], row[1]) for row in reader if row]
    raise ValueError(f"{source} has no *sample_submission.csv with the columns {','.join(columns)}")


def odd(picture: Path) -> Iterator[bytes]:
    """Bytes of pictures that real test sets have had, and some that they may have."""
    content = picture.read_bytes()
    yield b""
    yield b"not a picture"
    yield content[: len(content) // 2]
    rng = np.random.default_rng(0)
    for mode, form, width, height in (
        ("RGB", "JPEG", 1, 1),
        ("L", "JPEG", 3, 400),
        ("RGB", "JPEG", 2500, 40),
        ("CMYK", "JPEG", 64, 48),
        ("RGBA", "PNG", 50, 60),
    ):
        pixels = rng.integers(0, 255, (height, width, 3), np.uint8)
        yield _encoded(Image.fromarray(pixels).convert(mode), form)
    yield _encoded(Image.fromarray(rng.integers(0, 65535, (40, 40), np.uint16)), "PNG")


def _encoded(picture: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, form)
    return file.getvalue()


def _write(path: Path, columns: list[str], rows: Sequence[tuple[str, ...]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([columns, *rows])
