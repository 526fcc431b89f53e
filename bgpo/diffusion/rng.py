"""Counter-based randomness: every draw is a pure function of what it is for.

A stream is named by a 64-bit key hashed from (seed, purpose, step, prompt, sample, ...); its n-th number is the n-th
output of SplitMix64 (Steele, Lea, Flood 2014) started at that key. Nothing is stateful: a resumed run draws what an
uninterrupted one would have drawn, and results do not depend on how rows are batched. Works on tensors of any device,
in int64 arithmetic that wraps.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


class Purpose(IntEnum):
    """What a stream of random numbers is for; never renumber, resumed runs depend on it."""

    ROLLOUT = 1
    ELBO = 2
    EVALUATION = 3
    SUPERVISED = 4
    DATA_ORDER = 5
    GENERATE = 6
    PROMPT_MASK = 7
    PREFERENCE = 8


def _mix(x: Tensor) -> Tensor:
    # int64 `>>` is arithmetic, so the copied sign bits are masked off.
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX_1
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def stream_keys(seed: int, purpose: Purpose, *parts: int | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Hash a stream's name to an int64 key. Tensor parts broadcast: the result has their common shape."""
    return substreams(torch.tensor(seed, dtype=torch.int64, device=device), int(purpose), *parts)


def substreams(keys: Tensor, *parts: int | Tensor) -> Tensor:
    """Derive independent streams from streams, one for each (broadcast) value of the parts."""
    for part in parts:
        value = torch.as_tensor(part, dtype=torch.int64, device=keys.device)
        keys = _mix(_mix(keys + _GOLDEN) ^ (value * _MIX_2 + _GOLDEN))
    return keys


def uniform(keys: Tensor, count: int) -> Tensor:
    """The first `count` numbers of each stream: keys (...) -> float64 (..., count) strictly inside (0, 1)."""
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device)
    bits = _mix(keys.unsqueeze(-1) + counter * _GOLDEN)
    # 52 bits and a half: one bit more would round the largest number up to 1, where Gumbel noise is infinite.
    return ((bits >> 12) & 0xFFFFFFFFFFFFF).to(torch.float64).add_(0.5).mul_(2.0**-52)


def gumbel(keys: Tensor, count: int) -> Tensor:
    """Standard Gumbel noise, float64 (..., count): -log(-log u).

    Double precision because low-precision noise distorts the draw: in bfloat16 a token of probability 0.5 is drawn
    about 98 % of the time.
    """
    return uniform(keys, count).log_().neg_().log_().neg_()
