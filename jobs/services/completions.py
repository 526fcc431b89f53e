"""Chat completions: checked and queued here, answered by generators, and what their errors are on the wire.

The queue is bounded, for all and for each project: a request that would wait behind too many others is told so at once.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection
from typing import Any

from pydantic import ValidationError

from bgpo.spec import RolloutSpec
from jobs.context import Context
from jobs.errors import GenerationFailed, InvalidRequest, NoCapacity, NotFound, ServiceError, TimedOut
from jobs.ids import COMPLETION, new_id
from jobs.repositories import completions, generators
from jobs.services import base_models, quotas, tuned_models
from jobs.services.tuned_models import Weights
from jobs.tables import Completion
from jobs.wire.chat import MAX_TOKENS, ChatRequest

BLOCK_LENGTH = 32
ANSWER_LENGTH = 256


def create(ctx: Context, project_id: str, body: ChatRequest) -> Completion:
    """Queue a request.

    Raises:
        InvalidRequest: parameters that do not fit together.
        NotFound: no such model.
        InsufficientQuota: the project's tokens of the month are used up.
        NoCapacity: no generator runs, or too many requests wait.
    """
    _require_consistent(body)
    settings = ctx.settings
    with ctx.db.transaction() as session:
        weights = tuned_models.resolve(ctx, session, project_id, body.model)
        rollout, max_tokens = sampling(body, base_models.context_length(weights.base))
        quotas.require_inference(ctx, session, project_id)
        if not generators.any_live(session):
            raise NoCapacity("No generator runs that could answer; try again later.")
        waiting, own = completions.count_waiting(session, project_id)
        if waiting >= settings.max_waiting_completions or own >= settings.max_waiting_completions_per_project:
            raise NoCapacity(f"{own if own < waiting else waiting} requests wait already; try again later.")
        asked = {
            "messages": [{"role": message.role, "content": message.content} for message in body.messages],
            "rollout": rollout.model_dump(mode="json"),
            "max_tokens": max_tokens,
            "stop": body.stop or [],
            "seed": body.seed if body.seed is not None else secrets.randbits(63),
        }
        row = Completion(
            id=new_id(COMPLETION),
            project_id=project_id,
            model=body.model,
            base_model=weights.base.id,
            checkpoint_id=weights.checkpoint.id if weights.checkpoint is not None else None,
            batch_key=None if body.seed is not None else _batch_key(weights, rollout),
            request=asked,
        )
        completions.insert(session, row, settings.completion_timeout_s)
    ctx.bell.ring()
    return row


def most_tokens(body: ChatRequest) -> int:
    """What a request counts against a rate before it is answered: its longest answer and about its prompt.

    Only generators have tokenizers, so a token of the prompt is taken for four bytes, as OpenAI's service takes it.
    """
    prompt = sum(len(message.content.encode()) for message in body.messages)
    return -(-prompt // 4) + (body.max_completion_tokens or body.max_tokens or ANSWER_LENGTH)


def sampling(body: ChatRequest, context: int | None) -> tuple[RolloutSpec, int]:
    """How a request is decoded, and the tokens its answer is cut to. The canvas has whole blocks.

    Raises:
        InvalidRequest: the parameters do not fit together, or never fit the model's context.
    """
    asked = body.max_completion_tokens or body.max_tokens
    block = body.diffusion.block_length or BLOCK_LENGTH
    length = asked or min(ANSWER_LENGTH, (context or 2 * ANSWER_LENGTH) // 2)
    if asked is None:
        length = max(length // block, 1) * block
    blocks = -(-length // block)
    canvas = blocks * block
    param = "max_completion_tokens" if body.max_completion_tokens is not None else "max_tokens"
    if canvas > MAX_TOKENS or (context is not None and canvas >= context):
        limit = f"This model's maximum context length is {context} tokens" if context else f"The limit is {MAX_TOKENS}"
        message = f"{limit}, and the answer alone would take {canvas} ({blocks} blocks of {block})."
        raise InvalidRequest(message, param if asked else "diffusion.block_length", "context_length_exceeded")
    knobs = body.diffusion
    temperature = knobs.temperature if body.temperature is None else body.temperature
    values = {
        "max_completion_length": canvas,
        "block_length": block,
        "diffusion_steps": knobs.steps or blocks * max(1, block // 2),
        "temperature": 1.0 if temperature is None else temperature,
        "remasking": knobs.remasking,
        "threshold": knobs.threshold,
    }
    try:
        return RolloutSpec.model_validate(values), length
    except ValidationError as error:
        raise _explained(error, canvas) from error


def cancel(ctx: Context, ids: Collection[str]) -> None:
    """Nobody waits for these any more."""
    with ctx.db.transaction() as session:
        completions.cancel(session, ids)


def error_of(row: Completion) -> ServiceError | None:
    """Why a completion that is over has no answer."""
    if row.state == completions.DONE:
        return None
    message, param, code = row.error_message or "The request was cancelled.", row.error_param, row.error_code
    kinds: dict[str | None, type[ServiceError]] = {
        "timeout": TimedOut,
        "context_length_exceeded": InvalidRequest,
        "invalid_value": InvalidRequest,
        "checkpoint_damaged": InvalidRequest,
        "model_not_found": NotFound,
    }
    return kinds.get(code, GenerationFailed)(message, param, code or "cancelled")


def _require_consistent(body: ChatRequest) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options is for requests with stream: true.", "stream_options")
    pairs = (
        ("max_tokens", body.max_tokens, "max_completion_tokens", body.max_completion_tokens),
        ("diffusion.temperature", body.diffusion.temperature, "temperature", body.temperature),
    )
    for name, value, other, same in pairs:
        if value is not None and same is not None and value != same:
            raise InvalidRequest(f"{name} and {other} say the same: give one.", name)


def _batch_key(weights: Weights, rollout: RolloutSpec) -> str:
    """Of requests that one call of the sampler can answer. Those with a seed of their own are answered alone: rounding
    may differ with the rows beside one, and the same seed is to give the same text."""
    settings: dict[str, Any] = rollout.model_dump(mode="json")
    return hashlib.sha256(json.dumps([weights.key, settings], sort_keys=True).encode()).hexdigest()


def _explained(error: ValidationError, canvas: int) -> InvalidRequest:
    """The sampler's rules in the words of the request."""
    message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
    names = {
        "diffusion_steps": "diffusion.steps",
        "block_length": "diffusion.block_length",
        "threshold": "diffusion.threshold",
    }
    param = names.get(message.split()[0], "diffusion")
    for ours, theirs in names.items():
        message = message.replace(ours, theirs)
    message = message.replace("max_completion_length", "the canvas of")
    return InvalidRequest(f"{message}; the canvas has {canvas} tokens.", param)
