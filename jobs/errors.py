"""Errors of the service: a `BgpoError` with an HTTP status, rendered by the API as the error envelope."""

from __future__ import annotations

import math
from collections.abc import Mapping

from bgpo.errors import BgpoError


class ServiceError(BgpoError):
    """Base of the errors a request can end with."""

    status: int = 500
    type: str | None = None
    """Of the error envelope; None = by the status."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, param)
        self.args = (message, param, code)
        if code is not None:
            self.code = code

    @property
    def headers(self) -> Mapping[str, str]:
        """Extra response headers."""
        return {}


class InvalidRequest(ServiceError):
    """The request is wrong; repeating it cannot help."""

    status = 400
    code = "invalid_value"


class BadBody(InvalidRequest):
    """The body cannot be read as JSON."""

    code = "invalid_json"


class MissingSecret(InvalidRequest):
    """A grader names a secret that the project does not have, or that no key of this installation opens."""

    code = "missing_secret"


class InvalidState(InvalidRequest):
    """The object's state does not allow this."""

    code = "invalid_state"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-should-retry": "false"}


class Unauthorized(ServiceError):
    """No key, a wrong one, or one that is no longer good."""

    status = 401
    code = "invalid_api_key"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"www-authenticate": "Bearer"}


class Forbidden(ServiceError):
    """The request comes from where it may not come from, or its key may not do this."""

    status = 403
    code = "insufficient_permissions"


class NotFound(ServiceError):
    """No such object, or not the caller's."""

    status = 404
    code = "not_found"


class Conflict(ServiceError):
    """Two requests contradict each other. Clients retry a 409 unless told not to."""

    status = 409
    code = "conflict"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-should-retry": "false"}


class InProgress(Conflict):
    """The same request is being worked on; its client should ask again."""

    code = "request_in_progress"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-should-retry": "true", "retry-after": "5"}


class InsufficientQuota(ServiceError):
    """A limit of the project is reached; only its user can change that, so clients must not retry."""

    status = 429
    code = "insufficient_quota"
    type = "insufficient_quota"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-should-retry": "false"}


class RateLimited(ServiceError):
    """Too many requests for now; the client should wait a little."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, wait_s: float, kind: str = "requests") -> None:
        super().__init__(f"{message} Please try again in {max(math.ceil(wait_s), 1)}s.")
        self.args = (message, wait_s, kind)
        self.type = kind
        self.wait_s = wait_s

    @property
    def headers(self) -> Mapping[str, str]:
        return {"retry-after": str(max(math.ceil(self.wait_s), 1))}


class NeverFits(ServiceError):
    """One request asks for more tokens than a minute has: waiting cannot help."""

    status = 429
    code = "rate_limit_exceeded"
    type = "tokens"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-should-retry": "false"}


class TooLarge(ServiceError):
    """The body exceeds a limit."""

    status = 413
    code = "request_too_large"


class UnsupportedMedia(ServiceError):
    """The body's type or encoding is not accepted."""

    status = 415
    code = "unsupported_media_type"


class RangeNotSatisfiable(ServiceError):
    """The byte range lies outside the file."""

    status = 416
    code = "range_not_satisfiable"

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.args = (message, size)
        self.size = size

    @property
    def headers(self) -> Mapping[str, str]:
        return {"content-range": f"bytes */{self.size}"}


class Unavailable(ServiceError):
    """A part of the service is down; the client may try again."""

    status = 503
    code = "unavailable"


class NoCapacity(ServiceError):
    """Nobody can take the request now; the client may try again."""

    status = 503
    code = "no_capacity"
    retry_after_s = 5

    @property
    def headers(self) -> Mapping[str, str]:
        return {"retry-after": str(self.retry_after_s)}


class TimedOut(ServiceError):
    """The answer took too long; it would again, so clients must not retry by themselves."""

    status = 504
    code = "timeout"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-should-retry": "false"}


class GenerationFailed(ServiceError):
    """No answer could be made; the request was tried again where that can help."""

    status = 500
    code = "generation_failed"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"x-should-retry": "false"}
