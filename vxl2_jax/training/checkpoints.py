"""What a run keeps on disk so that it can go on after any end: Orbax checkpoints under OUT.

    OUT/checkpoints/STEP/   the state, the place in the data, and a note: stage, identity of the run, figures so far
    OUT/stages/N/           the parameters that the stages before the present one have learnt

Everything takes its name when it is complete; what a kill left behind is removed on the next start.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp

from vxl2_jax.errors import CheckpointError, RequestError, first_line
from vxl2_jax.training.settings import TrainingSettings

_ELSEWHERE = ("out", "data", "mesh", "remat", "checkpoint", "log_every")
"""Settings that do not change what is computed, save for rounding; of the data its content counts."""


def identity(settings: TrainingSettings, data: str, model: str) -> dict[str, Any]:
    """What decides the curve of a run, flat: the settings that do, and fingerprints of the data and of the model."""
    told = {key: value for key, value in dataclasses.asdict(settings).items() if key not in _ELSEWHERE}
    return _flat({**told, "fingerprint of the data": data, "fingerprint of the model": model}, "")


def _flat(value: Any, at: str) -> dict[str, Any]:
    """{"stages[0].rate": 1e-4, …}, of JSON's types."""
    if isinstance(value, Mapping):
        parts = [(f"{at}.{key}" if at else str(key), one) for key, one in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{at}[{number}]", one) for number, one in enumerate(value)]
    else:
        return {at: value}
    return {key: leaf for name, one in parts for key, leaf in _flat(one, name).items()}


class Checkpoints:
    """The checkpoints of one run. Use as a context: leaving waits for what is being written.

    `note`, a dict of JSON, is that of the latest checkpoint, None where there is none.
    """

    def __init__(self, out: str | Path, keep: int, identity: Mapping[str, Any]):
        """Raises RequestError if OUT holds another run's, or cannot be written; CheckpointError if they are damaged."""
        self._out, self._identity = Path(out).absolute(), dict(identity)
        logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax tells every file it touches
        policy = ocp.checkpoint_managers.LatestN(keep)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
        try:
            self._manager = ocp.CheckpointManager(self._out / "checkpoints", options=options)
        except OSError as error:
            raise RequestError(f"{out}: cannot be written ({error.strerror}); choose another place") from error
        self.step = self._manager.latest_step()
        self.note: dict[str, Any] | None = None
        if self.step is not None:
            self.note = self._restored(note=ocp.args.JsonRestore())["note"]
            _check_same(self._out, self.note["identity"], self._identity)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, step: int, state: Any, data: grain.DatasetIterator, note: Mapping[str, Any]) -> None:
        """Write a checkpoint, unless that of this step is there. Returns when the arrays may change again; the files
        are written behind. Raises RequestError when they cannot be."""
        if step in self._manager.all_steps():
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=grain.checkpoint.CheckpointSave(data),
                    note=ocp.args.JsonSave({**note, "identity": self._identity}),
                ),
            )
        except OSError as error:
            raise RequestError(f"{self._out}: cannot be written ({error}); free some space and start again") from error

    def wait(self) -> None:
        """Return when everything is on disk."""
        self._manager.wait_until_finished()

    def restore(self, state: Any, data: grain.DatasetIterator) -> Any:
        """The state of the latest checkpoint, laid out like `state`; `data` moves to its place."""
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        found = self._restored(state=ocp.args.StandardRestore(target), data=grain.checkpoint.CheckpointRestore(data))
        return found["state"]

    def _restored(self, **wanted: Any) -> Any:
        try:
            return self._manager.restore(self.step, args=ocp.args.Composite(**wanted))
        except (OSError, ValueError, KeyError, TypeError) as error:
            where = self._out / "checkpoints" / str(self.step)
            told = f"damaged ({first_line(error)}); remove it to go on from the one before"
            raise CheckpointError(f"{where}: {told}") from error

    def keep_stage(self, number: int, learnt: Any) -> None:
        """Keep what a stage has learnt, for those after it."""
        path = self._stage(number)
        if path.exists():
            return
        part = path.with_name(f".{path.name}.part")
        if jax.process_index() == 0:
            shutil.rmtree(part, ignore_errors=True)
        with ocp.StandardCheckpointer() as writer:
            writer.save(part, learnt)
        if jax.process_index() == 0:
            os.replace(part, path)

    def stage(self, number: int, like: Any) -> Any:
        """What `keep_stage` kept, laid out like the parameters `like`."""
        try:
            with ocp.StandardCheckpointer() as reader:
                return reader.restore(self._stage(number), jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{self._stage(number)}: missing or damaged ({first_line(error)}); start again in another folder"
            ) from error

    def _stage(self, number: int) -> Path:
        return self._out / "stages" / str(number)


def _check_same(out: Path, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise RequestError naming what differs between a run that is there and the one wanted."""
    keys = [key for key in {**kept, **wanted} if kept.get(key) != wanted.get(key)]
    if keys:
        told = "; ".join(f"{key} was {kept.get(key)} and is {wanted.get(key)}" for key in keys[:3])
        more = f" (and {len(keys) - 3} more)" if len(keys) > 3 else ""
        raise RequestError(f"{out}: holds another run: {told}{more}; set these back, or give another out")
