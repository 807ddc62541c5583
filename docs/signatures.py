"""Signatures and docstrings of functions whose keywords are made by `vxl2_jax.options.takes`.

mkdocstrings parses the source without importing it, and so sees `**keywords` instead of the options.
"""

from __future__ import annotations

import inspect
from typing import Any

import griffe


class TakenOptions(griffe.Extension):
    """Read decorated functions from the imported module."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Replace docstring and parameters of a function that is decorated with `takes`."""
        if not any(str(decorator.value).startswith("takes(") for decorator in func.decorators):
            return
        imported = griffe.dynamic_import(func.path)
        func.docstring = griffe.Docstring(inspect.getdoc(imported), parent=func, parser="google")
        func.parameters = griffe.Parameters(
            *(
                griffe.Parameter(
                    item.name,
                    annotation=None if item.annotation is item.empty else str(item.annotation),
                    kind=griffe.ParameterKind(item.kind.description),
                    default=None if item.default is item.empty else repr(item.default),
                )
                for item in inspect.signature(imported).parameters.values()
            )
        )
