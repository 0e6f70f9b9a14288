"""One picture or title looked up in a run's galleries, with the run's ranking steps and more.

search = Search(Finished.open("runs/landmarks/baseline"), cache=Path("cache"))
answer = search.ask("photo.jpg", steps=search.usual("train"))
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.data.images import read_image
from common.engine.inputs import inputs_of
from common.pipeline import choices, ranking
from common.pipeline.choices import EXTRAS, Choice
from common.pipeline.finished import Finished
from common.pipeline.ranking import Question
from common.rerank.features import load
from common.rerank.geometry import Verification, verify
from common.rerank.known import STEPS
from common.steps import Step, bind, settings
from common.types import Embeddings, Neighbors

_WORDS = {"image": "a picture", "tokens": "a title"}
_ANSWERS = 5  # classes that are named


@dataclass
class Result:
    """A row of the gallery that was found; `label` and `title` are empty where nobody knows."""

    row: int
    id: str
    path: bytes
    label: str
    score: float
    title: str
    box: np.ndarray | None


@dataclass
class Answer:
    """What was found.

    Attributes:
        gallery: where.
        results: best first.
        classes: names and scores, best first, where the steps end in classes.
        steps: names of what was done, in order.
        remarks: sentences on what the query lacks.
    """

    gallery: str
    results: list[Result]
    classes: list[tuple[str, float]]
    steps: list[str]
    remarks: list[str]


class Search:
    """Looks up one query at a time.

    Args:
        run: a finished run.
        cache: folder for local features and matches.

    Attributes:
        inputs: what the model reads: `image`, `tokens` or both.
        galleries: tables that can be searched, with their number of rows.
        left_out: by section, steps of the config that a single query has no use for.
    """

    def __init__(self, run: Finished, cache: Path) -> None:
        self.run, self.cache, self.inputs = run, cache, inputs_of(run.model)
        self.galleries = {name: len(table) for name, table in run.tables.items()}
        self.lists, self.left_out = choices.lists_of(run.config)
        self._kept: tuple[str, Embeddings] = ("", run.vectors.train)

    def choices(self, gallery: str) -> list[Choice]:
        """The steps that can be switched on for a gallery.

        Raises:
            ValueError: no such gallery.
        """
        if gallery not in self.galleries:
            raise ValueError(f"No gallery {gallery!r}: there are {', '.join(self.galleries)}.")
        return choices.choices(
            self._own(gallery),
            rows=self.galleries[gallery],
            labelled=self._labelled(gallery),
            pictures="image" in self.inputs,
        )

    def usual(self, gallery: str) -> list[str]:
        """Keys of the steps that the run itself does, without those that learn at each call."""
        return [choice.key for choice in self.choices(gallery) if choice.usual]

    def ask(
        self,
        image: str | Path | None = None,
        title: str = "",
        *,
        gallery: str = "train",
        steps: Sequence[str] = (),
        top: int = 20,
    ) -> Answer:
        """The rows of a gallery that are most like a picture, a title, or a picture with its title.

        Args:
            image: a file.
            title: text; blanks are none.
            gallery: which table.
            steps: keys of `choices`; without any the nearest by cosine.
            top: at most so many results.

        Raises:
            ValueError: nothing to look up, something that the model does not read, no such gallery
                or step; ImageError for a file that gives no picture.
        """
        known = self.choices(gallery)
        of_images, of_classes = choices.plan(known, steps, picture=image is not None)
        path, title, remarks = self._query(image, title)
        table, embeddings = self.run.tables[gallery], self.run.of(gallery)
        parts = [part for part in (table.boxes, table.frames) if part is not None]
        if image is not None and any(part.any() for part in parts):
            remarks.append("Of the gallery only boxes are looked at, of the query all there is.")
        vector = self.run.embed(path, title).to(embeddings.vectors.dtype)
        question = Question(
            Embeddings(np.array(["query"]), vector),
            embeddings,
            torch.from_numpy(table.labels),
            self.run.vectors.negatives,
            np.array([path]),
            table.paths,
            gallery_boxes=table.boxes,
        )
        count = next(i for i, step in enumerate(of_images) if not choices.of_gallery(step))
        question.gallery = self._moved(gallery, of_images[:count])
        found = self._apply(of_images[count:], question)
        named = []
        if of_classes:
            voted = self._apply(of_classes, question, {"neighbors": found})
            named = [(str(self.run.classes[i]), score) for i, score in _first(voted, _ANSWERS)]
        return Answer(
            gallery,
            [self._result(gallery, row, score) for row, score in _first(found, top)],
            named,
            [str(step["name"]) for step in (*of_images, *of_classes)],
            remarks,
        )

    def match(
        self, image: str | Path, gallery: str, row: int
    ) -> tuple[np.ndarray, np.ndarray, Verification]:
        """The query's picture, what is looked at of a gallery row, and their local matches.

        Matched as the run's own `local` step does, or that of `EXTRAS`.

        Raises:
            ImageError: a file that gives no picture.
        """
        local = STEPS["local"]
        step = next(s for s in (*self._own(gallery), *EXTRAS) if STEPS[s["name"]] is local)
        options = {"features": settings(local)["features"], **step}
        options = {key: options[key] for key in signature(verify).parameters if key in options}
        table = self.run.tables[gallery]
        box = None if table.boxes is None else table.boxes[row]
        mine, theirs = load(image, None), load(bytes(table.paths[row]), None, box)
        return mine, theirs, verify(mine, theirs, **{**options, "device": self.run.device.type})

    def examples(self, count: int = 8) -> list[Result]:
        """Test rows to begin with, evenly spread over the table."""
        rows = np.linspace(0, self.galleries["test"] - 1, count).round().astype(int)
        return [self._result("test", row, 0.0) for row in np.unique(rows).tolist()]

    def _query(self, image: str | Path | None, title: str) -> tuple[bytes, str, list[str]]:
        """File, title and remarks, once it is known that the model can read them."""
        title = title.strip()
        given = {"image": image is not None, "tokens": bool(title)}
        reads = " or ".join(_WORDS[name] for name in self.inputs)
        for name, there in given.items():
            if there and name not in self.inputs:
                raise ValueError(
                    f"This run cannot read {_WORDS[name]}: give it {reads}, and nothing else."
                )
        if not any(given.values()):
            raise ValueError(f"Nothing to look up: give this run {reads}.")
        if image is not None:
            read_image(image, size=64)
        remarks = []
        if not given["image"] and "image" in self.inputs:
            remarks.append("There is no picture: a grey one stands in.")
        if not title and "tokens" in self.inputs:
            remarks.append("There is no title: an empty one stands in.")
        return b"" if image is None else os.fsencode(image), title, remarks

    def _own(self, gallery: str) -> list[Step]:
        return choices.own_steps(self.lists, labelled=self._labelled(gallery))

    def _labelled(self, gallery: str) -> bool:
        return bool((self.run.tables[gallery].labels >= 0).any())

    def _moved(self, gallery: str, steps: list[Step]) -> Embeddings:
        """The gallery after steps that no query has a part in; the last one is kept."""
        key = repr((gallery, steps))
        if self._kept[0] != key:
            found = self.run.of(gallery)
            for step in steps:
                found = bind(step, STEPS)({"gallery": found, "device": self.run.device})
            self._kept = (key, found)
        return self._kept[1]

    def _apply(
        self, steps: list[Step], question: Question, more: Mapping[str, Any] | None = None
    ) -> Neighbors:
        return ranking.apply(
            steps,
            question,
            lambda: self.run.vectors.train,
            self.run.tables["train"],
            self.run.vectors.centers,
            cache=self.cache,
            device=self.run.device,
            pair_head=self.run.vectors.pair_head,
            more=more,
        )

    def _result(self, gallery: str, row: int, score: float) -> Result:
        table = self.run.tables[gallery]
        label = int(table.labels[row])
        box = None if table.boxes is None or not table.boxes[row].any() else table.boxes[row]
        return Result(
            row,
            str(table.ids[row]),
            bytes(table.paths[row]),
            str(self.run.classes[label]) if label >= 0 else self.run.nobody * (gallery == "train"),
            score,
            "" if table.titles is None else str(table.titles[row]),
            box,
        )


def _first(found: Neighbors, count: int) -> list[tuple[int, float]]:
    """Rows and scores of the only query, without padding."""
    best = found.top(count)
    pairs = zip(best.index[0].tolist(), best.score[0].tolist(), strict=True)
    return [(row, score) for row, score in pairs if row >= 0]
