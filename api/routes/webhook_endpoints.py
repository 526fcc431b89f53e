"""/v1/webhook_endpoints and /v1/webhook_event_types"""

from __future__ import annotations

from fastapi import APIRouter

from api.deps import After, Ctx, Limit, ReadsJobs, WritesJobs
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.schemas.lists import ListOf, list_of
from api.schemas.webhook_endpoints import (
    WebhookEndpointDeleted,
    WebhookEndpointObject,
    WebhookEndpointTest,
    WebhookEndpointWithSecret,
    WebhookEventTypes,
    webhook_endpoint,
    with_secret,
)
from jobs.services import webhook_endpoints as endpoints
from jobs.wire.webhooks import (
    CreateWebhookEndpoint,
    RotateWebhookSecret,
    TestWebhookEndpoint,
    UpdateWebhookEndpoint,
)

router = APIRouter(prefix="/v1", tags=["Webhooks"], responses=RESPONSES, route_class=JsonRoute)
_ONE = "/webhook_endpoints/{webhook_endpoint_id}"


@router.post("/webhook_endpoints")
def create_webhook_endpoint(body: CreateWebhookEndpoint, ctx: Ctx, project: WritesJobs) -> WebhookEndpointWithSecret:
    """Have the events of all jobs of the project sent to a URL. The signing secret is shown in this answer only."""
    return with_secret(endpoints.create(ctx, project, body))


@router.get("/webhook_endpoints")
def list_webhook_endpoints(
    ctx: Ctx, project: ReadsJobs, after: After = None, limit: Limit = 20
) -> ListOf[WebhookEndpointObject]:
    """List webhook endpoints, newest first."""
    return list_of(endpoints.page(ctx, project, after=after, limit=limit), webhook_endpoint)


@router.get(_ONE)
def retrieve_webhook_endpoint(webhook_endpoint_id: str, ctx: Ctx, project: ReadsJobs) -> WebhookEndpointObject:
    """A webhook endpoint."""
    return webhook_endpoint(endpoints.get(ctx, project, webhook_endpoint_id))


@router.post(_ONE)
def update_webhook_endpoint(
    webhook_endpoint_id: str, body: UpdateWebhookEndpoint, ctx: Ctx, project: WritesJobs
) -> WebhookEndpointObject:
    """Change a webhook endpoint. What is not named stays as it is."""
    return webhook_endpoint(endpoints.update(ctx, project, webhook_endpoint_id, body))


@router.delete(_ONE)
def delete_webhook_endpoint(webhook_endpoint_id: str, ctx: Ctx, project: WritesJobs) -> WebhookEndpointDeleted:
    """Delete a webhook endpoint with its deliveries. What it has not got yet is not sent any more."""
    endpoints.delete(ctx, project, webhook_endpoint_id)
    return WebhookEndpointDeleted(id=webhook_endpoint_id)


@router.post(f"{_ONE}/rotate_secret")
def rotate_webhook_endpoint_secret(
    webhook_endpoint_id: str, ctx: Ctx, project: WritesJobs, body: RotateWebhookSecret | None = None
) -> WebhookEndpointWithSecret:
    """Give a webhook endpoint another signing secret, at once or with a day in which both sign."""
    keep_old = body is not None and body.keep_old_secret_active_for_24_hours
    return with_secret(endpoints.rotate(ctx, project, webhook_endpoint_id, keep_old=keep_old))


@router.post(f"{_ONE}/test")
def test_webhook_endpoint(
    webhook_endpoint_id: str, body: TestWebhookEndpoint, ctx: Ctx, project: WritesJobs
) -> WebhookEndpointTest:
    """Send an event about a job that does not exist, once, and tell the status of the answer.

    Without an answer this is an error, whose message says why.
    """
    status = endpoints.test(ctx, project, webhook_endpoint_id, body.event_type)
    return WebhookEndpointTest(webhook_endpoint_id=webhook_endpoint_id, event_type=body.event_type, status_code=status)


@router.get("/webhook_event_types")
def list_webhook_event_types(project: ReadsJobs) -> WebhookEventTypes:
    """The types of events there are."""
    return WebhookEventTypes()
