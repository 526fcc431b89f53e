"""The self-test that every checkpoint passes when it is loaded: mask token, end tokens, chat template, logit shift.

A checkpoint that fits its own config.json may still be one whose parts speak of different tokens. Each check here
names what does not fit; otherwise training would run and learn nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bgpo.errors import ModelError
from bgpo.models.network import Network

_PROBE = "What is 6 x 7?"
_WELL, _BADLY = -0.7, -3.0
"""Mean log probabilities (nats) of masked tokens: about every second one right; about one in twenty."""


def self_test(tokenizer: PreTrainedTokenizerFast, model: Network, end_ids: Sequence[int]) -> None:
    """Check that tokenizer and network speak of the same tokens, and that outputs stand where the family has them.

    Raises:
        ModelError: naming the token, key or file that does not fit.
    """
    highest = max(tokenizer.get_vocab().values())
    if highest >= model.vocabulary:
        raise ModelError(f"the tokenizer has id {highest}, the model only {model.vocabulary} embeddings")
    if model.mask_id in end_ids:
        raise ModelError(f"token {model.mask_id} is both mask and end token", "config.json.mask_token_id")
    if max(end_ids) >= model.vocabulary:
        raise ModelError(f"end token {max(end_ids)} has no embedding", "config.json.eos_token_id")
    _check_mask_token(tokenizer, model.mask_id)
    _check_template(tokenizer, end_ids)
    model.check()
    _check_shift(tokenizer, model)


def _check_mask_token(tokenizer: PreTrainedTokenizerFast, mask_id: int) -> None:
    """The mask must never come out of a text, and tokenizer and config must agree on it."""
    named = tokenizer.mask_token_id
    if named is not None and named != mask_id:
        raise ModelError(f"the tokenizer's mask token is {named}, the config's {mask_id}", "config.json.mask_token_id")
    if mask_id in tokenizer.get_vocab().values() and mask_id not in tokenizer.added_tokens_decoder:
        raise ModelError(
            f"{mask_id} is the ordinary token {tokenizer.convert_ids_to_tokens(mask_id)!r}: a text that has it would "
            "look masked",
            "config.json.mask_token_id",
        )


def _check_template(tokenizer: PreTrainedTokenizerFast, end_ids: Sequence[int]) -> None:
    """A conversation must survive encoding, and what closes an answer must be an end token."""
    conversation = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
    try:
        text = str(tokenizer.apply_chat_template(conversation, tokenize=False))
    except Exception as error:  # the template is a program from the checkpoint: it may raise anything
        raise ModelError(f"the chat template fails: {error}", "tokenizer_config.json.chat_template") from error
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if back != text or text.count(_PROBE) != len(conversation):
        raise ModelError(
            f"the chat template does not survive encoding: {text!r} comes back as {back!r}",
            "tokenizer_config.json.chat_template",
        )
    behind = text.rpartition(_PROBE)[2]
    closing: list[int] = tokenizer.encode(behind, add_special_tokens=False)[:1]
    if closing and closing[0] in tokenizer.added_tokens_decoder and closing[0] not in end_ids:
        raise ModelError(
            f"the chat template closes an answer with token {closing[0]} "
            f"({tokenizer.convert_ids_to_tokens(closing[0])!r}), which is no end token",
            "config.json.eos_token_id",
        )


@torch.no_grad()
def _check_shift(tokenizer: PreTrainedTokenizerFast, model: Network) -> None:
    """Refuse a model whose outputs predict masked tokens one position away from where its family has them.

    Some tokens of a conversation are masked. A model that predicts them badly says nothing: it may be untrained, or
    never have seen a masked prompt. One that predicts them well, but one position off, is read the wrong way.
    """
    text = tokenizer.apply_chat_template([{"role": "user", "content": _PROBE}], tokenize=False)
    ids = torch.tensor(tokenizer.encode(str(text), add_special_tokens=False)[: model.max_length])
    masked = torch.arange(2, len(ids), 4)
    device = next(model.parameters()).device
    tokens = ids.index_fill(0, masked, model.mask_id).to(device)
    states_TD = model.states(tokens[None], None)[0].cpu()

    def mean_log_prob(positions: Tensor) -> float:
        logits = model.logits(states_TD[positions].to(device)).cpu()
        return float(logits.log_softmax(-1)[torch.arange(len(masked)), ids[masked]].mean())

    here, before = mean_log_prob(masked), mean_log_prob(masked - 1)
    own, other = (before, here) if model.shift else (here, before)
    if other > _WELL and own < _BADLY:
        raise ModelError(
            f"the outputs predict masked tokens {'at their own position' if model.shift else 'one position later'} "
            f"(mean log probability {other:.1f}, against {own:.1f} where the configuration expects them)",
            "config.json.bgpo_logit_shift" if model.family == "a2d" else "config.json.model_type",
        )
