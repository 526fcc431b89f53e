"""Loading a checkpoint's tokenizer from the files it is published in.

`tokenizer.json` is read as it is. Without it, byte-level BPE in `vocab.json` and `merges.txt` is built by the class
that splits text as the family's own code does. No code of a checkpoint runs, so a class that `tokenizer_config.json`
names and transformers does not have (`DreamTokenizer`) is mapped here. SentencePiece models are not read: transformers
needs further packages for them and converts them to `tokenizer.json` once.
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers import GPT2Tokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from bgpo.errors import ModelError

_BPE_CLASSES: dict[str, type[PreTrainedTokenizerFast]] = {
    "DreamTokenizer": Qwen2Tokenizer,
    "Qwen2Tokenizer": Qwen2Tokenizer,
    "GPT2Tokenizer": GPT2Tokenizer,
}


def load_tokenizer(directory: Path, *, chat_template: bool = True) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint directory.

    Args:
        chat_template: it must have one.

    Raises:
        ModelError: there is none that can be read, or it has no chat template.
    """
    tokenizer_class = _tokenizer_class(directory)
    try:
        tokenizer: PreTrainedTokenizerFast = tokenizer_class.from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the tokenizer in {directory} cannot be loaded: {error}") from error
    if chat_template and tokenizer.chat_template is None:
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
