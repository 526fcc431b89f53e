"""The uvicorn server, with one change: when it stops it tells the event streams, which would keep it from stopping."""

from __future__ import annotations

import gc
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from api.main import create_app
from api.middleware import MAX_HEAD_BYTES
from api.protocol import limited
from jobs.settings import Settings

_GRACE_S = 10
_SWITCH_S = 0.001


class Server(uvicorn.Server):
    """Serves one application."""

    def __init__(self, settings: Settings, app: FastAPI) -> None:
        self._stopping = app.state.stopping
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=limited(settings.request_timeout_s),
                ws="none",
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                log_config=None,
                log_level=settings.log_level,
                access_log=False,
                timeout_graceful_shutdown=_GRACE_S,
                server_header=False,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Signal handler."""
        self._stopping.set()
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        """The same without a signal, from any thread."""
        self._stopping.set()
        self.should_exit = True


def serve(settings: Settings) -> None:
    """Serve until told to stop, in a process of its own."""
    server = Server(settings, create_app(settings))
    _be_prompt()
    server.run()


def _be_prompt() -> None:
    """Let no request wait for what is not its own.

    A full garbage collection walks through all modules, a quarter of a second in which nobody is answered: what is
    there now stays and need not be looked at. And a thread that computes keeps Python's lock for this long, each time
    the event loop gives it up to send or to receive.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH_S)
