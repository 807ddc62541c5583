"""Configurations: every key has its place, and a mistake is told in one line."""

import pytest

from vxl2_jax.errors import RequestError
from vxl2_jax.training import settings
from vxl2_jax.training.settings import Lora, Stage, TrainingSettings

SHORT = (
    'out = "o"\n{top}\n[data]\nfiles = ["a"]\n[[stages]]\nname = "s"\ntrain = ["language"]\nrate = 1\n{stage}\n{rest}'
)


def short(top="", stage="steps = 2", rest=""):
    return SHORT.format(top=top, stage=stage, rest=rest)


def test_what_is_left_out_is_as_the_example_says():
    written, left_out = settings.parse(settings.EXAMPLE), settings.parse(short())
    for name in set(TrainingSettings.__dataclass_fields__) - {"out", "data", "stages", "lora"}:
        assert getattr(written, name) == getattr(left_out, name), name
    assert (written.lora, left_out.lora) == (Lora(), None)
    assert (written.data.strict, written.data.cache_gb) == (left_out.data.strict, left_out.data.cache_gb)


def test_the_example_names_every_key():
    fields = {
        name
        for kind in (TrainingSettings, Stage, Lora, settings.Data, settings.Video)
        for name in kind.__dataclass_fields__
    }
    missing = [name for name in fields - {"steps"} if name not in settings.EXAMPLE]
    assert not missing


def test_words_stand_for_none():
    read = settings.parse(short(rest='[video]\nmax_frames = "none"\nprev_blocks = "none"\n[mesh]\ndata = "all"'))
    assert (read.video.max_frames, read.prev_blocks, read.mesh.data) == (None, None, None)


def test_numbers_are_read_and_settings_can_be_hashed():
    read = settings.parse(short(stage="steps = 2\nrates = { language = 2 }"))
    assert read.stages[0].rate == 1.0 and read.stages[0].rates == {"language": 2.0}
    assert hash(read) == hash(settings.parse(short(stage="steps = 2\nrates = { language = 2 }")))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nonsense", "not TOML"),
        (short(top="bach = 2"), "unknown key 'bach' at the top; there is out, data,"),
        (short(rest="[video]\nfp = 1"), "unknown key 'fp' in video; there is fps, max_frames,"),
        (short(rest='[video]\nmax_frames = "all"'), "video.max_frames must be a whole number, or \"none\", not 'all'"),
        (short(top='batch = "4"'), "batch must be a whole number, not '4'"),
        (short(top="remat = 1"), "remat must be true or false, not 1"),
        (short(top="batch = 0"), "batch must be at least 1, not 0"),
        (short(top="clip = 0"), "clip must be above 0, not 0.0"),
        (short(top="clip = nan"), "clip must be above 0, not nan"),
        (short(top="clip = inf"), "clip must be a number, not inf"),
        (short(top='compute_dtype = "fp8"'), "compute_dtype must be one of float32, bfloat16, not 'fp8'"),
        (short(stage=""), "stages[0] (s) needs steps or epochs, one of them"),
        (short(stage="steps = 1\nepochs = 1"), "stages[0] (s) needs steps or epochs, one of them"),
        (short(stage="steps = 2\nrates = { vision = 1 }"), "stages[0].rates names vision, which does not learn there"),
        (short(stage="steps = 2\nrates = { eyes = 1 }"), "a key of stages[0].rates must be one of vision, dts,"),
        (
            short().replace('["language"]', '["eyes"]'),
            "stages[0].train[0] must be one of vision, dts, projector, language",
        ),
        (short().replace('["language"]', "[]"), "stages[0].train is empty"),
        (short().replace('["a"]', "[]"), "data.files is empty"),
        (short().replace('["a"]', '"a"'), "data.files must be a list, not 'a'"),
        ('out = "o"\ndata = 3\nstages = []', "data must be a table, not 3"),
        ("[data]\nfiles = []", "out is missing"),
    ],
)
def test_a_mistake_is_named(text, told):
    with pytest.raises(RequestError) as error:
        settings.parse(text)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_paths_of_data_count_from_the_file(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text(short().replace('["a"]', '["a", "/b"]\nvideos = "v"'))
    read = settings.read(path)
    assert (
        read.data.files == (str(tmp_path / "a"), "/b") and read.data.videos == str(tmp_path / "v") and read.out == "o"
    )


def test_a_file_is_named_with_its_mistake(tmp_path):
    with pytest.raises(RequestError, match="absent.toml: cannot read the configuration"):
        settings.read(tmp_path / "absent.toml")
    path = tmp_path / "train.toml"
    path.write_text(short(top="batch = 0"))
    with pytest.raises(RequestError, match=f"{path}: batch must be at least 1"):
        settings.read(path)
