"""Configurations of models, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP tower. `layers` counts the blocks that are run; the released model skips the tower's 27th."""

    image_size: int = 384
    patch_size: int = 14
    width: int = 1152
    layers: int = 26
    heads: int = 16
    mlp: int = 4304
    norm_eps: float = 1e-6

    @property
    def grid(self) -> int:
        """Patches along one side. Pixels that do not fill a patch are cut off."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class LanguageConfig:
    """Qwen2.5 decoder."""

    width: int = 3584
    layers: int = 28
    heads: int = 28
    kv_heads: int = 4
    head_width: int = 128
    mlp: int = 18944
    vocabulary: int = 152064
    rope_theta: float = 1e6
    norm_eps: float = 1e-6
    tied: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """The whole model.

    resized_grid: side of the feature map after the bilinear resize.
    pool: side of the average-pooling window; a group of `frames_per_group` frames gives (resized_grid / pool)² tokens.
    norm_groups, max_relative: groups of the group norms and maximum relative position in DTS.
    visual_placeholder: token id that marks a visual token in a sequence of ids.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)
    resized_grid: int = 24
    pool: int = 2
    norm_groups: int = 32
    max_relative: int = 64
    visual_placeholder: int = 151654
    stop_tokens: tuple[int, ...] = (151645, 151643)
    frames_per_group: int = 4

    @property
    def visual_tokens(self) -> int:
        """Visual tokens per group (V)."""
        return (self.resized_grid // self.pool) ** 2


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
