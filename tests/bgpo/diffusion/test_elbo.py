"""ELBO terms against all masks of a short response, enumerated, with log-probabilities from the numpy network."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import pytest
import torch

from bgpo.diffusion.elbo import build_canvases, elbo_terms_of, masked_log_probs
from bgpo.diffusion.estimators import T_MIN
from bgpo.models import Policy
from bgpo.scoring import elbo_terms
from bgpo.spec import EstimatorName
from tests.bgpo.reference import exact_elbo, masked_sums
from tests.bgpo.tiny import predictor, tiny_policy

PROMPT, RESPONSE = [0, 3, 3], [2, 5, 1, 6]
LENGTH = len(RESPONSE)


@pytest.fixture(scope="module")
def tiny() -> Policy:
    return tiny_policy(seed=3, std=0.5)


@pytest.fixture(scope="module")
def sums(tiny: Policy) -> dict[tuple[int, ...], float]:
    return masked_sums(predictor(tiny), PROMPT, RESPONSE, tiny.mask_id)


def mask_of(masked: tuple[int, ...]) -> list[bool]:
    return [i in masked for i in range(LENGTH)]


def test_the_published_formula_enumerated_is_the_elbo(tiny: Policy, sums: dict[tuple[int, ...], float]) -> None:
    """LLaDA's Eq. 14: k uniform on 1..L, a uniform set of k positions, weight L / k; each set scored by `bgpo`."""
    sets = list(sums)
    masks = torch.tensor([mask_of(masked) for masked in sets])
    weights = torch.tensor([LENGTH / len(masked) for masked in sets])
    canvases = build_canvases([PROMPT] * len(sets), [RESPONSE] * len(sets), 6, "cpu")
    terms = elbo_terms_of(tiny, canvases, masks, weights)
    expected = torch.tensor([sums[masked] * LENGTH / len(masked) for masked in sets])
    torch.testing.assert_close(terms, expected, rtol=1e-5, atol=1e-5)
    probabilities = [1 / (LENGTH * math.comb(LENGTH, len(masked))) for masked in sets]
    assert sum(probabilities) == pytest.approx(1)
    mean = sum(p * float(term) for p, term in zip(probabilities, terms.detach(), strict=True))
    assert mean == pytest.approx(exact_elbo(sums, LENGTH), rel=1e-5)


@pytest.mark.parametrize("estimator", get_args(EstimatorName))
@pytest.mark.parametrize("n_samples", [1, 16])
def test_the_estimators_mean_is_the_elbo(
    tiny: Policy, sums: dict[tuple[int, ...], float], estimator: EstimatorName, n_samples: int
) -> None:
    """Rows are independent, so their spread gives the standard error, stratified or not."""
    rows = 6400 // n_samples
    with torch.no_grad():
        terms = elbo_terms(
            tiny, [PROMPT] * rows, [RESPONSE] * rows, n_samples=n_samples, estimator=estimator, seed=5
        ).double()
    means = terms.mean(-1)
    error = float(means.std() / rows**0.5)
    truth = exact_elbo(sums, LENGTH)
    assert error < 0.1 * abs(truth), "the bound below would show nothing"
    if estimator == "quadrature" and n_samples == 1:
        truth = sum(value * 0.5 ** (LENGTH - 1) for value in sums.values())  # one node at 1/2, weight 2
    floor = T_MIN * abs(truth) * LENGTH if estimator in ("bernoulli", "stratified") else 0.0
    assert abs(float(means.mean()) - truth) < 3.5 * error + floor


def test_terms_are_those_of_the_masks_drawn(tiny: Policy, sums: dict[tuple[int, ...], float]) -> None:
    """Every term is the sum over one of the sets, times its weight."""
    terms = elbo_terms(tiny, [PROMPT], [RESPONSE], n_samples=64, estimator="exact_count", seed=8)[0].tolist()
    possible = [value * LENGTH / len(masked) for masked, value in sums.items()]
    for term in terms:
        assert min(abs(term - value) for value in possible) < 1e-4


@pytest.mark.parametrize("lengths", [[(1, 1), (4, 6), (2, 3)], [(3, 4), (3, 4)], [(0, 2), (5, 1)]])
def test_log_probs_do_not_depend_on_padding(tiny: Policy, lengths: list[tuple[int, int]]) -> None:
    """Rows of several lengths together, against each alone in the numpy network."""
    generator = torch.Generator().manual_seed(len(lengths))
    rows = [[torch.randint(0, 6, (n,), generator=generator).tolist() for n in pair] for pair in lengths]
    canvases = build_canvases([row[0] for row in rows], [row[1] for row in rows], 6, "cpu")
    masks = torch.rand(len(rows), canvases.response_length, generator=generator) < 0.6
    masks &= torch.arange(canvases.response_length) < canvases.lengths_B[:, None]
    masks[:, 0] = True
    found = masked_log_probs(tiny, canvases, masks).detach()
    predict = predictor(tiny)
    for row, (prompt, response) in enumerate(rows):
        noisy = [tiny.mask_id if masks[row, i] else token for i, token in enumerate(response)]
        logits = torch.from_numpy(predict([*prompt, *noisy])[len(prompt) :])
        for i in range(canvases.response_length):
            expected = float(logits[i].log_softmax(-1)[response[i]]) if i < len(response) and masks[row, i] else 0.0
            assert float(found[row, i]) == pytest.approx(expected, rel=2e-6, abs=2e-6)


def test_canvases_cut_to_the_rows_selected() -> None:
    canvases = build_canvases([[1], [1, 2]], [[3, 4, 5], [3]], 6, "cpu")
    assert canvases.tokens_BT.tolist() == [[6, 1, 3, 4, 5], [1, 2, 3, 6, 6]]
    assert canvases.attention_BT is not None
    assert canvases.attention_BT.tolist() == [[False, True, True, True, True], [True, True, True, False, False]]
    short = canvases.select(torch.tensor([1, 1]))
    assert short.tokens_BT.tolist() == [[1, 2, 3]] * 2
    assert short.response_length == 1
    assert build_canvases([[1], [2]], [[3], [4]], 6, "cpu").attention_BT is None


def test_empty_masks_contribute_zero_with_a_gradient_that_exists(tiny: Policy) -> None:
    canvases = build_canvases([PROMPT] * 2, [RESPONSE] * 2, 6, "cpu")
    terms = elbo_terms_of(tiny, canvases, torch.zeros(2, LENGTH, dtype=torch.bool), torch.tensor([500.0, 1.0]))
    assert terms.tolist() == [0.0, 0.0]
    gradients = torch.autograd.grad(terms.sum(), list(tiny.model.parameters()), allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_an_empty_response_has_no_elbo() -> None:
    with pytest.raises(ValueError, match="no token"):
        build_canvases([[1], [2]], [[3], []], 6, "cpu")


def test_gradient_of_a_term_against_finite_differences(tiny: Policy) -> None:
    """One weight deep in the network, moved by hand in the numpy network."""
    parameter = dict(tiny.model.named_parameters())["model.transformer.blocks.0.k_proj.weight"]
    masked = (0, 2, 3)
    canvases = build_canvases([PROMPT], [RESPONSE], 6, "cpu")
    term = elbo_terms_of(tiny, canvases, torch.tensor([mask_of(masked)]), torch.tensor([LENGTH / 3]))
    (gradient,) = torch.autograd.grad(term.sum(), parameter)
    step = 1e-3
    for index in itertools.product((0, 7), (1, 12)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                original = parameter[index].clone()
                parameter[index] += sign * step
                values.append(masked_sums_of(tiny, masked) * LENGTH / 3)
                parameter[index] = original
        assert float(gradient[index]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=2e-3, abs=1e-4)


def masked_sums_of(policy: Policy, masked: tuple[int, ...]) -> float:
    noisy = [policy.mask_id if i in masked else token for i, token in enumerate(RESPONSE)]
    log_probs = torch.from_numpy(predictor(policy)([*PROMPT, *noisy])[len(PROMPT) :]).log_softmax(-1)
    return float(sum(log_probs[i, RESPONSE[i]] for i in masked))
