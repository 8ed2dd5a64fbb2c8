"""The settings of torch under which a teacher runs, whatever the rest of the process has set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def teacher_settings(on_cuda: bool) -> Iterator[None]:
    """On the CPU one thread; on CUDA full float32. What was set before is set again at the end.

    A step of a small recurrent layer is too short to share: two threads gain a third at best, and lose
    a factor of forty where another process wants the cores (pool workers do). More cores are better
    used by more processes. TensorFloat-32, cuDNN's default and a common setting for matrix products,
    would leave three digits of a float32 computation.
    """
    import torch

    with contextlib.ExitStack() as stack:
        if on_cuda:
            flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
            stack.enter_context(flags)
            products = torch.backends.cuda.matmul
            # torch 2.9 renamed the setting, and reading the old name raises where the new one was used
            name, exact = ("fp32_precision", "ieee") if _has_precision() else ("allow_tf32", False)
            stack.callback(setattr, products, name, getattr(products, name))
            setattr(products, name, exact)
        else:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        yield


def _has_precision() -> bool:
    import torch

    return hasattr(torch.backends.cuda.matmul, "fp32_precision")
