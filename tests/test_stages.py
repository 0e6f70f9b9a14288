"""Stages are what the net computes, and what is frozen stays as it is through training."""

import copy

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from common.models.pooling import gem
from tests.test_embedder import LITE0, SWIN, VIT, embedder, pictures


@pytest.mark.parametrize("freeze", ["bn", "stem+bn", "bn+2", "all"])
def test_frozen_batch_norm_survives_train(freeze):
    model = embedder(freeze=freeze)
    norms = [m for m in model.backbone.modules() if isinstance(m, _BatchNorm)]
    before = copy.deepcopy([m.state_dict() for m in norms])
    model(pictures())  # frozen before anybody calls train()
    for step in range(2):
        model.train(step == 0).train()
        assert not any(m.training for m in norms)
        assert model.neck.training
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(pictures()).square().sum().backward()
        optimizer.step()
    for norm, state in zip(norms, before, strict=True):
        for name, value in norm.state_dict().items():
            assert torch.equal(value, state[name]), name
    assert model.neck.num_batches_tracked == 3


def test_batch_norm_that_is_not_frozen_learns():
    model = embedder(freeze="stem")
    model(pictures())
    assert model.backbone.bn1.num_batches_tracked == 0
    assert model.backbone.layer1[0].bn1.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("backbone", "freeze", "frozen", "free"),
    [
        ("resnet18", "stem", "conv1.weight", "layer1.0.conv1.weight"),
        ("resnet18", "2", "layer2.1.conv2.weight", "layer3.0.conv1.weight"),
        (LITE0, "1", "blocks.0.0.conv_pw.weight", "blocks.1.0.conv_pw.weight"),
        (VIT, "stem", "pos_embed", "blocks.0.attn.qkv.weight"),
        (SWIN, "2", "layers.1.blocks.1.mlp.fc1.weight", "layers.2.blocks.0.mlp.fc1.weight"),
    ],
)
def test_first_stages_are_frozen(backbone, freeze, frozen, free):
    parameters = dict(embedder(backbone, freeze=freeze).backbone.named_parameters())
    assert not parameters[frozen].requires_grad
    assert parameters[free].requires_grad


def test_freeze_all_trains_neck_and_pooling_on_the_features_of_inference():
    model = embedder(freeze="all", gem_trainable=True, drop_path=0.5, neck="fc_bn", dim=8)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.split(".")[0] for name in trained} == {"pool", "neck"}
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(model.train().backbone(x), model.eval().backbone(x))


def test_stages_of_transformers_are_their_tokens():
    model = embedder(VIT, pooling="avg+cls", neck="none", stages=[-1]).eval()
    images = pictures(side=224)
    tokens = model.backbone.forward_features((images / 255 - model.mean) / model.std)
    expected = torch.cat([tokens[:, 1:].mean(1), tokens[:, 0]], 1)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)

    model = embedder(SWIN, pooling="avg", neck="none", in_size=64).eval()
    images = pictures()
    tokens = model.backbone.forward_features((images / 255 - model.mean) / model.std)
    torch.testing.assert_close(model(images), tokens.mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_stages_are_pooled_alone_and_joined_in_the_order_of_the_net():
    model = embedder(stages=[-1, -2], neck="none", gem_p=2.0).eval()
    images = pictures()
    net = model.backbone
    middle = net.layer3(
        net.layer2(
            net.layer1(
                net.maxpool(net.act1(net.bn1(net.conv1((images / 255 - model.mean) / model.std))))
            )
        )
    )
    expected = torch.cat([gem(middle, 2.0), gem(net.layer4(middle), 2.0)], 1)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
