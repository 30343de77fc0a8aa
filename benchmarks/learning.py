"""`python -m benchmarks.learning`: how fast schemes learn masked bytes, at several learning rates of their positions.

Every run has the same batches and masks. Writes each one's validation loss, in nats, every 100 steps, as JSON lines.
"""

import argparse
import json
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DataCollatorForLanguageModeling,
    PerceiverTokenizer,
    get_constant_schedule_with_warmup,
    set_seed,
)

from hf_rope import SCHEMES, HfRopeConfig, HfRopeForMaskedLM, param_groups
from hf_rope.compare.tasks.language import MaskedLM, read_text

BYTES_A_STEP = 4096
SIZES: dict[str, Any] = {
    **{"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "type_vocab_size": 0},
}


def batches(
    ids: torch.Tensor, tokenizer: PerceiverTokenizer, window: int, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Random windows, masked as BERT's: 15% of the bytes are to be predicted."""
    generator = torch.Generator().manual_seed(seed)
    collator = DataCollatorForLanguageModeling(tokenizer)
    collator.generator = generator
    while True:
        starts = torch.randint(len(ids) - window, (BYTES_A_STEP // window, 1), generator=generator)
        masked, labels = collator.torch_mask_tokens(ids[starts + torch.arange(window)])
        yield {"input_ids": masked, "labels": labels}


@torch.no_grad()
def evaluate(model: HfRopeForMaskedLM, rows: list[dict[str, torch.Tensor]]) -> float:
    """Mean nats a masked byte."""
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        losses = [model(**row).loss.item() for row in rows]
    model.train()
    return sum(losses) / len(losses)


def train(
    config: HfRopeConfig, text: torch.Tensor, rows: list, multiplier: float | None, arguments: argparse.Namespace
) -> dict[int, float]:
    """The validation loss of a new model, by step.

    Args:
        text: the ids to train on.
        rows: the batches to evaluate on.
        multiplier: how many times the learning rate positions have; None for what the scheme recommends.
        arguments: the command's.
    """
    set_seed(arguments.seed)
    model, losses = HfRopeForMaskedLM(config), {}
    position_lr = None if multiplier is None else multiplier * arguments.learning_rate
    groups = param_groups(model, arguments.learning_rate, weight_decay=0.01, position_lr=position_lr)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    schedule = get_constant_schedule_with_warmup(optimizer, arguments.warmup)
    drawn = batches(text, PerceiverTokenizer(), arguments.window, arguments.seed)
    for step in range(1, arguments.steps + 1):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**next(drawn)).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        model.zero_grad()
        if step % 100 == 0 or step == arguments.steps:
            losses[step] = evaluate(model, rows)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("books", type=Path, help="a folder with train.jsonl and validation.jsonl, rows with a `text`")
    parser.add_argument("--position", nargs="+", choices=list(SCHEMES), default=list(SCHEMES))
    parser.add_argument("--config", type=json.loads, default={}, help="further keys of HfRopeConfig, a JSON object")
    parser.add_argument("--multiplier", nargs="+", type=float, help="of the positions' rate; else the recommended one")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/learning.jsonl"))
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = PerceiverTokenizer()
    encode = MaskedLM(length=arguments.window).encode
    text, unseen = (encode(read_text(arguments.books / f"{split}.jsonl")) for split in ("train", "validation"))
    drawn = batches(unseen, tokenizer, arguments.window, arguments.seed)
    rows = [next(drawn) for _ in range(8)]
    sizes = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": arguments.window, **arguments.config}
    for scheme, multiplier in product(arguments.position, arguments.multiplier or [None]):
        start = time.perf_counter()
        losses = train(HfRopeConfig(position_embedding_type=scheme, **sizes), text, rows, multiplier, arguments)
        settings = {"position": scheme, "multiplier": multiplier, "config": arguments.config, "seed": arguments.seed}
        line = json.dumps({**settings, "losses": losses, "seconds": time.perf_counter() - start})
        print(line, flush=True)
        with arguments.output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
