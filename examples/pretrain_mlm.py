"""Masked-LM pre-training of one or several position schemes, each from the same seed on the same batches.

python examples/pretrain_mlm.py --position rotary learned shaw --tokenizer runs/tokenizer \
    --train_file my.txt --validation_file mine_too.txt --output_dir runs/mlm --max_steps 1000

Every option of `TrainingArguments` works. Writes OUTPUT_DIR/SCHEME, a model folder with `log_history.json` and the
last checkpoint, and OUTPUT_DIR/results.json, where the loss of knowing only the words' frequencies stands beside each.
`--resume` goes on from the last checkpoints.
"""

import copy
import json
import math
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from hf_rope import HfRopeConfig, param_groups
from hf_rope.precision import training_precision
from loading import (
    DataArguments,
    describe_precision,
    load_split,
    load_tokenizer,
    parse_overrides,
    require_fresh,
)


@dataclass
class Arguments:
    """The models' settings."""

    tokenizer: str = field(metadata={"help": "A tokenizer's folder or Hub name."})
    position: list[str] = field(default_factory=lambda: ["rotary"], metadata={"help": "Position schemes."})
    block_size: int = field(default=128, metadata={"help": "Tokens of each training sequence."})
    mlm_probability: float = field(default=0.15, metadata={"help": "The share of tokens to predict."})
    config_overrides: str = field(
        default='{"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}',
        metadata={"help": "Keys of HfRopeConfig, as a JSON object."},
    )
    recommended_lr: bool = field(
        default=False, metadata={"help": "Train positions at the multiples of --learning_rate that their scheme names."}
    )
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoints in --output_dir."})


class BatchSeededMasking(DataCollatorForLanguageModeling):
    """Draws masks from a generator seeded by the batch itself.

    The same batch is masked alike under every scheme, in every evaluation and after a resume.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = json.dumps([example["input_ids"] for example in examples])
        self.generator = torch.Generator().manual_seed(zlib.crc32(batch.encode()))
        return super().torch_call(examples)


class StepClock(TrainerCallback):
    """Counts optimizer steps and their seconds, without evaluation and saving."""

    def __init__(self) -> None:
        self.steps, self.seconds = 0, 0.0

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.steps += 1
        self.seconds += time.perf_counter() - self.start


def group_texts(texts: Dataset, tokenizer: PreTrainedTokenizerBase, block_size: int) -> Dataset:
    """`input_ids` of exactly `block_size`: texts with their special tokens, one after the other, cut into blocks."""
    if tokenizer.mask_token is None:
        raise SystemExit("The tokenizer has no mask token, and masked-LM training needs one.")
    (column,) = texts.column_names

    def cut(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = list(chain.from_iterable(tokenizer(rows[column], verbose=False)["input_ids"]))
        return {"input_ids": [ids[i : i + block_size] for i in range(0, len(ids) - block_size + 1, block_size)]}

    blocks = texts.map(cut, batched=True, batch_size=10_000, remove_columns=column, desc="tokens")
    if not len(blocks):
        raise SystemExit(f"The text is shorter than one block of {block_size} tokens: use a smaller --block_size.")
    return blocks


def unigram_loss(train: Dataset, validation: Dataset, tokenizer: PreTrainedTokenizerBase) -> float:
    """The loss of a model that knows the words' frequencies in `train` only: what training must beat."""
    counts, seen = (Counter(chain.from_iterable(blocks["input_ids"])) for blocks in (train, validation))
    for token in tokenizer.all_special_ids:
        del counts[token], seen[token]
    total = counts.total() + len(tokenizer)
    return -sum(number * math.log((counts[token] + 1) / total) for token, number in seen.items()) / seen.total()


def build_config(scheme: str, tokenizer: PreTrainedTokenizerBase, block_size: int, overrides: dict[str, Any]):
    """The scheme's configuration, with positions for one block."""
    sizes = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": block_size,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        return HfRopeConfig(position_embedding_type=scheme, **{**sizes, **overrides})
    except (ValueError, TypeError) as error:
        raise SystemExit(str(error)) from error


def pretrain(
    config: HfRopeConfig,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    validation: Dataset,
    training: TrainingArguments,
    mlm_probability: float = 0.15,
    recommended_lr: bool = False,
    resume: bool = False,
    checkpoint: str | None = None,
) -> dict[str, Any]:
    """Trains one scheme, from `checkpoint` or from scratch, saves its folder and returns its numbers.

    Perplexity is exp of the validation loss, the mean over batches of the mean over masked tokens.
    """
    training, clock = copy.copy(training), StepClock()
    training.output_dir = str(Path(training.output_dir) / config.position_embedding_type)
    set_seed(training.seed)
    new, optimizer = AutoModelForMaskedLM.from_config, None
    model = new(config) if checkpoint is None else AutoModelForMaskedLM.from_pretrained(checkpoint)
    if recommended_lr:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(training)
        groups = param_groups(model, training.learning_rate, weight_decay=training.weight_decay)
        optimizer = kind, {**settings, "params": groups}
    trainer = Trainer(
        model=model,
        args=training,
        data_collator=BatchSeededMasking(tokenizer, mlm_probability=mlm_probability),
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=[clock],
        optimizer_cls_and_kwargs=optimizer,
    )
    folder = Path(training.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if resume and folder.is_dir() else None)
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model()
    if trainer.is_world_process_zero():
        (folder / "log_history.json").write_text(json.dumps(trainer.state.log_history, indent=2))
    tokens = clock.steps * training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    return {
        "parameters": trainer.model.num_parameters(),
        "validation_loss": loss,
        "perplexity": math.exp(loss),
        "tokens_per_second": tokens * len(train[0]["input_ids"]) / clock.seconds if clock.steps else None,
    }


def main() -> None:
    parser = HfArgumentParser((DataArguments, Arguments, TrainingArguments))
    parser.set_defaults(output_dir="runs/mlm", learning_rate=1e-3, warmup_steps=0.1, save_total_limit=1)
    parser.set_defaults(eval_strategy="steps", report_to="none", prediction_loss_only=True)
    parser.set_defaults(dataloader_pin_memory=torch.cuda.is_available(), **training_precision())
    data, arguments, training = parser.parse_args_into_dataclasses()
    tokenizer, overrides = load_tokenizer(arguments.tokenizer), parse_overrides(arguments.config_overrides)
    configs = [build_config(scheme, tokenizer, arguments.block_size, overrides) for scheme in arguments.position]
    if not arguments.resume:
        require_fresh(training.output_dir, "--resume goes on with it, or name another --output_dir")
    train, validation = (
        group_texts(load_split(data, split, [data.text_column]), tokenizer, arguments.block_size)
        for split in ("train", "validation")
    )
    print(describe_precision(training))
    baseline, results = unigram_loss(train, validation, tokenizer), {}
    for config in configs:
        print(f"{config.position_embedding_type}: {len(train)} blocks of {arguments.block_size} tokens")
        results[config.position_embedding_type] = pretrain(
            config,
            tokenizer,
            train,
            validation,
            training,
            mlm_probability=arguments.mlm_probability,
            recommended_lr=arguments.recommended_lr,
            resume=arguments.resume,
        ) | {"unigram_loss": baseline}
    text = json.dumps(results, indent=2)
    if training.process_index == 0:
        (Path(training.output_dir) / "results.json").write_text(text)
        print(text)


if __name__ == "__main__":
    main()
