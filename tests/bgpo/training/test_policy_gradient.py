"""The accumulated gradient against plain autograd of the closed objective, every canvas alone and unpadded."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bgpo.diffusion.elbo import build_canvases
from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.models import Policy
from bgpo.objectives import OBJECTIVES
from bgpo.spec import Reinforcement
from bgpo.training.policy_gradient import Accumulated, accumulate_gradient
from bgpo.training.scored import UNKNOWN, Scored, draw_samples, old_values, stored_values, values_of
from tests.bgpo.saved_bytes import SavedBytes
from tests.bgpo.tiny import tiny_policy

PROMPTS = [[0, 1, 2], [3], [3], [4, 4, 1, 0, 2]]
RESPONSES = [[1, 2, 5, 6], [6], [2, 2, 0, 1, 3, 6], [5, 3, 6]]
ADVANTAGES = [1.25, -0.5, 0.75, -1.5]
N_RESPONSES = 6
"""Two more responses had no signal."""
EVERY = pytest.mark.parametrize("algorithm", list(OBJECTIVES))
LINEAR = [name for name, objective in OBJECTIVES.items() if objective.linear]


def method(**fields: Any) -> Reinforcement:
    return Reinforcement.model_validate({"grader": {"type": "sudoku", "name": "g"}, "mc_samples": 5, **fields})


def score(spec: Reinforcement, seed: int = 0) -> Scored:
    canvases = build_canvases(PROMPTS, RESPONSES, 6, "cpu")
    keys = stream_keys(seed, Purpose.ELBO, torch.arange(len(PROMPTS)))
    return draw_samples(canvases, torch.tensor(ADVANTAGES), keys, spec)


def plain_log_probs(policy: Policy, scored: Scored, row: int, sample: int) -> list[Tensor | None]:
    """log p of each response token of one canvas by itself, None where it is not masked."""
    prompt, response = list(PROMPTS[row]), RESPONSES[row]
    if scored.prompt_masks_RP is not None:
        padding = scored.prompt_masks_RP.shape[1] - len(prompt)
        prompt = [
            policy.mask_id if scored.prompt_masks_RP[row, padding + i] else token for i, token in enumerate(prompt)
        ]
    mask = scored.masks_RnL[row, sample]
    noisy = [policy.mask_id if mask[i] else token for i, token in enumerate(response)]
    hidden = policy.model(torch.tensor([[*prompt, *noisy]]))[0, len(prompt) :]
    log_probs = policy.model.logits(hidden).log_softmax(-1)
    return [log_probs[i, token] if mask[i] else None for i, token in enumerate(response)]


class Plain:
    """All log-probabilities of one policy, and the terms made of them in double precision."""

    def __init__(self, policy: Policy, scored: Scored, normalization: str) -> None:
        self.scored, self.normalization = scored, normalization
        self.n = scored.n_samples
        self.log_probs = [
            [plain_log_probs(policy, scored, row, j) for j in range(self.n)] for row in range(len(PROMPTS))
        ]

    def elbo(self, row: int, sample: int) -> Tensor:
        masked = [x.double() for x in self.log_probs[row][sample] if x is not None]
        return float(self.scored.weights_Rn[row, sample]) * sum(masked, torch.zeros((), dtype=torch.float64))

    def term(self, row: int, sample: int) -> Tensor:
        masked = sum(x is not None for x in self.log_probs[row][sample])
        if self.normalization == "length":
            return self.elbo(row, sample) / len(RESPONSES[row])
        if self.normalization == "masked":
            return self.elbo(row, sample) / max(float(self.scored.weights_Rn[row, sample]) * masked, 1e-9)
        return self.elbo(row, sample)

    def terms(self, row: int) -> Tensor:
        return torch.stack([self.term(row, j) for j in range(self.n)])


def plain_objective(spec: Reinforcement, new: Plain, old: Plain, row: int) -> Tensor:
    """R of one response by the published formula, in double precision."""
    a, length = ADVANTAGES[row], len(RESPONSES[row])
    if spec.algorithm == "diffu_grpo":
        total = torch.zeros((), dtype=torch.float64)
        for now, before in zip(new.log_probs[row][0], old.log_probs[row][0], strict=True):
            assert now is not None
            assert before is not None
            ratio = (now.double() - before.detach().double()).exp()
            clipped = ratio.clamp(1 - spec.clip_epsilon, 1 + spec.clip_epsilon)
            total = total + torch.minimum(ratio * a, clipped * a)
        return total / length
    if spec.algorithm == "spg":
        lower = new.terms(row).mean()
        if a >= 0:
            return a * lower
        upper = torch.zeros((), dtype=torch.float64)
        for i in range(length):
            found = [
                float(new.scored.weights_Rn[row, j]) * (spec.upper_bound_power * x.double()).exp()
                for j in range(new.n)
                if (x := new.log_probs[row][j][i]) is not None
            ]
            if found:
                upper = upper + (torch.stack(found).sum() / new.n).log() / spec.upper_bound_power
        if new.normalization == "length":
            upper = upper / length
        omega = spec.upper_bound_mixture
        return a * (omega * upper + (1 - omega) * lower)
    d = new.terms(row) - old.terms(row).detach()
    clamped = d.clamp(max=spec.clamp_log_ratio).exp()
    match spec.algorithm:
        case "elbo_ratio":
            return d.mean().clamp(max=spec.clamp_log_ratio).exp() * a
        case "espo":
            ratio = d.mean().exp()
            return torch.minimum(ratio * a, ratio.clamp(1 - spec.clip_epsilon, 1 + spec.clip_epsilon) * a)
        case "taylor_only":
            return ((1 + d) * a).mean()
        case "jensen_only":
            return (clamped * a).mean()
    return ((1 + d) * a).mean() if a >= 0 else (clamped * a).mean()


def plain_kl(spec: Reinforcement, new: Plain, reference: Plain, row: int) -> Tensor:
    """k2 of one response."""
    if spec.algorithm == "diffu_grpo":
        pairs = zip(new.log_probs[row][0], reference.log_probs[row][0], strict=True)
        squares = [(x - y.detach()).double().square() for x, y in pairs if x is not None and y is not None]
        return torch.stack(squares).sum() / 2 / len(RESPONSES[row])
    if spec.algorithm == "espo":
        difference = sum(new.elbo(row, j) - reference.elbo(row, j).detach() for j in range(new.n)) / new.n
        return torch.as_tensor(difference).square() / 2 / len(RESPONSES[row])
    return (new.terms(row) - reference.terms(row).detach()).square().mean() / 2


def plain_loss(
    policy: Policy, scored: Scored, spec: Reinforcement, old: Policy | None, reference: Policy | None = None
) -> Tensor:
    """-sum of (R - beta KL) over the responses, divided by all of them."""
    new = Plain(policy, scored, spec.normalization)
    before = new if old is None else Plain(old, scored, spec.normalization)
    total = torch.zeros((), dtype=torch.float64)
    frozen = None if reference is None else Plain(reference, scored, spec.normalization)
    for row in range(len(PROMPTS)):
        total = total + plain_objective(spec, new, before, row)
        if frozen is not None:
            total = total - spec.kl_coefficient * plain_kl(spec, new, frozen, row)
    return -total / N_RESPONSES


def nearby(policy: Policy, seed: int = 9, std: float = 0.02) -> Policy:
    """A policy some steps away."""
    other = tiny_policy(seed=0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for mine, theirs in zip(other.model.parameters(), policy.model.parameters(), strict=True):
            mine.copy_(theirs + std * torch.randn(theirs.shape, generator=generator))
    return other


def gradients(policy: Policy) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
    policy.model.zero_grad(set_to_none=True)
    return found


def accumulated(
    policy: Policy, scored: Scored, spec: Reinforcement, old: Tensor | None = None, reference: Tensor | None = None
) -> tuple[Tensor, Accumulated]:
    found = accumulate_gradient(policy, scored, spec, N_RESPONSES, old, reference)
    return gradients(policy), found


def close(left: Tensor, right: Tensor, tolerance: float = 1e-6) -> None:
    """To 1e-6 of the gradient's length, which is rounding in float32."""
    assert float((left - right).norm() / right.norm()) < tolerance


CASES = [
    *((name, off_policy, {}) for name in OBJECTIVES for off_policy in (False, True)),
    *((name, True, {"estimator": "bernoulli"}) for name in OBJECTIVES if name != "diffu_grpo"),
    *((name, True, {"length_normalization": "length"}) for name in ("bgpo", "elbo_ratio", "spg")),
    ("espo", True, {"length_normalization": "none"}),
    *((name, True, {"clamp_log_ratio": 0.5}) for name in ("bgpo", "elbo_ratio", "jensen_only")),
    *((name, True, {"clip_epsilon": 0.01}) for name in ("diffu_grpo", "espo")),
    ("spg", False, {"upper_bound_power": 3.0, "upper_bound_mixture": 1.0}),
]


@pytest.mark.parametrize(("algorithm", "off_policy", "fields"), CASES, ids=str)
def test_the_gradient_is_that_of_the_closed_objective(algorithm: str, off_policy: bool, fields: dict[str, Any]) -> None:
    policy = tiny_policy(seed=1)
    spec = method(algorithm=algorithm, micro_batch=3, **fields)
    scored = score(spec)
    before = nearby(policy) if off_policy else None
    if before is not None:
        # The rounding of terms of size 50 is exponentiated; that of the networks, each processor's own, need not be.
        policy.model.double()
        before.model.double()
    old = None if before is None else stored_values(before, scored, spec)
    found, result = accumulated(policy, scored, spec, old)
    expected = plain_loss(policy, scored, spec, before)
    expected.backward()
    close(found, gradients(policy), 5e-6 if off_policy else 1e-6)
    assert float(result.loss) == pytest.approx(float(expected.detach()), rel=1e-4, abs=1e-6)
    assert result.finite_R.all()
    plain = Plain(policy, scored, "none")
    for row in range(len(PROMPTS)):
        for j in range(scored.n_samples):
            assert float(result.elbo_Rn[row, j]) == pytest.approx(float(plain.elbo(row, j).detach()), rel=1e-5)
    assert not result.elbo_Rn.requires_grad


@pytest.mark.parametrize("algorithm", ["bgpo", "elbo_ratio", "espo"])
@pytest.mark.parametrize("estimator", ["exact_count", "bernoulli"])
def test_masked_normalisation_is_the_mean_over_masked_tokens(algorithm: str, estimator: str) -> None:
    policy = tiny_policy(seed=1)
    spec = method(algorithm=algorithm, length_normalization="masked", estimator=estimator)
    scored = score(spec)
    found, _ = accumulated(policy, scored, spec, stored_values(nearby(policy), scored, spec))
    plain_loss(policy, scored, spec, nearby(policy)).backward()
    close(found, gradients(policy), 5e-5)  # the two policies' terms nearly cancel in d
    stored, plain = stored_values(policy, scored, spec), Plain(policy, scored, "none")
    assert stored is not None
    for row in range(len(PROMPTS)):
        for j in range(5):
            masked = [float(x.detach()) for x in plain.log_probs[row][j] if x is not None]
            mean = math.fsum(masked) / len(masked) if masked else 0.0
            assert float(stored[row, j]) == pytest.approx(mean, rel=1e-5)


@EVERY
def test_the_gradient_of_the_kl(algorithm: str) -> None:
    policy = tiny_policy(seed=1)
    spec = method(algorithm=algorithm, kl_coefficient=0.7)
    scored, frozen = score(spec), nearby(policy, seed=4)
    reference = stored_values(frozen, scored, spec)
    found, result = accumulated(policy, scored, spec, None, reference)
    expected = plain_loss(policy, scored, spec, None, frozen)
    expected.backward()
    close(found, gradients(policy), 1e-5)
    assert float(result.loss) == pytest.approx(float(expected.detach()), rel=1e-4)
    new, other = Plain(policy, scored, spec.normalization), Plain(frozen, scored, spec.normalization)
    for row in range(len(PROMPTS)):
        kl = float(plain_kl(spec, new, other, row).detach())
        assert float(result.kl_R[row]) == pytest.approx(kl, rel=1e-3)
        assert kl > 0
    without, _ = accumulated(policy, scored, spec)
    assert (found - without).norm() > 0.1 * without.norm(), "the KL must matter here"


@EVERY
@pytest.mark.parametrize("off_policy", [False, True])
def test_the_micro_batch_does_not_change_the_gradient(algorithm: str, off_policy: bool) -> None:
    policy = tiny_policy(seed=2)
    spec = method(algorithm=algorithm, kl_coefficient=0.1)
    scored = score(spec)
    reference = stored_values(nearby(policy, seed=5), scored, spec)
    results = []
    for size in (1, 3, 7, 999):
        sized = spec.model_copy(update={"micro_batch": size})
        old = stored_values(nearby(policy), scored, sized) if off_policy else None
        results.append(accumulated(policy, scored, sized, old, reference))
    assert results[0][0].abs().max() > 1e-2
    for gradient, result in results[1:]:
        close(gradient, results[0][0], 1e-6 if not off_policy else 5e-6)
        torch.testing.assert_close(result.elbo_Rn, results[0][1].elbo_Rn, rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(result.objective_R, results[0][1].objective_R, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm", LINEAR)
def test_a_linear_objective_is_one_big_autograd_sample_by_sample(algorithm: str) -> None:
    policy = tiny_policy(seed=2)
    spec = method(algorithm=algorithm)
    scored = score(spec)
    old = stored_values(nearby(policy), scored, spec)
    one, _ = accumulated(policy, scored, spec.model_copy(update={"micro_batch": 1}), old)
    objective = OBJECTIVES[algorithm]
    flat = torch.arange(scored.weights_Rn.numel())
    values = values_of(policy, scored, flat, objective)
    shaped = values.view(len(PROMPTS), scored.n_samples, *values.shape[1:])
    samples = scored.samples(flat, scored.masks_RnL.shape[-1], scored.n_samples)
    assert old is not None
    g = objective.contributions(spec, shaped, old, scored.advantages_R, samples)
    (-g.sum() / N_RESPONSES).backward()
    close(one, gradients(policy), 5e-6)


def test_on_policy_the_ratio_objectives_have_one_gradient() -> None:
    policy = tiny_policy(seed=3)
    scored = score(method())
    bound, result = accumulated(policy, scored, method(algorithm="bgpo"))
    for name in ("elbo_ratio", "taylor_only", "jensen_only"):
        other, ratio = accumulated(policy, scored, method(algorithm=name))
        close(other, bound)
        assert float(ratio.loss) == pytest.approx(float(result.loss), abs=1e-6)
    # On-policy the value is the mean advantage, which is no progress metric.
    assert float(result.loss) == pytest.approx(-sum(ADVANTAGES) / N_RESPONSES, abs=1e-6)
    assert result.d_Rn.abs().max() == result.clamped_Rn.max() == 0


def test_off_policy_the_bound_is_below_and_its_branches_are_the_ablations() -> None:
    policy = tiny_policy(seed=3)
    spec = method()
    scored = score(spec)
    old = stored_values(policy, scored, spec)
    assert old is not None
    old = old - torch.linspace(-1, 1, 20).view(4, 5)
    found = {
        name: accumulate_gradient(policy, scored, method(algorithm=name), N_RESPONSES, old).objective_R
        for name in ("bgpo", "elbo_ratio", "taylor_only", "jensen_only")
    }
    positive = scored.advantages_R >= 0
    assert (found["bgpo"] < found["elbo_ratio"]).all()
    torch.testing.assert_close(found["bgpo"][positive], found["taylor_only"][positive])
    torch.testing.assert_close(found["bgpo"][~positive], found["jensen_only"][~positive])
    assert (found["taylor_only"][~positive] > found["elbo_ratio"][~positive]).all()
    assert (found["jensen_only"][positive] > found["elbo_ratio"][positive]).all()


@EVERY
def test_old_terms_are_computed_only_where_the_gradient_needs_them(algorithm: str) -> None:
    policy = tiny_policy(seed=4)
    spec = method(algorithm=algorithm, micro_batch=3)
    scored, before = score(spec), nearby(policy)
    calls = []
    hook = before.model.register_forward_hook(lambda *_: calls.append(1))
    needed, everything = old_values(before, scored, spec), stored_values(before, scored, spec)
    hook.remove()
    assert everything is not None
    if algorithm in ("taylor_only", "spg"):
        assert needed is None
    elif algorithm == "bgpo":
        assert needed is not None
        assert (needed[[0, 2]] == UNKNOWN).all()
        torch.testing.assert_close(needed[[1, 3]], everything[[1, 3]], rtol=1e-5, atol=1e-6)
        assert len(calls) == math.ceil(10 / 3) + math.ceil(20 / 3)
    else:
        assert needed is not None
        assert torch.equal(needed, everything)
    without, result = accumulated(policy, scored, spec, needed)
    if needed is not None:
        full, _ = accumulated(policy, scored, spec, everything)
        close(without, full, 1e-6)
        known = torch.tensor([False, True, False, True]) if algorithm == "bgpo" else torch.ones(4, dtype=torch.bool)
        assert result.d_Rn.isfinite().all(-1).tolist() == known.tolist()


def test_old_terms_are_the_terms_of_that_policy_without_a_graph() -> None:
    policy = tiny_policy(seed=4)
    spec = method()
    scored = score(spec)
    _, result = accumulated(policy, scored, spec)
    for size in (1, 6, 100):
        old = stored_values(policy, scored, spec.model_copy(update={"micro_batch": size}))
        assert old is not None
        assert not old.requires_grad
        torch.testing.assert_close(old, result.elbo_Rn, rtol=1e-6, atol=1e-5)


def test_the_prompt_mask_is_drawn_per_response_and_does_not_depend_on_the_padding() -> None:
    spec = method(algorithm="diffu_grpo", prompt_mask_probability=0.4)
    keys = stream_keys(0, Purpose.PROMPT_MASK, torch.arange(2000))
    canvases = build_canvases([[1, 2, 3]] * 1999 + [[1] * 9], [[1]] * 2000, 6, "cpu")
    masks = draw_samples(canvases, torch.ones(2000), keys, spec).prompt_masks_RP
    narrow = build_canvases([[1, 2, 3]] * 1999, [[1]] * 1999, 6, "cpu")
    alone = draw_samples(narrow, torch.ones(1999), keys[:1999], spec).prompt_masks_RP
    assert masks is not None
    assert alone is not None
    assert torch.equal(masks[:1999, 6:], alone)
    share = alone.double().mean(0)
    assert ((share - 0.4).abs() < 4 * math.sqrt(0.24 / 1999)).all()


def test_clamped_samples_are_counted() -> None:
    policy = tiny_policy(seed=3)
    spec = method(clamp_log_ratio=0.5)
    scored = score(spec)
    old = stored_values(policy, scored, spec)
    assert old is not None
    d = torch.tensor([[9.0, 9, 9, 9, 9], [1, 0, -1, 0.4, 0.6], [0, 0, 0, 0, 0], [-5, 2, 2, 2, 2]])
    _, result = accumulated(policy, scored, spec, old - d)
    assert result.clamped_Rn.mean(-1).tolist() == pytest.approx([0, 0.4, 0, 0.8])
    torch.testing.assert_close(result.d_Rn, d, rtol=1e-4, atol=1e-4)


def test_a_term_that_is_not_finite_makes_the_gradient_nan_and_is_found() -> None:
    policy = tiny_policy(seed=3)
    spec = method(micro_batch=2)
    scored = score(spec)
    old = stored_values(policy, scored, spec)
    assert old is not None
    old[1, 2] = torch.nan
    found, result = accumulated(policy, scored, spec, old)
    assert result.finite_R.tolist() == [True, False, True, True]
    assert found.isnan().any()


def test_gradients_add_up_over_calls() -> None:
    """Accumulation never clears what is there."""
    policy = tiny_policy(seed=5)
    spec = method()
    scored = score(spec)
    once, _ = accumulated(policy, scored, spec)
    accumulate_gradient(policy, scored, spec, N_RESPONSES)
    accumulate_gradient(policy, scored, spec, N_RESPONSES)
    close(gradients(policy), 2 * once)


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


@pytest.mark.parametrize("algorithm", ["bgpo", "jensen_only"])
def test_memory_of_a_linear_objective_does_not_depend_on_the_number_of_samples(algorithm: str) -> None:
    assert peak_saved_bytes(algorithm, 1) == peak_saved_bytes(algorithm, 2) == peak_saved_bytes(algorithm, 16)


@pytest.mark.parametrize("algorithm", ["elbo_ratio", "espo", "spg"])
def test_memory_of_any_other_grows_linearly(algorithm: str) -> None:
    one, four, sixteen = (peak_saved_bytes(algorithm, n) for n in (1, 4, 16))
    slope = (four - one) / 3
    assert sixteen - four == pytest.approx(12 * slope, rel=0.02)
    assert slope > 0.9 * one, "nearly nothing is shared between the samples"
    assert sixteen > 10 * peak_saved_bytes("bgpo", 16)
