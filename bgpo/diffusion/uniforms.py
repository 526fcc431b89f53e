"""The uniform numbers of which masks are made, and random sets of positions made of them.

An estimator is a pure function of these numbers (`bgpo.diffusion.estimators`), so its law can be checked by going
through all of them. Every sample has a stream of its own and every row one more; a level comes first and then one
number for each position, so that the padding a batch brings changes no row's masks.

Shapes: N rows, n samples, L the padded response length, m any number of orders a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bgpo.diffusion.rng import substreams, uniform

_ROW = -1
"""Index of the row's own stream beside its samples 0, 1, ..."""


@dataclass(frozen=True)
class Uniforms:
    """Independent uniform numbers on (0, 1), float64, for N rows of the given lengths."""

    lengths_N: Tensor
    row_level_N1: Tensor
    row_order_NL: Tensor
    level_Nn: Tensor
    order_NnL: Tensor

    @classmethod
    def drawn(cls, keys_N: Tensor, lengths_N: Tensor, max_length: int, n_samples: int) -> Uniforms:
        """From the rows' streams; lengths are at least 1 and at most max_length."""
        streams = torch.arange(_ROW, n_samples, device=keys_N.device)
        numbers = uniform(substreams(keys_N[:, None], streams), max_length + 1)
        row, samples = numbers[:, 0], numbers[:, 1:]
        return cls(lengths_N, row[:, :1], row[:, 1:], samples[..., 0], samples[..., 1:])

    @property
    def n_samples(self) -> int:
        return self.level_Nn.shape[1]

    @property
    def lengths_N1(self) -> Tensor:
        """Lengths as float64 (N, 1), for arithmetic with levels."""
        return self.lengths_N[:, None].double()

    def inside_N1L(self) -> Tensor:
        """True at the positions a row has."""
        positions = torch.arange(self.order_NnL.shape[-1], device=self.lengths_N.device)
        return positions < self.lengths_N[:, None, None]

    def stratified_Nn(self) -> Tensor:
        """Each sample's level in its own n-th of (0, 1)."""
        stratum_n = torch.arange(self.n_samples, dtype=torch.float64, device=self.level_Nn.device)
        return (stratum_n + self.level_Nn) / self.n_samples

    def ranks(self, order_NmL: Tensor) -> Tensor:
        """A uniformly random order of each row's positions: ranks 0 to length - 1; higher beyond the row."""
        return order_NmL.masked_fill(~self.inside_N1L(), 2.0).argsort(-1).argsort(-1)

    def subsets(self, count_Nn: Tensor) -> Tensor:
        """For each sample its own uniformly random set of `count` positions, 0 to length: masks (N, n, L)."""
        return self.ranks(self.order_NnL) < count_Nn[..., None]
