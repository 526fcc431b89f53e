"""Evaluation: every row answered from its own stream, whatever the batch, and graded as in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.diffusion.sampler import sample
from bgpo.errors import SpecError
from bgpo.models import Policy
from bgpo.rewards import Sample, compile_grader
from bgpo.spec import Recipe
from bgpo.training.cluster import Cluster
from bgpo.training.data import Row
from bgpo.training.evaluation import answer_keys, decode_settings, evaluate

GRADER = {
    "type": "string_check",
    "name": "g",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "ilike",
}


def recipe(batch_size: int = 256, **fields: Any) -> Recipe:
    rollout = {"max_completion_length": 8, "block_length": 4, "diffusion_steps": 8, "temperature": 1.0}
    return Recipe.model_validate(
        {
            "seed": 5,
            "method": {"type": "reinforcement", "grader": GRADER, "rollout": rollout},
            **{"evaluation": {"batch_size": batch_size}, **fields},
        }
    )


def rows_of(policy: Policy, count: int = 13) -> list[Row]:
    """Prompts of several lengths; the answers are single letters, some of which random text contains."""
    items = [{"messages": [{"role": "user", "content": "?" * (i % 4)}], "answer": "aioe"[i % 4]} for i in range(count)]
    return [Row(item, policy.encode_prompt(item["messages"]), []) for item in items]  # type: ignore[arg-type]


def test_the_batch_size_does_not_change_the_result(wordy: Policy) -> None:
    rows = rows_of(wordy)
    results = [evaluate(wordy, rows, recipe(size)) for size in (1, 4, 13, 256)]
    assert all(result == results[0] for result in results)
    assert 0 < results[0]["sampled_solved_rate"] < 1


def test_the_numbers_are_those_of_each_row_answered_alone(wordy: Policy) -> None:
    rows, spec = rows_of(wordy), recipe()
    assert spec.method.rollout is not None
    grader = compile_grader(GRADER)
    expected = {}
    for mode, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        scores = []
        for i, row in enumerate(rows):
            key = stream_keys(5, Purpose.EVALUATION, torch.tensor([i]))
            found = sample(wordy, [row.prompt_ids], spec.method.rollout, key, temperature=temperature)
            text = wordy.decode(found.tokens_BG[0, : int(found.lengths_B[0])].tolist())
            scores.append(grader.grade(Sample(output_text=text), row.item).score)
        expected[f"{mode}_reward_mean"] = expected[f"{mode}_solved_rate"] = sum(scores) / len(rows)
        expected[f"{mode}_reward/g"] = expected[f"{mode}_reward_mean"]
        expected[f"{mode}_grader_errors"] = expected[f"{mode}_grader_error_rate"] = 0.0
        expected[f"{mode}_responses"] = float(len(rows))
    assert evaluate(wordy, rows, spec) == expected


def test_several_answers_add_to_the_first(wordy: Policy) -> None:
    """Answer 0 draws from the row's own stream; pass@k counts prompts with at least one solved answer."""
    rows, k = rows_of(wordy), 3
    spec = recipe(evaluation={"answers": k, "batch_size": 5})
    assert spec.method.rollout is not None
    keys = answer_keys(5, range(len(rows) * k), k).view(-1, k)
    assert torch.equal(keys[:, 0], stream_keys(5, Purpose.EVALUATION, torch.arange(len(rows))))
    assert len(set(keys.flatten().tolist())) == keys.numel()
    grader = compile_grader(GRADER)
    solved = []
    for row, row_keys in zip(rows, keys, strict=True):
        found = sample(wordy, [row.prompt_ids] * k, spec.method.rollout, row_keys, temperature=1.0)
        texts = [wordy.decode(response) for response in found.responses()]
        solved.append([grader.grade(Sample(output_text=text), row.item).solved for text in texts])
    metrics = evaluate(wordy, rows, spec)
    assert metrics["sampled_solved_rate"] == sum(map(sum, solved)) / (len(rows) * k)
    assert metrics["sampled_pass_at_k"] == sum(map(any, solved)) / len(rows)
    single = evaluate(wordy, rows, recipe())
    assert single["sampled_solved_rate"] == sum(row[0] for row in solved) / len(rows)
    assert single["sampled_solved_rate"] < metrics["sampled_pass_at_k"]
    assert {name: value for name, value in metrics.items() if name.startswith("greedy")} == {
        name: value for name, value in single.items() if name.startswith("greedy")
    }


def test_any_number_of_processes_finds_the_same(wordy: Policy) -> None:
    """Each grades its share; what they gather is put back in order. The exchange is played by one process here."""
    rows, spec = rows_of(wordy), recipe(evaluation={"answers": 2})
    parts: list[list[list[Any]]] = [[], []]

    class Recorder(Cluster):
        size = 2

        def gather(self, items: list[Any]) -> list[Any]:
            parts[self.rank].append(items)
            return items

    class Player(Cluster):
        def __init__(self) -> None:
            self.calls = iter(zip(*parts, strict=True))

        def share(self, slots: Sequence[int]) -> list[int]:
            return []

        def gather(self, items: list[Any]) -> list[Any]:
            first, second = next(self.calls)
            return [*second, *first]

    for rank in (0, 1):
        recorder = Recorder()
        recorder.rank = rank
        evaluate(wordy, rows, spec, recorder)
    assert evaluate(wordy, rows, spec, Player()) == evaluate(wordy, rows, spec)


def test_decode_settings_say_what_was_chosen_for_null(wordy: Policy) -> None:
    settings = decode_settings(wordy, recipe(), 13)
    assert settings["remasking"] == "low_confidence"
    assert (settings["temperature"], settings["rows"], settings["answers"], settings["seed"]) == (1.0, 13, 1, 5)


def test_it_leaves_the_policy_as_it_was(wordy: Policy) -> None:
    before = {name: value.clone() for name, value in wordy.model.state_dict().items()}
    evaluate(wordy, rows_of(wordy, 3), recipe())
    assert all(torch.equal(before[name], value) for name, value in wordy.model.state_dict().items())
    assert all(parameter.grad is None for parameter in wordy.model.parameters())


def test_the_precision_is_the_recipes(wordy: Policy) -> None:
    """A run in bfloat16 and a later evaluation of its checkpoint must compute alike."""
    seen = []
    hook = wordy.model.transformer["ff_out"].register_forward_hook(lambda *call: seen.append(call[2].dtype))
    evaluate(wordy, rows_of(wordy, 2), recipe())
    assert set(seen) == {torch.float32}
    seen.clear()
    evaluate(wordy, rows_of(wordy, 2), recipe(precision="bfloat16"))
    assert set(seen) == {torch.bfloat16}
    hook.remove()


def test_a_recipe_without_a_grader_cannot_be_evaluated(policy: Policy) -> None:
    with pytest.raises(SpecError) as caught:
        evaluate(policy, rows_of(policy, 1), Recipe.model_validate({"method": {"type": "supervised"}}))
    assert caught.value.param == "method.grader"


def test_a_temperature_of_zero_makes_both_modes_equal(wordy: Policy, tmp_path: Path) -> None:
    spec = recipe()
    assert spec.method.rollout is not None
    cold = spec.method.model_copy(update={"rollout": spec.method.rollout.model_copy(update={"temperature": 0.0})})
    found = evaluate(wordy, rows_of(wordy), spec.model_copy(update={"method": cold}))
    assert found["sampled_reward_mean"] == found["greedy_reward_mean"]
