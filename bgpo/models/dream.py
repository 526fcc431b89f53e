"""Dream's network, natively: a bidirectional Qwen2 block in the published checkpoint layout.

RMSNorm, rotary positions, SwiGLU, biases on query, key and value, grouped-query attention in both directions. Dream
was initialised from an autoregressive model and keeps its offset: output j - 1 predicts position j. Parameter names
equal those of the published weight files (`model.layers.0.self_attn.q_proj.weight`, ..., `lm_head.weight`).

Shapes: B rows, T positions, D width, M chosen positions, V embedding rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bgpo.errors import ModelError
from bgpo.models.network import (
    Network,
    RMSNorm,
    attend,
    check_mask_id,
    embedding,
    expect,
    flag,
    positive,
    rotary,
    whole,
)

_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "use_sliding_window": (False, None),
    "use_mrope": (False, None),
}


@dataclass(frozen=True)
class DreamConfig:
    """The keys of a Dream `config.json` that define the network."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    num_hidden_layers: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    mask_token_id: int
    tie_word_embeddings: bool

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> DreamConfig:
        """Read a published configuration.

        Raises:
            ModelError: a key is missing, or asks for a variant that this module does not implement.
        """
        expect(config, _SUPPORTED, "Dream")
        heads = whole(config, "num_attention_heads")
        built = cls(
            hidden_size=whole(config, "hidden_size"),
            num_attention_heads=heads,
            num_key_value_heads=whole(config, "num_key_value_heads", heads),
            num_hidden_layers=whole(config, "num_hidden_layers"),
            intermediate_size=whole(config, "intermediate_size"),
            vocab_size=whole(config, "vocab_size"),
            rms_norm_eps=positive(config, "rms_norm_eps", 1e-6),
            rope_theta=positive(config, "rope_theta", 10000.0),
            max_position_embeddings=whole(config, "max_position_embeddings"),
            mask_token_id=whole(config, "mask_token_id", least=0),
            tie_word_embeddings=flag(config, "tie_word_embeddings", False),
        )
        if built.hidden_size % heads or heads % built.num_key_value_heads or built.hidden_size // heads % 2:
            raise ModelError(
                "num_key_value_heads must divide num_attention_heads, and num_attention_heads must divide hidden_size "
                "into heads of even width",
                "config.json.num_attention_heads",
            )
        check_mask_id(built.mask_token_id, built.vocab_size)
        return built


class Attention(nn.Module):
    """Projections with biases on query, key and value."""

    def __init__(self, config: DreamConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.head_width = head = width // config.num_attention_heads
        self.q_proj = nn.Linear(width, config.num_attention_heads * head, bias=True)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * head, bias=True)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * head, bias=True)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        mixed = attend(self.q_proj(h), self.k_proj(h), self.v_proj(h), self.head_width, cos, sin, mask)
        out: Tensor = self.o_proj(mixed)
        return out


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DreamConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))
        return out


class Block(nn.Module):
    """One transformer block, pre-norm."""

    def __init__(self, config: DreamConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        fed: Tensor = self.mlp(self.post_attention_layernorm(x))
        return x + fed


class DreamModel(Network):
    """The whole network. `forward` gives hidden states, `logits` the scores of chosen ones."""

    family = "dream"
    end_tokens = ("<|endoftext|>", "<|im_end|>")
    remasking = "entropy"
    attention_layers = ("q_proj", "k_proj", "v_proj", "o_proj")
    feed_forward_layers = ("gate_proj", "up_proj", "down_proj")
    residual_layers = ("o_proj", "down_proj")
    shift = True

    def __init__(self, config: DreamConfig) -> None:
        super().__init__()
        self.config = config
        self.mask_id, self.vocabulary = config.mask_token_id, config.vocab_size
        self.max_length = config.max_position_embeddings
        self.model = nn.ModuleDict(
            {
                "embed_tokens": embedding(config.vocab_size, config.hidden_size),
                "layers": nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers)),
                "norm": RMSNorm(config.hidden_size, config.rms_norm_eps),
            }
        )
        if config.tie_word_embeddings:
            self.aliases = {"lm_head.weight": "model.embed_tokens.weight"}
        else:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DreamModel:
        return cls(DreamConfig.from_json(config))

    @property
    def blocks(self) -> list[nn.Module]:
        layers = self.model["layers"]
        assert isinstance(layers, nn.ModuleList)
        return list(layers)

    def states(self, tokens_BT: Tensor, attention_BT: Tensor | None) -> Tensor:
        head_width = self.config.hidden_size // self.config.num_attention_heads
        cos, sin = rotary(tokens_BT.shape[1], head_width, self.config.rope_theta, tokens_BT.device)
        mask = None if attention_BT is None else attention_BT[:, None, None, :]
        x = self.run_blocks(self.model["embed_tokens"](tokens_BT), cos, sin, mask)
        normed: Tensor = self.model["norm"](x)
        return normed

    def logits(self, hidden_MD: Tensor) -> Tensor:
        if self.config.tie_word_embeddings:
            embed_tokens = self.model["embed_tokens"]
            assert isinstance(embed_tokens, nn.Embedding)
            return F.linear(hidden_MD, embed_tokens.weight).float()
        scores: Tensor = self.lm_head(hidden_MD)
        return scores.float()
