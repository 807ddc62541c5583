"""Train nano, the small Video-XL-2 inside the package, from generated clips to a model directory.

    python -m experiments.nano --out runs/nano
    vxl2 ask VIDEO QUESTION --model runs/nano/model

Interrupted? The same command resumes. OUT/metrics.jsonl has a line every 50 steps, with accuracies on clips of the
checking set every 100. For a trial of every stage: --clips 8 --steps 2.
"""

import argparse
import shlex
from collections.abc import Sequence

from experiments import start
from experiments.nano import recipe
from experiments.synthetic.commands.arguments import Parser
from vxl2_jax.errors import Vxl2Error
from vxl2_jax.training.loop import TrainingLog


def main(given: Sequence[str] | None = None) -> None:
    """Run the command line. Raises SystemExit with code 2 after an error, which is reported in one line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m experiments.nano", description=__doc__, formatter_class=form)
    parser.add_argument("--out", required=True, help="folder of frames, checkpoints, metrics and the model")
    parser.add_argument("--clips", type=int, default=recipe.CLIPS, help=f"training clips (default: {recipe.CLIPS})")
    parser.add_argument("--steps", type=int, help="steps of every stage (default: those of the recipe)")
    args = parser.parse_args(given)
    log = TrainingLog(info=lambda text: print(text, flush=True), metrics=lambda line: print(line, flush=True))
    try:
        model = recipe.train(args.out, args.clips, args.steps, log)
        print(f'Wrote {model}.\nNext: vxl2 ask VIDEO "…" --model {shlex.quote(str(model))}')
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; run the same command again to resume\n")
    except (Vxl2Error, OSError) as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    start.run(main)
