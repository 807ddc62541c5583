"""`vxl2 train`: fine-tune a model on conversations about videos."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vxl2_jax.cli import options
from vxl2_jax.training.settings import EXAMPLE, read

_HELP = """Train a model on conversations about videos, as a configuration says.

  vxl2 train --print-config > train.toml     then set model, out, data.files
  vxl2 train --config train.toml             cut off? the same command goes on where it was
  vxl2 ask video.mp4 "Is there a dog?" --model runs/first/model

data.files hold a line of JSON per conversation (or are one JSON list), in any of these forms:
  {"video": "a.mp4", "question": "Is there a dog?", "answer": "yes"}
  {"video": "a.mp4", "messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}
  {"video": "a.mp4", "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}, ...]}

out receives metrics.jsonl, checkpoints to go on from, and at the end the folder model."""

_WHOLE = "a whole configuration (what you leave out is as here, save for the stages, and that there is no lora then):"


def add(commands) -> None:
    train = commands.add_parser(
        "train",
        formatter_class=options.Help,
        description=_HELP,
        epilog=f"{_WHOLE}\n\n{EXAMPLE}",
        help="fine-tune a model on conversations about videos",
    )
    train.set_defaults(run=run, interrupted="the same command goes on where it was")
    chosen = train.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--config", type=Path, metavar="FILE.toml", help="what to do")
    chosen.add_argument("--print-config", action="store_true", help="print a configuration with comments, and stop")
    train.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> None:
    """`vxl2 train`."""
    if args.print_config:
        print(EXAMPLE, end="")
        return
    settings = read(args.config)
    from vxl2_jax.training.loop import train

    with _report(args.quiet) as report:
        model = train(settings, report)
    print(f'{model}: complete. Ask it: vxl2 ask VIDEO "…" --model {model}')


@contextmanager
def _report(quiet: bool) -> Iterator:
    """Progress on standard error: a bar with the latest figures; where it is no terminal, a line for each."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vxl2_jax.training.loop import TrainingLog

    console = Console(stderr=True, highlight=False)

    def say(text):
        return console.print(text, markup=False, soft_wrap=True)

    tell = (lambda text: None) if quiet else say
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[told]}"),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task("looking at videos", total=None, told="")

        def line(told: dict) -> None:
            figures = f"loss {told['loss']:.3f} · right {told['right']:.0%} · {told['tokens_per_s']:,.0f} tokens/s"
            bar.update(task, told=figures)
            if not console.is_terminal:
                tell(f"step {told['step']} · {told['stage']} · {figures}")

        yield TrainingLog(
            say=tell,
            warn=say,
            line=line,
            looked=lambda done, total: bar.update(task, completed=done, total=total),
            step=lambda done, total: bar.update(task, description="training", completed=done, total=total),
        )
