"""The state machine of a job: one table of who may make which transition, and what the wire shows.

Every change of state goes through `jobs.repositories.jobs.move`, a conditional UPDATE that takes its allowed source
states from here. Terminal states have no way out; a database trigger holds that too.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal


class State(StrEnum):
    """Internal states; `wire_status` maps them to the seven statuses clients know."""

    VALIDATING = "validating"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    PAUSING = "pausing"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Actor(StrEnum):
    """Who asks for a transition."""

    API = "api"
    WORKER = "worker"
    """The supervisor that holds the lease; its epoch is part of the guard."""
    RECONCILER = "reconciler"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
ACTIVE = frozenset({State.RUNNING, State.CANCELLING, State.PAUSING})
"""A worker holds a lease."""

_API, _WORKER, _RECONCILER = Actor.API, Actor.WORKER, Actor.RECONCILER
TRANSITIONS: dict[tuple[State, State], frozenset[Actor]] = {
    (State.VALIDATING, State.QUEUED): frozenset({_API}),
    (State.VALIDATING, State.FAILED): frozenset({_API, _RECONCILER}),
    (State.VALIDATING, State.CANCELLED): frozenset({_API}),
    (State.QUEUED, State.RUNNING): frozenset({_WORKER}),
    (State.QUEUED, State.PAUSED): frozenset({_API, _RECONCILER}),
    (State.QUEUED, State.CANCELLED): frozenset({_API}),
    (State.QUEUED, State.FAILED): frozenset({_RECONCILER}),
    (State.RUNNING, State.SUCCEEDED): frozenset({_WORKER}),
    (State.RUNNING, State.FAILED): frozenset({_WORKER, _RECONCILER}),
    (State.RUNNING, State.QUEUED): frozenset({_WORKER, _RECONCILER}),
    (State.RUNNING, State.PAUSED): frozenset({_WORKER}),  # the service's own wish: the disk is full
    (State.RUNNING, State.CANCELLING): frozenset({_API}),
    (State.RUNNING, State.PAUSING): frozenset({_API, _RECONCILER}),
    (State.PAUSING, State.PAUSED): frozenset({_WORKER, _RECONCILER}),
    (State.PAUSING, State.SUCCEEDED): frozenset({_WORKER}),
    (State.PAUSING, State.FAILED): frozenset({_WORKER, _RECONCILER}),
    (State.PAUSING, State.CANCELLING): frozenset({_API}),
    (State.CANCELLING, State.CANCELLED): frozenset({_WORKER, _RECONCILER}),
    (State.PAUSED, State.QUEUED): frozenset({_API}),
    (State.PAUSED, State.CANCELLED): frozenset({_API}),
}

WireStatus = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
_WIRE: dict[State, WireStatus] = {
    State.VALIDATING: "validating_files",
    State.QUEUED: "queued",
    State.RUNNING: "running",
    State.PAUSING: "running",  # until the checkpoint is durable
    State.PAUSED: "paused",
    State.SUCCEEDED: "succeeded",
    State.FAILED: "failed",
    State.CANCELLING: "cancelled",  # the user asked and will not be told otherwise; teardown is ours
    State.CANCELLED: "cancelled",
}


def allowed(source: State, target: State, actor: Actor) -> bool:
    """Whether `actor` may move a job from `source` to `target`."""
    return actor in TRANSITIONS.get((source, target), frozenset())


def sources(target: State, actor: Actor) -> frozenset[State]:
    """The states from which `actor` may reach `target`."""
    return frozenset(source for (source, to), actors in TRANSITIONS.items() if to == target and actor in actors)


def wire_status(state: State) -> WireStatus:
    """The status clients see."""
    return _WIRE[state]
