"""huggingface_hub's own client against the Hub: each command runs in a process of its own, with an empty cache."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from heads import HEADS
from hub.server import READ_TOKEN, WRITE_TOKEN, Hub

TESTS = Path(__file__).parents[1]
REPO = "me/model"

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

    def push_cards(self, *names: str) -> subprocess.CompletedProcess:
        """Pushes the card in each file NAME.md to the repository me/NAME."""
        return self.run("-c", CARDS, *names)

    def train(self, trainer: str, strategy: str) -> subprocess.CompletedProcess:
        """Two steps of a masked LM with a `Trainer` or a `CardTrainer`, which pushes as its `hub_strategy` says."""
        return self.run("-c", TRAIN, REPO, trainer, strategy)

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


def succeed(done: subprocess.CompletedProcess) -> None:
    assert done.returncode == 0, done.stderr[-3000:]


def fail(done: subprocess.CompletedProcess, sentence: str) -> None:
    assert done.returncode != 0
    assert sentence in done.stdout + done.stderr
