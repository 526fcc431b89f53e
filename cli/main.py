"""The `bgpo` command. Every sub-command is thin: it starts processes or speaks HTTP, and never loads the trainer."""

from __future__ import annotations

from cli.app import app
from cli.commands import (
    admin,
    chat,
    checkpoints,
    doctor,
    dry_runs,
    files,
    graders,
    job,
    jobs,
    local,
    queue,
    tasks,
    webhooks,
)

__all__ = [  # importing them adds their commands
    "admin",
    "app",
    "chat",
    "checkpoints",
    "doctor",
    "dry_runs",
    "files",
    "graders",
    "job",
    "jobs",
    "local",
    "queue",
    "tasks",
    "webhooks",
]

if __name__ == "__main__":
    app()
