"""A decoder of every scheme: what comes later is not seen, and a cache, padding, packing and batches change nothing."""

import pytest
import torch
from torch.nn import functional as F
from transformers import BertTokenizer, DataCollatorForLanguageModeling, EncoderDecoderModel, Trainer, TrainingArguments

from helpers import CASES, FEW, over, refused, tiny_model, token_ids
from hf_rope import SCHEMES, HfRopeForCausalLM, HfRopeForMaskedLM, HfRopeModel
from hf_rope.model import relative
from hf_rope.model.versions import CACHE
from test_properties import (
    LENGTH,
    assert_same_gradients,
    computes,
    gradients_of,
    implementations,
    padded_batch,
    tolerance,
    with_attention,
)

PROMPT = 5
CHUNKS = {"one by one": [PROMPT] + [1] * (LENGTH - PROMPT), "in pieces": [3, 7, 1, 2, 7], "at once": [LENGTH]}
COMPILED = {s: s if s in FEW else pytest.param(s, marks=pytest.mark.slow) for s in SCHEMES}


def decoder(case: str, model_class=HfRopeForCausalLM, **changes):
    return tiny_model(case, model_class, is_decoder=True, **changes).double()


def in_steps(model, ids, chunks, mask=None, **inputs) -> torch.Tensor:
    """The logits of all tokens, computed chunk by chunk with a cache."""
    cache, logits, seen = None, [], 0
    for size in chunks:
        part, seen = ids[:, seen : seen + size], seen + size
        seen_mask = None if mask is None else mask[:, :seen]
        output = model(part, seen_mask, past_key_values=cache, use_cache=True, **inputs)
        cache = output.past_key_values
        assert cache.get_seq_length() == seen
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def close(actual, expected, case: str) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance(case))


@over(case=CASES)
def test_later_tokens_change_nothing_before_them_as_declared(case):
    model, ids = decoder(case), token_ids(2, 30)
    changed, row = ids.clone(), {"use_cache": False}
    changed[:, 20:] = token_ids(2, 10, seed=1)
    with torch.no_grad():
        before, after = (model(x, **row).logits for x in (ids, changed))
        close(after[:, :20], before[:, :20], case)
        assert not torch.allclose(after[:, 20], before[:, 20])
        alone = model(ids[:, :20], **row).logits
    same = torch.allclose(alone, before[:, :20], rtol=0, atol=tolerance(case))
    assert same == model.model.position.length_independent


@over(case=CASES, implementation=["eager", "sdpa"], chunks=CHUNKS, where=computes)
def test_decoding_with_a_cache_equals_computing_all_tokens(case, implementation, chunks):
    room = {"max_position_embeddings": 64} if case == "rotary-dynamic" else {}  # its frequencies follow longer inputs
    model, (ids, mask) = with_attention(decoder(case, **room), implementation), padded_batch()
    with torch.no_grad():
        close(in_steps(model, ids, CHUNKS[chunks]), model(ids, use_cache=False).logits, case)
        real = mask.bool()
        stepped = in_steps(model, ids, CHUNKS[chunks], mask)
        close(stepped[real], model(ids, mask, use_cache=False).logits[real], case)


@over(case=CASES, implementation=["eager", "sdpa"], where=computes, quick=CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_decoder_computes_and_trains_under_autocast(case, implementation, dtype):
    model, (ids, mask) = with_attention(decoder(case).float(), implementation), padded_batch()
    for batch in ({}, {"attention_mask": mask}):
        real = batch.get("attention_mask", torch.ones_like(ids)).bool()
        exact = model(ids, **batch, use_cache=False).logits[real]
        with torch.autocast("cpu", dtype):
            rounded = model(ids, **batch, use_cache=False).logits[real]
            stepped = in_steps(model, ids, CHUNKS["in pieces"], batch.get("attention_mask"))[real]
        for found in (rounded, stepped):
            assert (found - exact).norm() < 0.05 * exact.norm()
        rounded.sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@over(case=CASES, implementation=["eager", "sdpa"], where=computes, quick=CASES)
def test_a_mask_of_pairs_alone_says_who_sees_whom(case, implementation):
    """A triangle is what a decoder does without a mask; a prefix that sees itself is seen."""
    model, ids = with_attention(decoder(case), implementation), token_ids(2, LENGTH)
    if model.config.attention_type != "softmax":
        return
    triangle = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    prefix, changed = triangle.clone(), ids.clone()
    prefix[:5, :5] = True
    changed[:, 3] = ids[:, 3] % 98 + 1
    with torch.no_grad():
        close(model(ids, triangle[None, None], use_cache=False).logits, model(ids, use_cache=False).logits, case)
        first = [model(x, prefix[None, None], use_cache=False).logits[:, 0] for x in (ids, changed)]
    assert not torch.allclose(*first, rtol=0, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_cache_keeps_half_precision_close(scheme):
    model = decoder(scheme).bfloat16()
    ids = token_ids(2, LENGTH)
    with torch.no_grad():
        stepped, full = in_steps(model, ids, CHUNKS["one by one"]), model(ids, use_cache=False).logits
    assert (stepped - full).norm() < 0.05 * full.norm()


@over(case=CASES, cached=[False, True])
def test_padding_on_either_side_changes_no_logits(case, cached):
    model, ids = decoder(case), token_ids(1, 12)
    with torch.no_grad():
        expected = model(ids).logits
        for left, right in ((5, 0), (0, 5), (3, 4)):
            padded, mask = F.pad(ids, (left, right), value=7), F.pad(torch.ones_like(ids), (left, right))
            for at in (None, (mask.cumsum(-1) - 1).clamp(min=0)):
                out = model(padded, mask, position_ids=at, use_cache=cached).logits
                close(out[:, left : left + 12], expected, case)


@over(case=CASES)
def test_leaving_padding_out_of_a_decoder_changes_nothing(case):
    model, (ids, mask) = decoder(case, HfRopeModel), padded_batch()
    real = mask.bool()
    compact = model(ids, mask, use_cache=False).last_hidden_state
    dense = model(ids, mask, use_cache=False, output_hidden_states=True).last_hidden_state
    assert not compact[~real].any()
    close(compact[real], dense[real], case)
    target = torch.randn_like(dense)[real]
    ours, expected = (gradients_of(model, (x[real] * target).sum()) for x in (compact, dense))
    ours.pop("pooler.dense.weight"), ours.pop("pooler.dense.bias")
    assert_same_gradients(ours, {name: expected[name] for name in ours}, tolerance(case))


@over(case=CASES, dense=[False, True])
def test_packed_sequences_do_not_see_each_other(case, dense):
    model, lengths = decoder(case, HfRopeModel), (7, 1, 9, 7)
    ids = token_ids(1, sum(lengths))
    at = torch.cat([torch.arange(n) for n in lengths])[None]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    separate = torch.cat([model(part).last_hidden_state for part in ids.split(lengths, dim=1)], dim=1)
    target, gradients = torch.randn_like(separate), []
    for told in ({"position_ids": at}, {"cu_seq_lens_q": bounds}):
        packed = model(ids, output_hidden_states=dense, **told)
        assert packed.past_key_values is None
        close(packed.last_hidden_state, separate, case)
        gradients.append(gradients_of(model, (packed.last_hidden_state * target).sum()))
    expected = gradients_of(model, (separate * target).sum())
    for ours in gradients:
        assert_same_gradients(ours, expected, tolerance(case))


@over(case=CASES)
def test_computing_few_rows_of_a_decoder_at_once_changes_nothing(case, monkeypatch):
    model, ids = decoder(case, HfRopeModel), token_ids(3, LENGTH)
    target, outputs, gradients = torch.randn(3, LENGTH, 1), [], []
    for scores, rows in ((2**22, 64), (1, 7), (1, 1)):
        monkeypatch.setattr(relative, "SCORES_AT_ONCE", scores)
        monkeypatch.setattr(relative, "rows_at_once", lambda x, rows=rows: rows)
        outputs.append(model(ids, use_cache=False).last_hidden_state)
        gradients.append(gradients_of(model, (outputs[-1] * target).sum()))
    for few in (1, 2):
        close(outputs[few], outputs[0], case)
        assert_same_gradients(gradients[few], gradients[0], tolerance(case))


@over(case=CASES, where=lambda case: "sdpa" in implementations(case))
def test_causal_sdpa_equals_causal_eager(case):
    model, ids = decoder(case, HfRopeModel), token_ids(2, LENGTH)
    outputs, gradients = [], []
    for implementation in ("eager", "sdpa"):
        other = with_attention(model, implementation)
        outputs.append(other(ids).last_hidden_state)
        gradients.append(gradients_of(other, outputs[-1].square().sum()))
    close(outputs[1], outputs[0], case)
    assert_same_gradients(gradients[1], gradients[0], tolerance(case))


@pytest.mark.full
@pytest.mark.parametrize("scheme", [COMPILED[s] for s in SCHEMES if "flex_attention" in implementations(s)])
def test_causal_flex_equals_causal_eager(scheme):
    torch._dynamo.reset()
    model, (ids, mask) = decoder(scheme, HfRopeModel, use_cache=False, num_hidden_layers=1).float(), padded_batch()
    with torch.no_grad():
        expected, ours = (
            with_attention(model, kind)(ids, mask).last_hidden_state[mask.bool()]
            for kind in ("eager", "flex_attention")
        )
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


WAYS = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "do_sample": False},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_k": 20},
}


def generate(model, ids, mask=None, seed: int = 0, **settings) -> torch.Tensor:
    torch.manual_seed(seed)
    return model.generate(ids, attention_mask=mask, max_new_tokens=6, **settings)


@over(case=CASES, way=WAYS)
def test_generation_is_the_same_without_a_cache_in_a_batch_and_after_padding(case, way):
    room = {"max_position_embeddings": 64} if case == "rotary-dynamic" else {}
    model, settings = decoder(case, **room), WAYS[way]
    short, long = token_ids(1, PROMPT), token_ids(1, PROMPT + 4, seed=1)
    alone = generate(model, short, **settings)
    assert alone.shape == (1, PROMPT + 6)
    assert torch.equal(alone[:, :PROMPT], short)
    assert torch.equal(generate(model, short, use_cache=False, **settings), alone)
    padded = F.pad(short, (4, 0), value=7)
    mask = (torch.arange(PROMPT + 4) >= 4).long()[None]
    assert torch.equal(generate(model, padded, mask, **settings)[:, 4:], alone)
    if way != "sampling":  # a batch draws other numbers
        both = generate(model, torch.cat((padded, long)), torch.cat((mask, torch.ones_like(mask))), **settings)
        assert torch.equal(both[:1, 4:], alone)
        assert torch.equal(both[1:], generate(model, long, **settings))


def test_sampling_follows_its_seed():
    model, ids = decoder("rotary"), token_ids(1, PROMPT)
    first, again, other = (generate(model, ids, seed=seed, do_sample=True) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_generation_with_other_caches_and_inputs(scheme):
    model, ids = decoder(scheme), token_ids(2, PROMPT)
    expected = generate(model, ids, do_sample=False)
    assert torch.equal(generate(model, ids, do_sample=False, cache_implementation="static"), expected)
    assert torch.equal(generate(model, ids, do_sample=False, prefill_chunk_size=2), expected)
    embeds = model.get_input_embeddings()(ids)
    embedded = model.generate(inputs_embeds=embeds, max_new_tokens=6, do_sample=False)
    assert torch.equal(embedded, expected[:, PROMPT:])
    cache = model(ids[:, :-1]).past_key_values
    assert torch.equal(model.generate(ids, past_key_values=cache, max_new_tokens=6, do_sample=False), expected)
    padded, mask = F.pad(ids, (3, 0), value=7), F.pad(torch.ones_like(ids), (3, 0))
    static = generate(model, padded, mask, do_sample=False, cache_implementation="static")
    assert torch.equal(static[:, 3:], expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_assisted_generation_gives_the_same_tokens(scheme):
    """Whose cache grows by several tokens at once, and is cut back."""
    model, ids = decoder(scheme), token_ids(1, PROMPT)
    expected = generate(model, ids, do_sample=False)
    for way in ({"assistant_model": decoder("none", num_hidden_layers=1)}, {"prompt_lookup_num_tokens": 2}):
        assert torch.equal(generate(model, ids, do_sample=False, **way), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_generation_with_a_hole_in_the_mask_is_the_same_without_a_cache(scheme):
    model, ids = decoder(scheme), token_ids(1, 9)
    mask = torch.tensor([[1, 1, 0, 1, 1, 0, 0, 1, 1]])
    with_cache, without = (generate(model, ids, mask, do_sample=False, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache, without)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_generation_that_starts_at_another_position(scheme):
    model, ids = decoder(scheme), token_ids(1, 9)
    at = torch.arange(7, 16)[None]
    with torch.no_grad():
        first = model(ids[:, :6], position_ids=at[:, :6])
        second = model(ids[:, 6:], position_ids=at[:, 6:], past_key_values=first.past_key_values)
        expected = model(ids, position_ids=at).logits
    close(torch.cat((first.logits, second.logits), 1), expected, scheme)


@over(scheme=SCHEMES, limit=[("max_new_tokens", 13), ("max_length", 17)])
def test_generation_beyond_the_positions_is_refused_before_it_begins(scheme, limit):
    model, ids, calls, length = decoder(scheme, max_position_embeddings=16), token_ids(2, 4), [], dict([limit])
    model.model.register_forward_pre_hook(lambda *_: calls.append(1))
    if model.model.position.max_length:
        limit = (f"'{scheme}' has a table for 16 positions (max_position_embeddings=16)", "4 and 13 new tokens need 17")
        refused(lambda: model.generate(ids, do_sample=False, **length), *limit, "lower max_new_tokens")
        assert not calls
    else:
        assert model.generate(ids, do_sample=False, **length).shape == (2, 17)
    padded, mask = F.pad(ids, (5, 0), value=7), F.pad(torch.ones_like(ids), (5, 0))
    assert model.generate(padded, attention_mask=mask, max_new_tokens=12).shape == (2, 21)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_loss_and_gradients_of_training_are_those_of_the_full_logits(scheme):
    model, (ids, mask) = decoder(scheme), padded_batch()
    labels = ids.masked_fill(mask == 0, -100)
    outputs = [model.train(training)(ids, mask, labels=labels) for training in (True, False)]
    assert outputs[0].logits is None
    assert all(output.past_key_values is None for output in outputs)
    logs = outputs[1].logits[:, :-1].log_softmax(-1)
    both = (mask[:, :-1] * mask[:, 1:]).bool()  # padding neither predicts nor is predicted
    by_hand = -logs.gather(-1, ids[:, 1:, None])[..., 0][both].mean()
    ours, expected = (gradients_of(model.train(), output.loss) for output in outputs)
    for output in outputs:
        torch.testing.assert_close(output.loss.double(), by_hand, rtol=0, atol=1e-5)  # taken in float32
    assert_same_gradients(ours, expected, 1e-6)
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100).masked_fill(mask == 0, -100)
    for training, given in ((True, {"labels": ids}), (True, {}), (False, {"labels": ids})):
        loss = model.train(training)(ids, mask, shift_labels=shifted, **given).loss
        torch.testing.assert_close(loss.double(), by_hand, rtol=0, atol=1e-5)
    left = F.pad(ids[:1], (5, 0), value=7), F.pad(mask[:1], (5, 0)), F.pad(labels[:1], (5, 0), value=3)
    alone = model(ids[:1], labels=labels[:1]).loss
    torch.testing.assert_close(model(left[0], left[1], labels=left[2]).loss, alone, rtol=0, atol=1e-5)


@over(scheme=SCHEMES, reentrant=[True, False])
def test_checkpointing_turns_the_cache_off_and_changes_no_gradient(scheme, reentrant):
    model, ids = decoder(scheme, hidden_dropout_prob=0.0).train(), token_ids(2, 9)
    expected = gradients_of(model, model(ids, labels=ids).loss)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert model(ids, use_cache=True).past_key_values is None
    assert_same_gradients(gradients_of(model, model(ids, labels=ids).loss), expected)


def test_logits_to_keep():
    model, ids = decoder("rotary"), token_ids(2, 9)
    full = model(ids).logits
    close(model(ids, logits_to_keep=2).logits, full[:, -2:], "rotary")
    close(model(ids, logits_to_keep=torch.tensor([0, 4])).logits, full[:, [0, 4]], "rotary")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_decoder_records_attentions_that_are_causal(scheme):
    model, ids = decoder(scheme, attn_implementation="eager"), token_ids(2, 9)
    for use_cache in (True, False):
        output = model(ids, output_attentions=True, output_hidden_states=True, use_cache=use_cache)
        assert [tuple(x.shape) for x in output.attentions] == [(2, 4, 9, 9)] * 2
        assert not any(x.triu(1).any() for x in output.attentions)
        assert len(output.hidden_states) == 3
    step = model(ids[:, :1], past_key_values=model(ids).past_key_values, output_attentions=True)
    assert [tuple(x.shape) for x in step.attentions] == [(2, 4, 1, 10)] * 2


@pytest.mark.full
@pytest.mark.parametrize("scheme", COMPILED.values())
def test_a_decoder_compiles_to_one_graph(scheme):
    torch._dynamo.reset()
    model, (ids, mask) = decoder(scheme, HfRopeModel, use_cache=False, num_hidden_layers=1), padded_batch()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for length in (LENGTH, LENGTH - 3):
            inputs = (ids[:, :length], mask[:, :length])
            ours, expected = (m(*inputs).last_hidden_state[inputs[1].bool()] for m in (compiled, model))
            close(ours, expected, scheme)


@pytest.mark.parametrize("scheme", ["rotary", "shaw"])
def test_the_stock_trainer_trains_a_decoder(scheme, tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]
    collator = DataCollatorForLanguageModeling(BertTokenizer(vocab={w: i for i, w in enumerate(words)}), mlm=False)
    rows = [{"input_ids": (torch.arange(length) % 7 + 5).tolist()} for length in (9, 12, 7, 12) * 4]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=30,
        learning_rate=5e-3,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    model = HfRopeForCausalLM(decoder(scheme).config)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert generate(model.eval(), torch.tensor([[5, 6, 7]]), do_sample=False).tolist() == [
        [5, 6, 7, 8, 9, 10, 11, 5, 6]
    ]


def encoder_decoder(case: str) -> EncoderDecoderModel:
    model = (
        EncoderDecoderModel(encoder=tiny_model(case), decoder=decoder(case, add_cross_attention=True)).double().eval()
    )
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, 0
    return model


@over(case=CASES)
def test_an_encoder_decoder_generates_the_same_with_a_cache_in_a_batch_and_after_padding(case):
    model, (ids, after) = encoder_decoder(case), (token_ids(2, 7), token_ids(2, 6, seed=1))
    mask, cache, logits = torch.ones_like(ids), None, []
    mask[1, 4:] = 0
    with torch.no_grad():
        full = model(ids, mask, decoder_input_ids=after, use_cache=False).logits
        for part in after.split((3, 1, 2), dim=1):
            output = model(ids, mask, decoder_input_ids=part, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
        close(torch.cat(logits, dim=1), full, case)
        close(model(ids[1:, :4], decoder_input_ids=after[1:]).logits, full[1:], case)
    for beams in (1, 3):
        settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "decoder_start_token_id": 1}
        with_cache, without = (
            model.generate(ids, attention_mask=mask, use_cache=use, **settings) for use in (True, False)
        )
        assert torch.equal(with_cache, without)
        assert torch.equal(model.generate(ids[1:, :4], **settings)[0], with_cache[1])


@over(scheme=SCHEMES, reentrant=[None, True, False])
@pytest.mark.filterwarnings("ignore:Version v4.12.0 introduces:FutureWarning")
def test_an_encoder_decoder_trains_every_parameter(scheme, reentrant):
    torch.manual_seed(0)
    model, ids = encoder_decoder(scheme).train(), token_ids(2, 7)
    labels = token_ids(2, 5, seed=1)
    expected = gradients_of(model, model(ids, labels=labels).loss)
    assert [name for name, gradient in expected.items() if gradient is None and "pooler" not in name] == []
    if reentrant is not None:
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        ours = gradients_of(model, model(ids, labels=labels).loss)
        kept = [name for name, gradient in expected.items() if gradient is not None]
        assert_same_gradients({name: ours[name] for name in kept}, {name: expected[name] for name in kept})


def test_an_encoder_decoder_saves_and_loads(tmp_path):
    model, ids = encoder_decoder("rotary"), token_ids(2, 7)
    model.save_pretrained(tmp_path)
    loaded = EncoderDecoderModel.from_pretrained(tmp_path)
    inputs = {"input_ids": ids, "decoder_input_ids": ids}
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    for folder in ("encoder", "decoder"):
        HfRopeForMaskedLM(tiny_model("t5").config).save_pretrained(tmp_path / folder)
    joined = EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "decoder")
    assert joined.decoder.config.add_cross_attention
    assert joined(**inputs).logits.shape == (2, 7, 99)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_cross_attention_sees_the_encoders_real_states_and_no_positions(implementation):
    model = decoder("none", attn_implementation=implementation, add_cross_attention=True)
    ids, states = token_ids(2, 6), torch.randn(2, 5, 32, dtype=torch.double)
    mask, order = torch.ones(2, 5, dtype=torch.long), torch.tensor([3, 0, 4, 2, 1])
    mask[0, 3:] = 0
    seen = {"encoder_attention_mask": mask, "output_attentions": implementation == "eager"}
    output = model(ids, encoder_hidden_states=states, **seen)
    other = torch.where(mask[..., None] == 1, states, 9.0)
    close(model(ids, encoder_hidden_states=other, encoder_attention_mask=mask).logits, output.logits, "none")
    moved = model(ids, encoder_hidden_states=states[:, order], encoder_attention_mask=mask[:, order])
    close(moved.logits, output.logits, "none")
    assert not torch.allclose(model(ids).logits, output.logits)
    if implementation == "eager":
        assert [tuple(x.shape) for x in output.cross_attentions] == [(2, 4, 6, 5)] * 2
        assert not output.cross_attentions[0][0, ..., 3:].any()


def test_the_cache_goes_by_both_of_its_names(recwarn):
    model, ids = decoder("rotary"), token_ids(1, 6)
    with torch.no_grad():
        caches = {name: model(ids[:, :5])[CACHE] for name in ("cache", "past_key_values")}
        ways = [model(ids[:, 5:], **{name: cache}).logits for name, cache in caches.items()]
        torch.testing.assert_close(ways[0], model(ids).logits[:, 5:], rtol=0, atol=1e-5)
    assert torch.equal(*ways)
    assert any("`past_key_values` is deprecated" in str(one.message) for one in recwarn) is (CACHE == "cache")
