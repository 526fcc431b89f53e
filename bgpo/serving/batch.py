"""Answering one batch: conversations in, blocks of text out as soon as they are final."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from jinja2 import TemplateError

from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.diffusion.sampler import Decoding, decode
from bgpo.models import Policy
from bgpo.serving.protocol import BatchCommand, BeatRecord, BlockRecord, DoneRecord, FailedRecord, Record, Row
from bgpo.serving.text import AnswerText

CONTEXT_EXCEEDED = "context_length_exceeded"
_BEAT_S = 1.0

Emit = Callable[[Record], None]


def answer(policy: Policy, batch: BatchCommand, emit: Emit, cancelled: Callable[[str], bool]) -> None:
    """Decode all rows of a batch that can be answered, and tell of each. A row draws from its own seed only."""
    canvas = batch.rollout.max_completion_length
    asked = [(row, ids) for row in batch.rows if (ids := _encoded(policy, row, canvas, emit)) is not None]
    if not asked:
        return
    answers = [_Answer(row, ids, policy) for row, ids in asked]
    keys_B = torch.stack([stream_keys(row.seed, Purpose.GENERATE, 0) for row, _ in asked])
    decoding = Decoding(policy, [ids for _, ids in asked], canvas, policy.device)
    told, beaten = 0, time.monotonic()
    for final in decode(decoding, batch.rollout, keys_B, temperature=batch.rollout.temperature):
        for index, one in enumerate(answers):
            if not one.over and cancelled(one.row.id):
                one.over = True
                decoding.drop(index)
        if final > told or len(decoding.rows) < sum(not one.over for one in answers):
            told = final
            _tell(decoding, answers, final, canvas, emit)
        if time.monotonic() - beaten > _BEAT_S:
            beaten = time.monotonic()
            emit(BeatRecord())


class _Answer:
    """One row on its way."""

    def __init__(self, row: Row, prompt: Sequence[int], policy: Policy) -> None:
        self.row, self.prompt_tokens = row, len(prompt)
        self.text = AnswerText(policy.decode, set(policy.end_ids), row.max_tokens, row.stop)
        self.blocks = 0
        self.over = False

    def tell(self, decided: Sequence[int], *, complete: bool, emit: Emit) -> bool:
        """Give away what is new; whether that was the end."""
        piece = self.text.advance(decided, complete=complete)
        if piece:
            emit(BlockRecord(id=self.row.id, seq=self.blocks, text=piece))
            self.blocks += 1
        if self.text.finish_reason is not None:
            self.over = True
            emit(
                DoneRecord(
                    id=self.row.id,
                    finish_reason=self.text.finish_reason,
                    prompt_tokens=self.prompt_tokens,
                    completion_tokens=self.text.tokens,
                )
            )
        return self.over


def _tell(decoding: Decoding, answers: Sequence[_Answer], final: int, canvas: int, emit: Emit) -> None:
    tokens = decoding.response().tolist()
    working = set(decoding.rows.tolist())
    for index, one in enumerate(answers):
        if one.over:
            continue
        decided = tokens[index][:final] if index in working else tokens[index]  # one that has left is decided
        if one.tell(decided, complete=final == canvas, emit=emit):
            decoding.drop(index)


def _encoded(policy: Policy, row: Row, canvas: int, emit: Emit) -> list[int] | None:
    """The prompt's tokens; None, and the reason told, when the row cannot be answered."""
    try:
        ids = policy.encode_prompt(row.messages)
    except TemplateError as error:
        message = f"the model's chat template does not take these messages: {error}"
        emit(FailedRecord(id=row.id, code="invalid_value", message=message, param="messages"))
        return None
    if len(ids) + canvas <= policy.max_length:
        return ids
    message = (
        f"This model's maximum context length is {policy.max_length} tokens. The messages have {len(ids)} tokens, and "
        f"{canvas} are reserved for the answer (max_tokens in whole blocks): shorten the messages or lower max_tokens."
    )
    emit(FailedRecord(id=row.id, code=CONTEXT_EXCEEDED, message=message, param="messages"))
    return None
