"""/v1/capabilities: what this service is and can do."""

from __future__ import annotations

from importlib.metadata import version
from typing import Literal, get_args

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from api.deps import Ctx, ReadsModels
from api.errors import RESPONSES
from api.follow import MAX_WAIT_S
from api.json_body import JsonRoute
from api.middleware import MAX_BODY_BYTES
from api.sandbox import SandboxCheck, SandboxState
from bgpo.rewards.spec import AnyGraderSpec
from bgpo.spec import AlgorithmName, EstimatorName
from jobs.context import Context
from jobs.limits import ProjectLimits
from jobs.repositories.logs import KEPT
from jobs.services.create import MIN_TRAINING_ROWS
from jobs.services.grading import grader_settings
from jobs.services.quotas import project_limits
from jobs.tables import SCHEMA
from jobs.wire.graders import MAX_SAMPLES
from jobs.wire.recipe import MethodType

router = APIRouter(prefix="/v1", tags=["Capabilities"], responses=RESPONSES, route_class=JsonRoute)
CLIENTS = {"openai-python": ["1.109.1", "2.30.0", "3.54.0"]}
"""What the tests of the contract run with."""
GRADERS = tuple(get_args(spec.model_fields["type"].annotation)[0] for spec in get_args(AnyGraderSpec))


class SandboxObject(BaseModel):
    """What contains the programs of graders, on the machine of this API process."""

    state: SandboxState = Field(description="checking: ask again; none: such graders fail; allowed_without: no wall.")
    backend: str | None
    problem: str | None


class CapabilityLimits(BaseModel):
    """What one request, file or job may be."""

    body_bytes: int
    file_bytes: int
    part_bytes: int = Field(description="Of one part of an upload.")
    upload_bytes: int = Field(description="Of all parts together.")
    line_bytes: int
    training_rows_at_least: int
    gpus: int
    batch_samples: int = Field(description="Of one graders/run_batch.")
    grader_seconds: float
    grader_memory_mb: int
    log_lines: int = Field(description="Kept of a job.")
    wait_seconds: int = Field(description="Of one wait.")


class CapabilitiesObject(BaseModel):
    """What this service is and can do."""

    object: Literal["capabilities"] = "capabilities"
    version: str
    schema_version: str
    clients: dict[str, list[str]] = Field(description="Versions that the contract is tested with.")
    methods: list[str]
    algorithms: list[str]
    estimators: list[str]
    graders: list[str] = Field(description="Types.")
    judges: list[str] = Field(description="What score_model and label_model may name.")
    reward_models: list[str]
    webhooks: bool
    sandbox: SandboxObject
    limits: CapabilityLimits
    project_limits: ProjectLimits = Field(description="Of the caller's project; null: none.")


@router.get("/capabilities")
def show_capabilities(request: Request, ctx: Ctx, project: ReadsModels) -> CapabilitiesObject:
    """Version, methods, graders, limits, and whether programs of graders can be contained. Answers at once."""
    check: SandboxCheck = request.app.state.sandbox
    graders = grader_settings(ctx.settings)
    return CapabilitiesObject(
        version=version("bgpo"),
        schema_version=SCHEMA,
        clients=CLIENTS,
        methods=list(get_args(MethodType)),
        algorithms=list(get_args(AlgorithmName)),
        estimators=list(get_args(EstimatorName)),
        graders=list(GRADERS),
        judges=sorted(graders.judges),
        reward_models=sorted(graders.reward_models),
        webhooks=ctx.settings.webhook_secret is not None,
        sandbox=SandboxObject.model_validate(vars(check.look())),
        limits=_limits(ctx),
        project_limits=project_limits(ctx, project),
    )


def _limits(ctx: Context) -> CapabilityLimits:
    settings = ctx.settings
    return CapabilityLimits(
        body_bytes=MAX_BODY_BYTES,
        file_bytes=settings.max_file_bytes,
        part_bytes=settings.max_part_bytes,
        upload_bytes=settings.max_upload_bytes,
        line_bytes=settings.max_line_bytes,
        training_rows_at_least=MIN_TRAINING_ROWS,
        gpus=settings.max_gpus,
        batch_samples=MAX_SAMPLES,
        grader_seconds=settings.grader_max_seconds,
        grader_memory_mb=settings.grader_max_memory_mb,
        log_lines=KEPT,
        wait_seconds=MAX_WAIT_S,
    )
