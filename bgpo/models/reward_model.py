"""A reward model: a published sequence classifier with one output, for graders of type `reward_model`.

The network is transformers' own class for the checkpoint's `model_type`: nothing here trains it, and no code of a
checkpoint runs. Only safetensors is read, every weight must be there (transformers would draw a missing head at random
and go on), and the dtype is the stored one.

A score does not depend on what else is in the batch. Conversations are padded on the right, which a causal network
cannot see and others mask; the padding is `pad_token_id` of config.json, since that is what transformers looks for to
find a text's end. A model without it is run on one conversation at a time.

Not covered: models of several outputs, pairs of texts as separate segments, quantised weights.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from bgpo.errors import ModelError
from bgpo.models.layout import has_weights
from bgpo.models.tokenizers import load_tokenizer

_NO_LIMIT = 1 << 30
"""Tokenizers without a limit state one beyond any text."""


class LoadedRewardModel:
    """`bgpo.rewards.settings.RewardModel` on a device. Threads may share it; they take turns."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._lock = threading.Lock()  # neither a device's memory nor a fast tokenizer is made for several at once
        self._pad_id: int | None = model.config.pad_token_id
        self._special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or _NO_LIMIT]
        self._max_tokens = min(limits)

    def score(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[float]:
        """The model's one output for each conversation of {role, content} messages.

        Raises:
            ValueError: the tokenizer or the model cannot take a conversation.
        """
        with self._lock:
            rows = [self._encoded(conversation) for conversation in conversations]
            size = 1 if self._pad_id is None else max(len(rows), 1)
            return [score for begin in range(0, len(rows), size) for score in self._outputs(rows[begin : begin + size])]

    def _encoded(self, conversation: Sequence[Mapping[str, str]]) -> list[int]:
        messages = [{"role": one["role"], "content": self._plain(one["content"])} for one in conversation]
        if self._tokenizer.chat_template is None:
            ids = self._tokenizer("\n".join(message["content"] for message in messages))["input_ids"]
        else:
            try:
                ids = self._tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
            except TemplateError as error:
                raise ValueError(f"the chat template does not take it: {error}") from error
        if not 0 < len(ids) <= self._max_tokens:
            raise ValueError(f"it has {len(ids)} tokens, the model takes 1 to {self._max_tokens}")
        return list(ids)

    def _plain(self, text: str) -> str:
        """Without what the tokenizer would read as a special token: a completion could end its own turn with one."""
        previous = ""
        while text != previous:  # taking one out can bring the halves of another together
            previous = text
            for token in self._special:
                text = text.replace(token, "")
        return text

    @torch.no_grad()
    def _outputs(self, rows: Sequence[list[int]]) -> list[float]:
        longest = max(map(len, rows))
        padding = [longest - len(row) for row in rows]
        fill = 0 if self._pad_id is None else self._pad_id  # without one, rows are alone and nothing is filled
        device = self._model.device
        ids_BT = torch.tensor([row + [fill] * more for row, more in zip(rows, padding, strict=True)], device=device)
        mask_BT = torch.tensor([[1] * len(row) + [0] * more for row, more in zip(rows, padding, strict=True)])
        logits_B1: Tensor = self._model(input_ids=ids_BT, attention_mask=mask_BT.to(device)).logits
        scores: list[float] = logits_B1.squeeze(-1).float().tolist()
        return scores


def load_reward_model(directory: str | Path, device: torch.device | str = "cpu") -> LoadedRewardModel:
    """Load a checkpoint directory onto a device.

    Raises:
        ModelError: it is no whole sequence classifier with one output.
    """
    directory = Path(directory)
    tokenizer = load_tokenizer(directory, chat_template=False)
    if not has_weights(directory):
        raise ModelError(f"{directory} has no weights as safetensors, the only format read")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(str(directory), **options)
        if config.num_labels != 1:
            raise ModelError(f"the model in {directory} has {config.num_labels} outputs: a reward model has one")
        model, report = AutoModelForSequenceClassification.from_pretrained(
            str(directory), config=config, dtype="auto", use_safetensors=True, output_loading_info=True, **options
        )
    except ModelError:
        raise
    except Exception as error:  # transformers raises many types for a checkpoint it cannot read, and lists none
        raise ModelError(f"the reward model in {directory} cannot be loaded: {error}") from error
    problems = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if problems:
        raise ModelError(f"the weights in {directory} do not fit its config.json: {', '.join(problems[:5])}")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise ModelError(f"the tokenizer in {directory} has more tokens than the model")
    return LoadedRewardModel(model.to(device).eval(), tokenizer)
