"""The `bgpo` command. Every sub-command is thin: it starts processes or speaks HTTP, and never loads the trainer."""

from __future__ import annotations

from cli.app import app
from cli.commands import chat, checkpoints, jobs, local, queue

__all__ = ["app", "chat", "checkpoints", "jobs", "local", "queue"]  # importing them adds their commands

if __name__ == "__main__":
    app()
