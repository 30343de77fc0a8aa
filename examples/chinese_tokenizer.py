"""Makes a Chinese tokenizer, of characters as BERT's or of words as RoFormer's, and saves it for pretrain_mlm.py.

python examples/chinese_tokenizer.py --train_file zh_news/train.jsonl --output_dir runs/characters
python examples/chinese_tokenizer.py --train_file zh_news/train.jsonl --words 10000 --output_dir runs/words

The pieces are those of `--vocab_file`, such as the vocab.txt of bert-base-chinese, or else are learnt from the text;
every Chinese character is a piece of its own. `--words` adds the most frequent words of the text, as rjieba cuts it,
for transformers' RoFormerTokenizer: words it knows stay whole and others are read by characters. This and loading such
a tokenizer need rjieba: pip install rjieba.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import track
from transformers import BertTokenizer, HfArgumentParser, PreTrainedTokenizerBase, RoFormerTokenizer

from loading import DataArguments, load_split, require_fresh
from train_tokenizer import train_tokenizer


@dataclass
class Arguments:
    """The tokenizer's settings."""

    output_dir: str = field(metadata={"help": "The folder to write."})
    vocab_file: str | None = field(default=None, metadata={"help": "A vocab.txt, a piece a line."})
    vocab_size: int = field(default=8000, metadata={"help": "Without --vocab_file: the pieces to learn, at most."})
    words: int = field(default=0, metadata={"help": "The words to add, at most; none makes BERT's tokenizer."})


def load_vocabulary(file: str) -> PreTrainedTokenizerBase:
    """BERT's tokenizer with the pieces of a file."""
    path = Path(file)
    if not path.is_file():
        raise SystemExit(f"{file} is not there, or is no file.")
    pieces = path.read_text(encoding="utf-8").split("\n")
    for special in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"):
        if special not in pieces:
            raise SystemExit(f"{file} has no line {special}; a vocabulary of BERT's has one.")
    return BertTokenizer(vocab=str(path))


def add_words(characters: PreTrainedTokenizerBase, texts: list[str], number: int) -> PreTrainedTokenizerBase:
    """RoFormer's tokenizer: the pieces of `characters`, under their ids, and then the most frequent words."""
    try:
        import rjieba
    except ImportError as error:
        raise SystemExit(
            "RoFormer's word-level tokenizer needs rjieba, which is not installed: pip install rjieba, "
            "or leave --words out for characters."
        ) from error
    counts: Counter[str] = Counter()
    for text in track(texts, "words", transient=True):
        counts.update(word for word in rjieba.cut(text.lower(), hmm=False) if len(word) > 1 and not word.isascii())
    vocabulary = characters.get_vocab()
    new = [word for word, _ in counts.most_common() if word.isalpha() and word not in vocabulary]
    return RoFormerTokenizer(vocab=vocabulary | {word: len(vocabulary) + i for i, word in enumerate(new[:number])})


def main() -> None:
    data, arguments = HfArgumentParser((DataArguments, Arguments)).parse_args_into_dataclasses()
    if arguments.words < 0:
        raise SystemExit(f"--words is {arguments.words}; it must be 0 or more.")
    require_fresh(arguments.output_dir)
    texts = load_split(data, "train", [data.text_column])[data.text_column][:]
    if arguments.vocab_file:
        tokenizer = load_vocabulary(arguments.vocab_file)
    else:
        tokenizer = train_tokenizer(texts, arguments.vocab_size)
    if arguments.words:
        tokenizer = add_words(tokenizer, texts, arguments.words)
    tokenizer.save_pretrained(arguments.output_dir)
    print(f"{len(tokenizer)} pieces, in {arguments.output_dir}: {' '.join(tokenizer.tokenize(texts[0])[:20])}")


if __name__ == "__main__":
    main()
