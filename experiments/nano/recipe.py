"""The recipe: the stages that train nano, each with its data, its loss, how long, and what is trained.

patches   the vision tower names the picture under each patch
tokens    DTS and projector turn each visual token into the direction of its picture's name
answers   the language half answers questions about composed videos of 32 to 512 seconds
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import msgspec
import numpy as np

from experiments.nano import composed, frames, initial_heads, language, vision
from experiments.nano.composed import TokenBank
from experiments.synthetic import files, pictures, questions, vocabulary
from vxl2_jax import config, scope
from vxl2_jax.checkpoints import huggingface
from vxl2_jax.config import ModelConfig
from vxl2_jax.models import video_xl_2
from vxl2_jax.training import loop
from vxl2_jax.training.loop import LoadedBatch, Task
from vxl2_jax.training.settings import CheckpointSettings, RunSettings, Stage

Params = Any
STAGES = (
    Stage("patches", ("vision",), learning_rate=1.5e-3, steps=2200, warmup=100, final_lr_scale=0.02),
    Stage("tokens", ("dts", "projector"), learning_rate=1e-3, steps=1200, warmup=60, final_lr_scale=0.02),
    Stage("answers", ("language",), learning_rate=3e-4, steps=6300, warmup=60, final_lr_scale=0.02),
)
CLIPS = 3200  # of training
CHECKING_CLIPS = 60
PART = 64  # groups that are encoded at a time


def train(out: str, clips: int = CLIPS, steps: int | None = None, log: loop.TrainingLog | None = None) -> Path:
    """Train nano and write OUT/model, in the original's layout. A run that was interrupted is resumed.

    Args:
      out: also keeps the rendered frames and their visual tokens (5 GB).
      clips: number of rendered training clips.
      steps: of every stage, instead of the recipe's, for a trial.

    Raises RequestError for a folder that holds another run.
    """
    stages = tuple(msgspec.structs.replace(stage, steps=steps) if steps else stage for stage in STAGES)
    settings = RunSettings(
        out, stages, weight_decay=0.02, checkpoint=CheckpointSettings(every=100, keep=1), log_every=50
    )
    size, folder = config.nano(len(vocabulary.words())), Path(out)

    def export(target: Path, params: Params) -> None:
        huggingface.save(target, size, jax.tree.map(lambda a: np.asarray(a, np.float16), params), np.float16)
        vocabulary.tokenizer().save(str(target / "tokenizer.json"), pretty=False)
        files.write(target / scope.FILE, files.as_json(msgspec.to_builtins(trained_on())))

    with loop.open_metrics(out) as file:
        banks = [
            frames.open_bank(folder / f"frames_{split}", split, count)
            for split, count in ((0, clips), (1, min(clips, CHECKING_CLIPS)))
        ]
        tasks = [
            vision_task(size, banks, vision.patch_loss, vision.patch_batch),
            vision_task(size, banks, vision.token_loss, vision.token_batch),
            language_task(size, banks, folder),
        ]
        run = loop.Run(settings, tasks, init(size), file, data=f"{clips} clips", model="initial", log=log)
        return run.finish(export)


def trained_on() -> scope.Scope:
    """What the model knows, for scope.json: the library warns about anything else."""
    seconds = questions.GROUP_S * max(language.LENGTHS)
    return scope.Scope(tuple(questions.FORMS.values()), tuple(pictures.load()[0]), seconds, vocabulary.NUMBERS - 1)


def init(size: ModelConfig) -> Params:
    """All parameters before the first stage."""
    key = jax.random.key(0)
    params = {**video_xl_2.init(key, size), "language": initial_heads.init(key, size.language)}
    params["projector"]["linear_out"]["kernel"] *= 0.1  # visual tokens should have about unit length
    return params


def batches(make: Callable[[int], dict[str, np.ndarray]], steps: int) -> grain.DatasetIterator:
    """The batches 0, 1, … of a stage, made in the background."""

    def load(step: int) -> LoadedBatch:
        batch = make(step)
        return LoadedBatch(batch, _tokens(batch), skipped=0)

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return iter(grain.MapDataset.range(steps).map(load).to_iter_dataset(options))


def _tokens(batch: dict[str, np.ndarray]) -> int:
    """Tokens that a step processes: patches or tokens with a label, or those of videos and questions."""
    if "labels" in batch:
        return int(np.prod(batch["labels"].shape[:2]))
    return batch["ids"].size + int((batch["part"] >= 0).sum())


def vision_task(size: ModelConfig, banks: list[frames.Bank], loss: Any, draw: Any) -> Task:
    """A stage of the vision half; checked on clips with footage of the test set."""
    check = jax.jit(lambda params, batch: loss(params, size, batch)[1])

    def evaluate(params: Params) -> dict[str, float]:
        found = [check(params, draw(banks[1], np.random.default_rng((1, i)))) for i in range(4)]
        return {f"check {name}": float(np.mean([one[name] for one in found])) for name in ("pictures", "items")}

    return Task(
        loss=lambda params, batch: loss(params, size, batch),
        open_data=lambda _: batches(lambda step: draw(banks[0], np.random.default_rng((0, step))), 10**6),
        evaluate=evaluate,
    )


def language_task(size: ModelConfig, banks: list[frames.Bank], folder: Path) -> Task:
    """The stage of the language half. The visual tokens of the banks are made when it starts."""
    predict = jax.jit(lambda params, batch: language.forward(params["language"], size.language, batch)[0])
    opened: list[TokenBank] = []

    def open_data(params: Params) -> grain.DatasetIterator:
        opened[:] = [encode(params, size, bank, folder / f"tokens_{bank.split}") for bank in banks]
        return batches(lambda step: language.batch(opened[0], step), 10**6)

    return Task(
        loss=lambda params, batch: language.loss(params["language"], size.language, batch),
        open_data=open_data,
        evaluate=lambda params: language.check(predict, params, opened[1]),
    )


def encode(params: Params, size: ModelConfig, bank: frames.Bank, folder: Path) -> TokenBank:
    """The bank's visual tokens, kept in a folder; what an interrupted run has not encoded is encoded now."""
    groups = len(bank.names)
    compute = jax.jit(lambda pixels: vision.encode(params, size, pixels).astype(np.float16))

    def write(arrays: dict[str, np.ndarray], part: int) -> None:
        here = slice(part * PART, min((part + 1) * PART, groups))
        pixels = np.zeros((PART, *bank.pixels.shape[1:]), np.uint8)
        pixels[: here.stop - here.start] = bank.pixels[here]
        arrays["tokens"][here] = np.asarray(compute(pixels))[: here.stop - here.start]

    shape = (groups, size.visual_tokens, size.language.width)
    about = {"split": bank.split, "groups": groups}
    arrays = frames.fill(folder, about, {"tokens": (np.float16, shape)}, -(-groups // PART), write)
    return composed.token_bank(bank, arrays["tokens"])
