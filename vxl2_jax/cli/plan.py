"""`vxl2 plan`: what watching a video costs, before anything is loaded."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from vxl2_jax import hardware, planning, tensor_parallel
from vxl2_jax.cli.options import DTYPES, Help, add_number, add_options, add_weights, given
from vxl2_jax.errors import RequestError
from vxl2_jax.models.quantised import SETTINGS, WIDE
from vxl2_jax.options import AUTO, AskOptions, WatchOptions
from vxl2_jax.planning import reading
from vxl2_jax.video.reader import default_threads

HERE = "here"
"""The name of the device that is present."""
_EXAMPLES = """examples:
  vxl2 plan --frames 10000 --device h200 --model BAAI/Video-XL-2
  vxl2 plan --frames 1024 --device t4 --model BAAI/Video-XL-2 --weights int8
  vxl2 plan --frames 4096 --device v5e --model BAAI/Video-XL-2 --weights int8 --cache int8
  vxl2 plan --frames 9000 --device v5e --model BAAI/Video-XL-2 --weights int8 --cache int8 --dense-level host
  vxl2 plan --frames 4096 --device t4 --mesh model=2 --model BAAI/Video-XL-2 --weights int8 --cache int8
  vxl2 plan --frames 600 --device here --model BAAI/Video-XL-2
  vxl2 plan --frames 2048 --model BAAI/Video-XL-2 --fps 0.5 --block-size 4 --prev-blocks none --device a100-40 --json

No weights are loaded and no accelerator is needed. Memory is the peak of what is live at the same time. Seconds are a
lower bound: operations divided by the device's peak rate. Reading is estimated from measured costs of H.264 on a CPU; it
runs while the device computes, so the longer of the two is what watching takes at least."""


def add(commands: Any, help: str) -> None:
    """Add the command, with its line in `vxl2 --help`, to the subparsers `commands`."""
    plan = commands.add_parser(
        "plan",
        formatter_class=Help,
        epilog=_EXAMPLES,
        help=help,
        description="Compute what watching a video and asking one question cost, and whether they fit a device.",
    )
    plan.set_defaults(run=run)
    plan.add_argument("--model", default="nano", help="nano, or BAAI/Video-XL-2, of which nothing is downloaded")
    add_number(plan, "frames", required=True, metavar="N", help="number of sampled frames")
    add_number(plan, "question_tokens", default=68, metavar="S", help="tokens of the question with its template")
    plan.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype of wide weights, activations and memory (default: float32 on a CPU, else 16 bits)",
    )
    add_weights(plan, "wide", (*SETTINGS, AUTO))
    plan.add_argument(
        "--device", default="h200", metavar="D", help=f"{', '.join(planning.DEVICES)}; or {HERE}: that of this machine"
    )
    plan.add_argument(
        "--mesh",
        metavar="MESH",
        help="split the model (model=N) and the video (sequence=N) over such devices, or both with a comma between; auto=N: the "
        "fastest mesh of N devices on which the video fits. Memory is then that of one device",
    )
    plan.add_argument(
        "--film",
        default="1280x720@30",
        metavar="WxH@R",
        help="size and frames per second of the film, for the time to read it (H.264)",
    )
    add_number(plan, "cores", metavar="N", help="CPU cores that decode (default: those of this machine, at most 16)")
    plan.add_argument("--json", action="store_true", help="print a single JSON document on standard output")
    add_options(
        plan,
        WatchOptions,
        "watching",
        names=("fps", "block_size", "prev_blocks", "compression", "cache", "dense_level"),
    )
    add_options(plan, AskOptions, "asking", names=("top_k", "chunk_size"))


def _device(name: str) -> planning.DeviceSpec:
    device = planning.present_device() if name == HERE else planning.DEVICES.get(name)
    if device is None:
        known = ", ".join(planning.DEVICES)
        problem = "the memory of this device is unknown" if name == HERE else f"unknown device {name!r}"
        raise RequestError(f"{problem}: choose {known}")
    return device


def run(args: argparse.Namespace) -> None:
    """Run `vxl2 plan`."""
    from rich.console import Console

    from vxl2_jax.cli import render

    watch, ask = WatchOptions(**given(args, WatchOptions)), AskOptions(**given(args, AskOptions))
    watch.check()
    ask.check()
    film, cores = reading.parse(args.film), args.cores or default_threads()
    device = _device(args.device)
    dtype = args.dtype or hardware.default_dtype(device)
    itemsize = 4 if dtype == "float32" else 2
    config, tokenizer = planning.model_of(args.model)
    layout = planning.layout_for(config, tokenizer, args.frames, watch.fps)
    count = re.fullmatch(rf"{AUTO}=([1-9]\d{{0,3}})", args.mesh or "")
    mesh = tensor_parallel.MeshShape() if count else tensor_parallel.parse(args.mesh)
    tensor_parallel.check_divides(config, mesh.model)
    weights = args.weights or WIDE
    if weights == AUTO:
        usable = device.usable_bytes
        # As `load` chooses, which does not know how a memory will be stored.
        fields = {"devices": mesh.model, "sequence": mesh.sequence, **device.settings(config, itemsize)}
        weights, _ = planning.fitting_weights(config, tokenizer, usable, **fields)
    workload: dict[str, Any] = {
        "weights": weights,
        "question_tokens": args.question_tokens,
        "compression": watch.compression,
        "cache": watch.cache,
        "chunk_size": ask.chunk_size,
        "top_k": ask.top_k,
    }
    if count:
        known = {"itemsize": itemsize, **workload}
        mesh = planning.best_mesh(config, layout, watch.rule, int(count[1]), device, **known)
    workload |= {"devices": mesh.model, "sequence": mesh.sequence}
    fields = {**workload, **device.settings(config, itemsize, watch.cache)}
    places = planning.places_on(device, mesh.sequence) if watch.dense_level == AUTO else (watch.dense_level,)
    plans = {place: planning.plan(config, layout, watch.rule, dense_level=place, **fields) for place in places}
    if args.device == HERE:  # of another machine, host memory is unknown
        free = hardware.free_host_bytes()
        places = [place for place in places if plans[place].host_bytes <= free] or places[:1]
    # As `watch` chooses: in host memory only if the device has no room.
    place = next((place for place in places if plans[place].fits(device)), places[-1])
    workload["dense_level"], plan = place, plans[place]
    fits = plan.fits(device) and not (args.device == HERE and plan.host_bytes > hardware.free_host_bytes())
    other = {"itemsize": itemsize, **workload}
    advice = "" if fits else planning.advice(config, tokenizer, watch.fps, device, args.frames, **other)
    document = render.plan_data(
        plan, {"weights": weights, "cache": watch.cache, "dense_level": place}, args.device, device, fits, advice
    )
    document["fitting_settings"] = planning.fitting_settings(config, layout, device, **other)
    seconds = round(reading.cpu_seconds(film, args.frames, watch.fps) / cores, 2)
    is_wall = document["seconds"] is not None and seconds > document["seconds"]
    read = {"film": str(film), "cores": cores, "seconds": seconds, "longer_than_device": is_wall}
    document = {
        "model": args.model,
        "dtype": dtype,
        "mesh": str(mesh),
        "devices": mesh.devices,
        **document,
        "reading": read,
    }
    if args.json:
        print(json.dumps(document, indent=1))
    else:
        Console(highlight=False).print(render.plan_text(document), soft_wrap=True)
