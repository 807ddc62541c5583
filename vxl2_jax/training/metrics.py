"""Metrics of a run: a line of JSON every few steps. A resumed run continues the file as if it had never stopped."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from vxl2_jax.errors import RequestError
from vxl2_jax.storage import jsonl

STEP_METRICS = ("loss", "accuracy", "grad_norm", "learning_rate", "tokens")
"""What every training step returns; a loss may add others."""
_LINE_START = '{"step": '


@dataclass
class Tally:
    """Metrics since the last line and over the whole run. Checkpoints keep it.

    Attributes:
      steps: metrics of the steps since the last line.
      tokens_read: tokens of videos and conversations since the last line.
      window_s: seconds since the last line.
      total_s: seconds of training in all.
      skipped: samples so far that were skipped because their video cannot be read.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    tokens_read: int = 0
    window_s: float = 0.0
    total_s: float = 0.0
    skipped: int = 0

    def add(self, metrics: Mapping[str, Any], tokens_read: int, skipped: int, seconds: float) -> None:
        """Add a step; `metrics` holds scalars."""
        self.steps.append({name: float(value) for name, value in metrics.items()})
        self.tokens_read += tokens_read
        self.skipped += skipped
        self.window_s += seconds
        self.total_s += seconds

    def line(self, step: int, stage: str) -> dict[str, Any]:
        """The line after `step`; starts the next window.

        loss and accuracy are means over the predicted tokens (`tokens`), learning_rate is that of the last step, grad_norm
        and any others are means over steps.
        """
        tokens = math.fsum(one["tokens"] for one in self.steps)

        def token_mean(name: str) -> float:
            return math.fsum(one[name] * one["tokens"] for one in self.steps) / max(tokens, 1.0)

        line = {
            "step": step,
            "stage": stage,
            "loss": token_mean("loss"),
            "accuracy": token_mean("accuracy"),
            "grad_norm": math.fsum(one["grad_norm"] for one in self.steps) / max(len(self.steps), 1),
            "learning_rate": self.steps[-1]["learning_rate"] if self.steps else 0.0,
            "tokens": int(tokens),
            "skipped": self.skipped,
            "tokens_per_s": round(self.tokens_read / max(self.window_s, 1e-9), 1),
            "seconds": round(self.total_s, 3),
        }
        others = {name for one in self.steps for name in one} - set(STEP_METRICS)
        line |= {name: math.fsum(one[name] for one in self.steps) / len(self.steps) for name in sorted(others)}
        self.steps, self.tokens_read, self.window_s = [], 0, 0.0
        return line

    def as_data(self) -> dict[str, Any]:
        """JSON, for `Tally(**…)`."""
        return asdict(self)


def truncate(file: IO[str], path: Path, step: int) -> None:
    """Remove the lines after `step` from a metrics file, and an incomplete line that a killed process left.

    Raises:
      RequestError: for a file that holds anything else; it is not changed.
    """
    length = 0
    try:
        for found, after in jsonl.read(
            file, lambda line: json.loads(line)["step"], lambda line: line.startswith(_LINE_START[: len(line)])
        ):
            if found > step:
                break
            length = after
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RequestError(f"{path}: not a metrics file; choose another out, or remove the file") from error
    jsonl.truncate(file, length)


def append(file: IO[str], line: Mapping[str, Any]) -> None:
    """Append a line."""
    file.write(json.dumps(line) + "\n")
    file.flush()
