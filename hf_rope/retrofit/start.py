"""What a model under new positions can keep of those that its source adds to the embeddings."""

from typing import Any

import torch


@torch.no_grad()
def keep_positions(student: Any, teacher: Any, length: int, first_token: int | None) -> None:
    """Adds to the student's tokens what the teacher's positions add to embeddings and its own do not, on average.

    The layers then begin near to the states that they were trained on, rather than a constant vector away. The mean
    goes into the token types, or where there are none into all words, whose scores in a masked-LM head then differ by
    one number for all. The token that begins every text gets what its place adds.

    Args:
        student, teacher: encoders that differ in their positions alone.
        length: the mean is over so many places, but the first.
        first_token: the id that begins every text, such as [CLS]; None where there is none.
    """
    added = position_vectors(teacher, length) - position_vectors(student, length)
    mean, embeddings = added[1:].mean(0), student.embeddings
    words, types = embeddings.word_embeddings, embeddings.token_type_embeddings
    scale = getattr(words, "embed_scale", 1.0)
    if types is None:
        words.weight += mean / scale
    else:
        types.weight += mean
    if first_token is not None:
        words.weight[first_token] += (added[0] - mean) / scale


def position_vectors(encoder: Any, length: int) -> torch.Tensor:
    """(length, embedding_size): what positions add to embeddings; zeros where they add nothing."""
    nothing = torch.zeros(1, length, encoder.config.embedding_size)
    return encoder.position.embed(nothing, torch.arange(length)[None])[0]
