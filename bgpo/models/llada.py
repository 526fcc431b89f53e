"""LLaDA's network, natively: a bidirectional Llama block in the published checkpoint layout.

RMSNorm, rotary positions, SwiGLU, no biases, full attention in both directions. Parameter names equal those of the
published weight files (`model.transformer.blocks.0.q_proj.weight`, ...), so loading and saving rename nothing.
LLaDA-8B and LLaDA-1.5 share this layout.

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
    "block_type": ("llama",),
    "block_group_size": (1,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "bias_for_layer_norm": (False, None),
    "multi_query_attention": (None, False),
    "activation_type": ("silu",),
    "rope": (True,),
    "alibi": (False,),
    "include_bias": (False,),
    "include_qkv_bias": (False,),
    "attention_layer_norm": (False,),
    "input_emb_norm": (False,),
    "scale_logits": (False,),
}


@dataclass(frozen=True)
class LLaDAConfig:
    """The keys of a LLaDA `config.json` that define the network."""

    d_model: int
    n_heads: int
    n_kv_heads: int
    n_layers: int
    mlp_hidden_size: int
    embedding_size: int
    rms_norm_eps: float
    rope_theta: float
    max_sequence_length: int
    mask_token_id: int
    weight_tying: bool

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> LLaDAConfig:
        """Read a published configuration.

        Raises:
            ModelError: a key is missing, or asks for a variant that this module does not implement.
        """
        expect(config, _SUPPORTED, "LLaDA")
        d_model, n_heads = whole(config, "d_model"), whole(config, "n_heads")
        given_width = config.get("mlp_hidden_size") is not None
        built = cls(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=whole(config, "n_kv_heads", n_heads),
            n_layers=whole(config, "n_layers"),
            mlp_hidden_size=whole(config, "mlp_hidden_size") if given_width else whole(config, "mlp_ratio") * d_model,
            embedding_size=whole(config, "embedding_size" if config.get("embedding_size") else "vocab_size"),
            rms_norm_eps=positive(config, "rms_norm_eps", 1e-5),
            rope_theta=positive(config, "rope_theta", 10000.0),
            max_sequence_length=whole(config, "max_sequence_length"),
            mask_token_id=whole(config, "mask_token_id", least=0),
            weight_tying=flag(config, "weight_tying", False),
        )
        if built.d_model % built.n_heads or built.n_heads % built.n_kv_heads or built.d_model // built.n_heads % 2:
            raise ModelError(
                "n_kv_heads must divide n_heads, and n_heads must divide d_model into heads of even width",
                "config.json.n_heads",
            )
        check_mask_id(built.mask_token_id, built.embedding_size)
        return built


class Block(nn.Module):
    """One transformer block, pre-norm."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        width, head = config.d_model, config.d_model // config.n_heads
        self.head_width = head
        self.attn_norm = RMSNorm(width, config.rms_norm_eps)
        self.q_proj = nn.Linear(width, config.n_heads * head, bias=False)
        self.k_proj = nn.Linear(width, config.n_kv_heads * head, bias=False)
        self.v_proj = nn.Linear(width, config.n_kv_heads * head, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_norm = RMSNorm(width, config.rms_norm_eps)
        self.ff_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(width, config.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(config.mlp_hidden_size, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        h = self.attn_norm(x)
        mixed = attend(self.q_proj(h), self.k_proj(h), self.v_proj(h), self.head_width, cos, sin, mask)
        x = x + self.attn_out(mixed)
        h = self.ff_norm(x)
        fed: Tensor = self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))
        return x + fed


class LLaDAModel(Network):
    """The whole network. `forward` gives hidden states, `logits` the scores of chosen ones."""

    family = "llada"
    end_tokens = ("<|endoftext|>", "<|eot_id|>")
    attention_layers = ("q_proj", "k_proj", "v_proj", "attn_out")
    feed_forward_layers = ("ff_proj", "up_proj", "ff_out")
    residual_layers = ("attn_out", "ff_out")

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.config = config
        self.mask_id, self.vocabulary = config.mask_token_id, config.embedding_size
        self.max_length = config.max_sequence_length
        transformer = nn.ModuleDict(
            {
                "wte": embedding(config.embedding_size, config.d_model),
                "blocks": nn.ModuleList(Block(config) for _ in range(config.n_layers)),
                "ln_f": RMSNorm(config.d_model, config.rms_norm_eps),
            }
        )
        if config.weight_tying:
            self.aliases = {"model.transformer.ff_out.weight": "model.transformer.wte.weight"}
        else:
            transformer["ff_out"] = nn.Linear(config.d_model, config.embedding_size, bias=False)
        self.model = nn.ModuleDict({"transformer": transformer})

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LLaDAModel:
        return cls(LLaDAConfig.from_json(config))

    @property
    def transformer(self) -> nn.ModuleDict:
        module = self.model["transformer"]
        assert isinstance(module, nn.ModuleDict)
        return module

    @property
    def blocks(self) -> list[nn.Module]:
        blocks = self.transformer["blocks"]
        assert isinstance(blocks, nn.ModuleList)
        return list(blocks)

    def states(self, tokens_BT: Tensor, attention_BT: Tensor | None) -> Tensor:
        cos, sin = rotary(
            tokens_BT.shape[1], self.config.d_model // self.config.n_heads, self.config.rope_theta, tokens_BT.device
        )
        mask = None if attention_BT is None else attention_BT[:, None, None, :]
        x = self.run_blocks(self.transformer["wte"](tokens_BT), cos, sin, mask)
        normed: Tensor = self.transformer["ln_f"](x)
        return normed

    def logits(self, hidden_MD: Tensor) -> Tensor:
        if self.config.weight_tying:
            wte = self.transformer["wte"]
            assert isinstance(wte, nn.Embedding)
            return F.linear(hidden_MD, wte.weight).float()
        scores: Tensor = self.transformer["ff_out"](hidden_MD)
        return scores.float()
