"""Two accelerators that are not there: tensors that say they lie on one, and refuse to meet those of the other.

A `Placed` tensor holds an ordinary one and reports device "lazy:0" or "lazy:1" ("lazy" is a device type that PyTorch
knows and that has no kernels here). Every operation is checked as an accelerator checks it and then computed on the
CPU, so that results and gradients are those of the CPU, `x.device` and `x.to(device)` mean what they say, and a tensor
that nobody moved raises. What moves them is the code under test: accelerate's hooks, and the model itself.
"""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

KIND = "lazy"
MOVES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)
CONJUGATES = {torch.ops.aten._conj.default: torch.ops.aten._conj_physical.default}
"""A lazy conjugate is a flag on a tensor, and the outer one's flag would never reach the one that it holds."""
TAKES_CPU_INDICES = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)


class Placed(torch.Tensor):
    """A tensor on one of the two devices."""

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )

    def __init__(self, held: torch.Tensor, device: torch.device):
        self.held = held

    def __repr__(self):
        return f"Placed({self.held}, device={self.device})"

    def tolist(self):
        return self.held.tolist()  # PyTorch's own knows no subclass

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class Operations(TorchDispatchMode):
    """Takes every operation, also those without a placed argument: `torch.arange(4, device="lazy:1")`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class Constructor(TorchFunctionMode):
    """`torch.tensor(numbers, device="lazy:1")`, which is the one way to a tensor that goes around `Operations`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") is not None:
            return func(*args, **{**kwargs, "device": None}).to(kwargs["device"])
        return func(*args, **kwargs)


@contextmanager
def two_devices():
    """Within it, "lazy:0" and "lazy:1" can be asked for."""
    with Constructor(), Operations():
        yield


def compute(func, args, kwargs):
    """The operation on the CPU, its result on the device of its arguments, or on the one that is asked for."""
    func = CONJUGATES.get(func, func)
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    check(func, args, tensors)
    asked = kwargs.get("device")
    device = torch.device(asked) if asked is not None else next((x.device for x in tensors if is_placed(x)), None)
    result = func(*tree_map(on_cpu, args), **tree_map(on_cpu, kwargs))
    if device is None or device.type != KIND:
        return result
    result = tree_map(lambda x: Placed(x, device) if isinstance(x, torch.Tensor) else x, result)
    return return_and_correct_aliasing(func, args, kwargs, result)


def check(func, args, tensors: list[torch.Tensor]) -> None:
    """Raises RuntimeError for tensors of several devices, but for copies and what accelerators take from the CPU."""
    if func.overloadpacket in MOVES:
        return
    if func.overloadpacket in TAKES_CPU_INDICES and is_placed(args[0]):
        tensors = [x for x in tensors if is_placed(x)]
    devices = sorted({str(x.device) for x in tensors if x.ndim or is_placed(x)})
    if len(devices) > 1:
        raise RuntimeError(f"{func}: tensors on {' and '.join(devices)}")


def is_placed(x) -> bool:
    return isinstance(x, Placed)


def on_cpu(x):
    """What the CPU computes with, in the place of an argument."""
    if isinstance(x, torch.device) and x.type == KIND:
        return torch.device("cpu")
    return x.held if is_placed(x) else x
