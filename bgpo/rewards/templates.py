"""Templates of grader fields: `{{ item.a.b[0] }}` and `{{ sample.output_json.x }}` in plain text.

A small parser of its own, not Jinja: templates come from users, and a path look-up is all they may do. Syntax is
checked when a template is parsed; a path that the data does not have raises `UnresolvedVariable` when it is rendered.
Not covered: expressions, filters, escapes. `{{` always opens a variable; a lone `}}` is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

MAX_TEMPLATE_LENGTH = 65_536
MAX_PATH_STEPS = 32
SAMPLE_FIELDS = ("output_text", "output_json", "output_tools", "choices")
"""OpenAI's; what each is: `bgpo.rewards.Sample`."""

_VARIABLE = re.compile(r"\{\{([^{}]*)\}\}")
_STEP = re.compile(r"\.([\w-]+)|\[([0-9]{1,9})\]")
_ROOT = re.compile(r"[\w-]+")


class UnresolvedVariable(LookupError):
    """A template names something that the item or the sample does not have."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A path into `item` or `sample`: keys are strings, list indexes are integers."""

    root: str
    steps: tuple[str | int, ...]

    def __str__(self) -> str:
        return self.root + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.steps)

    def resolve(self, roots: Mapping[str, Mapping[str, Any]]) -> Any:
        """The value at this path. Raises UnresolvedVariable."""
        value: Any = roots[self.root]
        for step in self.steps:
            if isinstance(step, str):
                found = isinstance(value, Mapping) and step in value
            else:
                found = isinstance(value, Sequence) and not isinstance(value, str | bytes) and step < len(value)
            if not found:
                raise UnresolvedVariable(f"{{{{ {self} }}}} is not in the data: nothing at {step!r}")
            value = value[step]
        return value


@dataclass(frozen=True, slots=True)
class Template:
    """Parsed template: literal text and variables, in order."""

    parts: tuple[str | Variable, ...]

    def render(self, sample: Mapping[str, Any], item: Mapping[str, Any]) -> str:
        """The text with every variable replaced; values that are not strings become JSON. Raises UnresolvedVariable."""
        roots = {"sample": sample, "item": item}
        return "".join(part if isinstance(part, str) else _to_text(part.resolve(roots)) for part in self.parts)


@lru_cache(maxsize=1024)
def parse_template(text: str) -> Template:
    """Parse a template.

    Raises:
        ValueError: saying where the syntax is wrong.
    """
    if len(text) > MAX_TEMPLATE_LENGTH:
        raise ValueError(f"template has {len(text)} characters, more than {MAX_TEMPLATE_LENGTH}")
    parts: list[str | Variable] = []
    position = 0
    while (start := text.find("{{", position)) >= 0:
        match = _VARIABLE.match(text, start)
        if match is None:
            raise ValueError(f"template: '{{{{' at character {start} is not closed by '}}}}'")
        if start > position:
            parts.append(text[position:start])
        parts.append(_parse_variable(match[1].strip()))
        position = match.end()
    if position < len(text):
        parts.append(text[position:])
    return Template(tuple(parts))


def _parse_variable(path: str) -> Variable:
    root = _ROOT.match(path)
    if root is None or root[0] not in ("item", "sample"):
        raise ValueError(f"template variable '{path}' must start with 'item.' or 'sample.'")
    steps: list[str | int] = []
    position = root.end()
    while position < len(path):
        step = _STEP.match(path, position)
        if step is None:
            raise ValueError(f"template variable '{path}': expected '.name' or '[index]' at character {position}")
        steps.append(step[1] if step[1] is not None else int(step[2]))
        position = step.end()
    if not steps or len(steps) > MAX_PATH_STEPS:
        raise ValueError(f"template variable '{path}' must name a field, at most {MAX_PATH_STEPS} levels deep")
    if root[0] == "sample" and steps[0] not in SAMPLE_FIELDS:
        raise ValueError(f"template variable '{path}': sample has only {', '.join(SAMPLE_FIELDS)}")
    return Variable(root[0], tuple(steps))


def _to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
