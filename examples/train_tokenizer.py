"""Trains a BERT word-piece tokenizer and saves a folder that AutoTokenizer loads.

python examples/train_tokenizer.py --train_file my.txt more.csv --vocab_size 8000 --output_dir runs/tokenizer
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from transformers import BertTokenizer, HfArgumentParser, PreTrainedTokenizerBase

from loading import DataArguments, load_split, require_fresh


@dataclass
class Arguments:
    """The tokenizer's settings."""

    output_dir: str = field(metadata={"help": "The folder to write."})
    vocab_size: int = field(default=8000, metadata={"help": "The number of word pieces, special tokens included."})
    cased: bool = field(default=False, metadata={"help": "Keep capitals and accents."})


def train_tokenizer(texts: Iterable[str], vocab_size: int, cased: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer with at most `vocab_size` word pieces; fewer where the texts hold fewer."""
    if vocab_size < 10:
        raise SystemExit(f"--vocab_size is {vocab_size}; it must be 10 or more, five of them special tokens.")
    return BertTokenizer(do_lower_case=not cased).train_new_from_iterator(texts, vocab_size=vocab_size)


def main() -> None:
    data, arguments = HfArgumentParser((DataArguments, Arguments)).parse_args_into_dataclasses()
    require_fresh(arguments.output_dir)
    texts = load_split(data, "train", [data.text_column])[data.text_column]
    tokenizer = train_tokenizer(texts, arguments.vocab_size, arguments.cased)
    tokenizer.save_pretrained(arguments.output_dir)
    print(f"{len(tokenizer)} word pieces from {len(texts)} texts, in {arguments.output_dir}")


if __name__ == "__main__":
    main()
