"""Rollout sampling: LLaDA's block-wise semi-autoregressive decoding, with several ways to choose what is kept.

The canvas is the prompt followed by G mask tokens, decoded block by block from the left. Each step predicts every
masked position of the current block and commits the most confident predictions, an equal share a step; with a
threshold also every other one as confident as that, so that a block may need fewer steps. The share and the order of
operations are those of LLaDA's reference code (arXiv 2502.09992, Appendix A), and at temperature 0 its tokens.
Confidence (`remasking`; None is the model family's own) is one of

* `low_confidence`, LLaDA's: the softmax probability of the drawn token under the noise-free logits;
* `entropy`, Dream's (arXiv 2508.15487): the negative entropy of the distribution that the token is drawn from;
* `random`: a random number.

A threshold is a probability and goes with `low_confidence`, whatever the family's own.

What differs from LLaDA's reference, without changing what is decoded: the head runs only at masked positions of the
current block; rows whose end token is committed with everything before it decided leave the batch; Gumbel noise is
double precision and drawn from counter-based streams, so a row's tokens do not depend on the batch around it; the
mask token itself is never drawn (the reference can leave masks in its output). Dream's own loop has no blocks, which
is `block_length` = `max_completion_length` here, and its time schedule makes nearly equal shares. Not offered: top-p
and top-k truncation, random order by a temperature of its own.

Shapes: B rows, P prompt length, G response canvas, K block length, M masked positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bgpo.diffusion.rng import gumbel, substreams, uniform
from bgpo.models import Policy
from bgpo.spec import RolloutSpec


@dataclass(frozen=True)
class Rollouts:
    """Sampled responses."""

    tokens_BG: Tensor
    """Token ids; filled with the end token behind a row's end."""
    lengths_B: Tensor
    """Tokens up to and including the first end token; G where there is none."""
    entropy_B: Tensor
    """Mean entropy in nats of the predictive distribution at each committed response token."""
    forward_rows: int
    """Canvases run through the network, over all steps."""

    def responses(self) -> list[list[int]]:
        """Each row's token ids up to and including the first end token."""
        tokens, lengths = self.tokens_BG.tolist(), self.lengths_B.tolist()
        return [row[:length] for row, length in zip(tokens, lengths, strict=True)]


@torch.no_grad()
def sample(
    policy: Policy, prompts: Sequence[Sequence[int]], spec: RolloutSpec, keys_B: Tensor, *, temperature: float
) -> Rollouts:
    """Decode one response for each prompt (token ids).

    Args:
        keys_B: int64 stream keys, one a row; rows with equal prompt and key decode equally.
        temperature: 0 = argmax; else the softmax temperature of the draw (Gumbel-max).
    """
    decoding = Decoding(policy, prompts, spec.max_completion_length, policy.device)
    for _ in decode(decoding, spec, keys_B, temperature=temperature):
        pass
    return decoding.result()


@torch.no_grad()
def decode(state: Decoding, spec: RolloutSpec, keys_B: Tensor, *, temperature: float) -> Iterator[int]:
    """Decode step by step. After each step, yields how many response positions are final in every row that is left.

    Between two steps the caller may look at the tokens and drop rows. Arguments as for `sample`.
    """
    keys_B = keys_B.to(state.tokens_BT.device)
    blocks = spec.max_completion_length // spec.block_length
    steps = spec.diffusion_steps // blocks
    share, rest = divmod(spec.block_length, steps)
    for block in range(blocks):
        first = state.prompt_length + block * spec.block_length
        for step in range(steps):
            if state.rows.numel() == 0:
                return
            noise_R = substreams(keys_B[state.rows], block * steps + step)
            quota = share + (step < rest)
            _step(state, slice(first, first + spec.block_length), quota, spec, noise_R, temperature)
            state.retire()
            last = step == steps - 1 or (
                spec.threshold is not None and not state.any_masked(first, first + spec.block_length)
            )
            yield (block + last) * spec.block_length
            if last:
                break


class Decoding:
    """The canvases being decoded and which rows still need work."""

    def __init__(self, policy: Policy, prompts: Sequence[Sequence[int]], length: int, device: torch.device) -> None:
        self.policy = policy
        self.prompt_length = max(len(prompt) for prompt in prompts)
        width = self.prompt_length + length
        tokens = torch.full((len(prompts), width), policy.mask_id, dtype=torch.int64)
        real = torch.ones_like(tokens, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            pad = self.prompt_length - len(prompt)
            tokens[row, pad : self.prompt_length] = torch.tensor(list(prompt), dtype=torch.int64)
            tokens[row, :pad] = policy.end_ids[0]
            real[row, :pad] = False
        self.tokens_BT = tokens.to(device)
        self.attention_BT = None if bool(real.all()) else real.to(device)
        self.entropy_BG = torch.zeros((len(prompts), length), device=device)
        self.end_ids = torch.tensor(policy.end_ids, device=device)
        self.rows = torch.arange(len(prompts), device=device)
        self.forward_rows = 0

    def response(self) -> Tensor:
        """Token ids (B, G) as they are now."""
        return self.tokens_BT[:, self.prompt_length :]

    def drop(self, row: int) -> None:
        """Leave a row as it is: no further step runs it through the network."""
        self.rows = self.rows[self.rows != row]

    def any_masked(self, first: int, last: int) -> bool:
        return bool((self.tokens_BT[self.rows, first:last] == self.policy.mask_id).any())

    def retire(self) -> None:
        """Drop rows in which an end token stands before every masked position."""
        response = self.tokens_BT[self.rows, self.prompt_length :]
        end, mask = torch.isin(response, self.end_ids), response == self.policy.mask_id
        self.rows = self.rows[_first(end) >= _first(mask)]

    def result(self) -> Rollouts:
        """The responses, once all is decoded."""
        response_BG = self.response()
        length = response_BG.shape[1]
        lengths_B = (_first(torch.isin(response_BG, self.end_ids)) + 1).clamp(max=length)
        behind_BG = torch.arange(length, device=lengths_B.device) >= lengths_B[:, None]
        entropy_B = self.entropy_BG.masked_fill(behind_BG, 0.0).sum(-1) / lengths_B
        return Rollouts(
            response_BG.masked_fill(behind_BG, self.policy.end_ids[0]), lengths_B, entropy_B, self.forward_rows
        )


def _first(flags_BG: Tensor) -> Tensor:
    """Index of the first True in each row; G where there is none."""
    found = flags_BG.any(-1)
    return torch.where(found, flags_BG.to(torch.int8).argmax(-1), flags_BG.shape[1])


def _step(state: Decoding, span: slice, quota: int, spec: RolloutSpec, noise_R: Tensor, temperature: float) -> None:
    """Predict the masked positions of one block and commit the best of them."""
    policy, rows = state.policy, state.rows
    attention = None if state.attention_BT is None else state.attention_BT[rows]
    hidden_RTD = policy.model(state.tokens_BT[rows], attention)
    state.forward_rows += len(rows)
    masked_RK = state.tokens_BT[rows, span] == policy.mask_id
    row_M, position_M = masked_RK.nonzero(as_tuple=True)
    logits_MV = policy.model.logits(hidden_RTD[:, span][row_M, position_M])
    keys_M = substreams(noise_R[row_M], position_M)
    drawn_M = _draw(logits_MV, policy.mask_id, keys_M, temperature)
    log_probs_MV = logits_MV.log_softmax(-1)
    remasking = spec.remasking or ("low_confidence" if spec.threshold is not None else policy.remasking)
    if remasking == "low_confidence":
        confidence_M = log_probs_MV.gather(-1, drawn_M[:, None])[:, 0].double()
    elif remasking == "entropy":
        drawn_from_MV = (logits_MV / temperature).log_softmax(-1) if temperature > 0 else log_probs_MV
        confidence_M = (drawn_from_MV.exp() * drawn_from_MV).sum(-1).double()
    else:
        confidence_M = uniform(substreams(keys_M, 1), 1)[:, 0].log()
    score_RK = torch.full(masked_RK.shape, -torch.inf, dtype=torch.float64, device=logits_MV.device)
    score_RK[row_M, position_M] = confidence_M
    rank_RK = torch.argsort(score_RK, dim=-1, descending=True, stable=True).argsort(-1)
    chosen_RK = rank_RK < quota
    if spec.threshold is not None:
        chosen_RK |= score_RK.exp() >= spec.threshold
    commit_M = chosen_RK[row_M, position_M]
    target = rows[row_M[commit_M]], span.start + position_M[commit_M]
    state.tokens_BT[target] = drawn_M[commit_M]
    committed = log_probs_MV[commit_M]
    state.entropy_BG[target[0], target[1] - state.prompt_length] = -(committed.exp() * committed).sum(-1)


def _draw(logits_MV: Tensor, mask_id: int, keys_M: Tensor, temperature: float) -> Tensor:
    """Draw tokens from softmax(logits / temperature) without the mask token; argmax at temperature 0."""
    scores = logits_MV.clone()
    scores[:, mask_id] = -torch.inf
    if temperature > 0:
        return (scores.double() / temperature + gumbel(keys_M, scores.shape[-1])).argmax(-1)
    return scores.argmax(-1)
