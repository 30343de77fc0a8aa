"""Text as the rows of tokens that a masked LM is trained on: joined and cut, or documents packed side by side."""

from itertools import chain

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_rope.packing import pack, split_documents


def group_texts(texts: Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int) -> Dataset:
    """`input_ids` of exactly `block_size`: texts with their special tokens, one after the other, cut into blocks."""
    (column,) = texts.column_names

    def cut(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = list(chain.from_iterable(tokenizer(rows[column], verbose=False)["input_ids"]))
        return {"input_ids": [ids[i : i + block_size] for i in range(0, len(ids) - block_size + 1, block_size)]}

    blocks = texts.map(cut, batched=True, batch_size=10_000, remove_columns=column, desc="tokens")
    if not len(blocks):
        raise SystemExit(f"The text is shorter than one block of {block_size} tokens: use a smaller --block_size.")
    return blocks


def make_rows(
    texts: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, block_size: int, documents: bool
) -> Dataset:
    """`input_ids` and `position_ids` of rows of up to `block_size` tokens, in which pieces of text are packed.

    Args:
        length: tokens of the longest piece.
        documents: whether a piece is of one text; else texts are joined and cut into pieces of `length`.
    """
    if documents:
        (column,) = texts.column_names

        def fill(rows: dict[str, list]) -> dict[str, list[list[int]]]:
            return pack(split_documents(rows[column], tokenizer, length), block_size)
    else:
        texts = group_texts(texts, tokenizer, length)

        def fill(rows: dict[str, list]) -> dict[str, list[list[int]]]:
            return pack(rows["input_ids"], block_size)

    return texts.map(fill, batched=True, batch_size=10_000, remove_columns=texts.column_names, desc="rows")
