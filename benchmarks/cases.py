"""What is compared with what; where the weights can be copied, the outputs are checked equal first."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import BertWordPieceTokenizer
from transformers import PreTrainedModel

import hf_rope
from hf_rope.convert.check import difference
from hf_rope.convert.weights import HEADS

from . import native
from .floor import Floor

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
TEXTS = Path(__file__).parent.parent / "examples" / "data" / "reviews" / "train.jsonl"
VOCABULARY = 30522


@dataclass
class Case:
    """One row of the table."""

    group: str
    name: str
    ours: Callable[[], object]
    others: dict[str, Callable[[], object]]
    goals: dict[str, float] = field(default_factory=dict)


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


def forward(model: torch.nn.Module, *arguments, **inputs) -> Callable[[], object]:
    def run():
        with torch.no_grad():
            return model(*arguments, **inputs)

    return run


def step(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> Callable[[], object]:
    """Forward, backward and AdamW (fused, Trainer's default) of a masked-LM step, 15% of real tokens labelled."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    ids = batch["input_ids"]
    chosen = (torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.15) & (ids > 0)
    inputs = {**batch, "labels": ids.where(chosen, torch.tensor(-100))}

    def run():
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        return loss

    return run


def floor(batch: int, length: int) -> Callable[[], object]:
    return forward(Floor(12, 768, 12, 3072).eval(), torch.randn(batch, length, 768))


def rotary_forward() -> Iterator[Case]:
    theirs, ours = native.pair("RoFormer", **BASE, max_position_embeddings=1536)
    goals = {(8, 128): 1.05, (4, 512): 1.40, (1, 1536): 1.80}
    for (batch, length), goal in goals.items():
        inputs = full(batch, length)
        check_equal(theirs, ours, inputs)
        others = {"RoFormer": forward(theirs, **inputs), "floor": floor(batch, length)}
        yield Case("rotary", f"{batch}x{length}", forward(ours, **inputs), others, {"RoFormer": goal, "floor": 0.95})


def real_batches(pairs: Path | None) -> Iterator[Case]:
    theirs, ours = native.pair("RoFormer", **BASE)
    sources = {"reviews": [row["text"] for row in read(TEXTS)]}
    if pairs is not None:
        sources["pairs"] = [(row["sentence1"], row["sentence2"]) for row in read(pairs)]
    for name, texts in sources.items():
        inputs = next(real(texts))
        check_equal(theirs, ours, inputs)
        label = f"32 {name}, {share(inputs):.0%} real"
        goals = {"RoFormer": 0.95 / share(inputs)}
        yield Case("real", label, forward(ours, **inputs), {"RoFormer": forward(theirs, **inputs)}, goals)


def steps() -> Iterator[Case]:
    for size, shape, goals in (("small", (16, 256), (3.4, 5.0)), ("base", (8, 128), (1.6, 2.9))):
        for kind, make, goal in zip(("full", "half real"), (full, half), goals, strict=True):
            torch.manual_seed(0)
            theirs, ours = native.pair("RoFormer", "ForMaskedLM", **(SMALL if size == "small" else BASE))
            inputs = make(*shape)
            check_equal(theirs, ours, inputs)
            yield Case(
                "step",
                f"{size} {shape[0]}x{shape[1]} {kind}",
                step(ours, inputs),
                {"RoFormer": step(theirs, inputs)},
                {"RoFormer": goal},
            )


def learned_forward() -> Iterator[Case]:
    theirs, ours = native.pair("Bert", **BASE, attn_implementation="sdpa")
    for kind, make, goal in (("full", full, 1.0), ("half real", half, 1.8)):
        inputs = make(4, 512)
        check_equal(theirs, ours, inputs)
        others = {"BERT sdpa": forward(theirs, **inputs)}
        yield Case("learned", f"4x512 {kind}", forward(ours, **inputs), others, {"BERT sdpa": goal})


def relative_forward() -> Iterator[Case]:
    deberta: dict[str, Any] = {"position_buckets": 256, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    deberta["pos_att_type"] = ["c2p", "p2c"]
    rows = {
        "deberta": (lambda: native.deberta_v2(**BASE, **deberta), "DeBERTa-v2", (1.9, 2.5)),
        "t5": (lambda: native.pair("MPNet", **BASE, max_position_embeddings=1540), "MPNet", (1.4, 1.9)),
    }
    for scheme, (build, name, goals) in rows.items():
        theirs, ours = build()
        for shape, goal in zip(((4, 512), (1, 1536)), goals, strict=True):
            inputs = full(*shape)
            inputs["input_ids"].clamp_(min=2)  # MPNet reads 1 as padding
            check_equal(theirs, ours, inputs)
            others = {name: forward(theirs, **inputs)}
            yield Case(scheme, f"{shape[0]}x{shape[1]}", forward(ours, **inputs), others, {name: goal})


def modern_forward() -> Iterator[Case]:
    """Gated feed-forwards of two thirds of the size cost what ours does; their weights have no place in ours."""
    sizes = {**BASE, "intermediate_size": 2048, "vocab_size": VOCABULARY, "pad_token_id": 0}
    modern = native.build("ModernBert", "Model", "sdpa", **sizes, global_attn_every_n_layers=1)
    nomic = native.build("NomicBert", "Model", "sdpa", **sizes)
    ours = scheme_model("rotary")
    for kind, make, goals in (("full", full, (1.15, 1.04)), ("half real", half, (2.1, 1.9))):
        inputs = make(4, 512)
        others = {"ModernBERT": forward(modern, **inputs), "NomicBERT": forward(nomic, **inputs)}
        goal = dict(zip(others, goals, strict=True))
        yield Case("rotary", f"4x512 {kind}, equal FLOPs", forward(ours, **inputs), others, goal)


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
}


def converted() -> Iterator[Case]:
    """Every source and head at small width; the row's name says how far the outputs are apart."""
    for family, settings in CONVERTED.items():
        for head in HEADS:
            if family == "Deberta" and head == "ForMultipleChoice":
                continue
            torch.manual_seed(0)
            theirs, ours = native.pair(family, head, **{**SMALL, "vocab_size": VOCABULARY, **settings})
            inputs = full(4, 128)
            inputs = {key: ids.clamp(min=2) for key, ids in inputs.items()}  # 1 is padding in some of them
            if head == "ForMultipleChoice":
                inputs = {key: ids.unflatten(0, (2, 2)) for key, ids in inputs.items()}
            name = f"{family}{head}, within {difference(theirs, ours, inputs)[0]:.1e}"
            yield Case("convert", name, forward(ours, **inputs), {"its source": forward(theirs, **inputs)})


def scheme_model(scheme: str, attn_implementation: str | None = None, **changes) -> PreTrainedModel:
    config = hf_rope.HfRopeConfig(**{**BASE, **changes}, position_embedding_type=scheme)
    return hf_rope.HfRopeModel._from_config(config, attn_implementation=attn_implementation).eval()


COSTS = {"learned": 1.01, "sinusoidal": 1.01, "rotary": 1.02, "alibi": 1.06, "t5": 1.06, "tupe": 1.06}
COSTS |= {"relative_key": 1.2, "shaw (keys only)": 1.2, "relative_key_query": 1.4, "transformer_xl": 1.4}
COSTS |= {"deberta": 1.4, "shaw": 1.6}


def scheme_costs() -> Iterator[Case]:
    """Each scheme's forward over that of `none`: "ours" is `none` here, so that the ratio is the cost."""
    inputs = full(4, 512)
    control = forward(scheme_model("none"), **inputs)
    for name in [*hf_rope.SCHEMES, "shaw (keys only)"]:
        if name == "none":
            continue
        options = {"position_options": {"relative_values": False}} if "keys" in name else {}
        model = scheme_model(name.split(" ")[0], **options)
        yield Case("cost over none", name, control, {name: forward(model, **inputs)}, {name: COSTS.get(name, 1.4)})


def lengths(longest: int) -> Iterator[Case]:
    theirs, ours = native.pair("RoFormer", **BASE, max_position_embeddings=longest)
    length = 128
    while length <= longest:
        inputs = full(1, length)
        yield Case("length", str(length), forward(ours, **inputs), {"RoFormer": forward(theirs, **inputs)})
        length *= 2


def memory_work(which: str, length: int, layers: int = 12, *, warm: bool) -> None:
    """For `peak_memory`: builds one model and, unless warm, runs one forward of 1 x length."""
    torch.set_num_threads(2)
    if which == "RoFormer":
        model = native.build("RoFormer", "Model", **BASE, max_position_embeddings=length)
    else:
        model = scheme_model(which, num_hidden_layers=layers)
    forward(model, **full(1, 16 if warm else length))()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
