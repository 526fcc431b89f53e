"""The trainer on an accelerator: what it computes there equals what it computes on the CPU.

`benchmarks.gpu_check` runs these where there is a GPU and little else, without `tests/conftest.py`. Without CUDA they
run on the CPU (`gpu_check --preset tiny`), where only the tests of CUDA's own memory are skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from bgpo.diffusion.elbo import Canvases, build_canvases, elbo_terms_of
from bgpo.diffusion.masking import draw_masks
from bgpo.diffusion.rng import Purpose, gumbel, stream_keys, uniform
from bgpo.diffusion.sampler import sample
from bgpo.models import Policy, add_lora, load_policy, save_policy, set_activation_checkpointing
from bgpo.spec import EstimatorName, LoraSpec, OptimizerSpec, Reinforcement, RolloutSpec
from bgpo.training.optimizer import Optimizer
from bgpo.training.policy_gradient import accumulate_gradient
from bgpo.training.scored import Scored, draw_samples

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[3]
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="measures CUDA's memory")
PROMPTS = [[5, 6, 7, 8], [9, 10]]
RESPONSES = [[20, 21, 22, 23, 24, 25], [30, 31, 32]]


@pytest.fixture(autouse=True)
def _exact_float32() -> Iterator[None]:
    """TensorFloat-32 would round the products of float32 matrices to 10 bits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def there(checkpoint: Path, device: torch.device) -> Policy:
    """The tiny policy on the device; `policy` is the same on the CPU."""
    return load_policy(checkpoint, device=device)


def method(algorithm: str = "bgpo", n_t: int = 4, micro_batch: int = 1) -> Reinforcement:
    fields = {"algorithm": algorithm, "mc_samples": n_t, "micro_batch": micro_batch}
    return Reinforcement.model_validate(fields | {"grader": {"type": "sudoku", "name": "unused"}})


def canvases(policy: Policy) -> Canvases:
    return build_canvases(PROMPTS, RESPONSES, policy.end_ids[0], policy.device)


def scored(policy: Policy, n_t: int = 4) -> Scored:
    keys = stream_keys(3, Purpose.ELBO, torch.arange(2), device=policy.device)
    return draw_samples(canvases(policy), torch.tensor([1.0, -0.5], device=policy.device), keys, method(n_t=n_t))


def gradient(policy: Policy, algorithm: str = "bgpo", n_t: int = 4) -> Tensor:
    """The gradient of an update whose old terms lie off the policy's own."""
    batch = scored(policy, n_t)
    old = torch.full_like(batch.weights_Rn, -20.0)
    policy.model.zero_grad(set_to_none=True)
    accumulate_gradient(policy, batch, method(algorithm, n_t), 2, old)
    return torch.cat([p.grad.flatten().cpu() for p in policy.model.parameters() if p.grad is not None])


def test_streams_are_the_same_to_the_bit(device: torch.device) -> None:
    here, there = (stream_keys(1, Purpose.ROLLOUT, torch.arange(50), device=where) for where in ("cpu", device))
    assert torch.equal(here, there.cpu())
    assert torch.equal(uniform(here, 9), uniform(there, 9).cpu())
    torch.testing.assert_close(gumbel(there, 9).cpu(), gumbel(here, 9), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator", get_args(EstimatorName))
def test_masks_are_the_same(device: torch.device, estimator: Any) -> None:
    keys, lengths = stream_keys(1, Purpose.ELBO, torch.arange(3)), torch.tensor([1, 4, 7])
    here = draw_masks(keys, lengths, 7, 5, estimator)
    there = draw_masks(keys.to(device), lengths.to(device), 7, 5, estimator)
    assert torch.equal(there[0].cpu(), here[0])
    torch.testing.assert_close(there[1].cpu(), here[1])


def test_elbo_terms_in_float32(policy: Policy, there: Policy) -> None:
    here, found = (_terms(p) for p in (policy, there))
    torch.testing.assert_close(found.cpu(), here, rtol=1e-5, atol=1e-4)


def test_elbo_terms_in_bfloat16_are_float32_and_near(policy: Policy, there: Policy, device: torch.device) -> None:
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = _terms(there)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), _terms(policy), rtol=2e-2, atol=0)


@torch.no_grad()
def _terms(policy: Policy) -> Tensor:
    masks = torch.tensor([[True, False, True, True, False, True], [True, True, True, False, False, False]])
    weights = torch.tensor([1.5, 1.0], device=policy.device)
    return elbo_terms_of(policy, canvases(policy), masks.to(policy.device), weights)


def test_greedy_decoding(wordy_checkpoint: Path, device: torch.device) -> None:
    """In double precision, so that no rounding decides between two tokens."""
    spec = RolloutSpec(max_completion_length=16, block_length=8, diffusion_steps=8)
    tokens = []
    for where in (torch.device("cpu"), device):
        policy = load_policy(wordy_checkpoint, dtype=torch.float64, device=where)
        keys = stream_keys(0, Purpose.ROLLOUT, torch.arange(2))
        tokens.append(sample(policy, PROMPTS, spec, keys, temperature=0.0).tokens_BG.cpu())
    assert torch.equal(*tokens)


def test_sampling_in_bfloat16_commits_every_token(there: Policy, device: torch.device) -> None:
    spec = RolloutSpec(max_completion_length=16, block_length=8, diffusion_steps=8)
    keys = stream_keys(0, Purpose.ROLLOUT, torch.arange(2))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        rollouts = sample(there, PROMPTS, spec, keys, temperature=1.0)
    assert not bool((rollouts.tokens_BG == there.mask_id).any())
    assert bool(rollouts.entropy_B.isfinite().all())


@pytest.mark.parametrize("algorithm", ["bgpo", "elbo_ratio", "taylor_only", "jensen_only", "espo", "diffu_grpo", "spg"])
def test_every_objective_has_the_gradient_of_the_cpu(policy: Policy, there: Policy, algorithm: str) -> None:
    if algorithm in ("diffu_grpo", "spg"):  # they see tokens, so their old values have another shape
        here, found = (_on_policy_gradient(p, algorithm) for p in (policy, there))
    else:
        here, found = (gradient(p, algorithm) for p in (policy, there))
    assert float(here.norm()) > 0
    assert float((found - here).norm() / here.norm()) < 1e-4


def _on_policy_gradient(policy: Policy, algorithm: str, n_t: int = 4) -> Tensor:
    keys = stream_keys(3, Purpose.ELBO, torch.arange(2), device=policy.device)
    advantages = torch.tensor([1.0, -0.5], device=policy.device)
    batch = draw_samples(canvases(policy), advantages, keys, method(algorithm, n_t))
    policy.model.zero_grad(set_to_none=True)
    accumulate_gradient(policy, batch, method(algorithm, n_t), 2)
    return torch.cat([p.grad.flatten().cpu() for p in policy.model.parameters() if p.grad is not None])


def test_bgpo_has_the_ratio_objectives_gradient_on_policy(there: Policy) -> None:
    bgpo, ratio = (_on_policy_gradient(there, name, n_t=8) for name in ("bgpo", "elbo_ratio"))
    assert float((bgpo - ratio).norm() / ratio.norm()) < 1e-5


def test_a_bfloat16_gradient_points_the_same_way(there: Policy, device: torch.device) -> None:
    exact = _on_policy_gradient(there, "bgpo")
    with torch.autocast(device.type, dtype=torch.bfloat16):
        rounded = _on_policy_gradient(there, "bgpo")
    assert float(torch.cosine_similarity(exact, rounded, dim=0)) > 0.99


def test_activation_checkpointing_changes_no_gradient(there: Policy) -> None:
    plain = _on_policy_gradient(there, "bgpo")
    set_activation_checkpointing(there, True)
    assert float((_on_policy_gradient(there, "bgpo") - plain).norm() / plain.norm()) < 1e-6


@pytest.mark.parametrize("optimizer_type", ["adamw", "adafactor"])
def test_optimizers_move_as_on_the_cpu(policy: Policy, there: Policy, optimizer_type: Any) -> None:
    for one in (policy, there):
        optimizer = Optimizer(one.model, OptimizerSpec(optimizer_type=optimizer_type, learning_rate=1e-3), 10)
        for step in range(2):
            generator = torch.Generator().manual_seed(step)
            for parameter in one.model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(one.device)
            optimizer.step()
    pairs = zip(policy.model.parameters(), there.model.parameters(), strict=True)
    for here, found in pairs:
        torch.testing.assert_close(found.cpu(), here, rtol=0, atol=1e-5)


def test_lora_trains_its_adapter_and_leaves_the_base(there: Policy, device: torch.device) -> None:
    before = _terms(there)
    add_lora(there, LoraSpec(rank=2))
    assert torch.equal(_terms(there), before)
    optimizer = Optimizer(there.model, OptimizerSpec(learning_rate=1e-2), 10)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        accumulate_gradient(there, scored(there), method(), 2)
    optimizer.step()
    assert not torch.equal(_terms(there), before)
    with there.without_adapter():
        assert torch.equal(_terms(there), before)


def test_a_checkpoint_made_here_opens_on_the_cpu(there: Policy, tmp_path: Path) -> None:
    save_policy(there, tmp_path)
    for name, value in load_policy(tmp_path).model.state_dict().items():
        assert torch.equal(value, there.model.state_dict()[name].cpu()), name


@NEEDS_CUDA
def test_memory_is_flat_in_n_t_for_bgpo_and_not_for_elbo_ratio(there: Policy) -> None:
    peaks = {name: [_peak(there, name, n_t) for n_t in (4, 64)] for name in ("bgpo", "elbo_ratio")}
    assert peaks["bgpo"][1] < 1.1 * peaks["bgpo"][0]
    assert peaks["elbo_ratio"][1] > 4 * peaks["elbo_ratio"][0]


def _peak(policy: Policy, algorithm: str, n_t: int) -> int:
    """Bytes that an update takes beyond what it leaves."""
    tokens = [[i % 200 for i in range(60)]]
    batch = build_canvases([[5, 6]], tokens, policy.end_ids[0], policy.device)
    masks = torch.ones((1, n_t, 60), dtype=torch.bool, device=policy.device)
    one = torch.ones((1, n_t), device=policy.device)
    policy.model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    accumulate_gradient(policy, Scored(batch, one[0, :1], masks, one), method(algorithm, n_t), 1)
    gradients = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    return torch.cuda.max_memory_allocated() - before - gradients


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_resumed_from_a_checkpoint_goes_on_as_it_would_have(
    wordy_checkpoint: Path, tmp_path: Path, device: torch.device, precision: str
) -> None:
    """To rounding: some of CUDA's backward passes add in no fixed order."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in "abcd"))
    spec: dict[str, Any] = {
        "seed": 1,
        "precision": precision,
        "method": {
            "type": "reinforcement",
            "grader": {
                "type": "string_check",
                "name": "a",
                "input": "{{ sample.output_text }}",
                "reference": "a",
                "operation": "like",
            },
            "rollout": {"max_completion_length": 8, "block_length": 8, "diffusion_steps": 4},
            "optimizer": {"learning_rate": 1e-4},
            "max_steps": 4,
            "batch_size": 2,
            "group_size": 4,
            "num_inner_updates": 2,
            "mc_samples": 2,
        },
        "checkpointing": {"every_steps": 2, "keep_last": 4},
        "model": str(wordy_checkpoint),
        "train_data": str(data),
        "output_dir": str(tmp_path / "whole"),
        "device": device.type,
    }
    _run(spec, tmp_path)
    middle = tmp_path / "whole" / "checkpoints" / "step-000002"
    _run({**spec, "output_dir": str(tmp_path / "resumed"), "resume_from": str(middle)}, tmp_path)
    whole, resumed = (
        load_policy(tmp_path / name / "checkpoints" / "step-000004").model.state_dict() for name in ("whole", "resumed")
    )
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-4)


def _run(spec: dict[str, Any], folder: Path) -> None:
    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    command = [sys.executable, "-m", "benchmarks.gpu.standin", "bgpo.run", str(path)]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
