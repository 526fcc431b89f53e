"""`code`: programs against assertions and inputs, what cheats and hostile programs get, and limits."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Any

import pytest

from bgpo.errors import SpecError
from bgpo.rewards import Grade, Grader, Sample, compile_grader
from bgpo.rewards.code import extract_program

SPEC = {"type": "code", "name": "c"}


@pytest.fixture(autouse=True)
def consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGPO_ALLOW_UNSANDBOXED", "1")


def grader(**fields: Any) -> Grader:
    return compile_grader({**SPEC, **fields})


def grade(program: str, *tests: Any, **fields: Any) -> Grade:
    return grader(**fields).grade(Sample(program), {"tests": list(tests)})


def passes(program: str, *tests: Any, **fields: Any) -> bool:
    result = grade(program, *tests, **fields)
    assert result.error is None, result.error
    return result.solved


@pytest.mark.parametrize("value", [None, "0", "yes"])
def test_refused_without_consent(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("BGPO_ALLOW_UNSANDBOXED")
    else:
        monkeypatch.setenv("BGPO_ALLOW_UNSANDBOXED", value)
    with pytest.raises(SpecError, match="BGPO_ALLOW_UNSANDBOXED=1"):
        grader()
    multi = {"type": "multi", "name": "m", "graders": {"c": SPEC}, "calculate_output": "c"}
    with pytest.raises(SpecError, match="no sandbox"):
        compile_grader(multi)


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("first\n```python\nx = 1\n```\nbetter:\n```\nx = 2\n```\nas ran:\n```text\n3\n```", "x = 2\n"),
        ("<reasoning>\n```\nno\n```\n</reasoning>\n<answer>\n```py\nx = 1\n```\n</answer>", "x = 1\n"),
        ("```python\nx = 1", "x = 1"),
        ("x = 1", "x = 1"),
        ("<answer>x = 1</answer>", "x = 1"),
        ("```python\n```", None),
        ("  ", None),
        ("x" * 70_000, None),
    ],
)
def test_the_program_is_the_last_block(text: str, program: str | None) -> None:
    assert extract_program(text) == program


def test_scores_and_results_of_each_test() -> None:
    program = "def f(x):\n    return abs(x)"
    tests = ["assert f(1) == 1", "assert f(-1) == -1, 'sign'", "assert f(0) == 0", "assert f('') == 0"]
    strict, shared = grade(program, *tests), grade(program, *tests, reward="fraction")
    assert (strict.score, shared.score) == (0.0, 0.5)
    assert strict.metrics == shared.metrics == {"solved": 0.0, "tests_passed": 0.5}
    assert strict.details == (
        "test 1: passed",
        "test 2: failed: AssertionError: sign",
        "test 3: passed",
        "test 4: failed: TypeError: bad operand type for abs(): 'str'",
    )


STATEFUL = """
class P:
    def __init__(self, a): self.a = a
    def inc(self): self.a += 1
def f(p): return p.a
"""
EXPECTS_AN_ERROR = """
try:
    f('no')
    raise AssertionError('must raise')
except ValueError as error:
    assert str(error) == 'no'
"""


def test_ordinary_programs_pass() -> None:
    helper = "def helper(x):\n    return x + 1\n\n# it must not import os; exec, eval and assert False are fine here\n"
    assert passes(helper + "def f(x):\n    return helper(x)", "assert f(1) == 2")
    assert passes("def f(n):\n    yield from range(n)", "assert list(f(3)) == [0, 1, 2]")
    assert passes(
        "def f():\n    return {(1, 2): {3}, 'b': b'x', 'c': 1j}", "assert f() == {(1, 2): {3}, 'b': b'x', 'c': 1j}"
    )
    assert passes("def f():\n    return 7 ** 9999", "assert f() == 7 ** 9999")
    assert passes("def f(xs):\n    xs.sort()", "xs = [2, 1]\nassert f(xs) is None\nassert xs == [1, 2]")
    assert passes(
        "from collections import Counter, namedtuple\ndef f():\n    return Counter('aab')",
        "assert f() == {'a': 2, 'b': 1}",
    )
    assert passes(STATEFUL, "p = P(3)\np.inc()\nassert p.a == 4\nassert f(p) == 4")
    assert passes("def f(x):\n    raise ValueError(x)", EXPECTS_AN_ERROR)
    assert passes("import math\ndef f(x):\n    return math.sqrt(x)", "import math\nassert math.isclose(f(2), 2 ** 0.5)")


def test_a_tested_function_may_have_the_name_of_a_builtin() -> None:
    program = "def sum(a, b):\n    return a + b"
    assert passes(program, "assert sum(1, 2) == 3", entry_point="sum")
    assert not passes("def abs(x):\n    return 0\ndef f():\n    return 9", "assert abs(f() - 3) < 1e-6")


def test_prefix_comes_first() -> None:
    prefix = "from typing import List\ndef helper(x):\n    return -x\ndef f(x: List[int]):\n    '''Doc.'''"
    result = grader(prefix="{{ item.prefix }}").grade(
        Sample("def f(x: List[int]):\n    return helper(x[0])"), {"tests": ["assert f([1]) == -1"], "prefix": prefix}
    )
    assert result.solved


ALWAYS_EQUAL = """
class E(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 1
    def __bool__(self): return True
    def __sub__(self, other): return 0
"""
ALWAYS_EQUAL_CLASS = """
class Meta(type):
    def __eq__(cls, other): return True
    __hash__ = type.__hash__
class f(metaclass=Meta):
    def __init__(self, x): pass
    def __eq__(self, other): return True
"""
FORGE = """
import os
def f(x):
    for fd in range(3, 32):
        for text in (b'{"passed": true, "message": ""}', b'{"passed": true, "message": ""}\\n'):
            try: os.write(fd, text)
            except OSError: pass
    print('{"passed": true, "message": ""}', flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(0)",
        "def f(x):\n    raise SystemExit(0)",
        "import sys\ndef f(x):\n    sys.exit()",
        "import os\ndef f(x):\n    os._exit(0)",
        "import os\nos.kill(os.getpid(), 9)",
        "def f(x):\n    raise KeyboardInterrupt",
        "def f(x):\n    raise AssertionError",
        ALWAYS_EQUAL + "def f(x):\n    return E(3)",
        ALWAYS_EQUAL.replace("(int)", "") + "def f(x):\n    return E()",
        ALWAYS_EQUAL.replace("(int)", "(list)") + "def f(x):\n    return E()",
        ALWAYS_EQUAL_CLASS,
        FORGE,
        "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.abs = lambda x: 0\ndef f(x):\n    return 3",
        "import sys, types\nsys.modules['json'] = types.ModuleType('json')\ndef f(x):\n    return 3",
        "__builtins__.exec = lambda *a: None\ndef f(x):\n    return 3",
        "def f(x):\n    return NotImplemented",
        "def f(x):\n    return float('nan')",
        "import threading\ndef f(x):\n    return threading.Lock()",
        "def f(x):\n    return f",
        "f = 2",
        "def g(x):\n    return 2",
        "def f(x:\n",
        "\ud800",
        "",
    ],
)
def test_cheats_fail_every_kind_of_test(program: str) -> None:
    tests = ["assert f(1) == 2 or not f(1) != 2 or f(1) in [2]", "assert abs(f(1) - 2) < 1e-9"]
    result = grade(program, *tests, reward="fraction")
    assert result.error is None
    assert result.score == 0.0


def test_the_program_cannot_see_what_is_expected(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    spy = f"""
import os, sys
def f(x):
    text = repr(sys.argv) + repr(dict(os.environ)) + repr(os.listdir('.')) + repr(sorted(sys.modules))
    for name in os.listdir('.'):
        text += open(name).read()
    open({str(seen)!r}, 'w').write(text)
    return x
"""
    assert not passes(spy, "assert f(1) == 48211")
    assert seen.exists()
    assert "48211" not in seen.read_text()
    assert "BGPO_ALLOW_UNSANDBOXED" not in seen.read_text().replace(repr(os.environ), "")


def test_programs_with_input_and_output() -> None:
    double = "import sys\nfor line in sys.stdin:\n    print(int(line) * 2, end=' \\n\\n')"
    assert passes(double, {"input": "1\n2\n", "output": "2\n\n4"})
    assert not passes(double, {"input": "1\n2\n", "output": "2 4"})
    assert passes("import sys\nprint(sys.stdin.read().upper())\nsys.exit(0)", {"input": "a", "output": "A"})
    failed = grade("print('A')\nraise ValueError('late')", {"input": "", "output": "A"})
    assert failed.details == ("test 1: failed: exit status 1: ValueError: late",)
    assert not passes("print('A')\nraise SystemExit(3)", {"input": "", "output": "A"})
    assert passes("if __name__ == '__main__':\n    print(input())", {"input": "x y\n", "output": "x y\n"})


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("def f(x):\n    while True: pass", "ran longer than 1 s"),
        ("while True: pass", "ran longer than 1 s"),
        ("import time\ndef f(x):\n    time.sleep(60)", "ran longer than 1 s"),
        ("def f(x):\n    return [0] * 10 ** 9", "MemoryError"),
        ("def f(x):\n    return 'x' * 5 * 2 ** 20", "ValueError"),
        ("def f(x):\n    open('big', 'wb').write(b'0' * 2 ** 26)", "File too large"),
        ("def f(x):\n    return f(x)", "RecursionError"),
        ("x = []\nfor i in range(100000): x = [x]\ndef f(_):\n    return x", "Error"),
        ("import sys\ndef f(x):\n    [open('/dev/null') for _ in range(100)]", "Too many open files"),
    ],
)
def test_limits(program: str, message: str) -> None:
    result = grade(program, "assert f(1) == 2", timeout_seconds=1.0, memory_mb=256)
    assert result.error is None
    assert message in result.details[0]


def test_output_floods_end_at_the_file_limit() -> None:
    result = grade("while True: print('x' * 10**6)", {"input": "", "output": "x"}, timeout_seconds=5.0)
    assert result.error is None
    assert "File too large" in result.details[0]


def test_endless_programs_are_not_run_for_every_test() -> None:
    result = grade("while True: pass", *["assert f()"] * 5, timeout_seconds=0.3)
    assert [line.partition("failed: ")[2] for line in result.details] == ["ran longer than 0.3 s"] * 2 + [
        "not run after 2 timeouts"
    ] * 3


def test_children_of_a_program_die_with_its_test(tmp_path: Path) -> None:
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    program = f"""
import os
def f(x):
    if os.fork() == 0:
        os.open({str(fifo)!r}, os.O_WRONLY)
        while True: pass
    return x
"""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    if os.geteuid() == 0:  # the kernel limits the processes of everyone but root
        assert passes(program, "assert f(1) == 1")
    else:
        assert "BlockingIOError" in grade(program, "assert f(1) == 1").details[0]
    with open(reader, "rb", 0) as file:
        poller = select.poll()
        poller.register(file, select.POLLHUP)
        while file.read(1) is None:  # the kernel is still busy killing the one that has the writing end
            assert poller.poll(30_000), "the child has outlived its test"


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ([], "1 to 200"),
        (["assert f(1) == 1"] * 201, "1 to 200"),
        ([3], "test 1 must be source"),
        ([""], "test 1 must be source"),
        ([{"input": "x"}], "test 1 must be source"),
        ({"a": 1}, "1 to 200"),
        (["assert f(1) == 1", "assert f("], "test 2: not Python"),
        (["assert f(lambda x: x) == 1"], "test 1: a test passes a value of type function"),
    ],
)
def test_a_test_that_cannot_run_is_an_error_and_no_zero(tests: Any, message: str) -> None:
    result = grader().grade(Sample("def f(x):\n    return x"), {"tests": tests})
    assert result.error is not None
    assert message in result.error.message


def test_a_machine_without_processes_is_an_error_and_no_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    result = grade("def f(x):\n    return x", "assert f(1) == 1")
    assert result.error is not None
    assert result.error.kind == "python_grader_server_error"


def test_many_samples_at_once_keep_their_order() -> None:
    samples = [Sample(f"def f():\n    return {n}") for n in range(12)]
    items = [{"tests": [f"assert f() == {n - n % 2}"]} for n in range(12)]
    grades = grader().grade_all(samples, items)
    assert [result.solved for result in grades] == [n % 2 == 0 for n in range(12)]
