"""Small HTML views for notebooks: no scripts, no styles of the page, nothing loaded from elsewhere, all text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_MAX_BARS, _WIDTH, _HEIGHT = 120, 720, 60
_MAX_TEXT = 2_000


def card(title: str, facts: Mapping[str, str], figure: str = "") -> str:
    """A title, a line of facts ("name value · name value") and a figure, which is HTML already."""
    line = " · ".join(f"{escape(name)} {escape(value[:_MAX_TEXT])}".strip() for name, value in facts.items())
    return (
        f'<div><div style="white-space:pre-wrap"><b>{escape(title[:_MAX_TEXT])}</b></div>'
        f'<div style="opacity:.7;font-size:85%">{line}</div>{figure}</div>'
    )


def bars(spans: Sequence[tuple[float, float]], scores: Sequence[float], dense: Sequence[bool]) -> str:
    """Scores over time as an SVG: one bar per chunk, strong where the chunk is dense.

    Of more than 120 chunks, neighbours share a bar, which has their highest score and is strong if any of them is dense.

    Args:
      spans: (start, end) seconds of each chunk, in order.
    """
    if not spans:
        return ""
    each = -(-len(spans) // _MAX_BARS)
    parts = [range(first, min(first + each, len(spans))) for first in range(0, len(spans), each)]
    top, end = max(max(scores), 1e-9), max(spans[-1][1], 1e-9)
    drawn = []
    for part in parts:
        score, is_dense = max(scores[i] for i in part), any(dense[i] for i in part)
        (start, _), (_, stop) = spans[part[0]], spans[part[-1]]
        height = max(round(_HEIGHT * max(score, 0) / top, 1), 1)
        drawn.append(
            f'<rect x="{_WIDTH * start / end:.1f}" y="{_HEIGHT - height:.1f}" height="{height:.1f}" '
            f'width="{max(_WIDTH * (stop - start) / end - 1, 0.5):.1f}" fill="#1f77b4" '
            f'fill-opacity="{1 if is_dense else 0.3}"><title>{start:g} – {stop:g} s: {score:.3f}, '
            f"{'dense' if is_dense else 'sparse'}</title></rect>"
        )
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" style="max-width:100%">'
        f'{"".join(drawn)}</svg><div style="opacity:.7;font-size:85%">0 – {end:g} s; height: relevance; strong: read dense'
        "</div>"
    )
