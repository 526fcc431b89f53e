"""The network against the same network in numpy and float64, and against the facts of the published checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bgpo.errors import ModelError
from bgpo.models import Policy, load_policy, save_policy
from bgpo.models.llada import LLaDAConfig, LLaDAModel
from bgpo.models.scratch import create_checkpoint
from tests.bgpo.reference import llada_logits
from tests.bgpo.tiny import TINY_CONFIG, predictor, tiny_policy

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"d_model": 32, "n_heads": 4, "n_kv_heads": 2},
    "one_group": {"d_model": 32, "n_heads": 4, "n_kv_heads": 1},
    "tied": {"weight_tying": True},
    "theta": {"rope_theta": 500000.0, "rms_norm_eps": 1e-3},
    "one_head": {"n_heads": 1, "n_kv_heads": 1, "n_layers": 1, "mlp_hidden_size": 7},
}
# The published config.json of LLaDA-8B-Instruct, as far as it defines the network.
LLADA_8B: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_size": 126464,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "mlp_ratio": 4,
    "model_type": "llada",
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "vocab_size": 126464,
    "weight_tying": False,
}
BLOCK_SHAPES = {
    "attn_norm": (4096,),
    "attn_out": (4096, 4096),
    "ff_norm": (4096,),
    "ff_out": (4096, 12288),
    "ff_proj": (12288, 4096),
    "k_proj": (4096, 4096),
    "q_proj": (4096, 4096),
    "up_proj": (12288, 4096),
    "v_proj": (4096, 4096),
}
FIXTURE = Path(__file__).parents[4] / "shared" / "fixtures" / "llada-8b-instruct"


def logits_of(policy: Policy, tokens: list[list[int]], attention: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return policy.model.logits(policy.model(torch.tensor(tokens), attention))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_the_numpy_network(variant: str) -> None:
    policy = tiny_policy(seed=11, vocabulary=30, std=0.3, **VARIANTS[variant])
    generator = torch.Generator().manual_seed(0)
    for length in (1, 2, 17):
        rows = torch.randint(0, 30, (2, length), generator=generator).tolist()
        found = logits_of(policy, rows).numpy()
        expected = np.stack([predictor(policy)(row) for row in rows])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_in_the_published_layout_gives_the_logits_of_the_numpy_network(tmp_path: Path, tied: bool) -> None:
    """From files to logits: safetensors under published names, config.json, nothing shared with the loader."""
    create_checkpoint(tmp_path, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, mlp_hidden_size=40, tied=tied)
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in load_file(tmp_path / "model.safetensors").items()
    }
    save_file(weights, tmp_path / "model.safetensors")
    policy = load_policy(tmp_path)
    row = policy.encode_prompt([{"role": "user", "content": "2+2"}]) + [policy.mask_id] * 5
    found = logits_of(policy, [row])[0].numpy()
    config = json.loads((tmp_path / "config.json").read_text())
    expected = llada_logits({name: value.numpy() for name, value in weights.items()}, config, row)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    save_policy(policy, tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert {k: v.numpy().tobytes() for k, v in stored.items()} == {k: v.numpy().tobytes() for k, v in weights.items()}


def test_attention_reaches_in_both_directions() -> None:
    policy = tiny_policy(seed=1)
    left, right = logits_of(policy, [[0, 1, 2, 3]]), logits_of(policy, [[0, 1, 2, 4]])
    assert (left[0, 0] - right[0, 0]).abs().max() > 1e-3
    left, right = logits_of(policy, [[0, 1, 2, 3]]), logits_of(policy, [[5, 1, 2, 3]])
    assert (left[0, 3] - right[0, 3]).abs().max() > 1e-3


@pytest.mark.parametrize("pad", [1, 5, 60])
def test_left_padding_equals_none(policy: Policy, pad: int) -> None:
    """Hidden states and log-probabilities to 1e-6; the pad's token does not matter."""
    generator = torch.Generator().manual_seed(pad)
    tokens = torch.randint(0, 270, (3, 40), generator=generator)
    filler = torch.randint(0, 270, (3, pad), generator=generator)
    attention = torch.ones(3, pad + 40, dtype=torch.bool)
    attention[:, :pad] = False
    with torch.no_grad():
        hidden = policy.model(tokens)
        padded = policy.model(torch.cat([filler, tokens], 1), attention)[:, pad:]
        log_probs, padded_log_probs = (policy.model.logits(h).log_softmax(-1) for h in (hidden, padded))
    torch.testing.assert_close(padded, hidden, rtol=0, atol=1e-6 * float(hidden.abs().max()))
    torch.testing.assert_close(padded_log_probs, log_probs, rtol=0, atol=1e-6)


def test_masked_positions_on_either_side_are_not_seen() -> None:
    policy = tiny_policy(seed=2)
    attention = torch.tensor([[False, True, True, True, False]])
    seen = logits_of(policy, [[0, 1, 2, 3, 4]], attention)[:, 1:4]
    other = logits_of(policy, [[5, 1, 2, 3, 5]], attention)[:, 1:4]
    torch.testing.assert_close(seen, other, rtol=0, atol=0)
    torch.testing.assert_close(seen, logits_of(policy, [[1, 2, 3]]), rtol=1e-5, atol=1e-5)


def test_bfloat16_weights_give_float32_logits_close_to_full_precision() -> None:
    policy = tiny_policy(seed=3, std=0.2)
    expected = logits_of(policy, [[0, 1, 2, 7]])
    policy.model.bfloat16()
    found = logits_of(policy, [[0, 1, 2, 7]])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.fixture(scope="module")
def published() -> LLaDAModel:
    with torch.device("meta"):
        return LLaDAModel(LLaDAConfig.from_json(LLADA_8B))


def test_names_and_shapes_are_those_of_the_published_weights(published: LLaDAModel) -> None:
    expected = {
        f"model.transformer.blocks.{layer}.{name}.weight": shape
        for layer in range(32)
        for name, shape in BLOCK_SHAPES.items()
    }
    expected["model.transformer.wte.weight"] = (126464, 4096)
    expected["model.transformer.ln_f.weight"] = (4096,)
    expected["model.transformer.ff_out.weight"] = (126464, 4096)
    assert {name: tuple(value.shape) for name, value in published.state_dict().items()} == expected
    assert sum(p.numel() for p in published.parameters()) * 2 == 16031162368, "total_size of the published index"


@pytest.mark.skipif(not FIXTURE.is_dir(), reason="the published metadata lies beside the repository only in-house")
def test_names_and_config_are_those_of_the_published_files(published: LLaDAModel) -> None:
    index = json.loads((FIXTURE / "model.safetensors.index.json").read_text())
    assert set(published.state_dict()) == set(index["weight_map"])
    assert LLaDAConfig.from_json(json.loads((FIXTURE / "config.json").read_text())) == published.config


def test_a_tied_network_has_no_head_of_its_own() -> None:
    model = LLaDAModel(LLaDAConfig.from_json(TINY_CONFIG | {"weight_tying": True}))
    assert "model.transformer.ff_out.weight" not in model.state_dict()


def test_optional_keys_have_the_defaults_of_the_published_code() -> None:
    config = {
        key: TINY_CONFIG[key] for key in ("d_model", "n_heads", "n_layers", "max_sequence_length", "mask_token_id")
    }
    built = LLaDAConfig.from_json(config | {"vocab_size": 9, "mlp_ratio": 4, "n_kv_heads": None})
    assert (built.n_kv_heads, built.mlp_hidden_size, built.embedding_size) == (2, 64, 9)
    assert (built.rms_norm_eps, built.rope_theta, built.weight_tying) == (1e-5, 10000.0, False)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"block_type": "sequential"}, "block_type"),
        ({"layer_norm_type": "default"}, "layer_norm_type"),
        ({"activation_type": "swiglu"}, "activation_type"),
        ({"rope": False}, "rope"),
        ({"alibi": True}, "alibi"),
        ({"include_bias": True}, "include_bias"),
        ({"include_qkv_bias": True}, "include_qkv_bias"),
        ({"attention_layer_norm": True}, "attention_layer_norm"),
        ({"input_emb_norm": True}, "input_emb_norm"),
        ({"scale_logits": True}, "scale_logits"),
        ({"n_heads": 3}, "n_heads"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_heads"),
        ({"n_heads": 16, "n_kv_heads": 16}, "n_heads"),
        ({"mask_token_id": 8}, "mask_token_id"),
        ({"mask_token_id": -1}, "mask_token_id"),
        ({"d_model": "wide"}, "d_model"),
        ({"d_model": None}, "d_model"),
        ({"n_layers": [2]}, "n_layers"),
        ({"n_heads": 0}, "n_heads"),
        ({"d_model": 0}, "d_model"),
        ({"n_layers": -1}, "n_layers"),
        ({"max_sequence_length": 0}, "max_sequence_length"),
        ({"mlp_hidden_size": -3}, "mlp_hidden_size"),
        ({"rope_theta": "far"}, "rope_theta"),
    ],
    ids=str,
)
def test_an_unusable_config_names_its_key(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ModelError) as caught:
        LLaDAConfig.from_json(TINY_CONFIG | change)
    assert caught.value.param == f"config.json.{param}"


@pytest.mark.parametrize("key", ["d_model", "n_heads", "n_layers", "max_sequence_length", "mask_token_id"])
def test_a_missing_key_is_named(key: str) -> None:
    config = {name: value for name, value in TINY_CONFIG.items() if name != key}
    with pytest.raises(ModelError, match="missing") as caught:
        LLaDAConfig.from_json(config)
    assert caught.value.param == f"config.json.{key}"


def test_initial_weights_have_the_scheme_of_gpt_2() -> None:
    model = LLaDAModel(LLaDAConfig.from_json(TINY_CONFIG | {"d_model": 256, "n_layers": 8}))
    model.initialize(torch.Generator().manual_seed(1))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            residual = ".blocks." in name and name.endswith(("attn_out.weight", "ff_out.weight"))
            assert float(parameter.detach().std()) == pytest.approx(0.02 / 4 if residual else 0.02, rel=0.05), name
