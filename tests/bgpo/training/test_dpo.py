"""Preference steps against VRPO's loss in plain loops: every canvas alone and unpadded, one graph for a whole batch."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bgpo.diffusion.elbo import build_canvases
from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.errors import OutOfMemory
from bgpo.models import Policy, load_policy
from bgpo.records import RecordWriter
from bgpo.spec import Dpo, RunSpec, parse_run_spec
from bgpo.training.cluster import Cluster
from bgpo.training.data import Row, batch_indices
from bgpo.training.dpo import Answers, DpoTrainer, accumulate_gradient, draw_answers
from bgpo.training.optimizer import Optimizer
from bgpo.training.reporter import Reporter, Stopwatch
from tests.bgpo.saved_bytes import SavedBytes
from tests.bgpo.tiny import tiny_policy

BETA, SEED, STEP, BATCH = 0.3, 4, 3, 5
ROWS = [
    Row({}, [0, 1, 2], [1, 2, 5, 6], [3, 6]),
    Row({}, [3], [6], [2, 2, 0, 1, 3, 6]),
    Row({}, [4, 4, 1, 0, 2], [5, 3, 6], [5, 4, 6]),
]


def method(**fields: Any) -> Dpo:
    return Dpo.model_validate({"mc_samples": 4, "beta": BETA, **fields})


def drawn(policy: Policy, rows: Sequence[Row] = ROWS, **fields: Any) -> Answers:
    keys = stream_keys(SEED, Purpose.PREFERENCE, STEP, torch.arange(len(rows))[:, None], torch.arange(2))
    return draw_answers(policy, rows, keys, method(**fields))


def plain_elbo(policy: Policy, row: Row, answer: Sequence[int], masks_nL: Tensor, weights_n: Tensor) -> Tensor:
    """Mean over the samples of w * sum over masked i of log p(y_i | x, y_masked)."""
    terms = []
    for mask, weight in zip(masks_nL, weights_n, strict=True):
        noisy = [policy.mask_id if mask[i] else token for i, token in enumerate(answer)]
        hidden = policy.model(torch.tensor([[*row.prompt_ids, *noisy]]), None)[0, len(row.prompt_ids) :]
        log_probs = policy.model.logits(hidden).log_softmax(-1)
        chosen = [log_probs[i, token] for i, token in enumerate(answer) if mask[i]]
        terms.append(float(weight) * torch.stack(chosen).sum() if chosen else 0.0 * hidden.sum())
    return torch.stack(terms).mean()


def plain_elbos(policy: Policy, rows: Sequence[Row], answers: Answers) -> Tensor:
    """Of both answers of each pair, (P, 2), in one graph."""
    return torch.stack(
        [
            plain_elbo(policy, row, answer, answers.masks_RnL[2 * p + side], answers.weights_Rn[2 * p + side])
            for p, row in enumerate(rows)
            for side, answer in enumerate((row.answer_ids, row.rejected_ids))
        ]
    ).view(-1, 2)


def plain_losses(elbos_P2: Tensor, reference_P2: Tensor) -> Tensor:
    difference = elbos_P2 - reference_P2
    return -torch.sigmoid(BETA * (difference[:, 0] - difference[:, 1])).log()


def gradients(policy: Policy) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
    policy.model.zero_grad(set_to_none=True)
    return found


def close(left: Tensor, right: Tensor, tolerance: float = 1e-6) -> None:
    """To 1e-6 of the gradient's length, which is rounding in float32."""
    assert float((left - right).norm() / right.norm()) < tolerance


class TestGradient:
    @pytest.mark.parametrize("estimator", ["antithetic", "exact_count", "bernoulli"])
    def test_it_is_that_of_the_closed_formula(self, estimator: str) -> None:
        policy = tiny_policy(seed=1)
        answers = drawn(policy, estimator=estimator)
        n_pairs = len(ROWS) + 2  # other processes hold two more
        reference = answers.elbos(tiny_policy(seed=2), 7) + torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
        found = accumulate_gradient(policy, answers, reference, BETA, n_pairs, 3)
        gradient = gradients(policy)
        elbos = plain_elbos(policy, ROWS, answers)
        losses = plain_losses(elbos, reference.float())
        assert float(losses.detach().min()) < 0.5 < 1 < float(losses.detach().max()), "margins of both signs"
        (losses.sum() / n_pairs).backward()
        close(gradient, gradients(policy), 2e-6)
        torch.testing.assert_close(
            plain_elbos(tiny_policy(seed=2), ROWS, answers).detach(),
            answers.elbos(tiny_policy(seed=2), 7).float(),
            rtol=1e-5,
            atol=1e-5,
        )
        torch.testing.assert_close(found.float(), elbos.detach(), rtol=1e-5, atol=1e-5)

    def test_the_micro_batch_does_not_change_it(self) -> None:
        policy = tiny_policy(seed=3)
        answers = drawn(policy)
        reference = answers.elbos(tiny_policy(seed=4), 5)
        results = []
        for size in (1, 2, 5, 24, 999):
            accumulate_gradient(policy, answers, reference, BETA, len(ROWS), size)
            results.append(gradients(policy))
        assert results[0].abs().max() > 1e-2
        for gradient in results[1:]:
            close(gradient, results[0])

    def test_at_the_reference_it_raises_the_chosen_and_lowers_the_rejected(self) -> None:
        policy = tiny_policy(seed=5)
        answers = drawn(policy)
        accumulate_gradient(policy, answers, answers.elbos(policy, 9), BETA, len(ROWS), 9)
        found = gradients(policy)
        elbos = plain_elbos(policy, ROWS, answers)
        (-BETA / 2 * (elbos[:, 0] - elbos[:, 1]).mean()).backward()
        close(found, gradients(policy))

    def test_gradients_of_shares_add_up(self) -> None:
        policy = tiny_policy(seed=6)
        reference = tiny_policy(seed=7)
        answers = drawn(policy)
        accumulate_gradient(policy, answers, answers.elbos(reference, 9), BETA, len(ROWS), 4)
        whole = gradients(policy)
        keys = stream_keys(SEED, Purpose.PREFERENCE, STEP, torch.arange(len(ROWS))[:, None], torch.arange(2))
        for share in ([0, 2], [1]):
            part = draw_answers(policy, [ROWS[i] for i in share], keys[share], method())
            accumulate_gradient(policy, part, part.elbos(reference, 9), BETA, len(ROWS), 4)
        close(gradients(policy), whole)

    def test_memory_does_not_depend_on_the_number_of_samples(self) -> None:
        policy = tiny_policy(seed=6)
        canvases = build_canvases([[0, 1]] * 4, [[1, 2, 3, 6]] * 4, 6, "cpu")
        peaks = set()
        for n_samples in (1, 2, 16):
            # All samples mask the same number of positions, so that they cost the same.
            masks = torch.zeros(4, n_samples, 4, dtype=torch.bool)
            masks[..., 1:3] = True
            answers = Answers(canvases, masks, torch.full((4, n_samples), 2.0))
            count = SavedBytes(policy)
            with torch.autograd.graph.saved_tensors_hooks(count.pack, lambda packed: packed.tensor):
                accumulate_gradient(policy, answers, torch.zeros(2, 2), BETA, 2, 1)
            assert count.held == 0, "nothing outlives the backward passes"
            peaks.add(count.peak)
        assert len(peaks) == 1


def run_spec(checkpoint: Path, **fields: Any) -> RunSpec:
    settings = {"type": "dpo", "batch_size": BATCH, "beta": BETA, "mc_samples": 2, "micro_batch": 4, **fields}
    paths = {"model": str(checkpoint), "train_data": "t", "output_dir": "o"}
    return parse_run_spec({**paths, "seed": SEED, "method": {"max_completion_length": 8, **settings}})


def pairs_of(policy: Policy) -> list[Row]:
    rows = []
    for i in range(8):
        prompt = policy.encode_prompt([{"role": "user", "content": "?" * (i % 3)}])
        chosen, rejected = ([*policy.encode(text), policy.end_ids[-1]] for text in ("ab"[i % 2] * (1 + i % 4), "cd"))
        rows.append(Row({}, prompt, chosen, rejected))
    return rows


class Keeping(Optimizer):
    """Remembers the gradient that an update was made of."""

    kept: Tensor

    def step(self, suspects: Sequence[int] = ()) -> float:
        grads = [parameter.grad for parameter in self.parameters_of_test]
        self.kept = torch.cat([(torch.zeros(()) if g is None else g).flatten().clone() for g in grads])
        return super().step(suspects)

    parameters_of_test: list[torch.nn.Parameter]


@pytest.fixture
def make() -> Iterator[Any]:
    """Makes trainers that report into the void."""
    descriptor = os.open(os.devnull, os.O_WRONLY)

    def trainer(policy: Policy, spec: RunSpec, cluster: Cluster | None = None) -> tuple[DpoTrainer, Keeping]:
        assert isinstance(spec.method, Dpo)
        optimizer = Keeping(policy.model, spec.method.optimizer, 10)
        optimizer.parameters_of_test = list(policy.model.parameters())
        reporter = Reporter(RecordWriter(descriptor), 10)
        rows = pairs_of(policy)
        return DpoTrainer(policy, optimizer, rows, spec, spec.method, reporter, cluster or Cluster()), optimizer

    yield trainer
    os.close(descriptor)


class Part(Cluster):
    """One of two processes whose other one adds nothing, so that its own part of every sum can be looked at."""

    def __init__(self, rank: int) -> None:
        self.rank, self.size = rank, 2


class TestTrainer:
    def test_a_step_is_the_mean_loss_of_its_pairs(self, checkpoint: Path, policy: Policy, make: Any) -> None:
        optimizer = {"learning_rate": 0.01, "epsilon": 1e-3, "max_grad_norm": 100.0}
        spec = run_spec(checkpoint, optimizer=optimizer)
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in policy.model.parameters():  # away from the reference, where every margin is 0
                parameter += 0.02 * torch.randn(parameter.shape)
        plain, reference = copy.deepcopy(policy), load_policy(checkpoint)
        trainer, _ = make(policy, spec)
        metrics = trainer.step(STEP, Stopwatch())

        rows = [pairs_of(plain)[i] for i in batch_indices(SEED, 8, BATCH, STEP)]
        keys = stream_keys(SEED, Purpose.PREFERENCE, STEP, torch.arange(BATCH)[:, None], torch.arange(2))
        assert isinstance(spec.method, Dpo)
        answers = draw_answers(plain, rows, keys, spec.method)
        adamw = torch.optim.AdamW(plain.model.parameters(), lr=0.01, eps=1e-3, weight_decay=0.0, foreach=False)
        elbos, reference_elbos = (plain_elbos(model, rows, answers) for model in (plain, reference))
        losses = plain_losses(elbos, reference_elbos.detach())
        losses.mean().backward()
        norm = torch.cat([p.grad.flatten() for p in plain.model.parameters() if p.grad is not None]).norm()
        adamw.step()
        rewards = BETA * (elbos - reference_elbos).detach()
        margins = rewards[:, 0] - rewards[:, 1]
        assert metrics == {
            "loss": pytest.approx(float(losses.mean().detach()), rel=1e-5),
            "accuracy": float((margins > 0).double().mean()),
            "margin": pytest.approx(float(margins.mean()), rel=1e-3, abs=1e-5),
            "reward_chosen": pytest.approx(float(rewards[:, 0].mean()), rel=1e-3, abs=1e-5),
            "reward_rejected": pytest.approx(float(rewards[:, 1].mean()), rel=1e-3, abs=1e-5),
            "elbo_mean": pytest.approx(float(elbos.mean().detach()), rel=1e-5),
            "elbo_chosen": pytest.approx(float(elbos[:, 0].mean().detach()), rel=1e-5),
            "elbo_rejected": pytest.approx(float(elbos[:, 1].mean().detach()), rel=1e-5),
            "grad_norm": pytest.approx(float(norm), rel=1e-4),
            "learning_rate": 0.01,
        }
        for name, value in policy.model.state_dict().items():
            torch.testing.assert_close(value, plain.model.state_dict()[name], rtol=0, atol=1e-5)

    def test_processes_share_the_pairs_of_a_step(self, checkpoint: Path, make: Any) -> None:
        spec = run_spec(checkpoint, optimizer={"learning_rate": 0.01})
        kept, sums = [], []
        for cluster in (Cluster(), Part(0), Part(1)):
            trainer, optimizer = make(load_policy(checkpoint), spec, cluster)
            metrics = trainer.step(STEP, Stopwatch())
            kept.append(optimizer.kept)
            sums.append(metrics["elbo_mean"])
        close(kept[1] + kept[2], kept[0])
        assert sums[1] + sums[2] == pytest.approx(sums[0], rel=1e-6)
        assert min(part.norm() for part in kept) > 0.1 * kept[0].norm()

    def test_a_process_without_a_pair_takes_part_in_the_update(self, checkpoint: Path, make: Any) -> None:
        trainer, optimizer = make(load_policy(checkpoint), run_spec(checkpoint, batch_size=1), Part(1))
        trainer.step(STEP, Stopwatch())
        assert optimizer.updates == 1

    def test_validation_loss_has_fixed_masks_and_no_batch_size(
        self, checkpoint: Path, policy: Policy, make: Any
    ) -> None:
        rows = pairs_of(policy)
        trainers = [
            make(policy, run_spec(checkpoint, batch_size=batch_size, micro_batch=micro_batch))[0]
            for batch_size, micro_batch in ((1, 1), (3, 64), (8, 5))
        ]
        nothing_learned = math.log(2)
        assert trainers[0].validation_loss(rows) == pytest.approx(nothing_learned, abs=1e-9)
        trainers[0].step(STEP, Stopwatch())
        losses = [trainer.validation_loss(rows) for trainer in trainers]
        assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
        assert trainers[0].validation_loss(rows) == losses[0] != nothing_learned
        assert all(parameter.grad is None for parameter in policy.model.parameters())

    def test_running_out_of_memory_halves_the_micro_batch_once_a_run(
        self, checkpoint: Path, policy: Policy, make: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = make(load_policy(checkpoint), run_spec(checkpoint))[0].step(STEP, Stopwatch())
        real, limit = Answers.terms, 2

        def limited(self: Answers, policy: Policy, flat: Tensor) -> Tensor:
            if len(flat) > limit and torch.is_grad_enabled():
                raise torch.OutOfMemoryError("no memory")
            return real(self, policy, flat)

        monkeypatch.setattr(Answers, "terms", limited)
        trainer, _ = make(policy, run_spec(checkpoint))
        assert trainer.step(STEP, Stopwatch()) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        limit = 1
        with pytest.raises(OutOfMemory, match="micro_batch 2") as caught:
            trainer.step(STEP + 1, Stopwatch())
        assert caught.value.param == "method.micro_batch"
