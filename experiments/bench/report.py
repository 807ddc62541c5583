"""Results: one row per measurement, written after each as JSON and as a Markdown table."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.measure import Ceilings, Timing

OURS, BASELINE = "ours", "baseline"


class NotRun(Exception):
    """Why something was not measured; one line."""


@dataclass(frozen=True)
class Row:
    """One implementation in one case.

    Attributes:
      case: the problem.
      name: the implementation.
      computes: what it computes, of which `flops` and `bytes` are the least; 0: not known.
      timing: None if it was not measured; `note` then says why.
      error, tolerance: relative; NaN is out of tolerance.
      memory_bytes: peak.
      frames: length of the video, over which growth is fitted; 0: no fit.
      details: for the JSON only.
    """

    case: str
    name: str
    computes: str
    flops: float = 0
    bytes: float = 0
    timing: Timing | None = None
    error: float | None = None
    tolerance: float = math.inf
    memory_bytes: float | None = None
    frames: int = 0
    note: str = ""
    kind: str = OURS
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def wrong(self) -> bool:
        return self.error is not None and not self.error <= self.tolerance

    def rates(self, ceilings: Ceilings | None) -> dict[str, Any]:
        """The floor and what bounds it; with a timing also the rates and the share of the ceiling."""
        if ceilings is None or (not self.flops and not self.bytes):
            return {}
        floor_s = ceilings.floor_s(self.flops, self.bytes)
        floor = {"floor_s": floor_s, "bound": ceilings.bound(self.flops, self.bytes)}
        if self.timing is None:
            return floor
        s = self.timing.seconds
        return {**floor, "flops_per_s": self.flops / s, "bytes_per_s": self.bytes / s, "share": floor_s / s}


COLUMNS = (
    "case", "implementation", "computes", "ms", "±", "TFLOP/s", "TB/s", "floor ms", "of the ceiling", "peak MiB",
    "error", "note",
)  # fmt: skip


class Report:
    """Collects rows and keeps the files up to date.

    Args:
      name: of the benchmark; the files are <folder>/<name>.json and .md.
      described: what `machine.describe` returned.
      settings: the arguments of the run.
      ceilings: of the device; None where nothing is compared with them.
      limit_s: seconds after which `attempt` starts nothing.
    """

    def __init__(
        self, name: str, folder: str | Path, described: dict, settings: dict, ceilings: Ceilings | None, limit_s: float
    ):
        self.name, self.folder, self.described, self.settings = name, Path(folder), described, settings
        self.ceilings = ceilings
        self.rows: list[Row] = []
        self.complete = False
        self._end = time.monotonic() + limit_s
        self.folder.mkdir(parents=True, exist_ok=True)
        print(self._heading(), flush=True)

    @property
    def left_s(self) -> float:
        return self._end - time.monotonic()

    @property
    def wrong(self) -> list[Row]:
        """Our own rows that are out of tolerance."""
        return [row for row in self.rows if row.kind == OURS and row.wrong]

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(_line(self._cells(row)), flush=True)
        self.write()

    def attempt(self, row: Row, measure: Callable[[], dict[str, Any]]) -> None:
        """Add `row` with the fields that `measure` returns; where it fails, with the reason as its note."""
        start = time.monotonic()
        if self.left_s <= 0:
            row = replace(row, note="not run: --limit_s is used up")
        else:
            try:
                row = replace(row, **measure())
            except NotRun as reason:
                row = replace(row, note=f"not run: {reason}")
            except Exception as error:  # what one implementation cannot run must not stop the others
                print(f"{type(error).__name__}: {error}"[:2000], file=sys.stderr)
                first = (str(error).strip().splitlines() or ["no message"])[0][:200]
                row = replace(row, note=f"failed: {type(error).__name__}: {first}")
        self.add(replace(row, details={**row.details, "took_s": round(time.monotonic() - start, 1)}))

    def growth(self) -> list[dict[str, Any]]:
        """Per implementation measured at two lengths or more: exponents p of seconds and bytes ≈ c · frames^p."""
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            if row.frames and row.timing and self.described["timings"] == "measured":
                groups.setdefault((row.name, row.computes), []).append(row)
        found = []
        for (name, computes), rows in groups.items():
            fits = {"seconds": exponent([(row.frames, row.timing.seconds) for row in rows])}
            fits["memory_bytes"] = exponent([(row.frames, row.memory_bytes) for row in rows if row.memory_bytes])
            if any(fit is not None for fit in fits.values()):
                found.append({"name": name, "computes": computes, **fits})
        return found

    def write(self) -> None:
        document = {
            "benchmark": self.name,
            "complete": self.complete,
            **self.described,
            "settings": self.settings,
            "ceilings": self.ceilings and asdict(self.ceilings),
            "rows": [self._as_json(row) for row in self.rows],
            "growth": self.growth(),
        }
        _write_atomically(
            self.folder / f"{self.name}.json", json.dumps(_strict(document), indent=1, default=str) + "\n"
        )
        lines = [self._heading(), *(_line(self._cells(row)) for row in self.rows), "", *self.growth_lines(), ""]
        _write_atomically(self.folder / f"{self.name}.md", "\n".join(lines))

    def growth_lines(self) -> list[str]:
        return [
            f"Growth of {one['name']}, {one['computes']}: "
            + ", ".join(f"{what} ∝ frames^{one[key]:.2f}" for what, key in kinds if one[key] is not None)
            for one in self.growth()
            for kinds in [(("seconds", "seconds"), ("peak memory", "memory_bytes"))]
        ]

    def _heading(self) -> str:
        about, top = self.described, self.ceilings
        warning = "" if about["timings"] == "measured" else f"**{about['timings']}.** "
        limits = top and (
            f"Ceilings of this run: {top.flops / 1e12:.4g} TFLOP/s ({top.product}), {top.bytes / 1e12:.3g} TB/s "
            f"({top.copy}, bytes read and written). Floor: the longer of operations and bytes over these; "
        )
        return (
            f"{warning}Benchmark `{self.name}` on {about['device']}, {about['cores']} cores (load {about['load']:.1f} "
            f"before); jax {about['jax']}; Python {about['python']}; commit {about['commit'] or 'unknown'}; "
            f"{about['date']}. {limits or ''}±: difference of rounds.\n\n{_line(COLUMNS)}\n{_line(['---'] * len(COLUMNS))}"
        )

    def _as_json(self, row: Row) -> dict[str, Any]:
        fields = {name: value for name, value in asdict(row).items() if name != "timing"}
        timing = row.timing and {
            "seconds": row.timing.seconds,
            "rounds": row.timing.rounds,
            "spread": row.timing.spread,
        }
        return {**fields, "wrong": row.wrong, **(timing or {"seconds": None}), **row.rates(self.ceilings)}

    def _cells(self, row: Row) -> list[str]:
        rates, timing, note = row.rates(self.ceilings), row.timing, row.note
        if row.wrong:
            note = f"WRONG: error above {row.tolerance:g}; {note}"
        if rates.get("share", 0) > 1.1 and self.described["timings"] == "measured":
            note = f"above the ceiling: do not trust; {note}"

        def cell(value: float | None, format: str) -> str:
            return format.format(value) if value else "–"

        return [
            row.case,
            f"**{row.name}**" if row.kind == OURS else row.name,
            row.computes,
            cell(timing and 1e3 * timing.seconds, "{:.4g}"),
            "–" if timing is None else f"{100 * timing.spread:.1f} %",
            cell(rates.get("flops_per_s", 0) / 1e12, "{:.4g}"),
            cell(rates.get("bytes_per_s", 0) / 1e12, "{:.3g}"),
            cell(1e3 * rates.get("floor_s", 0), "{:.4g}"),
            cell(100 * rates.get("share", 0), "{:.1f} %"),
            cell(row.memory_bytes and row.memory_bytes / 2**20, "{:.0f}"),
            "–" if row.error is None else f"{row.error:.1e}",
            note.strip("; "),
        ]


def exponent(points: Iterable[tuple[float, float]]) -> float | None:
    """p of y ≈ c · x^p for points (x, y) by least squares over logarithms; None for fewer than two x or y ≤ 0."""
    x, y = np.asarray([*points], float).reshape(-1, 2).T
    if len(set(x)) < 2 or y.min() <= 0:
        return None
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def joined(*notes: str) -> str:
    """Notes in one line."""
    return "; ".join(note for note in notes if note)


def _write_atomically(path: Path, content: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _strict(value: Any) -> Any:
    """NaN and infinity, which JSON does not have, as text."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
