"""The tables of docs/results/nano.md: what nano answers correctly, from reports of evaluate_nano.py over several seeds.

    python -m experiments.evaluate_nano --questions 400 --seed 7 --out experiments/results/nano/seed7.json
    python -m experiments.nano_table experiments/results/nano/seed*.json

Counts are added up over the seeds. The page has what is printed between two marks, `<!-- nano table -->` and
`<!-- /nano table -->`, and a test compares them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from math import sqrt
from pathlib import Path

from vxl2_jax.evaluation.intervals import wilson

Report = dict
ROWS = {
    "dense": "dense",
    "chunked": "chunked pre-fill, whole cache",
    "bilevel_62": "both, by attention",
    "bilevel_62_random": "both, at random",
    "bilevel_62_by2": "both, by attention, pooled by 2",
    "bilevel_62_by2_random": "both, at random, pooled by 2",
    "bilevel_35": "both, by attention",
    "bilevel_35_random": "both, at random",
}
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
    """A report. Ends the program with one line where there is none."""
    try:
        report = json.loads(path.read_text())
        report["ranges"], report["settings"]["seed"]
    except OSError as error:
        sys.exit(f"nano_table: {path}: cannot be read ({error.strerror})")
    except (ValueError, KeyError, TypeError):
        sys.exit(f"nano_table: {path}: not a report of evaluate_nano.py; make one with --out {path}")
    return report


def pooled(parts: Sequence[Report]) -> tuple[int, int]:
    """(right, questions) of several {"accuracy", "questions"}, those without questions left out."""
    counts = [
        (round(part["accuracy"] * part["questions"] / 100), part["questions"]) for part in parts if part["questions"]
    ]
    return sum(right for right, _ in counts), sum(total for _, total in counts)


def rate(parts: Sequence[Report]) -> str:
    """Percent right and its 95 % interval."""
    right, total = pooled(parts)
    low, high = wilson(right, total)
    return f"{100 * right / total:.1f} % ({low:.1f} – {high:.1f})" if total else "–"


def difference(parts: Sequence[Report]) -> str:
    """Percentage points and their 95 % interval, of independent seeds."""
    parts = [part for part in parts if part["questions"]]
    total = sum(part["questions"] for part in parts)
    mean = sum(part["points"] * part["questions"] for part in parts) / total
    half = (
        sqrt(sum((part["questions"] * (part["interval"][1] - part["interval"][0]) / 2) ** 2 for part in parts)) / total
    )
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def modes_table(reports: Sequence[Report]) -> str:
    """Accuracies by mode: a column per seed, then all of them."""
    seeds = [f"seed {report['settings']['seed']}" for report in reports]
    lines = [["clips", "mode", "key/value bytes", *seeds, "together (95 %)", "evidence to be chosen"]]
    lines.append(["---"] * 2 + ["--:"] * (len(lines[0]) - 2))
    for clips in reports[0]["ranges"]:
        for mode, text in ROWS.items():
            parts = [report["ranges"][clips]["modes"].get(mode) for report in reports]
            if None in parts:
                continue
            ratio = sum(part["cache_ratio"] for part in parts) / len(parts)
            lines.append(
                [
                    f"{clips} s",
                    text,
                    f"{100 * ratio:.0f} %",
                    *(f"{part['accuracy']:.1f}" for part in parts),
                    rate(parts),
                    rate([part["inside"] for part in parts]),
                ]
            )
    return markdown(lines)


def differences_table(reports: Sequence[Report]) -> str:
    """Paired differences over the same questions."""
    lines = [["clips", "difference, points", "all questions", "evidence to be chosen"], ["---", "---", "--:", "--:"]]
    for clips in reports[0]["ranges"]:
        found = [report["ranges"][clips]["differences"] for report in reports]
        common = [name for name in found[0] if all(name in each for each in found)]
        for name in common:
            if name.endswith(", inside"):
                continue
            inside = [each[f"{name}, inside"] for each in found] if f"{name}, inside" in common else None
            one, other = name.split(" - ")
            other = "at random" if other.endswith("random") else other
            lines.append(
                [
                    f"{clips} s",
                    f"{spoken(one)} − {other}",
                    difference([each[name] for each in found]),
                    difference(inside) if inside else "",
                ]
            )
    return markdown(lines)


def spoken(mode: str) -> str:
    """ "bilevel_62_by2" → "bi-level 62 %, pooled by 2"."""
    _, percent, *by = mode.split("_")
    return f"bi-level {percent} %" + "".join(f", pooled {part.replace('by', 'by ')}" for part in by)


def types_table(reports: Sequence[Report]) -> str:
    """By type of question: everything dense, and chosen by attention at 62 % of the bytes."""
    ranges = list(reports[0]["ranges"])
    lines = [
        ["question", "answer", *(f"{clips} s: dense, bi-level 62 %, chance" for clips in ranges)],
        ["---"] * (2 + len(ranges)),
    ]
    for kind, (question, answer) in EXAMPLES.items():
        cells = []
        for clips in ranges:
            modes = [report["ranges"][clips]["modes"] for report in reports]

            def of(mode, modes=modes, kind=kind):
                return [each[mode]["by_type"][kind] for each in modes if kind in each[mode]["by_type"]]

            if not of("dense"):
                cells.append("–")
                continue
            shares = (100 * right / total for right, total in (pooled(of(mode)) for mode in ("dense", "bilevel_62")))
            dense, bilevel = (f"{share:.0f} %" for share in shares)
            cells.append(f"{dense}, {bilevel}, {of('dense')[0]['chance']:.0f} % ({pooled(of('dense'))[1]} asked)")
        lines.append([question, answer, *cells])
    return markdown(lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(reports: Sequence[Report]) -> str:
    """All of it."""
    return "\n\n".join(make(reports) for make in (types_table, modes_table, differences_table))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, help="JSON of evaluate_nano.py, one per seed")
    print(tables([read(path) for path in parser.parse_args().reports]))


if __name__ == "__main__":
    main()
