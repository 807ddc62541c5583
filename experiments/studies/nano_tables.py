"""The tables of docs/results/nano.md, from the reports of `python -m experiments.studies nano` for several seeds.

    python -m experiments.studies nano --questions 400 --seed 7 --out experiments/results/nano/seed7
    python -m experiments.studies.nano_tables experiments/results/nano/seed*.json

Counts are summed over the seeds. The page has the output between `<!-- nano table -->` and `<!-- /nano table -->`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from experiments import start
from experiments.studies.statistics import markdown
from vxl2_jax.evaluation.intervals import wilson

Report = dict[str, Any]
EXAMPLES = {
    "exists": ("Is there a dog?", "yes / no"),
    "first": ("Which comes first, the dog or the car?", "the dog"),
    "when": ("When does the dog first appear? (within 4 s)", "at 12 seconds"),
    "what": ("What appears at 13 seconds?", "a dog"),
    "count": ("How many times does the dog appear?", "twice"),
    "between": ("What appears between the dog and the car?", "an owl"),
    "order": ("What appears, in order, from the dog to the car?", "a dog, an owl, a car"),
}


def read(path: Path) -> Report:
    """A report. Exits with a message if it is none."""
    try:
        report = json.loads(path.read_text())
        report["ranges"], report["settings"]["seed"]
    except OSError as error:
        sys.exit(f"nano_tables: {path}: cannot be read ({error.strerror})")
    except (ValueError, KeyError, TypeError):
        sys.exit(f"nano_tables: {path}: not a report of the study nano; make one with --out {path.with_suffix('')}")
    return report


def pooled(parts: Sequence[Report]) -> tuple[int, int]:
    """(correct, questions) of several rates."""
    counts = [
        (round(part["accuracy"] * part["questions"] / 100), part["questions"]) for part in parts if part["questions"]
    ]
    return sum(right for right, _ in counts), sum(total for _, total in counts)


def rate(parts: Sequence[Report]) -> str:
    """Percent correct with its 95 % interval."""
    right, total = pooled(parts)
    low, high = wilson(right, total)
    return f"{100 * right / total:.1f} % ({low:.1f} – {high:.1f})" if total else "–"


def difference(parts: Sequence[Report]) -> str:
    """Percentage points with their 95 % interval; seeds are independent."""
    parts = [part for part in parts if part["questions"]]
    total = sum(part["questions"] for part in parts)
    if not total:
        return "–"
    mean = sum(part["points"] * part["questions"] for part in parts) / total
    halves = [part["questions"] * (part["interval"][1] - part["interval"][0]) / 2 for part in parts]
    half = sqrt(sum(each**2 for each in halves)) / total
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def modes_table(reports: Sequence[Report]) -> str:
    """Accuracies by mode: a column per seed, then all seeds together."""
    seeds = [f"seed {report['settings']['seed']}" for report in reports]
    rows = []
    for clips, part in reports[0]["ranges"].items():
        for mode in part["modes"]:
            parts = [report["ranges"][clips]["modes"][mode] for report in reports]
            ratio = f"{100 * sum(part['cache_ratio'] for part in parts) / len(parts):.0f} %"
            each = [f"{part['accuracy']:.1f}" for part in parts]
            inside = rate([part["inside"] for part in parts])
            reading = reading_of(mode, reports[0]["settings"])
            rows.append([f"{clips} s", mode_name(mode), reading, ratio, *each, rate(parts), inside])
    header = [
        "clips",
        "mode",
        "chunk size, top-k, compression",
        "key/value bytes",
        *seeds,
        "together (95 %)",
        "evidence to be chosen",
    ]
    return markdown(header, rows, left=3)


def reading_of(mode: str, settings: Report) -> str:
    """Chunk size, top-k and compression of a mode: "1, fits 62 %, 8"."""
    if mode in ("dense", "chunked"):
        return "all dense"
    _, percent, *more = mode.split("_")
    by = next((part[2:] for part in more if part.startswith("by")), settings["compression"])
    return f"{settings['chunk_size']}, fits {percent} %, {by}"


def mode_name(mode: str) -> str:
    """ "bilevel_62_by2_random" → "both, at random, pooled by 2"."""
    if mode in ("dense", "chunked"):
        return {"dense": "dense", "chunked": "chunked pre-fill, whole cache"}[mode]
    chosen = "at random" if mode.endswith("_random") else "by attention"
    return f"both, {chosen}{_pooling(mode)}"


def _pooling(mode: str) -> str:
    return "".join(f", pooled by {part[2:]}" for part in mode.split("_") if part.startswith("by"))


def differences_table(reports: Sequence[Report]) -> str:
    """Paired differences over the same questions."""
    rows = []
    for clips, part in reports[0]["ranges"].items():
        found = [report["ranges"][clips]["differences"] for report in reports]
        for name in part["differences"]:
            if not name.endswith(", inside"):
                one, other = name.split(" - ")
                other = "at random" if other.endswith("random") else other
                pair = f"bi-level {one.split('_')[1]} %{_pooling(one)} − {other}"
                inside = [each[f"{name}, inside"] for each in found if f"{name}, inside" in each]
                every = difference([each[name] for each in found])
                rows.append([f"{clips} s", pair, every, difference(inside) if inside else ""])
    return markdown(["clips", "difference, points", "all questions", "evidence to be chosen"], rows, left=2)


def types_table(reports: Sequence[Report]) -> str:
    """By type of question: everything dense, and chosen by attention at 62 % of the bytes."""
    ranges = list(reports[0]["ranges"])

    def cell(clips: str, kind: str) -> str:
        def parts(mode: str) -> list[Report]:
            found = [report["ranges"][clips]["modes"].get(mode, {"by_type": {}})["by_type"] for report in reports]
            return [by_type[kind] for by_type in found if kind in by_type]

        if not parts("dense"):
            return "–"
        counts = [pooled(parts(mode)) for mode in ("dense", "bilevel_62")]
        shares = [f"{100 * right / total:.0f} %" if total else "–" for right, total in counts]
        return f"{', '.join(shares)}, {parts('dense')[0]['chance']:.0f} % ({counts[0][1]} asked)"

    header = ["question", "answer", *(f"{clips} s: dense, bi-level 62 %, chance" for clips in ranges)]
    rows = [[*example, *(cell(clips, kind) for clips in ranges)] for kind, example in EXAMPLES.items()]
    return markdown(header, rows, left=len(header))


def tables(reports: Sequence[Report]) -> str:
    """All tables. The reports have the same ranges and modes."""
    return "\n\n".join(make(reports) for make in (types_table, modes_table, differences_table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, help="reports of the study nano, one per seed")
    print(tables([read(path) for path in parser.parse_args().reports]))


if __name__ == "__main__":
    start.run(main)
