"""What all fine-tuning scripts do alike."""

import pytest

import finetune_choice
import finetune_classification
import finetune_qa
import finetune_regression
import finetune_tokens
import train_sentence_embeddings

SCRIPTS = [
    finetune_choice,
    finetune_classification,
    finetune_qa,
    finetune_regression,
    finetune_tokens,
    train_sentence_embeddings,
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_folder_that_is_not_empty_is_refused(script, finetune, tmp_path):
    with pytest.raises(SystemExit, match="already holds something: name another --output_dir"):
        finetune(script, [{"text": "a"}], "--output_dir", tmp_path)
