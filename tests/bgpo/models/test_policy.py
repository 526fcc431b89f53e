"""Policies: which tokens end a response, the chat template, and what of a checkpoint is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from bgpo.errors import ModelError
from bgpo.models import Policy, load_policy
from bgpo.models.scratch import SPECIAL_TOKENS, byte_tokenizer, create_checkpoint

# Of LLaDA-8B-Instruct's published tokenizer_config.json.
LLADA_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
CONVERSATIONS = [
    [("user", "What is 6 x 7?")],
    [("user", "  padded \n")],
    [("system", "Be brief."), ("user", "a\n\nb"), ("assistant", "c"), ("user", "")],
    [("user", "Ünïcödé 数独 {{ braces }} {% raw %}")],
]


@pytest.fixture
def broken(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "broken"))


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=str)
def test_prompts_are_written_as_the_published_template_writes_them(
    policy: Policy, conversation: list[tuple[str, str]]
) -> None:
    messages = [{"role": role, "content": content} for role, content in conversation]
    published = jinja2.Template(LLADA_TEMPLATE).render(messages=messages, bos_token="<|startoftext|>")
    ids = policy.encode_prompt(messages)
    assert policy.tokenizer.decode(ids, skip_special_tokens=False) == published
    vocabulary = policy.tokenizer.get_vocab()
    assert ids[:2] == [vocabulary["<|startoftext|>"], vocabulary["<|start_header_id|>"]]
    assert ids.count(vocabulary["<|startoftext|>"]) == 1, "the tokenizer adds none of its own"
    assert ids.count(vocabulary["<|eot_id|>"]) == len(messages)


@settings(deadline=None, derandomize=True)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_round_trips(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not any(token in text for token in SPECIAL_TOKENS):
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(ids) <= len(text.encode())


def test_digits_are_one_token_each(policy: Policy) -> None:
    assert len(policy.encode("0123456789")) == 10
    assert policy.decode(policy.encode("12\n34")) == "12\n34"


def test_special_tokens_are_not_part_of_a_text(policy: Policy) -> None:
    ids = [*policy.encode("12"), policy.end_ids[0], policy.mask_id, *policy.encode("34"), policy.end_ids[1]]
    assert policy.decode(ids) == "1234"


def test_both_published_end_tokens_end_a_response(policy: Policy, broken: Path) -> None:
    vocabulary = policy.tokenizer.get_vocab()
    assert policy.end_ids == (vocabulary["<|endoftext|>"], vocabulary["<|eot_id|>"])
    edit_json(broken / "config.json", eos_token_id=vocabulary["<|eot_id|>"])
    assert load_policy(broken).end_ids == (vocabulary["<|eot_id|>"], vocabulary["<|endoftext|>"])
    edit_json(broken / "config.json", eos_token_id=[5, vocabulary["<|eot_id|>"]])
    assert load_policy(broken).end_ids == (5, vocabulary["<|eot_id|>"], vocabulary["<|endoftext|>"])
    edit_json(broken / "config.json", eos_token_id=...)
    assert load_policy(broken).end_ids == (vocabulary["<|endoftext|>"], vocabulary["<|eot_id|>"])


@pytest.mark.parametrize("family", ["dream", None, ["llada"], "LLaDA"])
def test_the_family_is_what_the_config_says(broken: Path, family: object) -> None:
    edit_json(broken / "config.json", model_type=family)
    with pytest.raises(ModelError, match="'llada'") as caught:
        load_policy(broken)
    assert caught.value.param == "config.json.model_type"


@pytest.mark.parametrize(
    ("eos", "says"),
    [(320, "end token 320 has no embedding"), (-1, "-1"), ("<|eot_id|>", "eot_id"), ([5, None], "None"), (1.5, "1.5")],
    ids=str,
)
def test_an_end_token_that_is_no_token(broken: Path, eos: object, says: str) -> None:
    edit_json(broken / "config.json", eos_token_id=eos)
    with pytest.raises(ModelError, match=says) as caught:
        load_policy(broken)
    assert caught.value.param == "config.json.eos_token_id"


def test_a_mask_token_that_ends_responses(broken: Path, policy: Policy) -> None:
    edit_json(broken / "config.json", mask_token_id=policy.end_ids[1])
    with pytest.raises(ModelError, match="both mask and end") as caught:
        load_policy(broken)
    assert caught.value.param == "config.json.mask_token_id"


def test_a_model_without_any_end_token(broken: Path) -> None:
    text = (broken / "tokenizer.json").read_text()
    (broken / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<|x|>").replace("<|eot_id|>", "<|y|>"))
    config = json.loads((broken / "tokenizer_config.json").read_text())
    edit_json(broken / "tokenizer_config.json", **{k: ... for k, v in config.items() if v == "<|endoftext|>"})
    edit_json(broken / "config.json", eos_token_id=...)
    with pytest.raises(ModelError, match="no end token") as caught:
        load_policy(broken)
    assert caught.value.param == "config.json.eos_token_id"


def test_a_tokenizer_with_more_tokens_than_embeddings(tmp_path: Path, broken: Path) -> None:
    """A checkpoint of 256 embeddings that fits its config, beside a tokenizer of more tokens."""
    policy = load_policy(broken)
    edit_json(broken / "config.json", embedding_size=256, mask_token_id=255, eos_token_id=254)
    state = policy.model.state_dict()
    save_file(
        {name: value[:256].clone() if value.shape[0] == 320 else value for name, value in state.items()},
        broken / "model.safetensors",
    )
    with pytest.raises(ModelError, match="only 256 embeddings"):
        load_policy(broken)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"model": {"type": "BPE"}}', "\x00"])
def test_a_tokenizer_that_cannot_be_read(broken: Path, content: str) -> None:
    (broken / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="tokenizer"):
        load_policy(broken)


def test_a_tokenizer_that_is_missing_or_has_no_template(broken: Path) -> None:
    for path in broken.glob("chat_template*"):
        path.unlink()
    edit_json(broken / "tokenizer_config.json", chat_template=...)
    with pytest.raises(ModelError, match="no chat template"):
        load_policy(broken)
    (broken / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        load_policy(broken)


def test_no_code_of_a_checkpoint_runs(broken: Path) -> None:
    (broken / "modeling_llada.py").write_text("raise SystemExit('ran')")
    edit_json(broken / "config.json", auto_map={"AutoModel": "modeling_llada.LLaDAModelLM"})
    edit_json(broken / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "modeling_llada.Tok"]})
    assert load_policy(broken).mask_id > 0


def test_a_seed_makes_one_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 2, "mlp_hidden_size": 48, "max_sequence_length": 128}
    create_checkpoint(tmp_path / "same", seed=7, **shape)
    create_checkpoint(tmp_path / "other", seed=8, **shape)
    for file in checkpoint.iterdir():
        assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes()
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (checkpoint / "model.safetensors").read_bytes()


def test_a_loaded_model_is_ready_to_use(policy: Policy) -> None:
    assert not policy.model.training
    assert all(parameter.requires_grad and parameter.device.type == "cpu" for parameter in policy.model.parameters())
    assert not any(parameter.is_meta for parameter in policy.model.parameters())
    assert policy.device == torch.device("cpu")
