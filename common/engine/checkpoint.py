"""Weights and training state in safetensors, each one file that is whole or absent; no pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from common.paths import atomic, write_text


def save_tree(path: str | Path, tree: dict[str, Any]) -> None:
    """Write nested dicts and lists: tensors as tensors, everything else as JSON in the header.

    Tensors that share memory are stored once each (copied), so any state dict can be given.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain = _split(tree, "", tensors)
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"tree": json.dumps(plain)})


def load_tree(path: str | Path) -> dict[str, Any]:
    """What `save_tree` was given; tensors on the CPU, tuples as lists.

    Raises:
        ValueError: the file is damaged or not ours.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            plain = json.loads(file.metadata()["tree"])
            tree = _join(plain, file)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error}): delete it.") from error
    assert isinstance(tree, dict)
    return tree


def save_weights(folder: Path, tree: dict[str, Any], card: dict[str, Any]) -> None:
    """Write `weights.safetensors` (the card in its header) and `card.json` (the same, to read)."""
    save_tree(folder / "weights.safetensors", {**tree, "card": card})
    write_text(folder / "card.json", json.dumps(card, indent=2) + "\n")


def lasting(module: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict without the parts that set `training_only`: memories, momentum copies.

    Those belong to the state that resuming needs, and can be larger than the model.
    """
    left_out = tuple(
        f"{name}." for name, part in module.named_modules() if getattr(part, "training_only", False)
    )
    return {k: v for k, v in module.state_dict().items() if not k.startswith(left_out)}


def load_lasting(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load what `lasting` gave, strictly; parts that are only for training stay as they are."""
    rest = module.state_dict()
    for name in lasting(module):
        del rest[name]
    module.load_state_dict({**rest, **state})


def fingerprint(path: str | Path) -> str:
    """First 16 hex digits of the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _split(value: Any, key: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": key}
    if isinstance(value, dict):
        # JSON has only string keys; an optimiser's state is keyed by integers.
        if any(isinstance(k, int) for k in value):
            items = [[k, _split(v, f"{key}.{k}", tensors)] for k, v in value.items()]
            return {"__items__": items}
        return {k: _split(v, f"{key}.{k}" if key else k, tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_split(v, f"{key}.{i}", tensors) for i, v in enumerate(value)]
    return value


def _join(value: Any, file: Any) -> Any:
    if isinstance(value, list):
        return [_join(v, file) for v in value]
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return file.get_tensor(value["__tensor__"])
    if "__items__" in value:
        return {k: _join(v, file) for k, v in value["__items__"]}
    return {k: _join(v, file) for k, v in value.items()}
