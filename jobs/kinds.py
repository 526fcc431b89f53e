"""What a row of the jobs table is: a fine-tuning job, or one of the two tasks that train nothing.

All kinds are claimed, leased, retried, limited and accounted for alike. Each has ids of its own prefix and routes of
its own; only what users see as jobs asks for the kind.
"""

from __future__ import annotations

from enum import StrEnum

from jobs.ids import EVALUATION, EXPORT, JOB, is_id


class Kind(StrEnum):
    """Of a row of the jobs table."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    EXPORT = "export"


PREFIXES = {Kind.TRAIN: JOB, Kind.EVALUATE: EVALUATION, Kind.EXPORT: EXPORT}
"""How their ids begin."""
NAMES = {Kind.TRAIN: "fine-tuning job", Kind.EVALUATE: "evaluation", Kind.EXPORT: "export"}
"""What users call them."""


def is_job_id(value: str) -> bool:
    """Whether it could be the id of a row of any kind."""
    return any(is_id(prefix, value) for prefix in PREFIXES.values())
