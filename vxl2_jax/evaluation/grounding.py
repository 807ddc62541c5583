"""Temporal grounding: in which span of seconds does a sentence happen?

Two predictors. *Text*: the span that the response names. *Attention*: the best-scored chunk with the chunks around it that
score above a fraction of it; it works for models that cannot name spans.

A prediction is correct at a threshold if its intersection over union (IoU) with any of the true windows reaches it. The
metrics are R@1 at IoU .3, .5 and .7, and the mean IoU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vxl2_jax.errors import RequestError
from vxl2_jax.evaluation.grounding_data import Window
from vxl2_jax.evaluation.intervals import wilson

THRESHOLDS = (0.3, 0.5, 0.7)
TEMPLATE = 'When does this happen in the video: "{query}"? Answer in one form only: from X to Y seconds.'
"""Our wording; the one behind the published results is not known."""
FRACTION = 0.5
"""Minimum score of a chunk in the span, as a fraction of the maximum."""
_RANDOM_SPANS = 1001  # evenly over the video
_BOOTSTRAP_SAMPLES = 2000

_CLOCK = r"\d+:[0-5]\d(?::[0-5]\d)?(?:\.\d+)?"
_SECONDS = r"\s*(?:seconds?|secs?|s)(?![a-z])"
_MINUTES = rf"\d+(?:\.\d+)?\s*(?:minutes?|mins?|m)(?![a-z])(?:\s*(?:and\s+)?\d+(?:\.\d+)?{_SECONDS})?"
_TIME = rf"(?<![\w.:])(?:{_CLOCK}|{_MINUTES}|\d+(?:\.\d+)?(?:{_SECONDS}|(?!\w)))"
_BETWEEN = r"[\])]?\s*(?:to|and|until|till|through|[-–—~,])\s*(?:the\s+)?(?:second\s+)?[\[(]?"
_PAIR = re.compile(rf"({_TIME}){_BETWEEN}({_TIME})")
_ONE = re.compile(_TIME)
# "the 5th second", and the first ordinal in "the 5th to the 12th second"; "the 2nd dog" is not a time.
_ORDINAL = re.compile(rf"(?<=\d)(?:st|nd|rd|th)(?=(?:{_BETWEEN}\d+(?:st|nd|rd|th))?{_SECONDS})")
_NUMBER = re.compile(r"[\d.]+")


def fill_template(template: str, query: str) -> str:
    """Fill a template with {query} (without its full stop) or {subject} (the query without its last word).

    Raises RequestError for a template with neither, or with other fields.
    """
    query = query.strip().rstrip(".")
    try:
        filled = template.format(query=query, subject=query.rpartition(" ")[0] or query)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise RequestError(f"the template {template!r:.60} may only hold {{query}} and {{subject}}") from error
    if "{query}" not in template and "{subject}" not in template:
        raise RequestError(f"the template {template!r:.60} must hold {{query}} or {{subject}}")
    return filled


def read_times(response: str) -> tuple[float, ...]:
    """Parse the times in a response, in seconds: (start, end), (start,) or ().

    Times are numbers of seconds, clock times (mm:ss, h:mm:ss) and "1 minute 20 seconds". The first pair joined by "to",
    "and", "until", a dash or a comma is taken, one with a unit rather than one without; a reversed pair is swapped. In
    "1 to 2 minutes" both are minutes, but not in "30 to 2 minutes", which would be reversed. Without a pair, the first
    two times are taken if they are in order, else the first.
    """
    text = _ORDINAL.sub("", response.lower())
    pairs = [pair.groups() for pair in _PAIR.finditer(text)]
    if pairs:
        with_unit = [pair for pair in pairs if not _NUMBER.fullmatch(pair[1])]
        first, second = (with_unit or pairs)[0]
        start, end = _seconds(first), _seconds(second)
        if _NUMBER.fullmatch(first) and re.match(_MINUTES, second) and 60 * start < end:
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


def answer_span(response: str, duration: float, length: float | None = None) -> Window | None:
    """The span that a response names, cut to the video.

    Args:
      response: the model's answer.
      duration: of the video, in seconds.
      length: seconds of a span if the response names only its start; None: such a response names no span.

    Returns:
      (start, end) in seconds, or None if the response names no span.
    """
    times = read_times(response)
    if len(times) == 1 and length is not None:
        times = (times[0], times[0] + length)
    return (min(times[0], duration), min(times[1], duration)) if len(times) == 2 else None


def attended_span(chunks: Sequence[Sequence[float]], fraction: float = FRACTION) -> Window:
    """The span of the best-scored chunk (the first of equals) and its neighbours on both sides, up to the first chunk
    with less than `fraction` of its score.

    Args:
      chunks: (start, end, score) in order of time.
      fraction: minimum score, relative to the best one.
    """
    scores = [score for _, _, score in chunks]
    first = last = scores.index(max(scores))
    minimum = fraction * scores[first]
    while first > 0 and scores[first - 1] >= minimum:
        first -= 1
    while last < len(chunks) - 1 and scores[last + 1] >= minimum:
        last += 1
    return float(chunks[first][0]), float(chunks[last][1])


def iou(spans: Float[np.ndarray, "N 2"], windows: Float[np.ndarray, "R 2"]) -> Float[np.ndarray, " N"]:
    """Intersection over union of each span with the window that fits it best; R true windows."""
    (starts, ends), (low, high) = spans.T[..., None], windows.T
    shared = np.clip(np.minimum(ends, high) - np.maximum(starts, low), 0, None)
    return (shared / ((ends - starts) + (high - low) - shared)).max(axis=1)


def span_iou(span: Window | None, windows: Float[np.ndarray, "R 2"]) -> float:
    """The IoU of one span; 0 for None."""
    return 0.0 if span is None else float(iou(np.array([span], float), windows)[0])


def random_ious(length: float, duration: float, windows: Float[np.ndarray, "R 2"]) -> Float[np.ndarray, " N"]:
    """IoUs of N = 1001 spans of `length` seconds, evenly spaced over a video of `duration` seconds: the expectation for
    a span at random. `length` is limited to the video."""
    length = min(length, duration)
    starts = np.linspace(0, duration - length, _RANDOM_SPANS)
    return iou(np.stack([starts, starts + length], axis=1), windows)


def metrics(ious: Sequence[float], videos: Sequence[str], seed: int) -> dict[str, Any]:
    """R@1 with Wilson intervals, and mean IoU with a bootstrap interval, in percent.

    The bootstrap samples whole videos, since sentences about one video are correlated. Its interval is between the 2.5
    and 97.5 percentiles of 2,000 samples.

    Args:
      ious: of every sentence.
      videos: of every sentence, the name of its video.
      seed: of the bootstrap.
    """
    values = np.asarray(ious, float)
    found: dict[str, Any] = {"moments": len(values)}
    for threshold in THRESHOLDS:
        correct = int((values >= threshold).sum())
        interval = [round(bound, 2) for bound in wilson(correct, len(values))]
        found[f"r1@{threshold}"] = {"right": correct, "percent": _percent(values >= threshold), "interval": interval}
    if not len(values):
        return found | {"miou": {"percent": 0.0, "interval": [0.0, 100.0]}}
    names, owner = np.unique(np.asarray(videos), return_inverse=True)
    sums, counts = np.bincount(owner, values, len(names)), np.bincount(owner, minlength=len(names))
    sampled = np.random.default_rng(seed).integers(len(names), size=(_BOOTSTRAP_SAMPLES, len(names)))
    bounds = np.percentile(sums[sampled].sum(1) / counts[sampled].sum(1), (2.5, 97.5))
    interval = [round(100 * float(bound), 2) for bound in bounds]
    return found | {"miou": {"percent": _percent(values), "interval": interval}}


def chance_metrics(ious: Sequence[Float[np.ndarray, " _"]]) -> dict[str, Any]:
    """R@1 and mean IoU of guesses, in percent. ious: per sentence, those of equally likely guesses."""
    found = {f"r1@{limit}": {"percent": _percent([(one >= limit).mean() for one in ious])} for limit in THRESHOLDS}
    return found | {"miou": {"percent": _percent([one.mean() for one in ious])}}


def _percent(shares: Sequence[Any] | np.ndarray) -> float:
    return round(100 * float(np.mean(shares)), 2) if len(shares) else 0.0
