"""Kill watch, batch, eval and train at random moments, again and again, and check that nothing is lost.

    python -m tests.kills --kills 40 [--seed 0] [watch batch eval train]

Each command first runs without a kill. Then it is killed (SIGKILL) and started again, until it has been killed often
enough and finishes. Rows that were complete must stay, and the result must be that of the run without a kill: the same
bytes of a memory and of a trained model, the same answers, the same report.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from vxl2_jax.evaluation import report

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "vxl2_jax" / "assets" / "demo.mp4"
VIDEOS = 4
TRAIN = """
out = "{out}"
[data]
files = ["{data}/train.jsonl"]
[video]
max_frames = 8
[[stages]]
name = "projector"
train = ["projector"]
learning_rate = 1e-4
steps = 6
[[stages]]
name = "language"
train = ["language"]
learning_rate = 1e-4
steps = 6
[lora]
rank = 2
[checkpoint]
every = 2
"""


class Case(NamedTuple):
    """arguments: (data, out) → of the command; result: out → what must be equal; rows: the file of rows in out, if any."""

    arguments: Callable[[Path, Path], list[str]]
    result: Callable[[Path], Any]
    rows: str = ""


def prepare(folder: Path) -> None:
    """Videos, jobs, annotations and conversations."""
    (folder / "json").mkdir(parents=True)
    names = [f"{number}.mp4" for number in range(VIDEOS)]
    for name in names:
        shutil.copy(DEMO, folder / name)
    jobs = [{"video": name, "questions": ["What appears at 7 seconds?"], "model": "x"} for name in names]
    write_lines(folder / "jobs.jsonl", [*jobs, jobs[0], {"video": "missing.mp4", "questions": ["?"]}])
    row = {"question": "What appears?", "candidates": ["x", "y"], "answer": "x", "question_type": "ego"}
    (folder / "json" / "1.json").write_text(json.dumps([{**row, "video": name} for name in names]))
    write_lines(
        folder / "train.jsonl", [{"video": name, "question": "What is it?", "answer": "a cat"} for name in names]
    )


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def watch(data: Path, out: Path) -> list[str]:
    return ["watch", str(DEMO), "--out", str(out / "memory"), "--fps", "4", "--quiet"]


def batch(data: Path, out: Path) -> list[str]:
    return ["batch", str(data / "jobs.jsonl"), "--out", str(out / "answers"), "--max-frames", "12", "--quiet"]


def evaluate(data: Path, out: Path) -> list[str]:
    part = ["--mode", "bilevel", "--max-frames", "12", "--quiet"]
    return ["eval", "--benchmark", "mlvu", "--data", str(data), "--out", str(out), *part]


def train(data: Path, out: Path) -> list[str]:
    (data / f"{out.name}.toml").write_text(TRAIN.format(out=out, data=data))
    return ["train", "--config", str(data / f"{out.name}.toml"), "--quiet"]


def answers(out: Path) -> list[Any]:
    rows = [json.loads(line) for line in (out / "answers").read_text().splitlines()]
    return sorted(json.dumps([row["job"], [answer["answer"] for answer in row.get("answers", ())]]) for row in rows)


def scores(out: Path) -> dict[str, Any]:
    return {key: value for key, value in report.summarise(out).items() if key != "time"}


def trained(out: Path) -> list[Any]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    weights = [path.read_bytes() for path in sorted((out / "model").glob("*.safetensors"))]
    return [weights, [(line["step"], line["loss"]) for line in lines]]


CASES = {
    "watch": Case(watch, lambda out: (out / "memory").read_bytes()),
    "batch": Case(batch, answers, "answers"),
    "eval": Case(evaluate, scores, "rows.0-of-1.jsonl"),
    "train": Case(train, trained),
}


def start(case: Case, data: Path, out: Path) -> subprocess.Popen:
    out.mkdir(exist_ok=True)
    programs = {
        "JAX_COMPILATION_CACHE_DIR": str(data / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | programs
    with (data / "log").open("ab") as log:
        command = [sys.executable, "-m", "vxl2_jax", *case.arguments(data, out)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


def complete_lines(case: Case, out: Path) -> list[str]:
    path = out / case.rows
    return path.read_text().split("\n")[:-1] if case.rows and path.exists() else []


def kill_often(name: str, data: Path, kills: int, rng: random.Random) -> tuple[int, list[str]]:
    """(how often it was killed, what went wrong)."""
    case, problems, killed, seconds = CASES[name], [], 0, 0.0
    for number in range(2):  # the second without compiling
        begin = time.monotonic()
        start(case, data, data / f"{name}-whole-{number}").wait()
        seconds = time.monotonic() - begin
    wanted, rounds = case.result(data / f"{name}-whole-1"), 0
    while killed < kills:
        out, rounds = data / f"{name}-killed-{rounds}", rounds + 1
        kept: list[str] = []
        while True:
            process = start(case, data, out)
            try:
                process.wait(rng.uniform(0.2, 1.1) * seconds if killed < kills else None)
                break
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed += 1
            lines = complete_lines(case, out)
            if lines[: len(kept)] != kept:
                problems.append(f"{out.name}: complete rows were lost")
            kept = lines
        try:
            if case.result(out) != wanted:
                problems.append(f"{out.name}: another result than without a kill")
        except Exception as error:  # reported, and the other commands are still checked
            problems.append(f"{out.name}: {type(error).__name__}: {error}")
    return killed, problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=", ".join(CASES))
    parser.add_argument("--kills", type=int, default=40, help="in all, divided over the commands")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if unknown := [name for name in args.commands if name not in CASES]:
        parser.error(f"unknown command {unknown[0]}: choose from {', '.join(CASES)}")
    if args.kills < 1:
        parser.error("--kills must be at least 1")
    names, rng, bad, total = args.commands or list(CASES), random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        prepare(data)
        for name in names:
            killed, problems = kill_often(name, data, -(-args.kills // len(names)), rng)
            bad, total = bad + len(problems), total + killed
            print(f"{name}: killed {killed} times, {len(problems)} problems", flush=True)
            for problem in problems:
                print(f"    {problem}", flush=True)
        tracebacks = (data / "log").read_text(errors="replace").count("Traceback")
    print(f"{total} kills, {bad} problems, {tracebacks} tracebacks")
    return int(bad + tracebacks > 0)


if __name__ == "__main__":
    sys.exit(main())
