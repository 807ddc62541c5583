"""The report of a run: accuracy overall and by group, savings and time. As JSON, Markdown and a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vxl2_jax import evaluation
from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import charts, replay, run_folder
from vxl2_jax.evaluation.choices import LIKELIHOOD
from vxl2_jax.evaluation.rows import Row
from vxl2_jax.evaluation.run_folder import AnsweredQuestion
from vxl2_jax.evaluation.scores import Score, Verdict, grouped, judge, total
from vxl2_jax.evaluation.settings import MODES, RELEASED, released
from vxl2_jax.text.typed import printable

NAME = "report"
_UNVERIFIED = ("mlvu", "longvideobench")
_MAX_LEFT_OUT = 100  # rows listed in report.md; run.json has all
_SIZES = ("category", "chunk_size", "compression")


def summarise(folder: Path) -> dict[str, Any]:
    """The report of a run's folder.

    All but "time" and "made_with" depends only on the records, not on how often the run was interrupted or how many
    processes shared it. Raises RequestError for a folder without a run, or with damaged records.
    """
    run, records = run_folder.read_run(folder), list(run_folder.read_records(folder).values())
    settings, questions = run["settings"], list(run_folder.answered_questions(records))
    verdicts = [question.verdict for question in questions]
    failures = [{"video": record["video"], "error": record["error"]} for record in records if "error" in record]
    return {
        "settings": settings,
        "changed": _changed_settings(settings),
        "made_with": run["made_with"],
        "complete": len(records) == settings["videos"],
        "videos": len(records) - len(failures),
        "questions": len(questions),
        "accuracy": score_data(total(verdicts)),
        "by": by_group(verdicts),
        "corrected": _corrected_accuracy(settings["benchmark"], questions),
        "unnamed": sum(not verdict.named for verdict in verdicts if verdict.counted),
        "uncounted": sum(not one.verdict.counted and one.answer["answer"] is not None for one in questions),
        "unscored": sum(one.answer["answer"] is None for one in questions),
        "published": RELEASED[settings["benchmark"]][MODES[settings["mode"]]].accuracy,
        "saved": savings(questions, records),
        "failures": failures,
        "failed_questions": failed_questions(records),
        "video_notes": video_notes(records),
        "time": _time(records),
        "oracle": oracle_counts(questions),
        "notes": _notes(settings),
    }


def failed_questions(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The questions of watched videos that could not be asked, with the reason."""
    return [{"video": record["video"], **one} for record in records for one in record.get("failed", ())]


def video_notes(records: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What was missing, damaged or unusual in the watched videos."""
    return [{"video": record["video"], "note": note} for record in records for note in record.get("notes", ())]


def score_data(score: Score) -> dict[str, Any]:
    """A score with its interval, as JSON."""
    return {**score.as_data(), "interval": [round(bound, 2) for bound in score.interval]}


def by_group(verdicts: Iterable[Verdict]) -> dict[str, dict[str, Any]]:
    """Scores by annotation field and value, as JSON; values in a table's order."""
    return {
        field: {value: score_data(scores[value]) for value in run_folder.sort_values(field, scores)}
        for field, scores in grouped(verdicts).items()
    }


def savings(questions: Sequence[AnsweredQuestion], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Attention pairs of pre-filling and key/value tokens loaded to answer: their sums, and percent saved over dense."""
    pairs = [record["attention"] for record in records if "attention" in record]
    kept, causal = (sum(pair[name] for pair in pairs) for name in ("pairs_kept", "pairs_causal"))
    loaded, dense = (sum(one.answer["cache"][name] for one in questions) for name in ("tokens", "tokens_dense"))

    def percent_saved(part: int, whole: int) -> float:
        return round(100 * (1 - part / whole), 2) if whole else 0.0

    return {
        "attention_pairs_kept": kept,
        "attention_pairs_causal": causal,
        "attention_percent": percent_saved(kept, causal),
        "cache_tokens": loaded,
        "cache_tokens_dense": dense,
        "cache_percent": percent_saved(loaded, dense),
    }


def oracle_counts(questions: Sequence[AnsweredQuestion]) -> dict[str, Any] | None:
    """How many questions had units, a null category or no entry in the replayed oracle files; and for each category with
    its sizes, how many questions and the maximum number of units. None if no files were replayed."""
    entries = [question.answer["oracle"] for question in questions if "oracle" in question.answer]
    if not entries:
        return None
    units_by_sizes: dict[tuple, list[int]] = {}
    for entry in entries:
        if entry["outcome"] == replay.CHOSEN:
            units_by_sizes.setdefault(tuple(entry.get(name) for name in _SIZES), []).append(entry.get("units", 0))
    kinds = (replay.CHOSEN, replay.NULL, replay.ABSENT)
    categories = [
        {**dict(zip(_SIZES, sizes, strict=True)), "questions": len(units), "most_units": max(units)}
        for sizes, units in sorted(units_by_sizes.items(), key=str)
    ]
    return {**{kind: sum(entry["outcome"] == kind for entry in entries) for kind in kinds}, "categories": categories}


def _corrected_accuracy(name: str, questions: Sequence[AnsweredQuestion]) -> dict[str, Any] | None:
    """The accuracy with responses read as intended, if the original's parser has a known mistake."""
    benchmark = evaluation.get_benchmark(name)
    if not hasattr(benchmark, "read_corrected"):
        return None
    pairs = [(Row(answer=one.answer["answer"], groups={}), one.answer["response"]) for one in questions]
    return score_data(total(judge(benchmark, row, response, benchmark.read_corrected) for row, response in pairs))


def _changed_settings(settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Settings that differ from the original's run: [released, here]. Replayed oracle files do not count as a change."""
    parts = zip(released(settings["benchmark"], settings["mode"]), (settings["watch"], settings["ask"]), strict=True)
    changed = {
        name: [value, here[name]]
        for theirs, here in parts
        for name, value in theirs.items()
        if here.get(name, value) != value
    }
    if "oracle" in settings:
        changed.pop("relevance", None)
    return changed


def _time(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds summed over all processes: by stage of watching and asking, and wall time."""
    stages: dict[str, float] = {}
    for record in records:
        for part in ("watching_s", "asking_s"):
            for stage, seconds in record.get(part, {}).items():
                stages[stage] = stages.get(stage, 0.0) + seconds
    wall = sum(record.get("wall_s", 0.0) for record in records)
    return {
        "wall_s": round(wall, 2),
        "stages_s": {stage: round(seconds, 2) for stage, seconds in stages.items()},
        "executables": max((record.get("executables", 0) for record in records), default=0),
    }


def _notes(settings: Mapping[str, Any]) -> list[str]:
    """What a reader of the report must know."""
    notes = ["Intervals are 95 % (Wilson) and assume independent questions."]
    if settings["benchmark"] in _UNVERIFIED:
        notes.append("The scoring was not verified against responses of the original: none were available.")
    if settings["benchmark"] == "longvideobench":
        notes.append("A response that names no option is wrong here; the original picks an option at random.")
    if settings["benchmark"] == "lvbench":
        notes.append("Empty responses are left out of the denominator, as in the original.")
    if settings["answer"] == LIKELIHOOD:
        notes.append(
            "Options were scored by likelihood (the question alone; the mean log-probability of the tokens of each option's "
            "text and of the end), not by a generated response as in the original: not comparable with published accuracies."
        )
    if settings["subtitles"]:
        notes.append("The published accuracy is without subtitles.")
    if settings["mode"] == "bilevel":
        notes.append(
            "The published bi-level accuracy used top-k and chunk size per question category, apparently chosen on the test set."
        )
    if "oracle" in settings:
        notes.append(
            "Chunks, chunk size and compression were replayed from the original's oracle files; the setting top_k was not "
            "used. The files rank chunks outside the model, and their chunk size and top-k were chosen per category on the test "
            "set itself: this accuracy is no fair estimate for new videos."
        )
        notes.append(
            "Questions with a null category, and those without an entry, were asked over plain dense pre-filling with "
            "everything loaded dense, as in the original."
        )
    return notes


def write(folder: Path) -> dict[str, Any]:
    """Write report.json, report.md and report.png into a run's folder. Returns the report. Raises RequestError."""
    data = summarise(folder)
    write_texts(folder, {f"{NAME}.json": json.dumps(data, indent=1) + "\n", f"{NAME}.md": as_markdown(data)})
    charts.draw_report(folder / f"{NAME}.png", data)
    return data


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write text files by name, each atomically, and create the folder. Raises RequestError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{folder}: cannot be made a folder ({error.strerror}); choose another place") from error
    for name, text in texts.items():
        partial = folder / f".{name}.{os.getpid()}"
        try:
            # Names of files may hold bytes that are not UTF-8, which Python keeps as surrogates.
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
            os.replace(partial, folder / name)
        except OSError as error:
            raise RequestError(
                f"{folder / name}: cannot be written ({error.strerror}); choose another place"
            ) from error
        finally:
            partial.unlink(missing_ok=True)


def as_markdown(data: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    settings, accuracy, time, saved, oracle = (
        data[name] for name in ("settings", "accuracy", "time", "saved", "oracle")
    )
    missing = settings["videos"] - data["videos"] - len(data["failures"])
    scored = accuracy["total"] or not data["unscored"]
    left_out = settings.get("left_out", [])
    result = percent(accuracy) if scored else "not scored"
    lines = [
        f"# {settings['benchmark']}, {settings['mode']}: {result}",
        "",
        f"{accuracy['correct']:,} of {accuracy['total']:,} correct; the original published {data['published']} % for its own "
        "model.",
        f"{data['questions']:,} of {settings['questions']:,} questions about {data['videos']:,} of {settings['videos']:,} "
        f"videos were asked; {len(data['failures'])} videos could not be watched, and {missing} are still to be done.",
        f"{data['unnamed']} responses name no option and count as wrong; {data['uncounted']} are left out as empty.",
    ]
    if data["unscored"]:
        lines.append(f"{data['unscored']:,} responses are not scored: the annotations have no correct answer.")
    if data["failed_questions"]:
        lines.append(f"{len(data['failed_questions']):,} questions could not be asked, and are left out.")
    if data["video_notes"]:
        count = len({one["video"] for one in data["video_notes"]})
        lines.append(f"{count:,} videos are incomplete, damaged or unusual; see the table of videos.")
    if left_out:
        lines.append(f"{len(left_out):,} annotation rows were left out: they are invalid.")
    if data["corrected"]:
        lines.append(f"With all prefixes removed, as the original intended: {percent(data['corrected'])}.")
    if oracle:
        lines.append(
            f"The oracle files select chunks for {oracle[replay.CHOSEN]:,} questions; {oracle[replay.NULL]:,} have a null "
            f"category, and {oracle[replay.ABSENT]:,} have no entry."
        )
    lines += ["", *(f"- {note}" for note in data["notes"]), ""]
    for field, scores in data["by"].items():
        rows = [[value, f"{score['total']:,}", percent(score)] for value, score in scores.items()]
        lines += table([field.replace("_", " "), "questions", "correct"], rows)
    rows = [
        [f"{saved[f'{kind}_percent']} % of {name}", f"{saved[dense]:,}", f"{saved[used]:,}"]
        for kind, name, dense, used in (
            ("attention", "attention pairs", "attention_pairs_causal", "attention_pairs_kept"),
            ("cache", "key/value tokens", "cache_tokens_dense", "cache_tokens"),
        )
    ]
    lines += table(["saved", "dense", "used"], rows)
    if oracle:
        rows = [["not given" if value is None else value for value in each.values()] for each in oracle["categories"]]
        lines += table(["oracle category", "groups per chunk", "compression", "questions", "maximum of units"], rows)
    if data["changed"]:
        lines += table(["setting", "released", "here"], [[name, *values] for name, values in data["changed"].items()])
    stages = [[stage, f"{seconds:,.1f}"] for stage, seconds in time["stages_s"].items()]
    lines += table(["stage", "seconds"], [*stages, ["wall time", f"{time['wall_s']:,.1f}"]])
    lines += [f"At most {time['executables']} executables in a process; seconds are summed over processes.", ""]
    lines += settings_table({**settings, **settings["watch"], **settings["ask"], **data["made_with"]})
    lines += failures_table(data)
    if left_out:
        lines += table(["annotation rows that were left out"], [[problem] for problem in left_out[:_MAX_LEFT_OUT]])
    lines += [f"{settings['benchmark']}, {settings['mode']}: {result}, of {accuracy['total']:,} questions.", ""]
    return "\n".join(lines)


def settings_table(settings: Mapping[str, Any]) -> list[str]:
    """Lines of a Markdown table of a run's settings on one level."""
    return table(
        ["setting", ""], [[name, value] for name, value in settings.items() if name not in ("watch", "ask", "left_out")]
    )


def failures_table(data: Mapping[str, Any]) -> list[str]:
    """Lines of Markdown tables of the videos that could not be watched, of the questions that could not be asked, and of what
    is unusual about other videos."""
    lines = []
    for key, kind, header in (
        ("failures", "error", "why it could not be watched"),
        ("failed_questions", "error", "why a question could not be asked"),
        ("video_notes", "note", "what is missing, damaged or unusual"),
    ):
        if rows := [[one["video"], one[kind]] for one in data[key]]:
            lines += table(["video", header], rows)
    return lines


def percent(score: Mapping[str, Any]) -> str:
    """An accuracy with its interval."""
    low, high = score["interval"]
    return f"{score['accuracy']:.2f} % ({low:.1f} – {high:.1f})"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table, followed by an empty line."""

    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(printable(" ".join(str(cell).split())).replace("|", "\\|") for cell in cells) + " |"

    return [line(header), line(["---"] * len(header)), *map(line, rows), ""]
