"""Whether a layer's weight may be used without calling the layer."""

from torch import nn


def is_bare(module: nn.Module, kind: type) -> bool:
    """Whether the module is of that class itself, and nothing stands between its weight and its call.

    An adapter (PEFT), a quantised layer or a hook (accelerate's offloading) does: it has to be called.
    """
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is kind and not any(hooks) and "forward" not in vars(module)
