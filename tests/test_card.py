"""Model cards: of every scheme and head, they hold what was given and what the model says, and nothing else."""

import re

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard, RepoUrl
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, Trainer, TrainingArguments

from heads import HEADS
from helpers import tiny_config, tiny_model, token_ids
from hf_rope import SCHEMES, HfRopeForMaskedLM, HfRopePreTrainedModel, card
from hf_rope.card import CardTrainer, create_card

TASKS = {
    "encoder": "feature-extraction",
    "masked-lm": "fill-mask",
    "causal-lm": "text-generation",
    "single-label": "text-classification",
    "tokens": "token-classification",
    "question-answering": "question-answering",
    "multiple-choice": "multiple-choice",
}
RESULT = EvalResult("fill-mask", "me/text", "Text", metric_type="perplexity", metric_value=12.25, dataset_split="test")


def sections(text: str) -> dict[str, str]:
    """The text under each heading of the second and third level; code has no headings here."""
    parts = re.split(r"^###? (.+)\n", text, flags=re.MULTILINE)
    return {title: body.strip() for title, body in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_card_has_the_scheme_its_options_and_its_paper(scheme):
    model = tiny_model(scheme, HfRopeForMaskedLM)
    made = create_card(model)
    source = ModelCard.load(card.CARDS / f"{scheme}.md")
    found, expected = sections(made.text), sections(source.text)
    for heading in ("Formula", "Source", "Options", "Cost", "Limits"):
        assert found[heading] == expected[heading] != ""
    facts = dict(line[2:].split(": ", 1) for line in found["Configuration"].splitlines())
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "position_embedding_type"):
        assert facts[key] == str(getattr(model.config, key))
    assert facts.get("position_options", "{}") == str(model.config.position_options)
    assert facts["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert ("rope_parameters" in facts) == SCHEMES[scheme].rotates
    assert set(source.data.tags) <= set(made.data.tags)
    assert "{{" not in made.text
    assert "{%" not in made.text


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_metadata_comes_back_as_it_was_given(scheme):
    given = {"language": ["en", "de"], "license": "mit", "base_model": "me/base", "repo_id": "me/model"}
    made = create_card(
        tiny_model(scheme, HfRopeForMaskedLM), **given, dataset=["me/text", "our own logs"], metrics=[RESULT]
    )
    data = ModelCard(str(made), ignore_metadata_errors=False).data
    assert (data.language, data.license, data.base_model) == (["en", "de"], "mit", "me/base")
    assert (data.model_name, data.eval_results, data.metrics) == ("model", [RESULT], ["perplexity"])
    assert (data.library_name, data.pipeline_tag, data.datasets) == ("transformers", "fill-mask", ["me/text"])
    assert {"hf_rope", "custom_code"} <= set(data.tags)
    assert str(ModelCard(str(made))) == str(made)


def test_a_card_that_was_given_nothing_states_nothing():
    """Every number outside the scheme's own text is one of the configuration's."""
    model = tiny_model("none", HfRopeForMaskedLM)
    made = create_card(model)
    found = sections(made.text)
    assert found["Training"] == "- data: not stated\n- settings: not stated"
    assert found["Results"] == "None stated."
    assert found["Licence"].startswith("The weights: not stated.")
    assert {*made.data.to_dict()} == {"library_name", "pipeline_tag", "tags"}
    known = {str(value) for value in model.config.to_dict().values()} | {f"{model.num_parameters():,}"}
    told = "\n".join(found[heading] for heading in ("How to load", "Configuration", "Training", "Results"))
    assert {*re.findall(r"\d[\d,.]*", told)} <= known


def test_what_is_given_is_shown():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]
    made = create_card(
        HEADS["single-label"].build(),
        repo_id="me/model",
        dataset="me/reviews",
        training_args={"learning_rate": 3e-4, "optimizer": "two\nlines"},
        metrics={"accuracy": np.float32(0.75), "f1": torch.tensor(0.5)},
        tokenizer=BertTokenizer(vocab={word: index for index, word in enumerate(words)}),
        tags=["tiny"],
    )
    found = sections(made.text)
    assert found["Training"] == "- data: me/reviews\n- learning_rate: 0.0003\n- optimizer: two lines"
    assert found["Results"] == "- accuracy: 0.75\n- f1: 0.5"
    assert "- labels: LABEL_0, LABEL_1, LABEL_2\n- tokenizer: BertTokenizer, 6 entries" in found["Configuration"]
    assert [(one.dataset_type, one.metric_type, one.metric_value) for one in made.data.eval_results] == [
        ("me/reviews", "accuracy", 0.75),
        ("me/reviews", "f1", 0.5),
    ]
    assert "tiny" in made.data.tags


def test_figures_without_one_data_set_stay_out_of_the_model_index():
    for dataset in (None, ["me/a", "me/b"]):
        made = create_card(HEADS["masked-lm"].build(), dataset=dataset, metrics={"loss": 2})
        assert sections(made.text)["Results"] == "- loss: 2"
        assert made.data.eval_results is None


@pytest.mark.parametrize("name", TASKS)
def test_the_lines_that_load_a_model_load_it(name, tmp_path, monkeypatch):
    model = HEADS[name].build("shaw")
    model.save_pretrained(tmp_path / "me" / "model")
    made = create_card(model, repo_id="me/model")
    assert made.data.pipeline_tag == TASKS[name]
    with_package, without = re.findall(r"^```python\n(.*?)^```$", made.text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(with_package, names)
    assert type(names["model"]) is type(model)
    assert without == with_package.replace("import hf_rope\n", "").replace('model")', 'model", trust_remote_code=True)')


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"metrics": {"loss": float("nan")}}, "The metric 'loss' is nan, and a card holds finite numbers"),
        ({"metrics": {"f1": [1, 2]}}, "The metric 'f1' is [1, 2], and a card holds finite numbers"),
        ({"metrics": {"f1": np.ones(2)}}, "The metric 'f1' is array([1., 1.]), and a card holds finite numbers"),
        ({"repo_id": "a/b/c"}, "'a/b/c'"),
        ({"base_model": "/tmp/model"}, "'/tmp/model'"),
    ],
)
def test_refusals_name_the_value(given, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        create_card(HEADS["masked-lm"].build(), **given)


def test_a_scheme_without_a_card_is_refused(monkeypatch, tmp_path):
    model = HEADS["masked-lm"].build()
    monkeypatch.setattr(card, "CARDS", tmp_path)
    with pytest.raises(ValueError, match=r"The scheme 'rotary' has no card .*: write model_cards/rotary.md"):
        create_card(model)


BERT = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, vocab_size=99)


def test_a_subclass_has_the_card_of_its_head():
    class Mine(HfRopeForMaskedLM):
        pass

    class Other(HfRopePreTrainedModel):
        pass

    text = str(create_card(tiny_model("t5", Mine)))
    assert "AutoModelForMaskedLM" in text
    assert "fill-mask" in text
    with pytest.raises(ValueError, match="Other is no head of hf_rope"):
        create_card(Other(tiny_config("t5")))


def test_another_model_is_refused():
    with pytest.raises(TypeError, match="create_card describes hf_rope models, not BertForMaskedLM: use ModelCard"):
        create_card(BertForMaskedLM(BERT))


def trained(trainer_class, model, folder, **settings) -> Trainer:
    """After two steps, with the evaluations of both."""
    data = [{"input_ids": ids, "labels": ids} for ids in token_ids(4, 8)]
    arguments = TrainingArguments(
        *(str(folder),), max_steps=2, per_device_train_batch_size=2, eval_strategy="steps", eval_steps=1,
        logging_steps=1, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True, **settings,
    )  # fmt: skip
    trainer = trainer_class(
        model, arguments, train_dataset=data, eval_dataset=data, compute_metrics=lambda _: {"accuracy": 0.25}
    )
    trainer.train()
    return trainer


def test_card_trainer_writes_the_card_of_the_last_evaluation(tmp_path):
    trainer = trained(CardTrainer, HEADS["masked-lm"].build("t5"), tmp_path, hub_model_id="me/model")
    trainer.create_model_card(language="en", dataset_tags="me/text", dataset="Text", dataset_args="plain", tags="more")
    made = ModelCard.load(tmp_path / "README.md")
    found = sections(made.text)
    last = next(entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry)
    results = {one.metric_type: one for one in made.data.eval_results}
    assert {key: one.metric_value for key, one in results.items()} == {"loss": last["eval_loss"], "accuracy": 0.25}
    assert (results["loss"].dataset_name, results["loss"].dataset_config) == ("Text", "plain")
    assert {"more", "generated_from_trainer", "hf_rope"} <= set(made.data.tags)
    assert "- learning_rate: 5e-05\n- train_batch_size: 2" in found["Training"]
    assert f"- torch: {torch.__version__}" in found["Training"]
    *_, table = found["Training"].split("\n\n")
    head, _, *steps = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert head == ["Training Loss", "Epoch", "Step", "Validation Loss", "Accuracy"]
    log = trainer.state.log_history
    losses, evaluations = ([entry for entry in log if key in entry] for key in ("loss", "eval_loss"))
    assert [[float(cell) for cell in step] for step in steps] == [
        pytest.approx([one["loss"], one["epoch"], one["step"], other["eval_loss"], 0.25], abs=1e-4)
        for one, other in zip(losses, evaluations, strict=True)
    ]
    assert len(steps) == 2
    assert 'from_pretrained("me/model")' in made.text
    assert "Position scheme: `t5`" in found
    assert str(tmp_path) not in str(made)


def test_card_trainer_needs_to_be_told_nothing(tmp_path):
    trainer = trained(CardTrainer, HEADS["masked-lm"].build("alibi"), tmp_path)
    trainer.state.log_history.append({"eval_loss": float("nan"), "eval_runtime": 1.0, "step": 3})
    trainer.create_model_card()
    made = ModelCard.load(tmp_path / "README.md")
    assert made.data.eval_results is None
    assert sections(made.text)["Results"] == "None stated."
    trainer.state.log_history.clear()
    trainer.create_model_card()


def test_other_models_keep_trainers_own_card(tmp_path):
    trained(CardTrainer, BertForMaskedLM(BERT), tmp_path).create_model_card()
    assert "## Training procedure" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ["masked-lm", "causal-lm", "single-label", "tokens", "question-answering"])
def test_trainers_own_card_has_the_heads_task(name, tmp_path):
    """A result without a task is left out of that card, so that the one here shows that the task was found."""
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    trainer = Trainer(HEADS[name].build(), arguments)
    trainer.state.log_history = [{"loss": 1.0}, {"eval_loss": 1.0, "eval_accuracy": 0.5}, {"train_runtime": 1.0}]
    trainer.create_model_card(dataset_tags="me/text", dataset="Text")
    head = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert [one["task"]["type"] for one in head["model-index"][0]["results"]] == [TASKS[name]]


def test_what_card_trainer_pushes_has_the_card_and_the_code(tmp_path, monkeypatch):
    pushed = {}

    def upload_folder(self, repo_id, folder_path, **kwargs):
        pushed[repo_id] = {path.name: path.read_text() for path in card.Path(folder_path).glob("*.[mp][dy]")}

    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, repo_id, **kwargs: RepoUrl(f"https://huggingface.co/{repo_id}")
    )
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    trained(CardTrainer, HEADS["masked-lm"].build(), tmp_path, hub_model_id="me/model").push_to_hub(license="mit")
    assert "modeling_hf_rope.py" in pushed["me/model"]
    made = ModelCard(pushed["me/model"]["README.md"])
    assert (made.data.license, "Position scheme: `rotary`" in sections(made.text)) == ("mit", True)
