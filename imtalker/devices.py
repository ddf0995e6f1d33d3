"""Where a model runs, and in which numbers."""

from __future__ import annotations

import torch

from .errors import InputError

# In what networks compute. Synthesis may differ, see `painting_type`
PRECISIONS = {
    "float32": torch.float32,
    "mixed": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def choose_device(device: str | torch.device) -> torch.device:
    """The device for "auto", "cpu", "cuda", "cuda:1", "mps" or a torch.device. Raises InputError if it is not there."""
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError(f"device {device!r} is not known: auto, cpu, cuda or mps expected") from None
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device {device!r} is not supported: auto, cpu, cuda or mps expected")
    there = {
        "cpu": lambda: (chosen.index or 0) == 0,
        "cuda": lambda: torch.cuda.is_available() and (chosen.index or 0) < torch.cuda.device_count(),
        "mps": lambda: torch.backends.mps.is_available(),
    }[chosen.type]()
    if not there:
        raise InputError(f"device {str(device)!r} is not there (to this PyTorch): take auto or cpu")
    return chosen


def choose_precision(precision: str, device: torch.device, copies: bool = False) -> str:
    """One of PRECISIONS for "auto" or one of them. copies: whether the renderer copies pixels."""
    if precision not in ("auto", *PRECISIONS):
        raise InputError(f"precision {precision!r} is not known: auto, {', '.join(PRECISIONS)} expected")
    if precision == "float16" and device.type == "cpu":
        raise InputError("precision 'float16' is many times slower than float32 on a CPU: take float32 or bfloat16")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        halves = torch.cuda.is_bf16_supported()
    else:
        halves = device.type == "cpu" and copies and multiplies_bfloat16()
    return ("mixed" if copies else "bfloat16") if halves else "float32"


def multiplies_bfloat16() -> bool:
    """Whether this CPU has a unit for matrices of bfloat16 (AMX)."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # older PyTorch does not tell
    return capabilities.get("amx_bf16", False)


def painting_type(precision: str, device: torch.device) -> torch.dtype:
    """In what synthesis runs. It adds up many layers: bfloat16's seven bits are too few for it, except where most of a
    frame is copied from the picture."""
    if precision in ("float32", "float16"):
        return PRECISIONS[precision]
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if precision == "mixed" else torch.float32
