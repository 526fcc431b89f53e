"""Makes `bgpo` importable on a machine without pydantic, which the GPU machine of `gpu_check` is.

`install()` puts a module named `pydantic` in place that has the few names `bgpo` uses and none of the checks: it builds
the models from trusted dicts. Where pydantic is installed nothing happens. For measurements only: a specification
that a user wrote must go through the real one.

    python -m benchmarks.gpu.standin MODULE [ARGUMENT ...]      runs a module with the stand-in in place

As a pytest plugin (`-p benchmarks.gpu.standin`) it installs itself when it is imported.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import runpy
import sys
import types
import typing
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from typing import Any, Self, get_args, get_origin

_MISSING = object()


class ValidationError(ValueError):
    """A required field is missing or a field is unknown; the stand-in checks nothing else."""

    def errors(self, **_: Any) -> list[dict[str, Any]]:
        """In pydantic's form, without a location."""
        return [{"loc": (), "msg": str(self), "type": "value_error"}]


class FieldInfo:
    """A field's default; its constraints are ignored."""

    def __init__(self, default: Any = _MISSING, *, default_factory: Callable[[], Any] | None = None, **_: Any) -> None:
        self.default = None if default is ... else default
        self.default_factory = default_factory

    def is_required(self) -> bool:
        """Whether a value must be given."""
        return self.default is _MISSING and self.default_factory is None

    def value(self) -> Any:
        """The default."""
        return self.default_factory() if self.default_factory else self.default


class BaseModel:
    """Fields from annotations, nested models from dicts, `model_validator(mode="after")`."""

    model_fields: typing.ClassVar[dict[str, FieldInfo]] = {}

    def __init_subclass__(cls, **_: Any) -> None:
        own = {}
        for name in inspect.get_annotations(cls):
            default = cls.__dict__.get(name, _MISSING)
            own[name] = default if isinstance(default, FieldInfo) else FieldInfo(default)
            if name in cls.__dict__:
                delattr(cls, name)
        cls.model_fields = {**cls.model_fields, **own}

    def __init__(self, **values: Any) -> None:
        cls = type(self)
        strict = getattr(cls, "model_config", {}).get("extra") == "forbid"
        unknown = sorted(values.keys() - cls.model_fields.keys()) if strict else []
        missing = [name for name, info in cls.model_fields.items() if info.is_required() and name not in values]
        if unknown or missing:
            raise ValidationError(f"{cls.__name__}: unknown {unknown}, missing {missing}")
        hints = typing.get_type_hints(cls, include_extras=True)
        for name, info in cls.model_fields.items():
            self.__dict__[name] = build(hints[name], values[name]) if name in values else info.value()
        for base in cls.__mro__:
            for member in vars(base).values():
                if getattr(member, "_runs_after", False):
                    member(self)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(json.dumps(self.model_dump(), sort_keys=True))

    @classmethod
    def model_validate(cls, values: Mapping[str, Any]) -> Self:
        """From a dict."""
        return cls(**values)

    @classmethod
    def model_validate_json(cls, text: str | bytes) -> Self:
        """From JSON."""
        return cls(**json.loads(text))

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self:
        """A copy with some fields replaced."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, **(update or {}))
        return copy

    def model_dump(self, **_: Any) -> dict[str, Any]:
        """As dicts."""
        return {name: _plain(value) for name, value in self.__dict__.items()}


class TypeAdapter:
    """Builds values of a type."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def __class_getitem__(cls, _: Any) -> type[TypeAdapter]:
        return cls

    def validate_python(self, value: Any) -> Any:
        """From Python values."""
        return build(self._kind, value)

    def validate_json(self, text: str | bytes) -> Any:
        """From JSON."""
        return build(self._kind, json.loads(text))


def build(kind: Any, value: Any) -> Any:
    """`value` as the annotated type asks: dicts become models, lists and dicts are walked, the rest stays."""
    if get_origin(kind) is typing.Annotated:
        return build(get_args(kind)[0], value)
    if isinstance(value, list) and get_origin(kind) is list:
        return [build(get_args(kind)[0], item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if get_origin(kind) is dict:
        return {key: build(get_args(kind)[1], item) for key, item in value.items()}
    models = list(_models(kind))
    tagged = [model for model in models if _tag(model) is not None and _tag(model) == value.get("type", _MISSING)]
    return (tagged or models)[0](**value) if models else value


def _models(kind: Any) -> typing.Iterator[type[BaseModel]]:
    """The models that an annotation allows."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    elif get_origin(kind) in (typing.Annotated, typing.Union, types.UnionType):
        for part in get_args(kind):
            yield from _models(part)


def _tag(model: type[BaseModel]) -> str | None:
    """The value that a model's `type` field must have."""
    values = get_args(typing.get_type_hints(model).get("type"))
    return values[0] if values else None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _model_validator(*, mode: str) -> Callable[[Any], Any]:
    def mark(function: Any) -> Any:
        function._runs_after = mode == "after"
        return function

    return mark


def _field_validator(*_: str, **__: Any) -> Callable[[Any], Any]:
    return lambda function: function


def install() -> bool:
    """Put the stand-in in place unless pydantic is there; whether it is now in use."""
    present = sys.modules.get("pydantic")
    if present is not None or importlib.util.find_spec("pydantic") is not None:
        return hasattr(present, "_stands_in")
    module: Any = types.ModuleType("pydantic", __doc__)
    module.__spec__ = ModuleSpec("pydantic", None)  # libraries ask for it to see what is installed
    module._stands_in = True
    module.BaseModel, module.Field, module.TypeAdapter = BaseModel, FieldInfo, TypeAdapter
    module.ValidationError, module.ConfigDict = ValidationError, dict
    module.model_validator, module.field_validator = _model_validator, _field_validator
    module.AfterValidator = lambda function: function
    module.StringConstraints = lambda **_: None
    module.ValidationInfo = object
    sys.modules["pydantic"] = module
    return True


if __name__ == "__main__":
    from benchmarks.gpu import standin  # by its own name: the module that is run becomes `__main__`

    standin.install()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    install()
