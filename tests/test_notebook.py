"""One line in a terminal and a small safe view in a notebook."""

from html.parser import HTMLParser

import pytest
import toys

from vxl2_jax import answer
from vxl2_jax.runtime import Runtime

NASTY = '<script src="http://x.y/z.js">alert(1)</script>\x1b[31m'


def answered(chunks: int, text: str = "a dog") -> answer.Answer:
    parts = tuple(answer.Chunk(4.0 * i, 4.0 * i + 4, i / 10, i % 5 == 0) for i in range(chunks))
    return answer.Answer("what?\n" + text, text, (1, 2), True, parts, 40, 100, {})


class Tags(HTMLParser):
    """The tags of a text, all of which must be closed, and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.attributes: set[str] = set()
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag


def shown(toy) -> list:
    memory = toys.remembered(toy, toys.video()).replace(video=NASTY)
    return [answered(7, NASTY), memory, Runtime(NASTY, toy.config, toy.params, None, "")]


@pytest.mark.parametrize("number", range(3))
def test_views_are_short_and_text_in_them_is_text(toy, number):
    value = shown(toy)[number]
    assert "\n" not in repr(value) and "\x1b" not in repr(value) and len(repr(value)) < 300
    html = value._repr_html_()
    tags = Tags(html)
    assert set(tags.found) <= {"div", "b", "svg", "rect", "title"} and "<script" not in html
    assert not tags.attributes & {"src", "href", "onload", "class", "id"}


@pytest.mark.parametrize(("chunks", "bars"), [(0, 0), (1, 1), (120, 120), (121, 61), (5000, 120)])
def test_a_view_of_any_video_is_small(chunks, bars):
    html = answered(chunks)._repr_html_()
    assert html.count("<rect") == bars and len(html) < 40_000


def test_a_bar_of_several_chunks_is_dense_if_one_of_them_is():
    html = answered(600)._repr_html_()
    assert html.count('fill-opacity="1"') == 120
