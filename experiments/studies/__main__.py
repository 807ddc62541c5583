"""Studies, nearly all with nano: clips are watched, questions are asked in every setting, answers are judged.

    python -m experiments.studies block_size
    python -m experiments.studies nano --questions 400 --seed 7 --out runs/seed7
    python -m experiments.studies NAME --help

A study writes OUT.json, OUT.md and, if it has a plot, OUT.png, and prints the Markdown. The record of each clip is
appended to a file in --records as soon as it is done: the same command resumes after an interruption. Intervals are
95 %: Wilson's for accuracies; changes are paired by question, with the questions of a clip as a cluster.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from experiments import start
from experiments.studies import (
    block_size,
    bursty,
    cost,
    evidence,
    finetune,
    grounding,
    halves,
    nano,
    needles,
    question_types,
    relevance,
    scene_changes,
    selection,
    smollm2,
    weights,
)
from vxl2_jax import Vxl2Error
from vxl2_jax.cli.options import Help
from vxl2_jax.evaluation.report import write_texts

_MODULES = (block_size, selection, halves, question_types, bursty, scene_changes, evidence, cost)
_MODULES += (relevance, needles, nano, grounding, finetune, weights, smollm2)
STUDIES = {module.__name__.rpartition(".")[2]: module.STUDY for module in _MODULES}


def build_parser() -> argparse.ArgumentParser:
    """The parser: a subcommand per study."""
    parser = argparse.ArgumentParser(prog="python -m experiments.studies", description=__doc__, formatter_class=Help)
    studies = parser.add_subparsers(dest="study", metavar="NAME", required=True, title="studies")
    for name, study in STUDIES.items():
        own = studies.add_parser(name, help=study.help.partition("\n")[0], description=study.help, formatter_class=Help)
        if study.of_nano:
            own.add_argument("--model", default="nano", help="nano, or a checkpoint directory with the same vocabulary")
        own.add_argument("--records", type=Path, default=Path("runs/studies"), help="folder of the records")
        own.add_argument("--out", type=Path, default=Path("runs/studies", name), help="path of the results, no suffix")
        own.add_argument("--json", action="store_true", help="print the report as JSON instead of Markdown")
        study.add_flags(own)
    return parser


def as_json(report: dict[str, Any]) -> str:
    """The report, with each innermost list and object on one line."""
    text = json.dumps(report, indent=1)
    for innermost in (r"\[[^\[\]{}]*\]", r"\{[^{}]*\}"):
        text = re.sub(innermost, lambda found: re.sub(r"\n\s*", " ", found[0]), text)
    return text + "\n"


def main(arguments: list[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    write_texts(args.out.parent, {})  # fails before the work, not after it
    report, text, draw = STUDIES[args.study].run(args)
    write_texts(args.out.parent, {f"{args.out.name}.json": as_json(report), f"{args.out.name}.md": f"{text}\n"})
    if draw:
        draw(args.out.with_name(f"{args.out.name}.png"))
    print(as_json(report) if args.json else text)
    return 0


def _main() -> int:
    try:
        return main()
    except Vxl2Error as error:
        print(f"studies: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    start.run(_main)
