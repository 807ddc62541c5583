"""A worker that reads the chosen frames of a film with one reader, again and again.

Every reader ends in the same frames: RGB, resized with Pillow's bicubic filter. Imported at the top is only what the
environment of every reader has, so that another interpreter can run this as a file or module.
"""

from __future__ import annotations

import bisect
import importlib
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from experiments.bench.workers import peak, reply, reset_peak, serve

BATCH = 16  # frames that are asked for at a time
Read = Callable[[], Iterator[np.ndarray]]
"""Starts reading from the beginning, opening the film included: yields uint8 [n, size, size, 3]."""


def resized(frame: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))


def ours(request: dict) -> tuple[Read, str]:
    """`vxl2_jax.video` of the checkout that the request names."""
    sys.path.insert(0, request["checkout"])
    video = importlib.import_module("vxl2_jax.video")
    if not os.path.abspath(video.__file__).startswith(os.path.abspath(request["checkout"]) + os.sep):
        raise ImportError(f"vxl2_jax is not that of {request['checkout']}")
    more = {}
    if request["threads"]:
        if "read_threads" not in inspect.signature(video.open_video).parameters:
            raise ValueError("open_video has no read_threads")
        more = {"read_threads": request["threads"]}

    def read() -> Iterator[np.ndarray]:
        source = video.open_video(request["film"], size=request["size"], fps=request["fps"], **more)
        if source.indices[: len(request["indices"])].tolist() != request["indices"]:
            raise ValueError("other frames are chosen")
        return source.batches(BATCH)

    return read, importlib.import_module("vxl2_jax").__version__


def torchcodec(request: dict) -> tuple[Read, str]:
    module = importlib.import_module("torchcodec")
    decoders = importlib.import_module("torchcodec.decoders")
    threads = {} if request["threads"] is None else {"num_ffmpeg_threads": request["threads"]}

    def read() -> Iterator[np.ndarray]:
        decoder = decoders.VideoDecoder(request["film"], dimension_order="NHWC", **threads)
        for batch in batches(request["indices"]):
            yield stacked(decoder.get_frames_at(batch).data.numpy(), request)

    return read, module.__version__


def decord2(request: dict) -> tuple[Read, str]:
    module = importlib.import_module("decord")
    threads = {} if request["threads"] is None else {"num_threads": request["threads"]}

    def read() -> Iterator[np.ndarray]:
        decoder = module.VideoReader(request["film"], **threads)
        for batch in batches(request["indices"]):
            yield stacked(decoder.get_batch(batch).asnumpy(), request)

    return read, module.__version__


def opencv(request: dict) -> tuple[Read, str]:
    """Grabs every frame, and retrieves those that are chosen: seeking is slower, and not exact."""
    module = importlib.import_module("cv2")
    threads = [] if request["threads"] is None else [module.CAP_PROP_N_THREADS, request["threads"]]

    def read() -> Iterator[np.ndarray]:
        capture = module.VideoCapture(request["film"], module.CAP_FFMPEG, threads)
        at = -1
        for batch in batches(request["indices"]):
            frames = []
            for number in batch:
                while at < number:
                    if not capture.grab():
                        raise ValueError(f"frame {at + 1} cannot be read")
                    at += 1
                frames.append(module.cvtColor(capture.retrieve()[1], module.COLOR_BGR2RGB))
            yield stacked(frames, request)

    return read, module.__version__


def needed(request: dict) -> tuple[Read, str]:
    """One thread decodes exactly the packets that the chosen frames need, known beforehand. Counts its stages."""
    av = importlib.import_module("av")
    with av.open(request["film"]) as container:
        packets = [(p.pts, p.is_keyframe) for p in container.demux(container.streams.video[0]) if p.size]
    shown = sorted(pts for pts, _ in packets)
    wanted = {shown[number] for number in request["indices"]}
    runs = needed_runs(packets, wanted)

    def read() -> Iterator[np.ndarray]:
        spent = request["stages"] = dict.fromkeys(STAGES, 0.0)
        clock = Clock(spent)
        with av.open(request["film"]) as container:
            stream = container.streams.video[0]
            decoder = stream.codec_context
            decoder.thread_type, decoder.thread_count = "NONE", 1
            skips = decoder.name in ("h264", "hevc")
            waiting, place, done = list(runs), -1, []
            for packet in container.demux(stream):
                clock.stop("demuxing")
                place += bool(packet.size)
                if not packet.size or not waiting or place < waiting[0][0]:
                    continue
                if skips:
                    decoder.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
                decoded = decoder.decode(packet)
                if place == waiting[0][1]:
                    waiting.pop(0)
                    decoded += decoder.decode(None)
                    decoder.flush_buffers()
                clock.stop("decoding")
                for frame in decoded:
                    if frame.pts in wanted:
                        rgb = frame.reformat(format="rgb24", threads=1).to_ndarray()
                        clock.stop("conversion")
                        done.append(resized(rgb, request["size"]))
                        clock.stop("resizing")
                if len(done) >= BATCH or (done and not waiting):
                    yield np.stack(done)
                    done = []

    return read, av.__version__


def needed_runs(packets: list[tuple[int, bool]], wanted: set[int]) -> list[tuple[int, int]]:
    """First and last packet of each run, in order, from a key frame on. Runs that overlap are one.

    Args:
      packets: (presentation time, whether it is a key frame) in decode order.
      wanted: presentation times of the chosen frames.
    """
    keys = [place for place, (_, is_key) in enumerate(packets) if is_key]
    found: list[tuple[int, int]] = []
    for last, (pts, _) in enumerate(packets):
        if pts not in wanted:
            continue
        # Pictures before a key frame that are stored after it need the run before.
        before = reversed(keys[: bisect.bisect_right(keys, last)])
        first = next((key for key in before if packets[key][0] <= pts), 0)
        while found and first <= found[-1][1]:
            first = min(first, found.pop()[0])
        found.append((first, last))
    return found


STAGES = ("demuxing", "decoding", "conversion", "resizing")


class Clock:
    """Adds the CPU seconds since the last stop to a stage."""

    def __init__(self, spent: dict[str, float]):
        self._spent, self._last = spent, time.process_time()

    def stop(self, stage: str) -> None:
        now = time.process_time()
        self._spent[stage] += now - self._last
        self._last = now


def batches(indices: list[int]) -> Iterator[list[int]]:
    return (indices[i : i + BATCH] for i in range(0, len(indices), BATCH))


def stacked(frames: Any, request: dict) -> np.ndarray:
    return np.stack([resized(frame, request["size"]) for frame in frames])


READERS = {"ours": ours, "needed": needed, "torchcodec": torchcodec, "decord2": decord2, "opencv": opencv}


def first_frames(count: int, found: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Batches of the first `count` frames, then the end of `found`."""
    for batch in found:
        yield batch[:count]
        count -= len(batch)
        if count <= 0:
            break
    getattr(found, "close", lambda: None)()


def read_repeatedly(request: dict, requests: Iterator[dict]) -> None:
    """Read once and save the frames; then once per request, with seconds, CPU seconds of all threads, and memory."""
    try:
        read, version = READERS[request["reader"]](request)
    except Exception as error:  # what a package raises where it cannot run
        first = (str(error).strip().splitlines() or ["no message"])[0]
        reply(refused=f"{type(error).__name__}: {first[:300]}")
        return
    shape = (len(request["indices"]), request["size"], request["size"], 3)
    saved = np.lib.format.open_memmap(request["out"], "w+", np.uint8, shape)
    at = 0
    for batch in first_frames(len(saved), read()):
        saved[at : at + len(batch)] = batch
        at += len(batch)
    if at != len(saved):
        raise ValueError(f"{at} frames instead of {len(saved)}")
    saved.flush()
    del saved
    reply(version=version, peak_bytes=peak())
    for _ in requests:
        before, cpu_start, start = reset_peak(), time.process_time(), time.perf_counter()
        spent = {}
        for _ in first_frames(len(request["indices"]), read()):
            spent.setdefault("first_s", time.perf_counter() - start)
        spent |= {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - cpu_start}
        reply(**spent, stages=request.get("stages"), before_bytes=before, peak_bytes=peak())


if __name__ == "__main__":
    serve({"read": read_repeatedly})
