"""Draw inputs for minutes: python -m tests.fuzz.run --seconds 600 [--seed 0] [TARGET...]

Prints per target the inputs tried, how many of them were refused, what was raised besides errors of the package, the
slowest input and the growth of peak memory. Exit code 1 if anything was raised, took over 5 s or over 1 GB.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase

from tests.fuzz.targets import TARGETS, Target
from vxl2_jax.errors import MAX_MESSAGE, Vxl2Error

SECONDS, BYTES = 5.0, 10**9
"""What one input may take."""


@dataclass
class Tally:
    """What happened to the inputs of a target. raw: errors besides those of the package, with an input that gave each."""

    tried: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    raw: dict[str, object] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)


def attempt(target: Target, drawn: object, folder: Path, tally: Tally) -> None:
    """Read one input."""
    start = time.perf_counter()
    try:
        target.read(drawn, folder)
    except Vxl2Error as error:
        tally.refused += 1
        message = str(error)
        if len(message.splitlines()) != 1 or len(message) > MAX_MESSAGE:
            record(tally, f"a message of several lines or thousands of characters: {message[:80]!r}", drawn)
    except Exception as error:  # this is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        record(tally, f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}", drawn)
    tally.tried += 1
    seconds = time.perf_counter() - start
    tally.slowest_s = max(tally.slowest_s, seconds)
    if seconds > SECONDS:
        record(tally, f"took {seconds:.1f} s", drawn)


def record(tally: Tally, kind: str, drawn: object) -> None:
    tally.raw.setdefault(kind, drawn)
    tally.counts[kind] += 1


def run(target: Target, seed: int, examples: int) -> Tally:
    """Draw inputs; the same ones for the same seed."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=examples,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            derandomize=False,
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.given(target.draw)
        def draw(drawn: object) -> None:
            attempt(target, drawn, Path(folder), tally)

        draw()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=600.0, help="in all, divided over the targets")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names, bad = args.targets or list(TARGETS), 0
    print(f"{'target':32}{'inputs':>9}{'refused':>9}{'raw':>5}{'slowest':>10}{'memory':>10}")
    seed, total, slowest = args.seed, 0, 0.0
    ends = time.perf_counter() + args.seconds
    tallies = {name: Tally() for name in names}
    before = peak()
    for place, name in enumerate(names):
        until = time.perf_counter() + (ends - time.perf_counter()) / (len(names) - place)
        while tallies[name].tried == 0 or time.perf_counter() < until:
            part = run(TARGETS[name], seed, 200)
            seed, tally = seed + 1, tallies[name]
            tally.tried, tally.refused = tally.tried + part.tried, tally.refused + part.refused
            tally.slowest_s = max(tally.slowest_s, part.slowest_s)
            tally.counts += part.counts
            tally.raw = part.raw | tally.raw
        tally, grown = tallies[name], peak() - before
        before, total, slowest = peak(), total + tally.tried, max(slowest, tally.slowest_s)
        too_large = grown > BYTES
        bad += sum(tally.counts.values()) + too_large
        raw = sum(tally.counts.values())
        print(
            f"{name:32}{tally.tried:9,}{tally.refused:9,}{raw:5}{tally.slowest_s:8.2f} s{grown / 1e6:7.0f} MB",
            flush=True,
        )
        for kind, drawn in tally.raw.items():
            print(f"    {kind} ({tally.counts[kind]} times): {drawn!r:.300}", flush=True)
    print(
        f"{total:,} inputs, {bad} that broke the rule, slowest {slowest:.2f} s, peak {peak() / 1e6:,.0f} MB; seed {args.seed}"
    )
    return int(bad > 0)


def peak() -> int:
    """Peak resident bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
