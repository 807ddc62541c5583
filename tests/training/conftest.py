"""A tiny model with random weights, short clips and questions about them, to train on in seconds."""

import json
from pathlib import Path

import jax
import pytest
from tiny_data import WORDS, word_tokenizer, write_clip

import vxl2_jax as vxl2
from vxl2_jax.checkpoints import huggingface
from vxl2_jax.config import LanguageConfig, ModelConfig, VisionConfig
from vxl2_jax.models import video_xl_2


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> Path:
    """A checkpoint directory in the original's layout; fp32 weights."""
    config = ModelConfig(
        vision=VisionConfig(image_size=28, patch_size=14, width=16, layers=1, heads=2, mlp=16),
        language=LanguageConfig(
            width=16, layers=2, heads=2, kv_heads=2, head_width=8, mlp=24, vocabulary=len(WORDS) + 100, rope_theta=1e4
        ),
        resized_grid=2,
        pool=1,
        norm_groups=8,
        visual_placeholder=1,
        stop_tokens=(3,),
    )
    directory = tmp_path_factory.mktemp("tiny")
    huggingface.save(
        directory, config, jax.tree.map(lambda a: 3 * a, video_xl_2.init(jax.random.key(0), config)), "float32"
    )
    (directory / "tokenizer.json").write_text(word_tokenizer())
    return directory


@pytest.fixture(scope="session")
def tiny(tiny_dir) -> vxl2.Model:
    return vxl2.load(tiny_dir)


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """A folder with train.jsonl, seven samples about five clips of 8, 12 and 20 seconds (2, 3 and 5 groups)."""
    folder = tmp_path_factory.mktemp("data")
    for number, seconds in enumerate((8, 8, 12, 12, 20)):
        write_clip(folder / f"{number}.mp4", seconds, number)
    rows = [
        {"video": f"{number % 5}.mp4", "question": f"is there a {name}?", "answer": ("yes", "no")[number % 2]}
        for number, name in enumerate(["dog", "cat", "dog", "cat", "dog", "cat", "dog"])
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def config(tmp_path, tiny_dir, data):
    """A function that writes a settings file, by default for 6 steps of 2 samples, and returns its path."""

    def write(top: str = "", stages: str | None = None, rest: str = "", out: str = "run", steps: int = 6) -> Path:
        stage = f'[[stages]]\nname = "all"\ntrain = ["language", "projector"]\nlearning_rate = 1e-2\nsteps = {steps}\nwarmup = 2\n'
        path = tmp_path / f"{out}.toml"
        path.write_text(
            f'model = "{tiny_dir}"\nout = "{tmp_path / out}"\nbatch = 2\nlog_every = 1\n{top}\n'
            f'[data]\nfiles = ["{data / "train.jsonl"}"]\n{stage if stages is None else stages}\n{rest}\n'
        )
        return path

    return write
