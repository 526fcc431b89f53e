"""Dream's network against the same network in numpy and float64, and against the facts of the published checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bgpo.errors import ModelError
from bgpo.models import load_policy, save_policy
from bgpo.models.dream import DreamConfig, DreamModel
from bgpo.models.scratch import create_checkpoint
from tests.bgpo.reference import dream_logits

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "vocab_size": 30,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 64,
    "mask_token_id": 29,
    "tie_word_embeddings": False,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "ungrouped": {"num_key_value_heads": 4},
    "one_group": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "theta_and_epsilon": {"rope_theta": 10000.0, "rms_norm_eps": 1e-3},
    "one_head": {"num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1, "intermediate_size": 7},
}
# The published config.json of Dream-v0-Instruct-7B, as far as it defines the network.
DREAM_7B: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "mask_token_id": 151666,
    "max_position_embeddings": 131072,
    "model_type": "Dream",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
BLOCK_SHAPES = {
    "input_layernorm.weight": (3584,),
    "mlp.down_proj.weight": (3584, 18944),
    "mlp.gate_proj.weight": (18944, 3584),
    "mlp.up_proj.weight": (18944, 3584),
    "post_attention_layernorm.weight": (3584,),
    "self_attn.k_proj.bias": (512,),
    "self_attn.k_proj.weight": (512, 3584),
    "self_attn.o_proj.weight": (3584, 3584),
    "self_attn.q_proj.bias": (3584,),
    "self_attn.q_proj.weight": (3584, 3584),
    "self_attn.v_proj.bias": (512,),
    "self_attn.v_proj.weight": (512, 3584),
}
FIXTURE = Path(__file__).parents[4] / "shared" / "fixtures" / "dream-7b-instruct"
in_house = pytest.mark.skipif(not FIXTURE.is_dir(), reason="the published metadata lies beside the repository in-house")


def tiny_dream(*, seed: int = 0, std: float = 0.3, **config: Any) -> DreamModel:
    """Random weights, biases and norms too, large enough for the distributions to have shape."""
    model = DreamModel(DreamConfig.from_json(TINY | config)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith(("norm.weight", "layernorm.weight")) else 0.0
            parameter.copy_(centre + std * torch.randn(parameter.shape, generator=generator))
    return model


def logits_of(model: DreamModel, tokens: list[list[int]], attention: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model.logits(model(torch.tensor(tokens), attention))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_the_numpy_network(variant: str) -> None:
    model = tiny_dream(seed=11, **VARIANTS[variant])
    weights = {name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for length in (1, 2, 17):
        rows = torch.randint(0, 30, (2, length), generator=generator).tolist()
        found = logits_of(model, rows).numpy()
        expected = np.stack([dream_logits(weights, TINY | VARIANTS[variant], row) for row in rows])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_a_checkpoint_in_the_published_layout_gives_the_logits_of_the_numpy_network(tmp_path: Path) -> None:
    """From files to logits: safetensors under published names, config.json, nothing shared with the loader."""
    create_checkpoint(
        tmp_path, family="dream", d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, mlp_hidden_size=40, seed=3
    )
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in load_file(tmp_path / "model.safetensors").items()
    }
    save_file(weights, tmp_path / "model.safetensors")
    policy = load_policy(tmp_path)
    row = policy.encode_prompt([{"role": "user", "content": "2+2"}]) + [policy.mask_id] * 5
    with torch.no_grad():
        found = policy.model.logits(policy.model(torch.tensor([row]))[0]).numpy()
    config = json.loads((tmp_path / "config.json").read_text())
    expected = dream_logits({name: value.numpy() for name, value in weights.items()}, config, row)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    save_policy(policy, tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert {k: v.numpy().tobytes() for k, v in stored.items()} == {k: v.numpy().tobytes() for k, v in weights.items()}


def test_the_first_output_serves_the_first_two_positions() -> None:
    model = tiny_dream(seed=2)
    states = model.states(torch.tensor([[1, 2, 3, 4]]), None)
    hidden = model(torch.tensor([[1, 2, 3, 4]]))
    assert torch.equal(hidden[0], states[0, [0, 0, 1, 2]])


@pytest.fixture(scope="module")
def published() -> DreamModel:
    with torch.device("meta"):
        return DreamModel(DreamConfig.from_json(DREAM_7B))


def test_names_and_shapes_are_those_of_the_published_weights(published: DreamModel) -> None:
    expected = {f"model.layers.{layer}.{name}": shape for layer in range(28) for name, shape in BLOCK_SHAPES.items()}
    expected |= {"model.embed_tokens.weight": (152064, 3584), "lm_head.weight": (152064, 3584)}
    expected["model.norm.weight"] = (3584,)
    assert {name: tuple(value.shape) for name, value in published.state_dict().items()} == expected
    assert sum(p.numel() for p in published.parameters()) * 2 == 15231233024, "total_size of the published index"


@in_house
def test_names_and_config_are_those_of_the_published_files(published: DreamModel) -> None:
    index = json.loads((FIXTURE / "model.safetensors.index.json").read_text())
    assert set(published.state_dict()) == set(index["weight_map"])
    assert DreamConfig.from_json(json.loads((FIXTURE / "config.json").read_text())) == published.config


def test_optional_keys_have_the_defaults_of_the_published_code() -> None:
    optional = ("num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings")
    built = DreamConfig.from_json({key: value for key, value in TINY.items() if key not in optional})
    assert (built.num_key_value_heads, built.rms_norm_eps, built.rope_theta) == (4, 1e-6, 10000.0)
    assert not built.tie_word_embeddings


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"use_mrope": True}, "use_mrope"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "num_attention_heads"),
        ({"num_attention_heads": 32, "num_key_value_heads": 32}, "num_attention_heads"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"mask_token_id": 30}, "mask_token_id"),
        ({"mask_token_id": None}, "mask_token_id"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
        ({"intermediate_size": None}, "intermediate_size"),
    ],
    ids=str,
)
def test_an_unusable_config_names_its_key(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ModelError) as caught:
        DreamConfig.from_json(TINY | change)
    assert caught.value.param == f"config.json.{param}"
