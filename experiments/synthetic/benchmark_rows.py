"""Multiple-choice questions as annotations of MLVU, Video-MME, LongVideoBench and LVBench.

Each has two forms: the rows that the lmms-eval task reads ("task"), and the benchmark's own files ("published").
"""

import io
from collections.abc import Sequence

from experiments.synthetic import clips, files
from experiments.synthetic.multiple_choice import MultipleChoice
from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.rows import letter, lettered

FORMATS = ("json", "jsonl", "parquet")


def annotations(name: str, form: str, ending: str, asked: Sequence[Sequence[MultipleChoice]]) -> dict[str, str | bytes]:
    """Annotation files by path, for the questions about each video.

    Args:
      name: of `TASK`.
      form: "task" or "published".
      ending: one of `FORMATS`, for the form "task".

    Raises RequestError for the published form of Video-MME, which is the same, and for parquet without pyarrow.
    """
    every = [one for each in asked for one in each]
    if form == "task":
        return {f"annotations.{ending}": encode([TASK[name](one) for one in every], ending)}
    if name == "lvbench":
        return {"video_info.meta.jsonl": files.as_jsonl([_lvbench_published(each) for each in asked])}
    if name == "mlvu":
        return {"json/1_generated.json": files.as_json([_mlvu_published(one) for one in every])}
    if name == "longvideobench":
        rows = [{**_longvideobench(one), "candidates": list(one.options)} for one in every]
        return {"lvb_val.json": files.as_json(rows)}
    raise RequestError(f"--form published: {name} publishes the rows of the task; use --form task --format parquet")


def encode(rows: list[dict], ending: str) -> str | bytes:
    """The content of a file. Raises RequestError for parquet without pyarrow."""
    if ending != "parquet":
        return files.as_json(rows) if ending == "json" else files.as_jsonl(rows)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise RequestError("--format parquet needs the package pyarrow; run pip install pyarrow") from error
    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def subtitles(clip: clips.Clip) -> str:
    """The names of the pictures on screen as an SRT file in the style of Video-MME's."""

    def stamp(second: float) -> str:
        return f"00:{_clock(second)},{round(1000 * (second % 1)):03d}"

    return "".join(
        f'{i}\n{stamp(event.start_s)} --> {stamp(event.stop_s)}\n<font color="white" size=".72c">{event.name}</font>\n\n'
        for i, event in enumerate(clip.events, 1)
    )


def _mlvu(one: MultipleChoice) -> dict:
    return {
        "video_name": f"{one.video}.mp4",
        "duration": one.seconds,
        "task_type": one.type,
        "question": _with_options(one),
        "answer": letter(one.correct),
    }


def _mlvu_published(one: MultipleChoice) -> dict:
    return {
        "video": f"{one.video}.mp4",
        "duration": one.seconds,
        "question": one.question,
        "candidates": list(one.options),
        "answer": one.options[one.correct],
        "question_type": one.type,
    }


def _video_mme(one: MultipleChoice) -> dict:
    return {
        "videoID": one.video,
        "question_id": f"{one.video}-{one.number}",
        "domain": "Generated",
        "duration": "short" if one.seconds < 48 else "medium",
        "sub_category": "Pictures",
        "task_type": one.type,
        "question": one.question,
        "options": lettered(one.options).split("\n"),
        "answer": letter(one.correct),
    }


def _longvideobench(one: MultipleChoice) -> dict:
    return {
        "id": f"{one.video}_{one.number}",
        "video_path": f"{one.video}.mp4",
        "duration": one.seconds,
        "duration_group": 60 if one.seconds < 60 else 600,
        "question_category": one.type,
        "question": one.question,
        "correct_choice": one.correct,
    }


def _longvideobench_task(one: MultipleChoice) -> dict:
    padded = (*one.options, *["N/A"] * (5 - len(one.options)))
    return {**_longvideobench(one), **{f"option{i}": option for i, option in enumerate(padded)}}


def _lvbench(one: MultipleChoice) -> dict:
    options = _bracketed(one)
    return {
        "video": one.video,
        "type": "generated",
        "question": one.question,
        "candidates": options,
        "answer": options[one.correct],
        "question_type": [one.type],
        "time_reference": _range(one),
    }


def _lvbench_published(asked: Sequence[MultipleChoice]) -> dict:
    """All questions about a video."""
    rows = [
        {
            "uid": str(one.number),
            "question": _with_options(one),
            "answer": letter(one.correct),
            "question_type": [one.type],
            "time_reference": _range(one),
        }
        for one in asked
    ]
    return {"key": asked[0].video, "type": "generated", "qa": rows}


TASK = {"mlvu": _mlvu, "video_mme": _video_mme, "longvideobench": _longvideobench_task, "lvbench": _lvbench}
"""The function that makes a row for the lmms-eval task, by benchmark."""


def _bracketed(one: MultipleChoice) -> list[str]:
    return [f"({letter(i)}) {option}" for i, option in enumerate(one.options)]


def _with_options(one: MultipleChoice) -> str:
    return "\n".join([one.question, *_bracketed(one)])


def _range(one: MultipleChoice) -> str:
    return "-".join(map(_clock, one.span))


def _clock(seconds: float) -> str:
    """mm:ss."""
    return "{:02d}:{:02d}".format(*divmod(int(seconds), 60))
