"""Random models, batches and ways to run them: how a batch is laid out changes no output, no loss and no gradient.

Each draw is compared with its sequences alone, see `alone`: batches of one, without padding or mask, in eager attention
and float64. `make test-full` takes a few draws, the same ones every time, and `make test` the first of them;
`HF_ROPE_FUZZ` is another number, of other draws.
"""

import os
from collections.abc import Iterator
from random import SystemRandom
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from transformers.utils import logging

from fuzz.check import check
from fuzz.draw import Draw
from fuzz.strategies import draws

pytestmark = pytest.mark.fuzz

FEW = 300
EXAMPLES = int(os.environ.get("HF_ROPE_FUZZ", FEW))
FIRST = min(60, EXAMPLES) if EXAMPLES <= FEW else EXAMPLES // 2
"""Draws of `make test`, or of the first of two workers."""
COMPILED = min(2 + EXAMPLES // 300, 30)
"""Draws that are compiled, which takes seconds."""
START = 0 if EXAMPLES == FEW else SystemRandom().getrandbits(32)
ROUND = 10


def decodes(**changes) -> dict[str, Any]:
    return {"is_decoder": True, **changes}


ONCE_WRONG = [
    # A sequence had the number of one in the next row.
    Draw(rows=((1, 1, 1), (3,)), positions=("counted", "offset")),
    Draw(rows=((1, 1), (1, 1)), positions=("counted", "counted"), attention="told"),
    # What lay at padding decided whether a row is packed.
    Draw(rows=((3, 3),), holes=(2,), positions=("counted",)),
    Draw(rows=((1, 5, 2), (4, 4)), left=(3, 0), positions=("counted", "counted"), shared=True),
    # A hole where a block of causal linear attention ends parted a sequence.
    Draw(changes=decodes(attention_type="linear"), rows=((132,),), holes=(127,), positions=("gaps",), reads=False),
    # Cross-attention was told of the bounds of its queries.
    Draw(changes=decodes(add_cross_attention=True), rows=((2, 3),), bounds=True, states=True, attention="told"),
    # Where somebody looks on, a decoder's next token met a table of each sample.
    Draw("deberta", rows=((1,), (1,)), positions=("gaps", "gaps"), hook="layers.0"),
    Draw("relative_key_query", changes=decodes(), rows=((4,), (2,)), hook="layers.0", cache=True, pieces=(3,)),
    # Whether anything is dropped was asked of a number that a dynamic graph does not know.
    Draw(train=True, compiled=True),
]


def search(strategy: st.SearchStrategy[Draw], numbers: range) -> None:
    """Checks some draws, in rounds of ten: hypothesis goes on to vary what it drew, and new draws find more."""
    for number in numbers[::ROUND]:

        @seed(START + number)
        @settings(
            max_examples=min(ROUND, numbers.stop - number),
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=[*HealthCheck],
        )
        @given(strategy)
        def each(draw: Draw) -> None:
            check(draw)

        each()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Some of the configurations drawn are worth a warning."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)


@pytest.mark.parametrize(
    "numbers", [range(FIRST), pytest.param(range(FIRST, EXAMPLES), marks=pytest.mark.full)], ids=str
)
def test_a_batch_has_the_outputs_losses_and_gradients_of_its_sequences(numbers):
    search(draws(), numbers)


@pytest.mark.full
def test_a_compiled_batch_has_the_outputs_losses_and_gradients_of_its_sequences():
    search(draws(compiled=True), range(COMPILED))


@pytest.mark.parametrize("draw", ONCE_WRONG, ids=repr)
def test_a_batch_that_was_once_computed_wrong_is_right(draw):
    check(draw)
