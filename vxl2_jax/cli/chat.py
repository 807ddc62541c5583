"""`vxl2 chat`: ask questions about a video one after another, with model and memory kept ready."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vxl2_jax.answer import Answer
from vxl2_jax.api import Model
from vxl2_jax.cli import options
from vxl2_jax.cli.ask import thumbnails
from vxl2_jax.cli.options import given, progress
from vxl2_jax.errors import OUT_OF_MEMORY, RequestError, Vxl2Error, is_out_of_memory
from vxl2_jax.files import check_output, check_path
from vxl2_jax.memory import VideoMemory
from vxl2_jax.options import AskOptions, WatchOptions
from vxl2_jax.text.typed import MAX_CHARACTERS, printable, printable_json

_COMMANDS = {
    "/chunks": "the chunks of the last answer: seconds, dense or sparse, relevance",
    "/plot [FILE.png]": "plot the answers of this conversation (default: answer.png)",
    "/save FILE": "write the memory to a file, for --memory",
    "/new": "begin a new conversation",
    "/help": "this list",
    "/quit": "end; so does Ctrl-D",
}
_HELP = "\n".join(f"  {name:<17} {text}" for name, text in _COMMANDS.items())
_EXAMPLES = f"""examples:
  vxl2 chat clip.mp4
  vxl2 chat --memory film.memory --model BAAI/Video-XL-2
  printf 'Is there a dog?\\nWhen does it appear?\\n' | vxl2 chat clip.mp4 --quiet

Each line is a question, and its answer is printed while it is decoded. Ctrl-C stops an answer. Lines that begin with a
slash are commands:
{_HELP}

Questions follow up: each one sees the previous questions and answers. With a toy model such as nano, which was not trained
on conversations, each stands alone; --follow and --no-follow override this. Questions may come from a pipe; the exit code is 2 if a line
failed."""


def add(commands: Any, help: str) -> None:
    """Add the command, with its line in `vxl2 --help`, to the subparsers `commands`."""
    chat = commands.add_parser(
        "chat",
        formatter_class=options.Help,
        epilog=_EXAMPLES,
        help=help,
        usage="vxl2 chat [options] VIDEO\n       vxl2 chat [options] --memory FILE",
        description="Watch a video, or load its memory, and answer questions about it as they are typed.",
    )
    chat.set_defaults(run=run)
    chat.add_argument("video", nargs="?", metavar="VIDEO", help="a video file, an image or a folder of images")
    chat.add_argument("--memory", type=options.path, metavar="FILE", help="a memory that `vxl2 watch` wrote")
    options.add_model(chat)
    options.add_options(chat, WatchOptions, "watching")
    options.add_options(chat, AskOptions, "asking")
    chat.add_argument(
        "--follow",
        action=argparse.BooleanOptionalAction,
        help="whether each question sees the previous ones and their answers (default: yes, but not with a toy model such as nano)",
    )
    options.add_output(
        chat, json="print each answer as a JSON document in one line, and nothing else, on standard output"
    )


def run(args: argparse.Namespace) -> None:
    """Run `vxl2 chat`."""
    if (args.video is None) == (args.memory is None):
        raise RequestError("give either a VIDEO or --memory FILE")
    watch, ask = given(args, WatchOptions), given(args, AskOptions)
    if args.memory is not None and watch:
        raise RequestError(f"--{next(iter(watch)).replace('_', '-')} does not apply to a memory: remove it")
    WatchOptions(**watch).check()
    AskOptions(**ask).check()
    typed = sys.stdin is not None and sys.stdin.isatty()
    memory = VideoMemory.load(args.memory) if args.memory is not None else None
    if memory is None:
        options.check_video(args.video)
    model = options.load_model(args)
    if memory is None:
        with progress("watching", "frames", args.quiet) as advance:
            memory = model.watch(args.video, **watch, progress=advance)
    follow = model.scope is None if args.follow is None else args.follow
    chat = Chat(model, memory, ask, follow, args.json, typed, _frames(args.video, memory, watch), args.video)
    if typed:
        kind = "Questions follow up." if follow else "Each question stands alone."
        print(f"{printable(memory.video)}: {memory.end_s:g} s. {kind} /help shows commands; Ctrl-D ends.")
        for note in memory.notes:
            print(printable(f"note: {note}"))
    for line in _lines(typed):
        if not chat.take(line):
            break
    if chat.failed and not typed:
        raise RequestError(f"{chat.failed} of {chat.taken} lines failed: see above")


def _frames(video: str | None, memory: VideoMemory, watch: dict[str, Any]) -> Callable[[], tuple[Any, Any]]:
    """What reads thumbnails and their times when a plot needs them."""
    return lambda: thumbnails(video, memory.frames, WatchOptions(**watch)) if video else ((), ())


def _lines(typed: bool) -> Iterator[str]:
    """Lines of standard input that are not blank; on a terminal with a prompt, line editing and earlier lines."""
    if sys.stdin is None:
        return
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="surrogateescape")  # names of files may hold any bytes
    if typed:
        with suppress(ImportError):
            import readline  # noqa: F401 - `input` uses it once it is imported
    while True:
        try:
            line = input("> ") if typed else _piped_line()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            if not typed:
                raise
            print("\nCtrl-D ends")
            continue
        if not typed and not line:
            return
        if line.strip():
            yield line.strip()


def _piped_line() -> str:
    """The next line of standard input, "" at the end. Of one that is too long for a question, what is needed to refuse it."""
    line = part = sys.stdin.readline(MAX_CHARACTERS + 2)
    while part and not part.endswith("\n"):
        part = sys.stdin.readline(MAX_CHARACTERS)
    return line


@dataclass
class Chat:
    """A conversation about one memory, and what it prints.

    Attributes:
      ask: options of `Model.ask`.
      follow: whether a question sees the previous ones.
      json: print one JSON document per answer, and nothing else on standard output.
      typed: whether a person is typing; also print what was read.
      frames: reads thumbnails and their times.
      video: what was watched, which no plot replaces; None for a memory.
      answers: those of the conversation; taken, failed: numbers of lines.
    """

    model: Model
    memory: VideoMemory
    ask: dict[str, Any]
    follow: bool
    json: bool
    typed: bool
    frames: Callable[[], tuple[Any, Any]]
    video: str | None = None
    answers: list[Answer] = field(default_factory=list)
    taken: int = 0
    failed: int = 0

    def take(self, line: str) -> bool:
        """Answer a question, or run a command. Returns False where the chat ends."""
        name, argument = [*line.split(None, 1), ""][:2]
        if name == "/quit":
            return False
        self.taken += 1
        try:
            if line.startswith("/"):
                self._command(name, argument.strip())
            else:
                self._answer(line)
        except KeyboardInterrupt:
            if not self.typed:
                raise
            print("\nstopped")
        except Vxl2Error as error:
            self._fail(str(error))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self._fail(OUT_OF_MEMORY)
        return True

    def _fail(self, problem: str) -> None:
        self.failed += 1
        print(f"vxl2: {printable(problem)}", file=sys.stderr, flush=True)

    def _answer(self, question: str) -> None:
        stream = self.model.stream(self.memory, question, history=self.answers if self.follow else (), **self.ask)
        for piece in stream:
            if not self.json:
                print(printable(piece), end="", flush=True)
        answer = stream.answer
        assert answer is not None
        self.answers.append(answer)
        if self.json:
            from vxl2_jax.cli import render

            print(printable_json(render.answer_data(answer), indent=None), flush=True)
            return
        print("" if answer.stopped else " …", flush=True)
        if self.typed:
            seconds = sum(answer.timings.values())
            print(f"  {100 * answer.cache_ratio:.0f} % of the cache read, {seconds:.1f} s", flush=True)

    def _command(self, name: str, argument: str) -> None:
        if name == "/help":
            self._say(_HELP)
        elif name == "/new":
            self.answers.clear()
        elif name == "/save":
            self._save(argument)
        elif name in ("/chunks", "/plot"):
            if not self.answers:
                raise RequestError(f"{name}: ask a question first")
            self._plot(argument) if name == "/plot" else self._chunks()
        else:
            raise RequestError(f"{name} is no command: {', '.join(one.split()[0] for one in _COMMANDS)}")

    def _say(self, text: str) -> None:
        for line in text.split("\n"):
            print(printable(line), file=sys.stderr if self.json else sys.stdout, flush=True)

    def _chunks(self) -> None:
        for chunk in self.answers[-1].chunks:
            level = "dense" if chunk.dense else "sparse"
            self._say(f"{chunk.start_s:8.1f} – {chunk.end_s:.1f} s  {level:<6}  {chunk.score:.3f}")

    def _plot(self, argument: str) -> None:
        from vxl2_jax import plot

        path = check_path(argument or "answer.png", "/plot")
        plot.check_path(path, self.video)
        plot.draw(path, self.answers, *self.frames(), title=self.memory.video)
        self._say(f"{path}: written")

    def _save(self, argument: str) -> None:
        path: Path = check_path(argument, "/save FILE")
        check_output(path)
        if path.exists():
            raise RequestError(f"{path}: exists already; choose another path")
        self.memory.save(path)
        self._say(f"{path}: written, {path.stat().st_size / 1e6:,.1f} MB")
