"""The options of watching and asking: every way to give them derives from one definition."""

import argparse
import dataclasses
import inspect

import pytest

from vxl2_jax import AskOptions, Model, RequestError, WatchOptions, cli
from vxl2_jax.cli.options import given
from vxl2_jax.lmms_plugin import settings
from vxl2_jax.options import CHUNKS, MAX_CHUNK_SIZE, RANGES, options_of
from vxl2_jax.relevance import SCORERS
from vxl2_jax.training import settings as training_settings
from vxl2_jax.training.settings import LoraSettings, VideoSettings

BOTH = (WatchOptions, AskOptions)
OPTIONS = [(cls, option) for cls in BOTH for option in options_of(cls)]


def subparser(name: str) -> argparse.ArgumentParser:
    return cli.build_parser()._subparsers._group_actions[0].choices[name]


@pytest.mark.parametrize(("method", "cls"), [(Model.watch, WatchOptions), (Model.ask, AskOptions)])
def test_a_method_shows_and_describes_its_keywords(method, cls):
    parameters = inspect.signature(method).parameters
    for option in options_of(cls):
        assert parameters[option.name].default == option.default
        assert f"\n          {option.name}: {option.help[:40]}" in method.__doc__
    assert "keywords" not in parameters and "{options}" not in method.__doc__
    assert method.__doc__.count("\n") > 20 and max(map(len, method.__doc__.splitlines())) <= 120


@pytest.mark.parametrize("command", ["ask", "watch", "batch", "eval", "plan"])
def test_a_command_takes_the_options_and_leaves_defaults_to_them(command):
    actions = {action.dest: action for action in subparser(command)._actions}
    for cls, option in OPTIONS:
        if action := actions.get(option.name):
            assert action.option_strings == [option.flag] and action.default == argparse.SUPPRESS
            assert action.help.startswith(option.describe())
            assert ("default" in action.help) == (command != "eval")
        else:
            assert command == "plan" or (command, cls) == ("watch", AskOptions)


def test_what_a_command_line_gives_becomes_the_options():
    args = cli.build_parser().parse_args(
        ["ask", "a.mp4", "?", "--max-frames", "none", "--prev-blocks", "NONE", "--top-k", "all", "--fps", "2"]
    )
    assert given(args, WatchOptions) == {"fps": 2.0, "max_frames": None, "prev_blocks": None}
    assert given(args, AskOptions) == {"top_k": None}


@pytest.mark.parametrize("text", ["x", "1.5", "all", "", "0", "-1", "1e18", "1" + "0" * 18, "9" * 5000, "nan", "inf"])
def test_every_way_to_give_a_number_out_of_range_gets_the_same_line(capsys, tmp_path, text):
    def error_of(call) -> str:
        with pytest.raises(RequestError) as error:
            call()
        return str(error.value)

    assert cli.main(["ask", "a.mp4", "?", "--max-frames", text]) == 2
    lines = {capsys.readouterr().err.removeprefix("vxl2: ").removesuffix("\n")}
    lines.add(error_of(lambda: settings.read({"max_frames": text})))
    if text.isdecimal() and len(text) < 20:
        lines.add(error_of(lambda: WatchOptions(max_frames=int(text)).check()))
        lines.add(error_of(lambda: VideoSettings(max_frames=int(text))))
        toml = 'out = "o"\n[data]\nfiles = ["a"]\n[[stages]]\nname = "s"\ntrain = ["language"]\nlearning_rate = 1\nsteps = 1\n'
        lines.add(error_of(lambda: training_settings.parse(f"{toml}[video]\nmax_frames = {text}")))
    wanted = "max_frames must be a whole number from 1 to 1,000,000, or none, not "
    assert len({line.replace("'", "") for line in lines}) == 1 and all(wanted in line for line in lines)


@pytest.mark.parametrize("name", RANGES)
def test_every_range_is_of_an_option_or_a_setting(name):
    numbers = {field for table in training_settings.TABLES.values() for field in table.__struct_fields__}
    flags = {action.dest for command in ("plan", "eval") for action in subparser(command)._actions}
    assert name in numbers | flags | {option.name for _, option in OPTIONS}


def test_every_number_of_a_training_run_has_a_range():
    tables = (training_settings.parse(training_settings.EXAMPLE), LoraSettings())
    for table in (
        *tables,
        *(getattr(tables[0], name) for name in ("data", "video", "checkpoint", "mesh")),
        *tables[0].stages,
    ):
        for field in table.__struct_fields__:
            if type(getattr(table, field)) in (int, float):
                assert field in RANGES


def test_the_plugin_takes_every_option_that_a_task_does_not_set():
    names = {option.name for _, option in OPTIONS}
    assert names == (set(settings.KNOWN) & names) | set(settings.OF_TASKS)
    assert not set(settings.KNOWN) & {*settings.OF_TASKS, *settings.OF_HARNESS}


def out_of_range():
    for cls, option in OPTIONS:
        if option.range:
            limits = option.range.minimum, option.range.maximum
            yield from ((cls, option.name, value) for value in (float("nan"), float("inf"), "4", True, -1e18, 1e18))
            yield from ((cls, option.name, value) for value in (limits[0] - 1, limits[1] + 1, 10**4000))
            if option.range.kind is int:
                yield cls, option.name, 2.5
            if option.none is None:
                yield cls, option.name, None


@pytest.mark.parametrize(("cls", "name", "value"), list(out_of_range()))
def test_a_value_out_of_range_is_named_in_one_line(cls, name, value):
    options = cls()
    object.__setattr__(options, name, value)  # the test run checks types when an object is made
    with pytest.raises(RequestError) as error:
        options.check()
    message = str(error.value)
    assert name in message and f"not {value!r:.60}" in message and "\n" not in message and len(message) < 200


@pytest.mark.parametrize(("cls", "option"), OPTIONS)
def test_limits_and_defaults_are_in_range(cls, option):
    bounds = [option.range.minimum, option.range.maximum] if option.range else option.choices or []
    for value in [option.default, *bounds, *([None] if option.none else [])]:
        dataclasses.replace(cls(), **{option.name: value}).check()


@pytest.mark.parametrize("groups", [1, 2, 6, 7, 15, 16, 17, 50, 63, 64, 65, 3000])
def test_the_default_chunks_leave_something_to_select(groups):
    options = AskOptions()
    size = options.chunk_groups(groups)
    assert 1 <= size <= MAX_CHUNK_SIZE and AskOptions(chunk_size=9).chunk_groups(groups) == 9
    chunks = -(-groups // size)
    assert chunks >= min(groups, CHUNKS) and (size == MAX_CHUNK_SIZE) == (groups >= CHUNKS * MAX_CHUNK_SIZE)
    assert groups < CHUNKS or options.top_k + 2 < chunks / 2


def leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """All commands, and their own commands."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    below = [one for action in inner for sub in action.choices.values() for one in leaves(sub)]
    return below + [parser] if parser.prog != "vxl2" else below


def test_every_command_prints_json_and_has_the_same_default_model():
    models = set()
    for parser in leaves(cli.build_parser()):
        actions = {action.dest: action for action in parser._actions}
        assert "json" in actions, parser.prog
        models |= {actions["model"].default} if "model" in actions and parser.prog != "vxl2 doctor" else set()
    assert models == {"nano"}


def test_options_may_stand_anywhere():
    for words in (["a.mp4", "--quiet", "b?", "--top-k", "2", "c?"], ["--top-k", "2", "a.mp4", "b?", "c?", "--quiet"]):
        args = cli._parse(["ask", *words])
        assert (args.video, args.questions, args.top_k, args.quiet) == ("a.mp4", ["b?", "c?"], 2, True)


def test_shells_can_complete_the_commands():
    shtab = pytest.importorskip("shtab")
    script = shtab.complete(cli.build_parser(), "bash")
    assert "--chunk-size" in script and all(f" {name}" in script for name in list(cli.COMMANDS)[1:])


def test_an_unknown_scorer_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(RequestError, match="'best'.*attention"):
        AskOptions(relevance="best").check()
    (relevance,) = [option for _, option in OPTIONS if option.name == "relevance"]
    for name in SCORERS:
        AskOptions(relevance=name).check()
        assert name in relevance.help
    AskOptions(relevance="oracle:anywhere").check()
    AskOptions(relevance=lambda ids, memory: []).check()


def test_an_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="unexpected keyword.*fsp"):
        Model.watch(object.__new__(Model), "a.mp4", fsp=1)


@pytest.mark.parametrize("text", ["1_0", " 5", "5 ", "5\n", "１２", "٣", "0x10", "1e2", "5.0", "", "nan", "9" * 5000])
def test_a_whole_number_in_text_is_its_ascii_digits(text):
    with pytest.raises(RequestError, match="whole number"):
        RANGES["top_k"].parse("top_k", text)


@pytest.mark.parametrize("text", ["1_0", " 5", "١.٥", "0x1p3", "inf", "-nan", "1e", ".", "1e999"])
def test_a_number_in_text_is_decimal(text):
    with pytest.raises(RequestError, match="a number from"):
        RANGES["fps"].parse("fps", text)


def test_numbers_in_text_are_read_as_usual():
    found = [RANGES["fps"].parse("fps", text) for text in ("1", "+1.5", ".5", "5.", "1e-3", "2E+2")]
    assert found == [1.0, 1.5, 0.5, 5.0, 0.001, 200.0] and RANGES["top_k"].parse("top_k", "007") == 7
