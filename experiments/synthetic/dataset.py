"""Folders of videos with annotations. A command that is interrupted resumes when it is run again."""

import argparse
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from experiments.synthetic import clips, encode, files
from vxl2_jax.cli.options import progress
from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import records, run_folder


class Dataset(NamedTuple):
    """Videos and their annotations.

    Attributes:
      videos: the clip to render by file name, without ".mp4".
      annotations: file content by path relative to the folder.
    """

    videos: Mapping[str, clips.Clip]
    annotations: Mapping[str, str | bytes]

    def summary(self, out: pathlib.Path) -> str:
        """What was written to the folder."""
        return f"Wrote {len(self.videos)} videos and {len(self.annotations)} annotation files to {out}."


def write(dataset: Dataset, flags: argparse.Namespace) -> None:
    """Write OUT/videos/NAME.mp4, skipping those that exist, and then the annotations.

    The flags are stored in OUT/videos/run.json, so that datasets are never mixed.

    Args:
      flags: "out", the folder; "size" in pixels and "rate" in frames per second of the videos; and what else determines
        the dataset.

    Raises RequestError for a folder that was made with other flags, or holds other files.
    """
    out, folder = flags.out, flags.out / "videos"
    settings = {name: value for name, value in vars(flags).items() if name != "out"}
    if not run_folder.check_settings(folder, settings, records.OTHER) and any(
        path.is_file() for path in out.rglob("*")
    ):
        raise RequestError(f"{out}: exists already and holds other files; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.claim(folder, settings, {}, records.OTHER)
    with progress("rendering", "videos", quiet=False) as advance:
        for done, (name, clip) in enumerate(dataset.videos.items(), 1):
            path = folder / f"{name}.mp4"
            if not path.exists():
                encode.render_mp4(clip, path, flags.size, flags.rate)
            advance(done, len(dataset.videos))
    for name, content in dataset.annotations.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, content)
