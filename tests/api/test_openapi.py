"""The OpenAPI description: complete, true to its schemas, and unchanged unless somebody means it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from api.examples import ERRORS, EXAMPLES, LINKS
from api.main import create_app
from api.openapi import METHODS
from docs import generate_api
from jobs.settings import Settings


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    return create_app(Settings()).openapi()


def operations(openapi: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in openapi["paths"].items():
        for method in METHODS:
            if method in item:
                yield method, path, item[method]


def test_is_the_one_that_is_kept(openapi: dict[str, Any]) -> None:
    same = generate_api.SNAPSHOT.read_text() == generate_api.snapshot(openapi)
    assert same, "the API has changed; if that is meant: `make docs`, and read the diff of tests/api/openapi.json"


def test_every_operation_says_what_it_does_and_how_it_can_fail(openapi: dict[str, Any]) -> None:
    tags = {tag["name"] for tag in openapi["tags"] if tag["description"]}
    for method, path, operation in operations(openapi):
        assert operation["description"], (method, path)
        assert set(operation["tags"]) <= tags
        statuses = set(operation["responses"])
        assert not statuses & {"default", "422"}
        if path.startswith("/v1/"):
            assert operation["security"]
            assert {"200", "400", "401", "403", "429", "500", "503"} <= statuses
            assert ("404" in statuses) >= ("{" in path), path
            assert ({"408", "413", "415"} <= statuses) == ("requestBody" in operation), path


def test_every_error_is_shared_and_has_an_example(openapi: dict[str, Any]) -> None:
    shared = openapi["components"]["responses"]
    assert set(shared) == {f"Error{status}" for status in ERRORS}
    for response in shared.values():
        media = response["content"]["application/json"]
        assert not list(validator(openapi, media["schema"]).iter_errors(media["example"]))
    for method, path, operation in operations(openapi):
        for status, response in operation["responses"].items():
            if int(status) >= 400 and path.startswith("/v1/"):
                assert response == {"$ref": f"#/components/responses/Error{status}"}, (method, path)


def test_examples_are_of_operations_and_keep_to_their_schemas(openapi: dict[str, Any]) -> None:
    found = {f"{method.upper()} {path}": operation for method, path, operation in operations(openapi)}
    assert set(EXAMPLES) <= set(found)
    for name, operation in found.items():
        bodies = {"request": operation.get("requestBody"), "response": operation["responses"]["200"]}
        wanted = {kind for kind, body in bodies.items() if body and "application/json" in body.get("content", {})}
        assert set(EXAMPLES.get(name, {})) == wanted, f"give {name} its examples in api/examples.json"
    for name, example in EXAMPLES.items():
        bodies = {"request": found[name].get("requestBody"), "response": found[name]["responses"]["200"]}
        for kind, value in example.items():
            schema = bodies[kind]["content"]["application/json"]["schema"]  # type: ignore[index]
            assert not list(validator(openapi, schema).iter_errors(value)), (name, kind)


def test_links_lead_to_parameters_that_exist(openapi: dict[str, Any]) -> None:
    by_id = {operation["operationId"]: operation for _, _, operation in operations(openapi)}
    for (method, path), links in LINKS.items():
        shown = openapi["paths"][path][method]["responses"]["200"]["links"]
        assert set(shown) == set(links)
        for link in shown.values():
            names = {parameter["name"] for parameter in by_id[link["operationId"]]["parameters"]}
            assert set(link["parameters"]) <= names


def test_auto_is_a_value_of_hyperparameters(openapi: dict[str, Any]) -> None:
    fields = openapi["components"]["schemas"]["ReinforcementHyperparameters"]["properties"]
    assert {"group_size", "mc_samples", "learning_rate", "n_epochs", "diffusion_steps"} <= set(fields)
    assert {"const": "auto", "type": "string"} in fields["group_size"]["anyOf"]


def test_the_pages_that_run_scripts_are_off(service: Any, tmp_path: Path) -> None:
    with service.http() as http:
        assert [http.get(path).status_code for path in ("/docs", "/redoc", "/openapi.json")] == [404, 404, 200]


def validator(openapi: dict[str, Any], schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": openapi["components"]})
