"""What the OpenAPI description says beyond the code: tags, errors, examples, and links from an answer to what follows.

The examples are answers of a running service, kept in examples.json by operation; a test holds them against the
schemas. Links let programs (and our fuzzer) go from an object that was made to the operations on it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

TAGS = {
    "Files": "Datasets and other files: upload, list, download, delete.",
    "Uploads": "Big files in parts.",
    "Fine-tuning jobs": "Create jobs, follow and steer them. Extensions of OpenAI's API stand under `rl`.",
    "Progress": "What a job tells while it runs: events, metrics, samples, attempts, checkpoints.",
    "Checkpoints": "Weights of a job at a step: describe, pin, download, share, delete.",
    "Evaluations": "Models answer a file's rows, and graders grade the answers.",
    "Exports": "Weights of a checkpoint for use elsewhere: merged or adapter alone, in a precision.",
    "Graders": "Try, check and store what gives rewards.",
    "Secrets": "Values that graders need and nobody is shown.",
    "Webhooks": "Endpoints that are told how jobs end, and what was delivered.",
    "Queue": "Places, reasons and workers.",
    "Models": "Base models and results of jobs.",
    "Chat": "Answers of base models, tuned models and checkpoints.",
    "Capabilities": "What this installation can do, and its limits.",
    "Usage": "What a project has used, and may use yet.",
    "Organization": "For administrators: projects, keys, limits, the audit log.",
    "Health": "For supervisors, load balancers and Prometheus, without a project's key.",
}

ERRORS: dict[int, tuple[str, str, str]] = {
    400: ("The request is wrong; `param` says where.", "missing_required_parameter", "model: is required"),
    401: (
        "No key, a wrong one, or one that has expired or was revoked.",
        "invalid_api_key",
        "Incorrect API key provided.",
    ),
    403: ("The key lacks the scope this needs.", "insufficient_permissions", "The API key lacks the scope jobs:write."),
    404: ("No such object, or another project's.", "not_found", "No such fine-tuning job: ftjob-0"),
    408: ("The body did not arrive in time.", "request_timeout", "The body did not arrive in time."),
    409: (
        "Another request has used the Idempotency-Key.",
        "idempotency_key_reused",
        "This Idempotency-Key was used with another request.",
    ),
    413: ("The body is too large.", "request_too_large", "The body is larger than 4194304 bytes."),
    415: (
        "The body has another type or encoding than this reads.",
        "unsupported_media_type",
        "Send the body as application/json.",
    ),
    416: (
        "The range lies outside of the file.",
        "range_not_satisfiable",
        "The range bytes=9- lies outside the 8 bytes.",
    ),
    429: (
        "Too many requests, or beyond a quota; `Retry-After` says how long to wait, if waiting helps.",
        "rate_limit_exceeded",
        "Rate limit reached: 60 write requests a minute for the project. Please try again in 5s.",
    ),
    500: (
        "A fault of the service; the log has its cause under the request id.",
        "server_error",
        "The server had an error. Please quote the request id req_0.",
    ),
    503: (
        "A part of the service is down or busy; try again.",
        "unavailable",
        "API keys cannot be checked at the moment.",
    ),
    504: ("The answer took too long.", "timeout", "The answer took too long."),
}
"""By status: what it means, and an example's code and message."""


class Link(NamedTuple):
    """Another operation, and where an answer's id goes in it."""

    method: str
    path: str
    parameters: dict[str, str]


_ID = "$response.body#/id"
_JOB, _FILE, _GRADER = "/v1/fine_tuning/jobs", "/v1/files", "/v1/fine_tuning/graders"
_UPLOAD, _ENDPOINT = "/v1/uploads", "/v1/webhook_endpoints"
_CHECKPOINT, _EVALUATION = "/v1/fine_tuning/checkpoints/{checkpoint_id}", "/v1/fine_tuning/evaluations"
_EXPORT = "/v1/fine_tuning/exports"
_PROJECT, _ADMIN_KEYS = "/v1/organization/projects", "/v1/organization/admin_api_keys"


def _links(parameter: str, *operations: str) -> dict[str, Link]:
    """Links that hand the id of the answer on, named by what they lead to."""
    pairs = [operation.split(" ", 1) for operation in operations]
    names = [f"{method}_{path.rpartition('}')[2].strip('/').replace('/', '_') or 'it'}" for method, path in pairs]
    return {name: Link(method, path, {parameter: _ID}) for name, (method, path) in zip(names, pairs, strict=True)}


_OF_JOB = _links(
    "job_id",
    f"get {_JOB}/{{job_id}}",
    f"post {_JOB}/{{job_id}}/cancel",
    f"post {_JOB}/{{job_id}}/pause",
    f"post {_JOB}/{{job_id}}/resume",
    f"post {_JOB}/{{job_id}}/retry",
    f"post {_JOB}/{{job_id}}/clone",
    f"get {_JOB}/{{job_id}}/events",
    f"get {_JOB}/{{job_id}}/metrics",
    f"get {_JOB}/{{job_id}}/attempts",
    f"get {_JOB}/{{job_id}}/logs",
    f"get {_JOB}/{{job_id}}/spec",
    f"patch {_JOB}/{{job_id}}",
    f"delete {_JOB}/{{job_id}}",
)
_OF_EVALUATION = _links(
    "evaluation_id",
    f"get {_EVALUATION}/{{evaluation_id}}",
    f"get {_EVALUATION}/{{evaluation_id}}/samples",
    f"post {_EVALUATION}/{{evaluation_id}}/cancel",
    f"delete {_EVALUATION}/{{evaluation_id}}",
)
LINKS: dict[tuple[str, str], dict[str, Link]] = {
    ("post", _FILE): _links(
        "file_id",
        f"get {_FILE}/{{file_id}}",
        f"get {_FILE}/{{file_id}}/content",
        f"post {_FILE}/{{file_id}}/validate",
        f"delete {_FILE}/{{file_id}}",
    ),
    ("post", _UPLOAD): _links(
        "upload_id",
        f"post {_UPLOAD}/{{upload_id}}/parts",
        f"post {_UPLOAD}/{{upload_id}}/complete",
        f"post {_UPLOAD}/{{upload_id}}/cancel",
    ),
    ("post", _JOB): _OF_JOB,
    ("post", f"{_JOB}/{{job_id}}/clone"): _OF_JOB,
    ("post", f"{_JOB}/{{job_id}}/retry"): _OF_JOB,
    ("post", _EVALUATION): _OF_EVALUATION,
    ("post", f"{_CHECKPOINT}/evaluate"): _OF_EVALUATION,
    ("post", f"{_CHECKPOINT}/export"): _links(
        "export_id",
        f"get {_EXPORT}/{{export_id}}",
        f"get {_EXPORT}/{{export_id}}/files",
        f"post {_EXPORT}/{{export_id}}/cancel",
        f"delete {_EXPORT}/{{export_id}}",
    ),
    ("post", _ENDPOINT): _links(
        "webhook_endpoint_id",
        f"get {_ENDPOINT}/{{webhook_endpoint_id}}",
        f"post {_ENDPOINT}/{{webhook_endpoint_id}}",
        f"post {_ENDPOINT}/{{webhook_endpoint_id}}/rotate_secret",
        f"delete {_ENDPOINT}/{{webhook_endpoint_id}}",
    ),
    ("post", _GRADER): _links(
        "grader_id",
        f"get {_GRADER}/{{grader_id}}",
        f"post {_GRADER}/{{grader_id}}/versions",
        f"get {_GRADER}/{{grader_id}}/versions",
        f"delete {_GRADER}/{{grader_id}}",
    ),
    ("post", _PROJECT): _links(
        "project_id",
        f"get {_PROJECT}/{{project_id}}",
        f"post {_PROJECT}/{{project_id}}",
        f"put {_PROJECT}/{{project_id}}/limits",
        f"get {_PROJECT}/{{project_id}}/limits",
        f"post {_PROJECT}/{{project_id}}/api_keys",
        f"get {_PROJECT}/{{project_id}}/api_keys",
        f"post {_PROJECT}/{{project_id}}/archive",
    ),
    ("post", f"{_PROJECT}/{{project_id}}/api_keys"): {
        name: link._replace(parameters=link.parameters | {"project_id": "$request.path.project_id"})
        for name, link in _links(
            "key_id",
            f"get {_PROJECT}/{{project_id}}/api_keys/{{key_id}}",
            f"post {_PROJECT}/{{project_id}}/api_keys/{{key_id}}/rotate",
            f"delete {_PROJECT}/{{project_id}}/api_keys/{{key_id}}",
        ).items()
    },
    ("post", "/v1/fine_tuning/secrets"): {
        "delete": Link("delete", "/v1/fine_tuning/secrets/{name}", {"name": "$response.body#/name"})
    },
    ("get", "/v1/models"): {"get": Link("get", "/v1/models/{model}", {"model": "$response.body#/data/0/id"})},
    ("post", _ADMIN_KEYS): _links(
        "key_id",
        f"get {_ADMIN_KEYS}/{{key_id}}",
        f"post {_ADMIN_KEYS}/{{key_id}}/rotate",
        f"delete {_ADMIN_KEYS}/{{key_id}}",
    ),
}

EXAMPLES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("examples.json").read_text())
"""By operation ("POST /v1/files"): the JSON of a `request` and of its `response`."""
