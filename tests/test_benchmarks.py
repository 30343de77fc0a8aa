"""The benchmark's own arithmetic; its timings are no tests."""

import importlib
import itertools
import pkgutil
from types import SimpleNamespace

import pytest
import torch
from transformers import BertTokenizer

import benchmarks
from benchmarks import cases, measure, packing, retrofit
from hf_rope.text_files import read_texts

MODULES = [module.name for module in pkgutil.iter_modules(benchmarks.__path__) if module.name != "__main__"]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported(name):
    importlib.import_module(f"benchmarks.{name}")


def test_ratio_is_the_others_time_over_ours(monkeypatch):
    now = 0.0

    def work(*seconds: float):
        left = iter([0.0, *seconds])  # the first round is not counted

        def run():
            nonlocal now
            now += next(left)

        return run

    monkeypatch.setattr(measure.time, "perf_counter", lambda: now)
    ours, slow = work(1.0, 2.0, 1.0, 4.0), work(3.0, 4.0, 5.0, 8.0)
    result = measure.compare(ours, {"slow": slow}, rounds=4)["slow"]
    assert (result.rounds, result.seconds) == (4, 1.5)
    assert result.median == pytest.approx(2.5)
    assert result.low <= result.median <= result.high


def test_all_run_in_turn():
    order = []
    measure.compare(lambda: order.append("a"), {"b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3


@pytest.mark.parametrize("shape", [(4, 512), (16, 256), (8, 128)])
def test_half_real_batches_are_half_real(shape):
    batch = cases.half(*shape)
    assert batch["input_ids"].shape == shape
    assert cases.share(batch) == pytest.approx(0.5, abs=0.02)
    assert ((batch["input_ids"] > 0) == batch["attention_mask"].bool()).all()


def test_real_batches_are_padded_to_the_longest():
    texts = [*read_texts(cases.TEXTS)][:64]
    for batch in itertools.islice(cases.real(texts), 2):
        assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]


def test_unequal_models_are_refused():
    torch.manual_seed(0)
    models = [
        cases.native.build("Bert", "Model", hidden_size=16, num_hidden_layers=1, num_attention_heads=2) for _ in "ab"
    ]
    cases.check_equal(models[0], models[0], cases.full(1, 4))
    with pytest.raises(AssertionError):
        cases.check_equal(*models, cases.full(1, 4))


class BagOfWords:
    """An encoder whose states are the tokens themselves, so that a text's mean is the share of each word."""

    config = SimpleNamespace(hidden_size=40)
    device = torch.device("cpu")

    def __init__(self, limit: int | None):
        self.position = SimpleNamespace(max_length=limit)

    def __call__(self, input_ids, attention_mask):
        return SimpleNamespace(last_hidden_state=torch.eye(40)[input_ids])


@pytest.fixture
def needles(monkeypatch):
    monkeypatch.setattr(retrofit, "LENGTHS", (20, 200))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    pairs = [("a b c", "c b a", 5.0), ("d e", "e d d", 4.6), ("f", "f f", 4.5), ("g", "G.", 5.0)]
    rows = [{"sentence1": one, "sentence2": two, "label": label} for one, two, label in pairs]
    return retrofit.Needles(rows, "x y z " * 200, tokenizer)


def test_needles_are_paraphrases_and_stand_whole_in_documents_of_one_length(needles):
    assert [row["sentence1"] for row in needles.rows] == ["a b c", "d e"]
    for length in (20, 200):
        for row, document in zip(needles.rows, needles.documents(length), strict=True):
            assert len(document) == length
            assert needles.tokenizer.decode(document).count(row["sentence2"]) == 1
            assert (document[0], document[-1]) == (2, 3)


def test_a_needle_that_is_cut_off_is_not_found(needles):
    assert needles.found_first(BagOfWords(None)) == {"20": 1.0, "200": 1.0}
    needles.documents = lambda length: [needles.framed([25] * (length - 5) + needles.ids(x)) for x in ("e d d", "a")]
    assert needles.found_first(BagOfWords(None))["200"] == 0.0
    assert needles.found_first(BagOfWords(20))["200"] == 0.5  # all alike, and the first is taken


def test_similar_sentences_have_a_correlation_of_one(needles):
    rows = [{"sentence1": "a b", "sentence2": two, "label": label} for two, label in (("a b", 5), ("a c", 2), ("d", 0))]
    assert retrofit.Similarity(rows, needles.tokenizer).spearman(BagOfWords(None)) == pytest.approx(1)


@pytest.mark.slow
def test_memory_of_a_long_input_grows_with_its_length_alone():
    """32,768 tokens through one base-width layer; the scores of one head alone would be 4,096 MB."""
    short, long = (measure.peak_memory(cases.memory_work, "rotary", n, 1) for n in (8192, 32768))
    assert long < 4.5 * short
    assert long < 2500


def test_packed_and_padded_batches_have_the_same_documents(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(["the ship went down", "at sea", "a ship", "the sea went down " * 9]))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "ship", "went", "down", "at", "sea", "a"]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    packed = packing.packed_batch(tmp_path / "texts.txt", tokenizer, length=16, rows=99)
    padded = packing.padded_batch(packed)
    assert sorted(padded["attention_mask"].sum(1).tolist()) == [4, 4, 6, 10, 16, 16]
    for key in ("input_ids", "labels"):
        flat = [batch[key][batch["attention_mask"].bool()] for batch in (packed, padded)]
        assert torch.equal(*flat)
    sizes = {**cases.SMALL, "num_hidden_layers": 1, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    theirs, ours = cases.native.pair("Bert", "ForMaskedLM", **sizes)
    packing.check_equal_losses(theirs, ours, packed, padded)
    with pytest.raises(AssertionError):
        packing.check_equal_losses(theirs, ours, {**packed, "position_ids": packed["position_ids"] * 0}, padded)
