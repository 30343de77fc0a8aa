"""train_sentence_embeddings.py."""

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer

import train_sentence_embeddings
from scripts import SCORES, TINY


def test_sentence_embeddings_are_trained_saved_and_loaded(checkpoint, finetune, tmp_path):
    rows = [{"sentence1": row["first"], "sentence2": row["second"], "label": row["score"]} for row in SCORES]
    results = finetune(train_sentence_embeddings, rows)
    assert set(results) == {"validation", "test"}
    before, texts = train_sentence_embeddings.build(str(checkpoint), 128), [row["first"] for row in SCORES]
    after = SentenceTransformer(str(tmp_path / "out"), trust_remote_code=True)
    assert after.encode(texts).shape == (4, TINY["hidden_size"])
    assert not np.allclose(after.encode(texts), before.encode(texts))
    pairs = train_sentence_embeddings.scale({"train": Dataset.from_list(rows)}, "label")["train"]
    assert pairs["score"][:] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    found = train_sentence_embeddings.correlations(after, pairs)
    assert results["test"]["spearman"] == pytest.approx(found["spearman"])
    found = train_sentence_embeddings.correlations(before, pairs)
    assert results["test"]["spearman_before"] == pytest.approx(found["spearman"])


def test_one_score_for_all_pairs_is_refused(finetune, tmp_path):
    with pytest.raises(SystemExit, match=r"All training rows have .* 1"):
        finetune(train_sentence_embeddings, [{"sentence1": "a", "sentence2": "b", "label": 1}])
    assert not (tmp_path / "out").exists()
