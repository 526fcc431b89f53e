"""What every webhook is sent with: the rules for its URL, its signature, its time limit."""

from __future__ import annotations

from collections.abc import Sequence

from bgpo.egress import Egress, EgressRefused, Limits, Reply, check_url
from bgpo.egress.signing import headers
from jobs.errors import InvalidRequest
from jobs.settings import Settings


class Sender:
    """Sends webhooks as the settings allow; threads may share it."""

    def __init__(self, settings: Settings) -> None:
        self._timeout_s = settings.webhook_timeout_s
        self._egress = Egress(
            allow_private=settings.webhook_allow_private, ports=settings.egress_ports, hosts=settings.egress_hosts
        )

    def post(self, url: str, event_id: str, sent_at: float, content: bytes, keys: Sequence[bytes]) -> Reply:
        """One try. Raises EgressRefused, EgressFailed."""
        limits = Limits(read_s=self._timeout_s, total_s=self._timeout_s, max_bytes=1 << 14)
        given = headers(event_id, sent_at, content, list(keys))
        return self._egress.request("POST", url, headers=given, content=content, limits=limits)


def check(settings: Settings, url: str, param: str) -> None:
    """Raises InvalidRequest for a URL that no webhook may be sent to. What its name leads to is seen at each try."""
    try:
        check_url(
            url,
            allow_private=settings.webhook_allow_private,
            ports=settings.egress_ports,
            hosts=settings.egress_hosts,
        )
    except EgressRefused as refused:
        raise InvalidRequest(f"{param}: {refused.message}", param, refused.code) from refused
