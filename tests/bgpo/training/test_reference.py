"""The reference policy: a frozen copy of where the run began, or the policy without its adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bgpo.errors import ModelError
from bgpo.models import Policy, add_lora, load_policy, save_policy
from bgpo.spec import LoraSpec, RunSpec
from bgpo.training.cluster import join_cluster
from bgpo.training.reference import Reference
from bgpo.training.start import start_policy
from tests.bgpo.training.harness import STEP, Harness, rows_of, run_spec

Start = Callable[..., Harness]
LORA = {"rank": 2, "alpha": 4.0}


def spec_of(checkpoint: Path, **fields: Any) -> RunSpec:
    return run_spec(**fields).model_copy(update={"model": str(checkpoint)})


def outputs(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        hidden = policy.model(torch.tensor([[1, 2, 3, policy.mask_id]]))
        return policy.model.logits(hidden.flatten(0, 1))


def disturb(policy: Policy) -> None:
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1


def test_the_copy_stays_where_the_run_began(wordy: Policy, wordy_checkpoint: Path) -> None:
    before = outputs(wordy)
    reference = Reference.of(wordy, spec_of(wordy_checkpoint))
    disturb(wordy)
    with reference.policy() as frozen:
        assert torch.equal(outputs(frozen), before)
        assert not any(parameter.requires_grad for parameter in frozen.model.parameters())
    assert not torch.allclose(outputs(wordy), before)


def test_after_a_resume_it_is_still_where_the_run_began(wordy: Policy, wordy_checkpoint: Path) -> None:
    before = outputs(wordy)
    disturb(wordy)  # as if loaded from a later checkpoint
    with Reference.of(wordy, spec_of(wordy_checkpoint)).policy() as frozen:
        assert torch.equal(outputs(frozen), before)


def test_with_lora_it_is_the_policy_without_adapters(wordy: Policy, wordy_checkpoint: Path) -> None:
    before = outputs(wordy)
    add_lora(wordy, LoraSpec(**LORA))
    reference = Reference.of(wordy, spec_of(wordy_checkpoint, lora=LORA))
    disturb(wordy)
    moved = outputs(wordy)
    with reference.policy() as frozen:
        assert frozen is wordy
        torch.testing.assert_close(outputs(frozen), before)
    assert torch.equal(outputs(wordy), moved)
    assert not torch.allclose(moved, before)


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_run_may_begin_with_an_adapter_over_its_base(
    wordy: Policy, wordy_checkpoint: Path, tmp_path: Path, lora: dict[str, float] | None
) -> None:
    add_lora(wordy, LoraSpec(rank=2, alpha=4.0, checkpoints="merged"))
    disturb(wordy)
    save_policy(wordy, tmp_path / "merged")
    for weights in (tmp_path / "merged").glob("*.safetensors*"):
        weights.rename(tmp_path / weights.name)  # an adapter alone is left
    with pytest.raises(ModelError, match="adapter only"):
        load_policy(tmp_path / "merged")
    fields = {"model": str(tmp_path / "merged"), "adapter_base": str(wordy_checkpoint)}
    spec = run_spec(lora=lora).model_copy(update=fields)
    policy = start_policy(spec, join_cluster("cpu"))
    with wordy.without_adapter():
        base = outputs(wordy)
    torch.testing.assert_close(outputs(policy), outputs(wordy))
    assert not torch.allclose(outputs(policy), base)
    disturb(policy)
    with Reference.of(policy, spec).policy() as frozen:
        torch.testing.assert_close(outputs(frozen), outputs(wordy))


@pytest.mark.parametrize("lora", [False, True])
def test_the_kl_grows_from_zero(wordy: Policy, wordy_checkpoint: Path, start: Start, lora: bool) -> None:
    """The first update starts at the reference; from then on the policy is elsewhere."""
    if lora:
        add_lora(wordy, LoraSpec(**LORA))
    spec = spec_of(wordy_checkpoint, kl_coefficient=0.1, lora=LORA if lora else None)
    harness = start(wordy, rows_of(wordy), spec)
    assert harness.step(STEP)["kl"] == pytest.approx(0, abs=1e-6)
    assert harness.step(STEP)["kl"] > 1e-4


def test_a_strong_kl_pulls_the_policy_back(wordy: Policy, wordy_checkpoint: Path, start: Start) -> None:
    with torch.no_grad():
        for name, parameter in wordy.model.named_parameters():
            if "blocks" in name:
                parameter *= 1.2
    spec = spec_of(wordy_checkpoint, kl_coefficient=100.0, optimizer={"learning_rate": 0.001}, mc_samples=8)
    harness = start(wordy, rows_of(wordy), spec)
    kl = [harness.step(STEP)["kl"] for _ in range(12)]
    assert kl[-1] < kl[0] / 2
