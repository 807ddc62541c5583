"""The prompts of each benchmark, to the character."""

import dataclasses

from vxl2_jax import evaluation
from vxl2_jax.evaluation import subtitles, video_mme

DIRECTLY = "Answer with the option's letter from the given choices directly."


def prompt(docs, name: str, **changed) -> str:
    benchmark = evaluation.get_benchmark(name)
    return benchmark.prompt(benchmark.row({**docs[name], **changed}))


def test_mlvu_opens_the_bracket_of_the_answer(docs):
    assert prompt(docs, "mlvu") == (
        "\nWhich comes first?\n(A) The kettle\n(B) The toast\nOnly give the best option.\n\nBest option: ("
    )


def test_video_mme_shows_options_as_python_shows_a_list(docs):
    """In single quotes, but in double quotes where the text has an apostrophe; letters beyond ASCII as they are."""
    task, question, options, empty, last = prompt(docs, "video_mme").split("\n")
    assert task == (
        "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
        "Respond with only the letter (A, B, C, or D) of the correct option."
    )
    assert question == "How many boats pass at 01:10?"  # clock times are rewritten around the prompt, not in it
    assert options == """['A. Two.', 'B. Three.', "C. It's four.", 'D. Ünzählig.']"""
    assert (empty, last) == ("", DIRECTLY)


def test_longvideobench_letters_the_options_there_are_and_ends_with_a_newline(docs):
    assert prompt(docs, "longvideobench") == f"Who waves?\nA. A rower\nB. The judge\n{DIRECTLY}\n"


def test_lvbench_gives_candidates_a_second_letter(docs):
    assert prompt(docs, "lvbench") == f"Who wins?\nA. (A) Red\nB. (B) Blue\nC. (C) Green\n{DIRECTLY}"


def test_video_mme_with_subtitles_begins_with_them_and_ends_otherwise(docs):
    plain = prompt(docs, "video_mme")
    with_subtitles = prompt(docs, "video_mme", subtitles="Ready\nGo")
    start, end = "This video's subtitles are listed below: \nReady\nGo\n", "\nThe best answer is:"
    assert with_subtitles.startswith(start) and with_subtitles.endswith(end)
    assert with_subtitles[len(start) : -len(end)] == plain.removesuffix(f"\n\n{DIRECTLY}")
    row = dataclasses.replace(video_mme.row(docs["video_mme"]), subtitles=subtitles.NONE)
    assert video_mme.prompt(row).startswith("This video's subtitles are listed below: \nNo subtitles available\nSelect")


def white(*texts: str) -> str:
    return "\n".join(f'<font color="white" size=".72c">{text}</font>' for text in texts)


def srt(*parts: tuple[str, str, str]) -> str:
    return "".join(f"{i}\n{start} --> {end}\n{text}\n\n" for i, (start, end, text) in enumerate(parts, 1))


def test_subtitles_are_those_shown_at_sampled_frames():
    file = srt(
        ("00:00:00,000", "00:00:01,000", white("first", "second line, dropped")),
        ("00:00:01,000", "00:00:02,000", "no font tag: dropped"),
        ("00:00:02,100", "00:00:02,900", white("between two samples")),
        ("00:00:03,000", "00:00:03,000", white("never shown")),
        ("00:00:03,000", "00:00:03,100", white("in its first frame")),
        ("00:00:03,100", "00:00:04,000", white("gone in its last")),
        ("00:00:04,000", "00:01:00,000", white("last")),
    )

    def picked(samples):
        return subtitles.at_frames(file, fps=10, frames=41, samples=samples).split("\n")

    assert picked(5) == ["first", "in its first frame", "last"]  # frames 0, 10, 20, 30, 40
    assert picked(9) == ["first", "between two samples", "in its first frame", "gone in its last", "last"]
    assert subtitles.at_frames("", fps=10, frames=41) == ""


def test_subtitle_times_have_hours_and_thousandths():
    parsed = subtitles.parse(srt(("01:02:03,250", "01:02:04,000", "a\nb"), ("01:02:03,250", "01:02:04,000", "later")))
    assert parsed == {(3723.25, 3724.0): "later"}


def test_odd_subtitles_are_read_or_skipped():
    text = "1\n00:00:00,000 --> 00:00:04.5 X1:100 Y1:1\nhello\n\ntwo\nthree\nfour\n\n2\n00:00:04,000 --> 00:00:08,000\nworld"
    for srt in (text, text.replace("\n", "\r\n"), "1\nsoon\ntext\n\n" + text):
        assert subtitles.parse(srt) == {(0.0, 4.5): "hello", (4.0, 8.0): "world"}
