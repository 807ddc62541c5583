"""Rebuild the picture atlas from the npm package it was cut from.

The pictures are Microsoft's Fluent Emoji (3D), packaged as
`@lobehub/fluent-emoji-3d` 1.1.0 under the MIT licence:

    npm pack @lobehub/fluent-emoji-3d@1.1.0
    tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz
    python -m experiments.synthetic.make_pictures --package package
"""

import argparse
import json
import pathlib
import sys

from PIL import Image

CELL = 96  # side of one picture in the atlas, pixels
COLUMNS = 8
HERE = pathlib.Path(__file__).resolve().parent / "pictures"

# One plain English word -> the Unicode code of its picture. Chosen to differ in
# shape and colour, so that a picture 35 pixels wide can still be named.
CODES = {
    "airplane": "2708",
    "anchor": "2693",
    "apple": "1f34e",
    "balloon": "1f388",
    "banana": "1f34c",
    "basketball": "1f3c0",
    "bicycle": "1f6b2",
    "broccoli": "1f966",
    "bus": "1f68c",
    "butterfly": "1f98b",
    "cactus": "1f335",
    "camera": "1f4f7",
    "car": "1f697",
    "carrot": "1f955",
    "castle": "1f3f0",
    "cat": "1f431",
    "clock": "23f0",
    "crab": "1f980",
    "crown": "1f451",
    "dog": "1f436",
    "doughnut": "1f369",
    "drum": "1f941",
    "elephant": "1f418",
    "flamingo": "1f9a9",
    "fox": "1f98a",
    "frog": "1f438",
    "ghost": "1f47b",
    "gift": "1f381",
    "globe": "1f30d",
    "grapes": "1f347",
    "guitar": "1f3b8",
    "hamburger": "1f354",
    "hat": "1f3a9",
    "house": "1f3e0",
    "key": "1f511",
    "mushroom": "1f344",
    "octopus": "1f419",
    "owl": "1f989",
    "panda": "1f43c",
    "peacock": "1f99a",
    "penguin": "1f427",
    "pig": "1f437",
    "pineapple": "1f34d",
    "pizza": "1f355",
    "rainbow": "1f308",
    "robot": "1f916",
    "rocket": "1f680",
    "sailboat": "26f5",
    "scissors": "2702",
    "snail": "1f40c",
    "spider": "1f577",
    "sunflower": "1f33b",
    "tractor": "1f69c",
    "turtle": "1f422",
    "umbrella": "2602",
    "unicorn": "1f984",
    "volcano": "1f30b",
    "watermelon": "1f349",
    "whale": "1f433",
    "zebra": "1f993",
}


def picture_file(package: pathlib.Path, code: str) -> pathlib.Path:
    """The file of one code; some codes carry the suffix `-fe0f` (drawn as a picture)."""
    for name in (f"{code}.webp", f"{code}-fe0f.webp"):
        if (package / "assets" / name).is_file():
            return package / "assets" / name
    raise FileNotFoundError(
        f"{package}/assets holds no picture {code}; is this the unpacked @lobehub/fluent-emoji-3d 1.1.0?"
    )


def cell(path: pathlib.Path) -> Image.Image:
    """One picture cropped to what is visible, centred on a CELL × CELL transparent square."""
    picture = Image.open(path).convert("RGBA")
    # Below alpha 16 only a faint shadow is left; it would make the picture look smaller.
    picture = picture.crop(picture.getchannel("A").point(lambda a: 255 * (a >= 16)).getbbox())
    scale = CELL / max(picture.size)
    width, height = (max(1, round(scale * side)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (CELL, CELL))
    square.paste(picture, ((CELL - width) // 2, (CELL - height) // 2))
    return square


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--package", type=pathlib.Path, required=True, help="the unpacked npm package (the folder that holds assets/)"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=HERE,
        help="folder for atlas.webp and names.json (default: beside this script)",
    )
    flags = parser.parse_args()
    rows = -(-len(CODES) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    try:
        for i, code in enumerate(CODES.values()):
            atlas.paste(cell(picture_file(flags.package, code)), (i % COLUMNS * CELL, i // COLUMNS * CELL))
    except FileNotFoundError as error:
        print(f"make_pictures: {error}", file=sys.stderr)
        return 1
    flags.out.mkdir(parents=True, exist_ok=True)
    atlas.save(flags.out / "atlas.webp", quality=90, alpha_quality=95, method=6)
    names = {"cell": CELL, "columns": COLUMNS, "names": list(CODES), "codes": list(CODES.values())}
    (flags.out / "names.json").write_text(json.dumps(names, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
