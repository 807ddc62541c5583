"""`vxl2 train`: fine-tune a model on conversations about videos."""

from __future__ import annotations

import argparse
import json
import shlex
import tomllib
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from vxl2_jax.cli import options
from vxl2_jax.text.typed import printable, printable_json
from vxl2_jax.training.settings import EXAMPLE, read

_HELP = """Train a model on conversations about videos, as a settings file says.

  vxl2 train --print-config > train.toml     then set model, out, data.files
  vxl2 train --config train.toml             interrupted? run it again: it resumes
  vxl2 ask video.mp4 "Is there a dog?" --model runs/first/model

data.files hold one JSON object per line (or one JSON list), in any of these forms:
  {"video": "a.mp4", "question": "Is there a dog?", "answer": "yes"}
  {"video": "a.mp4", "messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}
  {"video": "a.mp4", "conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}, ...]}

out receives metrics.jsonl, checkpoints to resume from, and at the end the folder model."""

_EPILOG = """all settings: out, data.files and stages are required, without [lora] the weights themselves are trained, and the other
defaults are the values shown, except for warmup (0):"""


def add(commands: Any, help: str) -> None:
    """Add the command."""
    train = commands.add_parser(
        "train",
        formatter_class=options.Help,
        description=_HELP,
        epilog=f"{_EPILOG}\n\n{EXAMPLE}",
        help=help,
    )
    train.set_defaults(run=run, interrupted="run the same command again to resume")
    source = train.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=options.path, metavar="FILE.toml", help="the settings")
    source.add_argument("--print-config", action="store_true", help="print an example with comments, and exit")
    options.add_output(train)


def run(args: argparse.Namespace) -> None:
    """`vxl2 train`."""
    if args.print_config:
        print(json.dumps(tomllib.loads(EXAMPLE), indent=1) if args.json else EXAMPLE, end="\n" if args.json else "")
        return
    settings = read(args.config)
    from vxl2_jax.training.finetune import train

    with _progress(args.quiet) as log:
        model = train(settings, log)
    if args.json:
        print(printable_json({"model": str(model), "metrics": str(Path(settings.out) / "metrics.jsonl")}))
    else:
        print(printable(f'{model}: complete\nNext: vxl2 ask VIDEO "…" --model {shlex.quote(str(model))}'))


@contextmanager
def _progress(quiet: bool) -> Generator[Any, None, None]:
    """A TrainingLog that shows progress on standard error: a bar on a terminal, else a line per line of metrics."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vxl2_jax.training.loop import TrainingLog

    console = Console(stderr=True, highlight=False)

    def warn(message: str) -> None:
        console.print(message, markup=False, soft_wrap=True)

    def info(message: str) -> None:
        if not quiet:
            warn(message)

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[metrics]}"),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
        transient=True,
    )
    with nullcontext() if bar.disable else bar:
        task = bar.add_task("scanning videos", total=None, metrics="")

        def show(line: dict[str, Any]) -> None:
            text = f"loss {line['loss']:.3f} · accuracy {line['accuracy']:.0%} · {line['tokens_per_s']:,.0f} tokens/s"
            bar.update(task, metrics=text)
            if not console.is_terminal:
                info(f"step {line['step']} · {line['stage']} · {text}")

        yield TrainingLog(
            info=info,
            warning=warn,
            metrics=show,
            scanned=lambda done, total: bar.update(task, completed=done, total=total),
            step=lambda done, total: bar.update(task, description="training", completed=done, total=total),
        )
