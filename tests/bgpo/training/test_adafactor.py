"""Adafactor against the paper's equations written out in float64, and against transformers' implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.optimization import Adafactor as PublishedAdafactor

from bgpo.spec import OptimizerSpec
from bgpo.training.adafactor import Adafactor
from bgpo.training.optimizer import Optimizer

Array = np.ndarray[Any, np.dtype[np.float64]]
RATE, DECAY = 0.02, 0.1


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (1, 4), (7,), (2, 2, 3))]


def gradients(step: int, like: list[nn.Parameter]) -> list[torch.Tensor]:
    """Large ones at times, so that updates are clipped."""
    generator = torch.Generator().manual_seed(100 + step)
    return [(10.0 if step == 3 else 1.0) * torch.randn(p.shape, generator=generator) for p in like]


def test_updates_are_those_of_the_paper() -> None:
    """Shazeer and Stern (2018), Algorithms 4 and 5, with the learning rate in place of the relative step size."""
    own = parameters()
    optimizer = Adafactor(own, lr=RATE, weight_decay=DECAY)
    weights: list[Array] = [p.detach().double().numpy().copy() for p in own]
    rows: list[Array] = [np.zeros(len(w)) for w in weights]
    columns: list[Array] = [np.zeros(w[0].size) for w in weights]
    clipped = 0
    for step in range(1, 6):
        for i, gradient in enumerate(gradients(step, own)):
            own[i].grad = gradient.clone()
            g = gradient.double().numpy().reshape(len(gradient), -1)
            beta = 1 - step**-0.8
            square = g**2 + 1e-30
            if gradient.dim() == 1:
                rows[i] = beta * rows[i] + (1 - beta) * square[:, 0]
                second = rows[i][:, None]
            else:
                rows[i] = beta * rows[i] + (1 - beta) * square.sum(1)
                columns[i] = beta * columns[i] + (1 - beta) * square.sum(0)
                second = np.outer(rows[i], columns[i]) / rows[i].sum()
            update = g / np.sqrt(second)
            size = np.sqrt((update**2).mean())
            clipped += size > 1
            update = update / max(1.0, size)
            weights[i] = weights[i] * (1 - RATE * DECAY) - RATE * update.reshape(weights[i].shape)
        optimizer.step()
        for parameter, expected in zip(own, weights, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert clipped > 0


def test_updates_are_those_of_transformers() -> None:
    own, theirs = parameters()[:3], parameters()[:3]  # it factors the last two dimensions, not the first and the rest
    optimizer = Adafactor(own, lr=RATE, weight_decay=0.0)
    published = PublishedAdafactor(theirs, lr=RATE, scale_parameter=False, relative_step=False)
    for step in range(1, 6):
        for one, other, gradient in zip(own, theirs, gradients(step, own), strict=True):
            one.grad, other.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        published.step()
    for one, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_its_state_is_small_and_survives_a_file(tmp_path: Any) -> None:
    straight = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10))
    copy = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10))
    spec = OptimizerSpec(optimizer_type="adafactor", learning_rate=RATE, max_grad_norm=1e6)
    first = Optimizer(straight, spec, 10)

    def step(model: nn.Module, optimizer: Optimizer, number: int) -> None:
        for parameter, gradient in zip(model.parameters(), gradients(number, list(model.parameters())), strict=True):
            parameter.grad = gradient
        optimizer.step()

    for number in (1, 2):
        step(straight, first, number)
    state = first.state_tensors()
    assert sum(value.numel() for value in state.values()) < 2 * (30 + 20 + 20 + 10 + 20 + 10)
    save_file(state, tmp_path / "state.safetensors")
    copy.load_state_dict(straight.state_dict())
    second = Optimizer(copy, spec, 10)
    second.load_state_tensors(load_file(tmp_path / "state.safetensors"))
    for number in (3, 4):
        step(straight, first, number)
        step(copy, second, number)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), copy.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_the_state_of_the_other_algorithm_is_refused(kind: Any) -> None:
    model = nn.Linear(3, 2)
    made = Optimizer(model, OptimizerSpec(optimizer_type=kind), 10)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    other = Optimizer(model, OptimizerSpec(optimizer_type="adafactor" if kind == "adamw" else "adamw"), 10)
    with pytest.raises(ValueError, match="optimizer_type"):
        other.load_state_tensors(made.state_tensors())
