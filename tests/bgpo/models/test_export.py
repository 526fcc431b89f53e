"""Exports: an adapter folded into its base in any precision, opened by the code of transformers and PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from bgpo.errors import ModelError
from bgpo.models import Policy, add_lora, load_policy, save_policy
from bgpo.models.export import export_adapter, export_merged
from bgpo.models.scratch import create_checkpoint
from bgpo.spec import LoraSpec

DTYPES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}
"""With the largest difference of a logit that rounding every weight once may make here; logits reach 4."""
TOKENS = torch.randint(0, 250, (2, 15), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    directory = tmp_path / "base"
    create_checkpoint(directory, family="qwen3", d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, mlp_hidden_size=40)
    return directory


@pytest.fixture(params=["merged", "adapter"])
def tuned(request: pytest.FixtureRequest, base: Path, tmp_path: Path) -> tuple[Policy, Path]:
    """A policy with an adapter far from zero, and its checkpoint: with and without merged weights."""
    policy = load_policy(base)
    add_lora(policy, LoraSpec(rank=3, alpha=6.0, checkpoints=request.param), seed=5)
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    save_policy(policy, tmp_path / "tuned")
    return policy, tmp_path / "tuned"


def logits(policy: Policy) -> Tensor:
    with torch.no_grad():
        return policy.model.logits(policy.model(TOKENS).flatten(0, 1)).float()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merged_weights_are_base_and_adapter_within_one_rounding(
    tuned: tuple[Policy, Path], base: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    policy, source = tuned
    export_merged(source, tmp_path / "out", dtype, base=base)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert "adapter" not in names
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}
    again = load_policy(tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(policy), atol=DTYPES[dtype], rtol=0)
    with policy.without_adapter():
        assert (logits(again) - logits(policy)).abs().max() > 0.5, "the adapter matters"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transformers_opens_merged_weights(
    tuned: tuple[Policy, Path], base: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """Its network looks back only, so it is compared with ours through the same weights, one by one."""
    _, source = tuned
    export_merged(source, tmp_path / "out", dtype, base=base)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert opened.dtype == dtype
    ours = load_policy(tmp_path / "out", dtype=dtype).model.state_dict()
    theirs = opened.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    assert bool(torch.isfinite(opened(input_ids=TOKENS).logits).all())


def test_whole_weights_are_exported_without_a_base(base: Path, tmp_path: Path) -> None:
    export_merged(base, tmp_path / "out", torch.float32)
    one, other = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_opens_the_adapter_over_the_base(tuned: tuple[Policy, Path], base: Path, tmp_path: Path) -> None:
    _, source = tuned
    export_adapter(source, tmp_path / "out", torch.float32, base_name="org/base")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "org/base", "not a folder of the worker"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out"))
    merged = model.merge_and_unload().state_dict()
    export_merged(source, tmp_path / "whole", torch.float32, base=base)
    for name, value in load_file(tmp_path / "whole" / "model.safetensors").items():
        torch.testing.assert_close(merged[name], value, atol=1e-6, rtol=0)


def test_an_adapter_is_rounded_to_the_precision_asked_for(tuned: tuple[Policy, Path], tmp_path: Path) -> None:
    export_adapter(tuned[1], tmp_path / "out", torch.bfloat16, base_name="b")
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}


def test_a_checkpoint_without_an_adapter_has_none_to_export(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no LoRA adapter"):
        export_adapter(base, tmp_path / "out", torch.float32, base_name="b")


def test_a_weight_beyond_float16_is_refused_and_not_made_infinite(base: Path, tmp_path: Path) -> None:
    policy = load_policy(base)
    with torch.no_grad():
        next(policy.model.parameters())[0, 0] = 1e5
    save_policy(policy, tmp_path / "large")
    with pytest.raises(ModelError, match="beyond 65504"):
        export_merged(tmp_path / "large", tmp_path / "out", torch.float16)
    export_merged(tmp_path / "large", tmp_path / "wide", torch.bfloat16)
