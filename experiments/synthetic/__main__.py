"""Generate videos with questions, answers and the times that answers depend on.

The same flags always make the same frames and questions. `COMMAND --help` describes the files that a command writes.

    python -m experiments.synthetic clip --seed 7 --out clip.mp4 --answers clip.json
    python -m experiments.synthetic benchmark --benchmark mlvu --out runs/mini-mlvu
"""

import argparse
from collections.abc import Sequence

from experiments import start
from experiments.synthetic.commands import arguments, benchmark, clip, film, grounding, lmms, reading_films
from vxl2_jax.errors import Vxl2Error

COMMANDS = {
    "clip": clip,
    "film": film,
    "benchmark": benchmark,
    "grounding": grounding,
    "lmms": lmms,
    "reading-films": reading_films,
}


def main(given: Sequence[str] | None = None) -> None:
    """Run the command line. Raises SystemExit with code 2 after an error, which is reported in one line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = arguments.Parser(prog="python -m experiments.synthetic", description=__doc__, formatter_class=form)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        summary = command.__doc__.splitlines()[0].rstrip(".")
        command.add_flags(commands.add_parser(name, help=summary, description=command.__doc__, formatter_class=form))
    flags = parser.parse_args(given)
    try:
        print(COMMANDS[flags.command].run(flags))
    except (Vxl2Error, OSError) as error:
        parser.exit(2, f"{parser.prog} {flags.command}: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    start.run(main)
