"""Brings the running API into this folder."""

from tests.service import service, start_service

__all__ = ["service", "start_service"]
