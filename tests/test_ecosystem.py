"""What people use with a model: each tool on real text, over every scheme where it touches the model's arithmetic."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import evaluate
import numpy as np
import onnxruntime
import pytest
import torch
from datasets import Dataset, load_dataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from sentence_transformers import InputExample, SentenceTransformer, losses, models
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

from helpers import FEW, SIZES, over, tiny_config, tiny_model, token_ids
from hf_rope import (
    SCHEMES,
    HfRopeForCausalLM,
    HfRopeForMaskedLM,
    HfRopeForSequenceClassification,
    HfRopeForTokenClassification,
    HfRopeModel,
)
from train_tokenizer import train_tokenizer

ROOT = Path(__file__).parents[1]
REVIEWS = ROOT / "examples/data/reviews"
LONGEST = SIZES["max_position_embeddings"]
DYNAMIC = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=LONGEST)}


@pytest.fixture(scope="module")
def reviews() -> Dataset:
    """Forty labelled sentences."""
    return load_dataset("json", data_files=str(REVIEWS / "train.jsonl"), split="train").select(range(40))


@pytest.fixture(scope="module")
def tokenizer(reviews):
    return train_tokenizer(reviews["text"], 99)


@pytest.fixture
def encoded(reviews, tokenizer) -> Dataset:
    def encode(rows):
        return {**tokenizer(rows["text"], truncation=True, max_length=48), "labels": rows["label"]}

    return reviews.map(encode, batched=True, remove_columns=reviews.column_names)


@pytest.fixture
def batch(encoded, tokenizer) -> dict[str, torch.Tensor]:
    """Six sentences, padded."""
    return dict(DataCollatorWithPadding(tokenizer)([encoded[i] for i in range(6)]))


def arguments(folder, **changes) -> TrainingArguments:
    settings = {"per_device_train_batch_size": 4, "max_steps": 4, "report_to": "none", "use_cpu": True}
    return TrainingArguments(str(folder), **{**settings, "disable_tqdm": True, "save_strategy": "no", **changes})


def train(model, data, tokenizer, folder, collator=None, metric=None, **changes) -> Trainer:
    """Four steps, or what `changes` say, with the stock Trainer."""
    trainer = Trainer(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=data,
        eval_dataset=data if isinstance(data, Dataset) else None,
        processing_class=tokenizer,
        data_collator=collator,
        compute_metrics=metric,
    )
    trainer.train()
    return trainer


def losses_of(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@torch.no_grad()
def logits_of(model, batch) -> torch.Tensor:
    return model.eval()(**{key: value for key, value in batch.items() if key != "labels"}).logits


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pipelines_give_what_the_model_gives_one_by_one(scheme, reviews, tokenizer):
    tasks = {
        "fill-mask": (HfRopeForMaskedLM, [f"the film is {tokenizer.mask_token} .", f"{tokenizer.mask_token} movie ."]),
        "text-classification": (HfRopeForSequenceClassification, reviews["text"][:4]),
        "token-classification": (HfRopeForTokenClassification, reviews["text"][:4]),
        "feature-extraction": (HfRopeModel, reviews["text"][:4]),
    }
    for task, (model_class, texts) in tasks.items():
        model = tiny_model(scheme, model_class, max_position_embeddings=256)
        tool = pipeline(task, model=model, tokenizer=tokenizer)
        alone, batched = [tool(text) for text in texts], tool(list(texts), batch_size=len(texts))
        for text, one, other in zip(texts, alone, batched, strict=True):
            inputs = tokenizer(text, return_tensors="pt")
            with torch.no_grad():
                output = model(**inputs)
            if task == "feature-extraction":
                torch.testing.assert_close(torch.tensor(one), output.last_hidden_state, rtol=1e-4, atol=1e-5)
                length = len(one[0])
                np.testing.assert_allclose([other[0][:length]], one, rtol=1e-3, atol=1e-4)
                continue
            scores = output.logits.softmax(-1)[0]
            if task == "fill-mask":
                scores = scores[inputs["input_ids"][0] == tokenizer.mask_token_id][0]
            expected = scores.max(-1).values.tolist()
            found = [one] if task == "text-classification" else one
            if task == "fill-mask":
                found, expected = found[:1], [expected]
            if task == "text-classification":
                found, expected = found if isinstance(found[0], dict) else found[0], [expected]
            if task == "token-classification":
                expected = expected[1:-1]  # without the special tokens
            np.testing.assert_allclose([entry["score"] for entry in found], expected, rtol=1e-4)
            scores_batched = [entry["score"] for entry in (other if isinstance(other, list) else [other])]
            np.testing.assert_allclose(scores_batched[: len(expected)], expected, rtol=1e-3)


METRIC = """
import datasets
import evaluate

class Accuracy(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"accuracy": sum(p == r for p, r in zip(predictions, references)) / len(references)}
"""


def test_an_evaluator_gives_the_accuracy_counted_by_hand(reviews, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "exact.py").write_text(METRIC)
    model = tiny_model("rotary", HfRopeForSequenceClassification, max_position_embeddings=256)
    found = evaluate.evaluator("text-classification").compute(
        model_or_pipeline=model,
        tokenizer=tokenizer,
        data=reviews,
        metric=evaluate.load(str(tmp_path / "exact.py"), cache_dir=str(tmp_path / "cache")),
        label_mapping=model.config.label2id,
    )
    with torch.no_grad():
        predicted = [model(**tokenizer(text, return_tensors="pt")).logits.argmax().item() for text in reviews["text"]]
    assert found["accuracy"] == np.mean(np.array(predicted) == np.array(reviews["label"]))


@over(quick=FEW, scheme=SCHEMES)
def test_a_lora_adapter_is_trained_saved_loaded_and_merged(scheme, encoded, batch, tokenizer, tmp_path):
    model = tiny_model(scheme, HfRopeForSequenceClassification)
    model.save_pretrained(tmp_path / "base")
    before = logits_of(model, batch)
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", modules_to_save=["classifier"])
    adapted = get_peft_model(model, lora)
    adapted.base_model.model.name_or_path = adapted.peft_config["default"].base_model_name_or_path = str(
        tmp_path / "base"
    )
    train(adapted, encoded, tokenizer, tmp_path / "run", learning_rate=0.05)
    trained = logits_of(adapted, batch)
    assert (trained - before).abs().max() > 0.01
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits_of(loaded, batch), trained, rtol=1e-5, atol=1e-5)
    merged = adapted.merge_and_unload()
    assert type(merged) is HfRopeForSequenceClassification
    torch.testing.assert_close(logits_of(merged, batch), trained, rtol=1e-4, atol=1e-4)


def test_lora_takes_layers_by_name():
    names = ["query", "value", "intermediate", "output"]
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=names)
    adapted = get_peft_model(tiny_model("rotary", HfRopeForSequenceClassification), lora)
    assert {name.split(".")[-1] for name in adapted.targeted_module_names} == {*names}
    assert len(adapted.targeted_module_names) == 5 * SIZES["num_hidden_layers"]  # attention has an output, too


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_sentence_transformer_is_trained_saved_and_loaded(scheme, reviews, tokenizer, tmp_path):
    tiny_model(scheme).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    words = models.Transformer(str(tmp_path / "encoder"), max_seq_length=32)
    model = SentenceTransformer(modules=[words, models.Pooling(words.get_embedding_dimension())], device="cpu")
    texts = list(reviews["text"][:8])
    before = model.encode(texts)
    pairs = [InputExample(texts=texts[i : i + 2], label=float(i % 2)) for i in range(0, 8, 2)]
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    loss = losses.CosineSimilarityLoss(model)
    for start in (0, 2):
        features = [model.tokenize([pair.texts[side] for pair in pairs[start : start + 2]]) for side in (0, 1)]
        loss(features, torch.tensor([pair.label for pair in pairs[start : start + 2]])).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    after = model.encode(texts)
    assert np.abs(after - before).max() > 1e-3
    model.save(str(tmp_path / "saved"))
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(loaded.encode(texts), after, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([loaded.encode(text)[None] for text in texts]), after, atol=1e-4)


class Logits(torch.nn.Module):
    """A model as a function of ids and mask alone, which is what a graph takes."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


@pytest.fixture
def shapes(encoded, tokenizer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two padded batches of different sizes, the second one also longer, and one row as long as a table allows."""
    collate = DataCollatorWithPadding(tokenizer)
    by_length = sorted((row for row in encoded), key=lambda row: len(row["input_ids"]))
    batches = [collate(by_length[:3]), collate([*by_length[-4:], by_length[0]])]
    row = torch.cat([torch.tensor(ids) for ids in encoded["input_ids"]])[None, :LONGEST]
    return [*((rows["input_ids"], rows["attention_mask"]) for rows in batches), (row, torch.ones_like(row))]


@pytest.mark.full
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_exported_graph_takes_any_batch_and_length(scheme, shapes):
    model = Logits(tiny_model(scheme, HfRopeForMaskedLM, num_hidden_layers=1)).eval()
    program = torch.export.export(model, shapes[0], dynamic_shapes=(DYNAMIC, DYNAMIC))
    for inputs in shapes:
        real = inputs[1].bool()
        with torch.no_grad():
            expected = model(*inputs)[real]
        torch.testing.assert_close(program.module()(*inputs)[real], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("feature_map", ["elu", "favor"])
def test_an_exported_decoder_of_linear_attention_takes_any_length(feature_map):
    settings = {"attention_type": "linear", "feature_map": feature_map, "max_position_embeddings": 512}
    model = tiny_model("rotary", HfRopeForCausalLM, is_decoder=True, num_hidden_layers=1, **settings).eval()
    example, dynamic = token_ids(2, 9), {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    inputs = (example, torch.ones_like(example))
    program = torch.export.export(Logits(model), inputs, dynamic_shapes=(dynamic, dynamic)).module()
    for batch, length in ((2, 9), (3, 5), (1, 128), (2, 300)):
        ids = token_ids(batch, length)
        with torch.no_grad():
            torch.testing.assert_close(program(ids, torch.ones_like(ids)), model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_graph_of_the_exporter_by_tracing_takes_any_batch_and_length(scheme, shapes, tmp_path):
    model = Logits(tiny_model(scheme, HfRopeForMaskedLM, num_hidden_layers=1)).eval()
    names = ["input_ids", "attention_mask"]
    axes = {name: {0: "batch", 1: "length"} for name in [*names, "logits"]}
    torch.onnx.export(
        model,
        shapes[0],
        str(tmp_path / "model.onnx"),
        input_names=names,
        output_names=["logits"],
        dynamic_axes=axes,
        opset_version=18,
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for inputs in shapes:
        (found,) = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        real = inputs[1].bool()
        with torch.no_grad():
            torch.testing.assert_close(torch.tensor(found)[real], model(*inputs)[real], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dynamic_int8_is_close_and_small(scheme, batch, tmp_path, record_property):
    torch.manual_seed(0)
    model = HfRopeForMaskedLM(tiny_config(scheme)).eval()
    expected = logits_of(model, batch)[batch["attention_mask"].bool()]
    small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    found = logits_of(small, batch)[batch["attention_mask"].bool()]
    cosine = torch.cosine_similarity(found, expected, dim=-1).min().item()
    sizes = []
    for name, part in (("float", model), ("int8", small)):
        torch.save(part.state_dict(), tmp_path / name)
        sizes.append((tmp_path / name).stat().st_size)
    record_property("int8, least cosine of the logits", cosine)
    record_property("int8, size of the file as a part of the float one's", sizes[1] / sizes[0])
    assert cosine > 0.99
    assert sizes[1] < 0.8 * sizes[0]
    assert type(small.model.layers[0].attention.query) is not torch.nn.Linear


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_decoder_in_dynamic_int8_generates_with_its_cache(scheme):
    model = tiny_model(scheme, HfRopeForCausalLM, is_decoder=True).eval()
    small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    ids = token_ids(2, 6)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    steps = small.generate(ids, **settings, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad():
        expected = model(steps.sequences).logits[:, 5:-1]
    assert steps.sequences.shape == (2, 12)
    assert torch.cosine_similarity(torch.stack(steps.logits, 1), expected, dim=-1).min() > 0.98


def test_gradient_checkpointing_in_trainer_gives_the_same_losses(encoded, tokenizer, tmp_path):
    runs = [
        losses_of(
            train(
                *(tiny_model("deberta", HfRopeForSequenceClassification), encoded, tokenizer, tmp_path),
                logging_steps=1,
                gradient_checkpointing=checkpointing,
            )
        )
        for checkpointing in (False, True)
    ]
    np.testing.assert_allclose(*runs, rtol=1e-5)
    assert len({*runs[0]}) == 4


@over(quick=FEW, scheme=SCHEMES)
def test_bf16_in_trainer_gives_almost_the_same_losses(scheme, encoded, tokenizer, tmp_path):
    losses, moved = [], []
    for half in (False, True):
        model = tiny_model(scheme, HfRopeForSequenceClassification)
        start = torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])
        settings = {"logging_steps": 1, "learning_rate": 1e-3, "bf16": half}
        losses.append(losses_of(train(model, encoded, tokenizer, tmp_path, **settings)))
        moved.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]) - start)
    np.testing.assert_allclose(*losses, rtol=0.05)
    assert losses[0] != losses[1]
    assert torch.cosine_similarity(*moved, dim=0) > 0.9


def test_load_best_model_at_end_leaves_the_best_weights(encoded, tokenizer, tmp_path):
    scores = iter((0.1, 0.9, 0.5, 0.3))  # of the four evaluations
    trainer = train(
        *(tiny_model("rotary", HfRopeForSequenceClassification), encoded, tokenizer, tmp_path),
        **{"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1},
        **{"load_best_model_at_end": True, "metric_for_best_model": "score"},
        metric=lambda prediction: {"score": next(scores)},
    )
    best, last = (HfRopeForSequenceClassification.from_pretrained(tmp_path / f"checkpoint-{n}") for n in (2, 4))
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(weight, best.get_parameter(name), rtol=0, atol=0)
    assert not torch.equal(trainer.model.classifier.weight, last.classifier.weight)


@over(quick=FEW, scheme=SCHEMES)
def test_a_flattened_batch_has_the_loss_of_a_padded_one(scheme, encoded, tokenizer, tmp_path):
    data = encoded.map(lambda row: {"labels": row["input_ids"]}, remove_columns=["attention_mask", "token_type_ids"])
    runs = []
    for collator in (DataCollatorForTokenClassification(tokenizer), DataCollatorWithFlattening()):
        model = tiny_model(scheme, HfRopeForCausalLM, is_decoder=True, max_position_embeddings=256)
        runs.append(losses_of(train(model, data, tokenizer, tmp_path, collator, logging_steps=1)))
    np.testing.assert_allclose(*runs, rtol=1e-4)


def test_a_streamed_dataset_trains_as_one_in_memory(encoded, tokenizer, tmp_path):
    streamed = encoded.to_iterable_dataset()
    runs = []
    for data, changes in ((encoded, {"train_sampling_strategy": "sequential"}), (streamed, {})):
        model = tiny_model("t5", HfRopeForSequenceClassification)
        runs.append(losses_of(train(model, data, tokenizer, tmp_path, logging_steps=1, **changes)))
    np.testing.assert_allclose(*runs, rtol=1e-5)


TRAINING = """
import json, sys, time
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from hf_rope import HfRopeConfig, HfRopeForMaskedLM

folder, resume, wait = sys.argv[1], sys.argv[2] == "resume", sys.argv[2] == "wait"
ids = torch.randint(1, 99, (32, 12), generator=torch.Generator().manual_seed(0))
data = [{"input_ids": row, "labels": row} for row in ids]

class Wait(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        if wait and state.global_step == 3:
            open(f"{folder}/saved", "w").close()
            time.sleep(600)

torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 99}
model = HfRopeForMaskedLM(HfRopeConfig(**sizes, position_embedding_type="rotary"))
arguments = TrainingArguments(folder, max_steps=6, save_steps=3, per_device_train_batch_size=4, report_to="none",
                              use_cpu=True, disable_tqdm=True)
trainer = Trainer(model, arguments, train_dataset=data, callbacks=[Wait()])
trainer.train(resume_from_checkpoint=resume)
trainer.save_model(f"{folder}/final")
"""


@pytest.mark.full
def test_a_training_that_was_killed_resumes_to_the_same_weights(tmp_path):
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(folder: Path, how: str) -> subprocess.Popen:
        folder.mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, script, folder, how], env=environment, stderr=subprocess.PIPE)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole, "whole")
    assert process.wait(120) == 0, process.stderr.read()
    process = start(killed, "wait")
    deadline = time.monotonic() + 120
    while not (killed / "saved").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "final").exists()
    process = start(killed, "resume")
    assert process.wait(120) == 0, process.stderr.read()
    expected, found = (HfRopeForMaskedLM.from_pretrained(folder / "final").state_dict() for folder in (whole, killed))
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-7)


PARALLEL = """
import sys
import torch
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification
import hf_rope

folder, output = sys.argv[1:]
accelerator = Accelerator(cpu=True)
model = AutoModelForSequenceClassification.from_pretrained(folder)
batch = torch.load(f"{folder}/batch.pt")
model = accelerator.prepare(model)
count = len(batch["labels"]) // accelerator.num_processes
part = slice(accelerator.process_index * count, (accelerator.process_index + 1) * count)
loss = model(**{key: value[part] for key, value in batch.items()}).loss
accelerator.backward(loss)
loss = accelerator.reduce(loss.detach(), "mean")
if accelerator.is_main_process:
    inner = accelerator.unwrap_model(model)
    torch.save({"processes": accelerator.num_processes, "loss": loss,
                **{name: weight.grad for name, weight in inner.named_parameters()}}, output)
"""


@pytest.mark.full
def test_two_processes_have_the_loss_and_gradients_of_one(batch, tmp_path):
    model = tiny_model("deberta", HfRopeForSequenceClassification)
    model.save_pretrained(tmp_path)
    torch.save(batch, tmp_path / "batch.pt")
    script = tmp_path / "parallel.py"
    script.write_text(PARALLEL)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, *launch, script, tmp_path, tmp_path / "out.pt"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "out.pt")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    loss = model(**batch).loss
    loss.backward()
    assert found.pop("processes") == 2
    torch.testing.assert_close(found.pop("loss"), loss.detach(), rtol=1e-5, atol=1e-6)
    for name, weight in model.named_parameters():
        if weight.grad is None:
            assert found[name] is None
        else:
            torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-6)
