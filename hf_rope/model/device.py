"""What depends on the device: where values of tensors may be read, and how autocast is turned off."""

from contextlib import AbstractContextManager, nullcontext

import torch
from transformers.utils.import_utils import is_tracing


def reads_are_free(x: torch.Tensor) -> bool:
    """Whether a value of x, or a size that depends on values, can be read, and costs nothing.

    On an accelerator a read waits for all work before it; while a graph is traced, inside `torch.func` and on the meta
    device there is nothing to read. Everything that looks at values asks here, and has a form that does not look.
    """
    # That torch.func is at work is asked of torch by a private name; without it, gradients a sample stop at a read.
    return x.device.type == "cpu" and not is_tracing(x) and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def without_autocast(x: torch.Tensor) -> AbstractContextManager:
    """Inside it what is computed on x's device keeps its dtype; the meta device has no autocast."""
    # By name: asking torch which devices have autocast breaks the graph of torch.compile before torch 2.12.
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def made_on(device: torch.device) -> AbstractContextManager:
    """Inside it new tensors are made there at once: a copy to an accelerator would wait for its work to end."""
    return nullcontext() if torch.compiler.is_compiling() else device
