"""Checkpoints from scratch: random weights and a byte-level tokenizer, in the layout of any family.

    python -m bgpo.models.scratch --out DIR [--family llada] [--seed 0] [--d-model 128] [--n-layers 6] ...

The tokenizer needs no training data: all 256 bytes, the few words of the chat template, and the family's special
tokens. Any text round-trips, one token a character for ASCII.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bgpo.models.layout import save_weights
from bgpo.models.network import Network
from bgpo.models.policy import FAMILIES

FamilyName = Literal["llada", "dream", "qwen3"]
SPECIAL_TOKENS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|mdm_mask|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}{{ '<|startoftext|>' }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""LLaDA-Instruct's template."""
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>")
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Dream's and Qwen's, without their default system message and tools."""
_TEMPLATE_WORDS = ("user", "assistant", "system", "\n\n")
_END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Shape:
    """Sizes of a network, by the same names for every family."""

    d_model: int = 128
    n_layers: int = 6
    n_heads: int = 4
    n_kv_heads: int | None = None
    """None = as many as query heads."""
    mlp_hidden_size: int = 256
    max_sequence_length: int = 256
    embeddings: int | None = None
    """Rows of the embedding; None = as many as the tokenizer needs, in multiples of 64."""
    tied: bool = False
    """Whether the head is the embedding."""


def byte_tokenizer(family: FamilyName = "llada") -> PreTrainedTokenizerFast:
    """Byte-level BPE whose only merges build the words of the chat template."""
    special, template = (SPECIAL_TOKENS, CHAT_TEMPLATE) if family == "llada" else (CHATML_TOKENS, CHATML_TEMPLATE)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in _TEMPLATE_WORDS:
        built, *symbols = list(word.replace("\n", "Ċ"))  # byte-level BPE writes a newline as this letter
        for symbol in symbols:
            if (built, symbol) not in merges:
                merges.append((built, symbol))
                vocabulary.setdefault(built + symbol, len(vocabulary))
            built += symbol
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[0],
        eos_token=_END_OF_TEXT,
        pad_token=_END_OF_TEXT,
        mask_token=special[-1],
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def random_model(
    family: FamilyName,
    shape: Shape,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Network, dict[str, Any]]:
    """A network with random weights (GPT-2's scheme) drawn from `seed` on `device`, and its config.json."""
    tokenizer = byte_tokenizer(family)
    ids = tokenizer.get_vocab()
    embeddings = shape.embeddings or -(-len(ids) // 64) * 64
    config = _CONFIGS[family](shape, embeddings, ids[_END_OF_TEXT], int(tokenizer.mask_token_id))
    config["torch_dtype"] = str(dtype).removeprefix("torch.")
    with torch.device("meta"):
        model = FAMILIES[config["model_type"]].from_config(config)
    model = model.to(dtype).to_empty(device=device)
    model.initialize(torch.Generator(device).manual_seed(seed))
    return model.requires_grad_(True).eval(), config


def create_checkpoint(
    directory: Path,
    *,
    family: FamilyName = "llada",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **shape: Any,
) -> None:
    """Write a checkpoint with random weights; further arguments are the fields of `Shape`."""
    model, config = random_model(family, Shape(**shape), seed=seed, dtype=dtype, device=device)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_weights(model, directory)
    byte_tokenizer(family).save_pretrained(str(directory))


def _llada_config(shape: Shape, embeddings: int, end_id: int, mask_id: int) -> dict[str, Any]:
    return {
        "activation_type": "silu",
        "alibi": False,
        "architectures": ["LLaDAModelLM"],
        "attention_layer_norm": False,
        "block_type": "llama",
        "d_model": shape.d_model,
        "embedding_size": embeddings,
        "eos_token_id": end_id,
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "mask_token_id": mask_id,
        "max_sequence_length": shape.max_sequence_length,
        "mlp_hidden_size": shape.mlp_hidden_size,
        "model_type": "llada",
        "n_heads": shape.n_heads,
        "n_kv_heads": shape.n_kv_heads or shape.n_heads,
        "n_layers": shape.n_layers,
        "pad_token_id": end_id,
        "rms_norm_eps": 1e-05,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 10000.0,
        "scale_logits": False,
        "torch_dtype": "float32",
        "vocab_size": embeddings,
        "weight_tying": shape.tied,
    }


def _qwen_config(shape: Shape, embeddings: int, end_id: int, mask_id: int) -> dict[str, Any]:
    return {
        "attention_dropout": 0.0,
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "hidden_act": "silu",
        "hidden_size": shape.d_model,
        "initializer_range": 0.02,
        "intermediate_size": shape.mlp_hidden_size,
        "mask_token_id": mask_id,
        "max_position_embeddings": shape.max_sequence_length,
        "num_attention_heads": shape.n_heads,
        "num_hidden_layers": shape.n_layers,
        "num_key_value_heads": shape.n_kv_heads or shape.n_heads,
        "pad_token_id": end_id,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "float32",
        "use_sliding_window": False,
        "vocab_size": embeddings,
    }


def _dream_config(shape: Shape, embeddings: int, end_id: int, mask_id: int) -> dict[str, Any]:
    own = {"architectures": ["DreamModel"], "model_type": "Dream", "rope_scaling": None, "use_mrope": False}
    return _qwen_config(shape, embeddings, end_id, mask_id) | own


def _qwen3_config(shape: Shape, embeddings: int, end_id: int, mask_id: int) -> dict[str, Any]:
    own = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "bgpo_logit_shift": True,
        "head_dim": shape.d_model // shape.n_heads,
        "model_type": "qwen3",
    }
    return _qwen_config(shape, embeddings, end_id, mask_id) | own


_CONFIGS: dict[FamilyName, Callable[[Shape, int, int, int], dict[str, Any]]] = {
    "llada": _llada_config,
    "dream": _dream_config,
    "qwen3": _qwen3_config,
}


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m bgpo.models.scratch", description="Make a random checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--family", choices=get_args(FamilyName), default="llada", help="default llada")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    default = Shape()
    for name in ("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size", "max_sequence_length"):
        value = getattr(default, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=value, help=f"default {value or 'as n-heads'}"
        )
    parser.add_argument("--tied", action="store_true", help="use the embedding as the head")
    arguments = vars(parser.parse_args())
    create_checkpoint(arguments.pop("out"), **arguments)


if __name__ == "__main__":
    main()
