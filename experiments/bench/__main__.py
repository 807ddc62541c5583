"""Benchmarks on one machine: its ceilings, our kernels and the alternatives, measured in the same run.

    python -m experiments.bench attention|gradient|decoding|vision|watching|reading [flags]       # --help of each teaches it

Results are rows in DIR/<benchmark>.json and .md, written after each, and a plot. The floor of a row is the longer of its
operations and bytes over ceilings that were measured in the same run. What cannot run leaves a row that says why. On a
CPU the kernels run in Pallas' interpreter on tiny problems, and their timings mean nothing; those of `watching` and
`reading` do.

Exit code: 0, 1 if a result of ours is out of tolerance, 2 for arguments that make no sense.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import ModuleType

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # before JAX starts: PyTorch needs device memory, too

import jax

from experiments import start
from experiments.bench import arguments, kernels, machine, measure, plot
from experiments.bench.cases import attention, decoding, gradient, reading, vision, watching
from experiments.bench.machine import Session, UsageError
from experiments.bench.report import Report
from experiments.parity.golden import GoldenError
from vxl2_jax.errors import Vxl2Error

KERNEL_CASES = {"attention": attention, "gradient": gradient, "decoding": decoding, "vision": vision}
OTHER_CASES = {"watching": watching, "reading": reading}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m experiments.bench", description=__doc__, formatter_class=style)
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, case in {**KERNEL_CASES, **OTHER_CASES}.items():
        summary = case.__doc__.splitlines()[0]
        command = commands.add_parser(name, help=summary, description=case.__doc__, formatter_class=style)
        arguments.add_common(command)
        if case is not reading:
            arguments.add_lengths(command)
        if name in KERNEL_CASES:
            arguments.add_kernels(command, case.BASELINES)
        case.add_arguments(command)
    return parser


def begin(args: argparse.Namespace, case: ModuleType) -> Session:
    """Fill in arguments that were left out, measure the ceilings and start the report of a benchmark of kernels."""
    device = jax.devices()[0]
    accelerator = machine.is_accelerator(device)
    defaults = {"samples": (7, 1), "backends": [kernels.written_for(device)] * 2, **case.DEFAULTS}
    for name, values in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, values[not accelerator])
    case.check(args)
    if not accelerator:
        print(f"no accelerator. {machine.NOT_MEASURED}", file=sys.stderr)
    ceilings = measure.measure_ceilings(device, args.dtype, args.samples, args.seed)
    return Session(args, device, report_of(args, machine.describe(device), ceilings))


def report_of(args: argparse.Namespace, described: dict, ceilings: measure.Ceilings | None) -> Report:
    return Report(args.benchmark, args.out, described, vars(args), ceilings, args.limit_s)


def run(args: argparse.Namespace) -> Report:
    """Run a benchmark; its files are complete also where it is interrupted.

    Raises:
      UsageError: inconsistent arguments, or what this machine cannot do.
    """
    if case := OTHER_CASES.get(args.benchmark):
        session = Session(args, None, report_of(args, *case.describe(args)))
    else:
        case = KERNEL_CASES[args.benchmark]
        session = begin(args, case)
    report = session.report
    try:
        case.run(session)
        report.complete = True
    finally:
        report.write()
        plot.draw(report)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    args = build_parser().parse_args(argv)
    # A terminated run, too, leaves its plot.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        report = run(args)
    except (UsageError, GoldenError, Vxl2Error, OSError) as error:
        print(f"experiments.bench: {error}", file=sys.stderr)
        return 2
    finally:
        signal.signal(signal.SIGTERM, before)
    print("\n".join(["", *report.growth_lines()]))
    print(f"written: {', '.join(str(report.folder / f'{report.name}.{kind}') for kind in ('json', 'md', 'png'))}")
    if report.wrong:
        wrong = ", ".join(f"{row.name} ({row.case})" for row in report.wrong)
        print(f"experiments.bench: out of tolerance: {wrong}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    start.run(main)
