"""Results: a row per measurement, written after each, as JSON and as a Markdown table."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.bench.ceilings import Ceilings
from experiments.bench.measure import Timing

OURS, BASELINE = "ours", "baseline"


@dataclass(frozen=True)
class Row:
    """One implementation in one case. Without a timing, `note` says why.

    flops and bytes are the least that what it computes asks for; error is relative; `details` go to the JSON only.
    """

    case: str
    name: str
    computes: str
    flops: float
    bytes: float
    timing: Timing | None = None
    error: float | None = None
    tolerance: float = math.inf
    note: str = ""
    kind: str = OURS
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def wrong(self) -> bool:
        """Whether the result is out of tolerance; NaN always is."""
        return self.error is not None and not self.error <= self.tolerance


COLUMNS = (
    "case", "implementation", "computes", "ms", "±", "TFLOP/s", "TB/s", "floor ms", "of the ceiling", "error", "note",
)  # fmt: skip


class Report:
    """Collects rows and keeps the files up to date. `describe`: what `machine.describe` gives; `flags`: as run."""

    def __init__(self, name: str, folder: str | Path, described: dict, flags: dict, ceilings: Ceilings, limit_s: float):
        self.name, self.folder, self.described, self.flags = name, Path(folder), described, flags
        self.ceilings = ceilings
        self.rows: list[Row] = []
        self.complete = False
        self._end = time.monotonic() + limit_s
        self.folder.mkdir(parents=True, exist_ok=True)
        print(self.heading(), flush=True)

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

    def attempt(self, make: Callable[[], Row], otherwise: Row) -> None:
        """Add what `make` measures; `otherwise`, with the reason as its note, where it fails or time is up."""
        started = time.monotonic()
        if self.left_s <= 0:
            row = _noted(otherwise, "not begun: --limit_s is used up")
        else:
            try:
                row = make()
            except Exception as error:  # a benchmark that one implementation cannot run goes on with the next
                print(f"{type(error).__name__}: {error}"[:2000], file=sys.stderr)
                row = _noted(otherwise, f"failed: {_first_line(error)}")
        self.add(Row(**{**vars(row), "details": {**row.details, "took_s": round(time.monotonic() - started, 1)}}))

    def write(self) -> None:
        document = {
            "benchmark": self.name,
            "complete": self.complete,
            **self.described,
            "flags": self.flags,
            "ceilings": self.ceilings.as_json(),
            "rows": [self._as_json(row) for row in self.rows],
        }
        replace(self.folder / f"{self.name}.json", json.dumps(_strict(document), indent=1) + "\n")
        replace(self.folder / f"{self.name}.md", self.table())

    def heading(self) -> str:
        """What was measured, where, against what; then the table's head."""
        about, top = self.described, self.ceilings
        versions = ", ".join(f"{name} {about[name]}" for name in ("jax", "torch") if about[name])
        warning = "" if about["timings"] == "measured" else f"**{about['timings']}.** "
        return (
            f"{warning}`bench_{self.name}` on {about['device']}; {versions}; commit {about['commit'] or 'unknown'}; "
            f"{about['date']}. Ceilings of this run: {top.flops / 1e12:.4g} TFLOP/s ({top.product}), "
            f"{top.bytes / 1e12:.3g} TB/s ({top.copy}, bytes read and written). Floor: the longer of operations and "
            f"bytes over these; ±: the same measured twice.\n\n{_line(COLUMNS)}\n{_line(['---'] * len(COLUMNS))}"
        )

    def table(self) -> str:
        return "\n".join([self.heading(), *(_line(self._cells(row)) for row in self.rows), ""])

    def _as_json(self, row: Row) -> dict[str, Any]:
        fields = {name: value for name, value in asdict(row).items() if name != "timing"}
        timing = row.timing and {"seconds": row.timing.seconds, "rounds": list(row.timing), "spread": row.timing.spread}
        return {**fields, "wrong": row.wrong, **(timing or {"seconds": None}), **self.reached(row)}

    def reached(self, row: Row) -> dict[str, Any]:
        """Floor and, where there is a timing, rates and the share of the ceiling."""
        top = self.ceilings
        floor = {"floor_s": top.floor_s(row.flops, row.bytes), "bound": top.bound(row.flops, row.bytes)}
        if row.timing is None:
            return floor
        s = row.timing.seconds
        return {**floor, "flops_per_s": row.flops / s, "bytes_per_s": row.bytes / s, "share": floor["floor_s"] / s}

    def _cells(self, row: Row) -> list[str]:
        name, note = (f"**{row.name}**" if row.kind == OURS else row.name), row.note
        if row.timing is None:
            return [row.case, name, row.computes, *["–"] * 7, note]
        reached = self.reached(row)
        if row.wrong:
            note = f"WRONG: error above {row.tolerance:g}; {note}"
        if reached["share"] > 1.1 and self.described["timings"] == "measured":
            note = f"above the ceiling: do not trust; {note}"
        return [
            row.case,
            name,
            row.computes,
            f"{1e3 * row.timing.seconds:.4g}",
            f"{100 * row.timing.spread:.1f} %",
            f"{reached['flops_per_s'] / 1e12:.4g}",
            f"{reached['bytes_per_s'] / 1e12:.3g}",
            f"{1e3 * reached['floor_s']:.4g}",
            f"{100 * reached['share']:.1f} %",
            "–" if row.error is None else f"{row.error:.1e}",
            note.strip("; "),
        ]


def replace(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _noted(row: Row, note: str) -> Row:
    return Row(**{**vars(row), "note": note})


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _strict(value: Any) -> Any:
    """JSON knows neither NaN nor infinity: they become text."""
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
