"""A model under other positions learns to give the states that it gave before, and a command writes it or nothing."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForMaskedLM, AutoTokenizer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from helpers import over, tiny_model, token_ids
from hf_rope import SCHEMES, HfRopeModel
from hf_rope.convert import Report, convert
from hf_rope.convert.checkpoint import read_tokenizer
from hf_rope.folders import last_checkpoint
from hf_rope.retrofit import Recipe, Retrofitted, distillation, retrofit
from hf_rope.retrofit.measure import masked_lm_losses, measure
from hf_rope.retrofit.retrofitting import EVALUATION_BATCHES, long_length
from hf_rope.retrofit.start import keep_positions
from hf_rope.retrofit.texts import PART, Batches, hold_out, read_texts
from native_models import MASKED, WORDS, command, native, refused, save_with_tokenizer

SIZES = {"batch_size": 4, "short_length": 8, "length": 16}
FEW_STEPS = {**SIZES, "steps": 4, "warmup_share": 0, "evaluate_every": 2}
OPTIONS = [text for key, value in FEW_STEPS.items() for text in (f"--{key.replace('_', '-')}", value)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """60 lines of words that the tokenizer knows."""
    generator, words = np.random.default_rng(0), [word for word in WORDS if word.isalpha()]
    lines = [" ".join(generator.choice(words, generator.integers(3, 12))) for _ in range(60)]
    path = tmp_path_factory.mktemp("texts") / "lines.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_with_tokenizer(native("bert"), tmp_path_factory.mktemp("encoder") / "bert")


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return save_with_tokenizer(native("bert", MASKED), tmp_path_factory.mktemp("masked") / "bert")


def assert_same(one, other) -> None:
    for (name, x), y in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-7, msg=name)


@over(quick=["rotary"], scheme=[scheme for scheme in SCHEMES if scheme != "learned"])
def test_states_come_near_to_the_sources(scheme, encoder, texts, tmp_path):
    recipe = Recipe(**SIZES, steps=60, learning_rate=3e-3, evaluate_every=30)
    found = retrofit(encoder, scheme, [texts], tmp_path, recipe=recipe)
    assert found.model.config.position_embedding_type == scheme
    assert found.after["hidden_state_difference"] < 0.95 * found.before["hidden_state_difference"]
    assert found.before["sentence_cosine"] < found.after["sentence_cosine"] <= 1
    assert [entry["step"] for entry in found.history] == [30, 60]


def test_a_head_keeps_its_weights_and_what_comes_out_is_as_it_is_saved(masked, texts, tmp_path):
    found = retrofit(masked, "rotary", [texts], tmp_path / "run", recipe=Recipe(**FEW_STEPS))
    source = convert(masked)
    for part in ("dense", "norm"):
        assert_same(getattr(found.model.lm_head, part), getattr(source.lm_head, part))
    assert set(found.after) - set(found.before) == set()
    assert found.after["masked_lm_loss_of_source"] == found.before["masked_lm_loss_of_source"]
    assert found.after["masked_lm_loss"] != found.before["masked_lm_loss"]
    found.model.save_pretrained(tmp_path / "saved")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved")
    ids = torch.randint(5, 99, (2, 9))
    with torch.no_grad():
        assert torch.equal(found.model(ids).logits, again(ids).logits)


def test_dropout_and_dtype_stay_as_they_were_and_nothing_is_dropped_in_training(texts, tmp_path):
    source = native("bert", hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).bfloat16()
    folder, modes = save_with_tokenizer(source, tmp_path / "source"), []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            modes.append(model.training)

    recipe = Recipe(**FEW_STEPS)
    found = retrofit(folder, "alibi", [texts], tmp_path / "run", recipe=recipe, callbacks=[Look()])
    assert modes == [False] * 4
    assert found.model.config.hidden_dropout_prob == 0.5
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.bfloat16}
    student, teacher, tokenizer = found.model.float(), convert(folder).float(), read_tokenizer(str(folder))
    _, held = hold_out(read_texts([str(texts)]), recipe.seed)
    batches = Batches(held, tokenizer, recipe, long_length(recipe, teacher, student), EVALUATION_BATCHES)
    assert measure(student, teacher, batches, tokenizer) == found.after  # of the weights as they are saved


def test_positions_are_trained_at_the_rates_that_their_scheme_recommends(encoder, texts, tmp_path):
    found, recipe = [], Recipe(**{**FEW_STEPS, "steps": 1})

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
            rates = {
                parameter: group["initial_lr"] for group in optimizer.param_groups for parameter in group["params"]
            }
            found.extend(rates[part.weight] for part in (model.embeddings.word_embeddings, model.position.bias))

    retrofit(encoder, "t5", [texts], tmp_path, recipe=recipe, callbacks=[Look()])
    times = SCHEMES["t5"].lr_multipliers["bias"]
    assert times > 1
    assert found == pytest.approx([recipe.learning_rate, times * recipe.learning_rate])


class Stop(TrainerCallback):
    """Kills a training after some steps."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(encoder, texts, tmp_path):
    recipe = Recipe(**FEW_STEPS)
    whole = retrofit(encoder, "t5", [texts], tmp_path / "whole", recipe=recipe)
    with pytest.raises(KeyboardInterrupt):
        retrofit(encoder, "t5", [texts], tmp_path / "run", recipe=recipe, callbacks=[Stop(3)])
    with pytest.raises(ValueError, match=r"holds a run that did not end: resume it, or remove the folder first\.$"):
        retrofit(encoder, "t5", [texts], tmp_path / "run", recipe=recipe)
    with pytest.raises(ValueError, match=r"begun with steps 4, and it is 5 now: resume with the same settings"):
        retrofit(encoder, "t5", [texts], tmp_path / "run", recipe=Recipe(**{**FEW_STEPS, "steps": 5}), resume=True)
    content = texts.read_text()
    texts.write_text("other words")
    with pytest.raises(ValueError, match=r"begun with sha256 of .*lines.txt '\w+', and it is '\w+' now"):
        retrofit(encoder, "t5", [texts], tmp_path / "run", recipe=recipe, resume=True)
    texts.write_text(content)
    resumed = retrofit(encoder, "t5", [texts], tmp_path / "run", recipe=recipe, resume=True)
    assert_same(whole.model, resumed.model)
    assert (whole.before, whole.after) == (resumed.before, resumed.after)
    assert len(resumed.history) == 2


class Best(TrainerCallback):
    """Makes the first evaluation the best."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            state.best_metric = 0.0


def test_a_run_that_was_moved_ends_with_the_best_checkpoint_and_not_without(encoder, texts, tmp_path):
    """Trainer alone looks for it where it was, warns, and takes the last one."""
    recipe = Recipe(**{**FEW_STEPS, "steps": 6})
    whole = retrofit(encoder, "rotary", [texts], tmp_path / "whole", recipe=recipe, callbacks=[Best()])
    with pytest.raises(KeyboardInterrupt):
        retrofit(encoder, "rotary", [texts], tmp_path / "run", recipe=recipe, callbacks=[Best(), Stop(5)])
    shutil.move(tmp_path / "run", tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost/checkpoint-2")
    assert_same(whole.model, retrofit(encoder, "rotary", [texts], tmp_path / "moved", recipe=recipe, resume=True).model)
    with pytest.raises(ValueError, match=r"checkpoint-2, the checkpoint of the best evaluation, is gone: remove"):
        retrofit(encoder, "rotary", [texts], tmp_path / "lost", recipe=recipe, resume=True)


def test_numbers_that_are_not_finite_end_it_with_an_error(encoder, texts, tmp_path):
    with pytest.raises(ValueError, match=r"diverged at learning_rate=1e\+30: remove .*, and give a lower one"):
        retrofit(encoder, "t5", [texts], tmp_path / "run", recipe=Recipe(**FEW_STEPS, learning_rate=1e30))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((tiny_model("learned"), "rotary", ["t.txt"]), "The source is a HfRopeModel; it must be a folder or a name"),
        (("source", "rotary", "t.txt"), "texts is 't.txt'; it must be a list"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments, sentence, tmp_path):
    with pytest.raises(TypeError, match=sentence):
        retrofit(*arguments, tmp_path / "run")


@pytest.mark.parametrize(("name", "value"), [("steps", 2.5), ("steps", "4"), ("length", 16.0), ("minutes", "1")])
def test_a_recipe_holds_numbers(name, value):
    with pytest.raises(TypeError, match=f"{name} is {value!r}; it must be a (whole )?number"):
        Recipe(**{name: value})


def test_a_checkpoint_that_is_not_whole_is_left_out(tmp_path):
    (tmp_path / "checkpoint-mine").mkdir()
    for step in (8, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (8, 10):
        (tmp_path / f"checkpoint-{step}" / TRAINER_STATE_NAME).touch()
    assert last_checkpoint(tmp_path, TRAINER_STATE_NAME) == str(tmp_path / "checkpoint-10")
    assert not (tmp_path / "checkpoint-12").exists()
    assert (tmp_path / "checkpoint-mine").exists()
    assert last_checkpoint(tmp_path / "nowhere", TRAINER_STATE_NAME) is None


@pytest.mark.parametrize(("changes", "steps"), [({"minutes": 1e-6}, 1), ({"learning_rate": 1e-20, "patience": 1}, 4)])
def test_it_ends_with_the_budget_or_where_nothing_gets_better(changes, steps, encoder, texts, tmp_path):
    recipe = Recipe(**{**FEW_STEPS, "steps": 20, **changes})
    found = retrofit(encoder, "rotary", [texts], tmp_path, recipe=recipe)
    assert found.steps == steps
    assert found.history[-1]["step"] == steps
    assert 0 < found.minutes < 1


@pytest.mark.parametrize("types", [2, 0])
@pytest.mark.parametrize("scaled", [False, True])
def test_it_begins_with_what_the_sources_positions_add_to_the_first_token_and_on_average(types, scaled):
    """Where that is all that they add, nothing is missing."""
    source, ids = tiny_model("learned", type_vocab_size=types, scale_embedding=scaled), token_ids(2, 9)
    ids[:, 0], ids[:, 1:] = 2, ids[:, 1:].clamp(min=3)
    with torch.no_grad():
        table = source.position.embeddings.weight
        table[1:] = table[1].clone()
        student = convert(source, "none")
        wanted = source(ids).last_hidden_state
        assert (student(ids).last_hidden_state - wanted).abs().max() > 0.1
        keep_positions(student, source, 20, first_token=2)
        torch.testing.assert_close(student(ids).last_hidden_state, wanted, rtol=0, atol=1e-5)
        keep_positions(student, student, 20, first_token=2)
        torch.testing.assert_close(student(ids).last_hidden_state, wanted, rtol=0, atol=1e-5)


def test_the_clock_has_steps_evaluations_and_what_ran_before_a_resume(monkeypatch):
    times = iter([100.0, 101.0, 105.0, 106.0, 200.0, 202.0])
    monkeypatch.setattr(distillation.time, "perf_counter", lambda: next(times))
    clock = distillation.Clock()
    for event in ("train_begin", "step_end", "evaluate", "train_end", "train_begin", "step_end"):
        getattr(clock, f"on_{event}")(None, None, None)
    assert clock.seconds == 6 + 2


def test_special_tokens_are_not_predicted(masked):
    tokenizer, seen = AutoTokenizer.from_pretrained(masked), []

    def look(input_ids, labels, **_):
        seen.append((input_ids, labels))
        return SimpleNamespace(loss=torch.tensor(1.0))

    ids = torch.tensor([[2, 5, 6, 7, 3, 0], [2, 8, 9, 10, 11, 3]]).repeat(40, 1)  # with [CLS], [SEP] and padding
    assert masked_lm_losses((look,), [{"input_ids": ids, "attention_mask": (ids != 0).long()}], tokenizer) == [1.0]
    labels = seen[0][1]
    assert {*labels[labels != -100].tolist()} == {5, 6, 7, 8, 9, 10, 11}


def test_a_card_says_how_long_it_trained_and_calls_a_folder_by_its_name(tmp_path):
    (tmp_path / "acme").mkdir()
    figures = {"hidden_state_difference": 0.5}
    found = Retrofitted(
        **{"model": tiny_model("rotary"), "source": "me/model", "report": Report("BertModel, me/model")},
        **{"recipe": Recipe(steps=400), "texts": [str(tmp_path / "acme")], "before": figures, "after": figures},
        steps=150,
    )
    card = str(found.card())
    assert "- steps: 150" in card
    assert "- data: acme, a folder" in card
    assert str(tmp_path) not in card


def batches(names, number=8, **changes) -> Batches:
    tokenizer = AutoTokenizer.from_pretrained(changes.pop("tokenizer"))
    recipe = Recipe(**{**SIZES, **changes})
    return Batches(read_texts([str(name) for name in names]), tokenizer, recipe, recipe.length, number)


def test_a_share_of_the_batches_is_long_and_each_is_the_same_again(encoder, texts):
    drawn = batches([texts], tokenizer=encoder)
    lengths = [batch["attention_mask"].sum(1) for batch in drawn]
    assert [len(each) for each in lengths] == [4, 4, 4, 2, 4, 4, 4, 2]
    assert [int(each.max()) > 8 for each in lengths] == [False, False, False, True] * 2
    assert all((lengths[place] == 16).all() for place in (3, 7))
    for batch in drawn:
        assert batch.keys() == {"input_ids", "attention_mask"}
        assert ((batch["input_ids"] != 0) == batch["attention_mask"].bool()).all()
        assert batch["attention_mask"][:, 0].all()
    for one, other in zip(drawn, batches([texts], tokenizer=encoder), strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
    assert not torch.equal(drawn[3]["input_ids"], batches([texts], tokenizer=encoder, seed=1)[3]["input_ids"])
    assert not any(batches([texts], tokenizer=encoder, long_share=0).is_long(number) for number in range(8))


def test_sources_are_drawn_from_alike_and_a_longer_text_by_pieces(encoder, texts, tmp_path):
    long = tmp_path / "book.jsonl"
    long.write_text(json.dumps({"text": "rotary " * 2000}))
    ids = torch.cat([batch["input_ids"].flatten() for batch in batches([texts, long], 32, tokenizer=encoder)])
    only, others = WORDS.index("rotary"), [WORDS.index(word) for word in ("a", "short", "one")]
    counts = [int((ids == number).sum()) for number in (only, *others)]
    assert counts[0] > sum(counts[1:]) > 0
    (parts,) = read_texts([str(long)])
    assert "".join(parts) == "rotary " * 2000 + "\n"
    assert max(map(len, parts)) == PART


def test_text_that_is_held_out_is_not_trained_on(texts):
    sources = read_texts([str(texts)] * 2)
    kept, held = hold_out(sources, 0)
    for parts, one, other in zip(sources, kept, held, strict=True):
        assert len(other) == 2
        assert len(one) + len(other) == len(parts)
        assert sorted(one + other) == sorted(parts)
    assert hold_out(sources, 0) == (kept, held)
    assert hold_out(sources, 1)[1] != held


def test_a_data_set_is_read_by_its_name(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in ("one", "", "two")))
    assert read_texts([str(tmp_path)]) == [["one\n", "two\n"]]


def test_command_writes_model_card_tokenizer_and_pooling(masked, texts, tmp_path):
    source = tmp_path / "source"
    save_with_tokenizer(AutoModelForMaskedLM.from_pretrained(masked), source)
    listed = [{"path": "", "type": "custom_st.Reader"}, {"path": "1_Pooling"}]
    (source / "modules.json").write_text(json.dumps(listed))
    (source / "custom_st.py").touch()
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    target = tmp_path / "new" / "target"
    position = ("--position", "alibi", "--position-options", '{"form": "learned"}')
    result = command(source, target, *position, "--texts", texts, *OPTIONS, name="retrofit")
    assert result.exit_code == 0, result.output
    assert "hidden state difference" in result.output
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    written = {path.relative_to(target).as_posix() for path in target.rglob("*")}
    assert {"modeling_hf_rope.py", "model.safetensors", "modules.json", "1_Pooling/config.json"} <= written
    written = json.loads((target / "modules.json").read_text())
    assert written[0]["type"] == "sentence_transformers.models.Transformer"
    card = (target / "README.md").read_text()
    assert "Made from source by self-distillation" in card
    for line in ("- data: lines.txt, a file", "- steps: 4", "- sentence_cosine: 0.", "- masked_lm_loss_before: "):
        assert line in card
    assert str(tmp_path) not in card
    model = AutoModelForMaskedLM.from_pretrained(target)
    assert model.config.position_embedding_type == "alibi"
    assert model.config.position_options == {"form": "learned"}
    long = "a short one . " * 100
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (source, target)]
    assert tokenizers[0](long)["input_ids"] == tokenizers[1](long)["input_ids"]
    assert len(tokenizers[1](long)["input_ids"]) == 402


@pytest.mark.full
def test_command_goes_on_where_it_was_stopped(masked, texts, tmp_path, monkeypatch):
    arguments = [masked, tmp_path / "target", "--position", "rotary", "--texts", texts, *OPTIONS]
    with monkeypatch.context() as patch:
        patch.setattr(HfRopeModel, "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError("Disk full")))
        result = command(*arguments, name="retrofit")
    assert result.exit_code == 1
    assert not (tmp_path / "target").exists()
    assert (tmp_path / "target-checkpoints").is_dir()
    assert command(*arguments, name="retrofit").exit_code == 1
    assert command(*arguments, "--resume", name="retrofit").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"target"}


REFUSALS = {
    "same positions": (["--position", "learned"], r"are 'learned' with {} already: choose another scheme"),
    "unknown scheme": (["--position", "rotery"], r"'rotery' is unknown; the nearest is 'rotary'"),
    "options": (["--position-options", "learned"], r"--position-options 'learned' is no JSON"),
    "no option of it": (["--position-options", '{"form": "learned"}'], r"'form'"),
    "long text": (["--length", 61], r"length is 61, and the source or the new scheme has positions for 60 tokens"),
    "short text": (["--short-length", 61, "--length", 61], r"short_length is 61, and the source or"),
    "order of lengths": (["--short-length", 17], r"length is 16, below the 17 tokens of a short text"),
    "few tokens": (["--short-length", 7], r"short_length is 7; it must be 8 tokens or more"),
    "steps": (["--steps", 0], r"steps is 0; it must be 1 or more"),
    "batch": (["--batch-size", 0], r"batch_size is 0; it must be 1 or more"),
    "evaluations": (["--evaluate-every", 0], r"evaluate_every is 0; it must be 1 or more"),
    "patience": (["--patience", 0], r"patience is 0; it must be 1 or more"),
    "warm-up": (["--warmup-share", 1], r"warmup_share is 1; it must be 0 or more, and less than 1"),
    "seed": (["--seed", -1], r"seed is -1; it must be from 0 to 4294967295"),
    "great seed": (["--seed", 2**32], r"seed is 4294967296; it must be from 0 to 4294967295"),
    "endless rate": (["--learning-rate", "inf"], r"learning_rate is inf; it must be finite"),
    "no number of minutes": (["--minutes", "nan"], r"minutes is nan; it must be finite"),
    "rate": (["--learning-rate", 0], r"learning_rate is 0; it must be more than 0"),
    "minutes": (["--minutes", 0], r"minutes is 0; it must be more than 0, or left out for no limit"),
    "share": (["--long-share", 1.5], r"long_share is 1.5; it must be from 0, no long texts, to 1"),
}


@pytest.mark.parametrize("row", REFUSALS)
def test_settings_that_do_not_fit_are_refused(row, encoder, texts, tmp_path):
    options, sentence = REFUSALS[row]
    given = ["--position", "rotary", "--texts", texts, *OPTIONS, *options]
    refused(command(encoder, tmp_path / "target", *given, name="retrofit"), tmp_path, sentence)


FILES = {
    "missing.txt": (None, r"missing.txt is not there, or is no file: texts are .txt or .jsonl files"),
    "book.pdf": (b"a", r"book.pdf ends in '.pdf': texts are .txt or .jsonl files, or the name of a data set"),
    "latin.txt": ("Gruß\nund\n".encode("latin-1"), r"latin.txt is no text in UTF-8"),
    "empty.txt": (b"\n\n", r"empty.txt holds 0 characters in one text or none"),
    "one.txt": (b"a single line", r"some text has to be held out: it takes two texts, or one of more than 4000 char"),
    "rows.jsonl": (b'{"text": "a"}\n\n{"words": "b"}', r"Line 3 of .* has no text in its `text`; it has: words\."),
    "number.jsonl": (b'{"text": 3}', r"Line 1 of .* has no text in its `text`; it has: text\."),
    "list.jsonl": (b'["a"]', r"Line 1 of .* holds '\[\"a\"\]'; it must hold a JSON object\."),
    "broken.jsonl": (b'{"text": "a"', r"Line 1 of .* is no JSON \("),
    "emoji.jsonl": (b'{"text": "a \\ud83d b"}', r"Line 1 of .* holds half of a surrogate pair"),
    "no/such": (None, r"no/such is no file, and as a data set it cannot be loaded"),
}


@pytest.mark.parametrize("name", FILES)
def test_texts_that_cannot_be_read_are_refused(name, tmp_path, monkeypatch):
    content, sentence = FILES[name]
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as error:
        read_texts([name])
    assert "\n" not in str(error.value)


def test_a_data_set_without_text_is_refused(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"words": "one"}')
    with pytest.raises(ValueError, match=r"has no column `text` with texts; it has: words\."):
        read_texts([str(tmp_path)])
    with pytest.raises(ValueError, match=r"No texts are named: give"):
        read_texts([])


def test_sources_that_cannot_be_read_with_are_refused(encoder, texts, tmp_path):
    def refuse(source, sentence):
        given = ["--position", "rotary", "--texts", texts, *OPTIONS]
        refused(command(source, tmp_path / "target", *given, name="retrofit"), tmp_path, sentence)

    native("bert").save_pretrained(tmp_path / "source")
    refuse(tmp_path / "source", "has no tokenizer, and texts cannot be read without")
    refuse(tmp_path / "nowhere", "has no config.json that can be read")
    save_with_tokenizer(native("bert"), tmp_path / "source")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "source")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "source")
    refuse(tmp_path / "source", "has no padding token")
    decoder = native("bert", "LMHeadModel", is_decoder=True, add_cross_attention=True)
    save_with_tokenizer(decoder, tmp_path / "source")
    refuse(tmp_path / "source", "is a decoder that reads an encoder's states")
    save_with_tokenizer(native("bert"), tmp_path / "source")
    (tmp_path / "source" / "modules.json").write_text('[{"path": ""}, {"path": "1", "type": "own_code.Pool"}]')
    (tmp_path / "source" / "own_code.py").touch()
    refuse(tmp_path / "source", "has the module own_code.Pool, whose code in")  # before it is trained
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    given = ["--position", "rotary", "--texts", texts]
    refused(command(encoder, tmp_path / "taken", *given, name="retrofit"), tmp_path, "is not an empty folder")
    with pytest.raises(ValueError, match=r"exists and is no folder of an earlier run"):
        retrofit(encoder, "rotary", [texts], tmp_path / "taken")


@pytest.mark.full
def test_a_decoder_is_distilled_too(texts, tmp_path):
    save_with_tokenizer(native("bert", "LMHeadModel", is_decoder=True), tmp_path / "source")
    found = retrofit(tmp_path / "source", "alibi", [texts], tmp_path / "run", recipe=Recipe(**FEW_STEPS))
    assert type(found.model).__name__ == "HfRopeForCausalLM"
    assert found.after["hidden_state_difference"] < found.before["hidden_state_difference"]
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "source").config.is_decoder
