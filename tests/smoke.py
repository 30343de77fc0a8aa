"""A script for an environment that has the package and nothing of its checkout: what a newcomer does first, offline.

python -I tests/smoke.py
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForMaskedLM, Trainer, TrainingArguments

import hf_rope
from hf_rope.card import create_card

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def main(folder: Path) -> None:
    assert Path(hf_rope.__file__).is_relative_to(sys.prefix), f"{hf_rope.__file__} is not the installed package."
    command = Path(sys.executable).with_name("hf-rope")
    assert "to-native" in subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    models = {}
    for scheme in hf_rope.SCHEMES:
        models[scheme] = AutoModelForMaskedLM.from_config(hf_rope.HfRopeConfig(**SIZES, position_embedding_type=scheme))
        train(models[scheme], folder / scheme)
        models[scheme].eval().save_pretrained(folder / scheme)
        create_card(models[scheme]).save(folder / scheme / "README.md")
    load_without_package(models, folder)
    print(f"hf_rope {hf_rope.__version__}: {len(models)} schemes trained, saved, described and loaded.")


def train(model, folder: Path) -> None:
    """Five steps of the stock Trainer."""
    data = [{"input_ids": ids, "labels": ids} for ids in torch.randint(5, 99, (20, 8))]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=5,
        per_device_train_batch_size=4,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
    )
    before = model.get_input_embeddings().weight.clone()
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.train()
    assert trainer.state.global_step == 5
    assert not torch.equal(before, model.get_input_embeddings().weight)


def load_without_package(models: dict, folder: Path) -> None:
    """By the code in the folders, in a process where hf_rope cannot be imported: the same outputs."""
    batch = {"input_ids": torch.randint(5, 99, (2, 8))}
    files = {"inputs": str(folder / "inputs.pt"), "results": str(folder / "results.pt")}
    torch.save({"masked-lm": batch, "encoder": batch}, files["inputs"])
    same = {"auto": "AutoModelForMaskedLM", "head": "masked-lm", "trust": True, "settings": {}, "resave": None}
    rows = [{"source": str(folder / scheme), **same} for scheme in models]
    (folder / "job.json").write_text(json.dumps({**files, "package": "absent", "rows": rows}))
    script = Path(__file__).with_name("fresh_process.py")
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules")}
    subprocess.run([sys.executable, "-I", script, folder / "job.json"], env=environment, check=True)
    for model, found in zip(models.values(), torch.load(files["results"]), strict=True):
        assert found["module"].startswith("transformers_modules."), found["module"]
        with torch.no_grad():
            torch.testing.assert_close(found["output"], model(**batch).to_tuple())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
