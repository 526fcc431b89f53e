"""Autoregressive networks run without their causal mask, and the command that makes diffusion models of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from bgpo.errors import ModelError
from bgpo.models import Policy, load_policy, save_policy
from bgpo.models.a2d import convert, main
from bgpo.models.converted import ConvertedModel
from bgpo.models.layout import save_tensors
from bgpo.models.scratch import byte_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "eos_token_id": 275,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen3": Qwen3Config(**SIZES, head_dim=8, rms_norm_eps=1e-5),
    "qwen2_tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "llama3_rope": LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
}


def autoregressive(directory: Path, config: PreTrainedConfig, *, mask_token: bool = False) -> Any:
    """A random autoregressive checkpoint as transformers writes it, and the model."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)  # far from uniform attention
    model.save_pretrained(directory)
    tokenizer = byte_tokenizer("qwen3")
    tokenizer.save_pretrained(str(directory))
    if not mask_token:
        content = json.loads((directory / "tokenizer.json").read_text())
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<|mask|>"]
        (directory / "tokenizer.json").write_text(json.dumps(content))
        settings = json.loads((directory / "tokenizer_config.json").read_text())
        del settings["mask_token"]
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return model.eval()


@pytest.fixture(params=CONFIGS)
def converted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Policy]:
    """The autoregressive model and the diffusion policy made of it."""
    model = autoregressive(tmp_path / "ar", CONFIGS[request.param])
    convert(tmp_path / "ar", tmp_path / "a2d")
    return model, load_policy(tmp_path / "a2d")


def hidden(model: ConvertedModel, tokens: Tensor, attention: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return model(tokens, attention)


def test_hidden_states_are_those_of_transformers_under_an_open_mask(converted: tuple[Any, Policy]) -> None:
    """transformers takes a 4-D mask as it is: with nothing hidden, its own forward attends in both directions."""
    causal, policy = converted
    tokens = torch.randint(0, 250, (2, 19), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        open_mask = torch.zeros(2, 1, 19, 19)
        expected = causal.model(input_ids=tokens, attention_mask=open_mask).last_hidden_state
        logits = causal(input_ids=tokens, attention_mask=open_mask).logits
        found = policy.model.states(tokens, None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        predicted = policy.model.logits(hidden(policy.model, tokens).flatten(0, 1)).view(2, 19, -1)
    torch.testing.assert_close(predicted[:, 1:], logits[:, :-1], rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        one_way = causal.model(input_ids=tokens).last_hidden_state
    assert (one_way[:, 0] - found[:, 0]).abs().max() > 0.01, "the causal mask made a difference"


def test_a_later_token_changes_an_earlier_state(converted: tuple[Any, Policy]) -> None:
    policy = converted[1]
    tokens = torch.arange(10)[None]
    changed = tokens.clone()
    changed[0, 9] = 100
    for attention in (None, torch.ones(1, 10, dtype=torch.bool)):
        first, second = hidden(policy.model, tokens, attention), hidden(policy.model, changed, attention)
        assert (first[0, 2] - second[0, 2]).abs().max() > 1e-3
        assert (first[0, 0] - second[0, 0]).abs().max() > 1e-3


def test_bfloat16_keeps_the_rotary_frequencies(tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", CONFIGS["llama3_rope"])
    convert(tmp_path / "ar", tmp_path / "a2d")
    full, half = load_policy(tmp_path / "a2d"), load_policy(tmp_path / "a2d", dtype=torch.bfloat16)
    assert torch.equal(full.model.model.rotary_emb.inv_freq, half.model.model.rotary_emb.inv_freq)
    assert half.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}


def test_without_shift_each_output_serves_its_own_position(converted: tuple[Any, Policy], tmp_path: Path) -> None:
    policy = converted[1]
    save_policy(policy, tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text()) | {"bgpo_logit_shift": False}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    own = load_policy(tmp_path / "own")
    tokens = torch.arange(12)[None]
    assert torch.equal(hidden(own.model, tokens), policy.model.states(tokens, None))
    assert torch.equal(hidden(policy.model, tokens)[:, 1:], hidden(own.model, tokens)[:, :-1])


def test_conversion_adds_a_mask_token_and_keeps_everything_else(tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", CONFIGS["qwen3"])
    (tmp_path / "ar" / "LICENSE").write_text("free")
    (tmp_path / "ar" / "pytorch_model.bin").write_bytes(b"the same weights again")
    mask_id = convert(tmp_path / "ar", tmp_path / "a2d")
    assert mask_id == 276, "the first id behind the tokenizer's"
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("ar", "a2d"))
    assert after == before | {"mask_token_id": 276, "bgpo_logit_shift": True}
    weights = "model.safetensors"
    assert (tmp_path / "a2d" / weights).read_bytes() == (tmp_path / "ar" / weights).read_bytes()
    assert (tmp_path / "a2d" / "LICENSE").read_text() == "free"
    assert not (tmp_path / "a2d" / "pytorch_model.bin").exists()
    policy = load_policy(tmp_path / "a2d")
    assert (policy.mask_id, policy.end_ids) == (276, (275, 273))
    assert policy.encode("a<|mask|>b") == [*policy.encode("a"), 276, *policy.encode("b")]
    assert policy.decode([*policy.encode("a"), 276]) == "a"
    plain = AutoTokenizer.from_pretrained(tmp_path / "ar")
    assert policy.encode("The same text: 数独\n") == plain.encode("The same text: 数独\n", add_special_tokens=False)


def test_a_converted_checkpoint_still_opens_in_transformers(converted: tuple[Any, Policy], tmp_path: Path) -> None:
    causal, policy = converted
    save_policy(policy, tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(again(input_ids=tokens).logits, causal(input_ids=tokens).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").mask_token_id == policy.mask_id
    assert again.config.mask_token_id == policy.mask_id


@pytest.mark.parametrize("config", ["qwen3", "qwen2_tied"])
def test_a_full_embedding_grows_by_the_mean_of_its_rows(tmp_path: Path, config: str) -> None:
    sizes = CONFIGS[config].to_dict() | {"vocab_size": 276}
    autoregressive(tmp_path / "ar", type(CONFIGS[config])(**sizes))
    whole = load_file(tmp_path / "ar" / "model.safetensors")
    (tmp_path / "ar" / "model.safetensors").unlink()
    save_tensors(whole, tmp_path / "ar", 20_000)
    assert convert(tmp_path / "ar", tmp_path / "a2d") == 276
    policy = load_policy(tmp_path / "a2d")
    state = policy.model.state_dict()
    assert set(state) == set(whole)
    for name, value in state.items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert value.shape[0] == 277
            assert torch.equal(value[:276], whole[name])
            torch.testing.assert_close(value[276], whole[name].mean(0))
        else:
            assert torch.equal(value, whole[name])
    index = json.loads((tmp_path / "a2d" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in state.values())
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "a2d").get_input_embeddings().weight.shape[0] == 277


def test_a_mask_token_that_exists_is_used(tmp_path: Path) -> None:
    autoregressive(tmp_path / "ar", CONFIGS["qwen3"], mask_token=True)
    assert convert(tmp_path / "ar", tmp_path / "a2d", "<|other|>") == 276
    assert load_policy(tmp_path / "a2d").tokenizer.mask_token == "<|mask|>"


def test_a_tied_head_may_be_written_out_but_not_differ(tmp_path: Path) -> None:
    """Some published checkpoints of tied models hold the head all the same."""
    autoregressive(tmp_path / "ar", CONFIGS["qwen2_tied"])
    convert(tmp_path / "ar", tmp_path / "a2d")
    weights = load_file(tmp_path / "a2d" / "model.safetensors")
    plain = load_policy(tmp_path / "a2d").model.state_dict()
    head = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": head}, tmp_path / "a2d" / "model.safetensors")
    assert all(torch.equal(v, plain[k]) for k, v in load_policy(tmp_path / "a2d").model.state_dict().items())
    head[3, 3] += 1
    save_file(weights | {"lm_head.weight": head}, tmp_path / "a2d" / "model.safetensors")
    with pytest.raises(ModelError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        load_policy(tmp_path / "a2d")


def test_the_command_says_what_it_made_or_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    autoregressive(tmp_path / "ar", CONFIGS["qwen3"])

    def run(source: str) -> None:
        arguments = ["--model", str(tmp_path / source), "--out", str(tmp_path / "a2d")]
        monkeypatch.setattr(sys, "argv", ["python -m bgpo.models.a2d", *arguments])
        main()

    run("ar")
    assert "mask token 276, end tokens 275, 273, 300 embeddings" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"^error: config\.json\.mask_token_id: it has a mask token"):
        run("a2d")


def test_what_cannot_be_converted_is_named(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="'llada' cannot be converted, only qwen2, qwen3, llama"):
        convert(checkpoint, tmp_path / "a2d")
    with pytest.raises(ModelError, match=r"no config\.json"):
        convert(tmp_path / "absent", tmp_path / "a2d")
    autoregressive(tmp_path / "ar", CONFIGS["qwen3"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ModelError, match="is not empty"):
        convert(tmp_path / "ar", tmp_path / "full")
    for path in (tmp_path / "ar").glob("chat_template*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"no chat template: put one into chat_template\.jinja"):
        convert(tmp_path / "ar", tmp_path / "a2d")


def test_an_autoregressive_checkpoint_is_refused_with_what_to_do(tmp_path: Path) -> None:
    autoregressive(tmp_path, CONFIGS["qwen3"])
    with pytest.raises(ModelError, match=r"python -m bgpo\.models\.a2d") as caught:
        load_policy(tmp_path)
    assert caught.value.param == "config.json.mask_token_id"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"layer_types": ["full_attention", "nonsense"]}, ""),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_parameters"),
        ({"rope_parameters": 3}, ""),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"hidden_act": "nonsense"}, "hidden_act"),
        ({"mask_token_id": 300}, "mask_token_id"),
        ({"mask_token_id": -1}, "mask_token_id"),
        ({"bgpo_logit_shift": "yes"}, "bgpo_logit_shift"),
    ],
    ids=str,
)
def test_an_unusable_config_names_its_key(change: dict[str, Any], param: str) -> None:
    config = CONFIGS["qwen3"].to_dict() | {"mask_token_id": 276} | change
    with pytest.raises(ModelError) as caught:
        ConvertedModel.from_config(config)
    assert caught.value.param == f"config.json.{param}".rstrip(".")
