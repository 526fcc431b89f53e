"""A tiny random LLaDA checkpoint in the published layout, made once, and a policy loaded from it for each test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bgpo.models import Policy, load_policy
from bgpo.models.scratch import create_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small matrices gain nothing from threads that contend for few cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint directory; tests only read it."""
    directory = tmp_path_factory.mktemp("tiny-llada")
    create_checkpoint(directory, seed=7, d_model=32, n_layers=2, n_heads=2, mlp_hidden_size=48, max_sequence_length=128)
    return directory


@pytest.fixture
def policy(checkpoint: Path) -> Policy:
    """A policy of the test's own."""
    return load_policy(checkpoint)


@pytest.fixture
def wordy(policy: Policy) -> Policy:
    """A policy that speaks in few letters, so that a grader that looks for one finds it now and then."""
    with torch.no_grad():
        weight = policy.model.transformer["ff_out"].weight
        weight *= 20
        keep = {policy.encode(letter)[0] for letter in "aeioubcd"} | {policy.end_ids[0]}
        for token in set(range(weight.shape[0])) - keep:
            weight[token] = 0
    return policy
