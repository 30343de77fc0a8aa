"""training_precision: bfloat16 where this machine computes it itself."""

from typing import Any

import torch


def computes_bfloat16(device: str) -> bool:
    """Whether a "cpu" or "cuda" of this machine computes bfloat16 itself, as PyTorch knows it; others emulate it."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is ARM's


def training_precision() -> dict[str, Any]:
    """TrainingArguments for bfloat16 where this machine computes it itself; else none."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not computes_bfloat16(device):
        return {}
    return {"bf16": True} if device == "cuda" else {"bf16": True, "use_cpu": True}
