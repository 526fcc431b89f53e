"""FSDP2: each process owns a slice of every trainable parameter; see `bgpo.training.sharing` for the whole.

torch's fully_shard cuts along the first dimension. Its own schedule, gathering and freeing layer by layer and reducing
in each backward pass, is switched off: the model is gathered once after each update.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from bgpo.models import Policy
from bgpo.training.cluster import Cluster, exchanging


class Sharded:
    """Each process owns a slice of every trainable parameter."""

    sharded = True

    def __init__(self, policy: Policy, cluster: Cluster) -> None:
        self.cluster = cluster
        self._policy = policy
        model = policy.model
        mesh = init_device_mesh(policy.device.type, (cluster.size,))
        frozen = {p for p in model.parameters() if not p.requires_grad}
        for module in (*model.blocks, model):
            fully_shard(module, mesh=mesh, reshard_after_forward=False, ignored_params=frozen)
        self._units = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for unit in self._units:
            unit.set_force_sum_reduction_for_comms(True)  # with factor 1: the sum, where FSDP's own is the mean
            unit.set_gradient_divide_factor(1.0)
        root = self._units[0]
        root.set_reshard_after_backward(False)
        root.set_requires_gradient_sync(False)
        self._root = root
        self._shards = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = {name: nn.Parameter(_local(shard)) for name, shard in self._shards.items()}
        self._gather()
        for module in model.modules():
            # FSDP would divide the model for its state dict; here it is whole whenever somebody reads its weights.
            module._state_dict_pre_hooks.clear()

    def reduce(self) -> None:
        """One more pass, of a single token and of weight zero, in which FSDP reduces what has been accumulated.

        Every process makes it, so every parameter takes part everywhere, whatever passes there were before.
        """
        self._root.set_requires_gradient_sync(True)
        with torch.enable_grad(), exchanging():
            token_11 = torch.full((1, 1), self._policy.end_ids[0], device=self._policy.device)
            hidden_11D = self._policy.model(token_11, None)
            (self._policy.model.logits(hidden_11D[0]).sum() * 0 + hidden_11D.sum() * 0).backward()
        self._root.set_requires_gradient_sync(False)
        for name, shard in self._shards.items():
            self.parameters[name].grad = None if shard.grad is None else _local(shard.grad)

    def total(self, values: Tensor) -> Tensor:
        return self.cluster.sum(values)

    def slice(self, name: str, whole: Tensor) -> Tensor:
        parts = whole.chunk(self.cluster.size)
        return parts[self.cluster.rank] if self.cluster.rank < len(parts) else whole[:0]

    def publish(self) -> None:
        for unit in self._units:
            unit.reshard()
        self._clear(self._shards, self.parameters)
        self._gather()

    def discard(self) -> None:
        self._root.reset_iter_state()  # a pass that ran out of memory has left FSDP in the middle of it
        self._clear(dict(self._policy.model.named_parameters()), self._shards, self.parameters)

    def _gather(self) -> None:
        with exchanging():
            for unit in self._units:
                unit.unshard()

    @staticmethod
    def _clear(*groups: dict[str, nn.Parameter]) -> None:
        for group in groups:
            for parameter in group.values():
                parameter.grad = None


def _local(tensor: Tensor) -> Tensor:
    """The part that this process owns, sharing its memory."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local().detach()
