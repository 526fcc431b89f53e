"""The parts a process of the service works with, made once from its settings."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.artifacts import ArtifactStore
from jobs.bell import CompletionBell
from jobs.db import Database
from jobs.doorbell import Doorbell
from jobs.services.models import Catalog
from jobs.settings import Settings
from jobs.slots import Slots

WEBHOOK_TESTS = 8


@dataclass(frozen=True)
class Context:
    """Handed to every service function."""

    settings: Settings
    db: Database
    store: ArtifactStore
    doorbell: Doorbell
    bell: CompletionBell
    catalog: Catalog
    grader_slots: Slots
    """Graders that this process runs."""
    webhook_slots: Slots
    """Webhook endpoints that this process tries out."""

    @classmethod
    def open(cls, settings: Settings) -> Context:
        """Make the parts; connects to nothing yet."""
        settings.scratch.mkdir(parents=True, exist_ok=True)
        return cls(
            settings=settings,
            db=Database(settings.database_url),
            store=ArtifactStore(settings.artifacts_url),
            doorbell=Doorbell(settings.redis_url.get_secret_value()),
            bell=CompletionBell(settings.redis_url.get_secret_value()),
            catalog=Catalog(settings.model_root),
            grader_slots=Slots(settings.grader_runs, "graders"),
            webhook_slots=Slots(WEBHOOK_TESTS, "webhook tests"),
        )

    def close(self) -> None:
        """Close what keeps connections."""
        self.db.dispose()
        self.doorbell.close()
        self.bell.close()
