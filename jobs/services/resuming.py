"""`rl.resume_from`: a new job that goes on from a checkpoint of another one, the project's own or shared with it.

With the optimizer it goes on in every respect, as a retry does: the step after the checkpoint's is the next, with the
optimizer's state and what was the best so far. So what the state belongs to must be the same, which is the method's
type, what is trained and by which optimizer; files, grader and other settings may change. Without, only the weights are
taken, as if the checkpoint were the job's `model`: a new optimizer, and steps from 1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from bgpo.spec import LoraSpec, Recipe
from jobs.artifacts import Manifest
from jobs.context import Context
from jobs.errors import InvalidRequest, NotFound
from jobs.repositories import checkpoints
from jobs.services.tuned_models import Weights
from jobs.tables import Checkpoint, Job
from jobs.wire.request import CreateJob

PARAM = "rl.resume_from.checkpoint"
_INSTEAD = "With load_optimizer: false its weights alone can be used."


@dataclass(frozen=True)
class Origin:
    """The checkpoint a job goes on from."""

    weights: Weights
    checkpoint: Checkpoint
    maker: Job
    """The job that made it."""
    load_optimizer: bool


def origin_of(ctx: Context, session: Session, project_id: str, body: CreateJob) -> Origin | None:
    """What a request wants to go on from; None when it begins anew.

    Raises:
        InvalidRequest: there is no such checkpoint, it cannot be used, or it descends from another model.
        NotFound: its base model does not exist any more.
    """
    wanted = body.rl.resume_from
    if wanted is None:
        return None
    name = wanted.checkpoint
    found = None if "\x00" in name else checkpoints.readable(session, project_id, name)
    if found is None:
        raise InvalidRequest(f"{PARAM}: there is no checkpoint '{name}'.", PARAM, "invalid_checkpoint")
    if found.damaged:
        message = f"{PARAM}: the files of '{name}' were found missing or altered: use another checkpoint."
        raise InvalidRequest(message, PARAM, "checkpoint_damaged")
    maker = session.get_one(Job, found.job_id)
    if body.model != maker.model:
        message = f"model: the checkpoint '{name}' is of a job with the model '{maker.model}': name that."
        raise InvalidRequest(message, "model", "invalid_checkpoint")
    base = ctx.catalog.get(maker.base)
    if base is None:
        message = f"The base model '{maker.base}' of the checkpoint '{name}' does not exist any more."
        raise NotFound(message, "model", "model_not_found")
    return Origin(Weights(base, found, maker), found, maker, wanted.load_optimizer)


def columns(session: Session, origin: Origin) -> dict[str, Any]:
    """The columns of a job that goes on with the optimizer: it starts where the other one did, and resumes there.

    What they name is held, so that nobody deletes it before the job exists. Raises InvalidRequest.
    """
    maker = origin.maker
    held = checkpoints.hold(session, origin.checkpoint.id)
    if held is None:
        raise InvalidRequest(f"{PARAM}: the checkpoint was deleted.", PARAM, "invalid_checkpoint")
    if maker.start_checkpoint_id is not None:
        start = checkpoints.hold(session, maker.start_checkpoint_id)
        if start is None or start.damaged:
            what = "deleted" if start is None else "found damaged"
            message = f"{PARAM}: the checkpoint that its job started from was {what}. {_INSTEAD}"
            raise InvalidRequest(message, PARAM, "invalid_checkpoint")
    return {
        "model": maker.model,
        "base_model": maker.base_model,
        "start_checkpoint_id": maker.start_checkpoint_id,
        "lineage": maker.lineage,
        "resume_checkpoint_id": held.id,
        "last_step": held.step,
    }


def require_fit(origin: Origin, recipe: Recipe) -> None:
    """Refuse a recipe that the checkpoint's state does not fit. Raises InvalidRequest."""
    if not origin.load_optimizer:
        return
    files = Manifest.from_json(origin.checkpoint.manifest).files
    if not any(file.path.startswith("trainer_state/") for file in files):
        raise _unfit("it has no optimizer state")
    try:
        made = Recipe.model_validate_json(json.dumps(origin.maker.recipe)).method
    except ValidationError as error:
        raise _unfit("its job was made by another version") from error
    method = recipe.method
    if made.type != method.type:
        raise _unfit(f"its job's method is {made.type}, not {method.type}")
    if _trained(made.lora) != _trained(method.lora):
        raise _unfit("its job trained other parameters: lora must be the same")
    kinds = made.optimizer.optimizer_type, method.optimizer.optimizer_type
    if kinds[0] != kinds[1]:
        raise _unfit(f"its job's optimizer_type is {kinds[0]}, not {kinds[1]}")
    step = origin.checkpoint.step
    if step >= method.max_steps:
        message = f"{PARAM}: the checkpoint is of step {step}, and this job has {method.max_steps}: ask for more steps."
        raise InvalidRequest(message, PARAM, "incompatible_checkpoint")


def _trained(lora: LoraSpec | None) -> dict[str, Any] | None:
    """What decides which parameters there are, and what their numbers mean."""
    return None if lora is None else lora.model_dump(exclude={"checkpoints"})


def _unfit(reason: str) -> InvalidRequest:
    return InvalidRequest(f"{PARAM}: {reason}. {_INSTEAD}", PARAM, "incompatible_checkpoint")
