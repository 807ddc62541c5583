"""Pages that are made when the site is built, and links that leave docs/.

The command-line reference is made from the parsers of `vxl2`. Files of the repository's root and the plots of
experiments/results are added to the site, and links to them are rewritten: so the same links work in the repository.
"""

from __future__ import annotations

import argparse
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from vxl2_jax.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = "<!-- commands -->"
"""Where reference/command-line.md receives the commands."""
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "BUILD-notes.md": "build-notes.md",
}
PLOTS = {path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments" / "results").rglob("*.png")}
ADDED = {**PAGES, **{plot: plot.removeprefix("experiments/") for plot in PLOTS}}
"""Path in the repository → path in the site, of files outside docs/."""


def on_files(files: Files, config: Any) -> Files:
    """Add the files of `ADDED` to the site."""
    for source, target in ADDED.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links between docs/ and the rest of the repository, and insert the commands."""
    origins = {target: source for source, target in ADDED.items()}
    source = origins.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewrite(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = ADDED.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        if place is None:
            return link[0]
        return f"]({posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"

    markdown = re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", rewrite, markdown)
    return markdown.replace(COMMANDS, command_line()) if COMMANDS in markdown else markdown


def command_line() -> str:
    """The commands of `vxl2` and their arguments as Markdown."""
    return "\n\n".join(section for command in subcommands(build_parser()) for section in sections(command))


def subcommands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of a parser's subcommands."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [child for action in actions for child in action.choices.values()]


def sections(command: argparse.ArgumentParser, level: int = 2) -> list[str]:
    """A command: heading, description, usage, a table for each group of arguments, examples, subcommands."""
    formatter = command._get_formatter()
    found = [f"{'#' * level} {command.prog}", preformatted(command.description or "")]
    found.append(f"```text\n{command.format_usage().strip()}\n```")
    for group in command._action_groups:
        rows = [
            f"| {names(action, formatter)} | {meaning(action, formatter)} |"
            for action in group._group_actions
            if action.help not in (None, argparse.SUPPRESS)
            and not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))
        ]
        if rows:
            found.append("\n".join([f"**{group.title}**\n", "| argument | meaning |", "| --- | --- |", *rows]))
    found.append(preformatted(command.epilog or ""))
    for child in subcommands(command):
        found += sections(child, level + 1)
    return [section for section in found if section]


def names(action: argparse.Action, formatter: argparse.HelpFormatter) -> str:
    """An argument as it is written, such as `--top-k K`."""
    written = re.sub(r" \{.*?\}", "", formatter._format_action_invocation(action))
    return ", ".join(f"`{cell(name)}`" for name in written.split(", "))


def meaning(action: argparse.Action, formatter: argparse.HelpFormatter) -> str:
    """The help text of an argument, with its choices."""
    choices = ", ".join(f"`{choice}`" for choice in action.choices or ())
    return cell(formatter._expand_help(action)) + (f"; one of {choices}" if choices else "")


def cell(text: str) -> str:
    """Text inside a cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def preformatted(text: str) -> str:
    """One paragraph as it is; anything longer keeps its line breaks."""
    return f"```text\n{text.strip()}\n```" if "\n" in text.strip() else text
