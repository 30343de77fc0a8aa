"""What a model under new positions can begin with instead of nothing."""

from typing import Any

import torch


@torch.no_grad()
def keep_mean_position(student: Any, teacher: Any, length: int) -> None:
    """Adds to each token of the student the mean of what the teacher's positions add to embeddings, and its do not.

    The layers then begin near to the states that they were trained on, rather than a constant vector away. It goes
    into the token types, or where there are none into all words, whose scores in a masked-LM head then differ by one
    number for all.

    Args:
        student, teacher: encoders that differ in their positions alone.
        length: the mean is over so many positions.
    """
    shift = mean_position(teacher, length) - mean_position(student, length)
    embeddings = student.embeddings
    table = embeddings.token_type_embeddings
    if table is None:
        table = embeddings.word_embeddings
        shift = shift / getattr(table, "embed_scale", 1.0)
    table.weight += shift


def mean_position(encoder: Any, length: int) -> torch.Tensor:
    """(embedding_size,): the mean of what positions add to embeddings; zeros where they add nothing."""
    nothing = torch.zeros(1, length, encoder.config.embedding_size)
    return encoder.position.embed(nothing, torch.arange(length)[None]).mean((0, 1))
