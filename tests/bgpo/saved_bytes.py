"""Counting what autograd keeps for its backward pass."""

from __future__ import annotations

import weakref

from torch import Tensor

from bgpo.models import Policy


class Packed:
    """A saved tensor; freed when autograd lets go of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class SavedBytes:
    """Counts the bytes autograd holds for backward, now and at most. Weights are in memory anyway and do not count.

    Use: `torch.autograd.graph.saved_tensors_hooks(count.pack, lambda packed: packed.tensor)`.
    """

    def __init__(self, policy: Policy) -> None:
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in policy.model.parameters()}
        self.held = self.peak = 0

    def pack(self, tensor: Tensor) -> Packed:
        packed = Packed(tensor)
        if tensor.untyped_storage().data_ptr() not in self.weights:
            self.held += tensor.nbytes
            self.peak = max(self.peak, self.held)
            weakref.finalize(packed, self._release, tensor.nbytes)
        return packed

    def _release(self, count: int) -> None:
        self.held -= count
