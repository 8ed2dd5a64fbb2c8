"""Where torch computes."""

from __future__ import annotations

import multiprocessing

from parbake.errors import RecipeError, one_line


def usable_device(wanted: str, producer: str) -> str:
    """``wanted`` where torch can use it here; "auto": CUDA if present, each pool worker another one.

    Raises RecipeError naming ``producer``. Untested on a GPU.
    """
    import torch

    if wanted == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        identity = multiprocessing.current_process()._identity  # (), or the number of a worker from 1
        return f"cuda:{(identity[0] - 1) % torch.cuda.device_count()}" if identity else "cuda"
    try:
        torch.empty(0, device=wanted)
    except (AssertionError, RuntimeError) as error:  # what torch raises without that backend or number
        text = one_line(error)[:120]
        raise RecipeError(f"{producer}: device: {wanted!r} cannot be used here: {text}") from error
    return wanted
