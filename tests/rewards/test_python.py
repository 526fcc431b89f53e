"""`python`: what a tenant's source may return, how it fails, that items do not meet, and the sandbox's end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from bgpo.errors import SpecError
from bgpo.rewards import Grade, Grader, GraderSettings, Resources, Sample, compile_grader
from bgpo.rewards.python import PythonGrader
from bgpo.rewards.settings import SandboxSettings
from bgpo.sandbox.processes import descendants
from tests.running import wait_until

MADE: list[Grader] = []


@pytest.fixture(autouse=True)
def consent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Behind the wall where there is one, without it elsewhere. What a test has made is closed behind it."""
    monkeypatch.setenv("BGPO_ALLOW_UNSANDBOXED", "1")
    yield
    while MADE:
        MADE.pop().close()


def grader(source: str, resources: Resources | None = None, **fields: Any) -> Grader:
    MADE.append(compile_grader({"type": "python", "source": source, **fields}, resources))
    return MADE[-1]


def returning(expression: str, **fields: Any) -> Grader:
    return grader(f"import math\ndef grade(sample, item):\n    return {expression}\n", **fields)


def grade(source: str, text: str = "answer", item: dict[str, Any] | None = None, **fields: Any) -> Grade:
    return grader(source, **fields).grade(Sample(text), item or {})


def error(result: Grade) -> tuple[str, str]:
    assert result.error is not None
    assert (result.score, result.solved) == (0.0, False)
    return result.error.kind, result.error.message


def test_it_sees_the_sample_and_the_item() -> None:
    source = """
def grade(sample, item):
    assert sample["choices"][0]["message"] == {"role": "assistant", "content": sample["output_text"]}
    return (sample["output_text"] == item["nested"]["answer"][1]) + item["weight"]
"""
    result = grade(source, "ä\ud800", {"nested": {"answer": [None, "ä\ud800"]}, "weight": 0.25})
    assert (result.score, result.solved, result.error) == (1.25, True, None)


@pytest.mark.parametrize(
    ("expression", "score"),
    [
        ("0.5", 0.5),
        ("True", 1.0),
        ("3", 3.0),
        ("-0.25", -0.25),
        ("type('F', (float,), {'__float__': lambda self: 9.0})(0.5)", 0.5),
        ("type('I', (int,), {'__float__': lambda self: 9.0})(2)", 2.0),
        ("__import__('numpy').float32(0.5)", 0.5),
        ("__import__('numpy').int64(2)", 2.0),
        ("__import__('numpy').bool_(True)", 1.0),
        ("__import__('numpy').mean([0, 1])", 0.5),
    ],
)
def test_real_numbers_are_scores(expression: str, score: float) -> None:
    result = returning(expression).grade(Sample(""), {})
    assert (result.error, result.score) == (None, score)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("float('nan')", "grade returned nan: return a finite float"),
        ("-math.inf", "grade returned -inf: return a finite float"),
        ("__import__('numpy').float64('inf')", "grade returned inf: return a finite float"),
        ("10 ** 400", "grade returned an integer beyond the range of floats"),
        ("None", "grade returned None: return a float"),
        ("'1.0'", "grade returned a value of type str: return a float"),
        ("1j", "grade returned a value of type complex: return a float"),
        ("[1.0]", "grade returned a value of type list: return a float"),
        ("type('Odd', (), {'__float__': lambda self: 1.0})()", "grade returned a value of type Odd: return a float"),
        ("__import__('numpy').ones(1)", "grade returned a value of type ndarray: return a float"),
    ],
)
def test_anything_else_is_an_error_and_no_zero(expression: str, message: str) -> None:
    assert error(returning(expression).grade(Sample(""), {})) == ("python_grader_runtime_error", message)


def test_an_exception_has_the_traceback_of_the_source_alone() -> None:
    source = "import json\n\ndef inner(text):\n    return json.loads(text)\n"
    source += "\ndef grade(sample, item):\n    return inner('{')\n"
    result = grade(source)
    assert error(result)[0] == "python_grader_runtime_error"
    assert error(result)[1].startswith("JSONDecodeError: ")
    assert result.error is not None
    details = str(result.error.details)
    assert "File \"<grader>\", line 7, in grade\n    return inner('{')" in details
    assert 'File "<grader>", line 4, in inner\n    return json.loads(text)' in details
    assert "json/decoder" not in details
    assert "python_grade" not in details
    assert details.rstrip().endswith(error(result)[1])


def test_details_are_cut() -> None:
    result = grade("def grade(sample, item):\n    raise ValueError('x' * 10**6)")
    assert result.error is not None
    assert len(str(result.error.details)) <= 4096


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt: "),
        ("import os; os._exit(0)", "the grader ended its process (status 0)"),
        ("import os; os.kill(os.getpid(), 9)", "the grader ended its process (status -9)"),
        ("return grade(sample, item)", "RecursionError: maximum recursion depth exceeded"),
        ("while True: pass", "the grader ran longer than 0.5 s"),
        ("import time; time.sleep(60)", "the grader ran longer than 0.5 s"),
        ("return len([0] * 10**9)", "MemoryError: "),
        ("while True: print('x' * 10**5)", "the grader printed more than 1048576 bytes"),
        ("return item['absent']", "KeyError: 'absent'"),
    ],
)
def test_every_way_to_fail_is_named(body: str, message: str) -> None:
    result = grade(f"def grade(sample, item):\n    {body}", timeout_seconds=0.5, memory_mb=256)
    assert error(result) == ("python_grader_runtime_error", message)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def grade(sample, item)\n    return 1", "line 1: expected ':'"),
        ("x = 1\ny = (", "line 2: '(' was never closed"),
        ("x = 1", "it defines no function grade"),
        ("grade = 1.0", "it defines no function grade"),
        ("import math\n\nmath.absent", "line 3: AttributeError: module 'math' has no attribute 'absent'"),
        ("import absent_module", "line 1: ModuleNotFoundError: No module named 'absent_module'"),
        ("raise SystemExit(0)", "line 1: SystemExit: 0"),
        ("import os\nos._exit(0)", "cannot be tried: the grader ended its process"),
        ("while True: pass", "cannot be tried: the grader ran longer than 1 s"),
        ("def grade(sample, item): return 1\0", "source code string cannot contain null bytes"),
    ],
)
def test_a_source_that_cannot_grade_is_refused(source: str, message: str) -> None:
    with pytest.raises(SpecError, match="source: ") as caught:
        grader(source, timeout_seconds=1.0)
    assert caught.value.param == "source"
    assert message in caught.value.message


def test_refused_without_a_wall_and_without_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgpo.sandbox.wall._found", "bubblewrap is not installed")  # as it was found to be
    assert returning("1.0").grade(Sample(""), {}).score == 1.0
    monkeypatch.delenv("BGPO_ALLOW_UNSANDBOXED")
    with pytest.raises(SpecError, match=r"bubblewrap is not installed.*BGPO_ALLOW_UNSANDBOXED=1") as caught:
        returning("1.0")
    assert caught.value.param == "type"


@pytest.mark.parametrize(
    "module", ["numpy", "scipy.stats", "sympy", "rapidfuzz", "math_verify", "pydantic", "pandas", "statistics"]
)
def test_the_documented_packages_can_be_imported(module: str) -> None:
    source = f"import {module}\nimport sys\ndef grade(sample, item):\n    return {module!r} in sys.modules"
    assert grade(source).score == 1.0


def test_imports_are_loaded_before_the_items() -> None:
    source = """
import sys
LOADED = "scipy.special" in sys.modules
def grade(sample, item):
    from scipy import special
    return LOADED
"""
    assert grade(source).score == 1.0


def test_items_do_not_meet() -> None:
    source = """
import builtins, json, math, os, threading
count = [0]
def grade(sample, item):
    count[0] += 1
    seen = count[0] != 1 or hasattr(builtins, "left") or os.path.exists("left") or json.loads is math.sqrt
    builtins.left, json.loads = 1, math.sqrt
    open("left", "w").close()
    if os.fork() == 0:
        os.setsid()
        while True:
            open("left", "w").close()
    return not seen
"""
    grades = grader(source).grade_all([Sample("")] * 12, [{}] * 12)
    assert [(each.score, each.error) for each in grades] == [(1.0, None)] * 12


def test_scores_are_clipped_to_the_range() -> None:
    made = grader("def grade(sample, item):\n    return item['x']", range=[-1.0, 2.0])
    grades = made.grade_all([Sample("")] * 4, [{"x": x} for x in (-5, 0.5, 1.5, 7)])
    assert [each.score for each in grades] == [-1.0, 0.5, 1.5, 2.0]
    assert [each.solved for each in grades] == [False, False, False, True]


def test_many_samples_at_once_keep_their_order() -> None:
    made = grader("import numpy\ndef grade(sample, item):\n    return numpy.float64(sample['output_text']) + item['x']")
    grades = made.grade_all([Sample(str(n)) for n in range(40)], [{"x": n / 2} for n in range(40)])
    assert [each.score for each in grades] == [1.5 * n for n in range(40)]


def test_the_operators_limits_hold() -> None:
    settings = GraderSettings(sandbox=SandboxSettings(max_seconds=0.5, max_memory_mb=128))
    loop = grader("def grade(sample, item):\n    while item: pass\n    return len([0] * 10**8)", Resources(settings))
    assert "ran longer than 0.5 s" in error(loop.grade(Sample(""), {"x": 1}))[1]
    assert "MemoryError" in error(loop.grade(Sample(""), {}))[1]


def test_a_sandbox_that_dies_is_replaced() -> None:
    before = set(descendants(os.getpid()))  # servers of other tests among them
    made = returning("1.0")
    assert isinstance(made, PythonGrader)
    assert made.grade(Sample(""), {}).score == 1.0
    sandbox = made._sandbox.get()
    for pid in set(descendants(os.getpid())) - before:
        with suppress(ProcessLookupError):  # one takes others along
            os.kill(pid, signal.SIGKILL)
    assert made.grade(Sample(""), {}).score == 1.0
    assert not sandbox.alive


def test_a_machine_without_processes_is_an_error_and_no_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    made = grader("import statistics\ndef grade(sample, item):\n    return 1.0")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    kind, message = error(made.grade(Sample(""), {}))
    assert kind == "python_grader_server_error"
    assert "does not start" in message


def test_nothing_is_left_after_the_end() -> None:
    before = set(descendants(os.getpid()))
    made = returning("1.0")
    made.grade(Sample(""), {})
    assert set(descendants(os.getpid())) - before
    made.close()
    wait_until(lambda: set(descendants(os.getpid())) <= before, seconds=30)


def test_a_large_source_is_fine() -> None:
    source = "def grade(sample, item):\n    return 1.0\n"
    filling = "#" + "x" * (256_000 - len(source) - 1)
    assert grade(source + filling).score == 1.0
    with pytest.raises(SpecError, match="256000"):
        grader(source + filling + "x")
