"""Where values of tensors may be read: the one choice by device of the whole model."""

import torch
from transformers.utils.import_utils import is_tracing


def reads_are_free(x: torch.Tensor) -> bool:
    """Whether a value of x, or a size that depends on values, can be read, and costs nothing.

    On an accelerator a read waits for all work before it; while a graph is traced, under `torch.vmap` and on the meta
    device there is nothing to read. Everything that looks at values asks here, and has a form that does not look.
    """
    # The only question about vmap that torch answers is private; without it a per-sample gradient stops at a read.
    return x.device.type == "cpu" and not is_tracing(x) and not torch._C._functorch.is_batchedtensor(x)
