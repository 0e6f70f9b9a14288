"""What is wrong with a ranking step and shows only when it runs, said before any long work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from common.rerank.blending import NO_THRESHOLDS
from common.rerank.calibrate import calibration
from common.rerank.fusion import fusion
from common.rerank.hooks import load_hook
from common.rerank.listmodel import ListwiseReranker
from common.rerank.matching import Settings, matcher_settings
from common.rerank.networks import check_weights


def check_step(step: Mapping[str, Any]) -> None:
    """Raise for a step whose function, features, matcher or weights are not there.

    Of a step whose arguments are already known to fit, `{name: ..., ...}`.

    Raises:
        ValueError: an unknown setting; a hook that cannot be imported.
        FileNotFoundError: weights that are not installed, or not given.
    """
    if step["name"] == "hook":
        load_hook(step.get("function", ""), step.get("arguments"))
    if step["name"] in ("local", "plausible"):
        known = {item.name for item in fields(Settings)}
        given = {key: value for key, value in step.items() if key in known}
        _check(matcher_settings({"features": "rootsift", **given}))
    if step["name"] in ("inb", "neighborhood_blending") and not step.get("thresholds"):
        raise ValueError(NO_THRESHOLDS)
    if step["name"] == "listwise" and step.get("weights"):
        ListwiseReranker.load(step["weights"])
    if step["name"] == "wild_fusion":
        matchers = step.get("matchers", ["rootsift"])
        fusion(step.get("weights", ()), len(matchers) + 1)
        calibration(step.get("calibration", "isotonic"))
        for one in matchers:
            _check(matcher_settings(one))


def _check(settings: Settings) -> None:
    check_weights(
        settings.features,
        settings.weights,
        settings.matcher == "lightglue",
        settings.matcher_weights,
    )
