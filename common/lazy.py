"""Packages that take seconds to import, imported when something of them is first used.

    timm = Lazy("timm")
    timm.create_model("resnet50")  # now it is there

Help, wrong keys and checks of submissions need none of them.
"""

from __future__ import annotations

import importlib
from typing import Any


class Lazy:
    """Stands for a module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)
