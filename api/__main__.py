"""`python -m api`: serve until SIGTERM or SIGINT. Event streams end at once then, other requests get to finish."""

from __future__ import annotations

from api.server import serve
from jobs import tracing
from jobs.log import configure_logging
from jobs.settings import Settings

if __name__ == "__main__":
    settings = Settings()
    configure_logging(settings)
    tracing.configure(settings, "bgpo-api")
    try:
        serve(settings)
    finally:
        tracing.stop()
