"""The letter that a benchmark reads in a response: the rules and their irregularities."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vxl2_jax import evaluation
from vxl2_jax.evaluation import longvideobench, lvbench, mlvu, video_mme
from vxl2_jax.evaluation.letters import PREFIXES


@pytest.mark.parametrize("name", evaluation.BENCHMARKS)
@pytest.mark.parametrize("right", "ABCD")
def test_a_bare_letter_is_read_by_all(name, right):
    read = evaluation.get_benchmark(name).read
    assert read(right) == read(f" {right}\n") == right


@pytest.mark.parametrize(
    "response, letter",
    [
        ("B) the toast", "B"),
        ("(B) the toast", "B"),
        ("B)", "B"),
        ("b)", "b"),
        ("the toast (so C) or D)", "C"),
        (")", ""),
        ("B. the toast", "B. the toast"),
        ("Best option: (B", "Best option: (B"),
        ("(B )", " "),
    ],
)
def test_mlvu_reads_what_stands_before_the_first_bracket(response, letter):
    assert mlvu.read(response) == letter


@pytest.mark.parametrize(
    "response, letter",
    [
        ("(C) four", "C"),
        ("The best answer is C.", "C"),
        ("The answer: D", "D"),
        ("I see four", ""),
        ("c", ""),
        ("E", ""),
        ("Boats, so C", "B"),  # any capital will do
        ("one two three four five six seven eight nine ten eleven", ""),
        ("one two three four five six seven eight nine ten eleven D", "D"),
    ],
)
def test_video_mme_reads_the_first_capital_after_the_prefixes(response, letter):
    assert video_mme.read(response) == video_mme.read_corrected(response) == letter


@pytest.mark.parametrize("prefix", ["Best option:", "Best answer:"])
def test_video_mme_reads_b_in_the_prefixes_that_the_original_joined(prefix):
    assert video_mme.read(f"{prefix} C") == "B" and video_mme.read_corrected(f"{prefix} C") == "C"


def test_joined_prefixes_are_removed_where_they_do_stand_together():
    assert video_mme.read("Best answer:Best option: C") == "C"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_longvideobench_removes_every_prefix(prefix):
    assert longvideobench.read(f"{prefix} E") == "E"


@pytest.mark.parametrize("response, letter", [("(E) a rower", "E"), ("F", ""), ("the judge", ""), ("", "")])
def test_longvideobench_knows_five_letters_and_picks_none_at_random(response, letter):
    assert longvideobench.read(response) == letter


@pytest.mark.parametrize(
    "response, letter",
    [
        ("B. Blue", "B"),
        ("b.blue", "B"),
        ("c. (A) Red", "C"),  # as an option begins
        ("(B) Blue", "B"),
        ("It is [C].", "C"),
        ("it is (c)", "C"),
        ("E", "E"),
        ("F", ""),
        ("", ""),
        ("It is a boat, so C", "A"),  # the article
        ("Blue", ""),
        ("answer:B", "B"),
        ("B's boat", "B"),
        ("x-B", "B"),  # a mark becomes a space …
        ("x-B y- z", ""),
        ("x-B y -z", ""),  # … or, where one of its kind is beside a space, nothing
        ("D/1,000", ""),
        ("D/1000", "D"),  # a number with a comma makes all marks nothing
        ("Red.B", ""),
        ("so .B", "B"),
        ("B.2", "B"),
        ("x B.5", "B"),  # full stops go, except before a digit
        ("Red\nB", "B"),
        ("a.b\nc", "C"),
        ("." * 32 + "xx.B", "B"),  # only 32 full stops go
        ("." * 31 + "xx.B", ""),
    ],
)
def test_lvbench_reads_a_letter_that_stands_as_a_word(response, letter):
    assert lvbench.read(response) == letter


@given(st.text(st.sampled_from("ABCDEFabc ().,-:1'\n"), max_size=20))
def test_every_benchmark_reads_any_response(response):
    for name in ("video_mme", "longvideobench", "lvbench"):
        assert evaluation.get_benchmark(name).read(response) in ("", *"ABCDE")
    assert mlvu.read(response) in response.strip()
