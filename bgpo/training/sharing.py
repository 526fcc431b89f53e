"""How the processes of a run share the parameters, and how their gradients become one.

`Replicated` ("ddp", and a run of one process): every process holds all parameters and all of the optimizer's state.
`Sharded` ("fsdp2"): torch's fully_shard. Each process owns a slice of every trainable parameter along its first
dimension, with the float32 master copy and the optimizer's state of that slice only.

Between two optimizer steps the whole model lies gathered on every process, and backward passes only accumulate
locally. So a process may run any number of forward and backward passes, also none, without another waiting for it:
prompts without signal, responses of different lengths and unequal shares need no padding with idle passes.
DistributedDataParallel's hooks, and FSDP's in their usual mode, would pair the passes of the processes and hang. There
is one exchange of gradients an optimizer step.

The price under "fsdp2" is memory for the whole model and its gradient during the step; what is saved is the optimizer's
state and, without LoRA, the master copy. Frozen parameters (LoRA) stay whole everywhere.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from bgpo.errors import ModelError
from bgpo.models import Policy
from bgpo.training.cluster import Cluster

BUCKET_BYTES = 64 * 2**20
"""Gradients are summed in flat pieces of about this size: few messages, little extra memory."""


class Sharing(Protocol):
    """What the optimizer needs to know of the parameters."""

    cluster: Cluster
    parameters: dict[str, nn.Parameter]
    """This process's part of each trainable parameter, by the name in the whole model."""
    sharded: bool

    def reduce(self) -> None:
        """Put into `parameters` the gradients summed over the processes. Collective."""
        ...

    def total(self, values: Tensor) -> Tensor:
        """Sum over the parts of the parameters: what each process found in its own becomes that of the whole."""
        ...

    def slice(self, name: str, whole: Tensor) -> Tensor:
        """This process's part of a tensor that is divided like the parameter of that name."""
        ...

    def publish(self) -> None:
        """Let the model compute with the updated parameters, without gradients. Collective."""
        ...

    def discard(self) -> None:
        """Drop the accumulated gradients."""
        ...


class Replicated:
    """Every process holds everything."""

    sharded = False

    def __init__(self, model: nn.Module, cluster: Cluster) -> None:
        self.cluster = cluster
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def reduce(self) -> None:
        if self.cluster.size == 1:
            return
        for bucket in _buckets(list(self.parameters.values())):
            # A process without any backward pass still takes part, with zeros.
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = self.cluster.sum(torch.cat([grad.flatten() for grad in grads]))
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter)

    def total(self, values: Tensor) -> Tensor:
        return values

    def slice(self, name: str, whole: Tensor) -> Tensor:
        return whole

    def publish(self) -> None:
        self.discard()

    def discard(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None


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
        with torch.enable_grad():
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
        for unit in self._units:
            unit.unshard()

    @staticmethod
    def _clear(*groups: dict[str, nn.Parameter]) -> None:
        for group in groups:
            for parameter in group.values():
                parameter.grad = None


def share(policy: Policy, cluster: Cluster, how: Literal["ddp", "fsdp2"]) -> Sharing:
    """Share a policy's parameters, after checking that every process starts from the same ones.

    Raises:
        ModelError: the processes have loaded different weights.
    """
    print_ = sum(float(p.detach().double().sum()) for p in policy.model.parameters())
    if len(set(cluster.gather([repr(print_)]))) > 1:
        raise ModelError("the processes of the run have loaded different weights", "model")
    return Sharded(policy, cluster) if how == "fsdp2" and cluster.size > 1 else Replicated(policy.model, cluster)


def _local(tensor: Tensor) -> Tensor:
    """The part that this process owns, sharing its memory."""
    assert isinstance(tensor, DTensor)
    return tensor.to_local().detach()


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Runs of parameters of one type, of about BUCKET_BYTES together."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        if not buckets or size > BUCKET_BYTES or parameter.dtype != buckets[-1][0].dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel() * parameter.element_size()
    return buckets
