"""Documents cut into pieces, and several pieces packed into one row in which each sees itself only."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import chain

from transformers import PreTrainedTokenizerBase


def split_documents(texts: list[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[list[int]]:
    """The ids of each text with its special tokens; a text that is longer gives several pieces, each with its own.

    No piece has tokens of two texts.

    Args:
        texts: a document each.
        tokenizer: a fast one, which alone cuts a text into pieces.
        length: tokens of the longest piece.

    Raises:
        ValueError: the tokenizer is not a fast one, or `length` leaves no room for a token of the text.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, which alone cuts long texts into pieces: use one of "
            "the tokenizers library, or texts that are joined."
        )
    special = tokenizer.num_special_tokens_to_add()
    if length <= special:
        raise ValueError(
            f"Pieces of {length} tokens have no room beside the tokenizer's {special} special tokens: they need "
            f"{special + 1} or more."
        )
    if not texts:
        return []
    return tokenizer(texts, truncation=True, max_length=length, return_overflowing_tokens=True)["input_ids"]


def pack(pieces: Sequence[Sequence[int]], size: int) -> dict[str, list[list[int]]]:
    """Rows of at most `size` tokens: `input_ids`, and `position_ids`, which begin at 0 in each piece.

    By these positions a model of hf_rope reads a row as several sequences. The longest piece goes first, and each into
    the fullest row that has room for it: `pack([[5, 6], [7], [8, 9, 10]], size=4)` has the rows 8 9 10 7 and 5 6, with
    the positions 0 1 2 0 and 0 1.

    Raises:
        ValueError: a piece is longer than a row.
    """
    rows: list[list[Sequence[int]]] = []
    rooms: list[tuple[int, int]] = []  # the free places and the number of each row that is not full, sorted
    for piece in sorted(pieces, key=len, reverse=True):
        if len(piece) > size:
            raise ValueError(f"A piece has {len(piece)} tokens and a row has {size}: cut the text into shorter pieces.")
        found = bisect_left(rooms, (len(piece), 0))
        if found == len(rooms):
            rows.append([])
            free, row = size, len(rows) - 1
        else:
            free, row = rooms.pop(found)
        rows[row].append(piece)
        if free > len(piece):
            insort(rooms, (free - len(piece), row))
    return {
        "input_ids": [[*chain.from_iterable(row)] for row in rows],
        "position_ids": [[*chain.from_iterable(range(len(piece)) for piece in row)] for row in rows],
    }
