"""What a run keeps on disk so that it can resume: Orbax checkpoints under OUT.

    OUT/checkpoints/STEP/   the state, the position in the data, and a note: stage, identity of the run, metrics so far
    OUT/stages/N/           the parameters trained by the stages before the current one

Everything is renamed into place when it is complete; leftovers of a killed process are removed on the next start.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import msgspec
import orbax.checkpoint as ocp

from vxl2_jax import files
from vxl2_jax.checkpoints import native
from vxl2_jax.errors import CheckpointError, RequestError, first_line
from vxl2_jax.training.settings import RunSettings

_NOT_IDENTITY = ("out", "data", "mesh", "remat", "checkpoint", "log_every")
"""Settings that do not change what is computed, but for rounding. Of the data, its content is what counts."""


def identity(settings: RunSettings, data: str, model: str) -> dict[str, Any]:
    """What a run computes, as a flat dict: the settings that matter, and fingerprints of the data and the model."""
    matter = {key: value for key, value in msgspec.to_builtins(settings).items() if key not in _NOT_IDENTITY}
    return _flatten({**matter, "fingerprint of the data": data, "fingerprint of the model": model}, "")


def _flatten(value: Any, path: str) -> dict[str, Any]:
    """{"stages[0].learning_rate": 1e-4, …}, with JSON values."""
    if isinstance(value, Mapping):
        children = [(f"{path}.{key}" if path else str(key), child) for key, child in value.items()]
    elif isinstance(value, (list, tuple)):
        children = [(f"{path}[{index}]", child) for index, child in enumerate(value)]
    else:
        return {path: value}
    return {key: leaf for name, child in children for key, leaf in _flatten(child, name).items()}


_BEFORE = {"weights": "wide"}
"""Settings that earlier versions did not have, with what was done then."""
_FAILED_WRITE = (OSError, ValueError)
"""The latter are TensorStore's."""


class Checkpoints:
    """The checkpoints of one run. Use as a context manager: leaving it waits for pending writes.

    Attributes:
      step: the step of the latest checkpoint; None if there is none.
      note: the JSON dict saved with it.
    """

    def __init__(self, out: str | Path, keep: int, identity: Mapping[str, Any]) -> None:
        """Open OUT.

        Raises:
          RequestError: OUT holds another run, or cannot be written.
          CheckpointError: the latest checkpoint is damaged.
        """
        self._out, self._identity = Path(out).absolute(), dict(identity)
        logging.getLogger("absl").setLevel(
            logging.CRITICAL
        )  # Orbax logs every file, and pages about errors that it raises
        policy = ocp.checkpoint_managers.LatestN(keep)
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
        try:
            self._manager = ocp.CheckpointManager(self._out / "checkpoints", options=options)
        except OSError as error:
            raise RequestError(f"{out}: cannot be written ({error.strerror}); choose another out") from error
        self.step = self._manager.latest_step()
        self.note: dict[str, Any] | None = None
        if self.step is not None:
            self.note = self._read(note=ocp.args.JsonRestore())["note"]
            _check_same(self._out, self.note["identity"], self._identity)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._manager.close()
        except _FAILED_WRITE as error:
            if kind is None:
                raise cannot_be_written(self._out, error) from error

    def save(self, step: int, state: Any, data: grain.DatasetIterator, note: Mapping[str, Any]) -> None:
        """Write a checkpoint, unless there is one of this step. The files are written in the background.

        Raises:
          RequestError: they cannot be written.
        """
        if step in self._manager.all_steps():
            return
        try:
            size = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(state))
            files.check_disk_space(self._out, size)  # Orbax fails in the background, with pages of output
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    data=grain.checkpoint.CheckpointSave(data),
                    note=ocp.args.JsonSave({**note, "identity": self._identity}),
                ),
            )
        except _FAILED_WRITE as error:
            raise cannot_be_written(self._out, error) from error

    def wait(self) -> None:
        """Return when all writes are finished. Raises RequestError if one has failed."""
        try:
            self._manager.wait_until_finished()
        except _FAILED_WRITE as error:
            raise cannot_be_written(self._out, error) from error

    def restore(self, state: Any, data: grain.DatasetIterator) -> Any:
        """The state of the latest checkpoint, with the shardings of `state`. Moves `data` to its position."""
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        restored = self._read(state=ocp.args.StandardRestore(target), data=grain.checkpoint.CheckpointRestore(data))
        return restored["state"]

    def _read(self, **items: Any) -> Any:
        try:
            return self._manager.restore(self.step, args=ocp.args.Composite(**items))
        except (OSError, ValueError, KeyError, TypeError) as error:
            path = self._out / "checkpoints" / str(self.step)
            fix = "remove it to resume from the one before"
            raise CheckpointError(f"{path}: damaged ({first_line(error)}); {fix}") from error

    def save_stage(self, index: int, params: Any) -> None:
        """Keep the trained parameters of a stage for the stages after it."""
        path = self._stage_path(index)
        if path.exists():
            return
        part = path.with_name(f".{path.name}.part")
        if jax.process_index() == 0:
            shutil.rmtree(part, ignore_errors=True)
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            native.write_params(part, params)
            if jax.process_index() == 0:
                os.replace(part, path)
        except _FAILED_WRITE as error:
            raise cannot_be_written(self._out, error) from error

    def load_stage(self, index: int, like: Any) -> Any:
        """The parameters that `save_stage` kept, with the shapes, dtypes and shardings of `like`."""
        path = self._stage_path(index)
        try:
            with ocp.StandardCheckpointer() as reader:
                return reader.restore(path, jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
        except (OSError, ValueError, KeyError) as error:
            fix = "start again in another folder"
            raise CheckpointError(f"{path}: missing or damaged ({first_line(error)}); {fix}") from error

    def _stage_path(self, index: int) -> Path:
        return self._out / "stages" / str(index)


def cannot_be_written(place: Path, error: Exception) -> RequestError:
    """The error of a training run whose files cannot be written."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return RequestError(f"{place}: cannot be written ({reason}); free some space and start again")


def _check_same(out: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise RequestError with the differences between the saved run and the current one."""
    saved = {key: value for key, value in _BEFORE.items() if key in current} | dict(saved)
    keys = [key for key in {**saved, **current} if saved.get(key) != current.get(key)]
    if keys:
        changes = "; ".join(f"{key} was {saved.get(key)} and is {current.get(key)}" for key in keys[:3])
        more = f" (and {len(keys) - 3} more)" if len(keys) > 3 else ""
        raise RequestError(f"{out}: holds another run: {changes}{more}; set these back, or choose another out")
