"""A tiny random LLaDA checkpoint in the published layout, made once, and a policy loaded from it for each test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bgpo.models import Policy, load_policy, save_policy
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


@pytest.fixture(scope="session")
def wordy_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that speaks in few letters, so that a grader that looks for one finds it now and then."""
    policy = load_policy(checkpoint)
    with torch.no_grad():
        # The first hidden component is about the same everywhere, so its column of the head is a bias.
        transformer = policy.model.transformer
        transformer["wte"].weight[:, 0] = 0.05
        head = transformer["ff_out"].weight
        head *= 5
        head[:, 0] = -2
        for letter in "aeioubcd":
            head[policy.encode(letter)[0], 0] = 1
        head[policy.end_ids[0], 0] = 0.5
    directory = tmp_path_factory.mktemp("wordy-llada")
    save_policy(policy, directory)
    return directory


@pytest.fixture
def wordy(wordy_checkpoint: Path) -> Policy:
    """Its policy, the test's own."""
    return load_policy(wordy_checkpoint)
