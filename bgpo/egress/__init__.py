"""The one way out: every request to a URL that users or operators name goes through `Egress`. Torch-free.

`destinations` judges where a request may go, `client` sends it there and nowhere else.
"""

from bgpo.egress.client import Egress, EgressFailed, Limits, Reply, Resolver, resolve
from bgpo.egress.destinations import EgressRefused, check_url, host_pattern

__all__ = [
    "Egress",
    "EgressFailed",
    "EgressRefused",
    "Limits",
    "Reply",
    "Resolver",
    "check_url",
    "host_pattern",
    "resolve",
]
