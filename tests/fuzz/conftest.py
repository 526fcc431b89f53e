"""Brings a running API into this folder."""

from tests.api.hostile import hostile
from tests.service import start_service

__all__ = ["hostile", "start_service"]
