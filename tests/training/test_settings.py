"""Settings: every option is in the example, and a mistake is reported in one line."""

import re

import pytest

from vxl2_jax.errors import RequestError
from vxl2_jax.training import settings
from vxl2_jax.training.settings import LoraSettings, TrainingSettings

SHORT = 'out = "o"\n{top}\n[data]\nfiles = ["a"]\n[[stages]]\nname = "s"\ntrain = ["language"]\nlearning_rate = 1\n{stage}\n{rest}'


def short(top="", stage="steps = 2", rest=""):
    return SHORT.format(top=top, stage=stage, rest=rest)


def test_the_example_shows_the_defaults():
    written, omitted = settings.parse(settings.EXAMPLE), settings.parse(short())
    for name in set(TrainingSettings.__struct_fields__) - {"out", "data", "stages", "lora"}:
        assert getattr(written, name) == getattr(omitted, name), name
    assert (written.lora, omitted.lora) == (LoraSettings(), None)
    assert (written.data.strict, written.data.cache_gb) == (omitted.data.strict, omitted.data.cache_gb)


def test_the_example_names_every_option():
    fields = {name for kind in settings.TABLES.values() for name in kind.__struct_fields__}
    missing = [name for name in fields - {"steps"} if name not in settings.EXAMPLE]
    assert not missing


def test_words_stand_for_none():
    read = settings.parse(short(rest='[video]\nmax_frames = "none"\nprev_blocks = "none"\n[mesh]\ndata = "all"'))
    assert (read.video.max_frames, read.video.prev_blocks, read.mesh.data) == (None, None, None)


def test_whole_numbers_are_read_as_floats():
    (stage,) = settings.parse(short(stage="steps = 2\nlearning_rates = { language = 2 }")).stages
    assert isinstance(stage.learning_rate, float) and stage.learning_rates == {"language": 2.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "not valid TOML"),
        (short(top="bach = 2"), "unknown option 'bach'; out, data, batch,"),
        (short(rest="[video]\nfp = 1"), "unknown option 'fp' in video; fps, max_frames,"),
        (short(top="clip = 1.0"), "unknown option 'clip'; max_grad_norm"),
        (short(stage="rate = 1"), "unknown option 'rate' in stages[0]; learning_rate"),
        (short(stage="rates = {}"), "unknown option 'rates' in stages[0]; learning_rates"),
        (short(stage="end = 0.1"), "unknown option 'end' in stages[0]; final_lr_scale"),
        (short(rest='[video]\nmax_frames = "all"'), 'video.max_frames: int "none"'),
        (short(rest="[video]\nmax_frames = 0"), "max_frames must be from 1"),
        (short(rest='[mesh]\ndata = "none"'), 'mesh.data: int "all"'),
        (short(top='batch = "4"'), "batch: int"),
        (short(top="batch = 2.0"), "batch: int"),
        (short(top="batch = true"), "batch: int"),
        (short(top="remat = 1"), "remat: bool"),
        (short(top="batch = 0"), "batch must be from 1"),
        (short(top="max_grad_norm = 0"), "max_grad_norm must be from"),
        (short(top="max_grad_norm = nan"), "max_grad_norm must be from"),
        (short(top="max_grad_norm = inf"), "max_grad_norm must be from"),
        (short(top='compute_dtype = "fp8"'), "compute_dtype: 'fp8' float32, bfloat16"),
        (short(stage=""), "stages[0]: stage s steps or epochs"),
        (short(stage="steps = 1\nepochs = 1"), "stages[0]: stage s steps or epochs"),
        (
            short(stage="steps = 2\nlearning_rates = { vision = 1 }"),
            "stages[0]: learning_rates vision not trained; add",
        ),
        (short(stage="steps = 2\nlearning_rates = { eyes = 1 }"), "stages[0].learning_rates: 'eyes' vision, dts,"),
        (short(stage="steps = 2\nlearning_rates = { language = 0 }"), "learning_rates.language must be from"),
        (short().replace('["language"]', '["eyes"]'), "stages[0].train[0]: 'eyes' vision, dts, projector, language"),
        (short().replace('["language"]', "[]"), "stages[0].train: length >= 1"),
        (short().replace('["a"]', "[]"), "data.files: length >= 1"),
        (short().replace('["a"]', '"a"'), "data.files: a list"),
        ('out = "o"\ndata = 3\nstages = []', "data: a table"),
        ("[data]\nfiles = ['a']", "out is missing"),
        (short().replace('files = ["a"]', ""), "data.files is missing"),
    ],
)
def test_a_mistake_is_reported_with_its_fix(text, words):
    """The message has these words in this order: the option first, then the fix."""
    with pytest.raises(RequestError, match=".*".join(map(re.escape, words.split()))) as error:
        settings.parse(text)
    assert "\n" not in str(error.value)


def test_paths_of_data_are_relative_to_the_file(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text(short().replace('["a"]', '["a", "/b"]\nvideos = "v"'))
    read = settings.read(path)
    assert (
        read.data.files == (str(tmp_path / "a"), "/b") and read.data.videos == str(tmp_path / "v") and read.out == "o"
    )


def test_a_mistake_is_reported_with_its_file(tmp_path):
    with pytest.raises(RequestError, match="absent.toml: no such file"):
        settings.read(tmp_path / "absent.toml")
    path = tmp_path / "train.toml"
    path.write_text(short(top="batch = 0"))
    with pytest.raises(RequestError, match=f"{path}: batch must be .* from 1"):
        settings.read(path)
