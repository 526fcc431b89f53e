"""JSON Schemas that users write (draft 2020-12), checked once and applied within limits on work.

The validator is PyPI's `jsonschema`. A schema is a small program, so beside it: references stay inside of the schema
(the registry is empty and retrieves nothing), the regular expressions of `pattern` and `patternProperties` are those of
`patterns`, and every keyword that is applied counts, so that references which double at each level end. Refused are
`unevaluatedItems` and `unevaluatedProperties`, whose work cannot be counted, and other drafts. `format` is a note, as
the draft has it, and checks nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from bgpo.rewards.patterns import MATCH_SECONDS, Pattern, PatternTimeout
from bgpo.rewards.strict_json import MAX_DEPTH, check_depth

MAX_SCHEMA = 65_536
"""Characters of a schema as JSON."""
MAX_STEPS = 200_000
"""Keywords applied to one text, each counted with the size of its value and of what it says; a second or so."""
MAX_NESTING = 180
"""Keywords within each other while they are applied, each some frames of Python's stack, which must not end."""
DRAFT = "https://json-schema.org/draft/2020-12/schema"

_REFUSED = ("unevaluatedItems", "unevaluatedProperties", "$recursiveRef")
_REFERENCES = ("$ref", "$dynamicRef")
_Keyword = Callable[[Any, Any, Any, Any], Iterator[Any] | None]


class SchemaTooCostly(Exception):
    """A schema cannot be applied to a text within the limits."""


class _Work:
    """What one application of a schema may still do."""

    def __init__(self) -> None:
        self.steps = MAX_STEPS
        self.nesting = 0
        self.seconds = MATCH_SECONDS

    def found(self, pattern: Pattern, text: str) -> bool:
        """Whether a pattern is found in a text; all patterns together have the time of one."""
        begin = time.thread_time()
        try:
            return pattern.matches(text, seconds=self.seconds)
        except PatternTimeout:
            raise SchemaTooCostly(f"the schema's patterns took longer than {MATCH_SECONDS:g} s") from None
        finally:
            self.seconds = max(self.seconds - (time.thread_time() - begin), 0.001)

    def enter(self) -> None:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise SchemaTooCostly("the schema refers to itself without an end, or is too deep for this text")

    def count(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise SchemaTooCostly(f"the schema took more than {MAX_STEPS} steps")


_work: ContextVar[_Work] = ContextVar("work")


class Schema:
    """A compiled schema, safe to share between threads."""

    def __init__(self, source: Mapping[str, Any]) -> None:
        """Compile.

        Raises:
            ValueError: it is no schema, or one that is refused.
        """
        import jsonschema  # here, as in the functions below: importing bgpo.rewards stays fast
        import referencing

        self._patterns: dict[str, Pattern] = {}
        schema = _plain(source)
        for part in _objects(schema):
            self._check(part, root=part is schema)
        draft: Any = jsonschema.Draft202012Validator
        try:
            draft.check_schema(schema, format_checker=None)  # which would compile patterns without limits
        except jsonschema.SchemaError as error:
            place = ".".join(str(step) for step in error.absolute_path)
            raise ValueError(f"not a JSON Schema{f', at {place}' if place else ''}: {error.message[:200]}") from error
        registry: Any = referencing.Registry()
        self._validator = _validator_class(self._patterns)(schema, registry=registry)
        self._resolve(schema)

    def accepts(self, value: Any) -> bool:
        """Whether a value is valid. Raises SchemaTooCostly."""
        token = _work.set(_Work())
        try:
            return next(iter(self._validator.iter_errors(value)), None) is None
        finally:
            _work.reset(token)

    def _check(self, part: Mapping[str, Any], *, root: bool) -> None:
        for keyword in _REFUSED:
            if keyword in part:
                raise ValueError(f"{keyword} is not supported: close objects by additionalProperties, arrays by items")
        for keyword in _REFERENCES:
            target = part.get(keyword)
            if isinstance(target, str) and not target.startswith("#"):
                raise ValueError(f"{keyword} {target[:80]!r} leaves the schema: references begin with #")
        if isinstance(part.get("$id"), str) and not root:
            raise ValueError("$id is allowed at the root of the schema only")
        if isinstance(named := part.get("$schema"), str) and named.rstrip("#") != DRAFT:
            raise ValueError(f"$schema {named[:80]!r} is not supported, only draft 2020-12")
        texts = [part["pattern"]] if isinstance(part.get("pattern"), str) else []
        if isinstance(by_pattern := part.get("patternProperties"), dict):
            texts += by_pattern
        for text in texts:
            try:
                self._patterns[text] = Pattern(text)
            except ValueError as error:
                raise ValueError(f"pattern {text[:80]!r}: {error}") from error

    def _resolve(self, schema: Any) -> None:
        """Raise ValueError for a reference to nothing."""
        import referencing.exceptions

        for part in _objects(schema):
            for keyword in _REFERENCES:
                target = part.get(keyword)
                if isinstance(target, str):
                    try:
                        self._validator._resolver.lookup(target)
                    except referencing.exceptions.Unresolvable:
                        raise ValueError(f"{keyword} {target[:80]!r} is not in the schema") from None


def _plain(source: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a schema, within the limits on size and depth."""
    check_depth(dict(source), MAX_DEPTH)
    text = json.dumps(source, allow_nan=False)
    if len(text) > MAX_SCHEMA:
        raise ValueError(f"the schema has {len(text)} characters as JSON, more than {MAX_SCHEMA}")
    copy: dict[str, Any] = json.loads(text)
    return copy


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a schema. Those that are data, as in `enum`, count as schemas: strict on the safe side."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(child)


def _validator_class(patterns: Mapping[str, Pattern]) -> Any:
    """The draft's validator with counted keywords and bounded regular expressions."""
    import jsonschema

    def found(pattern: str, text: str) -> bool:
        work = _work.get()
        work.count(1 + len(text) // 64)
        return work.found(patterns[pattern], text)

    def pattern(validator: Any, value: str, instance: Any, _: Any) -> Iterator[Any]:
        if validator.is_type(instance, "string") and not found(value, instance):
            yield jsonschema.ValidationError(f"does not match {value!r}")

    def pattern_properties(validator: Any, value: Mapping[str, Any], instance: Any, _: Any) -> Iterator[Any]:
        if validator.is_type(instance, "object"):
            for text, schema in value.items():
                for key, child in instance.items():
                    if found(text, key):
                        yield from validator.descend(child, schema, path=key, schema_path=text)

    def additional_properties(validator: Any, value: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
        if validator.is_type(instance, "object"):
            named, by_pattern = schema.get("properties", {}), schema.get("patternProperties", {})
            for key, child in instance.items():
                if key not in named and not any(found(text, key) for text in by_pattern):
                    yield from validator.descend(child, value, path=key)

    def unique_items(validator: Any, value: bool, instance: Any, _: Any) -> Iterator[Any]:
        unique = value and validator.is_type(instance, "array")
        if unique and len({_identity(child) for child in instance}) < len(instance):
            yield jsonschema.ValidationError("has items twice")

    own: dict[str, _Keyword] = {
        "pattern": pattern,
        "patternProperties": pattern_properties,
        "additionalProperties": additional_properties,
        "uniqueItems": unique_items,
    }
    keywords: dict[str, Any] = {**jsonschema.Draft202012Validator.VALIDATORS, **own}
    counted = {name: _counted(function) for name, function in keywords.items() if name not in _REFUSED}
    extend: Any = jsonschema.validators.extend
    return extend(jsonschema.Draft202012Validator, counted)


def _counted(function: _Keyword) -> _Keyword:
    def keyword(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        work = _work.get()
        size = len(value) if isinstance(value, dict | list) else 0
        work.count(1 + size)
        work.enter()
        try:
            for error in function(validator, value, instance, schema) or ():
                work.count(1 + len(error.message) // 64)  # messages show the whole instance
                yield error
        finally:
            work.nesting -= 1

    return keyword


def _identity(value: Any) -> Any:
    """Something hashable, the same for values that are equal in JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return dict, frozenset((key, _identity(child)) for key, child in value.items())
    if isinstance(value, list):
        return list, tuple(_identity(child) for child in value)
    return isinstance(value, bool), value
