"""Writes docs/api-reference.md from the OpenAPI description, and the description itself to tests/api/openapi.json.

`make docs`. Tests fail while the page is out of date, and when the description is not the one in the file: so nobody
changes the API without seeing it in a diff.

The page holds what the description holds, operation by operation, then every schema by name. It does not explain how to
use the API; quickstart.md does.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from api.main import create_app
from jobs.settings import Settings

PAGE = Path(__file__).with_name("api-reference.md")
SNAPSHOT = Path(__file__).parents[1] / "tests" / "api" / "openapi.json"
METHODS = ("get", "post", "put", "patch", "delete")
EXAMPLE_LINES = 40
Schema = Mapping[str, Any]

HEAD = """# API reference

Generated from the OpenAPI description by `make docs`; the service has the same at `/openapi.json`. Every path takes
`Authorization: Bearer KEY`, except the health checks. Every error, whatever its status, is an
[ErrorEnvelope](#errorenvelope); what each status means stands under [Errors](#errors).
"""


def description() -> dict[str, Any]:
    """The OpenAPI description of the application with default settings."""
    with tempfile.TemporaryDirectory() as home:
        return create_app(Settings(home=Path(home))).openapi()


def snapshot(openapi: Mapping[str, Any]) -> str:
    """The description as it is kept; its version is that of the package and changes with it."""
    kept = {**openapi, "info": {**openapi["info"], "version": "any"}}
    return json.dumps(kept, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def page(openapi: Mapping[str, Any]) -> str:
    """The whole page as Markdown."""
    lines = [HEAD]
    for path, item in openapi["paths"].items():
        for method in METHODS:
            if method in item:
                lines += operation(f"{method.upper()} {path}", item[method])
    lines += [*errors(openapi["components"]["responses"]), "## Schemas", ""]
    for name, schema in sorted(openapi["components"]["schemas"].items()):
        lines += [f"### {name}", "", *paragraph(schema.get("description")), *fields(schema)]
    return "\n".join(lines).rstrip() + "\n"


def operation(title: str, content: Schema) -> Iterator[str]:
    """One method of one path."""
    yield from (f"## `{title}`", "", *paragraph(content.get("description") or content.get("summary")))
    if parameters := content.get("parameters"):
        yield from ("| parameter | in | type | |", "|---|---|---|---|")
        for parameter in parameters:
            note = note_of(parameter["schema"] | parameter, required=parameter.get("required", False))
            yield f"| `{parameter['name']}` | {parameter['in']} | {type_of(parameter['schema'])} | {note} |"
        yield ""
    if body := content.get("requestBody"):
        yield from ("Body: " + " or ".join(media(body["content"])), "")
        for form in body["content"].values():
            if "properties" in form.get("schema", {}):
                yield from fields(form["schema"])
    failures = []
    for status, response in content["responses"].items():
        if "$ref" in response:
            failures.append(status)
        else:
            answers = list(media(response.get("content", {}))) or [response["description"]]
            yield from (f"{status}: {', '.join(answers)}", "")
    if failures:
        yield from (f"Errors: {', '.join(failures)}.", "")
    for name, body in (("Request", content.get("requestBody")), ("Answer", content["responses"]["200"])):
        shown = (body or {}).get("content", {}).get("application/json", {}).get("example")
        if shown is not None:
            yield from (f"{name}, for example:", "", *code(shown), "")


def errors(responses: Mapping[str, Schema]) -> Iterator[str]:
    """What each status means, with an example."""
    yield from ("## Errors", "", "| status | | for example |", "|---|---|---|")
    for name, response in responses.items():
        error = response["content"]["application/json"]["example"]["error"]
        text = cell(response["description"])
        yield f"| {name.removeprefix('Error')} | {text} | `{error['code']}`: {cell(error['message'])} |"
    yield from (
        "",
        "An answer in full:",
        "",
        *code(responses["Error400"]["content"]["application/json"]["example"]),
        "",
    )


def code(value: Any) -> Iterator[str]:
    """JSON as a block; long examples lose their end here, not in the description."""
    lines = json.dumps(value, indent=2, ensure_ascii=False).splitlines()
    yield "```json"
    yield from lines[:EXAMPLE_LINES]
    if len(lines) > EXAMPLE_LINES:
        yield "..."
    yield "```"


def media(content: Mapping[str, Schema]) -> Iterator[str]:
    """Media types with their schemas."""
    for name, body in content.items():
        schema = body.get("schema") or body.get("itemSchema")
        yield f"`{name}`" + (f" {type_of(schema)}" if schema else "")


def fields(schema: Schema) -> Iterator[str]:
    """A table of an object's fields, or the type of anything else."""
    if not (properties := schema.get("properties")):
        yield from (type_of(schema), "")
        return
    required = schema.get("required", ())
    yield from ("| field | type | |", "|---|---|---|")
    for name, field in properties.items():
        yield f"| `{name}` | {type_of(field)} | {note_of(field, required=name in required)} |"
    yield ""


def type_of(schema: Schema) -> str:
    """The type in a few words; schemas of their own are links."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(type_of(option) for option in schema[key]))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"array of {type_of(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {type_of(schema['additionalProperties'])}"
    return str(kind)


def note_of(field: Schema, *, required: bool) -> str:
    """Whether it must be given, its default, bounds and meaning."""
    notes = ["required"] if required else []
    if field.get("default") is not None:
        notes.append(f"default `{json.dumps(field['default'])}`")
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    for source in (field, *field.get("anyOf", ())):
        notes += [f"{sign} {number(source[key])}" for key, sign in bounds.items() if key in source]
    if text := field.get("description"):
        notes.append(cell(text))
    return "; ".join(notes)


def number(value: float) -> str:
    """A bound; pydantic writes whole ones as 1.0."""
    return str(int(value)) if value == int(value) else str(value)


def paragraph(text: str | None) -> list[str]:
    """`text` as a paragraph of its own."""
    return [text.strip(), ""] if text else []


def cell(text: str) -> str:
    """`text` inside a table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    found = description()
    PAGE.write_text(page(found))
    SNAPSHOT.write_text(snapshot(found))
