"""Masked-LM pre-training of one or several position schemes, each from the same seed on the same batches.

python examples/pretrain_mlm.py --position rotary learned shaw --tokenizer runs/tokenizer \
    --train_file my.txt --validation_file mine_too.txt --output_dir runs/mlm --max_steps 1000

`--model` goes on from a checkpoint instead, of hf_rope or of what `hf_rope.convert` reads, under its own positions or
under those of `--position`:

python examples/pretrain_mlm.py --model bert-base-uncased --position rotary --pack_documents \
    --lengths 128 512 --rope_thetas 10000 160000 --train_file documents.jsonl --validation_file others.jsonl \
    --output_dir runs/continued --max_steps 1000 --learning_rate 2e-4

Every option of `TrainingArguments` works. Writes OUTPUT_DIR/SCHEME, a model folder with `log_history.json` and the
last checkpoint, and OUTPUT_DIR/results.json, where the loss of knowing only the words' frequencies stands beside each.
`--resume` goes on from the last checkpoints.
"""

import copy
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoModelForMaskedLM,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME

from continuing import continued_config, load_checkpoint
from hf_rope import SCHEMES, HfRopeConfig, param_groups
from hf_rope.folders import last_checkpoint
from hf_rope.masking import BatchSeededMasking
from hf_rope.precision import training_precision
from hf_rope.text_files import write_json
from loading import (
    DataArguments,
    check_training,
    describe_precision,
    load_split,
    load_tokenizer,
    parse_overrides,
    read_record,
    require_finite,
    require_fresh,
    require_text,
)
from stages import Stage, StageTheta, plan_stages, rows_in_order
from text_rows import group_texts, make_rows

LENGTH = "max_position_embeddings"
SET_BY_TRAINING = {
    "rope_parameters",
    "dtype",
    "architectures",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
}
"""Keys of a configuration that stages and Trainer change."""
SIZES = '{"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}'


@dataclass
class Arguments:
    """The models' settings."""

    tokenizer: str | None = field(
        default=None, metadata={"help": "A tokenizer's folder or Hub name; with --model, that of the checkpoint."}
    )
    model: str | None = field(default=None, metadata={"help": "The checkpoint to go on from: a folder or a Hub name."})
    position: list[str] = field(
        default_factory=list, metadata={"help": "Position schemes; by default rotary, or the checkpoint's own."}
    )
    block_size: int | None = field(
        default=None, metadata={"help": "Tokens of a training row; by default the longest of --lengths, or 128."}
    )
    pack_documents: bool = field(
        default=False,
        metadata={
            "help": "Rows of whole documents, or of pieces of long ones, which do not see each other; without it, "
            "texts are joined and cut where a row is full."
        },
    )
    lengths: list[int] = field(
        default_factory=list, metadata={"help": "Tokens of the longest piece of text, one value or one a stage."}
    )
    rope_thetas: list[float] = field(
        default_factory=list, metadata={"help": "rope_theta of the positions, one value or one a stage."}
    )
    stage_steps: list[int] = field(
        default_factory=list, metadata={"help": "Steps of each stage; by default --max_steps in equal parts."}
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "The share of tokens to predict."})
    config_overrides: str | None = field(
        default=None, metadata={"help": f"Keys of HfRopeConfig, as a JSON object; without --model by default {SIZES}."}
    )
    recommended_lr: bool = field(
        default=False, metadata={"help": "Train positions at the multiples of --learning_rate that their scheme names."}
    )
    resume: bool = field(default=False, metadata={"help": "Go on from the last checkpoints in --output_dir."})


class StepClock(TrainerCallback):
    """Counts the seconds of optimizer steps, without evaluation and saving, and the tokens in them, without padding."""

    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.start, self.seen = time.perf_counter(), state.num_input_tokens_seen

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()  # else it is the time in which kernels were launched
        self.tokens += state.num_input_tokens_seen - self.seen
        self.seconds += time.perf_counter() - self.start


def unigram_loss(train: Dataset, validation: Dataset, tokenizer: PreTrainedTokenizerBase) -> float:
    """The loss of a model that knows the words' frequencies in `train` only: what training must beat."""
    counts, seen = (Counter(chain.from_iterable(blocks["input_ids"])) for blocks in (train, validation))
    for token in tokenizer.all_special_ids:
        del counts[token], seen[token]
    if not seen.total():
        raise SystemExit(
            "The validation text holds no word that the tokenizer knows: give other text, or its tokenizer."
        )
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
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise SystemExit(" ".join(str(error).split())) from error


def check_resumed(config: HfRopeConfig, folder: Path) -> None:
    """Refuses a last checkpoint in a scheme's folder whose weights are not those of `config`."""
    last = last_checkpoint(folder, TRAINER_STATE_NAME)
    if last is None:
        return
    before, now = HfRopeConfig.from_pretrained(last).to_dict(), config.to_dict()
    free = {*SET_BY_TRAINING, *(() if SCHEMES[config.position_embedding_type](config).max_length else [LENGTH])}
    for key in now:
        if key not in free and before.get(key) != now[key]:
            raise SystemExit(
                f"{last} was trained with {key}={before.get(key)!r}, and would go on with {now[key]!r}: give --resume "
                "the options of before, or name another --output_dir."
            )


def pretrain(
    config: HfRopeConfig,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    validation: Dataset,
    training: TrainingArguments,
    mlm_probability: float = 0.15,
    recommended_lr: bool = False,
    resume: bool = False,
    make_model: Callable[[HfRopeConfig], PreTrainedModel] = AutoModelForMaskedLM.from_config,
    callbacks: tuple[TrainerCallback, ...] = (),
) -> dict[str, Any]:
    """Trains one scheme, saves its folder and returns its numbers.

    Perplexity is exp of the validation loss, the mean over batches of the mean over masked tokens.

    Args:
        config: of the model, which `make_model` then makes, by default with random weights.
        train, validation: rows of `input_ids`, and of `position_ids` where several pieces are packed in a row.
        resume: goes on from the last checkpoint in the scheme's folder, if there is one.
        callbacks: further ones for Trainer.
    """
    training, clock = copy.copy(training), StepClock()
    folder = Path(training.output_dir) / config.position_embedding_type
    last = last_checkpoint(folder, TRAINER_STATE_NAME) if resume else None
    training.output_dir, training.include_num_input_tokens_seen = str(folder), "non_padding"
    training.eval_on_start = training.eval_on_start and last is None
    set_seed(training.seed)
    model, optimizer = make_model(config), None
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
        callbacks=[clock, *callbacks],
        optimizer_cls_and_kwargs=optimizer,
    )
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model()
    loss = trainer.evaluate()["eval_loss"]
    require_finite(loss, training)
    history = trainer.state.log_history
    if trainer.is_world_process_zero():
        (folder / "log_history.json").write_text(json.dumps(history, indent=2))
    before = [row["eval_loss"] for row in history if row["step"] == 0 and "eval_loss" in row]
    return {
        "parameters": trainer.model.num_parameters(),
        **({"loss_before": before[0]} if before else {}),
        "validation_loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "tokens_per_second": clock.tokens / clock.seconds if clock.seconds else None,
    }


def check(arguments: Arguments) -> None:
    """Refuses settings that cannot be trained with."""
    if not 0 < arguments.mlm_probability <= 1:
        raise SystemExit(f"--mlm_probability is {arguments.mlm_probability}; it must be above 0, and 1 at most.")
    if arguments.block_size is not None and arguments.block_size < 1:
        raise SystemExit(f"--block_size is {arguments.block_size}; it must be 1 or more.")
    if len({*arguments.position}) < len(arguments.position):
        raise SystemExit(f"--position is {' '.join(arguments.position)}: name each scheme once.")


def build_configs(arguments: Arguments, tokenizer: PreTrainedTokenizerBase, stages: list[Stage]) -> list[HfRopeConfig]:
    """A configuration for each scheme, with positions for the longest piece of any stage."""
    length = max(stage.length for stage in stages)
    if arguments.model is None:
        overrides = parse_overrides(arguments.config_overrides or SIZES)
        configs = [build_config(scheme, tokenizer, length, overrides) for scheme in arguments.position or ["rotary"]]
    else:
        overrides = parse_overrides(arguments.config_overrides or "{}")
        configs = [
            continued_config(arguments.model, scheme, length, overrides) for scheme in arguments.position or [None]
        ]
    for config in configs:
        try:
            with torch.device("meta"):
                limit = AutoModelForMaskedLM.from_config(config).base_model.position.max_length
        except ValueError as error:
            raise SystemExit(f"{error}") from error
        if len(tokenizer) > config.vocab_size:
            raise SystemExit(
                f"The tokenizer has {len(tokenizer)} tokens and the model {config.vocab_size}: name with --tokenizer "
                "the one that it was trained with."
            )
        if limit is not None and length > limit:
            raise SystemExit(
                f"{LENGTH}={limit} ends the positions of {config.position_embedding_type!r}, and pieces of text have "
                f"up to {length} tokens: lower --lengths or --block_size, or raise it in --config_overrides."
            )
        if arguments.rope_thetas and config.rope_parameters is None:
            raise SystemExit(
                f"--rope_thetas has no effect on {config.position_embedding_type!r}, which does not rotate: leave it "
                "out, or train that scheme by itself."
            )
    return configs


def load_rows(
    data: DataArguments, arguments: Arguments, tokenizer: PreTrainedTokenizerBase, stages: list[Stage]
) -> tuple[list[Dataset], Dataset]:
    """The training rows of each stage, and the validation rows at the length of the last.

    Joined texts that fill each row need no positions.
    """
    longest = max(stage.length for stage in stages)
    block_size = arguments.block_size or longest
    if longest > block_size:
        raise SystemExit(f"--lengths has {longest}, and a row has --block_size {block_size} tokens: raise that.")
    packs = arguments.pack_documents or any(stage.length < block_size for stage in stages)
    texts = {split: load_split(data, split, [data.text_column]) for split in ("train", "validation")}
    for split in texts:
        require_text(texts[split], data.text_column, lists=False)

    def rows_of(split: str, length: int) -> Dataset:
        if not packs:
            return group_texts(texts[split], tokenizer, length)
        try:
            return make_rows(texts[split], tokenizer, length, block_size, arguments.pack_documents)
        except ValueError as error:
            raise SystemExit(f"{error}") from error

    return [rows_of("train", stage.length) for stage in stages], rows_of("validation", stages[-1].length)


def main() -> None:
    parser = HfArgumentParser((DataArguments, Arguments, TrainingArguments))
    parser.set_defaults(output_dir="runs/mlm", learning_rate=1e-3, warmup_steps=0.1, save_total_limit=1)
    parser.set_defaults(eval_strategy="steps", report_to="none", prediction_loss_only=True)
    parser.set_defaults(dataloader_pin_memory=torch.cuda.is_available(), **training_precision())
    data, arguments, training = parser.parse_args_into_dataclasses()
    if arguments.tokenizer is None and arguments.model is None:
        raise SystemExit("There is no tokenizer: give --tokenizer, or --model to go on from a checkpoint.")
    check_training(training, "--resume goes on from the last checkpoint in --output_dir")
    check(arguments)
    lengths = arguments.lengths or [128 if arguments.block_size is None else arguments.block_size]
    stages = plan_stages(lengths, arguments.rope_thetas, arguments.stage_steps, training.max_steps)
    tokenizer = load_tokenizer(arguments.tokenizer or arguments.model)
    if tokenizer.mask_token is None:
        raise SystemExit("The tokenizer has no mask token, and masked-LM training needs one.")
    configs = build_configs(arguments, tokenizer, stages)
    if not arguments.resume:
        require_fresh(training.output_dir, "--resume goes on with it, or name another --output_dir")
    for config in configs:
        check_resumed(config, Path(training.output_dir, config.position_embedding_type))
    rows, validation = load_rows(data, arguments, tokenizer, stages)
    baseline = unigram_loss(rows[-1], validation, tokenizer)
    record = Path(training.output_dir, "results.json")
    results = read_record(record)  # of other schemes too, where an earlier run left them
    if len(stages) > 1:
        training.max_steps, training.train_sampling_strategy = sum(stage.steps for stage in stages), "sequential"
        rows_a_step = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
        train = rows_in_order(rows, stages, rows_a_step, training.seed)
    else:
        training.max_steps, train = stages[0].steps, rows[0]
    training.eval_on_start = training.eval_on_start or arguments.model is not None
    make_model = AutoModelForMaskedLM.from_config
    if arguments.model is not None:
        make_model = partial(load_checkpoint, arguments.model)
    print(describe_precision(training))
    for config in configs:
        for stage, own in zip(stages, rows, strict=True):
            print(f"{config.position_embedding_type}: {len(own)} rows, {stage}")
        results[config.position_embedding_type] = pretrain(
            config,
            tokenizer,
            train,
            validation,
            training,
            mlm_probability=arguments.mlm_probability,
            recommended_lr=arguments.recommended_lr,
            resume=arguments.resume,
            make_model=make_model,
            callbacks=(StageTheta(stages),),
        ) | {"unigram_loss": baseline}
        if training.process_index == 0:
            write_json(record, results)
    if training.process_index == 0:
        print(record.read_text())


if __name__ == "__main__":
    main()
