"""The yardstick of status polls: a FastAPI route that does nothing, served as `api.server` serves the API.

python -m benchmarks.job_plane.bare PORT
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/job")
async def job() -> dict[str, str | int]:
    """A small answer."""
    return {"id": "ftjob-0", "object": "fine_tuning.job", "status": "running", "step": 1}


if __name__ == "__main__":
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
    )
    uvicorn.Server(config).run()
