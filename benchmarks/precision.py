"""The precisions that are measured: what is done to a model before it runs, and around its runs."""

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

Run = Callable[[], object]


class Precision:
    """float32 weights and computation, and the base of the others."""

    name = "float32"

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model as it is run; may be the one that was given, changed."""
        return model

    def context(self) -> AbstractContextManager:
        """What forward and loss are computed in."""
        return nullcontext()

    def forward(self, model: nn.Module, *arguments, **inputs) -> Run:
        """A forward in eval mode of a model that is prepared."""

        def run():
            with torch.no_grad(), self.context():
                return model(*arguments, **inputs)

        return run

    def step(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> Run:
        """Forward, backward and fused AdamW of a masked-LM step; 15% of real tokens, if none are labelled."""
        model.train()
        update = self.optimize([*model.parameters()])
        ids = batch["input_ids"]
        chosen = (torch.rand(ids.shape, generator=torch.Generator().manual_seed(0)) < 0.15).to(ids.device) & (ids > 0)
        inputs = {"labels": ids.masked_fill(~chosen, -100), **batch}

        def run():
            model.zero_grad()
            with self.context():
                loss = model(**inputs).loss
            loss.backward()
            update()
            return loss

        return run

    def optimize(self, parameters: list[nn.Parameter]) -> Run:
        return torch.optim.AdamW(parameters, lr=1e-6, fused=True).step


class Autocast(Precision):
    """float32 weights, cast at each use: `Trainer(bf16=True)`."""

    name = "autocast"

    def __init__(self, device: str = "cpu"):
        self.device = device

    def context(self):
        return torch.autocast(self.device, torch.bfloat16)


class Bfloat16(Precision):
    """bfloat16 weights and computation; in training the optimizer keeps and updates float32 copies of the weights."""

    name = "bfloat16"

    def prepare(self, model):
        return model.bfloat16()

    def forward(self, model, *arguments, **inputs):
        return super().forward(model, *(x.bfloat16() for x in arguments), **inputs)

    def optimize(self, parameters):
        masters = [nn.Parameter(x.detach().float()) for x in parameters]
        optimizer = torch.optim.AdamW(masters, lr=1e-6, fused=True)

        def update():
            for master, x in zip(masters, parameters, strict=True):
                master.grad = None if x.grad is None else x.grad.float()
            optimizer.step()
            with torch.no_grad():
                torch._foreach_copy_(parameters, masters)

        return update


class Int8(Precision):
    """Linear layers with int8 weights, their inputs quantised as they come; forwards only."""

    name = "int8"

    def prepare(self, model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)


PRECISIONS = {precision.name: precision for precision in (Precision(), Bfloat16(), Autocast(), Int8())}
