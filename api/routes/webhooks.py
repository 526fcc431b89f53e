"""/v1/fine_tuning/jobs/{job_id}/webhook_deliveries"""

from __future__ import annotations

from fastapi import APIRouter

from api.deps import Ctx, ReadsJobs, WritesJobs
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.schemas.webhooks import WebhookDeliveries, WebhookDeliveryObject, webhook_delivery
from jobs.services import webhooks

router = APIRouter(
    prefix="/v1/fine_tuning/jobs/{job_id}/webhook_deliveries",
    tags=["Webhooks"],
    responses=RESPONSES,
    route_class=JsonRoute,
)


@router.get("")
def list_webhook_deliveries(job_id: str, ctx: Ctx, project: ReadsJobs) -> WebhookDeliveries:
    """The webhooks of a job, oldest first: tried how often, with what answer, and when next."""
    return WebhookDeliveries(data=[webhook_delivery(row) for row in webhooks.of_job(ctx, project, job_id)])


@router.post("/{delivery_id}/redeliver")
def redeliver_webhook(job_id: str, delivery_id: str, ctx: Ctx, project: WritesJobs) -> WebhookDeliveryObject:
    """Try a dead delivery again, from the first try on. The event keeps its id, so a receiver can tell it apart."""
    return webhook_delivery(webhooks.redeliver(ctx, project, job_id, delivery_id))
