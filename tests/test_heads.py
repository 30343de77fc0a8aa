"""Each head: outputs, losses as computed by hand, and what loads, ties, resizes and pools."""

import copy

import pytest
import torch
from transformers import Trainer, TrainingArguments

import hf_rope
from heads import BATCH, CHOICES, HEADS, LABELS, LENGTH, LOSSES, some_tokens
from helpers import SIZES, over, tiny_model, token_ids
from hf_rope.model.modeling_hf_rope import mean_of_tokens

LMS = ("masked-lm", "causal-lm")
OWN_LAYERS = ("lm_head.", "classifier.", "qa_outputs.", "pooler.", "model.pooler.")
DEFAULTS = {"rtol": 1e-6, "atol": 1e-6}  # eight units in the last place of a float32


def close(actual, expected, **tolerances):
    torch.testing.assert_close(actual, expected, **{**DEFAULTS, **tolerances})


def surprise(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return logits.exp().sum().log() - logits[label]


def mean_surprise(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.stack(
        [surprise(x, y) for x, y in zip(logits.flatten(0, -2), labels.flatten(), strict=True) if y != -100]
    ).mean()


def squares(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return ((logits.view_as(labels) - labels) ** 2).sum() / labels.numel()


def coin_surprise(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    right = torch.where(labels == 1, logits, -logits)
    return (1 + (-right).exp()).log().sum() / labels.numel()


def span_surprise(output, start_positions, end_positions) -> torch.Tensor:
    inside = start_positions < LENGTH
    return (
        mean_surprise(output.start_logits[inside], start_positions[inside])
        + mean_surprise(output.end_logits[inside], end_positions[inside])
    ) / 2


def at_real_tokens(labels: torch.Tensor) -> torch.Tensor:
    """Labels that count: the padding at the end of the second row is in no loss."""
    return labels.masked_fill(HEADS["tokens"].batch()["attention_mask"] == 0, -100)


def following(labels: torch.Tensor) -> torch.Tensor:
    """What each token is to predict, the next label; padding predicts nothing, and is not predicted."""
    return at_real_tokens(labels)[:, 1:]


CLASSES = {head.model: head for head in reversed(HEADS.values())}
BY_HAND = {
    "causal-lm": lambda output, labels: mean_surprise(output.logits[:, :-1], following(labels)),
    "HfRopeForQuestionAnswering": span_surprise,
    "HfRopeForMaskedLM": lambda output, labels: mean_surprise(output.logits, at_real_tokens(labels)),
    "HfRopeForTokenClassification": lambda output, labels: mean_surprise(output.logits, at_real_tokens(labels)),
    "multi-label": lambda output, labels: coin_surprise(output.logits, labels),
    "regression": lambda output, labels: squares(output.logits, labels),
    "many-regressions": lambda output, labels: squares(output.logits, labels),
}
SHAPES = {
    "encoder": {"last_hidden_state": (BATCH, LENGTH, 32), "pooler_output": (BATCH, 32)},
    "masked-lm": {"logits": (BATCH, LENGTH, 99)},
    "causal-lm": {"logits": (BATCH, LENGTH, 99)},
    "pre-training": {"logits": (BATCH, LENGTH, 99)},
    "single-label": {"logits": (BATCH, LABELS)},
    "multi-label": {"logits": (BATCH, LABELS)},
    "regression": {"logits": (BATCH, 1)},
    "many-regressions": {"logits": (BATCH, LABELS)},
    "tokens": {"logits": (BATCH, LENGTH, LABELS)},
    "question-answering": {"start_logits": (BATCH, LENGTH), "end_logits": (BATCH, LENGTH)},
    "multiple-choice": {"logits": (BATCH, CHOICES)},
}


@pytest.mark.parametrize("name", HEADS)
def test_outputs_and_their_shapes(name):
    output = HEADS[name].build()(**HEADS[name].batch())
    assert {key: tuple(value.shape) for key, value in output.items()} == SHAPES[name]


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_the_one_computed_by_hand(name):
    head = HEADS[name]
    output = head.build()(**head.batch(), **head.labels)
    by_hand = BY_HAND.get(name) or BY_HAND.get(head.model) or (lambda x, labels: mean_surprise(x.logits, labels))
    assert name not in (*LMS, "tokens") or not torch.equal(head.labels["labels"], at_real_tokens(head.labels["labels"]))
    close(output.loss, by_hand(output, **head.labels), rtol=1e-5)
    if name == "question-answering":  # as some collators make them
        columns = {key: places[:, None] for key, places in head.labels.items()}
        close(head.build()(**head.batch(), **columns).loss, output.loss)


@pytest.mark.parametrize("name", LOSSES)
def test_tuples_hold_the_same_values_as_named_outputs(name):
    head = HEADS[name]
    model, inputs = head.build(), {**head.batch(), **head.labels}
    expected = model(**inputs).to_tuple()
    asked = model(**inputs, return_dict=False)
    model.config.return_dict = False
    for plain in (asked, model(**inputs)):
        assert type(plain) is tuple
        close(plain, expected)
    close(model(**inputs, return_dict=True).to_tuple(), expected)


@pytest.mark.parametrize("name", HEADS)
def test_hidden_states_and_attentions_of_every_layer(name):
    head = HEADS[name]
    model, inputs = head.build(attn_implementation="eager"), head.batch()
    asked, plain = model(**inputs, output_hidden_states=True, output_attentions=True), model(**inputs)
    rows = inputs["input_ids"].numel() // LENGTH
    assert [tuple(x.shape) for x in asked.hidden_states] == [(rows, LENGTH, 32)] * 3
    assert [tuple(x.shape) for x in asked.attentions] == [(rows, 4, LENGTH, LENGTH)] * 2
    padding = inputs["attention_mask"].view(rows, 1, 1, LENGTH).expand(rows, 4, LENGTH, LENGTH) == 0
    for probabilities in asked.attentions:
        close(probabilities.sum(-1), torch.ones(rows, 4, LENGTH), atol=1e-5)
        assert not probabilities[padding].any()
    real = inputs["attention_mask"].view(rows, LENGTH).bool()
    for key, value in plain.items():  # values at padding are nobody's
        by_token = value.shape[:2] == (BATCH, LENGTH)
        close(*(x[key][real] if by_token else x[key] for x in (asked, plain)), atol=1e-5)
    if name == "encoder":
        close(asked.hidden_states[-1], asked.last_hidden_state)


@over(scheme=hf_rope.SCHEMES, name=LMS)
def test_an_lm_in_training_has_the_loss_and_gradients_of_the_full_logits(scheme, name):
    head = HEADS[name]
    model, inputs = head.build(scheme), head.batch()
    labels = head.labels["labels"]
    losses, gradients = [], []
    for training in (True, False):
        output = model.train(training)(**inputs, labels=labels)
        assert (output.logits is None) == training
        model.zero_grad()
        output.loss.backward()
        losses.append(output.loss)
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    close(*losses)
    assert gradients[0].keys() == gradients[1].keys()
    close(gradients[0], gradients[1], atol=1e-5)


class Doubled(torch.nn.Embedding):
    def forward(self, input):
        return 2 * super().forward(input)


@over(case=["plain", "untied", "hook on words", "hook on decoder", "of another class", "embedded"], name=LMS)
def test_tied_weights_have_one_gradient_whatever_is_done_to_them(case, name):
    """Some tokens are the padding index, whose row takes no gradient from the look-up, and some occur twice."""
    model = HEADS[name].build(tie_word_embeddings=case != "untied")
    words, decoder = model.get_input_embeddings(), model.get_output_embeddings()
    ids = token_ids(2, 9)
    ids[0, :3], ids[1, 2] = model.config.pad_token_id, ids[1, 1]
    inputs = {"inputs_embeds": words(ids).detach()} if case == "embedded" else {"input_ids": ids}
    if case.startswith("hook"):
        hooked = words if case == "hook on words" else decoder
        hooked.register_forward_hook(lambda module, arguments, output: 2 * output)
    if case == "of another class":
        words.__class__ = Doubled
    gradients = []
    for training in (True, False):
        model.train(training).zero_grad()
        model(**inputs, labels=ids).loss.backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    close(gradients[0], gradients[1], atol=1e-5)
    if case == "untied":
        assert words.weight.grad.any()
        assert not words.weight.grad[model.config.pad_token_id].any()


@over(name=["masked-lm", "causal-lm", "single-label", "tokens"], training=[True, False])
def test_num_items_in_batch_divides_the_sum(name, training):
    head = HEADS[name]
    model, inputs = head.build().train(training), {**head.batch(), **head.labels}
    counted = head.labels["labels"]
    if counted.ndim == 2:
        counted = following(counted) if name == "causal-lm" else at_real_tokens(counted)
    count = int((counted != -100).sum())
    expected = model(**inputs).loss * count / 7
    close(model(**inputs, num_items_in_batch=7).loss, expected, atol=1e-5)
    close(model(**inputs, num_items_in_batch=torch.tensor(7)).loss, expected, atol=1e-5)


@over(quick=["masked-lm", "single-label"], name=LOSSES)
def test_accumulated_gradients_equal_those_of_one_batch(name, tmp_path):
    head = HEADS[name]
    inputs = {**head.batch(), **head.labels}
    if name == "question-answering":  # transformers counts no items without `labels`: spans must all count alike
        inputs = {**inputs, "start_positions": torch.arange(BATCH), "end_positions": torch.arange(BATCH)}
    rows = [{key: value[i] for key, value in inputs.items()} for i in range(BATCH)]
    trained = []
    for steps in (1, BATCH):
        model = head.build()
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=BATCH // steps,
            gradient_accumulation_steps=steps,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=0,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(model=model, args=arguments, train_dataset=rows).train()
        trained.append(model.state_dict())
    start = head.build().state_dict()
    assert any(not torch.equal(start[key], trained[0][key]) for key in start)
    close(trained[0], trained[1], atol=1e-5)


@over(source=CLASSES, target=CLASSES)
def test_heads_load_across_each_other(source, target, saved_heads):
    old, folder = saved_heads[source]
    reads = {"is_decoder": CLASSES[target].config.get("is_decoder", False)}
    new, info = CLASSES[target].model_class.from_pretrained(
        folder, ignore_mismatched_sizes=True, output_loading_info=True, **reads
    )
    strangers = {*info["missing_keys"], *info["unexpected_keys"], *(key for key, *_ in info["mismatched_keys"])}
    assert all(key.startswith(OWN_LAYERS) for key in strangers), strangers
    lms = [head.model for head in (HEADS[name] for name in LMS)]
    assert bool(strangers) == (source != target and not (source in lms and target in lms))
    encoders = [getattr(model, "model", model).state_dict() for model in (old, new)]
    shared = [key for key in encoders[0] if not key.startswith("pooler.")]
    assert len(shared) > 20
    for key in shared:
        assert torch.equal(encoders[0][key], encoders[1][key]), key


@pytest.fixture(scope="module")
def saved_heads(tmp_path_factory):
    folders = {}
    for name, head in CLASSES.items():
        model, folder = head.build("learned"), tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        folders[name] = (model, folder)
    return folders


@over(scheme=hf_rope.SCHEMES, name=HEADS)
def test_factorised_embeddings(scheme, name):
    head = HEADS[name]
    model, inputs = head.build(scheme, embedding_size=12), head.batch()
    encoder = getattr(model, "model", model)
    assert encoder.embeddings.word_embeddings.weight.shape == (99, 12)
    assert encoder.embedding_projection.weight.shape == (32, 12)
    output = model(**inputs)
    assert {key: tuple(value.shape) for key, value in output.items()} == SHAPES[name]
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    close(model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).to_tuple(), output.to_tuple())


@over(scheme=hf_rope.SCHEMES, name=["single-label", "multiple-choice"], pooling=["cls", "mean"], side=["left", "right"])
def test_classifier_pools_real_tokens_wherever_the_padding_is(scheme, name, pooling, side):
    model = HEADS[name].build(scheme, classifier_pooling=pooling)
    ids, padding = token_ids(1, 7), torch.zeros(1, 4, dtype=torch.long)
    padded = torch.cat((padding, ids) if side == "left" else (ids, padding), 1)
    rows = [ids, padded]
    if name == "multiple-choice":  # of one choice
        rows = [x[:, None] for x in rows]
    alone, beside = model(rows[0]), model(rows[1], attention_mask=(rows[1] != 0).long())
    close(beside.logits, alone.logits, atol=1e-5)
    states = model.model(ids).last_hidden_state
    by_hand = states[0].sum(0) / 7 if pooling == "mean" else (model.model.pooler.dense(states[0, 0])).tanh()
    close(alone.logits[0], model.classifier(by_hand), atol=1e-5)


@pytest.mark.parametrize(
    ("dropout", "expected"), [(None, 0.3), (0.0, 0.0), (0.7, 0.7)], ids=["of the hidden states", "none", "its own"]
)
@pytest.mark.parametrize("name", ["single-label", "tokens", "multiple-choice"])
def test_classifier_dropout(name, dropout, expected):
    model = HEADS[name].build(classifier_dropout=dropout, hidden_dropout_prob=0.3)
    assert model.dropout.p == expected
    seen = []
    model.classifier.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torch.manual_seed(0)
    model.train()(**HEADS[name].batch())
    dropped = (seen[0] == 0).float().mean().item()
    assert dropped == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("masked", [False, True])
def test_a_mean_of_many_tokens_is_finite_in_float16(masked):
    states = torch.full((1, 8000, 2), 12.0, dtype=torch.float16)
    mean = mean_of_tokens(states, torch.ones(1, 8000) if masked else None)
    assert mean.dtype == torch.float16
    assert mean.tolist() == [[12.0, 12.0]]


def test_a_feed_forward_in_chunks_is_the_same_however_many_tokens_there_are():
    ids, mask = token_ids(2, 8), torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0
    expected = tiny_model("rotary")(ids, mask).last_hidden_state
    found = tiny_model("rotary", chunk_size_feed_forward=4)(ids, mask).last_hidden_state
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()])


def test_token_types_matter_and_are_zero_if_left_out():
    model, ids = tiny_model("rotary"), token_ids(2, 6)
    left_out, zeros, ones = (
        model(ids, token_type_ids=types).last_hidden_state
        for types in (None, torch.zeros_like(ids), torch.ones_like(ids))
    )
    close(left_out, zeros)
    assert (zeros - ones).abs().max() > 1e-2


@pytest.mark.parametrize("scheme", hf_rope.SCHEMES)
def test_without_token_types_there_is_no_table_of_them(scheme):
    model, ids = tiny_model(scheme, type_vocab_size=0), token_ids(2, 6)
    assert not [key for key in model.state_dict() if "token_type" in key]
    close(model(ids, token_type_ids=torch.ones_like(ids)).last_hidden_state, model(ids).last_hidden_state)


@over(name=LMS, tie=[True, False], embedding_size=[None, 12])
def test_weights_are_tied_as_configured_also_after_save_and_load(name, tie, embedding_size, tmp_path):
    model = HEADS[name].build(tie_word_embeddings=tie, embedding_size=embedding_size)
    model.save_pretrained(tmp_path)
    loaded, info = HEADS[name].model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for one in (model, loaded):
        assert (one.lm_head.decoder.weight is one.model.embeddings.word_embeddings.weight) == tie
    ids = token_ids(2, 6)
    close(loaded.eval()(ids).logits, model(ids).logits)


@over(name=LMS, size=[105, 80], tie=[True, False], scaled=[True, False])
def test_resized_embeddings_keep_the_old_tokens_and_their_logits(name, size, tie, scaled, tmp_path):
    model = HEADS[name].build(tie_word_embeddings=tie, scale_embedding=scaled)
    ids = token_ids(2, 6) % 79 + 1
    with torch.no_grad():  # a graph from before would keep the old sizes
        before = model(ids).logits[..., : min(size, SIZES["vocab_size"])]
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.config.vocab_size == size
    assert model.get_input_embeddings().weight.shape[0] == size
    assert model.lm_head.decoder.weight.shape[0] == model.lm_head.decoder.bias.shape[0] == size
    assert (model.lm_head.decoder.weight is model.get_input_embeddings().weight) == tie
    close(model(ids).logits[..., : before.shape[-1]], before)
    model(ids.clamp(max=1) * (size - 1), labels=some_tokens(ids)).loss.backward()
    model.save_pretrained(tmp_path)
    close(HEADS[name].model_class.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


def test_a_copied_model_shares_nothing_with_the_first():
    model, ids = HEADS["masked-lm"].build(), token_ids(2, 6)
    before, other = model(ids).logits.clone(), copy.deepcopy(model)
    with torch.no_grad():
        other.model.embeddings.word_embeddings.weight.zero_()
    close(model(ids).logits, before)
    assert other.lm_head.decoder.weight is other.model.embeddings.word_embeddings.weight
