"""The sampler against LLaDA's published algorithm written in plain loops, and against exact laws by chi-square."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import softmax
from torch import Tensor

from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.diffusion.sampler import Decoding, Rollouts, decode, sample
from bgpo.models import Policy
from bgpo.models.llada import LLaDAModel
from bgpo.spec import RolloutSpec
from tests.bgpo.reference import Array, Predict, greedy_decode
from tests.bgpo.tiny import predictor, tiny_policy

MASK, END = 7, 6


def rollout(length: int, block: int, steps: int, **fields: object) -> RolloutSpec:
    return RolloutSpec.model_validate(
        {"max_completion_length": length, "block_length": block, "diffusion_steps": steps, **fields}
    )


def keys_of(count: int, seed: int = 0) -> Tensor:
    return stream_keys(seed, Purpose.ROLLOUT, torch.arange(count))


def run(
    policy: Policy, prompts: Sequence[Sequence[int]], spec: RolloutSpec, temperature: float, seed: int = 0
) -> Rollouts:
    return sample(policy, prompts, spec, keys_of(len(prompts), seed), temperature=temperature)


def prompts_of(*lengths: int, vocabulary: int = 6) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in lengths]


class ShiftedMask(LLaDAModel):
    """A network that loves the mask token (a positive shift of its logit) or hates it (a negative one)."""

    mask_bias = 0.0

    def logits(self, hidden_MD: Tensor) -> Tensor:
        scores = super().logits(hidden_MD)
        scores[:, self.config.mask_token_id] += self.mask_bias
        return scores


def shift_mask(policy: Policy, shift: float) -> tuple[Policy, Predict]:
    """The policy with its mask logit shifted, and the numpy network with the same shift."""
    model = ShiftedMask(policy.model.config).eval()
    model.load_state_dict(policy.model.state_dict())
    model.mask_bias = shift
    policy.model = model
    predict = predictor(policy)
    row = shift * np.eye(model.config.embedding_size)[policy.mask_id]
    return policy, lambda canvas: predict(canvas) + row


def until_end(tokens: Sequence[int], end_ids: Sequence[int] = (END,)) -> list[int]:
    """Up to and including the first end token."""
    ends = [i for i, token in enumerate(tokens) if token in end_ids]
    return list(tokens[: ends[0] + 1] if ends else tokens)


def responses(rollouts: Rollouts) -> list[list[int]]:
    return [row[:length] for row, length in zip(rollouts.tokens_BG.tolist(), rollouts.lengths_B.tolist(), strict=True)]


@pytest.mark.parametrize(
    ("length", "block", "steps"),
    [(8, 8, 8), (8, 4, 8), (12, 4, 6), (8, 8, 3), (10, 5, 6), (8, 8, 1), (6, 1, 6), (14, 7, 10)],
    ids=lambda value: str(value),
)
def test_greedy_decoding_equals_the_published_algorithm(length: int, block: int, steps: int) -> None:
    ended = 0
    for seed in range(3):
        policy, predict = shift_mask(tiny_policy(seed=seed, std=0.4), -40)
        prompts = prompts_of(3, 1, 6)
        found = responses(run(policy, prompts, rollout(length, block, steps), 0.0))
        for prompt, response in zip(prompts, found, strict=True):
            published = greedy_decode(predict, prompt, length=length, block=block, steps=steps, mask_id=MASK)
            assert MASK not in published, "the mask token must never be the argmax in this test"
            assert response == until_end(published)
            ended += len(response) < length
    assert ended or length < 8, "some rows must end early for the comparison to cover it"


def test_greedy_decoding_of_a_larger_vocabulary_equals_the_published_algorithm() -> None:
    policy = tiny_policy(seed=1, vocabulary=50, end_id=48, std=0.3, d_model=32, n_heads=4, n_kv_heads=2)
    policy, predict = shift_mask(policy, -40)
    prompts = prompts_of(5, 9, vocabulary=48)
    found = responses(run(policy, prompts, rollout(24, 8, 9), 0.0))
    for prompt, response in zip(prompts, found, strict=True):
        published = greedy_decode(predict, prompt, length=24, block=8, steps=9, mask_id=49)
        assert response == until_end(published, (48,))


def decode_by_entropy(predict: Predict, prompt: Sequence[int], length: int, block: int, steps: int) -> list[int]:
    """Greedy decoding in plain loops that commits the positions of least entropy, an equal share a step."""
    canvas = [*prompt, *[MASK] * length]
    blocks = length // block
    for first in range(len(prompt), len(canvas), block):
        share, rest = divmod(block, steps // blocks)
        for step in range(steps // blocks):
            logits = predict(canvas)
            masked = [p for p in range(first, first + block) if canvas[p] == MASK]
            for position in sorted(masked, key=lambda p: entropy_of(logits[p]))[: share + (step < rest)]:
                canvas[position] = int(logits[position].argmax())
    return canvas[len(prompt) :]


@pytest.mark.parametrize(("length", "block", "steps"), [(8, 8, 8), (12, 6, 6), (9, 9, 4)])
def test_decoding_by_entropy_equals_plain_loops(length: int, block: int, steps: int) -> None:
    """Asked for by name, and as the family's own; not what low confidence decodes."""
    differs = 0
    for seed in range(4):
        policy, predict = shift_mask(tiny_policy(seed=seed, std=0.4), -40)
        prompts, spec = prompts_of(3, 1, 6), rollout(length, block, steps)
        by_confidence = responses(run(policy, prompts, spec, 0.0))
        found = responses(run(policy, prompts, rollout(length, block, steps, remasking="entropy"), 0.0))
        for prompt, response in zip(prompts, found, strict=True):
            assert response == until_end(decode_by_entropy(predict, prompt, length, block, steps))
        policy.remasking = "entropy"
        assert responses(run(policy, prompts, spec, 0.0)) == found
        by_name = rollout(length, block, steps, remasking="low_confidence")
        assert responses(run(policy, prompts, by_name, 0.0)) == by_confidence
        differs += found != by_confidence
    assert differs


def chi_square(observed: Mapping[object, int], law: Mapping[object, float], total: int) -> float:
    """p-value; outcomes expected fewer than 5 times are counted together."""
    assert sum(law.values()) == pytest.approx(1)
    assert set(observed) <= {outcome for outcome, p in law.items() if p > 0}, "an impossible outcome"
    common = [outcome for outcome, p in law.items() if p * total >= 5]
    rare = 1 - sum(law[outcome] for outcome in common)
    seen = [observed.get(outcome, 0) for outcome in common]
    expected = [law[outcome] * total for outcome in common]
    if rare * total >= 5:
        seen, expected = [*seen, total - sum(seen)], [*expected, rare * total]
    return float(stats.chisquare(seen, np.array(expected) * sum(seen) / sum(expected)).pvalue)


def suppressed(logits: Array, temperature: float) -> Array:
    """The law of the draw: softmax at a temperature, without the mask token."""
    logits = logits.copy()
    logits[MASK] = -np.inf
    law: Array = softmax(logits / temperature)
    return law


def entropy_of(logits: Array) -> float:
    p = softmax(logits)
    return float(-(p * np.log(p)).sum())


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_first_token_has_the_softmax_law(temperature: float) -> None:
    draws = 20_000
    policy = tiny_policy(seed=4, std=0.4)
    prompt = [2, 0, 5]
    law = suppressed(predictor(policy)([*prompt, MASK])[-1], temperature)
    assert 0.02 < law.max() < 0.9
    found = run(policy, [prompt] * draws, rollout(1, 1, 1), temperature)
    observed = Counter(found.tokens_BG[:, 0].tolist())
    assert chi_square(observed, dict(enumerate(law.tolist())), draws) > 0.01


@pytest.mark.parametrize(
    ("temperature", "remasking"),
    [(1.0, "low_confidence"), (0.7, "low_confidence"), (1.0, "random"), (1.0, "entropy"), (0.4, "entropy")],
)
def test_two_tokens_have_the_joint_law_of_the_algorithm(temperature: float, remasking: str) -> None:
    """Both positions are drawn, the more confident one stays, the other is drawn again given it: enumerated exactly."""
    draws = 20_000
    policy = tiny_policy(seed=2 if remasking != "entropy" else 3, std=0.4)
    predict, prompt = predictor(policy), [1, 4]
    blank = predict([*prompt, MASK, MASK])[2:]
    first_law = [suppressed(logits, temperature) for logits in blank]
    confidence = softmax(blank, axis=-1)
    given_left = [suppressed(predict([*prompt, a, MASK])[3], temperature) for a in range(MASK)]
    given_right = [suppressed(predict([*prompt, MASK, b])[2], temperature) for b in range(MASK)]
    law: Counter[tuple[int, ...]] = Counter()
    for a, b in itertools.product(range(MASK), repeat=2):
        drawn = first_law[0][a] * first_law[1][b]
        left = 0.5
        if remasking == "low_confidence":
            left = float(confidence[0, a] > confidence[1, b])
        elif remasking == "entropy":  # of the distribution drawn from, whichever tokens were drawn
            left = float(entropy_of(blank[0] / temperature) < entropy_of(blank[1] / temperature))
        for c in range(MASK):
            law[tuple(until_end((a, c)))] += drawn * left * given_left[a][c]
            law[tuple(until_end((c, b)))] += drawn * (1 - left) * given_right[b][c]
    found = run(policy, [prompt] * draws, rollout(2, 2, 2, remasking=remasking), temperature)
    observed = Counter(tuple(row) for row in responses(found))
    assert chi_square(observed, law, draws) > 0.01


@pytest.mark.parametrize(
    "fields",
    [{}, {"remasking": "random"}, {"remasking": "entropy"}, {"threshold": 0.6}, {"threshold": 1.0}],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("steps", [2, 6, 12])
def test_the_mask_token_is_never_left_or_emitted(steps: int, temperature: float, fields: dict[str, object]) -> None:
    policy, _ = shift_mask(tiny_policy(seed=5), 40)
    policy.end_ids = (MASK,)  # no token ends a response: every position must be decided
    found = run(policy, prompts_of(*range(1, 9)), rollout(12, 6, steps, **fields), temperature)
    assert (found.tokens_BG != MASK).all()
    assert found.tokens_BG.unique().numel() > 1


def test_rows_stop_at_any_end_token() -> None:
    """Either end token counts; what stands behind it is filled with the first one."""
    policy = tiny_policy(seed=6, std=0.2)
    policy.end_ids = (6, 5)
    found = run(policy, prompts_of(*[3] * 60), rollout(8, 4, 8), 1.0)
    endings = Counter()
    for row, length in zip(found.tokens_BG.tolist(), found.lengths_B.tolist(), strict=True):
        assert row[:length] == until_end(row, (5, 6))
        assert row[length:] == [6] * (8 - length)
        assert MASK not in row
        endings[row[length - 1]] += 1
    assert endings[5] > 5
    assert endings[6] > 5
    assert (found.lengths_B == 8).any()


def test_finished_rows_cost_nothing() -> None:
    """Decoded one token at a time from the left, a row runs through the network once for each token it has."""
    policy = tiny_policy(seed=6, std=0.2)
    found = run(policy, prompts_of(*[3] * 40), rollout(16, 1, 16), 1.0)
    assert found.forward_rows == int(found.lengths_B.sum())
    assert found.forward_rows < 40 * 16


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("fields", [{}, {"threshold": 0.4}, {"remasking": "random"}, {"remasking": "entropy"}], ids=str)
def test_a_row_does_not_depend_on_the_batch_around_it(temperature: float, fields: dict[str, object]) -> None:
    """Prompts of several lengths together (left padding) and each alone: the same tokens and entropy."""
    policy = tiny_policy(seed=8, std=0.3)
    prompts, spec = prompts_of(1, 7, 4, 4, 12), rollout(12, 4, 6, **fields)
    together = run(policy, prompts, spec, temperature)
    keys = keys_of(len(prompts))
    for row, prompt in enumerate(prompts):
        alone = sample(policy, [prompt], spec, keys[row : row + 1], temperature=temperature)
        assert alone.tokens_BG[0].tolist() == together.tokens_BG[row].tolist()
        assert int(alone.lengths_B[0]) == int(together.lengths_B[row])
        torch.testing.assert_close(alone.entropy_B[0], together.entropy_B[row], rtol=1e-5, atol=1e-6)
    permutation = torch.tensor([3, 0, 4, 1, 2])
    shuffled = sample(policy, [prompts[i] for i in permutation], spec, keys[permutation], temperature=temperature)
    assert torch.equal(shuffled.tokens_BG, together.tokens_BG[permutation])


def test_rows_with_the_same_key_decode_equally_and_others_do_not() -> None:
    policy = tiny_policy(seed=8, std=0.2)
    prompt, spec = [1, 2, 3], rollout(16, 8, 16)
    key = keys_of(2)
    found = sample(policy, [prompt] * 3, spec, key[[0, 0, 1]], temperature=1.0)
    rows = found.tokens_BG.tolist()
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


def confident_steps(predict: Predict, prompt: Sequence[int], length: int, block: int, threshold: float) -> list[int]:
    """Greedy threshold decoding in plain loops: all at or above the threshold, at least the best one."""
    canvas = [*prompt, *[MASK] * length]
    for first in range(len(prompt), len(canvas), block):
        while MASK in canvas[first : first + block]:
            masked = [p for p in range(first, first + block) if canvas[p] == MASK]
            probabilities = softmax(predict(canvas), axis=-1)
            confidence = probabilities.max(axis=-1)
            best = max(masked, key=confidence.__getitem__)
            for position in masked:
                if position == best or confidence[position] >= threshold:
                    canvas[position] = int(probabilities[position].argmax())
    return canvas[len(prompt) :]


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9])
def test_threshold_decoding_commits_all_confident_tokens(threshold: float) -> None:
    for seed in range(3):
        policy, predict = shift_mask(tiny_policy(seed=seed, std=0.4), -40)
        prompts = prompts_of(2, 5)
        policy.remasking = "entropy"  # a threshold is a probability, whatever the family's own confidence
        found = run(policy, prompts, rollout(12, 6, 12, threshold=threshold), 0.0)
        for prompt, response in zip(prompts, responses(found), strict=True):
            assert response == until_end(confident_steps(predict, prompt, 12, 6, threshold))


def test_a_threshold_saves_steps_and_diffusion_steps_bound_them() -> None:
    policy = tiny_policy(seed=3, std=0.4)
    policy.end_ids = (MASK,)
    for steps in (12, 4):
        plain = run(policy, prompts_of(*[3] * 8), rollout(12, 6, steps), 0.0).forward_rows
        eager = run(policy, prompts_of(*[3] * 8), rollout(12, 6, steps, threshold=0.3), 0.0).forward_rows
        assert plain == 8 * steps
        assert 8 * 2 <= eager < plain


def test_entropy_is_that_of_the_predictive_distribution_at_commitment() -> None:
    """One token at a time, so that the canvas each token was predicted on is known."""
    policy, predict = shift_mask(tiny_policy(seed=1, std=0.4), -40)
    prompt = [4, 4, 0]
    found = run(policy, [prompt], rollout(5, 1, 5), 1.0)
    response, entropies = responses(found)[0], []
    for i in range(len(response)):
        entropies.append(entropy_of(predict([*prompt, *response[:i], *[MASK] * (5 - i)])[len(prompt) + i]))
    assert float(found.entropy_B[0]) == pytest.approx(np.mean(entropies), rel=1e-4)


def test_sampling_leaves_no_graph() -> None:
    policy = tiny_policy()
    found = run(policy, [[1]], rollout(4, 4, 4), 1.0)
    assert not found.entropy_B.requires_grad


def test_decoding_in_steps_says_what_is_final() -> None:
    policy, _ = shift_mask(tiny_policy(seed=2, std=0.4), -40)
    prompts, spec = prompts_of(3, 5), rollout(12, 4, 6)
    whole = run(policy, prompts, spec, 0.0)
    decoding = Decoding(policy, prompts, 12, policy.device)
    said = []
    for final in decode(decoding, spec, keys_of(2), temperature=0.0):
        said.append(final)
        for row in decoding.rows.tolist():
            assert decoding.response()[row, :final].tolist() == whole.tokens_BG[row, :final].tolist()
    assert said == [0, 4, 4, 8, 8, 12][: len(said)]
    assert torch.equal(decoding.result().tokens_BG, whole.tokens_BG)


def test_a_dropped_row_costs_nothing_and_changes_no_other() -> None:
    policy, _ = shift_mask(tiny_policy(seed=2, std=0.05), -40)
    prompts, spec = prompts_of(3, 5), rollout(12, 4, 12)
    whole = run(policy, prompts, spec, 1.0)
    decoding = Decoding(policy, prompts, 12, policy.device)
    for step, _ in enumerate(decode(decoding, spec, keys_of(2), temperature=1.0)):
        if step == 0:
            decoding.drop(0)
    assert MASK in decoding.response()[0].tolist(), "left as it was"
    assert responses(decoding.result())[1] == responses(whole)[1]
    assert decoding.forward_rows < whole.forward_rows
