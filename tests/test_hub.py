"""Push and load over HTTP: huggingface_hub's own client, in processes of its own, against a Hub on loopback."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard
from transformers import AutoModelForMaskedLM, BertTokenizer

import hf_rope
from heads import HEADS
from hf_rope.card import create_card
from hub import READ_TOKEN, USER, WRITE_TOKEN, WRONG_TOKEN, Commit, Hub
from test_shipping import assert_complete, close

TESTS = Path(__file__).parent
REPO = "me/model"
BREAKS = {
    "put": "Error while uploading 'model.safetensors'",
    "commit": "Server disconnected without sending a response",
}

PUSH = """
import json, sys
from transformers import BertTokenizer
from heads import HEADS

for repo, head, case in json.loads(sys.argv[1]):
    HEADS[head].build(case).push_to_hub(repo)
for repo in sys.argv[2:]:
    BertTokenizer.from_pretrained("words").push_to_hub(repo)
"""

HF = """
import time
from huggingface_hub.cli.hf import main

time.sleep = lambda seconds: None  # before it gives up, the client waits for half a minute in all
main()
"""

TRAIN = """
import sys
from transformers import BertTokenizer, Trainer, TrainerCallback, TrainingArguments
from heads import HEADS
from hf_rope.card import CardTrainer


class Wait(TrainerCallback):
    def on_save(self, *args, **kwargs):
        trainer._finish_current_push()  # which reads the folder that the next step writes to


repo, name, strategy = sys.argv[1:]
head = HEADS["masked-lm"]
rows = [{"input_ids": ids, "labels": ids} for ids in head.batch()["input_ids"]]
arguments = TrainingArguments(
    "trained", push_to_hub=True, hub_model_id=repo, hub_strategy=strategy, max_steps=2, save_steps=1, report_to="none",
    use_cpu=True,
)
trainer = {"Trainer": Trainer, "CardTrainer": CardTrainer}[name](
    head.build(), arguments, train_dataset=rows, processing_class=BertTokenizer.from_pretrained("words"),
    callbacks=[Wait()],
)
trainer.train()
trainer.push_to_hub()
"""

CARDS = """
import sys
from huggingface_hub import ModelCard

for name in sys.argv[1:]:
    card = ModelCard.load(f"{name}.md")
    card.validate()
    card.push_to_hub(f"me/{name}")
"""

LOAD = """
import json, sys
sys.modules["hf_rope"] = None  # makes it impossible to import
import torch, transformers

inputs, results = torch.load("inputs.pt"), []
for repo, revision, head, auto in json.loads(sys.argv[1]):
    try:
        model = getattr(transformers, auto).from_pretrained(repo, revision=revision, trust_remote_code=True)
    except OSError as error:
        results.append(str(error))
        continue
    assert type(model).__module__.startswith("transformers_modules.")
    results.append(model(**inputs[head]).to_tuple())
for repo in sys.argv[2:]:
    for trust in (True, False):
        tokenizer = transformers.AutoTokenizer.from_pretrained(repo, trust_remote_code=trust)
        results.append(tokenizer("the cat playing")["input_ids"])
torch.save(results, "results.pt")
"""


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub
    assert not hub.unknown


class Client:
    """Runs commands in processes of their own, with a token and a cache that holds nothing yet."""

    def __init__(self, hub: Hub, folder: Path):
        self.hub, self.folder, self.runs = hub, folder, 0

    def run(self, *command, token: str | None = WRITE_TOKEN) -> subprocess.CompletedProcess:
        self.runs += 1
        own = {"HF_ENDPOINT": self.hub.url, "HF_HOME": str(self.folder / f"home-{self.runs}")}
        own |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        own |= {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
        own |= {"HF_TOKEN": token} if token else {}
        outer = {
            name: value
            for name, value in os.environ.items()
            if not re.search("^HF_|^TRANSFORMERS_|_proxy$", name, re.I)
        }
        command = [sys.executable, *map(str, command)]
        return subprocess.run(command, env={**outer, **own}, cwd=self.folder, capture_output=True, text=True)

    def push(self, *rows, tokenizers=(), **more) -> subprocess.CompletedProcess:
        """`push_to_hub` of models, by repository, head and case, and of the tokenizer."""
        return self.run("-c", PUSH, json.dumps(rows), *tokenizers, **more)

    def hf(self, *arguments, **more) -> subprocess.CompletedProcess:
        """The `hf` command."""
        return self.run("-c", HF, *arguments, **more)

    def upload(self, folder: Path, **more) -> subprocess.CompletedProcess:
        return self.hf("upload", REPO, folder, **more)

    def load(self, *rows, tokenizers=()) -> list:
        """`from_pretrained` where the package is not, of models by repository, revision and head, and of tokenizers.

        Returns the models' outputs for their heads' batches, or the error of a missing one, and the ids of a text, with
        the tokenizer's configuration trusted and not.
        """
        torch.save({name: head.batch() for name, head in HEADS.items()}, self.folder / "inputs.pt")
        asked = [(repo, revision, head, HEADS[head].auto) for repo, revision, head in rows]
        succeed(self.run("-I", "-c", LOAD, json.dumps(asked), *tokenizers, token=READ_TOKEN))
        return torch.load(self.folder / "results.pt")


@pytest.fixture
def client(hub, tmp_path) -> Client:
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\ncat\nplay\n##ing\n")
    BertTokenizer.from_pretrained(tmp_path / "words").save_pretrained(tmp_path / "words")
    return Client(hub, tmp_path)


def succeed(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, done.stderr[-3000:]


def fail(done: subprocess.CompletedProcess, sentence: str) -> None:
    assert done.returncode != 0
    assert sentence in done.stdout + done.stderr


def output(model, head: str) -> tuple:
    return model(**HEADS[head].batch()).to_tuple()


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


def test_what_trainer_pushes_loads_without_the_package_and_gives_the_same(hub, client):
    succeed(client.run("-c", TRAIN, REPO, "Trainer", "every_save"))
    files = hub.repos[REPO][-1].files
    assert_complete(files)
    assert b"# model" in files["README.md"]
    result, *ids = client.load((REPO, None, "masked-lm"), tokenizers=[REPO])
    assert ids == [[2, 5, 6, 7, 8, 3]] * 2
    close(result, output(AutoModelForMaskedLM.from_pretrained(client.folder / "trained"), "masked-lm"))
    assert "modeling_hf_rope.py" not in first_trained(hub).files, "transformers has learned it: say so in the README"


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_the_revisions_that_card_trainer_pushes_in_between_load_without_the_package(strategy, hub, client):
    succeed(client.run("-c", TRAIN, REPO, "CardTrainer", strategy))
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
    succeed(client.run("-c", CARDS, *hf_rope.SCHEMES))
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
