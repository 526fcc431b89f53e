"""How the processes of a run share the parameters, and how their gradients become one.

`Replicated` ("ddp", and a run of one process): every process holds all parameters and all of the optimizer's state.
`Sharded` ("fsdp2", in `bgpo.training.sharded`): torch's fully_shard. Each process owns a slice of every trainable
parameter along its first dimension, and the optimizer's state of that slice only.

Between two optimizer steps the whole model lies gathered on every process, and backward passes only accumulate
locally. So a process may run any number of forward and backward passes, also none, without another waiting for it:
prompts without signal, responses of different lengths and unequal shares need no padding with idle passes.
DistributedDataParallel's hooks, and FSDP's in their usual mode, would pair the passes of the processes and hang. There
is one exchange of gradients an optimizer step.

The price under "fsdp2" is memory for the whole model and its gradient during the step; what is divided is the
optimizer's state, for AdamW twice the model. Frozen parameters (LoRA) stay whole everywhere.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

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


def share(policy: Policy, cluster: Cluster, how: Literal["ddp", "fsdp2"]) -> Sharing:
    """Share a policy's parameters, after checking that every process starts from the same ones.

    Raises:
        ModelError: the processes have loaded different weights.
    """
    fingerprint = sum(float(p.detach().double().sum()) for p in policy.model.parameters()) if cluster.size > 1 else 0.0
    if len(set(cluster.gather([repr(fingerprint)]))) > 1:
        raise ModelError("the processes of the run have loaded different weights", "model")
    if how == "ddp" or cluster.size == 1:
        return Replicated(policy.model, cluster)
    from bgpo.training.sharded import Sharded  # FSDP takes seconds to import

    return Sharded(policy, cluster)


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
