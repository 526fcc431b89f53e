"""The optimizer against AdamW written out in numpy; skipped steps; its state across a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bgpo.errors import NonFiniteError
from bgpo.spec import OptimizerSpec
from bgpo.training.optimizer import MAX_NON_FINITE, Optimizer

COUNTERS = {"updates", "non_finite", "non_finite_updates"}


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def optimizer(model: nn.Module, total: int = 100, **fields: Any) -> Optimizer:
    return Optimizer(model, OptimizerSpec(**fields), total)


def set_gradients(model: nn.Module, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def flat(tensors: list[Tensor]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.concatenate([t.detach().numpy().astype(np.float64).flatten() for t in tensors])


def state(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def test_updates_are_adamw_with_warmup_decay_and_clipping() -> None:
    """Loshchilov and Hutter (2019), Algorithm 2, with bias correction, on the clipped gradient."""
    fields = {"weight_decay": 0.1, "beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6}
    model = network()
    own = optimizer(model, 10, learning_rate=0.01, warmup_steps=3, decay="linear", max_grad_norm=2.0, **fields)
    weights = flat(list(model.parameters()))
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    clipped = 0
    for step in range(1, 11):
        set_gradients(model, step, 0.1 if step % 2 else 1.0)
        gradient = flat([p.grad for p in model.parameters() if p.grad is not None])
        norm = np.linalg.norm(gradient)
        clipped += norm > 2
        gradient = gradient * min(1, 2 / norm)
        rate = 0.01 * min(1, step / 3) * (1 - (step - 1) / 10)
        assert own.learning_rate == pytest.approx(rate)
        first, second = 0.8 * first + 0.2 * gradient, 0.95 * second + 0.05 * gradient**2
        weights = weights - rate * 0.1 * weights
        weights -= rate * first / (1 - 0.8**step) / (np.sqrt(second / (1 - 0.95**step)) + 1e-6)
        assert own.step() == pytest.approx(norm, rel=1e-6)
        np.testing.assert_allclose(flat(list(model.parameters())), weights, rtol=1e-5, atol=1e-6)
        assert all(parameter.grad is None for parameter in model.parameters())
    assert clipped == 5


def test_the_warmup_ends_and_the_rate_stays() -> None:
    model = network()
    own = optimizer(model, learning_rate=1e-3, warmup_steps=4)
    rates = []
    for step in range(6):
        rates.append(own.learning_rate)
        set_gradients(model, step)
        own.step()
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


def test_a_decaying_rate_never_turns_negative() -> None:
    model = network()
    own = optimizer(model, 2, learning_rate=1e-3, decay="linear")
    for step in range(4):
        set_gradients(model, step)
        own.step()
        assert own.learning_rate >= 0


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(poison: float) -> None:
    model = network()
    own = optimizer(model, learning_rate=0.1, weight_decay=0.1)
    set_gradients(model, 0)
    own.step()
    before, moments = state(model), {k: v.clone() for k, v in own.state_tensors().items()}
    set_gradients(model, 1)
    next(model.parameters()).grad[0, 0] = poison  # type: ignore[index]
    assert not np.isfinite(own.step())
    assert state(model) == before
    after = own.state_tensors()
    assert {k for k in after if not torch.equal(after[k], moments[k])} == COUNTERS
    assert all(parameter.grad is None for parameter in model.parameters()), "the poison must not linger"


def test_the_run_fails_after_several_in_a_row() -> None:
    model = network()
    own = optimizer(model)

    def step(poison: bool) -> None:
        set_gradients(model, 0, float("nan") if poison else 1.0)
        own.step()

    for _ in range(3):
        for _ in range(MAX_NON_FINITE - 1):
            step(True)
        step(False)
    for _ in range(MAX_NON_FINITE - 1):
        step(True)
    with pytest.raises(NonFiniteError) as caught:
        step(True)
    assert caught.value.param == "method.optimizer.learning_rate"


def test_training_goes_on_from_a_file_bit_by_bit(tmp_path: Path) -> None:
    """Also the count of skipped steps, so that a resumed run fails when the first one would have."""
    fields = {"learning_rate": 0.01, "warmup_steps": 6, "weight_decay": 0.01}
    straight, copy = network(1), network(2)
    own = optimizer(straight, **fields)
    for step in range(4):
        set_gradients(straight, step, float("nan") if step == 3 else 1.0)
        own.step()
    save_file(own.state_tensors(), tmp_path / "optimizer.safetensors")
    copy.load_state_dict(straight.state_dict())
    resumed = optimizer(copy, **fields)
    resumed.load_state_tensors(load_file(tmp_path / "optimizer.safetensors"))
    assert resumed.learning_rate == own.learning_rate
    set_gradients(straight, 4, float("nan"))
    set_gradients(copy, 4, float("nan"))
    own.step()
    resumed.step()
    for step in range(5, 9):
        set_gradients(straight, step)
        set_gradients(copy, step)
        assert own.step() == resumed.step()
    assert state(straight) == state(copy)
    left, right = own.state_tensors(), resumed.state_tensors()
    assert {k: v.numpy().tobytes() for k, v in left.items()} == {k: v.numpy().tobytes() for k, v in right.items()}


def test_state_is_named_by_parameter() -> None:
    model = network()
    own = optimizer(model)
    assert set(own.state_tensors()) == COUNTERS
    set_gradients(model, 0)
    own.step()
    names = [name for name, _ in model.named_parameters()]
    assert set(own.state_tensors()) == {
        *COUNTERS,
        *(f"{key}/{name}" for key in ("step", "exp_avg", "exp_avg_sq") for name in names),
    }


def test_discarded_gradients_leave_no_trace() -> None:
    model, other = network(), network()
    own, plain = optimizer(model), optimizer(other)
    set_gradients(model, 5)
    own.discard_gradients()
    for one in (model, other):
        set_gradients(one, 6)
    own.step()
    plain.step()
    assert state(model) == state(other)


def test_under_autocast_the_next_forward_pass_sees_the_update() -> None:
    """Off-policy mini-batches share one autocast region, which caches bfloat16 copies of the weights."""
    model = network()
    own = optimizer(model, learning_rate=0.5)
    inputs = torch.ones(1, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(inputs)
        before.sum().backward()
        own.step()
        after = model(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fresh = model(inputs)
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh)
