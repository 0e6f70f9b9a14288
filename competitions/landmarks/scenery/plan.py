"""How many pictures of each building go to train, index and test, and made from which takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from common.data.sample import digest, stream

from .takes import Building

SEED = "landmarks-1"


@dataclass
class Counts:
    """How many pictures to make; test also gets two empty pictures for each landmark picture."""

    train: int = 420
    index: int = 170
    test: int = 80
    non_landmark: int = 60


def plan(buildings: list[Building], counts: Counts) -> None:
    """Fill in `pictures` and `shares` of each building.

    A third of the buildings is never in train. Buildings with several takes of one rotation get
    most of the test pictures, because only they have two drawings of the same side.
    """
    order = sorted(buildings, key=lambda building: _rank("order", building))
    whole = [building for building in order if len(building.rotations) > 2]
    unseen = whole[: round(len(order) / 3)]
    seen = sorted(  # buildings with more takes tend to have more pictures
        (building for building in order if building not in unseen),
        key=lambda building: np.log(len(building.takes)) + 2 * _rank("size", building),
    )
    for n, building in enumerate(unseen):
        building.pictures = {"train": 0, "index": 2 + n % 3, "test": 1}
    for building, amount in zip(seen, _long_tail(len(seen), counts.train), strict=True):
        building.pictures = {"train": amount, "index": 0, "test": 0}
    order = sorted(order, key=lambda building: _rank("test", building))
    rich = [building for building in order if len(building.takes) > 4]
    plain = [b for b in order if b in seen and b in whole and b not in rich]
    for split, skip in (("test", 0), ("index", 3)):  # a few queries have no answer in index
        rounds = rich * 2 + plain[skip:]
        left = getattr(counts, split) - sum(building.pictures[split] for building in order)
        for n in range(max(left, 0) if rounds else 0):
            rounds[n % len(rounds)].pictures[split] += 1
    for building in order:
        share_takes(building)


def _rank(what: str, building: Building) -> float:
    """A number in [0, 1) that says nothing about the building."""
    return int(digest(SEED, what, building.name), 16) / 16**16


def _long_tail(n: int, total: int) -> list[int]:
    """`n` ascending numbers with sum `total`: from 2 to 30 with median 6 where that fits."""
    place = np.linspace(0, 1, n)
    above = 7.5 * place + 20.5 * place**10  # over the two pictures that each building has
    amounts = [int(2 + x) for x in np.rint(above * min(1.0, max(total - 2 * n, 0) / above.sum()))]
    for k in range(max(0, total - sum(amounts))):
        amounts[k % n] += 1
    return amounts


def share_takes(building: Building) -> None:
    """Give each take to one split, so that each split with pictures has one.

    The rotation that test asks about has its neighbors in index and in train; where a rotation
    has several takes, they go to different splits.
    """
    rng = stream(SEED, "takes", building.name)
    turn, sign = int(rng.integers(4)), int(rng.choice([-1, 1]))
    used = [split for split in ("test", "index", "train") if building.pictures[split]]
    places = {take.rotation: (sign * take.rotation + turn) % 4 for take in building.takes}
    home = dict(zip((0, 3, 1, 2), range(4), strict=True))  # test's rotation, index', train's two
    building.shares = {split: [] for split in used}
    taken: Counter[int] = Counter()
    for take in sorted(building.takes, key=lambda take: places[take.rotation]):
        place = places[take.rotation]
        split = used[(min(home[place], len(used) - 1) + taken[place]) % len(used)]
        taken[place] += 1
        building.shares[split].append(take)
    for split in used:  # few rotations, many takes: the richest split gives one away
        richest = max(used, key=lambda other: len(building.shares[other]))
        if not building.shares[split]:
            building.shares[split].append(building.shares[richest].pop())
