"""Brings the running API into this folder."""

from tests.api.hostile import hostile
from tests.api.tenants import make_tenants, tenants
from tests.service import service, start_service

__all__ = ["hostile", "make_tenants", "service", "start_service", "tenants"]
