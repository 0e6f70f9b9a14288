"""The net from a listing's picture and title to one vector: an image and a text encoder, joined.

model = JointEmbedder(JointConfig()); vectors = model.embed(images, tokens)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.data.tokens import Tokenizer
from common.models.embedder import Embedder, ModelConfig
from common.models.neck import NECKS, build_neck, choose, neck_output
from common.models.pinned import sha256
from common.models.text import TextConfig, TextEncoder, TokenBatch, masked_mean
from common.models.weights import read_run

USES = ("image", "text", "both")
JOINS = ("concat", "gated", "cross_attention")


@dataclass
class JointConfig:
    """The `model:` section of a competition whose rows have pictures and titles."""

    uses: str = "both"  # image | text | both: which encoders there are
    image: ModelConfig = field(default_factory=ModelConfig)
    text: TextConfig = field(default_factory=TextConfig)
    join: str = "concat"  # concat | gated | cross_attention, for both
    width: int = 512  # of gated, and of the attention
    heads: int = 8  # of the attention
    neck: str = "bn"  # behind the join: none | bn | fc_bn | fc_bn_prelu | fc_swish
    dim: int = 512  # length of the embedding with an fc neck
    dropout: float = 0.0  # on the joined vector, before the neck


class JointEmbedder(nn.Module):
    """Pictures with titles to vectors: `.image`, `.text`, `.join`, `.neck`; `.embedding_dim`.

    `concat` without a neck gives cosines that are the mean of both halves' cosines.

    Args:
        config: see the comments of `JointConfig`. A half whose `weights` are a run folder starts as
            the whole encoder of that run, its neck included.
        run: a run folder of a joint model, whose state dict follows: nothing else is looked for.
        titles: what the vocabulary of a text half without weights is learned from.

    Raises:
        ValueError: a setting that does not exist or does not fit, or a run of another encoder.
        FileNotFoundError: weights or a tokenizer that are not there.
    """

    inputs = ("image", "tokens")  # of a batch, in the order of forward's arguments

    def __init__(
        self,
        config: JointConfig,
        *,
        run: Path | None = None,
        titles: Sequence[str] | np.ndarray = (),
    ) -> None:
        super().__init__()
        choose("model.join", config.join, JOINS)
        choose("model.neck", config.neck, NECKS)
        self.config = config
        self.name = f"{config.image.backbone} + {config.text.backbone}"
        with keys_of("image", ModelConfig):
            start = _run_of(config.image.weights) if run is None else None
            self.image = Embedder(config.image, load=run is None and start is None)
            if start:
                _start(self.image, start, "image")
        with keys_of("text", TextConfig):
            start = _run_of(config.text.weights) if run is None else None
            self.text = TextEncoder(config.text, run=run or start, titles=titles)
            if start:
                _start(self.text, start, "text")
        self.card = {
            f"{half}/{key}": value
            for half in ("image", "text")
            for key, value in getattr(self, half).card.items()
        }
        self.join, joined = _build_join(config, self.image, self.text)
        self.dropout = nn.Dropout(config.dropout)
        self.neck, self.embedding_dim = build_neck(config.neck, joined, config.dim)

    @property
    def backbone(self) -> nn.ModuleList:
        """Both pretrained parts, for the optimiser."""
        return nn.ModuleList([self.image.backbone, self.text.backbone])

    @property
    def tokenizer(self) -> Tokenizer:
        """That of the text half."""
        return self.text.tokenizer

    def forward(self, images: torch.Tensor, tokens: TokenBatch) -> torch.Tensor:
        """Embeddings, `(B, embedding_dim)` float32, not normalised.

        Args:
            images: `(B, 3, H, W)` RGB, uint8 or float in [0, 1].
            tokens: `input_ids` and `attention_mask`, `(B, L)` int64.
        """
        mask = tokens["attention_mask"]
        maps, token = self.image.maps(images)
        states = self.text.states(tokens)
        parts = [self.image.head(maps, token), self.text.head(states, mask)]
        with torch.autocast(images.device.type, enabled=False):
            unit = [F.normalize(part, dim=1) for part in parts]
            joined = self.join(*unit, maps[-1].float(), states.float(), mask)
        return neck_output(self.neck, self.dropout, joined)

    def embed(self, images: torch.Tensor, tokens: TokenBatch) -> torch.Tensor:
        """Unit embeddings, `(B, embedding_dim)` float32; eval and no-grad mode are the caller's."""
        return F.normalize(self(images, tokens).float(), dim=1)


class Concat(nn.Module):
    """Both unit vectors side by side, as Shopee 2021 first normalised before they joined."""

    def forward(self, image: torch.Tensor, text: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        """Joined vectors `(B, D_image + D_text)`."""
        return torch.cat([image, text], 1)


class Gated(nn.Module):
    """A gate that says, dimension by dimension, how much the picture counts and how much the title.

    Arevalo et al., "Gated multimodal units for information fusion", ICLR workshop 2017, 3.1:
    z * tanh(A image) + (1 - z) * tanh(B text) with z = sigmoid(C [image, text]).

    Args:
        dims: lengths of the vectors of pictures and of titles.
        width: length of the result.
    """

    def __init__(self, dims: Sequence[int], width: int) -> None:
        super().__init__()
        self.image, self.text = (nn.Linear(dim, width) for dim in dims)
        self.gate = nn.Linear(sum(dims), width)

    def forward(self, image: torch.Tensor, text: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        """Joined vectors `(B, width)` of unit vectors."""
        # Entries of a unit vector are small; of about 1 they reach the bend of tanh and sigmoid.
        image, text = (part * part.shape[1] ** 0.5 for part in (image, text))
        gate = self.gate(torch.cat([image, text], 1)).sigmoid()
        joined: torch.Tensor = gate * self.image(image).tanh() + (1 - gate) * self.text(text).tanh()
        return joined


class CrossAttention(nn.Module):
    """Beside both unit vectors: words that looked at the picture, places that looked at the title.

    One co-attention layer (Lu et al., ViLBERT, NeurIPS 2019, figure 2b), pooled by the mean over
    the title's words and over the places of the map. Padding is neither looked at nor averaged.

    Args:
        map_dim: channels of the image map.
        state_dim: width of the text transformer.
        width: of the attention.
        heads: that share the width.

    Raises:
        ValueError: a width that the heads cannot share.
    """

    def __init__(self, map_dim: int, state_dim: int, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"model.width={width} must be a multiple of model.heads={heads}.")
        self.places = nn.Sequential(nn.Linear(map_dim, width), nn.LayerNorm(width))
        self.words = nn.Sequential(nn.Linear(state_dim, width), nn.LayerNorm(width))
        self.at_places = nn.MultiheadAttention(width, heads, batch_first=True)
        self.at_words = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        maps: torch.Tensor,
        states: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Joined vectors `(B, D_image + D_text + 2 width)`.

        Args:
            image: `(B, D_image)` unit vectors.
            text: `(B, D_text)` unit vectors.
            maps: `(B, C, H, W)` of the pictures.
            states: `(B, L, H)` of the words.
            mask: `(B, L)`, 0 at padding.
        """
        places, words = self.places(maps.flatten(2).transpose(1, 2)), self.words(states)
        seen, _ = self.at_places(words, places, places, need_weights=False)
        read, _ = self.at_words(
            places, words, words, key_padding_mask=~mask.bool(), need_weights=False
        )
        pooled = masked_mean(words + seen, mask), (places + read).mean(1)
        return torch.cat([image, text, *(F.normalize(part, dim=1) for part in pooled)], 1)


def _build_join(config: JointConfig, image: Embedder, text: TextEncoder) -> tuple[nn.Module, int]:
    """The join and the length of what it gives."""
    dims = [image.embedding_dim, text.embedding_dim]
    if config.join == "gated":
        return Gated(dims, config.width), config.width
    if config.join == "cross_attention":
        attention = CrossAttention(image.map_dims[-1], text.width, config.width, config.heads)
        return attention, sum(dims) + 2 * config.width
    return Concat(), sum(dims)


@contextmanager
def keys_of(half: str, schema: type) -> Iterator[None]:
    """Errors about `model.neck` and the like as what they are here: `model.text.neck`."""
    names = "|".join(item.name for item in fields(schema))
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        said = re.sub(rf"\bmodel\.({names})\b(?!\.)", rf"model.{half}.\1", str(error))
        raise type(error)(said) from None


def _run_of(weights: str) -> Path | None:
    """The run folder that these weights are, if they are one."""
    folder = Path(weights).expanduser()
    return folder if (folder / "weights.safetensors").is_file() else None


def _start(half: Any, run: Path, name: str) -> None:
    """Load a run's whole encoder: that of its kind, or that half of a joint one."""
    state = read_run(run)
    own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
    try:
        half.load_state_dict(own or state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model.weights={run} is a run of another encoder ({reason}): set the keys beside it "
            f"as they are in {run / 'config.yaml'}."
        ) from None
    file = run / "weights.safetensors"
    half.card = {"source": "run", "file": file.name, "sha256": sha256(file)}
