"""Push and load over HTTP: huggingface_hub's own client, in processes of its own, against a Hub on loopback."""

import inspect
import json
import re
from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard
from transformers import AutoModelForMaskedLM, BertTokenizer

import hf_rope
from heads import HEADS
from hf_rope.card import create_card
from hub.client import REPO, Client, fail, succeed
from hub.server import READ_TOKEN, USER, WRONG_TOKEN, Commit, Hub
from test_shipping import assert_complete, close

BREAKS = {
    "put": "Error while uploading 'model.safetensors'",
    "commit": "Server disconnected without sending a response",
}


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub
    assert not hub.unknown


@pytest.fixture
def client(hub, tmp_path) -> Client:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\ncat\nplay\n##ing\n")
    BertTokenizer.from_pretrained(tmp_path / "words").save_pretrained(tmp_path / "words")
    return Client(hub, tmp_path)


def output(model, head: str) -> tuple:
    return model(**HEADS[head].batch()).to_tuple()


@pytest.mark.full
def test_every_head_and_every_scheme_pushed_loads_without_the_package_and_gives_the_same(hub, client):
    rows = [(f"me/{name}", name, "rotary") for name in HEADS]
    rows += [(f"me/{scheme}-encoder", "encoder", scheme) for scheme in hf_rope.SCHEMES]
    succeed(client.push(*rows, tokenizers=["me/masked-lm"]))
    for repo, _, _ in rows:
        files = hub.repos[repo][-1].files
        assert_complete(files)
        assert b"library_name: transformers" in files["README.md"]
    assert {"tokenizer.json", "tokenizer_config.json"} <= {*hub.repos["me/masked-lm"][-1].files}

    asked = [(repo, hub.repos[repo][-1].sha, name) for repo, name, _ in rows]
    *results, trusted, untrusted = client.load(*asked, tokenizers=["me/masked-lm"])

    assert trusted == untrusted == [2, 5, 6, 7, 8, 3]
    for (_, name, case), result in zip(rows, results, strict=True):
        close(result, output(HEADS[name].build(case), name))


@pytest.mark.full
def test_what_trainer_pushes_loads_without_the_package_and_gives_the_same(hub, client):
    succeed(client.train("Trainer", "every_save"))
    files = hub.repos[REPO][-1].files
    assert_complete(files)
    assert b"# model" in files["README.md"]
    result, *ids = client.load((REPO, None, "masked-lm"), tokenizers=[REPO])
    assert ids == [[2, 5, 6, 7, 8, 3]] * 2
    close(result, output(AutoModelForMaskedLM.from_pretrained(client.folder / "trained"), "masked-lm"))
    assert "modeling_hf_rope.py" not in first_trained(hub).files, "transformers has learned it: say so in the README"


@pytest.mark.full
@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_the_revisions_that_card_trainer_pushes_in_between_load_without_the_package(strategy, hub, client):
    succeed(client.train("CardTrainer", strategy))
    commit, folder = first_trained(hub), client.folder / "trained" / "checkpoint-1"
    assert_complete({path: content for path, content in commit.files.items() if "/" not in path})
    assert commit.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert commit.files["model.safetensors"] != hub.repos[REPO][-1].files["model.safetensors"]
    result, *ids = client.load((REPO, commit.sha, "masked-lm"), tokenizers=[REPO])
    assert ids == [[2, 5, 6, 7, 8, 3]] * 2
    close(result, output(AutoModelForMaskedLM.from_pretrained(folder), "masked-lm"))
    assert b"Position scheme: `rotary`" in hub.repos[REPO][-1].files["README.md"]


def first_trained(hub: Hub) -> Commit:
    """The oldest commit with weights."""
    return next(commit for commit in hub.repos[REPO] if "model.safetensors" in commit.files)


RESULT = EvalResult("fill-mask", "me/text", "Text", metric_type="perplexity", metric_value=12.25)


@pytest.mark.skipif(
    "https://huggingface.co/api" in inspect.getsource(ModelCard.validate), reason="this client asks one address only"
)
def test_a_card_of_every_scheme_validates_and_is_pushed_beside_the_model(hub, client):
    before, cards = {}, {}
    for scheme in hf_rope.SCHEMES:
        before[scheme] = hub.add(f"me/{scheme}", {"config.json": b"{}"})
        cards[scheme] = create_card(HEADS["masked-lm"].build(scheme), language="en", license="mit", metrics=[RESULT])
        cards[scheme].save(client.folder / f"{scheme}.md")
    succeed(client.push_cards(*hf_rope.SCHEMES))
    for scheme, card in cards.items():
        old, new = hub.repos[f"me/{scheme}"]
        assert old == before[scheme]
        assert new.files == {**old.files, "README.md": str(card).encode()}


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("      type: fill-mask\n", ""),
        ("      type: me/text\n", ""),
        ("      value: 12.25\n", ""),
        ("language: en\n", "language: [en\n"),
    ],
)
def test_a_card_that_does_not_validate_is_refused(part, other, hub, client, saved):
    text = str(create_card(HEADS["encoder"].build(), language="en", metrics=[RESULT]))
    assert text.count(part) == 1
    (saved["rotary"] / "README.md").write_text(text.replace(part, other))
    fail(client.upload(saved["rotary"]), "Invalid metadata in README.md")
    assert len(hub.repos[REPO]) == 1


@pytest.fixture
def saved(tmp_path) -> dict[str, Path]:
    """Folders of two encoders, by their scheme."""
    folders = {scheme: tmp_path / scheme for scheme in ("rotary", "learned")}
    for scheme, folder in folders.items():
        HEADS["encoder"].build(scheme).save_pretrained(folder)
    return folders


@pytest.mark.full
def test_every_revision_uploaded_on_the_command_line_loads_as_it_was_and_a_missing_one_is_an_error(hub, client, saved):
    for folder in saved.values():
        succeed(client.upload(folder))
        assert_complete(hub.repos[REPO][-1].files)
    code = saved["learned"] / "modeling_hf_rope.py"
    code.write_text(code.read_text() + "raise OSError('the third revision runs code of its own')\n")
    succeed(client.upload(saved["learned"]))
    names = [*(commit.sha for commit in hub.repos[REPO][1:3]), "main", "0" * 40]

    *results, other_code, missing = client.load(*((REPO, name, "encoder") for name in names))

    for scheme, result in zip(("rotary", "learned"), results, strict=True):
        close(result, output(HEADS["encoder"].build(scheme), "encoder"))
    assert "the third revision runs code of its own" in other_code
    assert "is not a valid git identifier" in missing


@pytest.mark.full
def test_a_sentence_transformer_on_the_hub_is_converted_with_its_files(hub, client, saved):
    folder, files = (
        saved["learned"],
        {"modules.json": '[{"path": ""}, {"path": "1_Pooling"}]', "1_Pooling/config.json": "{}"},
    )
    (folder / "1_Pooling").mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    succeed(client.upload(folder))
    succeed(client.run("-m", "hf_rope.cli", "to-native", REPO, "native", "--check", token=READ_TOKEN))
    assert {name: (client.folder / "native" / name).read_text() for name in files} == files
    assert json.loads((client.folder / "native" / "config.json").read_text())["model_type"] == "bert"


@pytest.mark.parametrize(("token", "sentence"), [(WRONG_TOKEN, "401"), (READ_TOKEN, "403"), (None, "401")])
def test_without_the_right_to_write_nothing_is_stored(token, sentence, hub, client, saved):
    fail(client.upload(saved["rotary"], token=token), sentence)
    assert not hub.repos
    succeed(client.upload(saved["rotary"]))
    before, objects = [*hub.repos[REPO]], {**hub.objects}
    fail(client.upload(saved["learned"], token=token), sentence)
    assert (hub.repos, hub.objects) == ({REPO: before}, objects)


def test_a_token_is_known_or_refused(client):
    known = client.hf("auth", "whoami")
    succeed(known)
    assert re.search(rf"\b{USER}\b", known.stdout)
    fail(client.hf("auth", "whoami", token=WRONG_TOKEN), "Invalid user token")


@pytest.mark.full
def test_an_upload_that_breaks_off_leaves_the_old_revision_whole_and_can_be_repeated(hub, client, saved):
    succeed(client.upload(saved["rotary"]))
    before = [*hub.repos[REPO]]

    for moment, sentence in BREAKS.items():
        hub.break_off = moment
        fail(client.upload(saved["learned"]), sentence)
        assert hub.repos == {REPO: before}
    close(client.load((REPO, "main", "encoder"))[0], output(HEADS["encoder"].build("rotary"), "encoder"))

    hub.break_off = None
    succeed(client.upload(saved["learned"]))
    *old, new = hub.repos[REPO]
    assert old == before
    assert new.files.items() >= {path.name: path.read_bytes() for path in saved["learned"].iterdir()}.items()
