"""Autoregressive models turned into diffusion models ("A2D"): transformers' own Llama, Qwen2 and Qwen3 classes, without
the causal mask.

The layers are transformers' modules under transformers' names, so a checkpoint opens with `AutoModelForCausalLM` before
and after training. This module walks them itself and calls them with a mask that only hides padding; transformers'
own forward would build a causal one. `python -m bgpo.models.a2d` makes such a checkpoint from an autoregressive one:
what it adds to `config.json` is `mask_token_id` and `bgpo_logit_shift`, whether output j - 1 predicts position j as in
the model it came from.

Shapes: B rows, T positions, D width, M chosen positions, V embedding rows.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, Self

import torch
import torch.nn.functional as F
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from bgpo.errors import ModelError
from bgpo.models.network import Network, check_mask_id, expect, flag, whole

MODEL_TYPES = ("qwen2", "qwen3", "llama")
SHIFT_KEY = "bgpo_logit_shift"
# The other kinds depend on the length of the row, so padding would change the result.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


class ConvertedModel(Network):
    """The whole network. `forward` gives hidden states, `logits` the scores of chosen ones."""

    family = "a2d"
    end_tokens = ("<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "</s>")
    attention_layers = ("q_proj", "k_proj", "v_proj", "o_proj")
    feed_forward_layers = ("gate_proj", "up_proj", "down_proj")
    residual_layers = ("o_proj", "down_proj")

    def __init__(self, config: PreTrainedConfig, *, shift: bool) -> None:
        super().__init__()
        self.config = config
        self.shift = shift
        self.mask_id, self.vocabulary = config.mask_token_id, config.vocab_size
        self.max_length = config.max_position_embeddings
        causal = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        self.model = causal.model
        if config.tie_word_embeddings:
            self.aliases = {"lm_head.weight": "model.embed_tokens.weight"}
        else:
            self.lm_head = causal.lm_head
        for layer in self.model.layers:
            # Without a mask, transformers asks this attribute whether attention is causal.
            layer.self_attn.is_causal = False

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ConvertedModel:
        if config.get("mask_token_id") is None:
            raise ModelError(
                f"this {config['model_type']} checkpoint is autoregressive: it has no mask token; make a diffusion "
                "model of it with `python -m bgpo.models.a2d`",
                "config.json.mask_token_id",
            )
        expect(config, {"use_sliding_window": (False, None), "hidden_act": ("silu",)}, "a converted model")
        for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "max_position_embeddings"):
            whole(config, key)
        whole(config, "mask_token_id", least=0)
        try:
            parsed = CONFIG_MAPPING[config["model_type"]].from_dict(deepcopy(config))
        except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"transformers cannot read it: {error}", "config.json") from error
        rope_type = parsed.rope_parameters.get("rope_type", "default")
        if rope_type not in _ROPE_TYPES:
            raise ModelError(
                f"rope type {rope_type!r} is not supported, only {_ROPE_TYPES}", "config.json.rope_parameters"
            )
        if set(getattr(parsed, "layer_types", None) or ()) - {"full_attention"}:
            raise ModelError("only full attention is supported", "config.json.layer_types")
        check_mask_id(parsed.mask_token_id, parsed.vocab_size)
        return cls(parsed, shift=flag(config, SHIFT_KEY, True))

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.model.layers)

    @torch.no_grad()
    def check(self) -> None:
        """Attention is transformers' code: see that it reaches later positions, with and without a mask."""
        weight = self.model.embed_tokens.weight
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 3, self.config.hidden_size, generator=generator).to(weight)
        changed = x.clone()
        changed[:, 2] *= -1
        rotary = self.model.rotary_emb(x, torch.arange(3, device=weight.device)[None])
        for mask in (None, torch.ones(1, 1, 3, 3, dtype=torch.bool, device=weight.device)):
            first, second = (
                self.model.layers[0].self_attn(h, position_embeddings=rotary, attention_mask=mask)[0][:, 0]
                for h in (x, changed)
            )
            if torch.equal(first, second):
                raise ModelError(
                    f"attention does not reach later positions: transformers {transformers.__version__} cannot run "
                    "this model without its causal mask"
                )

    def states(self, tokens_BT: Tensor, attention_BT: Tensor | None) -> Tensor:
        x = self.model.embed_tokens(tokens_BT)
        positions = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
        rotary = self.model.rotary_emb(x, positions)
        mask = None
        if attention_BT is not None:
            length = tokens_BT.shape[1]
            mask = attention_BT[:, None, None, :].expand(-1, 1, length, -1)
        x = self.run_blocks(x, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        normed: Tensor = self.model.norm(x)
        return normed

    def logits(self, hidden_MD: Tensor) -> Tensor:
        if self.config.tie_word_embeddings:
            return F.linear(hidden_MD, self.model.embed_tokens.weight).float()
        scores: Tensor = self.lm_head(hidden_MD)
        return scores.float()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast, but make the rotary frequencies anew: no file holds them, and they stay in float32."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        # Made on the CPU: the numbers are the same for every device then.
        with torch.device("cpu"):
            fresh = type(self.model.rotary_emb)(config=self.config)
        device = self.model.embed_tokens.weight.device
        for name, value in fresh.named_buffers():
            setattr(self.model.rotary_emb, name, value.to(device))
        return self
