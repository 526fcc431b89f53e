"""What all request models share: strictness, "auto", text a database can hold, and errors told apart by code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from bgpo.rewards.spec import wire_path

_CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "unsupported_parameter": "unsupported_parameter",
    "unsupported_destination": "unsupported_destination",
    "json_invalid": "invalid_json",
}
# Parameters of the contract that later versions bring; a typo gets another message than these.
_PLANNED = {
    "base_model",
    "dry_run",
    "response_format",
}
_INSTEAD = {
    "base_model": ": name it as model",
    "dry_run": ": send the body without it to /v1/fine_tuning/jobs/validate, or to .../estimate",
}
# What others call a parameter of ours.
_OUR_NAMES = {
    "kl_beta": "kl_coefficient",
    "clip_eps": "clip_epsilon",
    "grad_accum": "micro_batch",
}


class Wire(BaseModel):
    """Base of request models: unknown keys and silent conversions are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StorableWire(Wire):
    """A whole body: no string in it may hold what a text column cannot."""

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        for text in _strings(value):
            if "\x00" in text or any("\ud800" <= char <= "\udfff" for char in text):
                raise PydanticCustomError("invalid_text", "strings must not contain NUL or lone surrogates")
        return value


class Auto:
    """Annotation: the field also takes "auto", which means the same as leaving it out."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._replace, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        inner = handler(schema)
        return {"anyOf": [{"const": "auto", "type": "string"}, *inner.get("anyOf", [inner])]}

    @staticmethod
    def _replace(value: Any) -> Any:
        return None if value == "auto" else value


def refuse(value: Any) -> None:
    """Validator of a parameter of OpenAI's that has no meaning here: only its default passes."""
    if value not in (None, "auto", "default"):
        raise PydanticCustomError("unsupported_parameter", "is not supported")


def explain(error: Mapping[str, Any], body: Any) -> tuple[str, str | None, str]:
    """Message, dotted path in the body, and code of one of the errors of a ValidationError."""
    path = wire_path(error["loc"], body)
    code = _CODES.get(error["type"], "invalid_value")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        code = "unsupported_parameter" if name in _PLANNED else code
        message = "is not supported yet" if name in _PLANNED else "is not a parameter"
        message += _INSTEAD.get(name, "")
        message += f"; see {_OUR_NAMES[name]}" if name in _OUR_NAMES else ""
    elif error["type"] == "missing":
        message = "is required"
    elif error["type"].startswith("union_tag"):
        path = f"{path}.type".lstrip(".")
    return (f"{path}: {message}" if path else message), path or None, code


def _strings(value: Any) -> list[str]:
    found: list[str] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            waiting += item
    return found
