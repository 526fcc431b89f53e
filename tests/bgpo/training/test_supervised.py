"""Supervised steps against LLaDA's loss in plain loops: answers padded with end tokens, 1 / t weighting."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bgpo.diffusion.masking import draw_masks
from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.errors import NonFiniteError, OutOfMemory
from bgpo.models import Policy
from bgpo.records import RecordWriter
from bgpo.spec import RunSpec, Supervised, parse_run_spec
from bgpo.training.cluster import Cluster
from bgpo.training.data import Row, batch_indices
from bgpo.training.optimizer import Optimizer
from bgpo.training.reporter import Reporter, Stopwatch
from bgpo.training.supervised import SupervisedTrainer

LENGTH, BATCH, STEP, SEED = 7, 5, 3, 4


def run_spec(**method: Any) -> RunSpec:
    settings = {"type": "supervised", "batch_size": BATCH, "max_completion_length": LENGTH, "micro_batch": 2, **method}
    return parse_run_spec({"model": "m", "train_data": "t", "output_dir": "o", "seed": SEED, "method": settings})


def rows_of(policy: Policy) -> list[Row]:
    rows = []
    for i in range(8):
        messages = [{"role": "user", "content": "?" * (i % 3)}]
        answer = [*policy.encode("abcdef"[: i % 7]), policy.end_ids[-1]]
        rows.append(Row({"messages": messages}, policy.encode_prompt(messages), answer))
    return rows


@pytest.fixture
def make() -> Iterator[Any]:
    """Makes trainers that report into the void."""
    descriptor = os.open(os.devnull, os.O_WRONLY)

    def trainer(policy: Policy, spec: RunSpec) -> SupervisedTrainer:
        assert isinstance(spec.method, Supervised)
        optimizer = Optimizer(policy.model, spec.method.optimizer, 10)
        reporter = Reporter(RecordWriter(descriptor), 10)
        return SupervisedTrainer(policy, optimizer, rows_of(policy), spec, spec.method, reporter, Cluster())

    yield trainer
    os.close(descriptor)


def plain_loss(policy: Policy, row: Row, key: Tensor) -> tuple[Tensor, list[float]]:
    """Negative ELBO estimate per response token of one row, and the probabilities of its masked tokens."""
    answer = row.answer_ids + [policy.end_ids[0]] * (LENGTH - len(row.answer_ids))
    masks, weights = draw_masks(key.view(1), torch.tensor([LENGTH]), LENGTH, 1, "exact_count")
    mask = masks[0, 0].tolist()
    assert float(weights[0, 0]) == pytest.approx(LENGTH / sum(mask))
    noisy = [policy.mask_id if masked else token for masked, token in zip(mask, answer, strict=True)]
    hidden = policy.model(torch.tensor([[*row.prompt_ids, *noisy]]))[0, len(row.prompt_ids) :]
    log_probs = policy.model.logits(hidden).log_softmax(-1)
    chosen = torch.stack([log_probs[i, token] for i, token in enumerate(answer) if mask[i]])
    return -LENGTH / sum(mask) * chosen.sum() / LENGTH, chosen.detach().exp().tolist()


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 64])
def test_a_step_is_the_mean_loss_of_its_rows(policy: Policy, make: Any, micro_batch: int) -> None:
    optimizer = {"learning_rate": 0.01, "epsilon": 1e-3, "max_grad_norm": 100.0}
    spec = run_spec(micro_batch=micro_batch, optimizer=optimizer)
    plain = copy.deepcopy(policy)
    metrics = make(policy, spec).step(STEP, Stopwatch())
    rows = rows_of(plain)
    adamw = torch.optim.AdamW(plain.model.parameters(), lr=0.01, eps=1e-3, weight_decay=0.0, foreach=False)
    losses, probabilities = [], []
    for slot, index in enumerate(batch_indices(SEED, len(rows), BATCH, STEP)):
        loss, found = plain_loss(plain, rows[index], stream_keys(SEED, Purpose.SUPERVISED, STEP, slot))
        losses.append(loss)
        probabilities += found
    mean = torch.stack(losses).mean()
    mean.backward()
    gradient = torch.cat([p.grad.flatten() for p in plain.model.parameters() if p.grad is not None])
    adamw.step()
    assert metrics["loss"] == pytest.approx(float(mean.detach()), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert metrics["token_probability"] == pytest.approx(sum(probabilities) / len(probabilities), rel=1e-4)
    assert metrics["learning_rate"] == 0.01
    for name, value in policy.model.state_dict().items():
        torch.testing.assert_close(value, plain.model.state_dict()[name], rtol=0, atol=1e-5)


def test_validation_loss_has_fixed_masks_and_no_batch_size(policy: Policy, make: Any) -> None:
    rows = rows_of(policy)
    expected = [
        float(plain_loss(policy, row, stream_keys(SEED, Purpose.EVALUATION, torch.tensor(i)))[0].detach())
        for i, row in enumerate(rows)
    ]
    for micro_batch in (1, 3, 64):
        trainer = make(policy, run_spec(micro_batch=micro_batch))
        assert trainer.validation_loss(rows) == pytest.approx(sum(expected) / len(rows), rel=1e-5)
        assert trainer.validation_loss(rows) == trainer.validation_loss(rows)
    assert all(parameter.grad is None for parameter in policy.model.parameters())


def test_steps_learn_the_data(policy: Policy, make: Any) -> None:
    trainer = make(policy, run_spec(optimizer={"learning_rate": 0.01}, batch_size=8, micro_batch=8))
    rows = rows_of(policy)
    before = trainer.validation_loss(rows)
    for step in range(1, 41):
        trainer.step(step, Stopwatch())
    assert trainer.validation_loss(rows) < 0.5 * before


def test_a_lack_of_memory_halves_the_micro_batch_once(policy: Policy, make: Any) -> None:
    spec = run_spec(micro_batch=4, optimizer={"learning_rate": 0.01})
    plain = copy.deepcopy(policy)
    expected = make(plain, spec).step(STEP, Stopwatch())

    def limited(rows: int) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if len(inputs[0]) > rows:
                raise torch.OutOfMemoryError("simulated")

        return policy.model.register_forward_pre_hook(hook)

    trainer = make(policy, spec)
    limit = limited(2)
    metrics = trainer.step(STEP, Stopwatch())
    assert metrics == pytest.approx(expected, rel=1e-5)
    for name, value in policy.model.state_dict().items():
        torch.testing.assert_close(value, plain.model.state_dict()[name], rtol=0, atol=1e-5)
    limit.remove()
    limited(1)
    with pytest.raises(OutOfMemory) as caught:
        trainer.step(STEP + 1, Stopwatch())
    assert caught.value.param == "method.micro_batch"


def test_a_run_that_fails_names_the_rows_whose_loss_is_not_finite(policy: Policy, make: Any) -> None:
    trainer = make(policy, run_spec(micro_batch=1))
    rows = batch_indices(SEED, 8, BATCH, STEP)
    seen = []

    def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...], hidden: Tensor) -> Tensor:
        seen.append(None)
        return hidden * float("nan") if len(seen) % BATCH == 2 else hidden

    policy.model.register_forward_hook(hook)
    for _ in range(2):
        trainer.step(STEP, Stopwatch())
    with pytest.raises(NonFiniteError, match=rf"training rows \[{rows[1]}\]"):
        trainer.step(STEP, Stopwatch())
