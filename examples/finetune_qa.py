"""Fine-tunes any checkpoint on questions whose answer is a span of a text, in the form of SQuAD.

python examples/finetune_qa.py --model runs/mlm/rotary --train_file train.jsonl --validation_file validation.jsonl \
    --output_dir runs/qa --num_train_epochs 3

A row has `context`, `question` and `answers`: {"text": [...], "answer_start": [...]}, one answer or more, the first of
which is trained. A context that is longer than `--max_length` is read in windows that overlap by `--stride` tokens, and
the answer is the span with the highest sum of start and end logits in all of them. Exact match and F1 are SQuAD's,
beside those of answering with the whole context. Writes a model folder with `results.json`.
"""

import re
import string
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering, EvalPrediction, PreTrainedTokenizerBase, TrainingArguments

from finetuning import FinetuningArguments, Metric, build_trainer, load_splits, parse, report, train_and_evaluate
from loading import load_tokenizer, parse_overrides, require_text


@dataclass
class Arguments(FinetuningArguments):
    """The task's settings."""

    question_column: str = field(default="question", metadata={"help": "The column of the question."})
    answers_column: str = field(default="answers", metadata={"help": "The column of the answers, in SQuAD's form."})
    stride: int = field(default=64, metadata={"help": "Tokens that a window shares with the one before."})
    max_answer_length: int = field(default=64, metadata={"help": "The most tokens of an answer."})


def require_answers(rows: Dataset, columns: list[str]) -> None:
    """Refuses a row without an answer, or with one that is not where it says."""
    for context, question, answers in zip(*(rows[column] for column in columns), strict=True):
        places = [answers.get(key) for key in ("text", "answer_start")] if isinstance(answers, dict) else [None]
        if not all(isinstance(place, list) for place in places) or len({*map(len, places)}) > 1:
            raise SystemExit(
                f"The answers to {question!r} are {answers!r}; they must be two lists of one length, `text` and "
                "`answer_start`."
            )
        if not answers["text"]:
            raise SystemExit(f"The question {question!r} has no answer; every row needs one.")
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            if context[start : start + len(text)] != text:
                raise SystemExit(f"The answer {text!r} to {question!r} is not at {start}, its answer_start.")


def encode(
    rows: Dataset, columns: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int, stride: int
) -> Dataset:
    """Windows: token ids, `row`, `offsets` (the context's characters, else null), start and end of the first answer.

    Both are 0, the place of [CLS], where the window does not hold the answer whole.
    """
    context, question, answers = columns
    for column in (context, question):
        require_text(rows, column, lists=False)
    require_answers(rows, columns)
    longest = max(map(len, tokenizer(rows[question][:])["input_ids"]))
    if longest + 1 + stride >= max_length:
        raise SystemExit(
            f"--max_length {max_length} has no room for a question of {longest} tokens and a --stride of {stride}."
        )

    def tokenize(batch: dict[str, list], indices: list[int]) -> dict[str, Any]:
        encoded = tokenizer(
            batch[question],
            batch[context],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        windows = zip(encoded.pop("overflow_to_sample_mapping"), encoded.pop("offset_mapping"), strict=True)
        found: dict[str, list] = {"row": [], "offsets": [], "start_positions": [], "end_positions": []}
        for number, (place, pairs) in enumerate(windows):
            parts = encoded.sequence_ids(number)
            offsets = [pair if part == 1 else None for pair, part in zip(pairs, parts, strict=True)]
            first = batch[answers][place]["answer_start"][0]
            last = first + len(batch[answers][place]["text"][0])
            starts = [i for i, pair in enumerate(offsets) if pair and pair[0] <= first < pair[1]]
            ends = [i for i, pair in enumerate(offsets) if pair and pair[0] < last <= pair[1]]
            whole = bool(starts and ends)
            found["row"].append(indices[place])
            found["offsets"].append(offsets)
            found["start_positions"].append(starts[0] if whole else 0)
            found["end_positions"].append(ends[-1] if whole else 0)
        return {**encoded, **found}

    windows = rows.map(tokenize, batched=True, with_indices=True, remove_columns=rows.column_names, desc="windows")
    for row, offsets in zip(windows["row"], windows["offsets"], strict=True):
        if not any(offsets):
            raise SystemExit(f"The context {rows[row][context]!r}, of row {row + 1}, gives no token: leave it out.")
    return windows


def normalise(text: str) -> list[str]:
    """SQuAD's: lower case, without punctuation and articles."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def f1(answer: list[str], truth: list[str]) -> float:
    """The harmonic mean of the shares of common words."""
    common = (Counter(answer) & Counter(truth)).total()
    return 2 * common / (len(answer) + len(truth)) if common else float(answer == truth)


def score(answers: list[str], truths: list[dict[str, list]]) -> dict[str, float]:
    """Exact match and F1, the best over each row's answers, from 0 to 1."""
    rows = [
        (normalise(x), [normalise(text) for text in truth["text"]]) for x, truth in zip(answers, truths, strict=True)
    ]
    return {
        "exact_match": float(np.mean([x in truth for x, truth in rows])),
        "f1": float(np.mean([max(f1(x, y) for y in truth) for x, truth in rows])),
    }


def best_spans(
    windows: Dataset, contexts: list[str], logits: tuple[np.ndarray, np.ndarray], max_answer_length: int
) -> list[str]:
    """Each context's span with the highest sum of start and end logits, over its windows."""
    best = [(-np.inf, "")] * len(contexts)
    for row, offsets, start, end in zip(windows["row"], windows["offsets"], *logits, strict=True):
        places = [i for i, pair in enumerate(offsets) if pair]
        sums = start[places][:, None] + end[places][None, :]
        allowed = np.triu(np.ones_like(sums)) - np.triu(np.ones_like(sums), max_answer_length)
        sums = np.where(allowed, sums, -np.inf)
        i, j = np.unravel_index(sums.argmax(), sums.shape)
        span = contexts[row][offsets[places[i]][0] : offsets[places[j]][1]]
        best[row] = max(best[row], (float(sums[i, j]), span))
    return [span for _, span in best]


def finetune(
    arguments: Arguments, splits: dict[str, Dataset], columns: list[str], training: TrainingArguments
) -> dict[str, dict[str, float]]:
    """Trains on the "train" split, saves, and returns the metrics of every other split."""
    if training.train_sampling_strategy == "group_by_length":
        raise SystemExit(
            "--train_sampling_strategy group_by_length reorders the windows that are evaluated: leave it out."
        )
    if arguments.stride < 0 or arguments.max_answer_length < 1:
        raise SystemExit(
            f"--stride {arguments.stride} must be 0 or more, and --max_answer_length {arguments.max_answer_length} "
            "1 or more."
        )
    overrides, tokenizer = parse_overrides(arguments.config_overrides), load_tokenizer(arguments.model)
    tokenizer.padding_side = "right"  # a label is a place counted from the left, which padding there would move
    windows = {
        split: encode(rows, columns, tokenizer, arguments.max_length, arguments.stride)
        for split, rows in splits.items()
    }

    def metric(split: str) -> Metric:
        contexts, truths = splits[split][columns[0]][:], splits[split][columns[2]][:]

        def compute(prediction: EvalPrediction) -> dict[str, float]:
            spans = best_spans(windows[split], contexts, prediction.predictions, arguments.max_answer_length)
            return score(spans, truths)

        return compute

    whole = {split: score(rows[columns[0]][:], rows[columns[2]][:]) for split, rows in splits.items()}
    trainer = build_trainer(
        AutoModelForQuestionAnswering,
        arguments.model,
        tokenizer,
        windows,
        training,
        metric("validation"),
        **overrides,
    )
    baselines = {split: {f"whole_context_{name}": x for name, x in found.items()} for split, found in whole.items()}
    return train_and_evaluate(trainer, windows, baselines, {split: metric(split) for split in splits})


def main() -> None:
    data, arguments, training = parse(Arguments, output_dir="runs/qa", text_column="context", max_length=256)
    columns = [data.text_column, arguments.question_column, arguments.answers_column]
    report(finetune(arguments, load_splits(data, arguments.test_file, columns), columns, training))


if __name__ == "__main__":
    main()
