"""What has to come out of a draw: what every sequence gives alone.

Shapes: B rows of the batch, L length, T real tokens of the batch.
"""

from collections import defaultdict
from typing import Any

import torch
from torch.nn import functional as F

from fuzz.batch import Batch
from fuzz.draw import LABELLED, Draw
from heads import CHOICES


def alone(draw: Draw, model, batch: Batch) -> dict[str, Any]:
    """The outputs of all sequences, each computed in a batch of its own: (T, ...) by token, (B, ...) by row."""
    found, decoder = defaultdict(list), {"use_cache": False} if model.config.is_decoder else {}
    for row, places in batch.sequences:
        tokens = (key for key in ("input_ids", "token_type_ids", "inputs_embeds") if key in batch.given)
        inputs = {key: batch.given[key][row : row + 1, places] for key in tokens}
        at = batch.positions[row : row + 1, places]
        if not torch.equal(at[0], torch.arange(len(places))):
            inputs["position_ids"] = at
        inputs = by_choice(draw, inputs, 1)
        if draw.states:
            seen = batch.given["encoder_attention_mask"][row].bool()
            inputs["encoder_hidden_states"] = batch.given["encoder_hidden_states"][row : row + 1, seen]
        output = model(**inputs, **decoder, **record(draw))
        for key, value in by_token(draw, output).items():
            found[key].append(value[0])
        for key, value in by_row(draw, output).items():
            found[key].append(value)
        found["attentions"].append(output.get("attentions"))
    attentions = found.pop("attentions")
    return {**{key: torch.cat(parts) for key, parts in found.items()}, "attentions": attentions}


def by_choice(draw: Draw, inputs: dict[str, Any], choices: int) -> dict[str, Any]:
    """The inputs as the head for multiple choice takes them, (B / choices, choices, L, ...)."""
    if draw.head != "multiple-choice":
        return inputs
    by_row = {key: x for key, x in inputs.items() if isinstance(x, torch.Tensor) and key != "labels"}
    return inputs | {key: x.unflatten(0, (-1, min(choices, len(x)))) for key, x in by_row.items()}


def record(draw: Draw) -> dict[str, bool]:
    return {
        "": {},
        "hidden": {"output_hidden_states": True},
        "attentions": {"output_hidden_states": True, "output_attentions": True},
    }[draw.recorded]


def by_token(draw: Draw, output) -> dict[str, torch.Tensor]:
    """The outputs of shape (B, L, ...)."""
    names = ("last_hidden_state", "start_logits", "end_logits", *(["logits"] if draw.head in LABELLED else []))
    found = {name: output[name] for name in names if output.get(name) is not None}
    return found | {f"hidden state {i}": x for i, x in enumerate(output.get("hidden_states") or ())}


def by_row(draw: Draw, output) -> dict[str, torch.Tensor]:
    """The outputs of shape (B, ...)."""
    names = ("pooler_output", *(["logits"] if draw.head not in LABELLED else []))
    rows = {name: output[name] for name in names if output.get(name) is not None}
    return {name: x.view(-1, 1) if draw.head == "multiple-choice" else x for name, x in rows.items()}


def expected_loss(draw: Draw, batch: Batch, outputs: dict[str, Any]) -> torch.Tensor:
    """A batch's loss from the logits of its sequences."""
    if draw.head == "question-answering":
        return (answer_loss(batch, outputs, "start") + answer_loss(batch, outputs, "end")) / 2
    logits, wanted = outputs["logits"], batch.wanted
    if draw.head in LABELLED:
        loss = F.cross_entropy(logits, wanted, reduction="sum")
        return loss / (draw.items or (wanted != -100).sum())
    if draw.head == "multiple-choice":
        return F.cross_entropy(logits.view(-1, CHOICES), wanted)
    if draw.head == "single-label":
        return F.cross_entropy(logits, wanted)
    if draw.head == "multi-label":
        return F.binary_cross_entropy_with_logits(logits, wanted)
    return F.mse_loss(logits.view_as(wanted), wanted)


def answer_loss(batch: Batch, outputs: dict[str, Any], end: str) -> torch.Tensor:
    """The mean over the rows whose answer begins, or ends, at a real token."""
    losses = []
    logits = outputs[f"{end}_logits"].split([len(places) for _, places in batch.sequences])
    for (row, places), own in zip(batch.sequences, logits, strict=True):
        at = int(batch.given[f"{end}_positions"][row])
        if at in places:
            losses.append(F.cross_entropy(own, torch.tensor(places.index(at))))
    return torch.stack(losses).mean()
