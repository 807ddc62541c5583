"""The frame of every benchmark: the machine and its ceilings first, files at the end whatever happens."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from experiments.bench import ceilings, machine, options, roofline
from experiments.bench.report import Report


def samples(device: Any) -> int:
    return options.given(options.SAMPLES, 7 if machine.is_accelerator(device) else 1)


def run(name: str, body: Callable[[Report, Any], None]) -> None:
    """Measure the ceilings, call `body` with a report and the device, draw. Exits 1 where a result of ours is wrong,
    2 for flags that make no sense."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        print(f"no accelerator. {machine.NOT_MEASURED}", file=sys.stderr)
    # Whoever stops the run gets what has been measured, drawn.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    used = {name: flags.FLAGS[name].value for name in flags.FLAGS if not flags.FLAGS[name].using_default_value}
    try:
        top = ceilings.take(device, options.DTYPE.value, samples(device), options.SEED.value)
        report = Report(name, options.OUT.value, machine.describe(device), used, top, options.LIMIT_S.value)
        try:
            body(report, device)
            report.complete = True
        finally:
            report.write()
            roofline.draw(report)
    except (options.UsageError, OSError) as error:
        print(f"bench_{name}: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        signal.signal(signal.SIGTERM, before)
    print(f"\nwritten: {', '.join(str(report.folder / f'{name}.{kind}') for kind in ('json', 'md', 'png'))}")
    if report.wrong:
        wrong = ", ".join(f"{row.name} ({row.case})" for row in report.wrong)
        print(f"bench_{name}: out of tolerance: {wrong}", file=sys.stderr)
        sys.exit(1)


def share_the_gpu() -> None:
    """Call before JAX is imported: other processes (PyTorch's) need room on the device, too."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
