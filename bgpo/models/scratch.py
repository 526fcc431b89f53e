"""A LLaDA checkpoint from scratch: random weights and a byte-level tokenizer, in the published layout.

    python -m bgpo.models.scratch --out DIR [--seed 0] [--d-model 128] [--n-layers 6] ...

The tokenizer needs no training data: all 256 bytes, the few words of the chat template, and LLaDA's special tokens.
Any text round-trips, one token a character for ASCII.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bgpo.models.layout import save_weights
from bgpo.models.llada import LLaDAConfig, LLaDAModel

START, END_OF_TEXT, MASK = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>"
SPECIAL_TOKENS = (START, END_OF_TEXT, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", MASK)
TEMPLATE_WORDS = ("user", "assistant", "system", "\n\n")
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}{{ '<|startoftext|>' }}{% endif %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""LLaDA-Instruct's template."""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose only merges build the words of the chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in TEMPLATE_WORDS:
        built, *symbols = list(word.replace("\n", "Ċ"))  # byte-level BPE writes a newline as this letter
        for symbol in symbols:
            if (built, symbol) not in merges:
                merges.append((built, symbol))
                vocabulary.setdefault(built + symbol, len(vocabulary))
            built += symbol
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        mask_token=MASK,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def create_checkpoint(
    directory: Path,
    *,
    seed: int = 0,
    d_model: int = 128,
    n_layers: int = 6,
    n_heads: int = 4,
    mlp_hidden_size: int = 256,
    max_sequence_length: int = 256,
) -> None:
    """Write a checkpoint with random float32 weights (GPT-2's scheme) drawn from `seed`."""
    tokenizer = byte_tokenizer()
    vocabulary = tokenizer.get_vocab()
    embeddings = -(-len(vocabulary) // 64) * 64
    config = {
        "activation_type": "silu",
        "alibi": False,
        "architectures": ["LLaDAModelLM"],
        "attention_layer_norm": False,
        "block_type": "llama",
        "d_model": d_model,
        "embedding_size": embeddings,
        "eos_token_id": vocabulary[END_OF_TEXT],
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "mask_token_id": vocabulary[MASK],
        "max_sequence_length": max_sequence_length,
        "mlp_hidden_size": mlp_hidden_size,
        "model_type": "llada",
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "n_layers": n_layers,
        "pad_token_id": vocabulary[END_OF_TEXT],
        "rms_norm_eps": 1e-05,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 10000.0,
        "scale_logits": False,
        "torch_dtype": "float32",
        "vocab_size": embeddings,
        "weight_tying": False,
    }
    model = LLaDAModel(LLaDAConfig.from_json(config))
    model.initialize(torch.Generator().manual_seed(seed))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_weights(model, directory)
    tokenizer.save_pretrained(str(directory))


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m bgpo.models.scratch", description="Make a random checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    for name, default in (
        ("seed", 0),
        ("d-model", 128),
        ("n-layers", 6),
        ("n-heads", 4),
        ("mlp-hidden-size", 256),
        ("max-sequence-length", 256),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    arguments = vars(parser.parse_args())
    create_checkpoint(arguments.pop("out"), **arguments)


if __name__ == "__main__":
    main()
