"""A policy: network, tokenizer and the facts of its model family, loaded from and saved to a checkpoint directory.

The family comes from `config.json` (`model_type`), never from a name in a path, and no code from a checkpoint is ever
executed. Tokenizer files, the family's own code files and unknown config keys travel unchanged from the loaded
directory to the saved one, so that a saved checkpoint opens wherever the loaded one did.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bgpo.errors import ModelError
from bgpo.models import lora
from bgpo.models.converted import MODEL_TYPES, ConvertedModel
from bgpo.models.dream import DreamModel
from bgpo.models.layout import has_weights, load_weights, read_config, save_tensors
from bgpo.models.llada import LLaDAModel
from bgpo.models.network import Network
from bgpo.models.self_test import self_test
from bgpo.models.tokenizers import load_tokenizer
from bgpo.spec import LoraSpec

FAMILIES: dict[str, type[Network]] = {
    "llada": LLaDAModel,
    "Dream": DreamModel,
    **dict.fromkeys(MODEL_TYPES, ConvertedModel),
}
"""The network of each `model_type`."""

TRAVELLING_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.py",
    "LICENSE*",
)

Message = Mapping[str, str]


@dataclass
class Policy:
    """A loaded model, ready to generate and to be trained."""

    model: Network
    tokenizer: PreTrainedTokenizerFast
    config: dict[str, Any]
    """config.json as it was read."""
    source: Path
    """The directory it was loaded from; with LoRA, that of the base model."""
    mask_id: int
    end_ids: tuple[int, ...]
    """Any of these ends a response; the first one also fills the canvas behind the end."""
    remasking: Literal["low_confidence", "entropy", "random"] = "low_confidence"
    """How the family's own sampler chooses which predictions to keep."""
    lora: LoraSpec | None = None
    """The adapter being trained; None = all weights."""

    @property
    def family(self) -> str:
        """`llada`, `dream` or `a2d`."""
        return self.model.family

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def max_length(self) -> int:
        """Context in tokens: prompt and response together."""
        return self.model.max_length

    @contextmanager
    def without_adapter(self) -> Iterator[Policy]:
        """The base model inside the context: this policy with its LoRA adapter switched off.

        Raises:
            ValueError: the policy has no adapter.
        """
        if self.lora is None:
            raise ValueError("the policy has no LoRA adapter to switch off")
        with lora.disabled(self.model):
            yield self

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


def load_policy(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    base: str | Path | None = None,
) -> Policy:
    """Load a checkpoint directory (config.json, safetensors, tokenizer files).

    Args:
        path: local directory.
        dtype: of the weights in memory; a LoRA adapter is float32 always.
        device: where they go.
        base: directory of the base model of a LoRA checkpoint. With it the adapter is loaded, to go on training or
            to switch it off; without it the merged weights of `path` are, as those of an ordinary model.

    Raises:
        ModelError: naming what is missing or does not fit.
    """
    directory = Path(path)
    if base is not None:
        return _load_adapted(directory, load_policy(base, dtype=dtype, device=device))
    adapter = lora.find_adapter(directory)
    if adapter is not None and not has_weights(directory):
        raise ModelError(f"{directory} holds a LoRA adapter only; give the directory of its base model as `base`")
    config = read_config(directory)
    model_type = config.get("model_type")
    network = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if network is None:
        supported = ", ".join(repr(name) for name in FAMILIES)
        raise ModelError(f"model_type {model_type!r} is not supported, only {supported}", "config.json.model_type")
    with torch.device("meta"):
        model = network.from_config(config)
    model = model.to(dtype).to_empty(device=device)
    load_weights(model, directory)
    model.requires_grad_(True).eval()
    tokenizer = load_tokenizer(directory)
    end_ids = _end_ids(config, tokenizer, network.end_tokens)
    self_test(tokenizer, model, end_ids)
    return Policy(model, tokenizer, config, directory, model.mask_id, end_ids, network.remasking)


def add_lora(policy: Policy, spec: LoraSpec, seed: int = 0) -> None:
    """Put a LoRA adapter into the policy's network and freeze the rest; `seed` draws its starting weights.

    Raises:
        ValueError: it has one already.
    """
    if policy.lora is not None:
        raise ValueError("the policy has a LoRA adapter already")
    lora.inject(policy.model, spec, seed)
    policy.lora = spec


def load_adapter(policy: Policy, path: str | Path) -> None:
    """Put a checkpoint's adapter weights into a policy that has a LoRA adapter, bit for bit.

    Raises:
        ModelError: the directory holds no adapter, or one that does not fit.
    """
    directory = lora.find_adapter(Path(path))
    if directory is None:
        raise ModelError(f"{path} holds no LoRA adapter")
    lora.load(policy.model, directory)


def merge_lora(policy: Policy) -> None:
    """Add the policy's LoRA adapter to its weights: an ordinary policy from then on, to be trained like one.

    Raises:
        ValueError: it has none.
    """
    if policy.lora is None:
        raise ValueError("the policy has no LoRA adapter to merge")
    lora.fold(policy.model, policy.lora)
    policy.lora = None


def set_activation_checkpointing(policy: Policy, enabled: bool) -> None:
    """Keep only the input of each block and recompute the rest in the backward pass: less memory, more time."""
    policy.model.activation_checkpointing = enabled


def save_policy(policy: Policy, path: str | Path, *, state: Mapping[str, Tensor] | None = None) -> None:
    """Write a checkpoint directory that `load_policy` and the model's original code open.

    config.json keeps every key it was loaded with; only the dtype follows the weights. A policy with LoRA writes its
    adapter to `adapter/`, and the merged weights beside it unless `lora.checkpoints` says otherwise.

    Args:
        state: whole tensors under the names of `policy.model.state_dict()`, to be written in place of the model's
            own: those of a model that is sharded over processes.
    """
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    state = policy.model.state_dict() if state is None else state
    whole = dict(state)
    if policy.lora is not None:
        lora.save_adapter(policy.model, policy.lora, state, str(policy.source), directory / lora.ADAPTER_DIR)
        whole = lora.merged_state(state, policy.lora)
    if policy.lora is None or policy.lora.checkpoints == "merged":
        save_tensors(whole, directory)
    dtype = str(next(iter(whole.values())).dtype).removeprefix("torch.")
    key = "dtype" if "dtype" in policy.config and "torch_dtype" not in policy.config else "torch_dtype"
    config = policy.config | {key: dtype}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    if policy.source.resolve() != directory.resolve():
        for pattern in TRAVELLING_FILES:
            for file in policy.source.glob(pattern):
                if file.is_file():
                    shutil.copyfile(file, directory / file.name)


def _load_adapted(directory: Path, policy: Policy) -> Policy:
    adapter = lora.find_adapter(directory)
    if adapter is None:
        raise ModelError(f"{directory} holds no LoRA adapter, but a base model is given")
    spec = lora.read_spec(adapter, policy.model)
    checkpoints: Literal["merged", "adapter"] = "merged" if has_weights(directory) else "adapter"
    add_lora(policy, spec.model_copy(update={"checkpoints": checkpoints}))
    load_adapter(policy, directory)
    return policy


def _end_ids(
    config: Mapping[str, Any], tokenizer: PreTrainedTokenizerFast, end_tokens: Sequence[str]
) -> tuple[int, ...]:
    """What ends a response: the config's tokens, then the family's."""
    vocabulary = tokenizer.get_vocab()
    named = config.get("eos_token_id")
    ids = list(named) if isinstance(named, list) else [] if named is None else [named]
    ids += [vocabulary[token] for token in end_tokens if token in vocabulary and vocabulary[token] not in ids]
    if not ids:
        raise ModelError(f"no end token: neither eos_token_id nor any of {end_tokens}", "config.json.eos_token_id")
    for token in ids:
        if not isinstance(token, int) or token < 0:
            raise ModelError(f"{token!r} is not a token id", "config.json.eos_token_id")
    return tuple(ids)
