"""`vxl2 doctor`: one report about the installation, the devices and, if named, a model's weights."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from pallas_kernels import attention
from vxl2_jax import __version__, activations, config, cpu, hardware, installed, kernel_trial, planning
from vxl2_jax.checkpoints.fetch import NANO
from vxl2_jax.cli import options
from vxl2_jax.models import quantised
from vxl2_jax.video.reader import open_video

_EXAMPLES = """examples:
  vxl2 doctor
  vxl2 doctor --model BAAI/Video-XL-2

Paste the report into a bug report. With --model, the weights are loaded: keys and shapes are compared with those of the
model's config.json, every number must be finite, and so must the activations of each layer over frames of the bundled
clip. "fit" is what `vxl2 plan --device here` computes. The exit code is 2 if a check failed."""
QUESTION = "What appears at 40 seconds?"
_FRAMES = 8
_HEAD_WIDTHS = (128, 72)  # of the real model's language model and vision tower


def add(commands: Any, help: str) -> None:
    """Add the command, with its line in `vxl2 --help`, to the subparsers `commands`."""
    doctor = commands.add_parser(
        "doctor",
        formatter_class=options.Help,
        epilog=_EXAMPLES,
        help=help,
        description="Report versions, devices, kernels' self-tests and cache folders, and check a model's weights.",
    )
    doctor.set_defaults(run=run)
    options.add_model(doctor, default=None)
    options.add_output(doctor)


def run(args: argparse.Namespace) -> None:
    """Run `vxl2 doctor`."""
    from vxl2_jax.errors import RequestError

    device = hardware.device()
    report: dict[str, Any] = {
        "versions": versions(),
        "devices": [device_data(each) for each in jax.devices()],
        "kernels": kernel_tests(device, jnp.dtype(args.dtype or hardware.default_dtype(device))),
        "folders": folders(),
        "released_model": planning.fits_here(config.video_xl_2()),
        "problems": [],
    }
    if problem := installed.jax_problem():
        report["problems"].append(problem)
    report["problems"] += [f"{name}: {text}" for name, text in report["kernels"].items() if text != "agrees"]
    if args.model is not None:
        model = options.load_model(args)  # raises for missing, unexpected and mis-shaped tensors
        report["model"] = {
            "name": model.name,
            "dtype": str(model.dtype),
            "weights": model.weights,
            "parts": weights_data(model.params),
        }
        bad = [name for part in report["model"]["parts"].values() for name in part["not_finite"]]
        report["problems"] += [f"weights that are not finite: {name}" for name in bad]
        sizes = activations.largest_by_layer(model, demo_frames(model.config.vision.image_size), QUESTION)
        bad = [name for name, size in sizes.items() if not np.isfinite(size)]
        report["problems"] += [f"activations are not finite from {name} on, in {model.dtype}" for name in bad[:1]]
        report["model"] |= {"activations": {name: _number(size) for name, size in sizes.items()}}
        report["model"] |= {"fits": planning.fits_here(model.config)}
    print(json.dumps(report, indent=1) if args.json else "\n".join(as_text(report)))
    if report["problems"]:
        raise RequestError(f"{len(report['problems'])} problems: {report['problems'][0]}")


def versions() -> dict[str, str]:
    """Python, the machine, this package, and all packages that it requires, as installed."""
    names = [text for text in metadata.requires("vxl2_jax") or () if "extra ==" not in text]
    names = sorted({text.split(">")[0].strip() for text in names} | {"jaxlib", *installed.PLUGINS})
    found = {name: installed.version_of(name) for name in names}
    machine = {"python": platform.python_version(), "platform": platform.platform(), "vxl2_jax": __version__}
    return machine | {name: version for name, version in found.items() if version}


def device_data(device: Any) -> dict[str, Any]:
    """Kind of a device, and bytes of its memory that this process can use and uses."""
    return {
        "platform": device.platform,
        "kind": device.device_kind,
        "cores": cpu.cpu_cores() if device.platform == "cpu" else None,
        "memory_bytes": hardware.memory_bytes(device),
        "used_bytes": hardware.used_bytes(device),
    }


def kernel_tests(device: Any, dtype: Any) -> dict[str, str]:
    """Of the reference and of the kernel chosen for the device: "agrees", or what went wrong.

    The reference is compared with NumPy in float64, the kernel with the reference.
    """
    error = reference_error(dtype)
    tolerance = attention.TOLERANCE[dtype.itemsize]
    found = {"reference": "agrees" if error <= tolerance else f"relative error {error:.2g} against NumPy"}
    for name in () if device.platform == "cpu" else attention.NAMES[1:-1]:
        try:
            kernel = attention.choose_kernel(name, dtype=dtype, width=_HEAD_WIDTHS[0], device=device).kernel
        except ValueError:  # not written for this device
            continue
        asked = {"dtype": dtype, "width": _HEAD_WIDTHS[0], "device": device}
        found[name] = kernel_trial.trial(kernel, **asked) or "agrees"
        if attention.gradient_refusal(kernel, dtype=dtype, width=_HEAD_WIDTHS[0]) is None:
            found[f"{name}, gradient"] = kernel_trial.trial(kernel, **asked, gradient=True) or "agrees"
    return found


def reference_error(dtype: Any) -> float:
    """The largest relative error of the reference's causal attention over 24 keys, against NumPy in float64."""
    rng, (count, heads, width) = np.random.default_rng(0), (24, 2, 16)
    q, k, v = (jnp.asarray(rng.normal(size=(count, heads, width)), dtype) for _ in "qkv")
    stream = attention.KVCache(*(jnp.moveaxis(a, 1, 0)[None] for a in (k, v)))
    start, end = jnp.zeros((1, count), jnp.int32), jnp.arange(1, count + 1)[None]
    plan = attention.plan_attention(attention.REFERENCE, start, end, heads=heads, streams=(stream,))
    with jax.default_matmul_precision("highest"):
        out = np.asarray(jax.jit(attention.attend)(q, (stream,), plan)[0], np.float64)
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    logits = np.einsum("ihd,jhd->hij", q, k) * width**-0.5
    logits = np.where(np.tri(count, dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    want = np.einsum("hij,jhd->ihd", weights / weights.sum(-1, keepdims=True), v)
    return float(np.max(np.linalg.norm(out - want, axis=-1) / np.linalg.norm(want, axis=-1)))


def folders() -> dict[str, dict[str, Any]]:
    """The folder of compiled programs and that of downloaded models: path, whether it can be written, bytes."""
    from huggingface_hub.constants import HF_HUB_CACHE

    paths = {"compiled programs": jax.config.jax_compilation_cache_dir, "downloaded models": HF_HUB_CACHE}
    return {name: _folder(Path(path)) for name, path in paths.items() if path}


def _folder(path: Path) -> dict[str, Any]:
    parent = next(each for each in (path, *path.parents) if each.exists())
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())
    return {"path": str(path), "writable": os.access(parent, os.W_OK), "bytes": size}


def demo_frames(size: int) -> UInt8[np.ndarray, "F {size} {size} 3"]:
    """Frames of the bundled clip, evenly spaced."""
    source = open_video(NANO.parent / "demo.mp4", size=size, max_frames=_FRAMES)
    return np.concatenate(list(source.batches(_FRAMES)))


def _number(size: float) -> float | str:
    """A number for JSON, which has no NaN and no infinity."""
    return float(f"{size:.4g}") if np.isfinite(size) else str(size)


def weights_data(params: Any) -> dict[str, dict[str, Any]]:
    """By part of the model: parameters, largest absolute value, and the names of leaves that are not finite."""
    parts: dict[str, dict[str, Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=quantised.is_quantised):
        names = [str(key.key) for key in path]
        part = parts.setdefault(names[0], {"parameters": 0, "largest": 0.0, "not_finite": []})
        if quantised.is_quantised(leaf):
            largest, size = float(jnp.max(leaf.scale)) * leaf.limit, leaf.values.size
        else:
            largest, size = float(jnp.max(jnp.abs(leaf))), leaf.size
        # NaN or infinite if one of the weights is.
        part["parameters"] += size
        if np.isfinite(largest):
            part["largest"] = max(part["largest"], largest)
        else:
            part["not_finite"].append(".".join(names))
    return parts


def as_text(report: dict[str, Any]) -> list[str]:
    """The report as lines."""
    lines = [f"{name} {version}" for name, version in report["versions"].items()]
    for device in report["devices"]:
        cores = f", {device['cores']} cores" if device["cores"] else ""
        sizes = [
            f"{word} {device[key] / 1e9:.1f} GB"
            for word, key in (("usable", "memory_bytes"), ("used", "used_bytes"))
            if device[key] is not None
        ]
        lines.append(f"device: {device['platform']} {device['kind']}{cores}, {', '.join(sizes) or 'memory unknown'}")
    lines += [f"kernel {name}: {text}" for name, text in report["kernels"].items()]
    for name, folder in report["folders"].items():
        state = "writable" if folder["writable"] else "NOT writable"
        lines.append(f"{name}: {folder['path']}, {state}, {folder['bytes'] / 1e6:.1f} MB")
    lines.append(f"released model: {report['released_model']}")
    if "model" in report:
        lines.append(
            f"model {report['model']['name']} in {report['model']['dtype']}, {report['model']['weights']} weights: keys and shapes fit"
        )
        for name, part in report["model"]["parts"].items():
            state = f"not finite: {', '.join(part['not_finite'])}" if part["not_finite"] else "all finite"
            lines.append(f"  {name}: {part['parameters']:,} parameters, largest {part['largest']:.3g}, {state}")
        sizes = ", ".join(f"{name} {size}" for name, size in report["model"]["activations"].items())
        lines.append(f"  largest activation by layer: {sizes}")
        lines.append(f"  {report['model']['fits']}")
    return [*lines, *(f"problem: {text}" for text in report["problems"])] + (
        [] if report["problems"] else ["no problem"]
    )
