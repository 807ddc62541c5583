"""The report of a run: what was right, by group, what it saved and what it took. As data, Markdown and a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vxl2_jax import evaluation
from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation import charts, folder, replay
from vxl2_jax.evaluation.folder import Answered
from vxl2_jax.evaluation.rows import Row
from vxl2_jax.evaluation.scores import Score, Verdict, grouped, judge, total
from vxl2_jax.evaluation.settings import MODES, RELEASED, released

NAME = "report"
_UNWITNESSED = ("mlvu", "longvideobench")
_SIZES = ("category", "chunk_size", "compression")


def summarise(run: Path) -> dict[str, Any]:
    """The report of a run's folder. All but "time" and "made_with" depends on the rows alone, not on how they came.

    Raises RequestError for a folder without a run, or with damaged rows.
    """
    told, found = folder.read_run(run), list(folder.records(run).values())
    settings, answered = told["settings"], list(folder.answers(found))
    verdicts = [one.verdict for one in answered]
    failures = [{"video": record["video"], "error": record["error"]} for record in found if "error" in record]
    return {
        "settings": settings,
        "changed": _changed(settings),
        "made_with": told["made_with"],
        "complete": len(found) == settings["videos"],
        "videos": len(found) - len(failures),
        "questions": len(answered),
        "accuracy": scored(total(verdicts)),
        "by": by_group(verdicts),
        "mended": _mended(settings["benchmark"], answered),
        "unnamed": sum(not verdict.named for verdict in verdicts if verdict.counted),
        "uncounted": sum(not verdict.counted for verdict in verdicts),
        "published": RELEASED[settings["benchmark"]][MODES[settings["mode"]]].accuracy,
        "saved": saved(answered, found),
        "failures": failures,
        "time": _time(found),
        "oracle": replayed(answered),
        "notes": _notes(settings),
    }


def scored(score: Score) -> dict[str, Any]:
    """JSON-ready, with its interval."""
    return {**score.as_data(), "interval": [round(bound, 2) for bound in score.interval]}


def by_group(verdicts: Iterable[Verdict]) -> dict[str, dict[str, Any]]:
    """Scores by annotation field, and its values in a table's order."""
    return {
        field: {value: scored(scores[value]) for value in folder.in_order(field, scores)}
        for field, scores in grouped(verdicts).items()
    }


def saved(answered: Sequence[Answered], found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Attention pairs of pre-filling and key/value tokens of answering: summed, and how many percent less than dense."""
    pairs = [record["attention"] for record in found if "attention" in record]
    kept, causal = (sum(pair[name] for pair in pairs) for name in ("pairs_kept", "pairs_causal"))
    loaded, dense = (sum(one.row["cache"][name] for one in answered) for name in ("tokens", "tokens_dense"))

    def percent(part, whole):
        return round(100 * (1 - part / whole), 2) if whole else 0.0

    return {
        "attention_pairs_kept": kept,
        "attention_pairs_causal": causal,
        "attention_percent": percent(kept, causal),
        "cache_tokens": loaded,
        "cache_tokens_dense": dense,
        "cache_percent": percent(loaded, dense),
    }


def replayed(answered: Sequence[Answered]) -> dict[str, Any] | None:
    """What replayed oracle files said: of how many questions what, and for each category and its sizes how many questions
    and the most units that one of them lists. None where no files were replayed."""
    told = [one.row["oracle"] for one in answered if "oracle" in one.row]
    if not told:
        return None
    categories: dict[tuple, list[int]] = {}
    for one in told:
        if one["said"] == replay.CHOSEN:
            categories.setdefault(tuple(one[name] for name in _SIZES), []).append(one["units"])
    counts = {said: sum(one["said"] == said for one in told) for said in (replay.CHOSEN, replay.NULL, replay.ABSENT)}
    rows = [
        {**dict(zip(_SIZES, sizes, strict=True)), "questions": len(units), "most_units": max(units)}
        for sizes, units in sorted(categories.items(), key=str)
    ]
    return {**counts, "categories": rows}


def _mended(name: str, answered: Sequence[Answered]) -> dict[str, Any] | None:
    """The score as answers were meant to be read, where the original's reading has a known mistake."""
    benchmark = evaluation.named(name)
    if not hasattr(benchmark, "read_mended"):
        return None
    rows = [(Row(answer=one.row["answer"], groups={}), one.row["response"]) for one in answered]
    return scored(total(judge(benchmark, row, response, benchmark.read_mended) for row, response in rows))


def _changed(settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Settings that are not those of the original's run: [theirs, here]. It took its oracle files, too."""
    parts = zip(released(settings["benchmark"], settings["mode"]), (settings["watch"], settings["ask"]), strict=True)
    changed = {
        name: [value, here[name]] for theirs, here in parts for name, value in theirs.items() if here[name] != value
    }
    if "oracle" in settings:
        del changed["relevance"]
    return changed


def _time(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds, of all processes together: by stage of watching and of asking, and on the clock."""
    stages: dict[str, float] = {}
    for record in found:
        for part in ("watching_s", "asking_s"):
            for stage, seconds in record.get(part, {}).items():
                stages[stage] = stages.get(stage, 0.0) + seconds
    wall = sum(record.get("wall_s", 0.0) for record in found)
    return {
        "wall_s": round(wall, 2),
        "stages_s": {stage: round(seconds, 2) for stage, seconds in stages.items()},
        "executables": max((record.get("executables", 0) for record in found), default=0),
    }


def _notes(settings: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures must know."""
    notes = ["Intervals are 95 % (Wilson) and take the questions for independent of each other."]
    if settings["benchmark"] in _UNWITNESSED:
        notes.append("Of this benchmark no responses of the original are at hand that its scoring was checked against.")
    if settings["benchmark"] == "longvideobench":
        notes.append("A response that names no option is wrong here; the original draws an option by lot.")
    if settings["benchmark"] == "lvbench":
        notes.append("Empty responses leave the denominator, as in the original.")
    if settings["subtitles"]:
        notes.append("The published accuracy is without subtitles.")
    if settings["mode"] == "bilevel":
        notes.append(
            "The published bi-level accuracy took top-k and chunk size by question category, it seems by the test set itself."
        )
    if "oracle" in settings:
        notes.append(
            "Chunks, chunk size and compression were replayed from the original's oracle files, and the setting top_k was not "
            "used. The files rank chunks outside the model, and their chunk size and top-k were chosen per category on the test "
            "set itself: this accuracy is no fair estimate of what new videos would give."
        )
        notes.append(
            "Questions of a null category, and those without an entry, were asked over plain dense pre-filling, everything "
            "loaded dense, as the original does."
        )
    return notes


def write(run: Path) -> dict[str, Any]:
    """Write report.json, report.md and report.png into a run's folder; returns the report."""
    data = summarise(run)
    put(run, {f"{NAME}.json": json.dumps(data, indent=1) + "\n", f"{NAME}.md": as_markdown(data)})
    charts.draw_report(run / f"{NAME}.png", data)
    return data


def put(place: Path, texts: Mapping[str, str]) -> None:
    """Write files, each whole or not at all. Raises RequestError."""
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(f"{place}: cannot be made a folder ({error.strerror}); choose another place") from error
    for name, text in texts.items():
        part = place / f".{name}.{os.getpid()}"
        try:
            part.write_text(text, encoding="utf-8")
            os.replace(part, place / name)
        except OSError as error:
            raise RequestError(f"{place / name}: cannot be written ({error.strerror}); choose another place") from error
        finally:
            part.unlink(missing_ok=True)


def as_markdown(data: Mapping[str, Any]) -> str:
    """The report for people."""
    settings, accuracy, spent, less = (data[name] for name in ("settings", "accuracy", "time", "saved"))
    missing = settings["videos"] - data["videos"] - len(data["failures"])
    lines = [
        f"# {settings['benchmark']}, {settings['mode']}: {percent(accuracy)}",
        "",
        f"{accuracy['correct']:,} of {accuracy['total']:,} right; the original published {data['published']} % for its own model.",
        f"{data['questions']:,} of {settings['questions']:,} questions about {data['videos']:,} of {settings['videos']:,} "
        f"videos were asked; {len(data['failures'])} videos could not be watched, and {missing} are still to be done.",
        f"{data['unnamed']} responses name no option and count as wrong; {data['uncounted']} are left out as empty.",
    ]
    if data["mended"]:
        lines.append(f"With all announcing phrases removed, as was meant: {percent(data['mended'])}.")
    if said := data["oracle"]:
        lines.append(
            f"The oracle files choose chunks for {said[replay.CHOSEN]:,} questions; {said[replay.NULL]:,} are of a null "
            f"category, and {said[replay.ABSENT]:,} have no entry."
        )
    lines += ["", *(f"- {note}" for note in data["notes"]), ""]
    for field, scores in data["by"].items():
        rows = [[value, f"{score['total']:,}", percent(score)] for value, score in scores.items()]
        lines += table([field.replace("_", " "), "questions", "right"], rows)
    lines += table(
        ["saved", "of", "left"],
        [
            [
                f"{less['attention_percent']} % of attention pairs",
                f"{less['attention_pairs_causal']:,}",
                f"{less['attention_pairs_kept']:,}",
            ],
            [
                f"{less['cache_percent']} % of key/value tokens",
                f"{less['cache_tokens_dense']:,}",
                f"{less['cache_tokens']:,}",
            ],
        ],
    )
    if said:
        rows = [["not said" if value is None else value for value in each.values()] for each in said["categories"]]
        lines += table(
            ["oracle category", "groups per chunk", "compression", "questions", "units of 8 frames at most"], rows
        )
    if data["changed"]:
        lines += table(["setting", "released", "here"], [[name, *values] for name, values in data["changed"].items()])
    stages = [[stage, f"{seconds:,.1f}"] for stage, seconds in spent["stages_s"].items()]
    lines += table(["stage", "seconds"], [*stages, ["on the clock", f"{spent['wall_s']:,.1f}"]])
    lines += [f"At most {spent['executables']} executables in a process; seconds are summed over processes.", ""]
    told = {**settings, **settings["watch"], **settings["ask"], **data["made_with"]}
    lines += table(["setting", ""], [[name, value] for name, value in told.items() if name not in ("watch", "ask")])
    if data["failures"]:
        lines += table(
            ["video", "why it could not be watched"], [list(failure.values()) for failure in data["failures"]]
        )
    return "\n".join(lines)


def percent(score: Mapping[str, Any]) -> str:
    """An accuracy with its interval."""
    low, high = score["interval"]
    return f"{score['accuracy']:.2f} % ({low:.1f} – {high:.1f})"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a Markdown table, and an empty one."""

    def line(cells):
        return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"

    return [line(head), line(["---"] * len(head)), *map(line, rows), ""]
