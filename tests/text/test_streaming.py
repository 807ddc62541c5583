"""Text that arrives token by token joins to the text of all tokens."""

from hypothesis import given
from hypothesis import strategies as st

from vxl2_jax.text.streaming import StreamedText


def decode(tokens: list[int]) -> str:
    """Tokens that are single bytes, as the bytes of a character may be: like `Tokenizer.decode`."""
    return bytes(tokens).decode("utf-8", "replace").strip()


def pieces(data: bytes, cuts: list[int]) -> list[str]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    parts = [data[start:stop] for start, stop in zip(places, places[1:], strict=False)] or [b""]
    streamed = StreamedText(decode)
    return [streamed.add(list(part), last=part is parts[-1]) for part in parts]


TEXT = st.text(st.sampled_from("aé猫😀 \u3000\n\ufffd"), max_size=8)


@given(TEXT, st.lists(st.integers(0, 40), max_size=12))
def test_text_joins_whatever_it_is_cut_into(text, cuts):
    data = text.encode()
    found = pieces(data, cuts)
    assert "".join(found) == decode(list(data))


@given(st.binary(max_size=12), st.lists(st.integers(0, 12), max_size=6))
def test_so_do_bytes_that_are_no_text(data, cuts):
    assert "".join(pieces(data, cuts)) == decode(list(data))


def test_a_character_is_given_when_it_is_complete():
    assert pieces("a😀b".encode(), [1, 2, 3, 4, 5]) == ["a", "", "", "", "😀", "b"]
