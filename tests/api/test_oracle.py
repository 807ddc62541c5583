"""Replayed selections differ in how many chunks they load; what is compiled for one of a category serves all of them."""

from vxl2_jax import decode, generate
from vxl2_jax.relevance.oracle import Oracle, OracleSelection

from .conftest import ASKED

QUESTION = "is there 7?"


def replayed(units, maximum) -> generate.AskOptions:
    """Options that replay one choice, of a category that chooses `maximum` chunks elsewhere."""
    choice = OracleSelection("a", units, 1, 2)
    return generate.AskOptions(
        relevance=Oracle("", {f"_{QUESTION}": choice}, max_chunks={"a": maximum}),
        max_new_tokens=ASKED["max_new_tokens"],
    )


def asked(model, memory, units, maximum):
    (answer,) = generate.ask_many(model, memory, [QUESTION], replayed(units, maximum), ())
    return answer


# Of ten chunks.
MANY, FEW = tuple(range(1, 7)), ((1,), (2, 3, 5), (99,))


def test_selections_of_a_category_share_executables(model, memory):
    compiled = (decode.generate,)
    asked(model, memory, MANY, len(MANY))
    sizes = [function._cache_size() for function in compiled]
    for units in FEW:
        asked(model, memory, units, len(MANY))
    assert [function._cache_size() for function in compiled] == sizes
    asked(model, memory, FEW[0], 0)
    assert [
        function._cache_size() for function in compiled
    ] != sizes  # lengths that are rounded up to the same are no test


def test_room_for_more_chunks_changes_no_answer(model, memory):
    wide, tight = asked(model, memory, FEW[0], len(MANY)), asked(model, memory, FEW[0], 0)
    assert (wide.tokens, wide.cache_tokens) == (tight.tokens, tight.cache_tokens)
