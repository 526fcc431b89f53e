"""Adapters: nothing at first, only themselves trained, merged on export, exact when loaded or switched off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from bgpo.errors import ModelError
from bgpo.models import Policy, add_lora, load_adapter, load_policy, merge_lora, save_policy
from bgpo.models.scratch import FamilyName, create_checkpoint
from bgpo.spec import LoraSpec

FAMILIES: tuple[FamilyName, ...] = ("llada", "dream", "qwen3")
ATTENTION = {
    "llada": {"q_proj", "k_proj", "v_proj", "attn_out"},
    "dream": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "qwen3": {"q_proj", "k_proj", "v_proj", "o_proj"},
}
FEED_FORWARD = {
    "llada": {"ff_proj", "up_proj", "ff_out"},
    "dream": {"gate_proj", "up_proj", "down_proj"},
    "qwen3": {"gate_proj", "up_proj", "down_proj"},
}
SPEC = LoraSpec(rank=3, alpha=6.0)
TOKENS = torch.randint(0, 250, (2, 15), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> FamilyName:
    name: FamilyName = request.param
    return name


@pytest.fixture
def base(family: FamilyName, tmp_path: Path) -> Path:
    """A base model's directory."""
    directory = tmp_path / "base"
    create_checkpoint(directory, family=family, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, mlp_hidden_size=40)
    return directory


def logits(policy: Policy) -> Tensor:
    return policy.model.logits(policy.model(TOKENS).flatten(0, 1))


def adapter(policy: Policy) -> dict[str, Tensor]:
    return {name: p for name, p in policy.model.named_parameters() if p.requires_grad}


def adapted(base: Path, spec: LoraSpec = SPEC, *, dtype: torch.dtype = torch.float32) -> Policy:
    """A policy whose adapter is far from zero."""
    policy = load_policy(base, dtype=dtype)
    add_lora(policy, spec, seed=5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter(policy).values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return policy


@pytest.mark.parametrize("targets", ["all", "attention"])
def test_adapters_sit_on_the_linear_layers_of_the_blocks(family: FamilyName, base: Path, targets: str) -> None:
    policy = load_policy(base)
    before = logits(policy)
    add_lora(policy, LoraSpec.model_validate({"rank": 3, "targets": targets}))
    assert torch.equal(logits(policy), before), "a new adapter adds nothing"
    wanted = ATTENTION[family] | (FEED_FORWARD[family] if targets == "all" else set())
    layers = {name.rsplit(".lora_", 1)[0] for name in adapter(policy)}
    assert len(layers) == 2 * len(wanted)
    assert {name.rpartition(".")[2] for name in layers} == wanted
    assert all("blocks.0." in name or "layers.0." in name or "1." in name for name in layers)
    assert all(".lora_A." in name or ".lora_B." in name for name in adapter(policy))


def test_only_the_adapter_gets_gradients(base: Path) -> None:
    policy = adapted(base)
    logits(policy).square().mean().backward()
    for name, parameter in policy.model.named_parameters():
        assert (parameter.grad is not None) == (".lora_" in name), name


def test_the_seed_draws_the_adapter_and_nothing_else_does(base: Path) -> None:
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(len(drawn))
        policy = load_policy(base)
        add_lora(policy, SPEC, seed)
        drawn.append({name: value.detach() for name, value in adapter(policy).items()})
    assert all(torch.equal(value, drawn[1][name]) for name, value in drawn[0].items())
    down = next(name for name in drawn[0] if ".lora_A." in name)
    assert not torch.equal(drawn[0][down], drawn[2][down])
    bound = 1 / 32**0.5  # of PEFT's default, Kaiming's uniform with a = sqrt(5): 1 / sqrt(inputs)
    assert 0.8 * bound < float(drawn[0][down].abs().max()) <= bound


def test_switched_off_it_is_the_base_model_exactly(base: Path) -> None:
    plain, policy = load_policy(base), adapted(base)
    on = logits(policy)
    assert (on - logits(plain)).abs().max() > 0.1
    with policy.without_adapter() as reference:
        assert torch.equal(logits(reference), logits(plain))
    assert torch.equal(logits(policy), on)
    logits(policy).sum().backward()
    assert all(parameter.grad is not None for parameter in adapter(policy).values())


def test_it_is_switched_on_again_after_an_error(base: Path) -> None:
    policy = adapted(base)
    on = logits(policy)
    with pytest.raises(RuntimeError), policy.without_adapter():
        raise RuntimeError
    assert torch.equal(logits(policy), on)


def test_merged_weights_equal_the_adapted_model_to_1e_5(base: Path, tmp_path: Path) -> None:
    policy = adapted(base)
    save_policy(policy, tmp_path / "saved")
    merged = load_policy(tmp_path / "saved")
    assert merged.lora is None
    expected = logits(policy).detach()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    plain = load_policy(base).model.state_dict()
    assert list(merged.model.state_dict()) == list(plain), "the family's names and no others"
    kept = [name for name, value in merged.model.state_dict().items() if torch.equal(value, plain[name])]
    assert any("embed" in name or "wte" in name for name in kept)
    config = json.loads((base / "config.json").read_text())
    assert json.loads((tmp_path / "saved" / "config.json").read_text()) == config


@pytest.mark.parametrize("checkpoints", ["merged", "adapter"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_base_and_adapter_give_the_policy_back_bit_for_bit(
    base: Path, tmp_path: Path, checkpoints: str, dtype: torch.dtype
) -> None:
    spec = LoraSpec.model_validate({"rank": 3, "alpha": 6.0, "targets": "attention", "checkpoints": checkpoints})
    policy = adapted(base, spec, dtype=dtype)
    save_policy(policy, tmp_path / "saved")
    again = load_policy(tmp_path / "saved", base=base, dtype=dtype)
    assert again.lora == spec
    state, other = policy.model.state_dict(), again.model.state_dict()
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name
        assert value.dtype == (torch.float32 if ".lora_" in name else dtype)
    assert torch.equal(logits(again), logits(policy))
    save_policy(again, tmp_path / "again")
    for file in (tmp_path / "saved").rglob("*"):
        if file.is_file():
            assert (tmp_path / "again" / file.relative_to(tmp_path / "saved")).read_bytes() == file.read_bytes()
    fresh = load_policy(base, dtype=dtype)
    add_lora(fresh, spec, seed=99)
    load_adapter(fresh, tmp_path / "saved")
    assert all(torch.equal(value, state[name]) for name, value in fresh.model.state_dict().items())


def test_an_adapter_only_checkpoint_is_small_and_asks_for_its_base(base: Path, tmp_path: Path) -> None:
    policy = adapted(base, SPEC.model_copy(update={"checkpoints": "adapter"}))
    save_policy(policy, tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("*.safetensors"))
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    with pytest.raises(ModelError, match="give the directory of its base model"):
        load_policy(tmp_path / "saved")


# peft asks transformers by a name that transformers is about to drop.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_opens_the_adapter_over_a_transformers_base(tmp_path: Path) -> None:
    create_checkpoint(tmp_path / "base", family="qwen3", d_model=32, n_layers=2, n_heads=4, mlp_hidden_size=40)
    policy = adapted(tmp_path / "base")
    save_policy(policy, tmp_path / "saved")
    causal = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    peft = PeftModel.from_pretrained(causal, str(tmp_path / "saved" / "adapter"))
    open_mask = torch.zeros(2, 1, 15, 15)
    with torch.no_grad():
        found = peft(input_ids=TOKENS, attention_mask=open_mask).logits
        expected = logits(policy).view(2, 15, -1)[:, 1:]
    torch.testing.assert_close(found[:, :-1], expected, rtol=1e-5, atol=1e-5)


def test_weights_gathered_elsewhere_are_merged_and_saved(base: Path, tmp_path: Path) -> None:
    """As a run over several processes does: the tensors come from outside, the model's own are not asked."""
    policy = adapted(base)
    state = {name: value.clone() for name, value in policy.model.state_dict().items()}
    save_policy(policy, tmp_path / "own")
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.zero_()
    save_policy(policy, tmp_path / "given", state=state)
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "given" / file).read_bytes() == (tmp_path / "own" / file).read_bytes()


def test_what_does_not_fit_is_named(base: Path, tmp_path: Path) -> None:
    policy = adapted(base)
    with pytest.raises(ValueError, match="already"):
        add_lora(policy, SPEC)
    plain = load_policy(base)
    with pytest.raises(ValueError, match="no LoRA adapter"), plain.without_adapter():
        pass
    with pytest.raises(ModelError, match="holds no LoRA adapter"):
        load_adapter(policy, base)
    with pytest.raises(ModelError, match="holds no LoRA adapter"):
        load_policy(base, base=base)
    save_policy(policy, tmp_path / "saved")
    other = load_policy(base)
    add_lora(other, LoraSpec(rank=4))
    with pytest.raises(ModelError, match=r"is \(3, 32\), not \(4, 32\)"):
        load_adapter(other, tmp_path / "saved")
    file = tmp_path / "saved" / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    first = next(iter(weights))
    save_file({"x": weights.pop(first), **weights}, file)
    with pytest.raises(ModelError, match=f"missing {first}; unknown x"):
        load_adapter(policy, tmp_path / "saved")
    file.write_bytes(b"no")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load_adapter(policy, tmp_path / "saved")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"use_dora": True}, "only plain LoRA"),
        ({"peft_type": "IA3"}, "only plain LoRA"),
        ({"alpha_pattern": {"q_proj": 3}}, "only plain LoRA"),
        ({"target_modules": ["embed"]}, "fit no choice"),
        ({"r": None}, "cannot be read as the configuration"),
    ],
    ids=str,
)
def test_a_foreign_adapter_is_refused(tmp_path: Path, checkpoint: Path, change: dict[str, object], says: str) -> None:
    save_policy(adapted(checkpoint), tmp_path)
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=says):
        load_policy(tmp_path, base=checkpoint)


@pytest.mark.parametrize("targets", ["all", "attention"])
def test_a_merged_policy_is_the_saved_merged_one(base: Path, tmp_path: Path, targets: str) -> None:
    policy = adapted(base, SPEC.model_copy(update={"targets": targets}))
    save_policy(policy, tmp_path / "saved")
    merge_lora(policy)
    saved = load_policy(tmp_path / "saved")
    state, expected = policy.model.state_dict(), saved.model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert torch.equal(logits(policy), logits(saved))
    assert policy.lora is None
    assert all(parameter.requires_grad for parameter in policy.model.parameters())
    add_lora(policy, SPEC)  # it can be trained like any other


def test_a_policy_without_an_adapter_has_nothing_to_merge(base: Path) -> None:
    with pytest.raises(ValueError, match="no LoRA adapter to merge"):
        merge_lora(load_policy(base))
