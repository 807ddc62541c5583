"""README and docs/ are true: links lead somewhere, commands parse, modules and targets exist."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from vxl2_jax.cli import build_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "experiments" / "README.md"])
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def parser():
    return build_parser()


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page in some languages."""
    return [text for language, text in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def commands(page: Path) -> Iterator[list[str]]:
    """The shell commands of a page as words, without redirections and comments."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;", line):
                words = shlex.split(part, comments=True)
                if words:
                    yield words[: words.index(">")] if ">" in words else words


def vxl2_commands(page: Path) -> list[list[str]]:
    return [words[1:] for words in commands(page) if Path(words[0]).name == "vxl2"]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_relative_links_exist(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:|#", link)]
    assert not [link for link in targets if not (page.parent / link.partition("#")[0]).exists()]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_vxl2_commands_parse(page, parser, capsys):
    for words in vxl2_commands(page):
        try:
            parser.parse_args(words)
        except SystemExit as end:  # --help
            assert end.code == 0, f"vxl2 {shlex.join(words)}: {capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_modules_exist(page):
    modules = set(re.findall(r"-m (experiments[\w.]*\w)", page.read_text(encoding="utf-8")))
    assert not [module for module in modules if not runs(module)]


def runs(module: str) -> bool:
    """Whether `python -m` finds something to run. Parent packages are imported, the module is not."""
    spec = importlib.util.find_spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return spec is not None and (not is_package or importlib.util.find_spec(f"{module}.__main__") is not None)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for words in commands(page) if words[0] == "make" for word in words[1:] if "=" not in word}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_python_blocks_compile(page):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


def test_all_commands_of_vxl2_are_shown():
    """So that the tests above do not pass because nothing was found."""
    shown = {words[0] for page in PAGES for words in vxl2_commands(page) if words}
    assert shown >= {"ask", "watch", "batch", "eval", "plan", "train"}


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert pages and not [page for page in pages if f": {page}\n" not in navigation]
