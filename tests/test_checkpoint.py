"""State files: any tree of tensors and plain values, whole or refused."""

import pytest
import torch
from torch import nn

from common.engine.checkpoint import fingerprint, load_tree, save_tree, save_weights


def test_optimizer_state_survives(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
    tree = {"optimizer": optimizer.state_dict(), "n": 3, "none": None, "list": [1.5, "a"]}
    save_tree(tmp_path / "s.safetensors", tree)
    found = load_tree(tmp_path / "s.safetensors")
    assert (found["n"], found["none"], found["list"]) == (3, None, [1.5, "a"])
    other = torch.optim.AdamW(model.parameters(), lr=9.0)
    other.load_state_dict(found["optimizer"])
    for mine, theirs in zip(
        other.state_dict()["state"].values(), optimizer.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    assert other.param_groups[0]["lr"] == 0.1


def test_shared_and_strided_tensors_are_stored_by_value(tmp_path):
    whole = torch.arange(6.0).view(2, 3)
    save_tree(tmp_path / "s.safetensors", {"a": whole, "b": whole.T, "c": whole[1]})
    found = load_tree(tmp_path / "s.safetensors")
    assert torch.equal(found["b"], whole.T)
    assert torch.equal(found["c"], whole[1])


def test_infinities_in_the_plain_part(tmp_path):
    save_tree(tmp_path / "s.safetensors", {"best": float("-inf")})
    assert load_tree(tmp_path / "s.safetensors")["best"] == float("-inf")


def test_damage_is_refused(tmp_path):
    path = tmp_path / "s.safetensors"
    save_tree(path, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        load_tree(path)
    with pytest.raises(FileNotFoundError):
        load_tree(tmp_path / "none.safetensors")


def test_weights_carry_their_card(tmp_path):
    save_weights(tmp_path, {"model": {"w": torch.ones(2)}}, {"epoch": 3})
    assert load_tree(tmp_path / "weights.safetensors")["card"] == {"epoch": 3}
    assert '"epoch": 3' in (tmp_path / "card.json").read_text()
    before = fingerprint(tmp_path / "weights.safetensors")
    save_weights(tmp_path, {"model": {"w": torch.zeros(2)}}, {"epoch": 3})
    assert fingerprint(tmp_path / "weights.safetensors") != before
