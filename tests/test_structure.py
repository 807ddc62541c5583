"""The structure of the code: no import cycles, layers that point one way, unique names, plain words."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import pytest

from vxl2_jax.models.rope import rotate

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vxl2_jax", "pallas_kernels")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def layers() -> list[list[str]]:
    """The layers of docs/architecture.md from the highest to the lowest, as module names."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- layers.*?-->\n```\n(.*?)```", text, re.DOTALL)

    def full(name: str) -> str:
        return name if name.startswith("pallas_kernels") else f"vxl2_jax.{name}".removesuffix(".__init__")

    return [[full(name) for name in line.split()] for line in block.splitlines()]


LAYERS = layers()


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def listed(found: Iterable[str]) -> str:
    return "\n".join(sorted(found))


MODULES = {module_name(file): file for file in FILES}


def imported(file: Path) -> Iterator[str]:
    """Modules that a file imports, also those imported inside functions and under conditions."""
    package = module_name(file) if file.name == "__init__.py" else module_name(file).rpartition(".")[0]
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, node.module] if node.module else above)
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield full if full in MODULES else source


IMPORTS = {name: {other for other in imported(file) if other != name} for name, file in MODULES.items()}


def layer_of(module: str) -> int:
    """The number of the module's layer, 0 for the highest: that of the longest entry that is a prefix of its name."""
    entries = [
        (len(entry), at) for at, layer in enumerate(LAYERS) for entry in layer if f"{module}.".startswith(f"{entry}.")
    ]
    # "vxl2_jax" itself is only the facade in __init__.py: every other module needs an entry of its own.
    assert entries and (module == "vxl2_jax" or max(entries)[0] > len("vxl2_jax")), (
        f"{module} is in no layer: add it to docs/architecture.md"
    )
    return max(entries)[1]


def import_cycle() -> list[str]:
    """One cycle of imports, or an empty list."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in done:
            for other in sorted(IMPORTS[module] & MODULES.keys()):
                if found := visit(other, [*path, module]):
                    return found
            done.add(module)
        return []

    return next((found for module in MODULES if (found := visit(module, []))), [])


def test_no_import_cycle():
    assert import_cycle() == []


def test_layers_point_one_way():
    upward = [
        f"{module} -> {other}"
        for module in MODULES
        for other in IMPORTS[module] & MODULES.keys()
        if layer_of(other) < layer_of(module)
    ]
    assert not upward, listed(upward)


def test_layers_name_existing_modules():
    assert not [entry for layer in LAYERS for entry in layer if entry not in MODULES]


@pytest.mark.parametrize(
    "package, forbidden", [("pallas_kernels", {"vxl2_jax", "experiments"}), ("vxl2_jax", {"experiments"})]
)
def test_packages_do_not_import_what_is_built_on_them(package, forbidden):
    scripts = {file.stem for file in (ROOT / "experiments").iterdir() if file.suffix == ".py" or file.is_dir()}
    found = {
        f"{module} -> {other}"
        for module in MODULES
        if module.partition(".")[0] == package
        for other in IMPORTS[module]
        if other.partition(".")[0] in forbidden | scripts - {"results", "footage"}
    }
    assert not found, listed(found)


def test_no_import_is_only_for_type_checkers():
    """Annotations are checked at run time; a cycle that only type checkers see is still a cycle."""
    found = [place(file, node) for file, node in nodes(ast.Name, ast.Attribute) if name_of(node) == "TYPE_CHECKING"]
    assert not found, listed(found)


def nodes(*types: type, under: str = "") -> Iterator[tuple[Path, ast.AST]]:
    for file, tree in TREES.items():
        if str(file.relative_to(ROOT)).startswith(under):
            yield from ((file, node) for node in ast.walk(tree) if isinstance(node, types))


def name_of(node: ast.AST) -> str:
    return (
        getattr(node, "name", None)
        or getattr(node, "id", None)
        or getattr(node, "attr", None)
        or getattr(node, "arg", "")
    )


def place(file: Path, node: ast.AST) -> str:
    return f"{file.relative_to(ROOT)}:{node.lineno} {name_of(node)}"


# Names that have been replaced, in the sense they had: they must not come back.
OLD_MODULES = (
    *("vxl2_jax/asking", "vxl2_jax/watching", "vxl2_jax/jobs", "vxl2_jax/bases", "vxl2_jax/mixed", "vxl2_jax/machine"),
    *(
        "vxl2_jax/footprint",
        "vxl2_jax/report",
        "vxl2_jax/select",
        "vxl2_jax/relevance/looking",
        "vxl2_jax/relevance/mass",
    ),
    *("vxl2_jax/evaluation/moments", "vxl2_jax/training/arrange", "pallas_kernels/decode/runs"),
    *(f"pallas_kernels/attention/{name}" for name in ("work", "trial", "tried", "tiles")),
)
OLD_CLASSES = {"Base", "Reads", "Runs", "Items", "Open"}
OLD_NAMES = {"spare_programs", "choose_tried", "survey", "arrange", "beside", "unread", "MOST", "most", "least", "room"}
OLD_NAMES_IN = {
    "pallas_kernels/": {"peak", "total", "mixed", "shrink"},
    "vxl2_jax/training/": {"rate", "end", "clip", "right"},
}


def bindings(under: str = "") -> Iterator[tuple[str, str]]:
    """(name, place) of every function, parameter, field and variable."""
    for file, node in nodes(ast.FunctionDef, ast.arg, ast.Name, ast.Attribute, under=under):
        if isinstance(getattr(node, "ctx", ast.Store()), ast.Store):
            yield name_of(node), place(file, node)


def test_no_module_has_an_old_name():
    found = [path for path in OLD_MODULES if (ROOT / f"{path}.py").exists() or (ROOT / path).exists()]
    assert not found, listed(found)


def test_no_class_has_an_old_name():
    found = [place(file, node) for file, node in nodes(ast.ClassDef) if node.name in OLD_CLASSES]
    assert not found, listed(found)


def test_no_function_parameter_or_variable_has_an_old_name():
    found = [where for name, where in bindings() if name.lstrip("_") in OLD_NAMES]
    assert not found, listed(found)


@pytest.mark.parametrize("folder", OLD_NAMES_IN)
def test_no_parameter_has_an_old_name_of_its_folder(folder):
    found = [where for name, where in bindings(folder) if name.lstrip("_") in OLD_NAMES_IN[folder]]
    assert not found, listed(found)


def test_public_classes_have_unique_names():
    places = defaultdict(list)
    for file, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(file.relative_to(ROOT)))
    assert not {name: files for name, files in places.items() if len(files) > 1}


# Wording that readers had to decode, and what to write instead.
PHRASES = {
    r"\bby lot\b": "at random",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\btold\b": "given, reported",
    r"\bsaid\b": "reported, message",
    r"as though it (lay|lies)": "re-rotated to the position right before",
    r"\b(stands?|stood|standing) in memory\b": "peak live memory",
    r"\bgo(es|ing)? on where\b": "resumes",
    r"\b(turn(s|ed|ing)?) back\b": "un-rotated",
    r"\babreast\b": "in parallel",
    r"\bspare programs\b": "clear the jit caches",
    r"\banew\b": "again",
    r"\bbeside\b": "next to, with",
    r"\bmemory of the host\b": "host memory",
    r"\bwhat of (it|the)\b": "what is … in it, the part of it that",
    r"\bshar(e|es|ed|ing) out\b": "distribute",
}


@pytest.mark.parametrize("phrase", PHRASES)
def test_words_are_plain(phrase):
    found = [
        f"{file.relative_to(ROOT)}:{number} {line.strip()}"
        for file in FILES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(phrase, line, re.IGNORECASE)
    ]
    assert not found, f"write {PHRASES[phrase]!r} instead:\n{listed(found)}"


KERNELS = {"reference", "tpu", "hopper", "ampere"}


def test_the_library_never_compares_a_kernels_name():
    """What differs between kernels is a field of the kernel."""

    def strings(node: ast.AST) -> set[object]:
        return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}

    found = [
        place(file, node)
        for file, node in nodes(ast.Compare, under="vxl2_jax/")
        if any(isinstance(side, ast.Attribute) and side.attr == "name" for side in (node.left, *node.comparators))
        and strings(node) & KERNELS
    ]
    assert not found, listed(found)


def test_only_layout_computes_pooled_lengths():
    found = [
        place(file, node)
        for file, node in nodes(ast.BinOp, under="vxl2_jax/")
        if isinstance(node.op, ast.FloorDiv)
        and name_of(node.left) == "visual" != name_of(node.right)
        and file.name != "layout.py"
    ]
    assert not found, listed(found)


def test_wrong_shapes_are_refused_while_tests_run():
    """See `tests/runtime_types.py`."""
    x, half, wrong = jnp.zeros((3, 4)), jnp.zeros((3, 2)), jnp.zeros((3, 1))
    assert rotate(x, half, half).shape == x.shape
    with pytest.raises(jaxtyping.TypeCheckError, match="sin"):
        rotate(x, half, wrong)
