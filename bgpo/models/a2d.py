"""Turn an autoregressive checkpoint (Llama, Qwen2, Qwen3) into a masked diffusion one that can be trained here.

    python -m bgpo.models.a2d --model DIR --out DIR [--mask-token '<|mask|>']

The weights stay what they are: dropping the causal mask happens where the model runs, see `bgpo.models.converted`. What
changes is a mask token: in the tokenizer, as `mask_token_id` in config.json, and as one more row of embedding and head
(the mean of the others) where no unused row is left. Such a model must be trained (`supervised`) before it says
anything sensible. The result still opens with transformers' `AutoModelForCausalLM`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bgpo.errors import ModelError
from bgpo.models import load_policy
from bgpo.models.converted import MODEL_TYPES, SHIFT_KEY
from bgpo.models.layout import INDEX, read_config, weight_files
from bgpo.models.tokenizers import load_tokenizer

_GROWING = ("model.embed_tokens.weight", "lm_head.weight")
_FOREIGN_WEIGHTS = (".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack")


def convert(source: Path, out: Path, mask_text: str = "<|mask|>") -> int:
    """Write the diffusion checkpoint and return the mask token's id.

    Raises:
        ModelError: the source is no autoregressive checkpoint of a supported type, or `out` is not empty.
    """
    config = read_config(source)
    if config.get("model_type") not in MODEL_TYPES:
        raise ModelError(
            f"model_type {config.get('model_type')!r} cannot be converted, only {', '.join(MODEL_TYPES)}",
            "config.json.model_type",
        )
    if config.get("mask_token_id") is not None:
        raise ModelError("it has a mask token: it is a diffusion model already", "config.json.mask_token_id")
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} is not empty")
    tokenizer = load_tokenizer(source)
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": AddedToken(mask_text, special=True, normalized=False)})
    mask_id = int(tokenizer.mask_token_id)
    config |= {"mask_token_id": mask_id, SHIFT_KEY: True, "vocab_size": max(config["vocab_size"], mask_id + 1)}
    out.mkdir(parents=True, exist_ok=True)
    weights = weight_files(source)
    for file in source.iterdir():
        if file.is_file() and file.name not in weights and file.suffix not in _FOREIGN_WEIGHTS:
            shutil.copyfile(file, out / file.name)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    _write_tokenizer(tokenizer, out)
    added = sum(
        _copy_weights(source / file, out / file, names, config["vocab_size"]) for file, names in weights.items()
    )
    if added and (out / INDEX).is_file():
        index = json.loads((out / INDEX).read_text("utf-8"))
        index.setdefault("metadata", {})["total_size"] = index.get("metadata", {}).get("total_size", 0) + added
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return mask_id


def _copy_weights(source: Path, out: Path, names: list[str], rows: int) -> int:
    """Copy a weight file, growing embedding and head to `rows`. Returns the bytes it grew by."""
    if not any(name in _GROWING for name in names):
        shutil.copyfile(source, out)
        return 0
    tensors = load_file(source)
    grown = {name: _grow(value, rows) if name in _GROWING else value for name, value in tensors.items()}
    added = sum(grown[name].nbytes - value.nbytes for name, value in tensors.items())
    if added:
        save_file(grown, out, metadata={"format": "pt"})
    else:
        shutil.copyfile(source, out)
    return added


def _grow(weight: Tensor, rows: int) -> Tensor:
    missing = rows - weight.shape[0]
    if missing <= 0:
        return weight
    mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
    return torch.cat((weight, mean.expand(missing, -1)))


def _write_tokenizer(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Put the mask token into the tokenizer's files, and leave the rest of them as it is."""
    tokenizer.backend_tokenizer.save(str(out / "tokenizer.json"))
    mask_token, mask_id = str(tokenizer.mask_token), int(tokenizer.mask_token_id)
    properties = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}

    def edit(name: str, **changes: Any) -> None:
        if (out / name).is_file():
            content = json.loads((out / name).read_text("utf-8")) | changes
            (out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")

    edit("tokenizer_config.json", mask_token=mask_token)
    edit("special_tokens_map.json", mask_token={"content": mask_token} | properties)
    edit("added_tokens.json", **{mask_token: mask_id})
    path = out / "tokenizer_config.json"
    decoder = json.loads(path.read_text("utf-8")).get("added_tokens_decoder") if path.is_file() else None
    if decoder is not None:
        entry = {"content": mask_token} | properties | {"special": True}
        edit("tokenizer_config.json", added_tokens_decoder=decoder | {str(mask_id): entry})


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m bgpo.models.a2d", description="Turn an autoregressive checkpoint into a diffusion one."
    )
    parser.add_argument("--model", type=Path, required=True, help="directory of the autoregressive checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--mask-token", default="<|mask|>", help="text of the mask token where there is none")
    arguments = parser.parse_args()
    try:
        mask_id = convert(arguments.model, arguments.out, arguments.mask_token)
        policy = load_policy(arguments.out, dtype=torch.bfloat16)
    except ModelError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(
        f"{arguments.out}: {policy.config['model_type']} as a diffusion model, mask token {mask_id}, "
        f"end tokens {', '.join(map(str, policy.end_ids))}, {policy.model.vocabulary} embeddings\n"
    )


if __name__ == "__main__":
    main()
