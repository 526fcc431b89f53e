"""Public ids: a prefix and a time-ordered random part (UUIDv7), so that ids sort by creation.

An id from a request is checked with `is_id` before it reaches a query; anything else is simply not found.
"""

from __future__ import annotations

import re

from uuid_utils import uuid7

FILE, JOB, EVENT, CHECKPOINT, WEBHOOK, GRADER = "file-", "ftjob-", "ftevent-", "ftckpt_", "evt_", "grader-"
PROJECT, PERMISSION, AUDIT = "proj_", "cp_", "audit_log-"
COMPLETION = "chatcmpl-"
EVALUATION, EXPORT = "fteval-", "ftexport-"
UPLOAD, PART, REQUEST = "upload_", "part_", "request_"
ENDPOINT = "we_"
JUDGED = "judged_"
_TAIL = re.compile(r"[0-9a-f]{32}")


def new_id(prefix: str) -> str:
    """A new id, larger than all ids this process made before."""
    return prefix + uuid7().hex


def is_id(prefix: str, value: str) -> bool:
    """Whether `value` could be an id made by `new_id(prefix)`."""
    return value.startswith(prefix) and _TAIL.fullmatch(value, len(prefix)) is not None


def short(value: str) -> str:
    """The random end of an id, for names people read."""
    return value[-12:]
