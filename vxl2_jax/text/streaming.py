"""The text of an answer while its tokens arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"


class StreamedText:
    """Turns tokens into pieces of text that join to exactly the text of all tokens.

    A token may end within a character: it is then held back until the character is complete. So is white space, which is
    not part of the text if nothing follows.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """decode: `Tokenizer.decode`."""
        self._decode = decode
        self._tokens: list[int] = []
        self._given = 0

    def add(self, tokens: Sequence[int], *, last: bool) -> str:
        """The text that became certain with these tokens; `last`: no more tokens follow."""
        self._tokens += tokens
        text = self._decode(self._tokens)
        certain = text if last else text.rstrip(_REPLACEMENT).rstrip()
        piece, self._given = certain[self._given :], max(self._given, len(certain))
        return piece
