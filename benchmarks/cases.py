"""What is compared with what; where the weights can be copied, the outputs are checked equal first."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import BertWordPieceTokenizer
from torch import nn
from transformers import PreTrainedModel

import hf_rope
from hf_rope.convert.check import difference
from hf_rope.convert.weights import HEADS
from hf_rope.text_files import read_rows, read_texts

from . import native
from .floor import Floor, products, sdpa
from .precision import PRECISIONS, Precision, Run

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
TEXTS = Path(__file__).parent.parent / "examples" / "data" / "reviews" / "train.jsonl"
VOCABULARY = 30522


@dataclass
class Case:
    """A row of the table for each of the others; the goals of each are by precision."""

    group: str
    name: str
    ours: Run
    others: dict[str, Run]
    goals: dict[str, dict[str, float | None]] = field(default_factory=dict)


def full(batch: int, length: int) -> dict[str, torch.Tensor]:
    """A batch without padding."""
    return {"input_ids": torch.randint(1, VOCABULARY, (batch, length))}


def half(batch: int, length: int) -> dict[str, torch.Tensor]:
    """A batch in which half of the tokens are padding: lengths spread evenly from a few tokens to all."""
    lengths = torch.linspace(length / batch, length, batch).round().long()
    lengths = (lengths * (length * batch / 2) / lengths.sum()).round().long().clamp(1, length)
    return padded([torch.randint(1, VOCABULARY, (int(n),)) for n in lengths], length)


def padded(rows: list[torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def real(texts: list[Any]) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of 32 sentences or pairs, padded to the longest, in the order of the file."""
    tokenizer = BertWordPieceTokenizer()
    flat = [text for pair in texts for text in ([pair] if isinstance(pair, str) else pair)]
    tokenizer.train_from_iterator(flat, vocab_size=8000, show_progress=False)
    for start in range(0, len(texts) - 31, 32):
        rows = [torch.tensor(x.ids) for x in tokenizer.encode_batch(texts[start : start + 32])]
        yield padded(rows, max(len(row) for row in rows))


def share(batch: dict[str, torch.Tensor]) -> float:
    """The share of real tokens."""
    return float(batch["attention_mask"].float().mean())


def check_equal(theirs: PreTrainedModel, ours: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    """Raises AssertionError where the two models differ at a real token."""
    kept = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch)[0][kept], theirs(**batch)[0][kept], rtol=0, atol=1e-4)


def checked(how: Precision, pair: tuple, batch: dict[str, torch.Tensor]) -> tuple[nn.Module, nn.Module]:
    """A native model and ours, found equal in float32 and made ready for a precision."""
    check_equal(*pair, batch)
    theirs, ours = map(how.prepare, pair)
    return theirs, ours


def floors(how: Precision, batch: int, length: int) -> dict[str, Run]:
    """What an encoder of base width needs at the least, with either kind of attention."""
    x = torch.randn(batch, length, 768)
    kinds = {"floor, sdpa": sdpa, "floor, products": products}
    return {name: how.forward(how.prepare(Floor(12, 768, 12, 3072, kind).eval()), x) for name, kind in kinds.items()}


def rotary_forward(how: Precision) -> Iterator[Case]:
    sizes = {**BASE, "max_position_embeddings": 1536}
    theirs, ours = checked(how, native.pair("RoFormer", **sizes), full(1, 16))
    bert, learned = checked(how, native.pair("Bert", **sizes, attn_implementation="sdpa"), full(1, 16))
    wanted = {
        (8, 128): (0.95, 1.05, 0.93, 1.0),
        (4, 512): (0.95, 1.40, 0.95, 1.05),
        (1, 1536): (0.95, 1.80, 0.95, 1.05),
    }
    for shape, (floor, roformer, floor_16, native_16) in wanted.items():
        inputs, work = full(*shape), f"{shape[0]}x{shape[1]}"
        others = floors(how, *shape)
        goals = {name: {"float32": floor, "bfloat16": floor_16} for name in others}
        goals |= {"RoFormer": {"float32": roformer, "bfloat16": native_16}, "BERT sdpa": {"bfloat16": native_16}}
        others |= {"RoFormer": how.forward(theirs, **inputs), "BERT sdpa": how.forward(bert, **inputs)}
        yield Case("rotary", work, how.forward(ours, **inputs), others, goals)
        beside_bert = {"bfloat16": native_16} | ({"float32": 1.0} if shape == (4, 512) else {})
        goals = goals | {"RoFormer": {"bfloat16": native_16}, "BERT sdpa": beside_bert}
        yield Case("learned", work, how.forward(learned, **inputs), others, goals)


def real_batches(how: Precision, pairs: Path | None) -> Iterator[Case]:
    theirs, ours = checked(how, native.pair("RoFormer", **BASE), full(1, 16))
    bert = how.prepare(native.build("Bert", "Model", "sdpa", **BASE))
    sources = {"reviews": next(real([*read_texts(TEXTS)]))}
    if pairs is not None:
        sources["pairs"] = next(real([(row["sentence1"], row["sentence2"]) for row in read_rows(pairs)]))
    batches = {f"32 {name}": inputs for name, inputs in sources.items()} | {"16x128 half": half(16, 128)}
    for name, inputs in batches.items():
        others = {"RoFormer": how.forward(theirs, **inputs), "BERT sdpa": how.forward(bert, **inputs)}
        goal = {"float32": 0.95 / share(inputs), "bfloat16": 0.9 / share(inputs)}
        goals = {"RoFormer": goal, "BERT sdpa": {"bfloat16": goal["bfloat16"]}}
        yield Case("rotary", f"{name}, {share(inputs):.0%} real", how.forward(ours, **inputs), others, goals)


def steps(how: Precision) -> Iterator[Case]:
    rows = {"small": (SMALL, (16, 256), (3.4, 5.0), (2.0, 3.5)), "base": (BASE, (8, 128), (1.6, 2.9), (1.25, 2.2))}
    for size, (sizes, shape, *wanted) in rows.items():
        for kind, make, goal, goal_16 in zip(("full", "half real"), (full, half), *wanted, strict=True):
            torch.manual_seed(0)
            inputs = make(*shape)
            theirs, ours = checked(how, native.pair("RoFormer", "ForMaskedLM", **sizes), inputs)
            goals = {"RoFormer": {"float32": goal, "autocast": goal_16}}
            others = {"RoFormer": how.step(theirs, inputs)}
            if size == "base":
                others["BERT sdpa"] = how.step(
                    how.prepare(native.build("Bert", "ForMaskedLM", "sdpa", **sizes)), inputs
                )
                goals["BERT sdpa"] = {"autocast": goal_16}
            yield Case("rotary", f"step, {size} {shape[0]}x{shape[1]} {kind}", how.step(ours, inputs), others, goals)


def learned_forward(how: Precision) -> Iterator[Case]:
    """With padding; full batches are among those of `rotary_forward`."""
    inputs = half(4, 512)
    theirs, ours = checked(how, native.pair("Bert", **BASE, attn_implementation="sdpa"), inputs)
    others = {"BERT sdpa": how.forward(theirs, **inputs)}
    yield Case("learned", "4x512 half real", how.forward(ours, **inputs), others, {"BERT sdpa": {"float32": 1.8}})


def relative_forward(how: Precision) -> Iterator[Case]:
    deberta: dict[str, Any] = {"position_buckets": 256, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    deberta["pos_att_type"] = ["c2p", "p2c"]
    rows = {
        "deberta": (lambda: native.deberta_v2(**BASE, **deberta), "DeBERTa-v2", (1.9, 2.5), (2.0, 2.5)),
        "t5": (lambda: native.pair("MPNet", **BASE, max_position_embeddings=1540), "MPNet", (1.4, 1.9), (None, None)),
    }
    for scheme, (build, name, *wanted) in rows.items():
        batches = [full(*shape) for shape in ((4, 512), (1, 1536))]
        for inputs in batches:
            inputs["input_ids"].clamp_(min=2)  # MPNet reads 1 as padding
        theirs, ours = checked(how, build(), batches[0])
        for inputs, goal, goal_16 in zip(batches, *wanted, strict=True):
            others = {name: how.forward(theirs, **inputs)}
            work = "x".join(map(str, inputs["input_ids"].shape))
            goals = {name: {"float32": goal, "bfloat16": goal_16}}
            yield Case(scheme, work, how.forward(ours, **inputs), others, goals)


def modern_forward(how: Precision) -> Iterator[Case]:
    """A gated feed-forward of two thirds of the size costs what a dense one does; NomicBERT's weights are ours too."""
    sizes = {**BASE, "intermediate_size": 2048, "vocab_size": VOCABULARY, "pad_token_id": 0}
    modern = how.prepare(native.build("ModernBert", "Model", "sdpa", **sizes, global_attn_every_n_layers=1))
    nomic, gated = checked(how, native.pair("NomicBert", **sizes, attn_implementation="sdpa"), full(1, 16))
    dense = how.prepare(scheme_model("rotary"))
    for kind, make, wanted, wanted_gated in (("full", full, 1.15, 1.04), ("half real", half, 2.1, 1.9)):
        inputs = make(4, 512)
        others, goals = {"ModernBERT": how.forward(modern, **inputs)}, {"ModernBERT": {"float32": wanted}}
        yield Case("rotary", f"4x512 {kind}, equal FLOPs", how.forward(dense, **inputs), others, goals)
        others, goals = {"NomicBERT": how.forward(nomic, **inputs)}, {"NomicBERT": {"float32": wanted_gated}}
        yield Case("rotary, gated", f"4x512 {kind}", how.forward(gated, **inputs), others, goals)


CONVERTED: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Roberta": {"pad_token_id": 1},
    "XLMRoberta": {"pad_token_id": 1},
    "Camembert": {"pad_token_id": 1},
    "Electra": {"embedding_size": 128},
    "Albert": {"embedding_size": 128},
    "MPNet": {},
    "Deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "DebertaV2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 256},
    "RoFormer": {"summary_type": "first"},
    "JinaEmbeddingsV3": {"pad_token_id": 1},
    "NomicBert": {},
    "Gte": {"pad_token_id": 1},
}


def converted(how: Precision) -> Iterator[Case]:
    """Every source and head at small width, the encoder with padding too; a row's name says how far apart they are."""
    for family, settings in CONVERTED.items():
        for head in HEADS:
            if head == "ForCausalLM" or not hasattr(transformers, family + head):
                continue
            torch.manual_seed(0)
            pair = native.pair(family, head, **{**SMALL, "vocab_size": VOCABULARY, **settings})
            kinds = {"": full, ", half real": half} if head == "Model" else {"": full}
            batches = {kind: fitting(make(4, 128), pair[0].config, head) for kind, make in kinds.items()}
            apart = {kind: difference(*pair, inputs)[0] for kind, inputs in batches.items()}
            theirs, ours = map(how.prepare, pair)
            for kind, inputs in batches.items():
                name = f"{family}{head}{kind}, within {apart[kind]:.1e}"
                yield Case("convert", name, how.forward(ours, **inputs), {"its source": how.forward(theirs, **inputs)})


def fitting(inputs: dict[str, torch.Tensor], config, head: str) -> dict[str, torch.Tensor]:
    """A batch with a source's own padding, and as two choices of each of two examples for multiple choice."""
    inputs["input_ids"].clamp_(min=2)  # 1 is padding in some of them
    if "attention_mask" in inputs:
        inputs["input_ids"].masked_fill_(inputs["attention_mask"] == 0, config.pad_token_id)
    return {key: x.unflatten(0, (2, 2)) for key, x in inputs.items()} if head == "ForMultipleChoice" else inputs


def scheme_model(scheme: str, attn_implementation: str | None = None, **changes) -> PreTrainedModel:
    config = hf_rope.HfRopeConfig(**{**BASE, **changes}, position_embedding_type=scheme)
    return hf_rope.HfRopeModel._from_config(config, attn_implementation=attn_implementation).eval()


COSTS = {
    "learned": 1.01,
    "sinusoidal": 1.01,
    "rotary": 1.02,
    **dict.fromkeys(("alibi", "kerple", "fire", "t5", "tupe"), 1.06),
}
COSTS |= {"relative_key": 1.2, "shaw (keys only)": 1.2, "relative_key_query": 1.4, "transformer_xl": 1.4}
COSTS |= {"deberta": 1.4, "shaw": 1.6}
COSTS_IN_BFLOAT16 = {"deberta": 1.35}


def scheme_costs(how: Precision) -> Iterator[Case]:
    """Each scheme's forward over that of `none`: "ours" is `none` here, so that the ratio is the cost."""
    inputs = full(4, 512)
    control = how.forward(how.prepare(scheme_model("none")), **inputs)
    for name in [*hf_rope.SCHEMES, "shaw (keys only)"]:
        if name == "none":
            continue
        options = {"position_options": {"relative_values": False}} if "keys" in name else {}
        model = how.prepare(scheme_model(name.split(" ")[0], **options))
        goals = {name: {"float32": COSTS.get(name, 1.4), "bfloat16": COSTS_IN_BFLOAT16.get(name, COSTS.get(name, 1.4))}}
        yield Case("cost over none", name, control, {name: how.forward(model, **inputs)}, goals)


def lengths(how: Precision, longest: int) -> Iterator[Case]:
    theirs, ours = map(how.prepare, native.pair("RoFormer", **BASE, max_position_embeddings=longest))
    length = 128
    while length <= longest:
        inputs = full(1, length)
        yield Case("length", str(length), how.forward(ours, **inputs), {"RoFormer": how.forward(theirs, **inputs)})
        length *= 2


def int8_forward(how: Precision) -> Iterator[Case]:
    """A model beside itself in float32."""
    ours, inputs = scheme_model("rotary"), full(8, 128)
    others = {"itself in float32": forward(copy.deepcopy(ours), **inputs)}
    goals = {"itself in float32": {"int8": 2.0}}
    yield Case("rotary", "8x128", how.forward(how.prepare(ours), **inputs), others, goals)


forward = PRECISIONS["float32"].forward


def memory_work(which: str, length: int, layers: int = 12, *, warm: bool) -> None:
    """For `peak_memory`: builds one model and, unless warm, runs one forward of 1 x length."""
    torch.set_num_threads(2)
    if which == "RoFormer":
        model = native.build("RoFormer", "Model", **BASE, max_position_embeddings=length)
    else:
        model = scheme_model(which, num_hidden_layers=layers)
    forward(model, **full(1, 16 if warm else length))()
