"""`Answer`, with what was read of the memory to give it."""

from __future__ import annotations

from dataclasses import dataclass, field

from vxl2_jax import notebook
from vxl2_jax.text.typed import printable


@dataclass(frozen=True)
class Chunk:
    """One bi-level chunk of the video: its time span in seconds, its relevance score, and whether it was loaded dense."""

    start_s: float
    end_s: float
    score: float
    dense: bool


@dataclass(frozen=True)
class Choice:
    """A text that was offered as an answer.

    score: the mean log-probability of its tokens and of the token that ends an answer, after the question.
    """

    text: str
    score: float


@dataclass(frozen=True, repr=False)
class Answer:
    """The answer to one question.

    Attributes:
      question, text: the question and its answer.
      tokens: token ids of the answer.
      stopped: False where max_new_tokens truncated the answer.
      chunks: the chunks of the video, in order.
      cache_tokens: tokens whose keys and values the question read; cache_tokens_dense: those of the whole dense level.
      timings: seconds per stage of the whole batch, which had `batch` questions.
      doubts: for a toy model, reasons not to trust the answer: what the model was not trained on, a phrase each.
      choices: the texts among which the answer was chosen, if there were any, in the order in which they were given.
    """

    question: str
    text: str
    tokens: tuple[int, ...]
    stopped: bool
    chunks: tuple[Chunk, ...]
    cache_tokens: int
    cache_tokens_dense: int
    timings: dict[str, float] = field(compare=False)
    batch: int = field(default=1, compare=False)
    doubts: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()

    @property
    def cache_ratio(self) -> float:
        """Key/value bytes loaded, as a share of the whole dense memory."""
        return self.cache_tokens / self.cache_tokens_dense

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 80 else self.text[:80] + "…"
        return f"Answer({text!r}, {', '.join(f'{name} {value}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        spans = [(chunk.start_s, chunk.end_s) for chunk in self.chunks]
        figure = notebook.bars(spans, [chunk.score for chunk in self.chunks], [chunk.dense for chunk in self.chunks])
        question = {"question": printable(self.question)}
        return notebook.card(printable(self.text) or "(nothing)", question | self._facts(), figure)

    def _facts(self) -> dict[str, str]:
        dense = sum(chunk.dense for chunk in self.chunks)
        return {
            "cache read": f"{100 * self.cache_ratio:.0f} % of {self.cache_tokens_dense:,} tokens",
            "dense chunks": f"{dense} of {len(self.chunks)}",
            **({"doubts": "; ".join(self.doubts)} if self.doubts else {}),
        }
