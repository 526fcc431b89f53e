"""What every family's network offers to the trainer, and the pieces the native ones share.

A network gives hidden states and, separately, the scores of chosen ones: nobody pays for logits that nobody reads.
`hidden[:, j]` always predicts position j. Families whose output j - 1 predicts position j (Dream, and models converted
from autoregressive ones) move their states by one here, so no caller knows. Parameter names are those of the published
weight files. What a family's model is made of stands in its own module.

Shapes: B rows, T positions, D width, M chosen positions, V embedding rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bgpo.errors import ModelError


class Network(nn.Module):
    """Base of the families. Subclasses set the facts below in `__init__` and implement `blocks`, `states`, `logits`."""

    family: ClassVar[str]
    end_tokens: ClassVar[tuple[str, ...]]
    """Tokens that end a response in this family, whatever the config names."""
    remasking: ClassVar[Literal["low_confidence", "entropy", "random"]] = "low_confidence"
    """How the family's own sampler chooses which predictions to keep."""
    attention_layers: ClassVar[tuple[str, ...]]
    """Linear layers of a block's attention, by the last part of their names."""
    feed_forward_layers: ClassVar[tuple[str, ...]]
    residual_layers: ClassVar[tuple[str, ...]]
    """Linear layers of a block whose output is added to the residual stream."""

    mask_id: int
    vocabulary: int
    """Rows of the embedding."""
    max_length: int
    """Context: prompt and response together."""
    shift: bool = False
    """Whether output j - 1 predicts position j."""
    aliases: Mapping[str, str] = MappingProxyType({})
    """Names that weight files may hold besides, each with the weight it must equal: a tied head written out."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations."""

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Network:
        """An uninitialised network of a config.json. Raises ModelError naming the key that does not fit."""
        raise NotImplementedError

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, first to last."""
        raise NotImplementedError

    def states(self, tokens_BT: Tensor, attention_BT: Tensor | None) -> Tensor:
        """Hidden states (B, T, D) after the last norm, at the position that produced them."""
        raise NotImplementedError

    def logits(self, hidden_MD: Tensor) -> Tensor:
        """Float32 scores (M, V) of the given hidden states (M, D)."""
        raise NotImplementedError

    def check(self) -> None:
        """Part of the self-test at load: raise ModelError if the modules do not behave as the family's."""

    def forward(self, tokens_BT: Tensor, attention_BT: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, D); the one at j predicts position j.

        Args:
            tokens_BT: token ids.
            attention_BT: True where a position may be attended to; None = everywhere. Positions are counted over
                the padded row, which rotary embeddings (relative) do not notice.
        """
        states_BTD = self.states(tokens_BT, attention_BT)
        return shifted(states_BTD, attention_BT) if self.shift else states_BTD

    def run_blocks(self, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """Pass x through all blocks, each with the same further arguments."""
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                # No block draws random numbers, so there is no generator state to restore.
                x = checkpoint(block, x, *arguments, use_reentrant=False, preserve_rng_state=False, **named)
            else:
                x = block(x, *arguments, **named)
        return x

    def initialize(self, generator: torch.Generator) -> None:
        """Random weights: normal, std 0.02, residual outputs scaled by 1/sqrt(2 blocks) (GPT-2); biases 0."""
        blocks = self.blocks
        in_blocks = {id(parameter) for block in blocks for parameter in block.parameters()}
        residual = tuple(f".{layer}.weight" for layer in self.residual_layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                nn.init.constant_(parameter, 0.0 if name.endswith(".bias") else 1.0)
                continue
            scaled = id(parameter) in in_blocks and name.endswith(residual)
            nn.init.normal_(parameter, std=0.02 / (2 * len(blocks)) ** 0.5 if scaled else 0.02, generator=generator)


def shifted(states_BTD: Tensor, attention_BT: Tensor | None) -> Tensor:
    """States moved one position to the right; the first real token of a row keeps its own.

    Dream's published code moves the logits in the same way (`cat([logits[:, :1], logits[:, :-1]])`). Padding counts as
    nothing, so that a padded row gives what the row alone gives.
    """
    moved_BTD = torch.cat((states_BTD[:, :1], states_BTD[:, :-1]), dim=1)
    if attention_BT is None:
        return moved_BTD
    preceded_BT = F.pad(attention_BT[:, :-1], (1, 0))
    return torch.where(preceded_BT[..., None], moved_BTD, states_BTD)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding without initial values: those of `nn.Embedding` import torch's compiler, seconds of start-up."""
    made: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)
    return made


def rotary(length: int, head_width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables (T, head_width) float32 of rotary embeddings (RoFormer, arXiv 2104.09864)."""
    inverse = 1.0 / theta ** (torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), inverse)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def attend(q: Tensor, k: Tensor, v: Tensor, head_width: int, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
    """Rotary attention in both directions over projected queries, keys and values (B, T, heads * head_width).

    Keys and values may have fewer heads than queries; each then serves a group of neighbouring query heads.
    """

    def heads(projected: Tensor) -> Tensor:
        split: Tensor = projected.unflatten(-1, (-1, head_width))
        return split.transpose(1, 2)

    q, k, v = _rotate(heads(q), cos, sin), _rotate(heads(k), cos, sin), heads(v)
    grouped = q.shape[1] != k.shape[1]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    return mixed.transpose(1, 2).flatten(2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def expect(config: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]], family: str) -> None:
    """Refuse a config.json that asks for a variant: each key, where given, must have one of its accepted values."""
    for key, values in accepted.items():
        if key in config and config[key] not in values:
            raise ModelError(
                f"{key}={config[key]!r} is not supported, {family} has {values[0]!r}", f"config.json.{key}"
            )


def whole(config: Mapping[str, Any], key: str, default: int | None = None, *, least: int = 1) -> int:
    """An integer key of config.json. Raises ModelError when it is missing without default, or no such integer."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelError("missing key", f"config.json.{key}")
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ModelError(f"{value!r} is not an integer of at least {least}", f"config.json.{key}")
    return value


def positive(config: Mapping[str, Any], key: str, default: float) -> float:
    """A positive number of config.json. Raises ModelError when it is something else."""
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ModelError(f"{value!r} is not a positive number", f"config.json.{key}")
    return float(value)


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """A boolean of config.json. Raises ModelError when it is something else."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise ModelError(f"{value!r} is not true or false", f"config.json.{key}")
    return value


def check_mask_id(mask_id: int, embeddings: int) -> None:
    """Refuse a mask token without embedding."""
    if mask_id >= embeddings:
        raise ModelError(f"{mask_id} is outside the {embeddings} embeddings", "config.json.mask_token_id")
