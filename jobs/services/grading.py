"""What graders need of this installation, from its settings and a project's secrets.

Wherever a grader runs, in the API or in a job's trainer, it gets the operator's settings without any secret, and beside
them the values of just those secrets that its specification names.
"""

from __future__ import annotations

from collections.abc import Iterator

from bgpo.rewards import GraderSettings, Resources
from bgpo.rewards.settings import EgressSettings, SandboxSettings
from bgpo.rewards.spec import (
    AnyGraderSpec,
    EndpointSpec,
    LabelModelSpec,
    MultiSpec,
    ScoreModelSpec,
    TextSimilaritySpec,
)
from jobs.context import Context
from jobs.db import Database
from jobs.errors import InvalidRequest, MissingSecret
from jobs.repositories import secrets
from jobs.services.models import Catalog
from jobs.settings import Settings
from jobs.vault import Sealed, Undecryptable, Vault, key_of_home, parse_keys


def grader_settings(settings: Settings) -> GraderSettings:
    """The operator's part of grading, without any secret."""
    root = settings.reward_model_root
    return GraderSettings(
        judges={name: judge.public() for name, judge in settings.judges.items()},
        embedding_model=settings.embedding_model,
        egress=EgressSettings(
            allow_private=settings.grader_allow_private,
            ports=list(settings.egress_ports),
            hosts=None if settings.egress_hosts is None else list(settings.egress_hosts),
        ),
        sandbox=SandboxSettings(
            max_seconds=settings.grader_max_seconds,
            max_memory_mb=settings.grader_max_memory_mb,
            max_disk_mb=settings.grader_max_disk_mb,
            max_processes=settings.grader_max_processes,
        ),
        reward_models={} if root is None else {model.id: str(model.path) for model in Catalog(root).list()},
    )


def secrets_for(settings: Settings, database: Database, project_id: str, spec: AnyGraderSpec) -> dict[str, str]:
    """Values of the secrets a grader needs: the project's by name, and `judge:NAME`, the key of a judge.

    Raises:
        MissingSecret: the project has none of a name, or its value cannot be decrypted. `param` is a path in the
            grader.
    """
    named = needed(spec)
    found = {}
    if named:
        with database.read() as session:
            found = {row.name: row for row in secrets.all_of(session, project_id, list(named))}
    values = {}
    for name, param in named.items():
        if name not in found:
            raise MissingSecret(f"There is no secret {name}: store it with POST /v1/fine_tuning/secrets.", param)
        sealed = Sealed(found[name].ciphertext, found[name].key_id)
        try:
            values[name] = vault(settings).open(project_id, name, sealed)
        except Undecryptable as error:
            message = f"The secret {name} cannot be decrypted ({error}): set it again, or restore its key."
            raise MissingSecret(message, param) from error
    keys = {name: judge.api_key for name, judge in settings.judges.items() if name in _judges(settings, spec)}
    return values | {f"judge:{name}": key.get_secret_value() for name, key in keys.items() if key is not None}


def resources(ctx: Context, project_id: str, spec: AnyGraderSpec) -> Resources:
    """What `compile_grader` takes in a process of the service, where there is no PyTorch. Raises as `secrets_for`."""
    values = secrets_for(ctx.settings, ctx.db, project_id, spec)
    return Resources(settings=grader_settings(ctx.settings), secrets=values)


def needed(spec: AnyGraderSpec) -> dict[str, str]:
    """Names of the project's secrets that a grader needs, with where in it they are named."""
    found: dict[str, str] = {}
    for path, grader in parts(spec):
        if isinstance(grader, EndpointSpec):
            for name in sorted(grader.secret_names()):
                where = "signing_secret" if name == grader.signing_secret else "headers"
                found.setdefault(name, f"{path}{where}")
    return found


def parts(spec: AnyGraderSpec) -> Iterator[tuple[str, AnyGraderSpec]]:
    """A single grader, or those of a multi grader, each with the prefix of its fields' paths."""
    if isinstance(spec, MultiSpec):
        yield from ((f"graders.{key}.", grader) for key, grader in spec.graders.items())
    else:
        yield "", spec


def vault(settings: Settings) -> Vault:
    """The installation's keys.

    Raises:
        InvalidRequest: none is set, and the machines of this installation share no home folder to keep one in.
    """
    if settings.secrets_key is not None:
        return Vault(parse_keys(settings.secrets_key.get_secret_value()))
    if not settings.database_url.startswith("sqlite"):
        message = "This service keeps no secrets: its operator has to set BGPO_SECRETS_KEY, the same for all machines."
        raise InvalidRequest(message, None, "secrets_unavailable")
    return Vault([key_of_home(settings.home)])


def _judges(settings: Settings, spec: AnyGraderSpec) -> set[str]:
    found: set[str | None] = set()
    for _, grader in parts(spec):
        if isinstance(grader, ScoreModelSpec | LabelModelSpec):
            found.add(grader.model)
        elif isinstance(grader, TextSimilaritySpec) and grader.evaluation_metric == "cosine":
            found.add(settings.embedding_model)
    return {name for name in found if name is not None}
