"""What a step does when something is wrong: each fault is made to happen in the network itself."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bgpo.diffusion.elbo import build_canvases
from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.errors import NonFiniteError, OutOfMemory, ZeroGradientError
from bgpo.models import Policy
from bgpo.records import LogRecord
from bgpo.spec import Reinforcement
from bgpo.training.data import Row, batch_indices
from bgpo.training.guards import COLLAPSE_STEPS, CollapseWatch, check_gradient
from bgpo.training.scored import draw_samples, stored_values
from bgpo.training.step_metrics import ResponseRecord, Update
from tests.bgpo.training.harness import PROMPTS, STEP, Harness, rows_of, run_spec

Start = Callable[..., Harness]


@contextmanager
def fault(policy: Policy, change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Passes the hidden states of the forward passes that are differentiated through `change(tokens, hidden)`."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], hidden: Tensor) -> Tensor:
        return change(inputs[0], hidden) if torch.is_grad_enabled() else hidden

    handle = policy.model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def weights(policy: Policy) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


def same(policy: Policy, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())


def warnings(harness: Harness) -> list[str]:
    return [r.message for r in harness.records() if isinstance(r, LogRecord) and r.level == "warn"]


def test_an_update_whose_loss_is_nan_is_skipped_and_in_the_end_names_its_rows(wordy: Policy, start: Start) -> None:
    rows = rows_of(wordy)
    mark = wordy.encode("?")[0]
    marked = {i for i, row in enumerate(rows) if mark in row.prompt_ids}

    def poison(tokens: Tensor, hidden: Tensor) -> Tensor:
        bad = (tokens == mark).any(-1)
        return torch.where(bad[:, None, None], torch.nan, hidden)

    harness, before = start(wordy, rows, run_spec()), weights(wordy)
    with fault(wordy, poison):
        for step in (1, 2):
            metrics = harness.step(step)
            assert same(wordy, before)
            assert "grad_norm" not in metrics
            named = re.search(r"training rows \[([\d, ]+)\]", warnings(harness)[-1])
            assert named is not None
            found = {int(number) for number in named[1].split(",")}
            assert found <= marked & set(batch_indices(6, len(rows), PROMPTS, step))
        with pytest.raises(NonFiniteError, match=r"3 updates in a row \(last: training rows \[") as caught:
            harness.step(3)
    assert caught.value.code == "nan"
    assert harness.optimizer.non_finite_updates == 3
    assert same(wordy, before)


def test_after_a_skipped_update_the_run_goes_on(wordy: Policy, start: Start) -> None:
    harness, before = start(wordy, rows_of(wordy), run_spec()), weights(wordy)
    with fault(wordy, lambda tokens, hidden: hidden * torch.inf):
        harness.step(1)
    metrics = harness.step(2)
    assert math.isfinite(metrics["grad_norm"])
    assert not same(wordy, before)


def out_of_memory_above(limit: int) -> Callable[[Tensor, Tensor], Tensor]:
    def change(tokens: Tensor, hidden: Tensor) -> Tensor:
        if len(tokens) > limit:
            raise torch.OutOfMemoryError("simulated")
        return hidden

    return change


def test_out_of_memory_halves_the_micro_batch_and_goes_on(wordy: Policy, start: Start) -> None:
    twin = copy.deepcopy(wordy)
    harness = start(wordy, rows_of(wordy), run_spec(num_inner_updates=2))
    with fault(wordy, out_of_memory_above(2)):
        metrics = harness.step()
    expected = start(twin, rows_of(twin), run_spec(num_inner_updates=2, micro_batch=2)).step()
    assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    for name, value in wordy.model.state_dict().items():
        torch.testing.assert_close(value, twin.model.state_dict()[name], rtol=0, atol=1e-5)
    assert warnings(harness) == ["out of memory: micro_batch is now 2"]


def test_gradients_of_a_pass_that_ran_out_of_memory_are_dropped(wordy: Policy, start: Start) -> None:
    """It runs out late, with most of the gradient accumulated."""
    twin = copy.deepcopy(wordy)
    seen: list[int] = []

    def late(tokens: Tensor, hidden: Tensor) -> Tensor:
        seen.append(len(tokens))
        if len(seen) == 5:
            raise torch.OutOfMemoryError("simulated")
        return hidden

    with fault(wordy, late):
        start(wordy, rows_of(wordy), run_spec(micro_batch=4)).step()
    start(twin, rows_of(twin), run_spec(micro_batch=2)).step()
    assert seen[:5] == [4] * 5
    assert all(torch.equal(v, twin.model.state_dict()[n]) for n, v in wordy.model.state_dict().items())


def test_out_of_memory_again_names_the_setting(wordy: Policy, start: Start) -> None:
    harness = start(wordy, rows_of(wordy), run_spec())
    with fault(wordy, out_of_memory_above(1)), pytest.raises(OutOfMemory, match="micro_batch 2") as caught:
        harness.step()
    assert caught.value.param == "method.micro_batch"
    # Once in a run, not once a step.
    harness = start(wordy, rows_of(wordy), run_spec())
    with fault(wordy, out_of_memory_above(2)):
        harness.step(STEP)
    assert warnings(harness)
    with fault(wordy, out_of_memory_above(1)), pytest.raises(OutOfMemory):  # noqa: PT012  # one of them has signal
        for step in range(STEP + 1, STEP + 9):
            harness.step(step)


def test_a_non_linear_objective_out_of_memory_names_the_samples(wordy: Policy, start: Start) -> None:
    harness = start(wordy, rows_of(wordy), run_spec(algorithm="elbo_ratio"))
    with fault(wordy, out_of_memory_above(2)), pytest.raises(OutOfMemory, match="3 samples") as caught:
        harness.step()
    assert caught.value.param == "method.mc_samples"


def test_out_of_memory_in_the_old_terms_is_handled_alike(wordy: Policy, start: Start) -> None:
    """They are a pass of their own, without gradients."""
    calls: list[int] = []

    def hook(module: nn.Module, inputs: tuple[Any, ...], hidden: Tensor) -> None:
        if not torch.is_grad_enabled() and phase() == "training":
            calls.append(len(inputs[0]))
            if len(inputs[0]) > 2:
                raise torch.OutOfMemoryError("simulated")

    harness = start(wordy, rows_of(wordy), run_spec(num_inner_updates=2, algorithm="jensen_only"))
    phase = lambda: harness.trainer._reporter.phase  # noqa: E731  # rollouts may fail otherwise
    handle = wordy.model.register_forward_hook(hook)
    harness.step()
    handle.remove()
    assert calls[0] == 5
    assert max(calls[1:]) == 2
    assert warnings(harness) == ["out of memory: micro_batch is now 2"]


@pytest.mark.parametrize("answer", ["", "no response has this"])
@pytest.mark.parametrize("fields", [{}, {"num_inner_updates": 2, "kl": True, "dynamic_sampling_rounds": 2}], ids=str)
def test_a_batch_without_signal_makes_no_update_and_is_counted(
    wordy: Policy, wordy_checkpoint: Any, start: Start, answer: str, fields: dict[str, Any]
) -> None:
    fields = {**fields}
    if fields.pop("kl", False):
        fields["kl_coefficient"] = 0.5
    rows = [Row({**row.item, "answer": answer}, row.prompt_ids, []) for row in rows_of(wordy)]
    spec = run_spec(optimizer={"learning_rate": 0.1, "weight_decay": 0.5}, **fields)
    spec = spec.model_copy(update={"model": str(wordy_checkpoint)})
    harness, before = start(wordy, rows, spec), weights(wordy)
    metrics = harness.step()
    assert same(wordy, before)
    assert metrics["reward_mean"] == (1.0 if answer == "" else 0.0)
    assert metrics["reward_std"] == 0
    assert metrics["frac_zero_signal_groups"] == 1
    assert metrics["mini_batches_without_signal"] == fields.get("num_inner_updates", 1)
    assert metrics["further_rounds"] == fields.get("dynamic_sampling_rounds", 0)
    assert not {"loss", "grad_norm", "kl"} & metrics.keys()
    assert harness.optimizer.updates == 0


def test_a_gradient_of_exactly_zero_is_an_error(wordy: Policy, start: Start) -> None:
    harness = start(wordy, rows_of(wordy), run_spec())
    with fault(wordy, lambda tokens, hidden: hidden * 0), pytest.raises(ZeroGradientError, match="exactly zero"):
        harness.step()


def response(**fields: Any) -> ResponseRecord:
    values = {"slot": 0, "row": 3, "loss": 0.0, "elbo": -1.0, "kl": 0.0, "d_mean": 0.0, "d_max": 0.0}
    return ResponseRecord(**{**values, "clamped": 0.0, "finite": True, **fields})


def test_only_clamps_excuse_a_gradient_of_zero() -> None:
    check_gradient(Update([response(clamped=1.0), response(clamped=1.0)], 4, 0.0))
    check_gradient(Update([response()], 4, 1e-30))
    check_gradient(Update([response(finite=False)], 4, math.nan))
    with pytest.raises(ZeroGradientError, match=r"rows \[3, 5\]"):
        check_gradient(Update([response(clamped=1.0), response(row=5, clamped=0.5)], 4, 0.0))


def test_collapse_is_reported_once_until_it_is_over() -> None:
    watch = CollapseWatch()
    healthy = {"frac_zero_signal_groups": 0.5, "entropy": 1.0, "reward_mean": 0.5}
    flat, certain = healthy | {"frac_zero_signal_groups": 1.0}, healthy | {"entropy": 1e-4}
    for _ in range(2):
        assert [watch.observe(flat) for _ in range(COLLAPSE_STEPS - 1)] == [[]] * (COLLAPSE_STEPS - 1)
        (message,) = watch.observe(flat)
        assert "rewards" in message
        assert watch.observe(flat) == []
        assert watch.observe(healthy) == []
    for _ in range(COLLAPSE_STEPS - 1):
        assert watch.observe(certain) == []
    assert "entropy" in watch.observe(certain)[0]


def test_a_collapse_is_a_warning_of_the_run(wordy: Policy, start: Start) -> None:
    rows = [Row({**row.item, "answer": ""}, row.prompt_ids, []) for row in rows_of(wordy)]
    harness = start(wordy, rows, run_spec(group_size=2))
    for step in range(1, COLLAPSE_STEPS + 2):
        harness.step(step)
    assert len(warnings(harness)) == 1
    assert "reward_mean 1" in warnings(harness)[0]


def test_an_empty_response_is_its_end_token(wordy: Policy, start: Start) -> None:
    """Its ELBO is the log-probability of the end token in a canvas of one mask, whatever the sample."""
    end = wordy.end_ids[0]
    prompt = wordy.encode("abc")
    canvases = build_canvases([prompt], [[end]], end, "cpu")
    spec = run_spec().method
    assert isinstance(spec, Reinforcement)
    keys = stream_keys(6, Purpose.ELBO, STEP, torch.zeros(1, dtype=torch.int64))
    terms = stored_values(wordy, draw_samples(canvases, torch.ones(1), keys, spec), spec)
    assert terms is not None
    with torch.no_grad():
        hidden = wordy.model(torch.tensor([[*prompt, wordy.mask_id]]))[:, -1]
        expected = wordy.model.logits(hidden).log_softmax(-1)[0, end]
    torch.testing.assert_close(terms, expected.expand(1, spec.mc_samples))


def test_a_step_of_which_most_responses_are_empty(wordy: Policy, start: Start) -> None:
    with torch.no_grad():
        wordy.model.transformer["ff_out"].weight[wordy.end_ids[0], 0] += 1.5
    before = weights(wordy)
    metrics = start(wordy, rows_of(wordy), run_spec(group_size=16, mc_samples=2)).step()
    assert metrics["response_length"] < 2.5
    assert metrics["end_token_fraction"] > 0.9
    assert all(math.isfinite(value) for value in metrics.values())
    assert not same(wordy, before)
