"""A script for `accelerate launch`, two processes on a CPU: what every scheme computes in them and in one alone.

python distributed_run.py FOLDER

The launch decides whether it is DDP, FSDP2 or FSDP2 in bfloat16. Process 0 writes FOLDER/results.json, and a model's
folder a case, with the logits that the distributed model has in the end.
"""

import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

import hf_rope
from helpers import tiny_model, token_ids
from hf_rope import SCHEMES

STEPS, LABELS = 2, 3
LENGTHS = (10, 7, 3, 12, 12, 6)
"""Of the six sequences: three are process 0's, padded on the right, and three are process 1's, padded on the left."""
FAR = 4000 - 7 * torch.arange(max(LENGTHS)).flip(0)
"""Positions up to 4000, where numbers in bfloat16 lie 16 apart."""


@dataclass(frozen=True)
class Case:
    scheme: str
    model: str = "HfRopeForMaskedLM"
    config: dict[str, Any] = field(default_factory=dict)
    checkpointing: bool = False

    def build(self, checkpointing: bool | None = None) -> Any:
        """The same weights in every process."""
        model = tiny_model(self.scheme, getattr(hf_rope, self.model), **self.config).train()
        if self.checkpointing if checkpointing is None else checkpointing:
            model.gradient_checkpointing_enable()
        return model


CLASSIFIER = "HfRopeForSequenceClassification"
CASES = {
    **{scheme: Case(scheme) for scheme in SCHEMES},
    "tupe, classifier on the first token": Case("tupe", CLASSIFIER, {"num_labels": LABELS}),
    "transformer_xl, classifier on the mean": Case(
        "transformer_xl", CLASSIFIER, {"num_labels": LABELS, "classifier_pooling": "mean"}
    ),
    "deberta, checkpointing": Case("deberta", checkpointing=True),
}


def whole_batch(case: Case) -> dict[str, torch.Tensor]:
    """Six sequences; each has as many labels as the others, so that a mean over processes is one over the batch."""
    longest, count = max(LENGTHS), len(LENGTHS)
    places = torch.arange(longest)
    mask = torch.stack([places < n if row < count // 2 else places >= longest - n for row, n in enumerate(LENGTHS)])
    ids = token_ids(count, longest) * mask
    batch = {"input_ids": ids, "attention_mask": mask.long()}
    if case.model == CLASSIFIER:
        return {**batch, "labels": torch.arange(count) % LABELS}
    ends = torch.stack((mask.int().argmax(-1), longest - 1 - mask.flip(-1).int().argmax(-1)), dim=-1)
    return {**batch, "labels": torch.full_like(ids, -100).scatter(1, ends, ids.gather(1, ends))}


def part_of(batch: dict[str, torch.Tensor], process: int, processes: int) -> dict[str, torch.Tensor]:
    """The sequences of one process, no longer than its longest."""
    count = len(LENGTHS) // processes
    rows = slice(process * count, (process + 1) * count)
    used = batch["attention_mask"][rows].any(0).nonzero()[:, 0]
    return {key: x[rows][:, used] if x.ndim == 2 else x[rows] for key, x in batch.items()}


def train(
    model, batch: dict[str, torch.Tensor], optimizer=None, accelerator: Accelerator | None = None
) -> list[dict[str, torch.Tensor]]:
    """Some steps, in this process or in all: the loss and every gradient of each, those of the whole batch."""
    optimizer, records = optimizer or sgd(model), []
    for _ in range(STEPS):
        loss = model(**batch).loss
        if accelerator is None:
            loss.backward()
            loss = loss.detach()
        else:
            accelerator.backward(loss)
            loss = accelerator.reduce(loss.detach(), "mean")
        weights = getattr(model, "module", model).named_parameters()
        records.append({"loss": loss, **{name: gradient_of(weight) for name, weight in weights}})
        optimizer.step()
        optimizer.zero_grad()
    return records


def sgd(model) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)


def gradient_of(weight: torch.nn.Parameter) -> torch.Tensor:
    """The whole gradient, in every process."""
    assert weight.grad is not None, "a parameter has no gradient, for which DDP would wait"
    return (weight.grad.full_tensor() if isinstance(weight.grad, DTensor) else weight.grad).clone()


def compare(accelerator: Accelerator, case: Case, folder: Path) -> dict[str, Any]:
    """Trains, saves, and says how far loss and gradients are from those of one process with the whole batch."""
    model, batch = case.build(), whole_batch(case)
    expected = train(case.build(checkpointing=False), batch)
    if not accelerator.is_main_process:  # which has the weights that all begin with
        model.load_state_dict({key: torch.zeros_like(x) for key, x in model.state_dict().items()})
    model, optimizer = accelerator.prepare(model, sgd(model))
    part = part_of(batch, accelerator.process_index, accelerator.num_processes)
    found = train(model, part, optimizer, accelerator)
    save(accelerator, model, part, folder)
    assert all(record.keys() == other.keys() for record, other in zip(found, expected, strict=True))
    differences = [
        {name: (record[name] - other[name]).abs().max().item() for name in other}
        for record, other in zip(found, expected, strict=True)
    ]
    kinds = Counter(type(module).__name__ for module in model.modules())
    return {
        "loss": max(record.pop("loss") for record in differences),
        "gradient": max(max(record.values()) for record in differences),
        "largest gradient": max(x.abs().max().item() for name, x in expected[0].items() if name != "loss"),
        "modules": {kind: kinds[kind] for kind in ("DistributedDataParallel", "FSDPHfRopeLayer") if kind in kinds},
    }


def save(accelerator: Accelerator, model, part: dict[str, torch.Tensor], folder: Path) -> None:
    """The full weights, by accelerate's and transformers' own means, and the logits that the model has now."""
    weights, whole = accelerator.get_state_dict(model), accelerator.unwrap_model(model)
    whole.save_pretrained(folder, is_main_process=accelerator.is_main_process, state_dict=weights)
    inputs = {key: x for key, x in part.items() if key != "labels"}
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    if accelerator.is_main_process:
        torch.save({"inputs": inputs, "logits": logits}, folder / "logits.pt")


def errors_in_bf16(accelerator: Accelerator, case: Case) -> dict[str, Any]:
    """The errors of the first gradient, of a model that is bfloat16 throughout and of a sharded one; see `FAR`.

    Also in what precision the first layer's scheme gets what all layers share, and its queries.
    """
    batch = whole_batch(case)
    if case.scheme == "rotary":
        batch["position_ids"] = FAR.expand(len(LENGTHS), -1)
    expected, found = train(case.build(), batch), {"plain": train(case.build().bfloat16(), batch)}
    if case.scheme == "rotary":
        rounded = {**batch, "position_ids": batch["position_ids"].bfloat16().long()}
        found["positions in bfloat16"] = train(case.build().bfloat16(), rounded)
    part, model = part_of(batch, accelerator.process_index, accelerator.num_processes), case.build()
    model, optimizer = accelerator.prepare(model, sgd(model))
    seen: dict[str, list[str]] = {}
    model.model.layers[0].attention.position.register_forward_pre_hook(partial(note_precision, seen), with_kwargs=True)
    found["sharded"] = train(model, part, optimizer, accelerator)
    return {**{name: error(records[0], expected[0]) for name, records in found.items()}, **seen}


def note_precision(seen: dict[str, list[str]], module, arguments, keywords) -> None:
    """Of the query and of what layers share; a complex number's precision is that of its parts."""
    shared = [x.real for x in tree_leaves(keywords["shared"])]
    seen["query"] = [str(arguments[0].dtype)]
    seen["shared"] = sorted({str(x.dtype) for x in shared if x.is_floating_point()})


def error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The length of the difference as a part of the length of what is expected."""
    names = [name for name in expected if name != "loss"]
    differences = torch.cat([(found[name] - expected[name]).flatten() for name in names])
    return (differences.norm() / torch.cat([expected[name].flatten() for name in names]).norm()).item()


def start() -> Accelerator:
    """On a CPU accelerate leaves its FSDP plugin aside without a word: it shards where it sees several GPUs.

    So it is told that these processes are that; the device, the CPU, and the backend, gloo, are chosen before.
    """
    state = PartialState(cpu=True)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        state._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=False)])


def main() -> None:
    accelerator, folder, results = start(), Path(sys.argv[1]), {}
    for name, case in CASES.items():
        if accelerator.mixed_precision == "bf16":
            results[name] = errors_in_bf16(accelerator, case)
        else:
            results[name] = compare(accelerator, case, folder / name)
        accelerator.free_memory()
    if accelerator.is_main_process:
        about = {"processes": accelerator.num_processes, "backend": accelerator.state.backend}
        (folder / "results.json").write_text(json.dumps({**about, "cases": results}, indent=2))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
