"""A service that hostile requests are sent to, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

IMPATIENT = pytest.mark.parametrize("hostile", [1], indirect=True)
"""A service that waits a second for a request. For tests in which it gives up: on a busy machine it may on any."""


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.fixture
def hostile(request: Any, start_service: Callable[..., Any], caplog: Any, capsys: Any) -> Iterator[Any]:
    """A service that must have lost nothing and broken nowhere when the test is over; see `IMPATIENT`."""
    service = start_service(request_timeout_s=getattr(request, "param", 60), max_file_bytes=1 << 20)
    yield service
    with service.http() as http:
        assert http.get("/v1/files").status_code == 200
    assert list(service.ctx.settings.scratch.iterdir()) == []
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
    out = capsys.readouterr()
    assert "Traceback" not in out.out + out.err
    assert "request.failed" not in out.out + out.err
