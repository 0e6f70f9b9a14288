"""Pictures and titles in one vector: the joins against their twins, masks, runs, precision."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from common.data.tokens import pad_batch
from common.engine.checkpoint import save_weights
from common.engine.optim import parameter_groups
from common.models.build import build, save_parts
from common.models.embedder import Embedder, ModelConfig
from common.models.joint import CrossAttention, Gated, JointConfig, JointEmbedder
from common.models.text import TextConfig, TextEncoder

TITLES = ["red mug 300 ml", "mug", "", "kopi susu 1 kg original promo murah"]
JOINS = ["concat", "gated", "cross_attention"]


def config(join="concat", **settings):
    image = ModelConfig(backbone="test_efficientnet", weights="none", pooling="avg", neck="none")
    text = TextConfig(backbone="bert_tiny", weights="none", max_length=12, neck="none")
    return JointConfig(
        **{"image": image, "text": text, "join": join, "width": 16, "heads": 2, "neck": "none"}
        | settings
    )


def joint(seed=0, **settings):
    torch.manual_seed(seed)
    return JointEmbedder(config(**settings), titles=TITLES)


def batch(model, titles=TITLES):
    tokens = model.tokenizer(titles)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(titles), 3, 64, 64), dtype=torch.uint8, generator=generator)
    return images, pad_batch([tokens[row] for row in range(len(tokens))], tokens.pad)


def saved(folder, model):
    save_parts(model, folder)
    save_weights(folder, {"model": model.state_dict(), "criterion": {}}, {})
    return folder


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("neck", ["none", "fc_bn"])
def test_shapes_and_every_parameter_learns(join, neck):
    model = joint(join=join, neck=neck, dim=8)
    vectors = model(*batch(model))
    assert vectors.shape == (4, model.embedding_dim)
    assert vectors.dtype == torch.float32
    F.normalize(vectors, dim=1)[:, ::2].sum().backward()
    # DistributedDataParallel stops at the first parameter without a gradient.
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("join", JOINS)
def test_padding_has_no_part_in_a_vector(join):
    model = joint(join=join).eval()
    images, tokens = batch(model)
    wide = {k: F.pad(v, (0, 4), value=0) for k, v in tokens.items()}
    wide["input_ids"][:, -4:] = 9
    torch.testing.assert_close(model.embed(images, wide), model.embed(images, tokens))
    alone = [
        model.embed(images[i : i + 1], batch(model, [title])[1]) for i, title in enumerate(TITLES)
    ]
    torch.testing.assert_close(model.embed(images, tokens), torch.cat(alone), rtol=0, atol=1e-5)


def test_a_cosine_of_concat_is_the_mean_of_both_halves():
    model = joint().eval()
    images, tokens = batch(model)
    image, text = model.image.embed(images), model.text.embed(tokens)
    found = model.embed(images, tokens)
    torch.testing.assert_close(found @ found.T, (image @ image.T + text @ text.T) / 2)


def test_a_gate_mixes_dimension_by_dimension():
    torch.manual_seed(0)
    gated = Gated([3, 5], 4).double()
    image, text = (F.normalize(torch.randn(2, n, dtype=torch.float64)) for n in (3, 5))
    image.requires_grad_()
    found = gated(image, text)
    for row in range(2):
        x, y = image[row] * 3**0.5, text[row] * 5**0.5
        for d in range(4):
            z = torch.sigmoid(gated.gate.weight[d] @ torch.cat([x, y]) + gated.gate.bias[d])
            a = torch.tanh(gated.image.weight[d] @ x + gated.image.bias[d])
            b = torch.tanh(gated.text.weight[d] @ y + gated.text.bias[d])
            torch.testing.assert_close(found[row, d], z * a + (1 - z) * b)
    assert torch.autograd.gradcheck(lambda x: gated(x, text), image)


def attention(layer, asking, asked):
    """One head after the other, one question after the other (Vaswani et al. 2017, eq. 1)."""
    width = asking.shape[1]
    wq, wk, wv = layer.in_proj_weight.chunk(3)
    bq, bk, bv = layer.in_proj_bias.chunk(3)
    step, rows = width // layer.num_heads, []
    for question in asking:
        heads = []
        for h in range(layer.num_heads):
            part = slice(h * step, (h + 1) * step)
            q = wq[part] @ question + bq[part]
            weights = torch.stack([q @ (wk[part] @ a + bk[part]) / step**0.5 for a in asked])
            values = torch.stack([wv[part] @ a + bv[part] for a in asked])
            heads.append(weights.softmax(0) @ values)
        rows.append(layer.out_proj.weight @ torch.cat(heads) + layer.out_proj.bias)
    return torch.stack(rows)


def test_cross_attention_equals_its_twin_word_by_word():
    torch.manual_seed(0)
    cross = CrossAttention(6, 10, 8, 2).double()
    image, text = torch.randn(2, 3).double(), torch.randn(2, 4).double()
    maps, states = torch.randn(2, 6, 2, 2).double(), torch.randn(2, 5, 10).double()
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    found = cross(image, text, maps, states, mask)
    for row in range(2):
        words = cross.words(states[row, : mask[row].sum()])
        places = cross.places(torch.stack([maps[row, :, y, x] for y in (0, 1) for x in (0, 1)]))
        seen = (words + attention(cross.at_places, words, places)).mean(0)
        read = (places + attention(cross.at_words, places, words)).mean(0)
        unit = [part / part.norm() for part in (seen, read)]
        expected = torch.cat([image[row], text[row], *unit])
        # The mean over the words is float32 by intent.
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("join", JOINS)
def test_autocast_is_near_float32_and_the_result_is_float32(join):
    model = joint(join=join, neck="fc_bn", dim=8).eval()
    inputs = batch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.embed(*inputs)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, model.embed(*inputs), rtol=0, atol=0.05)


@pytest.mark.parametrize("join", JOINS)
def test_state_goes_through_a_run_folder(tmp_path, join):
    model = joint(join=join, neck="bn")
    model(*batch(model))  # moves BatchNorm
    run = saved(tmp_path, model)
    again = build(model.config, run=run)
    again.load_state_dict(model.state_dict())
    inputs = batch(again.eval())
    assert torch.equal(again.embed(*inputs), model.eval().embed(*inputs))


def test_each_half_starts_from_a_run_of_its_own(tmp_path):
    settings = config()
    settings.image.neck = settings.text.neck = "bn"
    torch.manual_seed(5)
    image = Embedder(settings.image)
    text = TextEncoder(settings.text, titles=TITLES)
    for half in (image, text):
        half.neck.running_mean.uniform_()
    settings.image.weights = str(saved(tmp_path / "image", image))
    settings.text.weights = str(saved(tmp_path / "text", text))
    model = JointEmbedder(settings)  # no titles: the vocabulary is the run's
    images, tokens = batch(model.eval())
    assert torch.equal(model.image.embed(images), image.eval().embed(images))
    assert torch.equal(model.text.embed(tokens), text.eval().embed(tokens))
    assert model.card["image/source"] == model.card["text/source"] == "run"
    # A joint run gives either half as well.
    settings.image.weights = settings.text.weights = str(saved(tmp_path / "both", model))
    torch.manual_seed(6)
    other = JointEmbedder(dataclasses.replace(settings, join="gated")).eval()
    assert torch.equal(other.image.embed(images), image.embed(images))
    assert torch.equal(other.text.embed(tokens), text.embed(tokens))
    settings.text.neck = "fc_bn"
    with pytest.raises(ValueError, match=r"model\.text\.weights=.*another encoder.*config\.yaml"):
        JointEmbedder(settings)


def test_both_backbones_are_pretrained_parts_for_the_optimiser():
    model = joint(neck="fc_bn", dim=8, join="gated")
    groups = parameter_groups(model, torch.nn.Linear(8, 3), lr=1.0, head_lr=2.0, weight_decay=0.1)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == (1.0 if ".backbone." in name else 2.0), name


def test_a_model_section_gives_the_halves_it_uses():
    for uses, kind in (("image", Embedder), ("text", TextEncoder), ("both", JointEmbedder)):
        assert type(build(config(uses=uses), titles=TITLES)) is kind
    assert type(build(config().image)) is Embedder
    assert type(build(config().text, titles=TITLES)) is TextEncoder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"join": "sum"}, "Known: concat, gated, cross_attention"),
        ({"uses": "titles"}, "Known: image, text, both"),
        ({"neck": "bnn"}, r"model\.neck='bnn'; did you mean 'bn'"),
        ({"join": "cross_attention", "heads": 3}, "model.width=16 must be a multiple"),
        ({"text": TextConfig(backbone="bert_tiny")}, r"set model\.text\.weights=none"),
        ({"text": TextConfig(neck="bnn")}, r"model\.text\.neck='bnn'"),
        ({"uses": "text", "text": TextConfig(neck="bnn")}, r"model\.text\.neck='bnn'"),
        ({"image": ModelConfig(weights="/nowhere")}, r"model\.image\.weights=/nowhere is no file"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_their_keys(settings, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(config(**settings), titles=TITLES)
