"""The device, its memory and its clock, with or without CUDA; and the random model that is measured."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.sizes import Sizes
from bgpo.models import Policy
from bgpo.models.llada import LLaDAModel
from bgpo.models.scratch import byte_tokenizer


def device() -> torch.device:
    """CUDA where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def release() -> None:
    """Give freed memory back, so that what is measured next starts clean."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Most memory allocated since `release`; without CUDA the process's high-water mark, which never falls."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def allocated_bytes() -> int | None:
    """Memory in use; None without CUDA."""
    return int(torch.cuda.memory_allocated()) if torch.cuda.is_available() else None


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of work, with what it left running on the device."""
    _synchronize()
    start = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def random_policy(sizes: Sizes, dtype: torch.dtype) -> Policy:
    """A LLaDA of the given shape with random weights, made on the device.

    Its tokenizer is for show: prompts are token ids.
    """
    with torch.device("meta"):
        model = LLaDAModel.from_config(sizes.model)
    model = model.to(dtype).to_empty(device=device())
    generator = torch.Generator(device()).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02, generator=generator)
    mask = sizes.model["mask_token_id"]
    return Policy(model.requires_grad_(True).eval(), byte_tokenizer(), {}, Path(), mask, (mask - 1,))


def random_tokens(sizes: Sizes, length: int, seed: int) -> list[int]:
    """Token ids without mask and end token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, sizes.model["mask_token_id"] - 1, (length,), generator=generator).tolist()
