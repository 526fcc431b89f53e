"""Loading a checkpoint's tokenizer from the files it is published in, and checking it against the network.

`tokenizer.json` is read as it is. Without it, byte-level BPE in `vocab.json` and `merges.txt` is built by the class
that splits text as the family's own code does. No code of a checkpoint runs, so a class that `tokenizer_config.json`
names and transformers does not have (`DreamTokenizer`) is mapped here. SentencePiece models are not read: transformers
needs further packages for them and converts them to `tokenizer.json` once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import GPT2Tokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from bgpo.errors import ModelError
from bgpo.models.network import Network

_BPE_CLASSES: dict[str, type[PreTrainedTokenizerFast]] = {
    "DreamTokenizer": Qwen2Tokenizer,
    "Qwen2Tokenizer": Qwen2Tokenizer,
    "GPT2Tokenizer": GPT2Tokenizer,
}
_PROBE = "What is 6 x 7?"


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint directory.

    Raises:
        ModelError: there is none that can be read, or it has no chat template.
    """
    tokenizer_class = _tokenizer_class(directory)
    try:
        tokenizer: PreTrainedTokenizerFast = tokenizer_class.from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the tokenizer in {directory} cannot be loaded: {error}") from error
    if tokenizer.chat_template is None:
        raise ModelError(f"the tokenizer in {directory} has no chat template: put one into chat_template.jinja")
    return tokenizer


def _tokenizer_class(directory: Path) -> type[PreTrainedTokenizerFast]:
    if (directory / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast
    if not all((directory / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise ModelError(
            f"no tokenizer.json in {directory}, nor vocab.json with merges.txt; where only tokenizer.model exists, "
            "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...) writes tokenizer.json"
        )
    try:
        named = json.loads((directory / "tokenizer_config.json").read_text("utf-8")).get("tokenizer_class")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{directory / 'tokenizer_config.json'} cannot be read: {error}") from error
    found = _BPE_CLASSES.get(str(named).removesuffix("Fast"))
    if found is None:
        raise ModelError(
            f"tokenizer class {named!r} is not known, only {', '.join(_BPE_CLASSES)}; a tokenizer.json needs no class",
            "tokenizer_config.json.tokenizer_class",
        )
    return found


def self_test(tokenizer: PreTrainedTokenizerFast, model: Network, end_ids: Sequence[int]) -> None:
    """Check that tokenizer and network speak of the same tokens.

    Raises:
        ModelError: naming the token or file that does not fit.
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
    except Exception as error:
        # The template is a program from the checkpoint: it may raise anything.
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
