"""Model cards: what a checkpoint is, how it was trained and how it is loaded, as its README.md on the Hub."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.dynamic_module_utils import custom_object_save
from transformers.modelcard import (
    TASK_MAPPING,
    TrainingSummary,
    extract_hyperparameters_from_trainer,
    make_markdown_table,
    parse_log_history,
)

from .convert.weights import HEADS, head_of_model
from .model.configuration_hf_rope import AUTO_MAP, HfRopeConfig

TEMPLATE = Path(__file__).with_name("card_template.md")

CARDS = Path(__file__).with_name("model_cards")
"""One card a scheme. In a checkout it is a link to the folder at the top, which a wheel holds here as files."""

SETTINGS = (
    *("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "type_vocab_size", "scale_embedding"),
    *("position_embedding_type", "position_options", "rope_parameters"),
    *("attention_type", "feature_map", "num_features", "feature_seed", "redraw_interval"),
    *("attention_bias", "feed_forward_type", "mlp_bias"),
)
"""What a card says of the configuration, where it is set."""

TASKS = {"HfRopeModel": "feature-extraction", "HfRopeForMultipleChoice": "multiple-choice"}
"""The tasks of the heads that transformers' table of tasks leaves out."""

SPEED = ("_runtime", "_per_second", "_time")
"""How the names end under which Trainer logs how long an evaluation took."""


def create_card(
    model: PreTrainedModel,
    *,
    repo_id: str | None = None,
    name: str | None = None,
    language: str | Sequence[str] | None = None,
    license: str | None = None,
    base_model: str | None = None,
    dataset: str | Sequence[str] | None = None,
    method: str = "",
    training_args: TrainingArguments | Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | Sequence[EvalResult] | None = None,
    log_history: Sequence[Mapping[str, Any]] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    tags: Sequence[str] = (),
) -> ModelCard:
    """The card of an hf_rope model, with what it is given and what it reads from the model; it states nothing else.

    Args:
        model: any head of any scheme.
        repo_id: the model's place on the Hub, for the lines that load it.
        name: the title; by default the last part of `repo_id`.
        language: of the text, as the Hub writes it: "en".
        license: of the weights, as the Hub writes it: "apache-2.0".
        base_model: the model on the Hub that this one was trained further from.
        dataset: what the model was trained on, in words or as names on the Hub; names go to the metadata as well.
        method: how the model was made, in sentences that stand before `dataset` and `training_args`.
        training_args: of a Trainer, or any settings by name.
        metrics: figures measured on `dataset`, by name; or results that name their own data. They go to the metadata's
            model-index, figures by name only where `dataset` is a single one, since each needs a data set there.
        log_history: of a Trainer's state; the evaluations of a training that has ended become a table, step by step.
        tokenizer: the one that is saved beside the model.
        tags: for the metadata, beside the scheme's.

    Returns:
        A card to `save(path)` or `push_to_hub(repo_id)`.

    Raises:
        TypeError: the model is not an hf_rope one.
        ValueError: a metric is not a finite number, `repo_id` or `base_model` is no name on the Hub, or nobody has
            written the scheme's card.
    """
    if not is_hf_rope(model):
        raise TypeError(f"create_card describes hf_rope models, not {type(model).__name__}: use ModelCard for others.")
    for place in (repo_id, base_model):
        if place is not None:
            validate_repo_id(place)
    scheme = read_scheme(model.config.position_embedding_type)
    datasets = [dataset] if isinstance(dataset, str) else list(dataset or ())
    title = name or (repo_id or f"hf_rope-{scheme['name']}").split("/")[-1]
    if isinstance(metrics, Mapping):
        figures = {key: finite(key, value) for key, value in metrics.items()}
        results = evaluations(model, figures, datasets[0], datasets[0]) if len(datasets) == 1 else []
    else:
        figures = {}
        results = [replace(one, metric_value=finite(one.metric_type, one.metric_value)) for one in metrics or ()]
    settings = training_args or {}
    if isinstance(settings, TrainingArguments):  # the choice of Trainer's own card, which reads nothing but `args`
        settings = extract_hyperparameters_from_trainer(SimpleNamespace(args=settings))
    data = ModelCardData(
        library_name="transformers",
        license=license,
        language=language if isinstance(language, str) or language is None else list(language),
        base_model=base_model,
        datasets=[one for one in datasets if is_repo_id(one)] or None,
        pipeline_tag=task_of(model),
        tags=[*scheme["tags"], *tags],
        metrics=list(dict.fromkeys(one.metric_type for one in results)) or None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title,
        scheme=scheme,
        classes=[auto_class_of(model), *(["AutoTokenizer"] if tokenizer is not None else [])],
        place=repo_id or "your-name/your-model",
        configuration=describe(model, tokenizer),
        method=method,
        training_data=datasets,
        training_args={key: " ".join(str(value).split()) for key, value in settings.items()},
        steps=training_table(log_history),
        figures=figures,
        results=[] if figures else results,
    )


class CardTrainer(Trainer):
    """Trainer, but that `create_model_card`, and with it `push_to_hub`, writes this package's card of an hf_rope model.

    The revisions that it pushes in between carry the model's code as well. Any other model gets Trainer's own card, so
    that a script which compares models can use it throughout.
    """

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Also writes the code to `output_dir`, which every push uploads; a checkpoint's weights alone go there."""
        super().init_hf_repo(*args, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        if is_hf_rope(model) and self.is_world_process_zero():
            Path(str(self.args.output_dir)).mkdir(parents=True, exist_ok=True)
            custom_object_save(model, str(self.args.output_dir))

    def create_model_card(self, **kwargs: Any) -> None:  # type: ignore[override]
        """Writes `output_dir`/README.md, from the last evaluation, the arguments, and the keywords of Trainer's own."""
        model = self.accelerator.unwrap_model(self.model)
        if not is_hf_rope(model):
            return super().create_model_card(**kwargs)
        if not self.is_world_process_zero():
            return None
        known = TrainingSummary.from_trainer(self, **kwargs)
        names, kinds, configs = map(listed, (known.dataset, known.dataset_tags, known.dataset_args))
        metrics: Any = last_evaluation(self.state.log_history)
        if len(names) == len(kinds) == 1:
            metrics = evaluations(model, metrics, kinds[0], names[0], dataset_config=next(iter(configs), None))
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        card = create_card(
            model,
            repo_id=self.hub_model_id or self.args.hub_model_id,
            name=known.model_name,
            language=known.language,
            license=known.license,
            base_model=known.finetuned_from if is_repo_id(known.finetuned_from or "") else None,
            dataset=kinds or names,
            training_args={**(known.hyperparameters or {}), **versions},
            metrics=metrics,
            log_history=self.state.log_history,
            tokenizer=self.processing_class if isinstance(self.processing_class, PreTrainedTokenizerBase) else None,
            tags=listed(known.tags),
        )
        return card.save(Path(str(self.args.output_dir)) / "README.md")


def is_hf_rope(model: Any) -> bool:
    """Whether a model is one of ours; by its configuration, since code loaded from a folder has classes of its own."""
    return isinstance(model, PreTrainedModel) and model.config.model_type == HfRopeConfig.model_type


def is_repo_id(text: str) -> bool:
    """Whether a text has the form of a name on the Hub."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def listed(value: str | Sequence[str | None] | None) -> list[str]:
    """One text, several or none as a list, without the gaps that Trainer leaves for what it does not know."""
    return [one for one in ([value] if isinstance(value, str) else value or ()) if one]


def read_scheme(scheme: str) -> dict[str, Any]:
    """The card of a scheme: its name, tags, introduction and sections."""
    path = CARDS / f"{scheme}.md"
    if not path.is_file():
        raise ValueError(f"The scheme {scheme!r} has no card to take its text from: write model_cards/{scheme}.md.")
    card = ModelCard.load(path)
    head, *sections = re.split(r"^## (.+)\n", card.text, flags=re.MULTILINE)
    introduction = head.strip().partition("\n")[2].strip()
    texts = {title: text.strip() for title, text in zip(sections[::2], sections[1::2], strict=True)}
    return {"name": scheme, "tags": card.data.tags, "introduction": introduction, **texts}


def task_of(model: PreTrainedModel) -> str:
    """The Hub's name of what the head does."""
    tables: dict[str, Any] = TASK_MAPPING
    name = HEADS[head_of_model(model)]
    return TASKS.get(name) or next(task for task, names in tables.items() if name in names.values())


def auto_class_of(model: PreTrainedModel) -> str:
    """The Auto class that loads the head."""
    return next(auto for auto, reference in AUTO_MAP.items() if reference.endswith(f".{HEADS[head_of_model(model)]}"))


def describe(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Any]:
    """What a card says of the model, by name."""
    config: Any = model.config
    facts: dict[str, Any] = {"class": type(model).__name__, "parameters": f"{model.num_parameters():,}"}
    facts |= {key: value for key in SETTINGS if (value := getattr(config, key, None)) not in (None, {})}
    if task_of(model) in ("text-classification", "token-classification"):
        facts["labels"] = ", ".join(map(str, config.id2label.values()))
    if tokenizer is not None:
        facts["tokenizer"] = f"{type(tokenizer).__name__}, {len(tokenizer):,} entries"
    return facts


def finite(name: str, value: Any) -> Any:
    """A metric as plain Python, which YAML can hold; text passes, as in "20.0 ± 1.2"."""
    plain = value.item() if getattr(value, "shape", None) == () else value
    if not isinstance(plain, str) and not (isinstance(plain, Real) and math.isfinite(plain)):
        raise ValueError(
            f"The metric {name!r} is {value!r}, and a card holds finite numbers: correct it or leave it out."
        )
    return plain


def evaluations(
    model: PreTrainedModel, figures: Mapping[str, Any], dataset_type: str, dataset_name: str, **more: Any
) -> list[EvalResult]:
    """Figures by name as results of one data set, for the metadata's model-index."""
    return [
        EvalResult(task_of(model), dataset_type, dataset_name, metric_type=key, metric_value=value, **more)
        for key, value in figures.items()
    ]


def training_table(log_history: Sequence[Mapping[str, Any]]) -> str:
    """Trainer's own table of the evaluations of a training that has ended, without how long they took; else ""."""
    kept = [{key: value for key, value in entry.items() if not timing(key)} for entry in log_history]
    lines: list[dict[str, Any]] = parse_log_history(kept)[1] or []
    names = dict.fromkeys(name for line in lines for name in line)
    return make_markdown_table([{name: line.get(name, "") for name in names} for line in lines]).strip()


def timing(key: str) -> bool:
    """Whether an entry of Trainer's log says how long an evaluation took."""
    return key.startswith("eval_") and key.endswith(SPEED)


def last_evaluation(log_history: list[dict[str, Any]]) -> dict[str, Any]:
    """The finite numbers that Trainer logged at the last step that was evaluated, without how long it took."""
    entries = [entry for entry in log_history if any(key.startswith("eval_") for key in entry)]
    return {
        key.removeprefix("eval_"): value
        for entry in entries
        if entry.get("step") == entries[-1].get("step")
        for key, value in entry.items()
        if key.startswith("eval_") and not timing(key) and isinstance(value, Real) and math.isfinite(value)
    }
