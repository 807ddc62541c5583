"""The first run on a new machine, in at most eight minutes: do the kernels agree, how fast are they, does the model fit?

    python -m experiments.first_light                       # an accelerator; results in runs/first_light
    python -m experiments.first_light --only doctor,vision  # some of the steps
    python -m experiments.first_light --list                # the commands

Steps: the self-tests (`vxl2 doctor`); attention, vision tower and decoding steps compared with cuDNN, FlexAttention and the
roofline (`experiments.bench`); the copies of weights and caches that the compiled programs of the released sizes make; and
watching 2,048 and 10,000 frames with random weights of these sizes. Every step is a process of its own with a time limit, so
that one that hangs costs only its own. A step that ended well is not run again at the same commit, unless --again is given.

Results: DIR/first_light.json with every step's command, exit code and seconds; DIR/first_light.md with what they found; and
the tables and plots of the benchmarks. On a CPU kernels are interpreted on tiny problems: a rehearsal whose timings mean
nothing, without watching at real size.

Exit code: 0, or 1 if a step failed or was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from experiments import start
from experiments.bench import machine
from experiments.synthetic import files
from vxl2_jax.errors import RequestError

ROOT = Path(__file__).resolve().parents[1]
TOTAL_S = 480


class Step(NamedTuple):
    """A command, and what it may take.

    arguments: of the interpreter; "{out}" stands for the folder of results. rehearsal: those on a CPU, None to leave it out.
    """

    name: str
    limit_s: int
    arguments: tuple[str, ...]
    rehearsal: tuple[str, ...] | None = None


def _bench(name: str, limit_s: int, *more: str) -> Step:
    command = ("-m", "experiments.bench", name, "--out", "{out}", "--limit_s", str(limit_s - 10))
    return Step(name, limit_s, (*command, *more), command)


DOCTOR = ("-m", "vxl2_jax", "doctor", "--json")
COPIES = ("tests/targets/compile_model.py", "here", "int8", "2048")
STEPS = (
    Step("doctor", 60, DOCTOR, DOCTOR),
    _bench("attention", 90, "--frames", "600,2048,10000"),
    _bench("vision", 50, "--frames", "16,64"),
    _bench("decoding", 90, "--frames", "2048,10000", "--model"),
    Step("copies", 60, COPIES, COPIES),
    Step(
        "watching",
        130,
        (
            *("-m", "experiments.bench", "watching", "--model", "real", "--frames", "2048,10000"),
            *("--samples", "1", "--out", "{out}", "--limit_s", "120"),
        ),
    ),
)


def is_accelerator() -> bool:
    """Whether JAX finds one, asked in another process, so that this one holds none."""
    code = "import jax; print(jax.devices()[0].platform)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.split()[-1] != "cpu"


def run_step(step: Step, arguments: Sequence[str], out: Path, limit_s: float) -> dict[str, Any]:
    """Run a command. Its output goes to DIR/NAME.log."""
    command = [sys.executable, *(part.format(out=out) for part in arguments)]
    environment = {"JAX_PLATFORMS": "", **os.environ, "PYTHONPATH": str(ROOT)}
    begin, log = time.monotonic(), out / f"{step.name}.log"
    with log.open("w") as file:
        # A session of its own, so that workers of a step end with it and free the device.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return {
        "name": step.name,
        "command": " ".join(["python", *command[1:]]),
        "exit_code": code,
        "seconds": round(time.monotonic() - begin, 1),
        "stopped": code is None,
    }


def summary(steps: Sequence[Mapping[str, Any]], out: Path) -> str:
    """What the steps found, as Markdown."""
    lines = ["# First light", "", "| step | result | seconds | command |", "| --- | --- | --: | --- |"]
    for step in steps:
        code = step["exit_code"]
        result = "stopped" if step["stopped"] else "ended well" if code == 0 else f"exit code {code}"
        lines.append(f"| {step['name']} | {result} | {step['seconds']} | `{step['command']}` |")
    for step in steps:
        table, log = out / f"{step['name']}.md", out / f"{step['name']}.log"
        text = table.read_text() if table.exists() else f"```\n{_tail(log)}\n```"
        lines += ["", f"## {step['name']}", "", text.strip()]
    return "\n".join(lines) + "\n"


def _tail(log: Path, characters: int = 4000) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    # Of an interrupted step the end says most, and of a document its whole is wanted.
    return text if len(text) <= characters else "…" + text[-characters:]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps. Returns the exit code."""
    args = build_parser().parse_args(argv)
    out, here = Path(args.out).absolute(), machine.commit()
    names = args.only.split(",") if args.only else [step.name for step in STEPS]
    if unknown := sorted(set(names) - {step.name for step in STEPS}):
        print(f"--only: unknown {', '.join(unknown)}; choose from {', '.join(s.name for s in STEPS)}", file=sys.stderr)
        return 2
    if args.list:
        for step in STEPS:
            print(f"{step.name} ({step.limit_s} s): python {' '.join(step.arguments)}")
        return 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        return run_steps(args, names, out, here)
    except (OSError, RequestError) as error:
        print(f"experiments.first_light: {error}", file=sys.stderr)
        return 2


def known_steps(record: Path, here: str | None) -> dict[str, dict[str, Any]]:
    """The steps that ended well at this commit; none if the record is not there or damaged."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        before = json.loads(record.read_text())
        if here and before["commit"] == here:
            return {step["name"]: step for step in before["steps"] if step["exit_code"] == 0}
    return {}


def run_steps(args: argparse.Namespace, names: Sequence[str], out: Path, here: str | None) -> int:
    """Run the steps of these names that have not ended well before. Returns the exit code."""
    record = out / "first_light.json"
    done = {} if args.again else known_steps(record, here)
    accelerator, begin = is_accelerator(), time.monotonic()
    if not accelerator:
        print("no accelerator: a rehearsal, whose timings mean nothing", file=sys.stderr)
    for step in STEPS:
        arguments = step.arguments if accelerator else step.rehearsal
        if step.name not in names or step.name in done or arguments is None:
            continue
        left = args.limit_s - (time.monotonic() - begin)
        if left < 5:
            print(f"{step.name}: not run, the {args.limit_s:.0f} s are used; run the command again", file=sys.stderr)
            continue
        print(f"{step.name} …", file=sys.stderr, flush=True)
        done[step.name] = run_step(step, arguments, out, min(step.limit_s, left))
        steps = [done[one.name] for one in STEPS if one.name in done]
        files.write(record, files.as_json({"commit": here, "accelerator": accelerator, "steps": steps}))
        files.write(out / "first_light.md", summary(steps, out))
    failed = [name for name, step in done.items() if step["exit_code"] != 0]
    for name in failed:
        print(f"{name} failed: {out / name}.log", file=sys.stderr)
    print(f"results: {record}, {out / 'first_light.md'}")
    return 1 if failed else 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m experiments.first_light", description=__doc__, formatter_class=style)
    add = parser.add_argument
    add("--out", default="runs/first_light", metavar="DIR", help="folder of results (default: runs/first_light)")
    add("--only", metavar="STEPS", help=f"some of {','.join(step.name for step in STEPS)}")
    add("--again", action="store_true", help="run steps that ended well at this commit once more")
    add("--list", action="store_true", help="print the commands and run nothing")
    add("--limit_s", type=float, default=TOTAL_S, metavar="S", help=f"seconds in all (default: {TOTAL_S})")
    return parser


if __name__ == "__main__":
    start.run(main)
