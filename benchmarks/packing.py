"""`python -m benchmarks.packing`: masked-LM steps on documents packed into rows, beside the same documents padded.

Both batches have the same tokens and the same masks, and the same loss, which is checked before anything is timed.
"""

import argparse
import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BertTokenizer, PreTrainedModel

from hf_rope.masking import BatchSeededMasking
from hf_rope.packing import pack, split_documents
from hf_rope.text_files import read_text, read_texts

from . import native
from .cases import BASE, SMALL, share
from .groups import set_up
from .measure import compare
from .precision import PRECISIONS, Precision

DATA = Path(__file__).parent.parent / "examples" / "data"
TEXTS = [DATA / "books/train.txt", DATA / "reviews/train.jsonl"]
SIZES = {"small": SMALL, "base": BASE}


def read_documents(path: Path) -> list[str]:
    """The lines of a text file, or the `text` of each row of a .jsonl file."""
    if path.suffix == ".jsonl":
        return [*read_texts(path)]
    return [line for line in read_text(path).splitlines() if line.strip()]


def packed_batch(path: Path, tokenizer: BertTokenizer, length: int, rows: int) -> dict[str, torch.Tensor]:
    """A masked batch of some of the file's rows, in which pieces of up to `length` tokens are packed."""
    packed = pack(split_documents(read_documents(path), tokenizer, length), length)
    order = torch.randperm(len(packed["input_ids"]), generator=torch.Generator().manual_seed(0))[:rows]
    chosen = [{key: column[row] for key, column in packed.items()} for row in order.tolist()]
    return dict(BatchSeededMasking(tokenizer)(chosen))


def padded_batch(packed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tokens and labels, each piece a row, padded to the longest."""
    real = packed["attention_mask"].bool()
    ends = torch.cat([(packed["position_ids"][real] == 0).nonzero()[:, 0], real.sum()[None]])
    rows = {
        key: pad_sequence(packed[key][real].split(ends.diff().tolist()), batch_first=True, padding_value=filler)
        for key, filler in {"input_ids": 0, "labels": -100, "attention_mask": 0}.items()
    }
    return rows


def check_equal_losses(theirs: PreTrainedModel, ours: PreTrainedModel, packed, padded) -> None:
    """Raises AssertionError where the packed batch has another loss than the padded one, or the two models have."""
    with torch.no_grad():
        expected = theirs(**padded).loss
        for batch in (packed, padded):
            torch.testing.assert_close(ours(**batch).loss, expected, rtol=1e-5, atol=1e-5)


def dense(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that computes every place of a batch, padding too, as on an accelerator."""
    model = copy.deepcopy(model)
    model.config.unpad_inputs = False
    return model


def measure(path: Path, tokenizer: BertTokenizer, how: Precision, arguments: argparse.Namespace) -> list[dict]:
    """A row for each way to compute the packed batch and each way to compute the padded one."""
    packed = packed_batch(path, tokenizer, arguments.length, arguments.rows)
    padded = padded_batch(packed)
    sizes = {**SIZES[arguments.size], "vocab_size": len(tokenizer), "max_position_embeddings": arguments.length}
    theirs, ours = native.pair("Bert", "ForMaskedLM", **sizes, attn_implementation="sdpa")
    check_equal_losses(theirs, ours, packed, padded)

    def step(model: PreTrainedModel, batch: dict[str, torch.Tensor]):
        return how.step(how.prepare(copy.deepcopy(model)), batch)

    others = {"padded": step(ours, padded), "padded, dense": step(dense(ours), padded)}
    others["padded, BERT sdpa"] = step(theirs, padded)
    runs = {
        "packed": (step(ours, packed), others),
        "packed, dense": (step(dense(ours), packed), {"padded, dense": step(dense(ours), padded)}),
    }
    tokens, rows = int(packed["attention_mask"].sum()), []
    batch = {"texts": f"{path.parent.name}/{path.name}", "pieces": len(padded["input_ids"]), "tokens": tokens}
    batch |= {"real, packed": share(packed), "real, padded": share(padded)}
    for name, (run, beside) in runs.items():
        for other, ratio in compare(run, beside, arguments.rounds).items():
            speeds = {"tokens a second": tokens / ratio.seconds}
            rows.append({**batch, "run": name, "against": other, **speeds, **asdict(ratio)})
    return rows


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The ratios, with the tokens a second of the first of the two."""
    lines = ["| texts | run | against | ratio | quartiles | tokens a second | real tokens, packed and padded |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        ratio = f"{row['median']:.2f} | {row['low']:.2f} to {row['high']:.2f} | {row['tokens a second']:,.0f}"
        shares = f"{row['real, packed']:.0%}, {row['real, padded']:.0%}"
        lines.append(f"| {row['texts']} | {row['run']} | {row['against']} | {ratio} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", nargs="+", type=Path, default=TEXTS, help=".txt, a document a line, or .jsonl")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row, and of the longest piece")
    parser.add_argument("--rows", type=int, default=16, help="packed rows of the batch")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--precision", choices=["float32", "autocast"], default="float32")
    parser.add_argument("--rounds", type=int, default=9, help="paired runs of each case")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/bench/packing.json"))
    arguments = parser.parse_args()
    set_up(arguments)
    results: list[dict[str, Any]] = []
    for path in arguments.texts:
        tokenizer = BertTokenizer().train_new_from_iterator(read_documents(path), vocab_size=8000)
        results += measure(path, tokenizer, PRECISIONS[arguments.precision], arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    setting = {key: str(value) for key, value in vars(arguments).items()} | {"torch": torch.__version__}
    arguments.output.write_text(json.dumps({"setting": setting, "rows": results}, indent=1))
    print(as_markdown(results))


if __name__ == "__main__":
    main()
