"""hf_rope.packing and hf_rope.masking: documents packed into rows are to a model what each is alone."""

import pytest
import torch
from transformers import BertTokenizer, PerceiverTokenizer

from helpers import CASES, over, refused, tiny_model
from hf_rope import HfRopeForMaskedLM
from hf_rope.masking import BatchSeededMasking
from hf_rope.packing import pack, split_documents

LETTERS = [chr(number) for number in range(ord("a"), ord("z") + 1)]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
TEXTS = [" ".join(LETTERS[start : start + number]) for start, number in enumerate((3, 9, 1, 26, 5, 14, 2))]


@pytest.fixture
def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})


def masked_rows(tokenizer) -> dict[str, torch.Tensor]:
    """A batch of the texts, half of the words masked."""
    columns = pack(split_documents(TEXTS, tokenizer, 12), 16)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return BatchSeededMasking(tokenizer, mlm_probability=0.5)(rows)


def documents(batch: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The ids and labels of each piece in a batch, (1, L)."""
    real = batch["attention_mask"].bool()
    starts = (batch["position_ids"][real] == 0).nonzero()[1:, 0].tolist()
    parts = [batch[key][real].tensor_split(starts) for key in ("input_ids", "labels")]
    return [(ids[None], labels[None]) for ids, labels in zip(*parts, strict=True)]


@over(case=CASES, side=["right", "left"])
def test_a_batch_of_packed_rows_has_the_loss_and_the_gradients_of_its_documents(case, side, tokenizer):
    tokenizer.padding_side = side
    batch = masked_rows(tokenizer)
    items = int((batch["labels"] != -100).sum())
    assert not batch["attention_mask"].all()
    model = tiny_model(case, HfRopeForMaskedLM).double().train()
    loss = model(**batch, num_items_in_batch=items).loss
    loss.backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    alone = sum(model(ids, labels=labels, num_items_in_batch=items).loss for ids, labels in documents(batch))
    alone.backward()
    torch.testing.assert_close(loss, alone, rtol=1e-6, atol=1e-6)  # which is taken in float32
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(together[name], parameter.grad, rtol=1e-5, atol=1e-6, msg=name)


def test_every_document_is_there_once_and_in_pieces_of_its_own(tokenizer):
    pieces = split_documents(TEXTS, tokenizer, 12)
    found = "".join(tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") + "." for ids in pieces)
    whole = [text.replace(" ", "") for text in TEXTS]
    assert found == "".join(f"{text[i : i + 10]}." for text in whole for i in range(0, len(text), 10))
    assert all(ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id for ids in pieces)
    rows = pack(pieces, 16)
    packed: list[list[int]] = []
    for ids, positions in zip(rows["input_ids"], rows["position_ids"], strict=True):
        assert len(ids) == len(positions) <= 16
        for token, position in zip(ids, positions, strict=True):
            if position == 0:
                packed.append([])
            packed[-1].append(token)
            assert position == len(packed[-1]) - 1
    assert sorted(packed) == sorted(pieces)


def test_a_piece_goes_into_the_fullest_row_that_has_room():
    pieces = [[number] * length for number, length in enumerate((2, 1, 3, 3, 2, 4, 1))]
    assert pack(pieces, 4) == {
        "input_ids": [[5] * 4, [2, 2, 2, 1], [3, 3, 3, 6], [0, 0, 4, 4]],
        "position_ids": [[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 2, 0], [0, 1, 0, 1]],
    }


def test_packing_refuses(tokenizer):
    refused(lambda: pack([[1, 2, 3]], 2), "A piece has 3 tokens", "a row has 2", "cut the text into shorter")
    assert split_documents([], tokenizer, 8) == []
    refused(lambda: split_documents(["a"], tokenizer, 2), "Pieces of 2 tokens", "2 special tokens", "3 or more")
    refused(lambda: split_documents(["a"], PerceiverTokenizer(), 9), "PerceiverTokenizer is not a fast tokenizer")


def test_masks_follow_from_the_rows_alone(tokenizer):
    torch.manual_seed(0)
    first = masked_rows(tokenizer)
    torch.manual_seed(1)
    again = masked_rows(tokenizer)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert set(first) == {"input_ids", "attention_mask", "labels", "position_ids"}


def test_rows_may_be_tensors_or_lists_as_transformers_own_collator_takes_them(tokenizer):
    rows = pack(split_documents(TEXTS, tokenizer, 16), 16)["input_ids"]
    collate = BatchSeededMasking(tokenizer, mlm_probability=0.5)
    expected = collate([{"input_ids": row} for row in rows])
    for kind in (list, torch.tensor):
        found = collate([kind(row) for row in rows])
        assert all(torch.equal(found[key], x) for key, x in expected.items())
