"""Temporal grounding: when does a sentence happen? A span in seconds, from what a model says or from where it looks.

Two predictors. *Text*: the span that the response names. *Attention*: the chunks around the one that the question looks
at most, as far as they get more than a fraction of what it gets; it needs no model that can say spans.

A prediction is right at a threshold if its intersection over union (IoU) with any of the true windows reaches it:
R@1 at .3, .5 and .7, and the mean IoU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.grounding_data import Window
from vxl2_jax.evaluation.intervals import wilson

THRESHOLDS = (0.3, 0.5, 0.7)
TEMPLATE = 'When does this happen in the video: "{query}"? Answer in one form only: from X to Y seconds.'
"""Our wording: the one behind the published figures is not known."""
FRACTION = 0.5
"""Of the peak: how much attention a chunk must get to belong to its span."""
_STARTS = 1001  # places of a random span, evenly over the video
_DRAWS = 2000  # of the bootstrap

_CLOCK = r"\d+:[0-5]\d(?::[0-5]\d)?(?:\.\d+)?"
_SECONDS = r"\s*(?:seconds?|secs?|s)(?![a-z])"
_MINUTES = rf"\d+(?:\.\d+)?\s*(?:minutes?|mins?|m)(?![a-z])(?:\s*(?:and\s+)?\d+(?:\.\d+)?{_SECONDS})?"
_TIME = rf"(?<![\w.:])(?:{_CLOCK}|{_MINUTES}|\d+(?:\.\d+)?(?:{_SECONDS}|(?!\w)))"
_BETWEEN = r"[\])]?\s*(?:to|and|until|till|through|[-–—~,])\s*(?:the\s+)?(?:second\s+)?[\[(]?"
_PAIR = re.compile(rf"({_TIME}){_BETWEEN}({_TIME})")
_ONE = re.compile(_TIME)
# "the 5th second", and the first of "the 5th to the 12th second"; "the 2nd dog" is no time.
_ORDINAL = re.compile(rf"(?<=\d)(?:st|nd|rd|th)(?=(?:{_BETWEEN}\d+(?:st|nd|rd|th))?{_SECONDS})")
_BARE = re.compile(r"[\d.]+")


def question(template: str, query: str) -> str:
    """The template with {query} (without its full stop) or {subject} (that without its last word) filled in.

    Raises RequestError for a template with neither, or with other fields.
    """
    query = query.strip().rstrip(".")
    try:
        asked = template.format(query=query, subject=query.rpartition(" ")[0] or query)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise RequestError(f"the template {template!r:.60} may only hold {{query}} and {{subject}}") from error
    if "{query}" not in template and "{subject}" not in template:
        raise RequestError(f"the template {template!r:.60} must hold {{query}} or {{subject}}")
    return asked


def read_times(response: str) -> tuple[float, ...]:
    """The seconds that a response names: (start, end), only (start,), or none.

    Numbers of seconds, clock times (mm:ss, h:mm:ss) and "1 minute 20 seconds". First the pairs joined by "to", "and",
    "until", a dash or a comma, those with a unit before bare ones; a pair in the wrong order is turned round. In "1 to 2
    minutes" both are minutes, but not in "30 to 2 minutes", which would be in the wrong order. Else the first two times,
    if they are in order, else the first.
    """
    text = _ORDINAL.sub("", response.lower())
    pairs = [pair.groups() for pair in _PAIR.finditer(text)]
    if pairs:
        with_unit = [pair for pair in pairs if not _BARE.fullmatch(pair[1])]
        first, second = (with_unit or pairs)[0]
        start, end = _seconds(first), _seconds(second)
        if _BARE.fullmatch(first) and re.match(_MINUTES, second) and 60 * start < end:
            start *= 60
        return min(start, end), max(start, end)
    times = [_seconds(time) for time in _ONE.findall(text)][:2]
    return tuple(times) if len(times) < 2 or times[0] < times[1] else (times[0],)


def _seconds(time: str) -> float:
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", time)]
    if re.fullmatch(rf"\d+(?:\.\d+)?(?:{_SECONDS})?", time):
        return numbers[0]
    if ":" not in time:
        return 60 * numbers[0] + sum(numbers[1:])
    return sum(number * 60**power for power, number in enumerate(reversed(numbers)))


def said_span(response: str, duration: float, length: float | None = None) -> Window | None:
    """The span of a response within a video of `duration` seconds; None where it names none.

    length: seconds that a span has of which only the start is named; None: such a response names none.
    """
    times = read_times(response)
    if len(times) == 1 and length is not None:
        times = (times[0], times[0] + length)
    return (min(times[0], duration), min(times[1], duration)) if len(times) == 2 else None


def attended_span(chunks: Sequence[Sequence[float]], fraction: float = FRACTION) -> Window:
    """The span of the chunks around the best-scored one that get at least `fraction` of its score, without a gap.

    chunks: (start, end, score) in order of time; of equal peaks the first counts.
    """
    scores = [score for _, _, score in chunks]
    first = last = scores.index(max(scores))
    least = fraction * scores[first]
    while first > 0 and scores[first - 1] >= least:
        first -= 1
    while last < len(chunks) - 1 and scores[last + 1] >= least:
        last += 1
    return float(chunks[first][0]), float(chunks[last][1])


def iou(starts: np.ndarray, ends: np.ndarray, windows: Sequence[Window]) -> np.ndarray:
    """Intersection over union of spans with the window that each fits best. Shapes: starts, ends [N] → [N]."""
    starts, ends = np.asarray(starts, float)[:, None], np.asarray(ends, float)[:, None]
    low, high = np.asarray(windows, float).T
    shared = np.clip(np.minimum(ends, high) - np.maximum(starts, low), 0, None)
    return (shared / ((ends - starts) + (high - low) - shared)).max(axis=1)


def span_iou(span: Window | None, windows: Sequence[Window]) -> float:
    """The same of one span; 0 for none."""
    return 0.0 if span is None else float(iou([span[0]], [span[1]], windows)[0])


def random_ious(length: float, duration: float, windows: Sequence[Window]) -> np.ndarray:
    """IoU of a span of `length` seconds at evenly many places of a video of `duration` seconds [1001]: what a random span
    gets. A longer one is cut to the video."""
    length = min(length, duration)
    starts = np.linspace(0, duration - length, _STARTS)
    return iou(starts, starts + length, windows)


def marks(ious: Sequence[float], videos: Sequence[str], seed: int) -> dict:
    """R@1 with Wilson intervals and mean IoU with one by bootstrap, in percent.

    The bootstrap draws whole videos, since sentences about one are alike: 2.5 and 97.5 percentiles of 2,000 draws by
    `seed`. ious, videos: of every sentence.
    """
    ious = np.asarray(ious, float)
    found: dict = {"moments": len(ious)}
    for threshold in THRESHOLDS:
        right = int((ious >= threshold).sum())
        interval = [round(bound, 2) for bound in wilson(right, len(ious))]
        found[f"r1@{threshold}"] = {"right": right, "percent": _percent(ious >= threshold), "interval": interval}
    if not len(ious):
        return found | {"miou": {"percent": 0.0, "interval": [0.0, 100.0]}}
    names, owner = np.unique(np.asarray(videos), return_inverse=True)
    sums, counts = np.bincount(owner, ious, len(names)), np.bincount(owner, minlength=len(names))
    drawn = np.random.default_rng(seed).integers(len(names), size=(_DRAWS, len(names)))
    bounds = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), (2.5, 97.5))
    interval = [round(100 * float(bound), 2) for bound in bounds]
    return found | {"miou": {"percent": _percent(ious), "interval": interval}}


def chances(ious: Sequence[np.ndarray]) -> dict:
    """What guesses get on average, in percent; ious: per sentence, those of equally likely guesses."""
    found = {f"r1@{limit}": {"percent": _percent([(one >= limit).mean() for one in ious])} for limit in THRESHOLDS}
    return found | {"miou": {"percent": _percent([one.mean() for one in ious])}}


def _percent(shares: Sequence[float]) -> float:
    return round(100 * float(np.mean(shares)), 2) if len(shares) else 0.0
