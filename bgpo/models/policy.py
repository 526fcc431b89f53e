"""A policy: network, tokenizer and the facts of its model family, loaded from and saved to a checkpoint directory.

The family comes from `config.json` (`model_type`), never from a name in a path, and no code from a checkpoint is ever
executed. Tokenizer files and unknown config keys travel unchanged from the loaded directory to the saved one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerFast

from bgpo.errors import ModelError
from bgpo.models.layout import load_weights, read_config, save_weights
from bgpo.models.llada import LLaDAConfig, LLaDAModel

END_TOKENS = ("<|endoftext|>", "<|eot_id|>")
"""Both end a LLaDA response; the config names only the first."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)

Message = Mapping[str, str]


@dataclass
class Policy:
    """A loaded model, ready to generate and to be trained."""

    model: LLaDAModel
    tokenizer: PreTrainedTokenizerFast
    config: dict[str, Any]
    """config.json as it was read."""
    source: Path
    mask_id: int
    end_ids: tuple[int, ...]
    """Any of these ends a response; the first one also fills the canvas behind the end."""
    remasking: Literal["low_confidence", "entropy", "random"] = "low_confidence"
    """How the family's own sampler chooses which predictions to keep."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation in the chat template, up to where the assistant's answer begins."""
        conversation = [dict(message) for message in messages]
        text = self.tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
        return self.encode(str(text))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with no token added."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of response tokens, without end and other special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def load_policy(path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Policy:
    """Load a checkpoint directory (config.json, safetensors, tokenizer files).

    Args:
        path: local directory.
        dtype: of the weights in memory.
        device: where they go.

    Raises:
        ModelError: naming what is missing or does not fit.
    """
    directory = Path(path)
    config = read_config(directory)
    if config.get("model_type") != "llada":
        raise ModelError(
            f"model_type {config.get('model_type')!r} is not supported, only 'llada'", "config.json.model_type"
        )
    with torch.device("meta"):
        model = LLaDAModel(LLaDAConfig.from_json(config))
    model = model.to(dtype).to_empty(device=device)
    load_weights(model, directory)
    tokenizer = _load_tokenizer(directory)
    mask_id = model.config.mask_token_id
    end_ids = _end_ids(config, tokenizer)
    _self_test(tokenizer, model.config, end_ids)
    return Policy(model.eval(), tokenizer, config, directory, mask_id, end_ids)


def save_policy(policy: Policy, path: str | Path) -> None:
    """Write a checkpoint directory that `load_policy` and the model's original code open.

    config.json keeps every key it was loaded with; only `torch_dtype` follows the weights.
    """
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    dtype = next(policy.model.parameters()).dtype
    config = policy.config | {"torch_dtype": str(dtype).removeprefix("torch.")}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_weights(policy.model, directory)
    for name in TOKENIZER_FILES:
        if (policy.source / name).is_file() and policy.source.resolve() != directory.resolve():
            shutil.copyfile(policy.source / name, directory / name)


def _load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    if not (directory / "tokenizer.json").is_file():
        raise ModelError(f"no tokenizer.json in {directory}")
    try:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
            str(directory), local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the tokenizer in {directory} cannot be loaded: {error}") from error
    if tokenizer.chat_template is None:
        raise ModelError(f"the tokenizer in {directory} has no chat template")
    return tokenizer


def _end_ids(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    vocabulary = tokenizer.get_vocab()
    named = config.get("eos_token_id")
    ids = list(named) if isinstance(named, list) else [] if named is None else [named]
    ids += [vocabulary[token] for token in END_TOKENS if token in vocabulary and vocabulary[token] not in ids]
    if not ids:
        raise ModelError(f"no end token: neither eos_token_id nor any of {END_TOKENS}", "config.json.eos_token_id")
    for token in ids:
        if not isinstance(token, int) or token < 0:
            raise ModelError(f"{token!r} is not a token id", "config.json.eos_token_id")
    return tuple(ids)


def _self_test(tokenizer: PreTrainedTokenizerFast, config: LLaDAConfig, end_ids: tuple[int, ...]) -> None:
    """Check that tokenizer and network speak of the same tokens."""
    highest = max(tokenizer.get_vocab().values())
    if highest >= config.embedding_size:
        raise ModelError(f"the tokenizer has id {highest}, the model only {config.embedding_size} embeddings")
    if config.mask_token_id in end_ids:
        raise ModelError(f"token {config.mask_token_id} is both mask and end token", "config.json.mask_token_id")
    if max(end_ids) >= config.embedding_size:
        raise ModelError(f"end token {max(end_ids)} has no embedding", "config.json.eos_token_id")
