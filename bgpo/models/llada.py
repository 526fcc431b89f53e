"""LLaDA's network, natively: a bidirectional Llama block in the published checkpoint layout.

RMSNorm, rotary positions, SwiGLU, no biases, full attention in both directions. Parameter names equal those of the
published weight files (`model.transformer.blocks.0.q_proj.weight`, ...), so loading and saving rename nothing.
Hidden states and logits are separate calls: nobody pays for logits that nobody reads.

Shapes: B rows, T positions, D width, H heads, V embedding rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgpo.errors import ModelError


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
        expected = {
            "block_type": "llama",
            "layer_norm_type": "rms",
            "activation_type": "silu",
            "rope": True,
            "alibi": False,
            "include_bias": False,
            "include_qkv_bias": False,
            "attention_layer_norm": False,
            "input_emb_norm": False,
            "scale_logits": False,
        }
        for key, value in expected.items():
            if config.get(key, value) != value:
                raise ModelError(f"{key}={config[key]!r} is not supported, LLaDA has {value!r}", f"config.json.{key}")
        d_model, n_heads = _whole(config, "d_model"), _whole(config, "n_heads")
        given_width = config.get("mlp_hidden_size") is not None
        built = cls(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=_whole(config, "n_kv_heads", n_heads),
            n_layers=_whole(config, "n_layers"),
            mlp_hidden_size=_whole(config, "mlp_hidden_size") if given_width else _whole(config, "mlp_ratio") * d_model,
            embedding_size=_whole(config, "embedding_size" if config.get("embedding_size") else "vocab_size"),
            rms_norm_eps=_positive(config, "rms_norm_eps", 1e-5),
            rope_theta=_positive(config, "rope_theta", 10000.0),
            max_sequence_length=_whole(config, "max_sequence_length"),
            mask_token_id=_whole(config, "mask_token_id", least=0),
            weight_tying=bool(config.get("weight_tying", False)),
        )
        if built.d_model % built.n_heads or built.n_heads % built.n_kv_heads or built.d_model // built.n_heads % 2:
            raise ModelError(
                "n_kv_heads must divide n_heads, and n_heads must divide d_model into heads of even width",
                "config.json.n_heads",
            )
        if not 0 <= built.mask_token_id < built.embedding_size:
            raise ModelError(
                f"{built.mask_token_id} is outside the {built.embedding_size} embeddings", "config.json.mask_token_id"
            )
        return built


def _whole(config: dict[str, Any], key: str, default: int | None = None, *, least: int = 1) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelError("missing key", f"config.json.{key}")
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ModelError(f"{value!r} is not an integer of at least {least}", f"config.json.{key}")
    return value


def _positive(config: dict[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ModelError(f"{value!r} is not a positive number", f"config.json.{key}")
    return float(value)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def rotary(length: int, head_width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables (T, head_width) float32 of rotary embeddings (RoFormer, arXiv 2104.09864)."""
    inverse = 1.0 / theta ** (torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), inverse)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


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
        self.grouped = config.n_kv_heads != config.n_heads

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        def heads(projected: Tensor) -> Tensor:
            split: Tensor = projected.unflatten(-1, (-1, self.head_width))
            return split.transpose(1, 2)

        h = self.attn_norm(x)
        q, k, v = heads(self.q_proj(h)), heads(self.k_proj(h)), heads(self.v_proj(h))
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.grouped)
        x = x + self.attn_out(mixed.transpose(1, 2).flatten(2))
        h = self.ff_norm(x)
        fed: Tensor = self.ff_out(F.silu(self.ff_proj(h)) * self.up_proj(h))
        return x + fed


class LLaDAModel(nn.Module):
    """The whole network. `forward` gives hidden states, `logits` the scores of chosen ones."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.config = config
        transformer = nn.ModuleDict(
            {
                # Made from a tensor, it is not initialised: that would import torch's compiler, seconds of start-up.
                "wte": nn.Embedding.from_pretrained(torch.empty(config.embedding_size, config.d_model), freeze=False),
                "blocks": nn.ModuleList(Block(config) for _ in range(config.n_layers)),
                "ln_f": RMSNorm(config.d_model, config.rms_norm_eps),
            }
        )
        if not config.weight_tying:
            transformer["ff_out"] = nn.Linear(config.d_model, config.embedding_size, bias=False)
        self.model = nn.ModuleDict({"transformer": transformer})

    @property
    def transformer(self) -> nn.ModuleDict:
        module = self.model["transformer"]
        assert isinstance(module, nn.ModuleDict)
        return module

    def forward(self, tokens_BT: Tensor, attention_BT: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, D) after the last norm.

        Args:
            tokens_BT: token ids.
            attention_BT: True where a position may be attended to; None = everywhere. Positions are counted over
                the padded row, which rotary embeddings (relative) do not notice.
        """
        cos, sin = rotary(
            tokens_BT.shape[1], self.config.d_model // self.config.n_heads, self.config.rope_theta, tokens_BT.device
        )
        mask = None if attention_BT is None else attention_BT[:, None, None, :]
        x: Tensor = self.transformer["wte"](tokens_BT)
        blocks = self.transformer["blocks"]
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            x = block(x, cos, sin, mask)
        normed: Tensor = self.transformer["ln_f"](x)
        return normed

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """Float32 scores (M, V) of the given hidden states (M, D)."""
        if self.config.weight_tying:
            embedding = self.transformer["wte"]
            assert isinstance(embedding, nn.Embedding)
            tied: Tensor = F.linear(hidden_MD, embedding.weight)
            return tied.float()
        scores: Tensor = self.transformer["ff_out"](hidden_MD)
        return scores.float()

    def initialize(self, generator: torch.Generator) -> None:
        """Random weights: normal, std 0.02, residual outputs scaled by 1/sqrt(2 n_layers) (GPT-2)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.ones_(parameter)
                continue
            residual = name.endswith(("attn_out.weight", "ff_out.weight")) and ".blocks." in name
            std = 0.02 / (2 * self.config.n_layers) ** 0.5 if residual else 0.02
            nn.init.normal_(parameter, std=std, generator=generator)
