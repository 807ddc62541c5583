"""Language cases: ids with embeddings given, or pixels; and running them as inference does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity.golden import Archive, GoldenError, layout_of
from experiments.parity.vision import encode_frames, pad_video, rebuild
from pallas_kernels.attention import REFERENCE, Kernel
from vxl2_jax import decode, memory, prefill
from vxl2_jax.buckets import round_up
from vxl2_jax.cache import views
from vxl2_jax.config import ModelConfig
from vxl2_jax.layout import Layout, PrefillRule
from vxl2_jax.memory import VideoMemory
from vxl2_jax.models import qwen2
from vxl2_jax.models.rope import rotate, rotation
from vxl2_jax.prefill import DenseCache
from vxl2_jax.sampling import Sampling

_extend = jax.jit(decode.extend, static_argnames=("config", "kernel"))


@dataclass(frozen=True)
class Case:
    """A prompt about a video. ids int32 [L], placeholders in the visual places; visual [G, V, E]."""

    name: str
    layout: Layout
    ids: np.ndarray
    visual: np.ndarray
    frames: int
    pixels: bool

    @property
    def question(self) -> np.ndarray:
        """int32 [N]: the ids after the video."""
        return np.asarray(self.ids[self.layout.length :], np.int32)

    @property
    def global_ids(self) -> np.ndarray:
        """int32 [global_length]: the ids of prefix and timestamps."""
        return np.asarray(self.ids[self.layout.global_positions()], np.int32)


def read_cases(dense: Archive, config: ModelConfig, params: Any, special: dict) -> dict[str, Case]:
    """All cases of prefill_dense.npz, by name."""
    cases = {}
    for found in dense.matching(r"(.+)_inputs_embeds"):
        case = found[1]
        if f"{case}_lowres_u8" not in dense:
            if len(geometry := dense[f"{case}_geom"]) != 4:
                raise GoldenError(f"{dense.name}: {case}_geom must hold frames, V, visual start, visual end")
            frames, visual, start, stop = (int(n) for n in geometry)
            ids, embeds = dense[f"{case}_ids"], dense[found[0]]
            layout = layout_of(ids[start:stop], start, config.visual_placeholder, visual)
            tokens = embeds[layout.visual_positions()].reshape(layout.groups, visual, -1)
            cases[case] = Case(case, layout, ids, tokens, frames, pixels=False)
    for found in dense.matching(r"(.+)_lowres_u8"):
        case = found[1]
        ids, video = dense[f"{case}_input_ids"], dense[f"{case}_time_embedding"]
        places = np.flatnonzero(ids == special["image_token_index"])
        if len(places) != 1:
            raise GoldenError(f"{dense.name}: {case}_input_ids must hold {special['image_token_index']} once")
        frames = rebuild(dense[found[0]], config)
        tokens = np.asarray(encode_frames(params, config, pad_video(frames, config.frames_per_group)))
        layout = layout_of(video, places[0], config.visual_placeholder, tokens.shape[1])
        ids = np.concatenate([ids[: places[0]], video, ids[places[0] + 1 :]])
        cases[case] = Case(case, layout, ids, tokens, len(frames), pixels=True)
    return cases


@dataclass
class Runner:
    """The model, and the memories it has made so far: settings share them.

    `stride` is the number of groups fed at a time; it must not matter. `kernel` is the attention to use, and
    `dtype` that of the caches.
    """

    config: ModelConfig
    params: Any
    stride: int = 4
    kernel: Kernel = REFERENCE
    dtype: Any = jnp.float32

    def __post_init__(self):
        self._watched: dict[tuple[str, PrefillRule], DenseCache] = {}

    def watch(self, case: Case, rule: PrefillRule, keep_hidden: bool = False) -> tuple[DenseCache, np.ndarray | None]:
        """Pre-fill prefix and video. With `keep_hidden` also the residual stream [layout.length, E]."""
        if not keep_hidden and (case.name, rule) in self._watched:
            return self._watched[case.name, rule], None
        sizes = prefill.shape_for(case.layout, self.stride)
        streams = prefill.empty(self.config, sizes, self.dtype)
        padded = np.pad(case.visual, ((0, -case.layout.groups % self.stride), (0, 0), (0, 0)))
        hidden = np.zeros((case.layout.length, self.config.language.width), np.float32)
        for number, stride in enumerate(prefill.plan_strides(case.layout, rule, case.global_ids, sizes)):
            tokens = jnp.asarray(padded[number * self.stride :][: self.stride])
            streams, x = prefill.run_stride(
                self.params, self.config, streams, stride, tokens, keep_hidden=keep_hidden, kernel=self.kernel
            )
            if keep_hidden:
                real = stride.k_end.sum(axis=0) > 0
                hidden[stride.positions[real]] = np.asarray(x)[real]
        if keep_hidden:
            return streams, hidden
        self._watched[case.name, rule] = streams
        return streams, None

    def remember(self, case: Case, rule: PrefillRule, compression: int) -> VideoMemory:
        """The memory of a case's video, as `Model.watch` builds it."""
        streams, _ = self.watch(case, rule)
        theta = self.config.language.rope_theta
        return VideoMemory(
            dense=streams,
            sparse=memory.sparse_level(streams, case.layout, compression, theta),
            layout=case.layout,
            rule=rule,
            compression=compression,
            seconds=tuple(map(float, range(case.layout.groups))),
            end_s=float(case.layout.groups),
            frames=case.frames,
            rope_theta=theta,
        )

    def base(self, case: Case, rule: PrefillRule) -> decode.KVCacheView:
        """The whole dense level, as a question reads it."""
        return views.dense_view(self.remember(case, rule, compression=1), self.kernel)

    def ask(self, case: Case, base: decode.KVCacheView, steps: int) -> decode.Generated:
        """Run the case's question over a base and decode greedily, keeping all logits; without the batch's axis.

        The steps are rounded up, so that runs of a case share a program; the last ones are left out.
        """
        found = decode.generate(
            self.params,
            self.config,
            base,
            case.question[None],
            np.full(1, len(case.question), np.int32),
            Sampling(),
            jax.random.key(0),
            max_new=round_up(max(steps, 1), 8),
            keep_logits=True,
            kernel=self.kernel,
        )
        found = jax.tree.map(lambda of_batch: of_batch[0], found)
        return found._replace(tokens=found.tokens[:steps], logits=found.logits[:steps])

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Residual stream [N, E] → logits [N, vocabulary]."""
        return np.asarray(qwen2.logits(self.params["language"], self.config.language, hidden))

    def natural_cache(self, case: Case, streams: DenseCache, base: decode.KVCacheView, rotated: bool) -> np.ndarray:
        """[layers, 2, K, L, D]: keys and values of the whole prompt in natural order.

        The question's rows come from its pass over the base. Without `rotated`, keys are turned back.
        """
        count = len(case.question)
        tail, first = decode.empty_tail(self.config, base, 1, count), (np.zeros(1, np.int32), np.int32(0))
        tail, _, _ = _extend(self.params, self.config, base, tail, *first, case.question[None], kernel=self.kernel)
        rows = np.zeros((*tail.k.shape[:2], len(case.ids), tail.k.shape[3]), np.float32)
        caches = []
        for part in "kv":
            whole = rows.copy()
            whole[:, :, case.layout.visual_positions()] = getattr(streams.visual, part)[
                :, :, : case.layout.visual_length
            ]
            whole[:, :, case.layout.global_positions()] = getattr(streams.global_, part)[
                :, :, : case.layout.global_length
            ]
            whole[:, :, case.layout.length :] = getattr(tail, part)[:, :, :count]
            caches.append(whole)
        if not rotated:
            caches[0] = turn_back(caches[0], self.config)
        return np.stack(caches, axis=1)


def turn_back(keys: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Undo the rotation of keys [..., S, D] that lie at positions 0 … S − 1."""
    turn = rotation(-np.arange(keys.shape[-2]), config.language.head_width, config.language.rope_theta)
    return np.asarray(rotate(jnp.asarray(keys), *turn))
