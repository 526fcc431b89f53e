"""/v1/organization over HTTP, for `bgpo admin`."""

from __future__ import annotations

from typing import Any

from cli.client import Service


class Admin(Service):
    """One service, for its administrator. A context manager."""

    def create_project(self, name: str) -> dict[str, Any]:
        """A new project."""
        return self.call("POST", "organization/projects", json={"name": name})

    def projects(self, *, archived: bool) -> list[dict[str, Any]]:
        """All projects, newest first."""
        return self.all_of("organization/projects", include_archived=archived)

    def archive_project(self, project_id: str) -> dict[str, Any]:
        """Refuse a project's keys for good."""
        return self.call("POST", f"organization/projects/{project_id}/archive")

    def limits(self, project_id: str) -> dict[str, Any]:
        """What a project may use."""
        return self.call("GET", f"organization/projects/{project_id}/limits")

    def set_limits(self, project_id: str, limits: dict[str, Any]) -> dict[str, Any]:
        """Replace a project's limits."""
        return self.call("PUT", f"organization/projects/{project_id}/limits", json=limits)

    def keys(self, project_id: str | None) -> list[dict[str, Any]]:
        """The keys of a project, or the administrators' (None)."""
        return self.all_of(_keys(project_id))

    def create_key(self, project_id: str | None, body: dict[str, Any]) -> dict[str, Any]:
        """A new key; the answer shows it."""
        return self.call("POST", _keys(project_id), json=body)

    def revoke_key(self, project_id: str | None, key_id: str) -> None:
        """Refuse a key from now on."""
        self.call("DELETE", f"{_keys(project_id)}/{key_id}")

    def rotate_key(self, project_id: str | None, key_id: str, overlap_s: int) -> dict[str, Any]:
        """A key in another one's place; the answer shows it."""
        return self.call("POST", f"{_keys(project_id)}/{key_id}/rotate", json={"overlap_seconds": overlap_s})

    def audit(self, limit: int, **filters: list[str]) -> list[dict[str, Any]]:
        """The newest entries of the audit log."""
        params: dict[str, Any] = {f"{name}[]": values for name, values in filters.items() if values}
        found: list[dict[str, Any]] = self.call("GET", "organization/audit_logs", params=params | {"limit": limit})[
            "data"
        ]
        return found


def _keys(project_id: str | None) -> str:
    return "organization/admin_api_keys" if project_id is None else f"organization/projects/{project_id}/api_keys"
