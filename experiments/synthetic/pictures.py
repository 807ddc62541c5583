"""The 60 named pictures that appear in generated clips."""

import functools
import json
import pathlib

import numpy as np
from PIL import Image

_FOLDER = pathlib.Path(__file__).resolve().parent / "pictures"


@functools.cache
def load() -> tuple[tuple[str, ...], np.ndarray]:
    """The names, sorted, and their pictures: uint8 [60, 96, 96, 4], RGBA with alpha not multiplied in, read-only."""
    content = json.loads((_FOLDER / "names.json").read_text())
    names, cell, columns = tuple(content["names"]), content["cell"], content["columns"]
    with Image.open(_FOLDER / "atlas.webp") as picture:
        atlas = np.asarray(picture.convert("RGBA"))
    rows = atlas.shape[0] // cell
    cells = atlas.reshape(rows, cell, columns, cell, 4).swapaxes(1, 2)
    cells = np.ascontiguousarray(cells.reshape(rows * columns, cell, cell, 4)[: len(names)])
    cells.setflags(write=False)
    return names, cells
