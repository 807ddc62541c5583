"""The baseline: the language half in plain PyTorch, pre-filled all at once under the boolean chunk mask.

JSON requests on standard input, of which all but the first ask for one more run; JSON lines on standard output (see
against.py). Needs torch, numpy and safetensors; neither JAX nor this project's library. Before anything is timed the
golden logits are reproduced.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from experiments.bench import alike
from experiments.bench.process import asked, say

try:
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file
except ImportError as error:
    say(refused=f"{error.name} is not installed for {sys.executable}")
    sys.exit(0)


class Qwen2:
    """Qwen2.5 in float32, from a checkpoint of the original's layout."""

    def __init__(self, directory: str):
        text = json.loads((Path(directory) / "config.json").read_text())
        stored = load_file(f"{directory}/model.safetensors")
        weights = {key: tensor.float().contiguous() for key, tensor in stored.items()}
        self.heads = text["num_attention_heads"]
        self.kv_heads = text.get("num_key_value_heads", self.heads)
        self.width = text.get("head_dim") or text["hidden_size"] // self.heads
        self.eps, self.theta = text["rms_norm_eps"], float(text["rope_theta"])
        self.embed, self.norm = weights["model.embed_tokens.weight"], weights["model.norm.weight"]
        self.head = self.embed if text.get("tie_word_embeddings") else weights["lm_head.weight"]
        prefixes = [f"model.layers.{layer}." for layer in range(text["num_hidden_layers"])]
        self.layers = [
            {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
            for prefix in prefixes
        ]

    def rotation(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine [L, D], from angles in float64."""
        frequency = self.theta ** (-torch.arange(0, self.width, 2, dtype=torch.float64) / self.width)
        angles = torch.arange(length, dtype=torch.float64)[:, None] * frequency
        return tuple(torch.cat([f(angles)] * 2, dim=-1).float() for f in (torch.cos, torch.sin))

    def norms(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], scale, self.eps)

    def run(
        self, x: torch.Tensor, mask: torch.Tensor, *, last_keys_only: bool
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """x [L, E], mask bool [L, L] → the residual stream, and (keys rotated, values) [K, L, D] of every layer.

        With `last_keys_only` the last layer stops at its keys and values, which is all that pre-filling owes.
        """
        length, half, caches = len(x), self.width // 2, []
        cos, sin = self.rotation(length)

        def rotate(t):
            return t * cos + torch.cat([-t[..., half:], t[..., :half]], dim=-1) * sin

        for number, layer in enumerate(self.layers):

            def linear(h, name, layer=layer):
                return F.linear(h, layer[f"{name}.weight"], layer.get(f"{name}.bias"))

            h = self.norms(x, layer["input_layernorm.weight"])

            def heads(t):
                return t.view(length, -1, self.width).transpose(0, 1)

            k, v = rotate(heads(linear(h, "self_attn.k_proj"))), heads(linear(h, "self_attn.v_proj"))
            caches.append((k, v))
            if last_keys_only and number == len(self.layers) - 1:
                break
            q = rotate(heads(linear(h, "self_attn.q_proj")))
            mixed = F.scaled_dot_product_attention(
                q[None], k[None], v[None], attn_mask=mask, enable_gqa=self.heads != self.kv_heads
            )[0]
            x = x + linear(mixed.transpose(0, 1).reshape(length, -1), "self_attn.o_proj")
            h = self.norms(x, layer["post_attention_layernorm.weight"])
            x = x + linear(F.silu(linear(h, "mlp.gate_proj")) * linear(h, "mlp.up_proj"), "mlp.down_proj")
        return x, caches

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.norms(x, self.norm), self.head)


def unpacked(bits: np.ndarray) -> torch.Tensor:
    """A mask bool [L, L] from rows packed to bytes."""
    return torch.from_numpy(np.unpackbits(bits, axis=1, count=len(bits)).astype(bool))


def check_golden(request: dict) -> dict:
    """The worst difference from golden logits over its tolerance (1 is the limit), and of how many runs."""
    model, golden, worst = Qwen2(request["golden_checkpoint"]), np.load(request["golden_runs"]), 0.0
    names = [key.removesuffix("_embeds") for key in golden if key.endswith("_embeds")]
    for name in names:
        embeds, mask = torch.from_numpy(golden[f"{name}_embeds"]), unpacked(golden[f"{name}_mask"])
        x, _ = model.run(embeds, mask, last_keys_only=False)
        got = model.logits(x[torch.from_numpy(golden[f"{name}_rows"])]).numpy()
        difference = np.abs(got - golden[f"{name}_logits"]).max() / golden[f"{name}_tolerance"]
        worst = max(worst, float(difference)) if np.isfinite(difference) else float("inf")
    return {"runs": len(names), "worst": worst}


def main() -> None:
    again = asked()
    request = next(again)
    threads = alike.confine(request["threads"])
    torch.set_num_threads(threads)
    with torch.inference_mode():
        golden = check_golden(request)
        say(golden=golden)
        if not golden["runs"] or golden["worst"] > 1:
            say(refused="the PyTorch baseline does not reproduce the golden logits: not timed")
            return
        model, case = Qwen2(request["checkpoint"]), np.load(request["case"])
        mask, visual = unpacked(case["mask"]), torch.from_numpy(case["visual"]).flatten(0, 1)
        ids = torch.from_numpy(case["ids"]).long()
        places = [torch.from_numpy(case[name]).long() for name in ("visual_positions", "global_positions")]

        def once() -> list[tuple[torch.Tensor, torch.Tensor]]:
            x = torch.empty(len(mask), visual.shape[-1])
            x[places[0]], x[places[1]] = visual, F.embedding(ids, model.embed)
            return model.run(x, mask, last_keys_only=request["last_keys_only"])[1]

        # The mask is made beforehand, so its making is not timed; but it is memory that this way of pre-filling takes.
        about = {"threads": threads, "about": f"torch {torch.__version__}", "working_bytes": mask.nbytes}
        caches = alike.measure(once, again, **about)
        keep = alike.sampled(len(mask))
        np.save(request["out"], np.stack([[layer[part][:, keep].numpy() for layer in caches] for part in (0, 1)]))


if __name__ == "__main__":
    main()
