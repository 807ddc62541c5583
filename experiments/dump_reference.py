"""Tensors of the original's own code and weights, in the form that check_parity.py compares with. Needs torch, not JAX.

In the original's environment, once for each of the three variants of its evaluation code that you want to compare:

    for v in pure w_chunk w_chunk_bilevel; do
        python dump_reference.py --variant $v --code Video-XL/Video-XL-2/eval/lvu/$v --checkpoint CHECKPOINT --out golden-real
    done

then in ours:

    python -m experiments.check_parity --golden golden-real --stride 1

The variant's `generate` is run on a short made-up video (noise that drifts) and a question, in float32; forward hooks take
what its modules give: vision tower, DTS, projector and pooled tokens, the embeddings, the mask, the keys and values of the last
layer, logits. The checkpoint's weights are loaded once more in float32, for the original's loader rounds them to float16.

The 8B model's weights are 33 GB in float32, here and in check_parity.py. Files of variants that were not dumped are
written empty, and check_parity.py says what it then cannot compare.

No checkpoint and no copy of the original's code were at hand when this was written: it has run on a stand-in for them
only, which has the same modules, arguments and outputs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

try:
    import torch
except ImportError:  # --help still teaches
    torch = None

VARIANTS = {"pure": "prefill_dense.npz", "w_chunk": "prefill_chunked.npz", "w_chunk_bilevel": "bilevel.npz"}
VISION, IDS = "vision.npz", "special_tokens.json"
SPECIAL = {"visual_placeholder": 151654, "time_word": 1462, "colon": 25, "image_token_index": -200}
BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
AFTER = "\n{}<|im_end|>\n<|im_start|>assistant\n"
IMAGE, SMALL = 384, 48  # sides of a frame, and of the pixels that are stored of it
LOGIT_ROWS = 16


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--variant", required=True, choices=VARIANTS, help="which of the original's three evaluation codes --code is")
    add("--code", required=True, type=Path, help="the folder of that variant, which holds the package videoxl2")
    add("--checkpoint", required=True, type=Path, help="the released checkpoint's folder")
    add("--out", required=True, type=Path, help="folder for the tensors; the three variants share one")
    add("--frames", type=int, default=10, help="frames of the video (default: 10)")
    add("--seconds_per_frame", type=float, default=0.8, help="(default: 0.8)")
    add("--question", default="What happens in the video?")
    add("--steps", type=int, default=4, help="tokens generated (default: 4)")
    add(
        "--block",
        type=int,
        nargs=2,
        default=(1, 1),
        metavar=("SIZE", "PREV"),
        help="groups a block, blocks before (default: 1 1)",
    )
    add("--units", type=int, nargs="*", default=(0,), help="units chosen by w_chunk_bilevel (default: 0)")
    add(
        "--chunk",
        type=int,
        nargs=2,
        default=(1, 4),
        metavar=("SIZE", "COMPRESSION"),
        help="of w_chunk_bilevel (default: 1 4)",
    )
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--seed", type=int, default=20, help="of the video (default: 20)")
    return parser.parse_args()


def made_up(frames: int, seed: int) -> np.ndarray:
    """Noise that drifts: uint8 [F, 3, 48, 48]."""
    drawn = np.random.default_rng(seed).integers(0, 256, (3, SMALL, SMALL + frames), np.uint8)
    return np.stack([drawn[:, :, start : start + SMALL] for start in range(frames)])


def pixels_of(small: np.ndarray) -> torch.Tensor:
    """Every pixel repeated to 384 × 384, scaled to −1 … 1: fp32 [F, 3, 384, 384]."""
    large = np.repeat(np.repeat(small, IMAGE // SMALL, axis=2), IMAGE // SMALL, axis=3)
    return torch.from_numpy((large.astype(np.float32) / 255 - 0.5) / 0.5)


def load(code: Path, checkpoint: Path, device: str) -> tuple[Any, Any]:
    """(tokenizer, model) of the original, in float32."""
    sys.path.insert(0, str(code))
    from safetensors.torch import load_file
    from videoxl2.videoxl2.model.builder import load_pretrained_model

    tokenizer, model, _, _ = load_pretrained_model(
        str(checkpoint), None, "llava_qwen", device_map=device, attn_implementation="sdpa", multimodal=True
    )
    model = model.float().eval()
    for shard in sorted(checkpoint.glob("*.safetensors")):
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(shard).items()}, strict=False)
    model.config.mm_spatial_pool_stride, model.config.mm_spatial_pool_mode = 2, "average"
    return tokenizer, model


class Tap:
    """What modules are given and give, call by call, kept as NumPy arrays while the `with` block runs.

    `keep` names, by key, a module and a function (its arguments by name, its output) → tensor, or None for nothing; it
    is called before the module runs, with output None, where `before` says so: what is changed in place must be copied.
    """

    def __init__(self):
        self.taken: dict[str, list[np.ndarray]] = {}
        self._handles: list[Any] = []

    def keep(
        self, key: str, module: torch.nn.Module, function: Callable[[dict, Any], Any], before: bool = False
    ) -> None:
        def take(given: dict, output: Any) -> None:
            found = function(given, output)
            if found is not None:
                self.taken.setdefault(key, []).append(found.detach().float().cpu().numpy().copy())

        if before:
            self._handles.append(
                module.register_forward_pre_hook(lambda m, args, given: take(given, None), with_kwargs=True)
            )
        else:
            self._handles.append(
                module.register_forward_hook(lambda m, args, given, output: take(given, output), with_kwargs=True)
            )

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def last_layer(cache: Any) -> torch.Tensor | None:
    """Keys and values of a cache's last layer, of one prompt: [2, heads, length, width]; None for an empty cache."""
    if cache is None or len(cache) == 0:
        return None
    keys, values = (
        (cache.layers[-1].keys, cache.layers[-1].values) if hasattr(cache, "layers") else cache[len(cache) - 1][:2]
    )
    return torch.stack([keys[0], values[0]])


def four_axes(mask: torch.Tensor | None) -> torch.Tensor | None:
    """A mask that chunk-based pre-filling made, [L, L], 0 where a token may look; None for the usual one of padding."""
    return mask[0, 0] if mask is not None and mask.ndim == 4 else None


def tapped(model: Any) -> Tap:
    """A tap on all that is compared."""
    tap, inner = Tap(), model.model
    tap.keep("siglip", inner.vision_tower, lambda given, out: out)
    tap.keep("dts", inner.sae, lambda given, out: out.squeeze(2))
    tap.keep("proj", inner.mm_projector, lambda given, out: out)
    tap.keep("embeds", inner, lambda given, out: given.get("inputs_embeds"), before=True)
    tap.keep("cache_before", inner, lambda given, out: last_layer(given.get("past_key_values")), before=True)
    tap.keep("mask", inner, lambda given, out: four_axes(given.get("attention_mask")), before=True)
    tap.keep("cache", inner, lambda given, out: last_layer(out.past_key_values))
    tap.keep("logits", model, lambda given, out: out.logits[0])
    return tap


def generate(
    tokenizer: Any, model: Any, options: argparse.Namespace, small: np.ndarray
) -> tuple[dict, Tap, np.ndarray]:
    """(ids of the prompt and of the video, what was tapped, the tokens generated)."""

    def encode(text):
        return tokenizer(text).input_ids

    prompt = [*encode(BEFORE), SPECIAL["image_token_index"], *encode(AFTER.format(options.question))]
    seconds = [round(number * options.seconds_per_frame, 1) for number in range(0, len(small), 4)]
    video = [[*encode(f"Time {second}s:"), *[SPECIAL["visual_placeholder"]] * 144] for second in seconds]
    ids = {"input_ids": np.asarray(prompt, np.int32), "time_embedding": np.asarray(sum(video, []), np.int32)}

    def put(array):
        return torch.as_tensor(array, device=options.device).long()

    more: dict[str, Any] = {}
    if options.variant != "pure":
        more = {"block_size_chosed": options.block[0], "prev_blocks_num": options.block[1]}
    if options.variant == "w_chunk_bilevel":
        chunk_size, compression = options.chunk
        config = {"selected_topk": len(options.units), "selected_chunk_size": chunk_size, "compression": compression}
        more |= {"selected_unit_indices": list(options.units), "selected_config": config}
    with tapped(model) as tap, torch.inference_mode():
        output = model.generate(
            put(ids["input_ids"])[None],
            images=[pixels_of(small).to(options.device)],
            modalities=["video"],
            time_embedding=[put(ids["time_embedding"])],
            do_sample=False,
            num_beams=1,
            max_new_tokens=options.steps,
            use_cache=True,
            repetition_penalty=1.0,
            **more,  # a checkpoint's own generation_config.json may set another
        )
    return ids, tap, output[0, -options.steps :].cpu().numpy().astype(np.int32)


def arrays(options: argparse.Namespace, small: np.ndarray, ids: dict, tap: Tap, tokens: np.ndarray) -> dict[str, dict]:
    """By file, its arrays; the names are those of check_parity.py."""
    taken, (block_size, prev_blocks) = tap.taken, options.block
    length = len(ids["input_ids"]) - 1 + len(ids["time_embedding"])
    first = taken["logits"][0]  # of the prompt, or of what of it comes after the video
    greedy = {"greedy_tokens": tokens, "greedy_logits": np.stack([row[-1] for row in taken["logits"]])[: len(tokens)]}

    def named(prefix, found):
        return {f"{prefix}_{name}": array for name, array in found.items()}

    if options.variant == "w_chunk":
        mask = np.packbits(taken["mask"][0] == 0, axis=1)
        kept = named(f"e2e_b{block_size}_p{prev_blocks}", {**greedy, "kv_last_layer": taken["cache"][0]})
        return {VARIANTS["w_chunk"]: {**kept, f"e2e_mask_b{block_size}_p{prev_blocks}": mask}}
    if options.variant == "w_chunk_bilevel":
        question = len(ids["input_ids"]) - 1 - int(np.argmax(ids["input_ids"] == SPECIAL["image_token_index"]))
        config = [block_size, prev_blocks, len(options.units), *options.chunk]
        mixed = next(
            cache
            for cache, x in zip(taken["cache_before"], taken["embeds"][1:], strict=False)
            if x.shape[1] == question
        )
        return {
            VARIANTS["w_chunk_bilevel"]: {
                **named("e2e", greedy),
                "e2e_config": np.asarray(config, np.int32),
                "e2e_mixed_kv_last_layer": mixed,
                "e2e_selected_unit_indices": np.asarray(options.units, np.int32),
                "e2e_suffix_logits": first[-question:],
                **named(f"e2e_b{block_size}_p{prev_blocks}", {"prefill_kv_last_layer": taken["cache"][0]}),
            }
        }
    rows = np.unique(np.linspace(0, length - 1, LOGIT_ROWS).astype(np.int32)) if len(first) == length else None
    places = ids["time_embedding"] == SPECIAL["visual_placeholder"]
    start = int(np.argmax(ids["input_ids"] == SPECIAL["image_token_index"]))
    groups = -(-len(small) // 4)
    pooled = taken["embeds"][0][0, start : start + len(places)][places].reshape(
        groups, -1, taken["embeds"][0].shape[-1]
    )
    dense = {
        "lowres_u8": small,
        **ids,
        "inputs_embeds": taken["embeds"][0][0],
        "kv_last_layer": taken["cache"][0],
        **greedy,
    }
    if rows is not None:
        dense |= {"logits": first[rows], "logit_rows": rows}
    seen = {
        "lowres_u8": small,
        "siglip": taken["siglip"][0],
        "dts": taken["dts"][0],
        "proj": taken["proj"][0],
        "pooled": pooled,
    }
    return {VARIANTS["pure"]: named("e2e", dense), VISION: named("video", seen)}


def write(out: Path, checkpoint: Path, files: dict[str, dict]) -> None:
    """A directory for check_parity.py: these files, others empty where there are none yet, the checkpoint as links."""
    linked = out / "tiny_checkpoint"
    linked.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.iterdir():
        if file.is_file() and file.name != IDS and not (linked / file.name).exists():
            (linked / file.name).symlink_to(file.resolve())

    def put(path, text):
        return whole(path, lambda file: file.write(text.encode()))

    put(linked / IDS, json.dumps(SPECIAL))
    for name in (VISION, *VARIANTS.values()):
        if name in files or not (out / name).exists():
            whole(out / name, lambda file, name=name: np.savez_compressed(file, **files.get(name, {})))
    put(out / "prefill_flops.json", json.dumps({"visual_tokens_per_group": 144, "rows": []}))
    put(out / "text_and_sampling.json", "{}")


def whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file whole or not at all: what was there stays until all is written."""
    begun = path.with_name(path.name + ".part")
    try:
        with open(begun, "wb") as file:
            write(file)
        begun.replace(path)
    finally:
        with suppress(OSError):
            begun.unlink()


def main() -> None:
    options = parse()
    if torch is None:
        sys.exit("dump_reference: PyTorch is missing: run this in the original's environment")
    for name, folder in (("--code", options.code), ("--checkpoint", options.checkpoint)):
        if not folder.is_dir():
            sys.exit(f"dump_reference: {name} {folder}: no such folder")
    small = made_up(options.frames, options.seed)
    tokenizer, model = load(options.code, options.checkpoint, options.device)
    ids, tap, tokens = generate(tokenizer, model, options, small)
    files = arrays(options, small, ids, tap, tokens)
    try:
        write(options.out, options.checkpoint, files)
    except OSError as error:
        sys.exit(f"dump_reference: --out {options.out}: cannot be written ({error.strerror})")
    for name, found in files.items():
        print(f"{options.out / name}: " + ", ".join(f"{key} {array.shape}" for key, array in found.items()))


if __name__ == "__main__":
    main()
