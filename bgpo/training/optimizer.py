"""The optimizer: warm-up, gradient clipping and a guard against non-finite gradients; its state as named tensors.

Trainers only accumulate gradients, each process those of its own share; `step` makes one sum of them, so every process
decides alike. Only trainable parameters take part (with LoRA the adapters).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bgpo.errors import NonFiniteError
from bgpo.spec import OptimizerSpec
from bgpo.training.adafactor import Adafactor
from bgpo.training.cluster import Cluster
from bgpo.training.sharing import Replicated, Sharing

MAX_NON_FINITE = 3
"""Consecutive skipped steps before the run fails."""

ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")
ADAFACTOR_STATE = ("step", "row", "column", "square")
DIVIDED = ("exp_avg", "exp_avg_sq", "row", "square")
"""State that is divided among processes like its parameter; the rest is the same on all."""


class Optimizer:
    """One AdamW or Adafactor over all trainable parameters; `total_updates` is where a linear decay reaches 0."""

    def __init__(
        self, model: nn.Module, spec: OptimizerSpec, total_updates: int, sharing: Sharing | None = None
    ) -> None:
        """Take the parameters of `model`, or of `sharing` where several processes share them."""
        self.sharing: Sharing = sharing or Replicated(model, Cluster())
        self._parameters = self.sharing.parameters
        self._spec = spec
        self._total_updates = total_updates
        self._algorithm: torch.optim.Optimizer
        if spec.optimizer_type == "adafactor":
            self._algorithm = Adafactor(
                self._parameters.values(),
                lr=spec.learning_rate,
                weight_decay=spec.weight_decay,
                total=self.sharing.total,
            )
        else:
            self._algorithm = torch.optim.AdamW(
                [p for p in self._parameters.values() if p.numel()],  # a slice may be empty
                lr=spec.learning_rate,
                betas=(spec.beta1, spec.beta2),
                eps=spec.epsilon,
                weight_decay=spec.weight_decay,
                fused=True,
            )
        self.updates = 0
        """Optimizer steps taken or skipped."""
        self.non_finite_updates = 0
        """Skipped ones among them."""
        self._non_finite = 0

    @property
    def learning_rate(self) -> float:
        """Of the next update."""
        warmed = min(1.0, (self.updates + 1) / max(self._spec.warmup_steps, 1))
        left = 1.0 - self.updates / self._total_updates if self._spec.decay == "linear" else 1.0
        return self._spec.learning_rate * warmed * max(left, 0.0)

    def step(self, suspects: Sequence[int] = ()) -> float:
        """Sum the gradients over the processes, clip, update, clear. A non-finite gradient is skipped. Collective.

        Args:
            suspects: training rows whose loss was not finite, named when the run fails.

        Returns:
            the global gradient norm before clipping; NaN or infinite when the update was skipped.

        Raises:
            NonFiniteError: after MAX_NON_FINITE skipped updates in a row.
        """
        self.sharing.reduce()
        norm = self._clip()
        if norm.isfinite():
            for group in self._algorithm.param_groups:
                group["lr"] = self.learning_rate
            self._algorithm.step()
            self._non_finite = 0
        else:
            self._non_finite += 1
            self.non_finite_updates += 1
        self.updates += 1
        self.sharing.publish()
        # Autocast keeps bfloat16 copies of the weights, which the next mini-batch would go on using.
        torch.clear_autocast_cache()
        if self._non_finite >= MAX_NON_FINITE:
            rows = f" (last: training rows {sorted(suspects)})" if suspects else ""
            raise NonFiniteError(
                f"the gradient was not finite in {MAX_NON_FINITE} updates in a row{rows}; lower the learning rate",
                "method.optimizer.learning_rate",
            )
        return float(norm)

    def _clip(self) -> Tensor:
        """Scale the gradients to the largest norm allowed, and return what their norm was."""
        parameters = list(self._parameters.values())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.sharing.sharded:
            norm = self.sharing.total(norm.square()).sqrt()
        nn.utils.clip_grads_with_norm_(parameters, self._spec.max_grad_norm, norm)
        return norm

    def discard_gradients(self) -> None:
        """Drop what has been accumulated."""
        self.sharing.discard()

    def state_tensors(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter name, plus the counters, for safetensors; this process's part."""
        tensors = {
            "updates": torch.tensor(self.updates),
            "non_finite": torch.tensor(self._non_finite),
            "non_finite_updates": torch.tensor(self.non_finite_updates),
        }
        for name, parameter in self._parameters.items():
            for key, value in self._algorithm.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of `state_tensors` of one process, which holds the whole state.

        Raises:
            KeyError: a counter is missing.
            ValueError: it is the state of another algorithm, or of other parameters.
        """
        self.updates = int(tensors["updates"])
        self._non_finite = int(tensors["non_finite"])
        self.non_finite_updates = int(tensors["non_finite_updates"])
        kept = ADAFACTOR_STATE if isinstance(self._algorithm, Adafactor) else ADAMW_STATE
        for full_name in tensors:
            key, slash, name = full_name.partition("/")
            if not slash:
                continue
            if key not in kept:
                raise ValueError(f"{key} belongs to another optimizer_type")
            if name not in self._parameters:
                raise ValueError(f"{name} is not trained here")
            parameter = self._parameters[name]
            value = self.sharing.slice(name, tensors[full_name]) if key in DIVIDED else tensors[full_name]
            self._algorithm.state[parameter][key] = value.to(parameter.device, copy=True)
