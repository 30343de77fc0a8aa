"""training_precision: bfloat16 where this machine computes it itself."""

from typing import Any

import torch


def training_precision() -> dict[str, Any]:
    """TrainingArguments for bfloat16 where this machine computes it itself, as PyTorch knows it; else none."""
    if torch.cuda.is_available():
        return {"bf16": True} if torch.cuda.is_bf16_supported(including_emulation=False) else {}
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is ARM's
    return {"bf16": True, "use_cpu": True} if native else {}
