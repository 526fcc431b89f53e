"""The accumulated gradient against plain autograd of the closed objective, every canvas alone and unpadded."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from bgpo.diffusion.elbo import build_canvases
from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.models import Policy
from bgpo.spec import Reinforcement
from bgpo.training.policy_gradient import Scored, accumulate_gradient, draw_samples, old_terms
from tests.bgpo.tiny import tiny_policy

PROMPTS = [[0, 1, 2], [3], [3], [4, 4, 1, 0, 2]]
RESPONSES = [[1, 2, 5, 6], [6], [2, 2, 0, 1, 3, 6], [5, 3, 6]]
ADVANTAGES = [1.25, -0.5, 0.75, -1.5]
N_RESPONSES = 6
"""Two more responses had no signal."""


def method(**fields: Any) -> Reinforcement:
    return Reinforcement.model_validate({"grader": {"type": "sudoku", "name": "g"}, "mc_samples": 5, **fields})


def score(spec: Reinforcement, seed: int = 0) -> Scored:
    canvases = build_canvases(PROMPTS, RESPONSES, 6, "cpu")
    keys = stream_keys(seed, Purpose.ELBO, torch.arange(len(PROMPTS)))
    return draw_samples(canvases, torch.tensor(ADVANTAGES), keys, spec)


def plain_term(policy: Policy, row: int, mask: Tensor, weight: float) -> Tensor:
    """ell of one masked canvas: w * sum over masked i of log p(y_i | x, y_masked)."""
    prompt, response = PROMPTS[row], RESPONSES[row]
    noisy = [policy.mask_id if mask[i] else token for i, token in enumerate(response)]
    hidden = policy.model(torch.tensor([[*prompt, *noisy]]))[0, len(prompt) :]
    log_probs = policy.model.logits(hidden).log_softmax(-1)
    chosen = [log_probs[i, token] for i, token in enumerate(response) if mask[i]]
    return weight * torch.stack(chosen).sum() if chosen else 0.0 * hidden.sum()


def plain_loss(policy: Policy, scored: Scored, algorithm: str, old: Tensor | None, clamp: float) -> Tensor:
    """- sum of R over the responses, divided by all of them, by the paper's formulas."""
    total = torch.zeros(())
    n = scored.weights_Rn.shape[1]
    for row, advantage in enumerate(ADVANTAGES):
        terms = [plain_term(policy, row, scored.masks_RnL[row, j], float(scored.weights_Rn[row, j])) for j in range(n)]
        ell = torch.stack(terms)
        d = ell - (ell.detach() if old is None else old[row])
        if algorithm == "elbo_ratio":
            total = total + d.mean().clamp(max=clamp).exp() * advantage
        elif advantage >= 0:
            total = total + ((1 + d) * advantage / n).sum()
        else:
            total = total + (d.clamp(max=clamp).exp() * advantage / n).sum()
    return -total / N_RESPONSES


def gradients(policy: Policy) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
    policy.model.zero_grad(set_to_none=True)
    return found


def accumulated(
    policy: Policy, scored: Scored, spec: Reinforcement, old: Tensor | None = None
) -> tuple[Tensor, float, Tensor]:
    loss, ell = accumulate_gradient(policy, scored, spec, N_RESPONSES, old)
    return gradients(policy), loss, ell


def close(left: Tensor, right: Tensor, tolerance: float = 1e-6) -> None:
    """To 1e-6 of the gradient's length, which is rounding in float32."""
    assert float((left - right).norm() / right.norm()) < tolerance


ALGORITHMS = pytest.mark.parametrize("algorithm", ["bgpo", "elbo_ratio"])


@ALGORITHMS
@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize(
    "fields", [{}, {"estimator": "bernoulli"}, {"length_normalization": "length"}, {"clamp_log_ratio": 0.5}], ids=str
)
def test_the_gradient_is_that_of_the_closed_objective(algorithm: str, off_policy: bool, fields: dict[str, Any]) -> None:
    policy = tiny_policy(seed=1)
    spec = method(algorithm=algorithm, micro_batch=3, **fields)
    scored = score(spec)
    if fields.get("length_normalization") == "length":
        lengths = torch.tensor([[float(len(r))] for r in RESPONSES])
        torch.testing.assert_close(scored.weights_Rn, score(method()).weights_Rn / lengths)
    old = None
    if off_policy:
        with torch.no_grad():
            old = old_terms(tiny_policy(seed=1), scored, 7)
            old = old + torch.randn(old.shape, generator=torch.Generator().manual_seed(3))
    found, loss, ell = accumulated(policy, scored, spec, old)
    expected = plain_loss(policy, scored, algorithm, old, spec.clamp_log_ratio)
    expected.backward()
    # Off-policy the rounding of terms of size 50 is exponentiated.
    close(found, gradients(policy), 5e-6 if off_policy else 1e-6)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5, abs=1e-6)
    for row in range(len(PROMPTS)):
        for j in range(5):
            term = plain_term(policy, row, scored.masks_RnL[row, j], float(scored.weights_Rn[row, j]))
            assert float(ell[row, j]) == pytest.approx(float(term.detach()), rel=1e-5, abs=1e-6)
    assert not ell.requires_grad


@ALGORITHMS
@pytest.mark.parametrize("off_policy", [False, True])
def test_the_micro_batch_does_not_change_the_gradient(algorithm: str, off_policy: bool) -> None:
    policy = tiny_policy(seed=2)
    scored = score(method())
    old = old_terms(policy, scored, 4) + 0.3 if off_policy else None
    results = [
        accumulated(policy, scored, method(algorithm=algorithm, micro_batch=size), old)
        for size in (1, 2, 3, 7, 20, 999)
    ]
    assert results[0][0].abs().max() > 1e-2
    for gradient, loss, ell in results[1:]:
        close(gradient, results[0][0])
        assert loss == pytest.approx(results[0][1], abs=1e-6)
        torch.testing.assert_close(ell, results[0][2], rtol=1e-6, atol=1e-5)


def test_on_policy_both_objectives_have_one_gradient() -> None:
    policy = tiny_policy(seed=3)
    scored = score(method())
    bound, bound_loss, _ = accumulated(policy, scored, method(algorithm="bgpo"))
    ratio, ratio_loss, _ = accumulated(policy, scored, method(algorithm="elbo_ratio"))
    close(bound, ratio)
    assert bound_loss == pytest.approx(ratio_loss, abs=1e-6)
    # On-policy the value is the mean advantage, which is no progress metric.
    assert bound_loss == pytest.approx(-sum(ADVANTAGES) / N_RESPONSES, abs=1e-6)


def test_off_policy_they_differ() -> None:
    policy = tiny_policy(seed=3)
    scored = score(method())
    old = old_terms(policy, scored, 8) - torch.linspace(-1, 1, 20).view(4, 5)
    bound, bound_loss, _ = accumulated(policy, scored, method(algorithm="bgpo"), old)
    ratio, ratio_loss, _ = accumulated(policy, scored, method(algorithm="elbo_ratio"), old)
    assert (bound - ratio).abs().max() > 1e-3
    assert bound_loss > ratio_loss, "the bound is below the objective, the loss above"


def test_old_terms_are_the_terms_of_that_policy_without_a_graph() -> None:
    policy = tiny_policy(seed=4)
    scored = score(method())
    _, _, ell = accumulated(policy, scored, method(micro_batch=5))
    for size in (1, 6, 100):
        old = old_terms(policy, scored, size)
        assert not old.requires_grad
        torch.testing.assert_close(old, ell, rtol=1e-6, atol=1e-5)


def test_gradients_add_up_over_calls() -> None:
    """Accumulation never clears what is there."""
    policy = tiny_policy(seed=5)
    scored, spec = score(method()), method()
    once, _, _ = accumulated(policy, scored, spec)
    accumulate_gradient(policy, scored, spec, N_RESPONSES)
    accumulate_gradient(policy, scored, spec, N_RESPONSES)
    close(gradients(policy), 2 * once)


class Packed:
    """A saved tensor; freed when autograd lets go of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class SavedBytes:
    """Counts the bytes autograd holds for backward, now and at most. Weights are in memory anyway and do not count."""

    def __init__(self, policy: Policy) -> None:
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in policy.model.parameters()}
        self.held = self.peak = 0

    def pack(self, tensor: Tensor) -> Packed:
        packed = Packed(tensor)
        if tensor.untyped_storage().data_ptr() not in self.weights:
            self.held += tensor.nbytes
            self.peak = max(self.peak, self.held)
            weakref.finalize(packed, self.release, tensor.nbytes)
        return packed

    def release(self, count: int) -> None:
        self.held -= count


def peak_saved_bytes(algorithm: str, n_samples: int) -> int:
    """All samples mask the same number of positions, so that they cost the same."""
    policy = tiny_policy(seed=6)
    canvases = build_canvases([[0, 1]] * 3, [[1, 2, 3, 6]] * 3, 6, "cpu")
    masks = torch.zeros(3, n_samples, 4, dtype=torch.bool)
    masks[..., 1:3] = True
    scored = Scored(canvases, torch.tensor([1.0, -1.0, 0.5]), masks, torch.full((3, n_samples), 2.0))
    count = SavedBytes(policy)
    with torch.autograd.graph.saved_tensors_hooks(count.pack, lambda packed: packed.tensor):
        accumulate_gradient(policy, scored, method(algorithm=algorithm, mc_samples=n_samples, micro_batch=1), 3)
    assert count.held == 0, "nothing outlives the backward passes"
    return count.peak


def test_memory_of_bgpo_does_not_depend_on_the_number_of_samples() -> None:
    assert peak_saved_bytes("bgpo", 1) == peak_saved_bytes("bgpo", 2) == peak_saved_bytes("bgpo", 16)


def test_memory_of_the_elbo_ratio_grows_linearly() -> None:
    one, four, sixteen = (peak_saved_bytes("elbo_ratio", n) for n in (1, 4, 16))
    slope = (four - one) / 3
    assert sixteen - four == pytest.approx(12 * slope, rel=0.02)
    assert slope > 0.9 * one, "nearly nothing is shared between the samples"
    assert sixteen > 10 * peak_saved_bytes("bgpo", 16)
