"""The settings of a run of a benchmark, which are sent to its workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from vxl2_jax import evaluation
from vxl2_jax.evaluation import choices, data, replay
from vxl2_jax.evaluation.data import BenchmarkVideo
from vxl2_jax.evaluation.settings import watch_settings
from vxl2_jax.relevance import oracle


@dataclass(frozen=True)
class BenchmarkRun:
    """The settings of a run.

    Attributes:
      name: the benchmark's, a key of `evaluation.BENCHMARKS`.
      items: its videos with their questions.
      mode: a name for the options.
      watch, ask: options of `Model.watch` and `Model.ask`.
      subtitles: put subtitles into the prompts.
      left_out: what is wrong with each annotation row that was left out.
      answer: one of `choices.WAYS`; for LIKELIHOOD, all rows must have options.
    """

    name: str
    items: Sequence[BenchmarkVideo]
    mode: str
    watch: Mapping[str, Any]
    ask: Mapping[str, Any]
    subtitles: bool = False
    left_out: Sequence[str] = ()
    answer: str = choices.GENERATE

    @property
    def benchmark(self) -> ModuleType:
        """The benchmark's module, which could not be sent to another process."""
        return evaluation.get_benchmark(self.name)

    @property
    def oracle(self) -> str | None:
        """The oracle file or folder to replay, if any."""
        relevance = str(self.ask["relevance"])
        return relevance.removeprefix(oracle.PREFIX) if relevance.startswith(oracle.PREFIX) else None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that all workers of a run share, except for the model's."""
        oracle_digest = {"oracle": replay.digest(self.oracle)} if self.oracle is not None else {}
        return {
            "benchmark": self.name,
            "mode": self.mode,
            "videos": len(self.items),
            "questions": sum(len(item.rows) for item in self.items),
            "subtitles": self.subtitles,
            "answer": self.answer,
            "left_out": list(self.left_out),
            "annotations": data.digest(self.benchmark, self.items),
            "watch": watch_settings(self.watch),
            "ask": dict(self.ask),
            **oracle_digest,
        }
