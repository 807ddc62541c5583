"""Statistics of judged answers: accuracies with Wilson intervals, paired changes, and Markdown tables of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from vxl2_jax.evaluation.intervals import clustered_difference, mcnemar, paired_difference, wilson

Records = Mapping[str, Mapping[str, Any]]
"""Key of a clip → its record (see `judging.record_of`)."""


def values(
    records: Records, setting: str, field: str = "right", label: str | None = None, inside: bool = False
) -> dict[str, list]:
    """A field of the questions in one setting, by clip.

    label: only questions with this label; inside: only those whose evidence lies wholly in chunks chosen by score.
    """
    found = {}
    for key, record in records.items():
        judged = record["settings"][setting]
        rows = zip(record["asked"], judged[field], judged["inside"], strict=True)
        found[key] = [value for (name, *_), value, lies in rows if label in (None, name) and lies >= inside]
    return found


def flat(by_clip: Mapping[str, Iterable[Any]]) -> list:
    return list(chain.from_iterable(by_clip.values()))


def percent_of(records: Records, setting: str, part: str, whole: str) -> float:
    """The sum over clips of one field as a percentage of that of another."""
    total = {field: sum(record["settings"][setting][field] for record in records.values()) for field in (part, whole)}
    return 100 * total[part] / total[whole]


def rate(right: Sequence[int], digits: int = 1) -> dict[str, Any]:
    """Accuracy in percent (None without questions), its 95 % Wilson interval, and the number of questions."""
    low, high = wilson(sum(right), len(right))
    accuracy = round(100 * sum(right) / len(right), digits) if right else None
    return {"accuracy": accuracy, "interval": [round(low, 1), round(high, 1)], "questions": len(right)}


def change(before: Mapping[Any, Sequence[int]], after: Mapping[Any, Sequence[int]], digits: int = 1) -> dict[str, Any]:
    """Accuracy of `after` minus that of `before` over the same questions, in percentage points.

    interval: 95 %, with the questions of a clip as a cluster; as if they were independent where all clips have the same
    mean, or there is one clip. p: McNemar's exact test, which assumes independent questions.

    Args:
      before, after: by clip, whether each question was answered correctly.
    """
    steps = {
        key: [new - old for old, new in zip(each, after[key], strict=True)] for key, each in before.items() if each
    }
    every = flat(steps)
    lost, won = every.count(-1), every.count(1)
    if not every:
        return {"questions": 0}
    low, high = clustered_difference(steps) or paired_difference(lost, won, len(every))
    return {
        "points": round(100 * (won - lost) / len(every), digits),
        "interval": [round(low, digits), round(high, digits)],
        "lost": lost,
        "won": won,
        "questions": len(every),
        "p": round(mcnemar(lost, won), 5),
    }


def table(corner: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table: row → column → a rate, a change, a number, text or None. Columns are those of any row."""
    columns = list(dict.fromkeys(chain.from_iterable(rows.values())))
    lines = [[name, *(cell(row.get(column)) for column in columns)] for name, row in rows.items()]
    return markdown([corner, *columns], lines)


def cell(value: Any) -> str:
    """A value in a table; rates and changes have their intervals."""
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    if "points" in value:
        return "{:+.1f} ({:+.1f} to {:+.1f})".format(value["points"], *value["interval"])
    percent = value.get("accuracy", value.get("percent"))  # neither where there are no questions
    return "–" if percent is None else "{:.1f} % ({:.1f} – {:.1f})".format(percent, *value["interval"])


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table of text; the columns after the first `left` ones are aligned right."""
    rule = ["---"] * left + ["--:"] * (len(header) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
