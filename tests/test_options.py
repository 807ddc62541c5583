"""The options of watching and asking: every way to give them derives from one definition."""

import argparse
import dataclasses
import inspect

import pytest

from vxl2_jax import AskOptions, Model, RequestError, WatchOptions, cli
from vxl2_jax.cli.options import given
from vxl2_jax.lmms_plugin import settings
from vxl2_jax.options import options_of
from vxl2_jax.relevance import SCORERS

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


@pytest.mark.parametrize("text", ["x", "1.5", "all", ""])
def test_text_that_is_no_value_is_refused_with_usage(capsys, text):
    with pytest.raises(SystemExit) as stop:
        cli.main(["ask", "a.mp4", "?", "--max-frames", text])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "--max-frames" in error and "a whole number or none" in error


def test_the_plugin_takes_every_option_that_a_task_does_not_set():
    names = {option.name for _, option in OPTIONS}
    assert names == (set(settings.KNOWN) & names) | set(settings.OF_TASKS)
    assert not set(settings.KNOWN) & {*settings.OF_TASKS, *settings.OF_HARNESS}


def out_of_range():
    for cls, option in OPTIONS:
        if option.kind is not str:
            yield cls, option.name, float("nan")
            yield cls, option.name, "4"
            yield cls, option.name, 0 if option.positive else option.minimum - 1
            if option.maximum is not None:
                yield cls, option.name, option.maximum + 1
            if option.kind is int:
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
    assert name in message and f"not {value!r}" in message and "\n" not in message


@pytest.mark.parametrize(("cls", "option"), OPTIONS)
def test_limits_and_defaults_are_in_range(cls, option):
    values = [option.default, option.minimum, option.maximum, *([None] if option.none else [])]
    for value in values:
        if value is not None or option.none:
            dataclasses.replace(cls(), **{option.name: value}).check()


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
