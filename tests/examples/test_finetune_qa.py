"""finetune_qa.py."""

import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

import finetune_qa
from scripts import load_complete

ASKED = [
    {
        "context": "the road was long . " * repeats + "a man stood at the end .",
        "question": "who stood at the end ?",
        "answers": {"text": ["a man", "man"], "answer_start": [20 * repeats, 20 * repeats + 2]},
    }
    for repeats in (0, 8, 16)
]


def test_answers_are_found_in_the_windows_of_long_contexts(finetune, tmp_path, folder):
    sizes = ["--max_length", 48, "--stride", 12]
    results = finetune(finetune_qa, ASKED, *sizes)
    assert results["test"]["whole_context_exact_match"] == 0
    assert 0 < results["test"]["whole_context_f1"] < 1
    assert 0 <= results["test"]["exact_match"] <= results["test"]["f1"] <= 1
    load_complete(AutoModelForQuestionAnswering, tmp_path / "out")

    columns = ["context", "question", "answers"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    windows = finetune_qa.encode(Dataset.from_list(ASKED), columns, tokenizer, 48, 12)
    assert len(windows) > len(ASKED) + 2
    assert all(len(ids) <= 48 for ids in windows["input_ids"])
    marks = [
        [
            np.eye(48)[place][: len(ids)] * (place > 0)
            for place, ids in zip(windows[key], windows["input_ids"], strict=True)
        ]
        for key in ("start_positions", "end_positions")
    ]
    contexts, truths = ([row[key] for row in ASKED] for key in ("context", "answers"))
    spans = finetune_qa.best_spans(windows, contexts, marks, 8)
    assert spans == ["a man"] * 3
    assert finetune_qa.score(spans, truths) == {"exact_match": 1, "f1": 1}


def test_answers_are_places_from_the_left_whatever_the_tokenizer_pads(finetune, variants, tmp_path):
    sizes = ["--max_length", 48, "--stride", 12, "--model", variants["left"]]
    finetune(finetune_qa, ASKED, *sizes)
    assert AutoTokenizer.from_pretrained(variants["left"]).padding_side == "left"
    assert AutoTokenizer.from_pretrained(tmp_path / "out").padding_side == "right"


def test_a_span_never_ends_before_it_starts_nor_exceeds_the_limit():
    windows = Dataset.from_dict({"row": [0], "offsets": [[None, [0, 1], [2, 3], [4, 5], [6, 7]]]})
    start, end = np.array([[9.0, 0, 0, 4, 0]]), np.array([[9.0, 4, 0, 0, 3]])
    assert finetune_qa.best_spans(windows, ["a b c d"], (start, end), 8) == ["c d"]
    assert finetune_qa.best_spans(windows, ["a b c d"], (start, end), 1) in (["a"], ["c"])


def test_squad_scores_ignore_case_articles_and_punctuation():
    truths = [{"text": ["the end", "The Road!"]}]
    assert finetune_qa.score(["A road"], truths) == {"exact_match": 1, "f1": 1}
    assert finetune_qa.score(["long road"], truths) == {"exact_match": 0, "f1": pytest.approx(2 / 3)}
    assert finetune_qa.score(["town"], truths) == {"exact_match": 0, "f1": 0}


NO_ANSWER = {"text": [], "answer_start": []}
UNREADABLE = {"context": "\u200b", "question": "who ?", "answers": {"text": ["\u200b"], "answer_start": [0]}}
ELSEWHERE = {"text": ["man"], "answer_start": [0]}


@pytest.mark.parametrize(
    ("rows", "arguments", "sentence"),
    [
        ([{**ASKED[0], "answers": NO_ANSWER}, ASKED[0]], [], "has no answer"),
        ([{**ASKED[0], "answers": ELSEWHERE}], [], "is not at 0, its answer_start"),
        (ASKED, ["--max_length", 64, "--stride", 60], "--max_length 64 has no room for a question of"),
        (ASKED, ["--stride", -1], "--stride -1 must be 0 or more, and --max_answer_length 64 1 or more"),
        (ASKED, ["--max_answer_length", 0], "--stride 64 must be 0 or more, and --max_answer_length 0 1 or more"),
        ([{**ASKED[0], "answers": ["a man"]}], [], r"are \['a man'\]; they must be two lists of one length"),
        ([{**ASKED[0], "answers": {"text": "man", "answer_start": 2}}], [], "they must be two lists of one length"),
        ([{**ASKED[0], "answers": {"text": ["man"], "answer_start": []}}], [], "they must be two lists of one length"),
        ([ASKED[0], UNREADABLE], [], r"The context '\\u200b', of row 2, gives no token: leave it out"),
        (ASKED, ["--train_sampling_strategy", "group_by_length"], "reorders the windows"),
    ],
    ids=[
        "no answer",
        "elsewhere",
        "no room",
        "stride",
        "answer length",
        "list",
        "bare",
        "lengths",
        "no token",
        "order",
    ],
)
def test_question_answering_refuses(finetune, tmp_path, rows, arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        finetune(finetune_qa, rows, *arguments)
    assert not (tmp_path / "out").exists()
