"""ELBO terms of responses: ell_j = w_j * sum over masked i of log p(y_i | x, y_masked), one number a sample.

The mean over j of a response's terms is an unbiased estimate of its ELBO (paper, Setting). Each term is one forward
pass of one masked canvas, so callers backpropagate term by term and memory does not depend on their number.

Shapes: N canvases (response x sample), P prompt length, L response length, T = P + L, M masked positions in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bgpo.models import Policy


@dataclass(frozen=True)
class Canvases:
    """Prompts and responses side by side: prompts padded on the left, responses on the right."""

    tokens_BT: Tensor
    attention_BT: Tensor | None
    """True at real tokens; None when there is no padding at all."""
    lengths_B: Tensor
    """Response lengths, at least 1."""
    prompt_length: int

    @property
    def response_length(self) -> int:
        return self.tokens_BT.shape[1] - self.prompt_length

    def select(self, rows: Tensor) -> Canvases:
        """The given rows, cut to their longest response."""
        lengths = self.lengths_B[rows]
        end = self.prompt_length + int(lengths.max())
        attention = None if self.attention_BT is None else self.attention_BT[rows, :end]
        return Canvases(self.tokens_BT[rows, :end], attention, lengths, self.prompt_length)


def build_canvases(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int, device: torch.device | str
) -> Canvases:
    """Lay out prompts and responses (token ids). Raises ValueError on an empty response."""
    if any(len(response) == 0 for response in responses):
        raise ValueError("a response has no token: it has no ELBO")
    prompt_length = max(len(prompt) for prompt in prompts)
    response_length = max(len(response) for response in responses)
    tokens = torch.full((len(prompts), prompt_length + response_length), pad_id, dtype=torch.int64)
    real = torch.zeros_like(tokens, dtype=torch.bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        span = slice(prompt_length - len(prompt), prompt_length + len(response))
        tokens[row, span] = torch.tensor([*prompt, *response], dtype=torch.int64)
        real[row, span] = True
    attention = None if bool(real.all()) else real.to(device)
    lengths = torch.tensor([len(response) for response in responses], dtype=torch.int64, device=device)
    return Canvases(tokens.to(device), attention, lengths, prompt_length)


def elbo_terms_of(policy: Policy, canvases: Canvases, masks_BL: Tensor, weights_B: Tensor) -> Tensor:
    """One ELBO term a canvas, float32 (B,), differentiable.

    Args:
        canvases: prompts and responses.
        masks_BL: True where the response token is masked; never True beyond a row's length.
        weights_B: w_j of each canvas.
    """
    return masked_log_probs(policy, canvases, masks_BL).sum(-1) * weights_B


def masked_log_probs(policy: Policy, canvases: Canvases, masks_BL: Tensor) -> Tensor:
    """log p of each masked response token, float32 (B, L); 0 where nothing is masked.

    The head runs on masked positions only.
    """
    start = canvases.prompt_length
    response_BL = canvases.tokens_BT[:, start:]
    noisy_BT = canvases.tokens_BT.clone()
    noisy_BT[:, start:] = response_BL.masked_fill(masks_BL, policy.mask_id)
    hidden_BLD = policy.model(noisy_BT, canvases.attention_BT)[:, start:]
    logits_MV = policy.model.logits(hidden_BLD[masks_BL])
    log_probs_M = -F.cross_entropy(logits_MV, response_BL[masks_BL], reduction="none")
    return torch.zeros_like(response_BL, dtype=torch.float32).masked_scatter(masks_BL, log_probs_M)
