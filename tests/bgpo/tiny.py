"""Policies small enough to enumerate: a few tokens, random weights large enough for the distributions to have shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bgpo.models import Policy
from bgpo.models.llada import LLaDAConfig, LLaDAModel
from bgpo.models.scratch import byte_tokenizer
from tests.bgpo.reference import Array, Predict, llada_logits

TINY_CONFIG: dict[str, Any] = {
    "d_model": 16,
    "n_heads": 2,
    "n_kv_heads": 2,
    "n_layers": 2,
    "mlp_hidden_size": 24,
    "embedding_size": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_sequence_length": 64,
    "mask_token_id": 7,
    "weight_tying": False,
}


def tiny_policy(*, seed: int = 0, vocabulary: int = 8, end_id: int = 6, std: float = 0.3, **config: Any) -> Policy:
    """A policy of `vocabulary` tokens, the last one the mask; its tokenizer is only for show."""
    settings = TINY_CONFIG | {"embedding_size": vocabulary, "mask_token_id": vocabulary - 1} | config
    model = LLaDAModel(LLaDAConfig.from_json(settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith(("norm.weight", "ln_f.weight")) else 0.0
            parameter.copy_(centre + std * torch.randn(parameter.shape, generator=generator))
    return Policy(model, byte_tokenizer(), settings, Path("tiny"), vocabulary - 1, (end_id,))


def predictor(policy: Policy) -> Predict:
    """The reference network with the policy's weights."""
    weights: dict[str, Array] = {
        name: value.detach().numpy().astype(np.float64) for name, value in policy.model.state_dict().items()
    }
    return lambda tokens: llada_logits(weights, policy.config, tokens)
