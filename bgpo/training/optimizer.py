"""AdamW with warm-up, gradient clipping and a guard against non-finite gradients; its state as named tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bgpo.errors import NonFiniteError
from bgpo.spec import OptimizerSpec

MAX_NON_FINITE = 3
"""Consecutive skipped steps before the run fails."""


class Optimizer:
    """One AdamW over all parameters; `total_updates` is where a linear decay reaches 0."""

    def __init__(self, model: nn.Module, spec: OptimizerSpec, total_updates: int) -> None:
        self._names = [name for name, _ in model.named_parameters()]
        self._parameters = list(model.parameters())
        self._spec = spec
        self._total_updates = total_updates
        self._adamw = torch.optim.AdamW(
            self._parameters,
            lr=spec.learning_rate,
            betas=(spec.beta1, spec.beta2),
            eps=spec.epsilon,
            weight_decay=spec.weight_decay,
            fused=True,
        )
        self.updates = 0
        """Optimizer steps taken or skipped."""
        self._non_finite = 0

    @property
    def learning_rate(self) -> float:
        """Of the next update."""
        warmed = min(1.0, (self.updates + 1) / max(self._spec.warmup_steps, 1))
        left = 1.0 - self.updates / self._total_updates if self._spec.decay == "linear" else 1.0
        return self._spec.learning_rate * warmed * max(left, 0.0)

    def step(self, suspects: Sequence[int] = ()) -> float:
        """Clip, update, clear the gradients. A non-finite gradient is skipped.

        Args:
            suspects: training rows whose loss was not finite, named when the run fails.

        Returns:
            the global gradient norm before clipping; NaN or infinite when the update was skipped.

        Raises:
            NonFiniteError: after MAX_NON_FINITE skipped updates in a row.
        """
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self._spec.max_grad_norm))
        if torch.isfinite(torch.tensor(norm)):
            for group in self._adamw.param_groups:
                group["lr"] = self.learning_rate
            self._adamw.step()
            self._non_finite = 0
        else:
            self._non_finite += 1
        self.updates += 1
        self._adamw.zero_grad(set_to_none=True)
        # Autocast keeps bfloat16 copies of the weights, which the next mini-batch would go on using.
        torch.clear_autocast_cache()
        if self._non_finite >= MAX_NON_FINITE:
            rows = f" (last: training rows {sorted(suspects)})" if suspects else ""
            raise NonFiniteError(
                f"the gradient was not finite in {MAX_NON_FINITE} updates in a row{rows}; lower the learning rate",
                "method.optimizer.learning_rate",
            )
        return norm

    def discard_gradients(self) -> None:
        """Drop what has been accumulated."""
        self._adamw.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Moments and step counts by parameter name, plus the counters, for safetensors."""
        tensors = {
            "updates": torch.tensor(self.updates),
            "non_finite": torch.tensor(self._non_finite),
        }
        for name, parameter in zip(self._names, self._parameters, strict=True):
            for key, value in self._adamw.state[parameter].items():
                tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state_tensors`."""
        self.updates = int(tensors["updates"])
        self._non_finite = int(tensors["non_finite"])
        for name, parameter in zip(self._names, self._parameters, strict=True):
            state = {
                key.partition("/")[0]: value.to(parameter.device)
                for key, value in tensors.items()
                if key.partition("/")[2] == name
            }
            if state:
                self._adamw.state[parameter] = state
