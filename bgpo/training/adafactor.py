"""Adafactor without momentum (Shazeer and Stern 2018, arXiv 1804.04235): memory for two vectors a matrix.

The second moment of a matrix is kept as the exponential means of its rows and columns, beta2_t = 1 - t^-0.8; the update
is clipped to a root mean square of 1. The learning rate is the one given, as for AdamW: neither relative to the step
nor to the parameter's size. The `beta1`, `beta2` and `epsilon` of the specification belong to AdamW.

A matrix may be divided by rows among processes; then every mean over rows asks `total` for the whole sum, in two
exchanges an update, whatever the number of parameters.

    g gradient, v second moment, R its row means, C its column means, u the update
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

DECAY = 0.8
SQUARE_FLOOR = 1e-30
"""Added to the squared gradient: v is never 0."""
CLIP = 1.0
"""Largest root mean square of an update, before the learning rate."""


class Adafactor(torch.optim.Optimizer):
    """One group of parameters; state `row` (N,) and `column` (M,) of an (N, M) matrix, else `square`."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        total: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        """Take parameters; `total` sums over the processes that hold the other rows. Collective."""
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self._parameters: list[nn.Parameter] = self.param_groups[0]["params"]
        self._total = total
        rows = torch.tensor([float(p.shape[0]) if p.dim() else 1.0 for p in self._parameters], dtype=torch.float64)
        self._rows = total(rows).tolist()
        numel = torch.tensor([float(p.numel()) for p in self._parameters], dtype=torch.float64)
        self._numel = total(numel)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nothing here evaluates a closure
        """Update every parameter that has a gradient; all processes must have the same ones."""
        group = self.param_groups[0]
        active = [i for i, parameter in enumerate(self._parameters) if parameter.grad is not None]
        if not active:
            return
        row_means = self._accumulate(active)
        square_sums = torch.stack([self._update(i, row_means).double().square().sum() for i in active])
        roots = (self._total(square_sums) / self._numel.to(square_sums.device)[active]).sqrt()
        scales = (roots / CLIP).clamp(min=1.0).reciprocal().float()
        for i, scale in zip(active, scales, strict=True):
            parameter = self._parameters[i]
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(self._update(i, row_means).mul_(scale * group["lr"]))

    def _accumulate(self, active: list[int]) -> dict[int, Tensor]:
        """Advance the second moments, and return mean(R) of each matrix. One exchange for all of them."""
        sums: list[Tensor] = []
        for i in active:
            parameter = self._parameters[i]
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                for name, size in _shapes(parameter).items():
                    state[name] = torch.zeros(size, device=parameter.device)
            state["step"] += 1
            keep = 1 - float(state["step"]) ** -DECAY
            square = _gradient(parameter).square().add_(SQUARE_FLOOR)
            if "square" in state:
                state["square"].lerp_(square, 1 - keep)
            else:
                state["row"].lerp_(square.mean(1), 1 - keep)
                sums += [square.sum(0) / self._rows[i], state["row"].sum()[None] / self._rows[i]]
        means: dict[int, Tensor] = {}
        if not sums:
            return means
        whole = iter(self._total(torch.cat(sums)).split([len(part) for part in sums]))
        for i in active:
            state = self.state[self._parameters[i]]
            if "row" in state:
                keep = 1 - float(state["step"]) ** -DECAY
                state["column"].lerp_(next(whole), 1 - keep)
                means[i] = next(whole)
        return means

    def _update(self, index: int, row_means: dict[int, Tensor]) -> Tensor:
        """u = g / sqrt(v), with v of a matrix R C / mean(R)."""
        parameter = self._parameters[index]
        state = self.state[parameter]
        gradient = _gradient(parameter)
        if "square" in state:
            return gradient.mul(state["square"].rsqrt())
        row_N1: Tensor = (state["row"] / row_means[index]).rsqrt()[:, None]
        column_M: Tensor = state["column"].rsqrt()
        return gradient.mul(row_N1).mul_(column_M).view_as(parameter)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Float32, of a matrix as (N, M)."""
    assert parameter.grad is not None
    gradient = parameter.grad.float()
    return gradient.view(gradient.shape[0], -1) if gradient.dim() > 1 else gradient


def _shapes(parameter: nn.Parameter) -> dict[str, tuple[int, ...]]:
    shape = tuple(parameter.shape)
    return {"square": shape} if len(shape) < 2 else {"row": shape[:1], "column": (math.prod(shape[1:]),)}
