"""What `hf_rope.analysis` says of a model is what the model computes, and what the formulas say."""

import cmath
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, ByT5Tokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from typer.testing import CliRunner

import reference
from helpers import CASES, SIZES, over, tiny_config, tiny_model, token_ids
from hf_rope import HfRopeForCausalLM, HfRopeForMaskedLM, HfRopeModel
from hf_rope.analysis import (
    TERMS,
    attention_by_distance,
    encode,
    inspect,
    long_term_decay,
    score_terms,
    shift_changes,
    split_embeddings,
)
from hf_rope.cli import app
from hf_rope.model import attention

SCORED = [case for case in CASES if tiny_config(case).attention_type == "softmax"]
ROTATING = [case for case in CASES if tiny_model(case).position.rotates]
SENTENCE = ["ship", "went", "down", "at", "sea", "and", "no", "one", "saw", "it", "go", "."]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", *SENTENCE]
TEXT = "The ship went down at sea, and no one saw it go."


def eager_model(case: str) -> HfRopeModel:
    model = tiny_model(case).double()
    model.set_attn_implementation("eager")
    return model


def at(kind: str, length: int) -> torch.Tensor:
    """Positions that count up, or with gaps and out of order."""
    return torch.arange(length)[None] if kind == "consecutive" else torch.tensor([[0, 2, 3, 9, 1, 12, 21]])[:, :length]


@pytest.mark.parametrize("kind", ["consecutive", "gaps"])
@pytest.mark.parametrize("case", SCORED)
def test_terms_sum_to_the_scores(case, kind, monkeypatch):
    model, ids, positions = eager_model(case), token_ids(1, 7), at(kind, 7)
    scores = []

    def record(attn, query, key, value, mask, scaling, position_bias=None, **kwargs):
        score = scaling * query @ key.transpose(-1, -2)
        scores.append(score[0] if position_bias is None else score[0] + position_bias[0])
        return computed(attn, query, key, value, mask, scaling, position_bias=position_bias, **kwargs)

    computed = attention.eager_attention
    monkeypatch.setattr(attention, "eager_attention", record)
    terms = score_terms(model, ids, positions)
    assert tuple(terms) == TERMS
    assert len(scores) == model.config.num_hidden_layers
    torch.testing.assert_close(sum(terms.values()), torch.stack(scores), rtol=0, atol=1e-9)


def biases(linear: torch.nn.Linear) -> torch.Tensor:
    return torch.zeros_like(linear.weight[:, 0]) if linear.bias is None else linear.bias


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("case", SCORED)
def test_terms_are_those_of_the_formula(case, layer):
    """The formula as plain loops, with zeros for the query or for the key, on each part of the layer's input."""
    model, ids, head, length = eager_model(case), token_ids(1, 4), 2, 4
    position, config, attn = model.position, model.config, model.layers[layer].attention
    formula = reference.SCORES.get(config.position_embedding_type, reference.none_score)
    terms = score_terms(model, ids)
    with torch.no_grad():
        content = model(ids, output_hidden_states=True).hidden_states[layer]
        added = torch.zeros_like(content)
        if layer == 0:
            content, added = split_embeddings(model, ids, torch.arange(length)[None])
        rows = slice(head * attn.head_dim, (head + 1) * attn.head_dim)
        (q, k), (p, r) = (
            [x[0] @ part.weight[rows].T + bias * biases(part)[rows] for part in (attn.query, attn.key)]
            for x, bias in ((content, 1), (added, 0))
        )
        zero = torch.zeros_like(q[0])
        for i in range(length):
            for j in range(length):

                def score(query, key, i=i, j=j):
                    return float(formula(position, attn, head, i, j, query, key, length))

                def plain(query, key):
                    return attn.position.scaling() * float(query @ key)

                neither = score(zero, zero)
                expected = {
                    "content-content": plain(q[i], k[j]),
                    "content-position": plain(q[i], r[j]) + score(q[i], zero) - neither,
                    "position-content": plain(p[i], k[j]) + score(zero, k[j]) - neither,
                    "position-position": plain(p[i], r[j]) + score(p[i], zero) + score(zero, r[j]) - neither,
                }
                expected["rotation"] = score(q[i] + p[i], k[j] + r[j]) - sum(expected.values())
                found = {name: float(term[layer, head, i, j]) for name, term in terms.items()}
                scaled = (config.rope_parameters or {}).get("rope_type", "default") != "default"
                assert found == pytest.approx(expected, abs=1e-5 if scaled else 1e-9)


@pytest.mark.parametrize("case", CASES)
def test_embeddings_split_into_words_and_positions(case):
    model, ids = eager_model(case), token_ids(1, 7)
    config, parts = model.config, model.embeddings
    embed = reference.EMBEDS.get(config.position_embedding_type, lambda p, x, i: x)
    with torch.no_grad():
        content, added = split_embeddings(model, ids, at("gaps", 7))
        x = model(ids, position_ids=at("gaps", 7), output_hidden_states=True).hidden_states[0]
        for place, i in enumerate(at("gaps", 7)[0].tolist()):
            words = parts.word_embeddings(ids[0, place]) + parts.token_type_embeddings.weight[0]
            row = embed(model.position, torch.zeros_like(words), i)
            deviation = ((words + row).var(correction=0) + config.layer_norm_eps).sqrt()
            expected = model.embedding_norm.weight * (row - row.mean()) / deviation
            if config.embedding_size != config.hidden_size:
                expected = model.embedding_projection.weight @ expected
            torch.testing.assert_close(added[0, place], expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(content + added, x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", SCORED)
def test_a_scheme_has_only_the_terms_of_its_kind(case):
    model = eager_model(case)
    present = {name for name, term in score_terms(model, token_ids(1, 7)).items() if term.abs().max() > 1e-9}
    assert "content-content" in present
    assert ("rotation" in present) == model.position.rotates
    assert (present == {"content-content"}) == (model.position.kind == "none")


@pytest.mark.parametrize("case", SCORED)
def test_attention_by_distance_is_the_mean_over_pairs(case):
    model = eager_model(case)
    special = torch.tensor([True, False, False, False, True, False, True])
    windows = [(token_ids(1, length, seed=length)[0], special[-length:]) for length in (7, 5)]
    found = attention_by_distance(model, windows)
    means, shares, distances = torch.tensor(found.mean), torch.tensor(found.special), found.distances
    assert distances.tolist() == list(range(-4, 5))
    pairs: dict[int, list] = {distance: [] for distance in distances.tolist()}
    totals = []
    for ids, mask in windows:
        with torch.no_grad():
            probabilities = torch.cat(model(ids[None], output_attentions=True).attentions)
        words = (~mask).nonzero()[:, 0].tolist()
        for i in words:
            totals.append(probabilities[:, :, i, mask].sum(-1))
            for j in words:
                pairs[j - i].append(probabilities[:, :, i, j])
    torch.testing.assert_close(shares, torch.stack(totals).mean(0))
    assert found.pairs.tolist() == [len(values) for values in pairs.values()]
    for place, values in enumerate(pairs.values()):
        if values:
            torch.testing.assert_close(means[..., place], torch.stack(values).mean(0))
        else:
            assert means[..., place].isnan().all()
    every = [(abs(distance), value) for distance, values in pairs.items() for value in values]
    mean_distance = sum(distance * value for distance, value in every) / sum(value for _, value in every)
    torch.testing.assert_close(torch.tensor(found.mean_distance), mean_distance)


@pytest.mark.parametrize("case", CASES)
def test_a_shift_changes_what_the_scheme_declares(case):
    model = eager_model(case)
    ids = token_ids(1, 7)
    changes, largest = shift_changes(model, ids, (1, 30, 1000))
    assert largest == pytest.approx(model(ids).last_hidden_state.abs().max().item())
    assert (max(change or 0 for change in changes.values()) < 1e-9) == model.position.shift_invariant
    with torch.no_grad():
        if changes[1000] is None:
            with pytest.raises(ValueError, match="has a table for"):
                model(ids, position_ids=torch.arange(7)[None] + 1000)


@pytest.mark.parametrize("case", ROTATING)
def test_decay_is_the_mean_size_of_the_partial_sums(case):
    position, longest = tiny_model(case).position, 40
    rope = position.config.rope_parameters
    head_dim = position.config.head_dim
    size = head_dim if rope["rope_type"] == "proportional" else int(head_dim * rope.get("partial_rotary_factor", 1.0))
    frequencies, factor = [rope["rope_theta"] ** (-2 * t / size) for t in range(size // 2)], 1.0
    if rope["rope_type"] != "default":
        frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](position.config, seq_len=longest + 1)
    curve = long_term_decay(position, longest)
    for distance in range(longest + 1):
        turns = [cmath.exp(1j * distance * float(frequency)) for frequency in frequencies]
        sums = [abs(sum(turns[:count])) for count in range(1, size // 2 + 1)]
        assert float(curve[distance]) == pytest.approx(factor**2 * sum(sums) / (size // 2), rel=1e-5)


def test_decay_falls_as_in_the_papers_figure():
    """RoFormer's fig. 2: from its height at 0 down to less than half, within 250 tokens, for heads of 128."""
    curve = long_term_decay(HfRopeModel(tiny_config("rotary", hidden_size=512)).position, 250)
    assert float(curve[0]) == pytest.approx((64 + 1) / 2)
    assert float(curve[200:].max()) < float(curve[0]) / 2
    assert float(curve[:50].mean()) > float(curve[50:100].mean()) > float(curve[200:].mean())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> BertTokenizer:
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join(WORDS))
    return BertTokenizer(vocab=str(path))


@pytest.fixture
def save(tokenizer, tmp_path):
    """Saves a model with the tokenizer and returns the folder's name."""

    def to_folder(model) -> str:
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return to_folder


def run(*arguments, **options):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)], **options)


@over(case=["learned", "deberta", "rotary", "shaw"], quick=["deberta"])
def test_the_command_writes_pictures_arrays_and_tables(case, save, tmp_path):
    folder, output = save(tiny_model(case, HfRopeForMaskedLM)), tmp_path / "out"
    for _ in range(2):
        result = run(folder, "-", "--output", output, "--layer", 1, "--tokens", 8, input=TEXT)
        assert result.exit_code == 0, result.output
    pictures = {"score_terms.png", "attention_by_distance.png"}
    pictures |= {"long_term_decay.png"} if tiny_model(case).position.rotates else set()
    assert {path.name for path in output.iterdir()} == {"arrays.npz", "findings.json", *pictures}
    assert all((output / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    found = json.loads((output / "findings.json").read_text())
    assert found["tokens"] == ["[CLS]", "the", "ship", "went", "down", "at", "sea", "[SEP]"]
    assert found["declared shift invariant"] == tiny_model(case).position.shift_invariant
    with np.load(output / "arrays.npz") as arrays:
        assert arrays["terms/content-content"].shape == (2, 4, 8, 8)
        assert arrays["attention/mean"].shape == (2, 4, len(arrays["attention/distances"]))
    assert "shift invariant" in result.output


def test_other_architectures_are_converted(save):
    sizes = {key: value for key, value in SIZES.items() if key not in ("max_position_embeddings",)}
    native = BertForMaskedLM(BertConfig(**sizes)).eval()
    findings = inspect(save(native), TEXT, tokens=8)
    assert (findings.scheme, findings.shift_invariant) == ("learned", False)
    ids = torch.tensor([[WORDS.index(token) for token in findings.tokens]])
    native.set_attn_implementation("eager")
    with torch.no_grad():
        probabilities = torch.cat(native.double()(ids, output_attentions=True).attentions)
    scores = torch.tensor(sum(findings.terms.values()))
    torch.testing.assert_close(scores.softmax(-1), probabilities, rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.tensor(findings.probabilities), probabilities, rtol=0, atol=1e-9)


def test_further_rope_parameters_get_a_curve_each(save):
    linear = {"rope_type": "linear", "factor": 4.0}
    findings = inspect(save(tiny_model("rotary")), TEXT, tokens=8, longest=80, rope_parameters=[linear])
    own, scaled = findings.decay.values()
    assert list(findings.decay) == ["the model's", "type linear, factor 4.0"]
    np.testing.assert_allclose(scaled[::4], own[:21], atol=1e-5)


def test_a_text_is_cut_into_windows_that_fit(save, tokenizer):
    rows = encode(tokenizer, TEXT * 3, 8, len(WORDS))
    assert all(len(ids) <= 8 and mask.tolist()[0] and mask.tolist()[-1] for ids, mask in rows)
    words = [WORDS[i] for ids, mask in rows for i in ids[~mask].tolist()]
    assert words == tokenizer.tokenize(TEXT * 3)
    findings = inspect(save(tiny_model("learned", max_position_embeddings=8)), TEXT * 3, tokens=8)
    assert findings.attention.distances.max() == 5


@pytest.mark.parametrize(
    ("case", "arguments", "sentence"),
    [
        ("rotary", ["--layer", 2], "the model has layers 0 to 1 and heads 0 to 3"),
        ("rotary", ["--head", 4], "the model has layers 0 to 1 and heads 0 to 3"),
        ("rotary", ["--tokens", 2], "tokens=2, window=None and longest=512: the first two must be 3 or more"),
        ("rotary", ["--rope", "yarn"], "--rope 'yarn' is no JSON"),
        ("rotary", ["--rope", "[1]"], "it must be a JSON object"),
        ("rotary", ["--rope", '{"rope_type": "yarm", "factor": 2}'], "yarm"),
        ("shaw", ["--rope", '{"rope_type": "linear", "factor": 2}'], "'shaw' does not rotate"),
        ("learned", ["--window", 65], "has a table for 64 positions"),
        ("rotary", ["--output", "{folder}"], "holds other files than those of an earlier inspection"),
    ],
)
def test_refusals(case, arguments, sentence, save, tmp_path):
    folder = save(tiny_model(case))
    arguments = [str(argument).replace("{folder}", folder) for argument in arguments]
    output = tmp_path / "out"
    result = run(folder, " ".join(["the ship went down"] * 40), "--output", output, *arguments)
    assert result.exit_code == 1
    assert sentence in result.output
    assert result.output.strip().splitlines()[-1].startswith("Error: ")
    assert not output.exists()


def test_what_has_no_terms_or_windows_is_refused(save, tokenizer):
    with pytest.raises(ValueError, match="is_decoder is True"):
        inspect(save(tiny_model("rotary", HfRopeForCausalLM, is_decoder=True)), TEXT)
    with pytest.raises(ValueError, match="holds bytes that are no UTF-8"):
        inspect(save(tiny_model("rotary")), "the ship \udcff sank")
    tiny_model("rotary", vocab_size=300).save_pretrained(folder := save(tiny_model("rotary")))
    for path in Path(folder).glob("*token*"):
        path.unlink()
    ByT5Tokenizer().save_pretrained(folder)
    with pytest.raises(ValueError, match="ByT5Tokenizer is not a fast tokenizer"):
        inspect(folder, TEXT)


def test_terms_are_of_as_many_tokens_as_a_table_has(save):
    assert len(inspect(save(tiny_model("learned", max_position_embeddings=8)), TEXT * 3).tokens) == 8


@pytest.mark.parametrize("text", ["", "  ", "ship"])
def test_a_text_without_two_words_is_refused(text, save):
    with pytest.raises(ValueError, match="fewer than two tokens beside the special ones"):
        inspect(save(tiny_model("rotary")), text)


def test_a_tokenizer_of_another_model_is_refused(save):
    with pytest.raises(ValueError, match="gives id 17 and the model has 9 words"):
        inspect(save(tiny_model("rotary", vocab_size=9)), TEXT)


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path):
    tiny_model("rotary").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="has no tokenizer, and the text needs one"):
        inspect(str(tmp_path / "model"), TEXT)


def test_missing_matplotlib_is_told_in_a_sentence(save, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "hf_rope.plots", raising=False)
    result = run(save(tiny_model("rotary")), TEXT, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert "pip install 'hf-rope[inspect]'" in result.output


def test_no_decay_without_rotation():
    with pytest.raises(ValueError, match="does not rotate and has no long-term decay"):
        long_term_decay(tiny_model("t5").position, 10)
