"""What holds for every family alike: padding, checkpoint files, activation checkpointing, sampling and scoring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import log_softmax
from torch import Tensor

from bgpo import elbo_terms, generate
from bgpo.models import Policy, add_lora, load_policy, save_policy, set_activation_checkpointing
from bgpo.models.layout import save_tensors
from bgpo.models.scratch import FamilyName, Shape, create_checkpoint, random_model
from bgpo.spec import LoraSpec, RolloutSpec
from tests.bgpo.reference import exact_elbo, greedy_decode, masked_sums

FAMILIES: tuple[FamilyName, ...] = ("llada", "dream", "qwen3")
SIZES: dict[str, Any] = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 40}
SHIFTED = {"llada": False, "dream": True, "qwen3": True}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> FamilyName:
    name: FamilyName = request.param
    return name


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def directory(request: pytest.FixtureRequest, family: FamilyName, tmp_path: Path) -> Path:
    """A random checkpoint with weights large enough for distributions to have shape."""
    path = tmp_path / "model"
    create_checkpoint(path, family=family, seed=2, tied=request.param, **SIZES)
    policy = load_policy(path)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    save_policy(policy, path)
    return path


@pytest.fixture
def policy(directory: Path) -> Policy:
    return load_policy(directory)


def row_logits(policy: Policy, tokens: Any, attention: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return policy.model.logits(policy.model(torch.as_tensor(tokens)[None], attention)[0])


def test_a_policy_knows_its_family(policy: Policy, family: FamilyName) -> None:
    assert policy.family == {"llada": "llada", "dream": "dream", "qwen3": "a2d"}[family]
    assert policy.remasking == ("entropy" if family == "dream" else "low_confidence")
    assert (policy.max_length, len(policy.model.blocks), policy.model.shift) == (256, 2, SHIFTED[family])
    vocabulary = policy.tokenizer.get_vocab()
    assert policy.mask_id == vocabulary["<|mdm_mask|>" if family == "llada" else "<|mask|>"]
    turn_end = vocabulary["<|eot_id|>" if family == "llada" else "<|im_end|>"]
    assert policy.end_ids == (vocabulary["<|endoftext|>"], turn_end)


@pytest.mark.parametrize("pad", [1, 7, 60])
def test_left_padding_equals_none(policy: Policy, pad: int) -> None:
    generator = torch.Generator().manual_seed(pad)
    tokens = torch.randint(0, 270, (3, 40), generator=generator)
    filler = torch.randint(0, 270, (3, pad), generator=generator)
    attention = torch.ones(3, pad + 40, dtype=torch.bool)
    attention[:, :pad] = False
    with torch.no_grad():
        hidden = policy.model(tokens)
        padded = policy.model(torch.cat([filler, tokens], 1), attention)[:, pad:]
    torch.testing.assert_close(padded, hidden, rtol=0, atol=1e-6 * float(hidden.abs().max()))


def test_right_padding_is_not_seen(policy: Policy) -> None:
    attention = torch.tensor([[True] * 6 + [False] * 2])
    first = row_logits(policy, [1, 2, 3, 4, 5, 6, 7, 8], attention)[:6]
    torch.testing.assert_close(first, row_logits(policy, [1, 2, 3, 4, 5, 6, 70, 80], attention)[:6], rtol=0, atol=0)
    torch.testing.assert_close(first, row_logits(policy, [1, 2, 3, 4, 5, 6]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_what_is_loaded_is_saved_byte_by_byte(
    directory: Path, tmp_path: Path, dtype: torch.dtype, shard_bytes: int
) -> None:
    """Each tensor, every config key, and every file that travels, from one file or shards."""
    tensors = {name: value.to(dtype) for name, value in load_file(directory / "model.safetensors").items()}
    (directory / "model.safetensors").unlink()
    save_tensors(tensors, directory, shard_bytes)
    config = json.loads((directory / "config.json").read_text()) | {
        "torch_dtype": str(dtype).removeprefix("torch."),
        "auto_map": {"AutoModel": "modeling.Model"},
        "use_cache": False,
    }
    (directory / "config.json").write_text(json.dumps(config))
    travelling = {"modeling.py": "raise SystemExit", "generation_config.json": "{}", "LICENSE": "free"}
    for name, text in travelling.items():
        (directory / name).write_text(text)
    save_policy(load_policy(directory, dtype=dtype), tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert stored.keys() == tensors.keys()
    for name, value in tensors.items():
        assert stored[name].dtype == dtype
        assert torch.equal(stored[name].view(torch.uint8), value.view(torch.uint8))
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (saved, list(saved)) == (config, list(config)), "the same keys in the same order"
    for name in (*travelling, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "saved" / name).read_bytes() == (directory / name).read_bytes()
    assert not (tmp_path / "saved" / "README.md").exists()


def gradients(policy: Policy) -> dict[str, Tensor]:
    tokens = torch.randint(0, 250, (2, 24), generator=torch.Generator().manual_seed(0))
    for parameter in policy.model.parameters():
        parameter.grad = None
    policy.model.logits(policy.model(tokens).flatten(0, 1)).log_softmax(-1)[:, 5].sum().backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
def test_activation_checkpointing_gives_the_same_gradients_from_fewer_bytes(policy: Policy, adapted: bool) -> None:
    if adapted:
        add_lora(policy, LoraSpec(rank=2))
    weights = {parameter.data_ptr() for parameter in policy.model.parameters()}

    def saved_bytes() -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            if tensor.data_ptr() not in weights:
                total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            policy.model(torch.arange(64)[None])
        return total

    plain, plain_bytes = gradients(policy), saved_bytes()
    set_activation_checkpointing(policy, True)
    recomputed, kept_bytes = gradients(policy), saved_bytes()
    assert plain.keys() == recomputed.keys()
    for name, value in plain.items():
        assert torch.equal(value, recomputed[name]), name
    assert kept_bytes < plain_bytes / 4
    set_activation_checkpointing(policy, False)
    assert saved_bytes() == plain_bytes


def predict(policy: Policy) -> Any:
    return lambda tokens: row_logits(policy, list(tokens)).double().numpy()


def test_greedy_decoding_equals_the_published_algorithm(policy: Policy) -> None:
    """`low_confidence` in every family, from a prompt that leaves the row unpadded and one that does not."""
    prompts = [policy.encode_prompt([{"role": "user", "content": text}]) for text in ("Hi", "A longer one")]
    spec = RolloutSpec(
        max_completion_length=16, block_length=8, diffusion_steps=8, temperature=0.0, remasking="low_confidence"
    )
    found = generate(policy, [[{"role": "user", "content": text}] for text in ("Hi", "A longer one")], spec)

    def without_mask(tokens: Any) -> Any:
        logits = predict(policy)(tokens)
        logits[:, policy.mask_id] = -np.inf
        return logits

    for prompt, response in zip(prompts, found, strict=True):
        expected = greedy_decode(without_mask, prompt, length=16, block=8, steps=8, mask_id=policy.mask_id)
        end = next((i + 1 for i, token in enumerate(expected) if token in policy.end_ids), len(expected))
        assert response.token_ids == expected[:end]


def test_sampling_in_the_family_s_own_way_is_reproducible(policy: Policy) -> None:
    spec = RolloutSpec(max_completion_length=12, block_length=4, diffusion_steps=6, temperature=1.0)
    both = generate(policy, ["one", "a longer prompt"], spec, seed=3)
    alone = generate(policy, ["one"], spec, seed=3)
    assert both[0].token_ids == alone[0].token_ids, "the batch around a row does not matter"
    assert generate(policy, ["one"], spec, seed=4)[0].token_ids != alone[0].token_ids
    assert all(policy.mask_id not in response.token_ids for response in both)


def test_elbo_terms_are_those_of_the_exact_sum(policy: Policy) -> None:
    """Each masking of three tokens enumerated: the mean of the terms over many samples is the ELBO."""
    prompt = policy.encode_prompt([{"role": "user", "content": "x"}])
    response = [65, 66, policy.end_ids[1]]
    sums = masked_sums(predict(policy), prompt, response, policy.mask_id)
    with torch.no_grad():
        terms = elbo_terms(policy, [prompt], [response], n_samples=600, estimator="exact_count", seed=1)
    exact = exact_elbo(sums, 3)
    error = float(terms.std()) / 600**0.5
    assert abs(float(terms.mean()) - exact) < 5 * error + 1e-4 * abs(exact)
    expected = float(
        log_softmax(predict(policy)([*prompt, *[policy.mask_id] * 3])[-3:], axis=-1)[[0, 1, 2], response].sum()
    )
    assert (terms - expected).abs().min() < 1e-4 * abs(expected), "all masked at once is among them"


def test_elbo_terms_train_every_weight(policy: Policy) -> None:
    prompts = [policy.encode_prompt([{"role": "user", "content": text}]) for text in ("x", "longer")]
    terms = elbo_terms(policy, prompts, [[65, 66, 67], [68]], n_samples=4)
    terms.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.model.parameters())


def test_random_models_have_the_dtype_and_sizes_asked_for(family: FamilyName) -> None:
    shape = Shape(d_model=64, n_layers=1, n_heads=8, n_kv_heads=2, mlp_hidden_size=96, embeddings=1000, tied=True)
    model, config = random_model(family, shape, seed=1, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert (model.vocabulary, config["torch_dtype"]) == (1000, "bfloat16")
    k = next(value for name, value in model.state_dict().items() if name.endswith("k_proj.weight"))
    assert tuple(k.shape) == (16, 64)
    again, _ = random_model(family, shape, seed=1, dtype=torch.bfloat16)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert 0.018 < float(model.state_dict()[next(iter(model.state_dict()))].float().std()) < 0.022
