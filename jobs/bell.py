"""Wakes generators when a chat completion was queued: an empty message on a Redis channel.

Sent after the commit, and allowed to be lost: the row is what counts, and generators also look by themselves. Not
Celery's: nobody has to take the message, and all generators may hear it.
"""

from __future__ import annotations

import time

import structlog
from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.client import PubSub
from redis.retry import Retry

_CHANNEL = "bgpo.completions"
_ANSWER_S = 1.0
_QUIET_S = 10.0
_log = structlog.get_logger(__name__)


class CompletionBell:
    """Rings, and listens. Connects when first used."""

    def __init__(self, redis_url: str) -> None:
        self._redis = Redis.from_url(
            redis_url, socket_timeout=_ANSWER_S, socket_connect_timeout=_ANSWER_S, retry=Retry(NoBackoff(), 0)
        )
        self._quiet_until = 0.0

    def ring(self) -> None:
        """Wake the generators. A Redis that does not answer is left alone for a while: callers wait for this."""
        if time.monotonic() < self._quiet_until:
            return
        try:
            self._redis.publish(_CHANNEL, b"")
        except RedisError as error:
            self._quiet_until = time.monotonic() + _QUIET_S
            _log.warning("the bell for completions failed", error=str(error))

    def listener(self) -> Listener:
        """For one thread."""
        return Listener(self._redis)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


class Listener:
    """Hears what is rung from now on."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._channel: PubSub | None = None
        self._quiet_until = 0.0

    def wait(self, timeout_s: float) -> None:
        """Until the bell rings, at most so long; without Redis, as long."""
        if time.monotonic() < self._quiet_until:
            time.sleep(timeout_s)
            return
        try:
            if self._channel is None:
                self._channel = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]  # redis types a part
                self._channel.subscribe(_CHANNEL)
            self._channel.get_message(timeout=timeout_s)
        except RedisError:
            self.close()
            self._quiet_until = time.monotonic() + _QUIET_S

    def close(self) -> None:
        """Hang up."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
