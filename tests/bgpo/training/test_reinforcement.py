"""One step of the trainer against Algorithm 1 of the paper in plain loops, a response at a time."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bgpo.diffusion.masking import draw_masks
from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.diffusion.sampler import sample
from bgpo.errors import GraderError
from bgpo.models import Policy
from bgpo.records import Record, SampleRecord
from bgpo.spec import Reinforcement, RunSpec
from bgpo.training.data import Row, batch_indices
from bgpo.training.groups import further_rows
from tests.bgpo.training.harness import (
    CLIP,
    EPSILON,
    GROUP,
    LENGTH,
    PROMPTS,
    RATE,
    SAMPLES,
    STEP,
    Harness,
    rows_of,
    run_spec,
)


@pytest.fixture
def step(start: Callable[..., Harness]) -> Any:
    """Runs step 2 of a trainer; gives its metrics and records."""

    def run(policy: Policy, rows: list[Row], spec: RunSpec) -> tuple[dict[str, float], list[Record]]:
        harness = start(policy, rows, spec)
        return harness.step(), harness.records()

    return run


class PlainResponse:
    """One response with everything Algorithm 1 needs of it."""

    def __init__(self, policy: Policy, row: Row, spec: Reinforcement, slot: int, number: int) -> None:
        self.row, self.slot = row, slot
        rollout_key = stream_keys(6, Purpose.ROLLOUT, STEP, slot, number).view(1)
        found = sample(policy, [row.prompt_ids], spec.rollout, rollout_key, temperature=1.0)
        tokens = found.tokens_BG[0].tolist()
        ends = [i for i, token in enumerate(tokens) if token in policy.end_ids]
        ended = tokens[: ends[0] + 1] if ends else tokens
        text = policy.tokenizer.decode(ended, skip_special_tokens=True)
        self.reward = float(row.item["answer"] in text)
        self.scored = ended + [policy.end_ids[0]] * (LENGTH - len(ended)) if spec.score_eos_padding else ended
        self.length = len(ended)
        key = stream_keys(6, Purpose.ELBO, STEP, slot, number).view(1)
        length = len(self.scored)
        masks, weights = draw_masks(key, torch.tensor([length]), length, SAMPLES, spec.estimator)
        self.masks, self.weights = masks[0], weights[0]
        self.advantage = 0.0

    def terms(self, policy: Policy) -> Tensor:
        """ell_j of each sample, from one unpadded canvas each."""
        found = []
        for mask, weight in zip(self.masks, self.weights, strict=True):
            noisy = [policy.mask_id if masked else token for masked, token in zip(mask, self.scored, strict=True)]
            hidden = policy.model(torch.tensor([[*self.row.prompt_ids, *noisy]]))[0, len(self.row.prompt_ids) :]
            log_probs = policy.model.logits(hidden).log_softmax(-1)
            found.append(weight * sum(log_probs[i, token] for i, token in enumerate(self.scored) if mask[i]))
        return torch.stack(found)


def algorithm_1(
    policy: Policy, rows: list[Row], spec: Reinforcement
) -> tuple[list[PlainResponse], list[float], list[float]]:
    """The whole step by hand: rollout, reward, advantage, an update for each mini-batch.

    Returns all responses, and loss and gradient norm of each update.
    """
    groups: list[list[PlainResponse]] = []

    def roll_out(slot: int, index: int) -> None:
        group = [PlainResponse(policy, rows[index], spec, slot, number) for number in range(GROUP)]
        mean, std = statistics.mean(r.reward for r in group), statistics.pstdev(r.reward for r in group)
        for r in group:
            r.advantage = (r.reward - mean) / std if std else 0.0
        groups.append(group)

    for slot, index in enumerate(batch_indices(6, len(rows), PROMPTS, STEP)):
        roll_out(slot, index)
    for number in range(1, spec.dynamic_sampling_rounds + 1):
        missing = PROMPTS - sum(any(r.advantage for r in group) for group in groups)
        for i, index in enumerate(further_rows(6, len(rows), PROMPTS, STEP, number)[:missing]):
            roll_out(number * PROMPTS + i, index)
    with_signal = [group for group in groups if any(r.advantage for r in group)]
    without = [group for group in groups if group not in with_signal]
    kept = sorted((with_signal + without)[:PROMPTS], key=lambda group: group[0].slot)
    responses = [r for group in kept for r in group]
    with torch.no_grad():
        old = {id(r): r.terms(policy) for r in responses}
    adamw = torch.optim.AdamW(policy.model.parameters(), lr=RATE, eps=EPSILON, weight_decay=0.0, foreach=False)
    size = PROMPTS // spec.num_inner_updates
    losses, norms = [], []
    for first in range(0, PROMPTS, size):
        batch = [r for group in kept[first : first + size] for r in group]
        if not any(r.advantage for r in batch):
            continue
        # bgpo's gradient does not need d where A >= 0; the trainer does not compute it and logs the value at d = 0.
        loss, unlogged = torch.zeros(()), 0.0
        for r in batch:
            d = r.terms(policy) - old[id(r)]
            if spec.algorithm == "elbo_ratio":
                loss = loss - d.mean().exp() * r.advantage / len(batch)
            elif r.advantage >= 0:
                loss = loss - ((1 + d) * r.advantage / SAMPLES).sum() / len(batch)
                unlogged -= float((d * r.advantage / SAMPLES).sum().detach()) / len(batch)
            else:
                loss = loss - (d.exp() * r.advantage / SAMPLES).sum() / len(batch)
        adamw.zero_grad()
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
        losses.append(float(loss.detach()) - unlogged)
        norms.append(float(gradient.norm()))
        for parameter in policy.model.parameters():
            assert parameter.grad is not None
            parameter.grad *= min(1.0, CLIP / norms[-1])
        adamw.step()
    return [r for group in groups for r in group], losses, norms


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_inner_updates": 2},
        {"num_inner_updates": 4, "algorithm": "elbo_ratio"},
        {"estimator": "bernoulli", "num_inner_updates": 2},
        {"score_eos_padding": True},
        {"dynamic_sampling_rounds": 3, "num_inner_updates": 2},
    ],
    ids=str,
)
def test_a_step_is_algorithm_1(wordy: Policy, step: Any, fields: dict[str, Any]) -> None:
    spec, rows = run_spec(**fields), rows_of(wordy)
    assert isinstance(spec.method, Reinforcement)
    plain = copy.deepcopy(wordy)
    before = {name: value.clone() for name, value in wordy.model.state_dict().items()}
    metrics, _ = step(wordy, rows, spec)
    responses, losses, norms = algorithm_1(plain, rows, spec.method)
    assert len({len(r.scored) for r in responses}) > 1 or spec.method.score_eos_padding, "lengths should vary"
    moved = 0.0
    for name, value in wordy.model.state_dict().items():
        moved = max(moved, float((value - before[name]).abs().max()))
        torch.testing.assert_close(value, plain.model.state_dict()[name], rtol=0, atol=2e-5)
    assert moved > 5e-3, "the step must be far larger than the tolerance"
    assert metrics["loss"] == pytest.approx(statistics.mean(losses), rel=1e-4, abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(max(norms), rel=1e-4)
    rewards = [r.reward for r in responses]
    assert metrics["reward_mean"] == metrics["solved_rate"] == pytest.approx(statistics.mean(rewards))
    assert metrics["reward_std"] == pytest.approx(statistics.pstdev(rewards))
    assert metrics["response_length"] == pytest.approx(statistics.mean(r.length for r in responses))
    slots = {r.slot for r in responses}
    silent = [slot for slot in slots if not any(r.advantage for r in responses if r.slot == slot)]
    assert metrics["frac_zero_signal_groups"] == len(silent) / len(slots)
    assert metrics["further_rounds"] == max(slots) // PROMPTS
    assert metrics["further_rounds"] > 0 or not spec.method.dynamic_sampling_rounds, "some group has no signal"
    assert metrics["grader_errors"] == 0
    assert metrics["learning_rate"] == RATE
    assert all(math.isfinite(value) for value in metrics.values())


def test_metrics_have_the_documented_names(wordy: Policy, step: Any) -> None:
    metrics, _ = step(wordy, rows_of(wordy), run_spec())
    assert set(metrics) == {
        "reward_mean",
        "reward_std",
        "reward/g",
        "solved_rate",
        "loss",
        "grad_norm",
        "mini_batches_without_signal",
        "d_mean",
        "d_max",
        "clamped_fraction",
        "further_rounds",
        "elbo_mean",
        "entropy",
        "frac_zero_signal_groups",
        "response_length",
        "end_token_fraction",
        "learning_rate",
        "tokens_per_second",
        "responses",
        "grader_errors",
        "grader_error_rate",
        "seconds_grader/g",
    }
    # On-policy the loss is the mean advantage, which is 0.
    assert metrics["loss"] == pytest.approx(0, abs=1e-6)
    assert metrics["elbo_mean"] < 0 < metrics["entropy"]
    assert metrics["d_mean"] == metrics["d_max"] == metrics["clamped_fraction"] == 0


def test_a_step_without_signal_changes_nothing(wordy: Policy, step: Any) -> None:
    rows = [Row({**row.item, "answer": ""}, row.prompt_ids, []) for row in rows_of(wordy)]  # all responses contain ""
    before = {name: value.clone() for name, value in wordy.model.state_dict().items()}
    metrics, _ = step(wordy, rows, run_spec(optimizer={"learning_rate": 0.1, "weight_decay": 0.5}))
    assert all(torch.equal(before[name], value) for name, value in wordy.model.state_dict().items())
    assert metrics["frac_zero_signal_groups"] == 1
    assert metrics["reward_mean"] == 1
    assert "loss" not in metrics
    assert "grad_norm" not in metrics


def test_responses_that_cannot_be_graded_are_counted_and_left_out(wordy: Policy, step: Any) -> None:
    rows = rows_of(wordy)
    picked = batch_indices(6, len(rows), PROMPTS, STEP)
    item = {"messages": rows[picked[1]].item["messages"]}  # no answer to compare with
    rows[picked[1]] = Row(item, rows[picked[1]].prompt_ids, [])
    metrics, records = step(wordy, rows, run_spec())
    assert metrics["grader_errors"] == GROUP
    assert metrics["frac_zero_signal_groups"] >= 1 / PROMPTS
    samples = [r for r in records if isinstance(r, SampleRecord)]
    assert samples[1].reward is None
    assert "answer" in str(samples[1].error)
    assert samples[0].reward is not None
    assert samples[0].error is None


def test_a_batch_of_which_nothing_can_be_graded_fails_the_run(wordy: Policy, step: Any) -> None:
    rows = [Row({"messages": row.item["messages"]}, row.prompt_ids, []) for row in rows_of(wordy)]
    with pytest.raises(GraderError, match="answer") as caught:
        step(wordy, rows, run_spec())
    assert caught.value.param == "method.grader"


def test_sample_records_show_prompt_answer_and_reward(wordy: Policy, step: Any) -> None:
    """The prompt is the user's, also in data whose rows bring a demonstration."""
    rows = rows_of(wordy)
    for row in rows:
        row.item["messages"].append({"role": "assistant", "content": "a demonstration"})
    picked = batch_indices(6, len(rows), PROMPTS, STEP)
    _, records = step(wordy, rows, run_spec())
    samples = [r for r in records if isinstance(r, SampleRecord)]
    assert [(s.index, s.step, s.split) for s in samples] == [(0, STEP, "train"), (1, STEP, "train")]
    for found in samples:
        row = rows[picked[found.index]]
        assert found.prompt == row.item["messages"][0]["content"]
        assert found.reward == float(row.item["answer"] in found.completion)
        assert found.scores == {"g": found.reward}


def test_the_same_step_is_the_same_step(wordy: Policy, step: Any) -> None:
    """Nothing global, nothing left over from an earlier step."""
    twin = copy.deepcopy(wordy)
    first, _ = step(wordy, rows_of(wordy), run_spec(num_inner_updates=2))
    torch.manual_seed(99)
    second, _ = step(twin, rows_of(twin), run_spec(num_inner_updates=2))
    timed = ("tokens_per_second", "seconds_grader/g")
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}
    for name, value in wordy.model.state_dict().items():
        assert torch.equal(value, twin.model.state_dict()[name])
