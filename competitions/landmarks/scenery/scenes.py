"""Scenes: a building among other things, or a place without one, seen by a bad camera."""

from __future__ import annotations

import cv2
import numpy as np

from common.data.sample import (
    Image,
    Prop,
    compose,
    degrade,
    photograph,
    relight,
    resize,
    shadow,
    tint,
    trim,
    view,
)

from .art import Art, trimmed
from .ground import TILE, Ground, paint_ground

ASPECTS = (16 / 9, 3 / 2, 4 / 3, 4 / 3, 1.0, 3 / 4, 3 / 4, 2 / 3)
# How hard the sample is: share of the picture that a building's box covers, strength of the light's
# changes, blur in pixels, sensor noise, degrees of roll, perspective, hidden share of a building.
SHARE, LIGHT, BLUR, NOISE, ROLL, TILT, HIDDEN = (0.45, 0.8), 0.35, 0.45, 0.008, 5.0, 0.06, 0.15
LONGEST = (192, 224)  # pixels on the longer side

EMPTY = {  # a place without a building: ground, the thing looked at, how much of what is around
    "forest": ("meadow", "trees", {"trees": 9.0, "bushes": 1.0, "stones": 0.5}),
    "grove": ("road", "trees", {"trees": 3.0, "people": 1.0, "stones": 1.0}),
    "ship": ("sea", "ships", {"ships": 0.3}),
    "harbor": ("shore", "ships", {"ships": 1.5, "trees": 1.0, "people": 0.5}),
    "mountain": ("meadow", "mountains", {"trees": 2.0, "stones": 1.0}),
    "crowd": ("paved", "people", {"people": 8.0}),
    "animal": ("meadow", "animals", {"animals": 2.0, "trees": 1.0}),
    "deposit": ("meadow", "deposits", {"trees": 1.5, "stones": 2.0}),
    "wall": ("road", "walls", {"walls": 1.5, "people": 1.0, "trees": 1.0}),
    "beach": ("sand", "stones", {"stones": 4.0, "trees": 0.3, "people": 0.5}),
    "road": ("paved", "people", {"trees": 1.0, "people": 1.0, "stones": 1.0}),
}


def landmark_scene(art: Art, frame: Image, rng: np.random.Generator) -> Image:
    """A picture of the building in `frame`, which covers a quarter to 70 % of it."""
    building = tint(trim(frame), rng, strength=0.06)
    high, wide = building.shape[:2]
    size = _view_size(high * wide / rng.uniform(*SHARE), rng, at_least=(0.9 * wide, 0.9 * high))
    kind = ("meadow", "meadow", "shore", "shore", "road", "paved", "sand")[rng.integers(7)]
    ground = paint_ground(art, _canvas(size), rng, kind=kind, clear=wide / TILE / 2 + 0.5)
    height, width = ground.canvas.shape[:2]
    # A building stands on a diamond twice as wide as high; its middle is the canvas' middle.
    subject = Prop(building, width / 2, height / 2 + wide / 4)
    around = {"trees": rng.choice([0, 0.5, 1.5, 3]), "walls": rng.choice([0, 0, 0, 0.7])}
    around |= {"people": rng.choice([0, 1, 2]), "stones": 0.8, "bushes": 0.5, "animals": 0.2}
    around |= {"ships": 0.5}
    props = scatter(art, ground, rng, around, footprint=wide / 2)
    props += occluders(art, subject, rng)
    props += [_shadow(subject, rng.uniform(-0.6, 0.6), rng.uniform(0, 0.35))]
    compose(ground.canvas, props, subject, max_hidden=HIDDEN)
    return _take(ground.canvas, subject, size, rng, shift=0.09)


def empty_scene(art: Art, rng: np.random.Generator) -> Image:
    """A picture without a landmark: a forest, ships, people, animals, a mountain, a shore."""
    places = [place for place in EMPTY.values() if art.groups.get(place[1])]
    kind, group, around = places[rng.integers(len(places))] if places else ("meadow", "", {})
    path = art.pick(group, rng)
    focus = np.zeros((TILE, TILE, 4), np.float32)
    if path is not None:
        focus = tint(trimmed(path), rng, strength=0.08)
    high, wide = focus.shape[:2]
    area = max(high * wide / rng.uniform(0.15, 0.6), 70.0**2)
    size = _view_size(area, rng, at_least=(0.8 * wide, 0.8 * high))
    ground = paint_ground(art, _canvas(size), rng, kind=kind, clear=rng.uniform(-1, 2))
    height, width = ground.canvas.shape[:2]
    subject = Prop(focus, width / 2, height / 2 + high / 2)
    props = scatter(art, ground, rng, around)
    if ground.wet(subject.x, subject.y) == (group == "ships"):
        props += [_shadow(subject, rng.uniform(-0.6, 0.6), rng.uniform(0, 0.3)), subject]
    compose(ground.canvas, props)
    return _take(ground.canvas, subject, size, rng, shift=0.12)


def scatter(
    art: Art,
    ground: Ground,
    rng: np.random.Generator,
    groups: dict[str, float],
    *,
    footprint: float = 0.0,
) -> list[Prop]:
    """Things that stand about: `groups` says how many of each per 100 x 100 pixels, on average.

    Land things avoid water, ships avoid land, and all avoid the diamond in the middle that is
    `footprint` pixels from its middle to its left corner.
    """
    height, width = ground.canvas.shape[:2]
    slope, darkness = rng.uniform(-0.8, 0.8), rng.uniform(0.1, 0.4)
    props: list[Prop] = []
    for group, density in groups.items():
        kinds = [art.species(group, rng) for _ in range(int(rng.integers(1, 4)))]
        for _ in range(int(rng.poisson(density * height * width / 1e4))):
            x, y = float(rng.uniform(0, width)), float(rng.uniform(0, height * 1.1))
            drawings = kinds[rng.integers(len(kinds))]
            if not drawings or ground.wet(x, y) != (group == "ships"):
                continue
            across, down = abs(x - width / 2), 2 * abs(y - height / 2)
            if across / (footprint + 10) + down / (footprint + 14) < 1:
                continue
            drawing = trimmed(drawings[rng.integers(len(drawings))])
            thing = tint(resize(drawing, float(np.exp(rng.normal(0, 0.15)))), rng, strength=0.1)
            prop = Prop(thing, x, y)
            props += [_shadow(prop, slope, darkness), prop]
    return props


def occluders(art: Art, subject: Prop, rng: np.random.Generator) -> list[Prop]:
    """Things between camera and subject: some at its walls, one near and out of focus."""
    high, wide = subject.sprite.shape[:2]
    props = []
    for _ in range(int(rng.integers(0, 4))):
        path = art.pick(("trees", "trees", "people", "walls", "bushes")[rng.integers(5)], rng)
        if path is not None:
            thing = resize(tint(trimmed(path), rng, strength=0.1), rng.uniform(0.8, 1.4))
            x = subject.x + rng.uniform(-0.55, 0.55) * wide
            props.append(Prop(thing, x, subject.y + rng.uniform(0, 0.35) * high))
    path = art.pick("trees", rng)
    if path is not None and rng.random() < 0.25:
        near = np.pad(resize(trimmed(path), rng.uniform(1.8, 2.6)), ((8, 8), (8, 8), (0, 0)))
        near = cv2.GaussianBlur(near, (0, 0), rng.uniform(1.5, 3))
        x = subject.x + rng.choice([-1, 1]) * rng.uniform(0.5, 0.8) * wide
        props.append(Prop(np.asarray(near, np.float32), x, subject.y + 0.8 * high))
    return props


def _shadow(prop: Prop, slope: float, darkness: float) -> Prop:
    """The prop's shadow, a hair farther away than the prop itself."""
    cast = shadow(prop.sprite, slope=slope, length=0.35, darkness=darkness)
    return Prop(cast, prop.x + slope * prop.sprite.shape[0] / 2, prop.y - 0.01)


def _view_size(
    area: float, rng: np.random.Generator, *, at_least: tuple[float, float]
) -> tuple[float, float]:
    """Width and height of a view of `area` pixels; larger where a side would be too short."""
    aspect = ASPECTS[rng.integers(len(ASPECTS))]
    width, height = float(np.sqrt(area * aspect)), float(np.sqrt(area / aspect))
    grow = max(1.0, at_least[0] / width, at_least[1] / height)
    return width * grow, height * grow


def _canvas(size: tuple[float, float]) -> tuple[int, int]:
    """A canvas on which a view of `size` can shift, roll and tilt."""
    return round(size[0] * 1.5 + 60), round(size[1] * 1.5 + 60)


def _take(
    canvas: Image,
    subject: Prop,
    size: tuple[float, float],
    rng: np.random.Generator,
    *,
    shift: float,
) -> Image:
    """The finished picture: the subject off its middle by about `shift` of the sides."""
    scale = int(rng.integers(LONGEST[0], LONGEST[1] + 1)) / max(size)
    shape = (round(size[0] * scale), round(size[1] * scale))
    x = subject.x + rng.normal(0, shift) * size[0]
    y = subject.y - subject.sprite.shape[0] / 2 + rng.normal(0, shift) * size[1]
    corners = view((canvas.shape[1], canvas.shape[0]), (x, y), size, rng, roll=ROLL, tilt=TILT)
    picture = relight(photograph(canvas, corners, shape), rng, strength=LIGHT)
    return degrade(picture, rng, blur=BLUR, noise=NOISE)
