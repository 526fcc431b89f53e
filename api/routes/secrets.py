"""/v1/fine_tuning/secrets"""

from __future__ import annotations

from fastapi import APIRouter

from api.deps import Ctx, ReadsGraders, WritesGraders
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.schemas.graders import SecretDeleted, SecretList, SecretObject, secret_object
from jobs.services import secrets
from jobs.wire.graders import StoreSecret

router = APIRouter(prefix="/v1/fine_tuning/secrets", tags=["Secrets"], responses=RESPONSES, route_class=JsonRoute)


@router.post("")
def set_secret(body: StoreSecret, ctx: Ctx, project: WritesGraders) -> SecretObject:
    """Store a secret for graders, or give it another value. It is encrypted and never shown again."""
    return secret_object(secrets.put(ctx, project, body))


@router.get("")
def list_secrets(ctx: Ctx, project: ReadsGraders) -> SecretList:
    """Names and times of the stored secrets."""
    return SecretList(data=[secret_object(row) for row in secrets.list_all(ctx, project)])


@router.delete("/{name}")
def delete_secret(name: str, ctx: Ctx, project: WritesGraders) -> SecretDeleted:
    """Delete a secret that no unfinished job needs."""
    secrets.delete(ctx, project, name)
    return SecretDeleted(name=name)
