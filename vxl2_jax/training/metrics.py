"""The figures of a run: a line of JSON every few steps, which a resumed run continues as if it had never ended."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from vxl2_jax.errors import RequestError

MEASURES = ("loss", "right", "grad_norm", "rate", "tokens")
"""What a step tells."""
_BEGIN = '{"step": '


@dataclass
class Tally:
    """Figures since the last line, and over the whole run; a checkpoint keeps them.

    steps: measures of the steps since the last line; read: tokens since then, of videos and conversations; pace_s:
    seconds since then; seconds: of training in all; unread: examples so far that weighed nothing because of their video.
    """

    steps: list[dict[str, float]] = field(default_factory=list)
    read: int = 0
    pace_s: float = 0.0
    seconds: float = 0.0
    unread: int = 0

    def add(self, measures: Mapping[str, float], read: int, unread: int, seconds: float) -> None:
        """Count a step."""
        self.steps.append({name: float(measures[name]) for name in MEASURES})
        self.read += read
        self.unread += unread
        self.pace_s += seconds
        self.seconds += seconds

    def line(self, step: int, stage: str) -> dict[str, Any]:
        """The line of a step; the tally begins anew.

        loss and right are means over the tokens that were to be predicted (`tokens`), grad_norm is a mean over steps
        and rate that of the last step.
        """
        tokens = math.fsum(one["tokens"] for one in self.steps)

        def over_tokens(name):
            return math.fsum(one[name] * one["tokens"] for one in self.steps) / max(tokens, 1.0)

        told = {
            "step": step,
            "stage": stage,
            "loss": over_tokens("loss"),
            "right": over_tokens("right"),
            "grad_norm": math.fsum(one["grad_norm"] for one in self.steps) / max(len(self.steps), 1),
            "rate": self.steps[-1]["rate"] if self.steps else 0.0,
            "tokens": int(tokens),
            "unread": self.unread,
            "tokens_per_s": round(self.read / max(self.pace_s, 1e-9), 1),
            "seconds": round(self.seconds, 3),
        }
        self.steps, self.read, self.pace_s = [], 0, 0.0
        return told

    def as_data(self) -> dict[str, Any]:
        """JSON, for `Tally(**…)`."""
        return asdict(self)


def cut(file: IO[str], path: Path, step: int) -> None:
    """Remove the lines after `step` from a file of metrics, and the beginning of one that a kill left.

    Raises RequestError for a file that holds anything else, and leaves it alone.
    """
    length = 0
    try:
        for line in file.read().splitlines(keepends=True):
            torn = not line.endswith("\n") and line.startswith(_BEGIN[: len(line)])
            if torn or json.loads(line)["step"] > step:
                break
            length += len(line.encode())
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path}: holds no metrics of a run; choose another out, or remove it") from error
    file.seek(length)
    file.truncate()


def append(file: IO[str], line: Mapping[str, Any]) -> None:
    """Add a line."""
    file.write(json.dumps(line) + "\n")
    file.flush()
