"""The one way out: every request to a URL that users or operators name goes through `Egress`. Torch-free.

`destinations` judges where a request may go, `client` sends it there and nowhere else; `caller` asks again when that
may help, within the limits of a `gate`; `signing` lets a receiver know that it was us.
"""

from bgpo.egress.caller import Caller, CallFailed, retry_after_s
from bgpo.egress.client import Egress, EgressFailed, Limits, Reply, Resolver, resolve
from bgpo.egress.destinations import EgressRefused, check_url, host_pattern
from bgpo.egress.gate import Gate

__all__ = [
    "CallFailed",
    "Caller",
    "Egress",
    "EgressFailed",
    "EgressRefused",
    "Gate",
    "Limits",
    "Reply",
    "Resolver",
    "check_url",
    "host_pattern",
    "resolve",
    "retry_after_s",
]
