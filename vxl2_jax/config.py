"""Configurations of models, as frozen dataclasses. The annotations carry the bounds against which the files of a
checkpoint are validated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from msgspec import Meta

Size = Annotated[int, Meta(ge=1, le=2**20)]
"""A width, the side of an image in pixels, or a count of rows."""
Grid = Annotated[int, Meta(ge=1, le=64)]
Layers = Annotated[int, Meta(ge=1, le=1024)]
Heads = Annotated[int, Meta(ge=1, le=4096)]
TokenId = Annotated[int, Meta(ge=0, lt=2**24)]
Vocabulary = Annotated[int, Meta(ge=1, le=2**24)]
RopeTheta = Annotated[float, Meta(ge=1, le=1e12)]
Epsilon = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP tower.

    image_size, patch_size: in pixels; width: of the residual stream; mlp: hidden width of the MLPs. `layers` counts the
    blocks that are run; the released model skips the tower's 27th. Raises ValueError for sizes that do not fit each other.
    """

    image_size: Size = 384
    patch_size: Size = 14
    width: Size = 1152
    layers: Layers = 26
    heads: Heads = 16
    mlp: Size = 4304
    norm_eps: Epsilon = 1e-6

    def __post_init__(self) -> None:
        _check_multiple("the vision tower's width", self.width, "heads", self.heads)

    @property
    def grid(self) -> int:
        """Patches along one side. Pixels that do not fill a patch are cut off."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class LanguageConfig:
    """Qwen2.5 decoder. Raises ValueError for sizes that do not fit each other.

    axis: the mesh axis over which heads and MLP channels are sharded, see `ShardedLanguageConfig`; sequence: the mesh axis
    over which the video is sharded, see `SequenceLanguageConfig`; None: not sharded.
    width: E, of the residual stream; head_width: D; mlp: hidden width of the MLPs; rope_theta: base of the rotary
    frequencies; tied: the head is the embedding table.
    """

    axis: ClassVar[str | None] = None
    sequence: ClassVar[str | None] = None
    width: Size = 3584
    layers: Layers = 28
    heads: Heads = 28
    kv_heads: Heads = 4
    head_width: Size = 128
    mlp: Size = 18944
    vocabulary: Vocabulary = 152064
    rope_theta: RopeTheta = 1e6
    norm_eps: Epsilon = 1e-6
    tied: bool = False

    def __post_init__(self) -> None:
        _check_multiple("the number of attention heads", self.heads, "key/value heads", self.kv_heads)
        _check_multiple("the width of an attention head", self.head_width, "halves", 2)


@dataclass(frozen=True)
class ShardedLanguageConfig(LanguageConfig):
    """One device's shard of a decoder (see `tensor_parallel`): `heads`, `kv_heads` and `mlp` count those of the shard."""

    axis: ClassVar[str] = "model"


@dataclass(frozen=True)
class SequenceLanguageConfig(ShardedLanguageConfig):
    """The same where the video is sharded as well (see `sequence_parallel`): each device attends to its own keys."""

    sequence: ClassVar[str] = "sequence"


@dataclass(frozen=True)
class ModelConfig:
    """The whole model. Raises ValueError for sizes that do not fit each other.

    resized_grid: side of the feature map after the bilinear resize.
    pool: side of the average-pooling window; a group of `frames_per_group` frames gives (resized_grid / pool)² tokens.
    norm_groups, max_relative: groups of the group norms and maximum relative position in DTS.
    visual_placeholder: token id that marks a visual token in a sequence of ids.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    resized_grid: Grid = 24
    pool: Grid = 2
    norm_groups: Size = 32
    max_relative: Size = 64
    visual_placeholder: TokenId = 151654
    stop_tokens: tuple[TokenId, ...] = (151645, 151643)
    frames_per_group: Literal[4] = 4

    def __post_init__(self) -> None:
        _check_multiple("resized_grid", self.resized_grid, "pool", self.pool)
        _check_multiple("the vision tower's width", self.vision.width, "norm_groups", self.norm_groups)

    @property
    def visual_tokens(self) -> int:
        """Visual tokens per group (V)."""
        return (self.resized_grid // self.pool) ** 2


def _check_multiple(name: str, size: int, of: str, parts: int) -> None:
    if parts < 1 or size % parts:
        raise ValueError(f"{name}, {size}, must be a multiple of {parts} ({of})")


def video_xl_2() -> ModelConfig:
    """The released Video-XL-2: SigLIP-SO400M/14-384, DTS, Qwen2.5-7B; 144 tokens per 4 frames."""
    return ModelConfig()


def nano(vocabulary: int) -> ModelConfig:
    """The small Video-XL-2 that is part of the package: 98-pixel frames, 9 tokens per 4 frames."""
    return ModelConfig(
        vision=VisionConfig(image_size=98, patch_size=14, width=128, layers=4, heads=4, mlp=512),
        language=LanguageConfig(
            width=192,
            layers=6,
            heads=4,
            kv_heads=4,
            head_width=64,
            mlp=512,
            vocabulary=vocabulary,
            rope_theta=1e6,
            tied=True,
        ),
        resized_grid=6,
        visual_placeholder=1,
        stop_tokens=(3,),
    )
