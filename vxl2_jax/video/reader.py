"""Opening a video, an image or a folder of images, and reading its chosen frames in batches.

Symbols: N frames in the file, F frames chosen, S the side of the square they are resized to.
"""

import contextlib
import dataclasses
import functools
import hashlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from vxl2_jax import files
from vxl2_jax.errors import VideoError
from vxl2_jax.video.container import PacketIndex, RGBFrame, read_frames, read_index
from vxl2_jax.video.images import folder_images, is_image, read_image, read_images
from vxl2_jax.video.preprocess import resize_frame, resize_padded
from vxl2_jax.video.sampling import check_options, frame_seconds, sample_indices, sample_timestamps

Item = TypeVar("Item")
MAX_SECONDS = 100_000_000
"""Of a video: three years."""


@dataclasses.dataclass(frozen=True)
class VideoSource:
    """The chosen frames of a video. Their pixels are read on demand.

    path: the file or folder.
    kind: "video", "image" or "folder".
    native_fps: frames per second (the average of a variable rate); 1 for an image.
    duration_s: seconds; 0 for an image.
    total_frames: N, as counted, whatever the file's header claims.
    variable_rate: frames were chosen by timestamp, not by frame number.
    damaged: parts of the file cannot be decoded; N counts the other frames.
    size: S, pixels.
    indices: frame numbers, non-decreasing (a frame that is on screen for long may be chosen twice).
    seconds: timestamps since the first frame, rounded to one decimal.
    generated: the file says that `experiments.synthetic` made it.
    """

    path: Path
    kind: Literal["video", "image", "folder"]
    native_fps: float
    duration_s: float
    total_frames: int
    variable_rate: bool
    damaged: bool
    size: int
    indices: Int64[np.ndarray, " F"]
    seconds: Float64[np.ndarray, " F"]
    # Reads the frames with these numbers, which strictly increase.
    _read: Callable[[Int64[np.ndarray, " M"]], Iterator[RGBFrame]] = dataclasses.field(repr=False)
    generated: bool = False

    def batches(self, frames_per_batch: int, first: int = 0) -> Iterator[UInt8[np.ndarray, "n S S 3"]]:
        """Decode and resize the frames, in order. Every call starts from the beginning.

        Args:
          frames_per_batch: n, at least 1.
          first: how many of the F frames to skip at the beginning.

        Yields:
          Batches of RGB frames, F - first frames in total; the last batch may be smaller.

        Raises:
          VideoError: `frames_per_batch` is below 1, or the file has changed and cannot be read any more.
        """
        if frames_per_batch < 1:
            raise VideoError(f"frames_per_batch={frames_per_batch}: give at least 1")
        return self._batches(frames_per_batch, first)

    def _batches(self, frames_per_batch: int, first: int) -> Iterator[UInt8[np.ndarray, "n S S 3"]]:
        frames, repeats = np.unique(self.indices[first:], return_counts=True)
        if not len(frames):
            return
        batch = []
        for rgb, count in zip(self._read(frames), repeats, strict=True):
            frame = resize_frame(rgb, self.size)
            for _ in range(count):
                batch.append(frame)
                if len(batch) == frames_per_batch:
                    yield np.stack(batch)
                    batch = []
        if batch:
            yield np.stack(batch)


def open_video(
    path: str | Path,
    *,
    size: int,
    fps: float = 1.0,
    max_frames: int | None = None,
    max_fps: float | None = 4.0,
    multiple_of_4: bool = False,
) -> VideoSource:
    """Open a video and choose its frames. Reads all packets but decodes almost nothing.

    A video with a constant rate is sampled by frame number, as in the original's loader; one with a variable rate by
    timestamp. A damaged file is decoded once here, to find the frames that can be read. An image is a video with one
    frame at 0.0 s, padded to a square with grey 127. A folder of images is a video with one image every 1 / fps seconds
    (`fps` sets their timestamps and drops none), sorted by name with numbers in numeric order.

    Args:
      path: a video, an image, or a folder of images.
      size: S, the side in pixels to which frames are resized.
      fps, max_frames, max_fps, multiple_of_4: as in `sample_indices`.

    Returns:
      A VideoSource with F >= 1 frames.

    Raises:
      VideoError: the video cannot be read, or an option is invalid.
    """
    check_options(fps=fps, max_frames=max_frames, max_fps=max_fps)
    if size < 1:
        raise VideoError(f"size={size}: give the side of the resized frames in pixels, such as 384")
    path = Path(path)
    options = {"fps": fps, "max_frames": max_frames, "max_fps": max_fps, "multiple_of_4": multiple_of_4}
    with check_readable(path):
        if path.is_dir():
            return _open_folder(path, size, options)
        if is_image(path):
            return _open_image(path, size)
        return _open_container(path, size, options)


def content_hash(path: str | Path) -> str:
    """The SHA-256 of a file's content, or of the names and contents of a folder's images, in hexadecimal.

    Raises VideoError if the path does not exist or cannot be read.
    """
    path = Path(path)
    with check_readable(path):
        if not path.is_dir():
            return _file_hash(path)
        lines = (f"{_file_hash(image)} {image.name}\n" for image in folder_images(path))
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def prefetch(iterator: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """Run an iterator in a background thread, up to `depth` items ahead of the consumer.

    The thread starts when the first item is requested. An exception in the iterator is raised in the consumer, after
    the items before it. If the consumer stops early (break, close, garbage collection), the thread finishes its current
    item, closes the iterator and ends.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, not {depth}")
    return _prefetch(iterator, depth)


def _prefetch(iterator: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    ready: queue.Queue = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: Item | None, error: BaseException | None, is_end: bool) -> None:
        while not stopped.is_set():
            try:
                return ready.put((item, error, is_end), timeout=0.1)
            except queue.Full:
                pass

    def produce() -> None:
        error = None
        try:
            for item in iterator:
                put(item, None, False)
                if stopped.is_set():
                    break
        except BaseException as raised:  # re-raised in the consumer
            error = raised
        finally:
            # A generator may only be closed by the thread that runs it.
            getattr(iterator, "close", lambda: None)()
            put(None, error, True)

    thread = threading.Thread(target=produce, name="vxl2-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error, is_end = ready.get()
            if error is not None:
                raise error
            if is_end:
                return
            yield item
    finally:
        stopped.set()
        thread.join()


def _open_container(path: Path, size: int, options: dict) -> VideoSource:
    index = read_index(path)
    total = len(index.times)
    rate = _constant_rate(index)
    if rate is not None:
        indices = sample_indices(total, rate, **options)
        seconds = frame_seconds(indices, rate)
    else:
        indices, seconds = sample_timestamps(index.times, **options)
    native = rate or (total - 1) / float(index.times[-1])
    if total / native > MAX_SECONDS:
        raise VideoError(
            f"{path}: by its frame rate it lasts {total / native:,.0f} s, more than {MAX_SECONDS:,}; encode it again with the "
            "right rate"
        )
    read = functools.partial(read_frames, path, index)
    return VideoSource(
        path,
        "video",
        native,
        total / native,
        total,
        rate is None,
        index.damaged,
        size,
        indices,
        seconds,
        read,
        index.generated,
    )


def _open_image(path: Path, size: int) -> VideoSource:
    read_image(path)  # raises now if the image is damaged

    def read(_: Int64[np.ndarray, " M"]) -> Iterator[RGBFrame]:
        yield resize_padded(read_image(path), size)

    return VideoSource(path, "image", 1.0, 0.0, 1, False, False, size, np.zeros(1, np.int64), np.zeros(1), read)


def _open_folder(path: Path, size: int, options: dict) -> VideoSource:
    images = folder_images(path)
    if invalid := next((image for image in images if not is_image(image)), None):
        raise VideoError(f"{invalid}: not an image, despite its name; remove it from the folder")
    fps, total = float(options["fps"]), len(images)
    indices = sample_indices(total, fps, **options)

    def read(frames: Int64[np.ndarray, " M"]) -> Iterator[RGBFrame]:
        return read_images([images[i] for i in frames])

    return VideoSource(
        path, "folder", fps, total / fps, total, False, False, size, indices, frame_seconds(indices, fps), read
    )


def _constant_rate(index: PacketIndex) -> float | None:
    """The rate at which every frame's time is within half a frame of number / rate, or None.

    The container's own average rate is tried first, because the original uses it.
    """
    times, count = index.times, len(index.times)
    if count == 1:
        return index.rate or 1.0
    measured = (count - 1) / float(times[-1]) if times[-1] > 0 else None
    for rate in (index.rate, measured):
        if rate and np.all(np.abs(times * rate - np.arange(count)) <= 0.5):
            return rate
    # If all frames have the same timestamp, rely on the container.
    return None if measured else index.rate or 25.0


@contextlib.contextmanager
def check_readable(path: Path) -> Generator[None, None, None]:
    """Raise VideoError for a path that cannot be read, instead of a decoder's own error."""
    try:
        if files.is_address(path):
            address = str(path).replace(":/", "://", 1)
            raise VideoError(
                f"{address}: an address, not a file; download it, or give --allow-url to vxl2 ask or watch"
            )
        if not path.exists():
            raise VideoError(f"{path}: no such file; give the path of a video, an image or a folder of images")
        if not (path.is_file() or path.is_dir()):
            raise VideoError(f"{path}: a device or pipe; save the video to a file first")
        if path.is_file() and path.stat().st_size == 0:
            raise VideoError(f"{path}: the file is empty; fetch or copy the video again")
        yield
    except OSError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _file_hash(path: Path) -> str:
    with files.open_regular(path, files.VIDEO) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
