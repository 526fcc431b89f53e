"""Dockerfile and docker-compose.yml against reality, without a container engine.

Commands must be modules that exist, variables must be fields of the settings, targets must be stages. What only an
engine can show (that the images build and run) is listed as not run in docs/deployment.md.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jobs.settings import Settings

ROOT = Path(__file__).parents[1]
SECRETS = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "BGPO_API_KEY")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/"} | dict.fromkeys(SECRETS, "0123abcd")

Compose = dict[str, Any]


@pytest.fixture(scope="module")
def compose() -> Compose:
    content: Compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return content


def commands() -> list[list[str]]:
    """Every python command of the compose file and the Dockerfile."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    of_compose = [service["command"] for service in services if "command" in service]
    of_docker = [json.loads(line) for line in re.findall(r"CMD (\[.*\])", (ROOT / "Dockerfile").read_text())]
    return [command for command in (*of_compose, *of_docker) if command[:2] == ["python", "-m"]]


def compose_program() -> list[str]:
    """`docker compose`, or the program that came before the plugin; both read the file without an engine."""
    if shutil.which("docker"):
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if plugin.returncode == 0:
            return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    pytest.skip("neither `docker compose` nor docker-compose is installed; CI installs the latter")


def compose_config(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The compose file as compose understands it."""
    command = [*compose_program(), "--profile", "gpu", "config"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_services_are_the_ones_promised(compose: Compose) -> None:
    own = {"migrate", "api", "worker", "worker-gpu", "generator", "generator-gpu"}
    assert set(compose["services"]) == {"postgres", "redis"} | own
    assert all(compose["services"][name]["profiles"] == ["gpu"] for name in ("worker-gpu", "generator-gpu"))


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_is_a_module_that_exists(command: list[str]) -> None:
    module = util.find_spec(command[2])
    assert module is not None
    assert module.submodule_search_locations is None or util.find_spec(f"{command[2]}.__main__") is not None


def test_every_variable_is_a_setting(compose: Compose) -> None:
    named = set(re.findall(r"\b(BGPO_[A-Z_]+)[=:]", (ROOT / "Dockerfile").read_text()))
    for service in compose["services"].values():
        named |= {name for name in service.get("environment", {}) if name.startswith("BGPO_")}
    settings = {f"BGPO_{name.upper()}" for name in Settings.model_fields}
    assert named <= settings
    assert {"BGPO_DATABASE_URL", "BGPO_API_KEY", "BGPO_HOME"} <= named


def test_no_secret_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    for secret in SECRETS:
        uses = re.findall(rf"(?<!\$)\$\{{{secret}([^}}]*)\}}", text)
        assert uses, f"{secret} is not used"
        assert all(use.startswith(":?") for use in uses), f"{secret} must be required everywhere"


def test_redis_keeps_every_message(compose: Compose) -> None:
    script = compose["services"]["redis"]["command"][-1]
    assert "maxmemory-policy noeviction" in script
    assert "appendfsync everysec" in script


def test_parts_start_after_what_they_need(compose: Compose) -> None:
    services = compose["services"]
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("api", "worker", "worker-gpu", "generator", "generator-gpu"):
        assert services[name]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"},
            "redis": {"condition": "service_healthy"},
        }


def test_every_lasting_service_has_a_health_check(compose: Compose) -> None:
    stages = dockerfile_stages()
    for name, service in compose["services"].items():
        if name == "migrate":
            continue
        assert "healthcheck" in service or "HEALTHCHECK" in stages[service["build"]["target"]], name


def test_the_worker_has_time_to_checkpoint(compose: Compose) -> None:
    period = compose["services"]["worker"]["stop_grace_period"]
    assert period.endswith("m")
    # After the grace period come SIGTERM, 30 s and SIGKILL.
    assert int(period[:-1]) * 60 >= Settings.model_fields["stop_grace_s"].default + 30


def dockerfile_stages() -> dict[str, str]:
    """Text of each build stage by its name."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_images_are_stages_that_run_as_a_user(compose: Compose) -> None:
    stages = dockerfile_stages()
    targets = {service["build"]["target"] for service in compose["services"].values() if "build" in service}
    assert targets == {"api", "worker"}
    assert re.search(r"^USER 10001:10001$", stages["runtime"], flags=re.MULTILINE)
    for target in targets:
        assert re.search(rf"^FROM runtime AS {target}$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
        assert "USER" not in stages[target]


def test_what_grades_has_the_sandbox(compose: Compose) -> None:
    """The API runs graders too (`graders/run`, the first rows of a new job)."""
    assert "bubblewrap" in dockerfile_stages()["runtime"]
    for name, service in compose["services"].items():
        if "build" in service and name != "migrate":
            assert "systempaths=unconfined" in service["security_opt"], name
            assert service["cap_drop"] == ["ALL"]
    assert compose["services"]["migrate"]["security_opt"] == ["no-new-privileges:true"]


def test_hadolint_accepts_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_compose_reads_the_file_and_the_settings_accept_it() -> None:
    result = compose_config(ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    services = yaml.safe_load(result.stdout)["services"]
    for name in ("migrate", "api", "worker", "worker-gpu", "generator", "generator-gpu"):
        given = {key.removeprefix("BGPO_").lower(): value for key, value in services[name]["environment"].items()}
        settings = Settings(**given)
        assert settings.database_url.startswith("postgresql+psycopg://bgpo:0123abcd@postgres:5432/")
        assert settings.redis_url.get_secret_value() == "redis://:0123abcd@redis:6379/0"
        assert (settings.api_key is not None) == (name == "api")


@pytest.mark.parametrize("secret", SECRETS)
def test_compose_names_the_secret_that_is_missing(secret: str) -> None:
    result = compose_config({key: value for key, value in ENVIRONMENT.items() if key != secret})
    assert result.returncode != 0
    assert f"set {secret} in .env" in result.stderr


def api_requirements() -> list[Requirement]:
    """The dependency group that the API image installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [Requirement(line) for line in project["dependency-groups"]["api"]]


def test_the_api_image_installs_dependencies_of_the_project_only() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"]["s3"])]
    assert {(r.name, *r.extras) for r in api_requirements()} <= {(r.name, *r.extras) for r in declared}


def installed_by(requirements: list[Requirement]) -> set[str]:
    """Names of the distributions that `requirements` bring in, themselves included."""
    found: set[str] = set()
    pending = [(requirement, extra) for requirement in requirements for extra in ("", *requirement.extras)]
    seen: set[tuple[str, str]] = set()
    while pending:
        requirement, extra = pending.pop()
        name = canonicalize_name(requirement.name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found.add(name)
        for line in metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                pending += [(needed, inner) for inner in ("", *needed.extras)]
    return found


IMPORT_WITHOUT = """
import importlib, json, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"{name} is not in the API image", name=name)

absent = set(json.loads(sys.argv[1]))
sys.meta_path.insert(0, Absent())
for name in ("api", "jobs", "migrations"):
    for module in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{name}."):
        if not module.name.endswith(".__main__") and not module.name.startswith("migrations.env"):
            importlib.import_module(module.name)
"""


def absent_modules() -> Iterator[str]:
    present = installed_by(api_requirements()) | {"bgpo"}
    for module, distributions in metadata.packages_distributions().items():
        if not {canonicalize_name(name) for name in distributions} & present:
            yield module


def test_the_api_and_the_migrations_import_with_what_their_image_installs() -> None:
    absent = sorted(absent_modules())
    assert {"torch", "transformers", "typer"} <= set(absent)
    command = [sys.executable, "-c", IMPORT_WITHOUT, json.dumps(absent)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
