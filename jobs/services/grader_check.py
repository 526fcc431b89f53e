"""Whether this installation can run a grader, found out before anything runs: URLs, secrets, judges, reward models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bgpo.egress import EgressRefused, check_url
from bgpo.errors import SpecError
from bgpo.rewards import Grader, Resources, compile_grader
from bgpo.rewards.spec import AnyGraderSpec, EndpointSpec, LabelModelSpec, RewardModelSpec, ScoreModelSpec
from jobs.context import Context
from jobs.errors import InvalidRequest
from jobs.services.grading import parts, resources

INVALID = "invalid_grader"


@contextmanager
def located(prefix: str, code: str) -> Iterator[None]:
    """Faults of a grader become the request's. It stands at `prefix`; one of a type that cannot run here has `code`.

    Raises:
        InvalidRequest: instead of it, and of SpecError.
    """
    try:
        yield
    except (InvalidRequest, SpecError) as fault:
        param = f"{prefix}.{fault.param}" if fault.param else prefix
        if isinstance(fault, InvalidRequest):
            code = fault.code
        elif not param.endswith("type"):
            code = INVALID
        raise InvalidRequest(fault.message, param, code) from fault


def require(ctx: Context, project_id: str, spec: AnyGraderSpec) -> Resources:
    """What a grader may use, once all that it names is there.

    Raises:
        InvalidRequest: something is not; `param` is a path in the grader.
    """
    for path, part in parts(spec):
        if isinstance(part, EndpointSpec):
            _check_url(ctx, part.url, f"{path}url")
        elif isinstance(part, ScoreModelSpec | LabelModelSpec):
            _check_name("judge", part.model, ctx.settings.judges, f"{path}model")
    given = resources(ctx, project_id, spec)
    for path, part in parts(spec):
        if isinstance(part, RewardModelSpec):
            _check_name("reward model", part.model, given.settings.reward_models, f"{path}model")
    return given


def compiled(ctx: Context, project_id: str, spec: AnyGraderSpec) -> Grader:
    """A grader to be run in this process, where there is no PyTorch.

    Raises:
        InvalidRequest, SpecError: it cannot run here; `param` is a path in the grader.
    """
    given = require(ctx, project_id, spec)
    for path, part in parts(spec):
        if isinstance(part, RewardModelSpec):
            raise SpecError("a reward_model grader runs on workers only, which have the accelerators", f"{path}type")
    return compile_grader(spec, given)


def _check_url(ctx: Context, url: str, param: str) -> None:
    settings = ctx.settings
    try:
        check_url(
            url,
            allow_private=settings.grader_allow_private,
            ports=settings.egress_ports,
            hosts=settings.egress_hosts,
        )
    except EgressRefused as refused:
        raise InvalidRequest(f"the URL {refused.message}", param, refused.code) from refused


def _check_name(kind: str, name: str, known: object, param: str) -> None:
    names = sorted(known) if isinstance(known, dict) else []
    if name not in names:
        offer = f"this service has {', '.join(names)}" if names else "this service has none"
        raise InvalidRequest(f"There is no {kind} {name!r}: {offer}.", param, "model_not_found")
