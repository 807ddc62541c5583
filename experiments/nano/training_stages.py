"""The stages of the training one after the other; each leaves its state in the run's folder."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from experiments.nano import training_dts, training_frames, training_loop, training_vision
from vxl2_jax.config import ModelConfig
from vxl2_jax.models import video_xl_2

SAVE_EVERY = 100  # steps


def frames(folder: Path, clips: int = 3200, checks: int = 60) -> None:
    """Stage 0: render the banks (about 10 minutes on one core)."""
    training_frames.render(folder / "frames_1", 1, checks)
    training_frames.render(folder / "frames_0", 0, clips)


def vision(folder: Path, config: ModelConfig, steps: int = 2200, size: int = 96, rate: float = 1.5e-3) -> None:
    """Stage 1: the tower as a classifier of patches; the bank may still be growing meanwhile."""
    checks = training_frames.load(folder / "frames_1")
    optimise = training_loop.optimiser(rate, steps)
    params = training_vision.init(jax.random.key(0), config)
    state = {"params": params, "state": optimise.init(params), "step": 0}
    state = training_loop.load(folder / "vision.pickle") or state
    params, moments = jax.tree.map(jax.numpy.asarray, (state["params"], state["state"]))

    def compute(p, pixels, labels):
        return training_vision.loss(p, config, pixels, labels)

    step, check = training_loop.update(compute, optimise), jax.jit(compute)
    log = training_loop.Log(folder / "log.jsonl", "vision")
    bank = None
    for i in range(int(state["step"]), steps):
        if bank is None or i % SAVE_EVERY == 0:
            bank = training_frames.load(folder / "frames_0")
        rng = np.random.default_rng((0, i))
        params, moments, measures = step(params, moments, *training_vision.batch(bank, rng, size))
        log.add(measures)
        if i % SAVE_EVERY == SAVE_EVERY - 1 or i == steps - 1:
            seen = [
                check(params, *training_vision.batch(checks, np.random.default_rng((1, j)), size))[1] for j in range(4)
            ]
            log.write(i + 1, check={key: round(float(np.mean([s[key] for s in seen])), 4) for key in seen[0]})
            training_loop.save(folder / "vision.pickle", params=params, state=moments, step=i + 1)


def features(folder: Path, config: ModelConfig, clips: int = 2400) -> None:
    """Stage 2a: the tower's features of the first `clips` clips and of the checking clips, in fp16."""
    params = training_loop.load(folder / "vision.pickle")["params"]
    some = np.concatenate([training_frames.load(folder / "frames_1").pixels[g] for g in range(0, 720, 10)])
    seen = np.asarray(video_xl_2.frame_features({"vision": params["vision"]}, config, some))
    tower, head = training_vision.settle(params["vision"], params["head"], seen)
    tower = {"vision": tower}
    training_loop.save(folder / "tower.pickle", params=tower, head=head)
    encode = jax.jit(lambda pixels: video_xl_2.frame_features(tower, config, pixels).astype(np.float16))
    for split, count in ((1, None), (0, clips)):
        bank = training_frames.load(folder / f"frames_{split}")
        groups = int(bank.starts[: count and count + 1][-1])
        pixels = bank.pixels[:groups].reshape(-1, *bank.pixels.shape[2:])
        shape = (len(pixels), config.vision.grid**2, config.vision.width)
        out = np.lib.format.open_memmap(folder / f"features_{split}.npy", "w+", np.float16, shape)
        for i in range(0, len(pixels), 256):
            part = pixels[i : i + 256]
            whole = np.concatenate([part, np.zeros((256 - len(part), *part.shape[1:]), np.uint8)])
            out[i : i + 256] = np.asarray(encode(whole))[: len(part)]
        out.flush()


def feature_bank(folder: Path, split: int) -> tuple[training_frames.Frames, np.ndarray, np.ndarray]:
    """The bank, its features [4·G, 49, C] and clip starts, cut to the clips that have features."""
    bank = training_frames.load(folder / f"frames_{split}")
    found = np.load(folder / f"features_{split}.npy", mmap_mode="r")
    return bank, found, bank.starts[4 * bank.starts <= len(found)]


def dts(folder: Path, config: ModelConfig, steps: int = 1200, size: int = 64, rate: float = 1e-3) -> None:
    """Stage 2b: DTS and projector on those features."""
    banks = [feature_bank(folder, split) for split in (0, 1)]
    firsts = [training_dts.windows(starts) for _, _, starts in banks]
    optimise = training_loop.optimiser(rate, steps, warm=60)
    params = training_dts.init(jax.random.key(1), config, training_loop.load(folder / "tower.pickle")["head"])
    state = {"params": params, "state": optimise.init(params), "step": 0}
    state = training_loop.load(folder / "dts.pickle") or state
    params, moments = jax.tree.map(jax.numpy.asarray, (state["params"], state["state"]))

    def compute(p, seen, labels):
        return training_dts.loss(p, config, seen, labels)

    step, check = training_loop.update(compute, optimise), jax.jit(compute)
    log = training_loop.Log(folder / "log.jsonl", "dts")

    def draw(split, rng):
        return training_dts.batch(*banks[split][:2], firsts[split], rng, size)

    for i in range(int(state["step"]), steps):
        params, moments, measures = step(params, moments, *draw(0, np.random.default_rng((0, i))))
        log.add(measures)
        if i % SAVE_EVERY == SAVE_EVERY - 1 or i == steps - 1:
            seen = [check(params, *draw(1, np.random.default_rng((1, j))))[1] for j in range(4)]
            log.write(i + 1, check={key: round(float(np.mean([s[key] for s in seen])), 4) for key in seen[0]})
            training_loop.save(folder / "dts.pickle", params=params, state=moments, step=i + 1)


def visual_tokens(folder: Path, config: ModelConfig) -> None:
    """Stage 2c: the visual tokens of every group that has features, [G, 9, E] in fp16."""
    params = training_loop.load(folder / "dts.pickle")["params"]
    make = jax.jit(lambda seen: training_dts.tokens(params, config, seen).astype(np.float16))
    for split in (1, 0):
        _, found, starts = feature_bank(folder, split)
        groups = found[: 4 * starts[-1]].reshape(-1, 4, *found.shape[1:])
        parts = [np.asarray(make(groups[i : i + 128])) for i in range(0, len(groups), 128)]
        np.save(folder / f"tokens_{split}.npy", np.concatenate(parts))
