"""Scripts start without the packages that only their work needs."""

import subprocess
import sys

import pytest

from common.lazy import Lazy
from common.paths import REPOSITORY

HEAVY = [
    "timm",
    "torchvision",
    "transformers",
    "sklearn",
    "lightgbm",
    "matplotlib",
    "faiss",
    "wandb",
]
CODE = f"""
import contextlib, importlib, io, sys
for name in ("landmarks", "shopee", "whale"):
    for script in ("train", "infer", "ensemble"):
        main = importlib.import_module(f"competitions.{{name}}.{{script}}").main
        for word in ("--help", "modle.backbone=x"):
            quiet = contextlib.redirect_stdout(io.StringIO())
            with quiet, contextlib.suppress(SystemExit, ValueError):
                main([word])
print([name for name in {HEAVY} if name in sys.modules])
"""


def test_help_and_errors_import_no_heavy_package():
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_module_is_there_when_something_of_it_is_used(monkeypatch):
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    module = Lazy("colorsys")
    assert "colorsys" not in sys.modules
    assert module.rgb_to_hls(0, 0, 0) == (0, 0, 0)
    assert "colorsys" in sys.modules
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        Lazy("no_such_package").anything  # noqa: B018
