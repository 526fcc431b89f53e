"""`code`: programs against assertions and inputs, what cheats and hostile programs get, and limits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgpo.errors import SpecError
from bgpo.rewards import Grade, Grader, Sample, compile_grader
from bgpo.rewards.code import extract_program
from tests.running import wait_until

SPEC = {"type": "code", "name": "c"}


@pytest.fixture(autouse=True)
def consent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the wall where there is one, without it elsewhere: the guarantees against cheats do not depend on it."""
    monkeypatch.setenv("BGPO_ALLOW_UNSANDBOXED", "1")


@pytest.fixture(autouse=True)
def graders() -> Iterator[list[Grader]]:
    """The graders that a test has made, closed behind it."""
    MADE.clear()
    yield MADE
    for made in MADE:
        made.close()


MADE: list[Grader] = []


def grader(**fields: Any) -> Grader:
    MADE.append(compile_grader({**SPEC, **fields}))
    return MADE[-1]


def grade(program: str, *tests: Any, **fields: Any) -> Grade:
    return grader(**fields).grade(Sample(program), {"tests": list(tests)})


def passes(program: str, *tests: Any, **fields: Any) -> bool:
    result = grade(program, *tests, **fields)
    assert result.error is None, result.error
    return result.solved


@pytest.mark.parametrize("value", [None, "0", "yes"])
def test_refused_without_a_wall_and_without_consent(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgpo.sandbox.wall._found", "bubblewrap is not installed")  # as it was found to be
    if value is None:
        monkeypatch.delenv("BGPO_ALLOW_UNSANDBOXED")
    else:
        monkeypatch.setenv("BGPO_ALLOW_UNSANDBOXED", value)
    with pytest.raises(SpecError, match=r"bubblewrap is not installed.*BGPO_ALLOW_UNSANDBOXED=1"):
        grader()
    multi = {"type": "multi", "name": "m", "graders": {"c": SPEC}, "calculate_output": "c"}
    with pytest.raises(SpecError, match="no sandbox") as caught:
        compile_grader(multi)
    assert caught.value.param == "graders.c.type"


def test_consent_does_without_a_wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgpo.sandbox.wall._found", "bubblewrap is not installed")
    tests = ["assert f(1) == 1", {"input": "x", "output": ""}, {"pytest": "def test_f():\n    assert f(2) == 2"}]
    assert passes("def f(x):\n    return x", *tests)
    assert not passes("import os\nos._exit(0)", *tests)


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


SPY = """
import os, sys
def f(x):
    text = repr(sys.argv) + repr(dict(os.environ)) + repr(sorted(sys.modules))
    frame = sys._getframe()
    while frame:
        text += repr(frame.f_locals)[:10**5] + repr(frame.f_globals)[:10**5]
        frame = frame.f_back
    for folder, _, names in os.walk('.'):
        text += repr([(name, open(os.path.join(folder, name)).read()) for name in names])
    for name in ('cmdline', 'environ', 'maps'):
        try: text += open('/proc/self/' + name).read()
        except OSError: pass
    return text
"""


def test_the_program_cannot_see_what_is_expected() -> None:
    assert passes(SPY + "TELLTALE = 1", "assert 'TELLTALE' in f(1)")
    assert passes(SPY, "expected = 48211\nassert '48211' not in f(1)\nassert 'BGPO_ALLOW_UNSANDBOXED' not in f(1)")
    assert passes(SPY, {"pytest": "def test_spy():\n    expected = 48211\n    assert '48211' not in f(1)"})
    case = {"input": "x", "output": "48211"}
    assert grade(SPY + "print('4821' '1' in f(1), '4821' + '1' in f(1))", case).details == (
        "test 1: failed: wrote 'False False\\n', not '48211'",
    )


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
        ("import sys\ndef f(x):\n    [open('/dev/null') for _ in range(300)]", "Too many open files"),
    ],
)
def test_limits(program: str, message: str) -> None:
    result = grade(program, "assert f(1) == 2", timeout_seconds=1.0, memory_mb=256)
    assert result.error is None
    assert message in result.details[0]


def test_output_floods_end_at_the_limit() -> None:
    result = grade("while True: print('x' * 10**6)", {"input": "", "output": "x"}, timeout_seconds=5.0)
    assert result.error is None
    assert result.details == ("test 1: failed: wrote more than its limit",)


def test_endless_programs_are_not_run_for_every_test() -> None:
    result = grade("while True: pass", *["assert f()"] * 5, timeout_seconds=0.3)
    assert [line.partition("failed: ")[2] for line in result.details] == ["ran longer than 0.3 s"] * 2 + [
        "not run after 2 timeouts"
    ] * 3


def test_children_of_a_program_die_with_its_test() -> None:
    program = """
import ctypes, os
def f(x):
    told, tell = os.pipe()
    if os.fork() == 0:
        os.setsid()
        ctypes.CDLL(None).prctl(15, b'outlives48211', 0, 0, 0)  # PR_SET_NAME
        os.write(tell, b'!')
        while True: pass
    os.read(told, 1)
    return x
"""
    assert passes(program, "assert f(1) == 1")
    wait_until(lambda: "outlives48211" not in process_names(), seconds=30)


def process_names() -> set[str]:
    names = set()
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # it has ended
            names.add(comm.read_text().strip())
    return names


def test_a_program_that_breaks_its_sandbox_has_failed() -> None:
    program = "import os, signal\ndef f(x):\n    os.kill(os.getppid(), signal.SIGKILL)\n    os.kill(-1, signal.SIGKILL)"
    result = grade(program, *["assert f(1) is None"] * 3, {"input": "", "output": "x"})
    assert result.error is None
    assert result.details[0] == "test 1: passed"  # it answered before
    assert all("failed" in line for line in result.details[1:])


def test_a_test_that_catches_everything_still_runs_out_of_time() -> None:
    test = "try:\n    f(1)\nexcept BaseException:\n    pass"
    result = grade("def f(x):\n    while True: pass", test, "assert g(1) == 1", timeout_seconds=0.5)
    assert result.details[0] == "test 1: failed: ran longer than 0.5 s"


def test_every_test_has_a_fresh_program() -> None:
    program = "calls = []\ndef f(x):\n    calls.append(x)\n    return len(calls)"
    assert passes(program, *["assert f(1) == 1"] * 20)


PYTEST = """
import pytest
import solution
from solution import f

@pytest.fixture
def two():
    return 2

@pytest.mark.parametrize("x", [1, 2])
def test_same(x):
    assert f(x) == x

class TestMore:
    def test_fixture(self, two):
        assert solution.f(two) == 2

    def test_bare(self):
        assert g(f(1)) == 3

def test_raises():
    with pytest.raises(ValueError, match="negative"):
        f(-1)

@pytest.mark.skip
def test_skipped():
    assert False
"""
IDENTITY = "def f(x):\n    if x < 0: raise ValueError('negative')\n    return x\n"


def test_a_pytest_file_counts_each_of_its_tests() -> None:
    assert passes(IDENTITY + "g = lambda x: 3", {"pytest": PYTEST})
    result = grade(
        IDENTITY.replace("return x", "return 2") + "def g(x): return 4", {"pytest": PYTEST}, reward="fraction"
    )
    assert result.details == (
        "test 1 (test_same[1]): failed: AssertionError: assert 2 == 1",
        "test 1 (test_same[2]): passed",
        "test 1 (TestMore::test_fixture): passed",
        "test 1 (TestMore::test_bare): failed: AssertionError: assert 4 == 3",
        "test 1 (test_raises): passed",
    )
    assert result.score == result.metrics["tests_passed"] == 0.6


@pytest.mark.parametrize(
    "program",
    [
        "",
        "def f(x:\n",
        "f = 2",
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
        "def f(x):\n    raise SystemExit(0)",
        "def f(x):\n    raise AssertionError",
        "import sys, types\nsys.modules['pytest'] = types.ModuleType('pytest')\ndef f(x):\n    return 3",
        "import pytest\ndef f(x):\n    pytest.skip('no')",
        "import pytest\ndef f(x):\n    pytest.exit('no', 0)",
        "import builtins\nbuiltins.AssertionError = Exception\ndef f(x):\n    return 3",
    ],
)
def test_cheats_fail_a_pytest_file(program: str) -> None:
    for cheat in (program, "pytestmark = skip = None\n" + program):
        result = grade(cheat, {"pytest": PYTEST}, reward="fraction")
        assert result.error is None
        assert result.score == 0.0
    assert not passes(ALWAYS_EQUAL + "def f(x):\n    return E(3)", {"pytest": PYTEST})


def test_tests_of_a_pytest_file_that_finished_in_time_count() -> None:
    program = "def f(x):\n    while x == 2: pass\n    return x"
    test = "from solution import f\n" + "".join(f"def test_{x}():\n    assert f({x}) == {x}\n" for x in (1, 2, 3))
    result = grade(program, {"pytest": test}, "assert f(2) == 2", "assert f(1) == 1", timeout_seconds=2.0)
    assert result.details == (
        "test 1 (test_1): passed",
        "test 1 (test_2): failed: ran longer than 2 s",
        "test 1 (test_3): failed: not run",
        "test 2: failed: ran longer than 2 s",
        "test 3: failed: not run after 2 timeouts",
    )


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
        (["assert f(1) == 1"] * 9 + ["assert f("], "test 10: not Python"),
        (["assert f(1) == 1", "import os\nos._exit(0)"], "test 2: the test ends its process (status 0)"),
        ([{"pytest": ""}], "test 1 must be source"),
        ([{"pytest": "def test_f(:"}], "test 1: not Python"),
        ([{"pytest": "x = 1"}], "test 1: it has 0 test functions"),
        ([{"pytest": "import absent_module\ndef test_f(): pass"}], "test 1: ModuleNotFoundError"),
        ([{"pytest": "def test_f():\n    assert f(len) == 1"}], "cannot cross to the program"),
        ([{"pytest": "import pytest\ndef test_f(): pytest.skip()"}], "every test function is skipped"),
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
