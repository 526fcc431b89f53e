"""`bgpo files` against a running service, and uploads in parts that break off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cli.client import Service
from cli.errors import CliError
from cli.upload import upload
from tests.api.cutting import cutting_proxy
from tests.cli.test_graders import bgpo
from tests.service import service, start_service

__all__ = ["service", "start_service"]


@pytest.fixture
def dataset(service: Any, tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_bytes(service.rows(500))
    return path


def test_upload_list_download_delete(service: Any, dataset: Path, tmp_path: Path) -> None:
    file_id = bgpo(service, "files", "upload", dataset, "--expires-after", 3600).stdout.strip()
    other = bgpo(service, "files", "upload", dataset, "--purpose", "batch").stdout.strip()
    head, *rows = bgpo(service, "files", "list").stdout.splitlines()
    assert head.split() == ["file", "created", "MB", "purpose", "status", "expires", "name"]
    assert [row.split()[0] for row in rows] == [other, file_id]
    assert bgpo(service, "files", "list", "--purpose", "batch").stdout.count("file-") == 1
    target = tmp_path / "copy"
    bgpo(service, "files", "download", file_id, target)
    assert target.read_bytes() == dataset.read_bytes()
    assert "exists" in bgpo(service, "files", "download", file_id, target, status=1).stderr
    assert bgpo(service, "files", "delete", file_id, other).stdout.count("deleted") == 2
    assert "No such File" in bgpo(service, "files", "download", file_id, tmp_path / "no", status=1).stderr
    assert sorted(path.name for path in tmp_path.iterdir() if "no" in path.name) == []
    assert "cannot read" in bgpo(service, "files", "upload", tmp_path / "no", status=1).stderr


def test_validate(service: Any, dataset: Path) -> None:
    good = bgpo(service, "files", "upload", dataset).stdout.strip()
    assert bgpo(service, "files", "validate", good).stdout == "500 prompts\n"
    dataset.write_bytes(service.rows(1) + b"{\n[]\n")
    assert "line 2 " in bgpo(service, "files", "upload", dataset, status=1).stderr
    bad = bgpo(service, "files", "upload", dataset, "--purpose", "user_data").stdout.strip()
    told = bgpo(service, "files", "validate", bad, status=1)
    assert [line.split(" is ")[0] for line in told.stdout.splitlines()] == ["Line 2", "Line 3"]
    assert "2 of 3 rows" in told.stderr


def test_in_parts_over_connections_that_break(start_service: Callable[..., Any], tmp_path: Path) -> None:
    service = start_service()
    path = tmp_path / "big.jsonl"
    path.write_bytes(service.rows(1000))
    size, told = path.stat().st_size, []
    # Each first try of a part loses its answer; what begins and completes the upload carries no such header.
    with cutting_proxy(urlsplit(service.url).port or 0) as proxy, Service(f"http://127.0.0.1:{proxy.port}") as client:
        file = upload(client, path, progress=lambda *sent: told.append(sent), part_bytes=30_000)
    parts = -(-size // 30_000)
    assert proxy.cuts == parts > 2
    assert told == [(min(number * 30_000, size), size) for number in range(1, parts + 1)]
    assert (file["status"], file["bytes"], file["filename"]) == ("processed", size, "big.jsonl")
    assert b"".join(service.ctx.store.read(f"files/{file['id']}", 0, size)) == path.read_bytes()


def test_a_part_that_is_refused_is_not_sent_again(start_service: Callable[..., Any], tmp_path: Path) -> None:
    service = start_service(max_part_bytes=1000)
    path = tmp_path / "big.jsonl"
    path.write_bytes(service.rows(100))
    with Service(service.url) as client, pytest.raises(CliError, match="1000 bytes"):
        upload(client, path, part_bytes=2000)
