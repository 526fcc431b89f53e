"""`python -m worker.generator`: answer chat completions until SIGTERM or SIGINT.

Told to stop, it goes on with what it has for some seconds, then gives the rest back to the queue.
"""

from __future__ import annotations

import os
import signal
import socket
import threading

from uuid_utils import uuid7

from jobs.context import Context
from jobs.log import configure_logging
from jobs.settings import Settings
from worker.generator.generator import Generator
from worker.generator.serving import Serving


def main() -> None:
    """Run until told to stop."""
    settings = Settings()
    configure_logging(settings)
    ctx = Context.open(settings)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    generator_id = f"gen-{socket.gethostname()}-{os.getpid()}-{uuid7().hex[-8:]}"
    try:
        Generator(ctx, generator_id, stopping, Serving(settings)).run()
    finally:
        ctx.close()


if __name__ == "__main__":
    main()
