"""Published algorithms written a second time, for comparison: plain numpy in float64, one row, no batching.

From the descriptions of LLaDA (arXiv 2502.09992) and Dream (arXiv 2508.15487) and their reference code, not from
`bgpo`: the networks, the sampler, the ELBO.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import beta, log_softmax

Array = np.ndarray[Any, np.dtype[np.float64]]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return np.stack([row / np.sqrt(np.mean(row * row) + eps) * weight for row in x])


def rotate(x: Array, theta: float) -> Array:
    """Rotary positions: component i of the first half and i of the second half turn as a pair (rotate-half)."""
    length, width = x.shape
    a, b = x[:, : width // 2], x[:, width // 2 :]
    turns = np.array([[p * theta ** (-2 * i / width) for i in range(width // 2)] for p in range(length)])
    return np.concatenate([a * np.cos(turns) - b * np.sin(turns), b * np.cos(turns) + a * np.sin(turns)], axis=1)


def attention(q: Array, k: Array, v: Array) -> Array:
    """Full attention of one head, in both directions."""
    scores = q @ k.T / np.sqrt(q.shape[1])
    return np.exp(log_softmax(scores, axis=-1)) @ v


def llada_logits(weights: Mapping[str, Array], config: Mapping[str, Any], tokens: Sequence[int]) -> Array:
    """Logits (T, V) of one row, from published weight names and config keys."""

    def weight(name: str) -> Array:
        return np.asarray(weights[f"model.transformer.{name}.weight"], dtype=np.float64)

    heads, groups = config["n_heads"], config["n_kv_heads"]
    width = config["d_model"] // heads
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    x = weight("wte")[list(tokens)]
    for layer in range(config["n_layers"]):

        def block(name: str, layer: int = layer) -> Array:
            return weight(f"blocks.{layer}.{name}")

        h = rms_norm(x, block("attn_norm"), eps)
        q, k, v = h @ block("q_proj").T, h @ block("k_proj").T, h @ block("v_proj").T
        mixed = []
        for head in range(heads):
            group = head // (heads // groups)
            own, shared = slice(head * width, (head + 1) * width), slice(group * width, (group + 1) * width)
            mixed.append(attention(rotate(q[:, own], theta), rotate(k[:, shared], theta), v[:, shared]))
        x = x + np.concatenate(mixed, axis=1) @ block("attn_out").T
        h = rms_norm(x, block("ff_norm"), eps)
        gate = h @ block("ff_proj").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ block("up_proj").T)) @ block("ff_out").T
    head_weight = weight("wte") if config["weight_tying"] else weight("ff_out")
    return rms_norm(x, weight("ln_f"), eps) @ head_weight.T


def dream_logits(weights: Mapping[str, Array], config: Mapping[str, Any], tokens: Sequence[int]) -> Array:
    """Logits (T, V) of one row, from published weight names and config keys; row j predicts position j.

    A Qwen2 network without causal mask; as in Dream's sampler, output j - 1 serves position j, output 0 also its own.
    """

    def weight(name: str) -> Array:
        return np.asarray(weights[name], dtype=np.float64)

    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width = config["hidden_size"] // heads
    eps, theta = config["rms_norm_eps"], config["rope_theta"]
    x = weight("model.embed_tokens.weight")[list(tokens)]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        h = rms_norm(x, weight(at + "input_layernorm.weight"), eps)
        q, k, v = (
            h @ weight(f"{at}self_attn.{name}_proj.weight").T + weight(f"{at}self_attn.{name}_proj.bias")
            for name in "qkv"
        )
        mixed = []
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            group = head * groups // heads
            shared = slice(group * width, (group + 1) * width)
            mixed.append(attention(rotate(q[:, own], theta), rotate(k[:, shared], theta), v[:, shared]))
        x = x + np.concatenate(mixed, axis=1) @ weight(at + "self_attn.o_proj.weight").T
        h = rms_norm(x, weight(at + "post_attention_layernorm.weight"), eps)
        gate = h @ weight(at + "mlp.gate_proj.weight").T
        gated = gate / (1 + np.exp(-gate)) * (h @ weight(at + "mlp.up_proj.weight").T)
        x = x + gated @ weight(at + "mlp.down_proj.weight").T
    head_name = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    logits: Array = rms_norm(x, weight("model.norm.weight"), eps) @ weight(head_name).T
    return np.concatenate([logits[:1], logits[:-1]])


Predict = Callable[[Sequence[int]], Array]
"""Logits (T, V) of a canvas."""


def greedy_decode(
    predict: Predict, prompt: Sequence[int], *, length: int, block: int, steps: int, mask_id: int
) -> list[int]:
    """LLaDA's `generate` at temperature 0: block-wise, low-confidence remasking, nothing suppressed, no early stop."""
    canvas = [*prompt, *[mask_id] * length]
    blocks = length // block
    for number in range(blocks):
        first = len(prompt) + number * block
        share, rest = divmod(block, steps // blocks)
        for step in range(steps // blocks):
            logits = predict(canvas)
            masked = [p for p in range(first, first + block) if canvas[p] == mask_id]
            chosen = {p: int(np.argmax(logits[p])) for p in masked}
            confidence = {p: float(np.exp(log_softmax(logits[p]))[chosen[p]]) for p in masked}
            best = sorted(masked, key=lambda p: confidence[p], reverse=True)
            for position in best[: share + (1 if step < rest else 0)]:
                canvas[position] = chosen[position]
    return canvas[len(prompt) :]


def masked_sums(predict: Predict, prompt: Sequence[int], response: Sequence[int], mask_id: int) -> dict[Any, float]:
    """For each non-empty set of masked positions: the sum of log p(y_i | x, y_masked) over it."""
    sums = {}
    for size in range(1, len(response) + 1):
        for masked in itertools.combinations(range(len(response)), size):
            noisy = [mask_id if i in masked else token for i, token in enumerate(response)]
            log_probs = log_softmax(predict([*prompt, *noisy])[len(prompt) :], axis=-1)
            sums[masked] = float(sum(log_probs[i, response[i]] for i in masked))
    return sums


def exact_elbo(sums: Mapping[Any, float], length: int) -> float:
    """The paper's B: the integral over t in (0, 1) of P(mask | t) / t is a Beta function, summed over all masks."""
    return sum(value * beta(len(masked), length - len(masked) + 1) for masked, value in sums.items())
