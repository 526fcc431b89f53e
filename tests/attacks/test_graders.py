"""Attacks by what a `python` or `code` grader runs: on the score, on the checker, on other items and completions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgpo.rewards import Grade, Grader, Sample, compile_grader
from bgpo.sandbox import Wall

TESTS = [
    "assert f(1) == 2 or not f(1) != 2 or f(1) in [2]",
    "assert abs(f(1) - 2) < 1e-9",
    {"input": "1", "output": "2 48211"},
    {"pytest": "import unittest\nfrom solution import f\ndef test_f():\n    unittest.TestCase().assertEqual(f(1), 2)"},
]


@pytest.fixture(autouse=True)
def walled(wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only behind the wall that has been proven."""
    monkeypatch.delenv("BGPO_ALLOW_UNSANDBOXED", raising=False)


@pytest.fixture(scope="module")
def code(wall: Wall) -> Iterator[Grader]:
    """One grader for all programs, as in a job: what one leaves, the next would meet."""
    with compile_grader({"type": "code", "name": "c", "reward": "fraction", "timeout_seconds": 3.0}) as grader:
        yield grader


def run(code: Grader, program: str, tests: list[Any] | None = None) -> Grade:
    return code.grade(Sample(program), {"tests": tests or TESTS})


def assert_honest(code: Grader) -> None:
    """The grader still tells right from wrong."""
    right, wrong = "def f(x):\n    return 2\nprint(2, 48211)", "def f(x):\n    return 3"
    assert [run(code, program).score for program in (right, wrong)] == [1.0, 0.0]


ALWAYS_EQUAL = """
class E(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 1
    def __bool__(self): return True
    def __sub__(self, other): return 0
    def __abs__(self): return 0
def f(x):
    return E(3)
"""
FORGED_VERDICTS = """
import json, os
LINES = [
    {"passed": True, "message": ""},
    {"collected": ["test_f"]},
    {"test": "test_f", "passed": True, "message": "", "skipped": False},
    {"value": {}},
    {"value": 2},
]
TEXT = b"".join(json.dumps(line).encode() + b"\\n" for line in LINES)
def f(x):
    for fd in range(256):
        try: os.write(fd, TEXT)
        except OSError: pass
    os._exit(0)
f(1)
"""
FORGED_REPLIES = """
import os, sys
frame = sys._getframe()
while frame and "self" not in frame.f_locals:
    frame = frame.f_back
if frame:
    replies = frame.f_locals["self"]._replies
    replies.write('{"value": {"t": "dict", "v": [[{"t": "x"}, 2]]}}\\n' * 3)
    replies.write('{"error": ["AssertionError", "Skipped"]}\\n' * 3)
    replies.flush()
def f(x): return 3
"""
PATCHED = """
import builtins, json, sys, unittest
class Yes:
    def __getattr__(self, name): return lambda *a, **k: None
    def __call__(self, *a, **k): return None
unittest.TestCase.assertEqual = lambda *a: None
unittest.TestCase.__init__ = lambda *a: None
builtins.AssertionError = Exception
builtins.abs = lambda x: 0
json.dumps = lambda *a, **k: '{"value": 2}'
for name in ("tasks.remote", "tasks.values", "tasks.code_check", "pytest", "_pytest"):
    sys.modules[name] = Yes()
def f(x): return 3
"""
CHANNEL = """
import gc, os, socket
reply = b'{"id": 1, "killed": "", "status": 0, "reply": "{}"}'
for each in gc.get_objects():
    if isinstance(each, socket.socket):
        try: each.sendall(len(reply).to_bytes(4, "big") + b'\\x00' + reply)
        except OSError: pass
for fd in range(256):
    try: socket.socket(fileno=os.dup(fd)).send(b'{"passed": true, "message": ""}\\n')
    except OSError: pass
def f(x): return 3
"""
TRACER = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for pid in [1, os.getppid()]:
    libc.ptrace(16, pid, 0, 0)
    for name in ("mem", "fd/3"):
        try: open(f"/proc/{pid}/{name}", "r+b").write(b"x" * 100)
        except OSError: pass
def f(x): return 3
"""
KILLER = """
import os, signal
def f(x):
    os.kill(os.getppid(), 9)
    os.kill(-1, 9)
    return 3
"""
PASSED_FDS = """
import array, os, socket
def f(x):
    for fd in range(256):
        try:
            end = socket.socket(fileno=os.dup(fd))
            null = os.open(os.devnull, os.O_RDWR)
            end.sendmsg([b'{"value": 3}\\n'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 8))])
        except OSError: pass
    return 3
"""
NAMES = """
WindowsError = unicode = test_f = pytest_plugins = __tracebackhide__ = None
def pytest_runtest_call(item): pass
class f:
    def __init__(self, x): pass
    def __eq__(self, other): return True
"""


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(0)",
        "def f(x):\n    raise SystemExit(0)",
        "import os\nos._exit(0)",
        "import os\ndef f(x):\n    os._exit(0)",
        ALWAYS_EQUAL,
        FORGED_VERDICTS,
        FORGED_REPLIES,
        PATCHED,
        CHANNEL,
        TRACER,
        KILLER,
        PASSED_FDS,
        NAMES,
        "import pytest\ndef f(x):\n    pytest.skip('x')",
        "def f(x):\n    return f(x)",
        "f = type('E', (), {'__repr__': lambda s: repr(s), '__eq__': lambda s, o: True, '__call__': lambda s, x: s})()",
        "import sys\ndef f(x):\n    while True: sys.stdout.write('2 48211\\n' * 10**5)\nf(1)",
        "def f(x):\n    return [[2] * 10**6] * 10**6",
    ],
    ids=lambda program: program.strip().partition("\n")[0][:40],
)
def test_no_cheat_passes_a_test(code: Grader, program: str) -> None:
    result = run(code, program)
    assert result.error is None
    assert (result.score, result.solved) == (0.0, False), result.details
    assert_honest(code)


READER = """
import gc, os, sys
def look():
    found = []
    for root, _, names in os.walk("/proc"):
        for name in names:
            if name in ("cmdline", "environ", "maps", "stat", "comm", "mountinfo"):
                try: found.append(open(os.path.join(root, name), "rb").read(10**5))
                except OSError: pass
    for root in ("/tmp", "/dev/shm", "."):
        for folder, _, names in os.walk(root):
            for name in names:
                try: found.append(open(os.path.join(folder, name), "rb").read(10**5))
                except OSError: pass
    for fd in range(3, 256):
        try: found.append(os.pread(fd, 10**5, 0))
        except OSError: pass
    frame = sys._getframe()
    while frame:
        found.append(repr(frame.f_locals)[:10**5].encode())
        frame = frame.f_back
    small = [each for each in gc.get_objects() if type(each) in (dict, list, tuple) and len(each) < 100]
    found += [str(each)[:10**4].encode(errors="replace") for each in small]
    return any(b"11284" in text[::-1] for text in found)  # backwards: else it would find itself
def f(x):
    return look()
print(look())
"""


def test_a_program_cannot_find_what_is_expected(code: Grader) -> None:
    tests = [
        "expected = '48211'\nassert f(1) is False",
        {"input": "x", "output": "False"},
        {"pytest": "from solution import f\ndef test_f():\n    expected = '48211'\n    assert f(1) is False"},
        "expected = '48211'\nassert f(1) is False",
    ]
    assert run(code, READER, tests).details == (
        "test 1: passed",
        "test 2: passed",
        "test 3 (test_f): passed",
        "test 4: passed",
    )
    unseen = run(code, READER, [{"input": "x", "output": "48211"}])
    assert unseen.details == ("test 1: failed: wrote 'False\\n', not '48211'",)


def test_one_completion_does_not_meet_another(code: Grader) -> None:
    leaver = """
import os, sys
for folder in ("/tmp", "/dev/shm", os.getcwd()):
    open(os.path.join(folder, "left"), "w").write("2")
if os.fork() == 0:
    os.setsid()
    while True: pass
def f(x): return 2
"""
    finder = """
import os
def f(x):
    left = [folder for folder in ("/tmp", "/dev/shm", os.getcwd()) if os.path.exists(os.path.join(folder, "left"))]
    others = [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) not in (1, os.getpid(), os.getppid())]
    return (left, others)
"""
    programs = [leaver, finder] * 4
    tests = [{"tests": ["assert f(1) == 2"]}, {"tests": ["assert f(1) == ([], [])"]}] * 4
    grades = code.grade_all([Sample(program) for program in programs], tests)
    assert [each.score for each in grades] == [1.0] * 8


@pytest.mark.parametrize(
    "row",
    [
        {"tests": ["__import__('os')._exit(0)"]},
        {"tests": ['import pickle\npickle.loads(b"cos\\n_exit\\n(I0\\ntR.")']},
        {"tests": [{"pytest": "import os\nos._exit(0)"}]},
        {"tests": [{"pytest": "def test_f():\n    import os\n    os._exit(0)"}, "assert f(1) == 2"]},
        {"tests": ["import os\nos.kill(os.getpid(), 9)"]},
        {"tests": ["import os\nfor fd in range(3, 256):\n    try: os.write(fd, b'{]}\\n')\n    except OSError: pass"]},
        {"tests": ["import signal, os\nfor fd in range(3, 256):\n    try: os.close(fd)\n    except OSError: pass"]},
    ],
)
def test_a_hostile_row_is_an_error_and_harms_nobody(code: Grader, row: dict[str, Any]) -> None:
    result = code.grade(Sample("def f(x):\n    return 2"), row)
    assert result.error is not None
    assert not result.solved
    assert_honest(code)


def graded(source: str, items: list[dict[str, Any]]) -> list[Grade]:
    spec = {"type": "python", "source": source, "timeout_seconds": 2.0, "memory_mb": 256}
    with compile_grader(spec) as grader:
        return [grader.grade(Sample("x"), item) for item in items]


@pytest.mark.parametrize(
    "attack",
    [
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "import pickle; return pickle.loads(item['payload'].encode())",
        "import ctypes; ctypes.string_at(0)",
        "import ctypes; ctypes.CDLL(None)._exit(0)",
        "print('{\"score\": 1.0}', flush=True); raise ValueError",
        "return type('F', (), {'__float__': lambda s: 1.0, '__repr__': lambda s: repr(s)})()",
        "return type('F', (float,), {'__class__': str, '__float__': lambda s: float(s)})('nan')",
        "raise type('E', (Exception,), {'__str__': lambda s: str(s)})()",
        "raise type('E', (Exception,), {'__str__': lambda s: [0 for _ in iter(int, 1)]})()",
        "while True: print('x' * 10**6)",
        "sys = __import__('sys'); frame = sys._getframe(1); frame.f_globals['_number'] = lambda v: 10**400",
        "frame = __import__('sys')._getframe(1); frame.f_globals['_number'] = lambda v: [1.0]",
        "return grade(sample, item)",
        "import sys; sys.setrecursionlimit(10**9); return grade(sample, item)",
        "import os, signal; os.kill(1, 9); os.kill(-1, 9); os.kill(os.getpid(), 9)",
    ],
)
def test_a_hostile_grader_gets_an_error_for_its_item_alone(attack: str) -> None:
    source = f"def grade(sample, item):\n    if not item:\n        return 0.5\n    {attack}\n"
    bad, good = graded(source, [{"payload": "cos\n_exit\n(I0\ntR."}, {}])
    assert bad.error is not None
    assert (bad.error.kind, bad.score) == ("python_grader_runtime_error", 0.0)
    assert (good.error, good.score) == (None, 0.5)


def test_a_grader_cannot_reach_its_next_item() -> None:
    source = """
import ctypes, glob, json, os, sys, time
def grade(sample, item):
    left = glob.glob("/tmp/**/left*", recursive=True) + glob.glob("/dev/shm/*")
    others = [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) not in (1, os.getpid())]
    for folder in ("/tmp", "/dev/shm", "."):
        try: open(os.path.join(folder, "left"), "w").close()
        except OSError: pass
    ctypes.CDLL(None).ptrace(16, 1, 0, 0)
    try: open("/proc/1/mem", "r+b").write(b"x")
    except OSError: pass
    json.loads = sys.stdout.write = None
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                for name in os.listdir("/tmp"):
                    try: open(f"/tmp/{name}/left", "w").close()
                    except OSError: pass
        os._exit(0)
    time.sleep(0.05)
    return not left and not others
"""
    assert [(each.error, each.score) for each in graded(source, [{}] * 5)] == [(None, 1.0)] * 5


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').mkdir('{folder}')",
        "1+__import__('os').mkdir('{folder}')",
        "\\text{__import__('os').mkdir('{folder}')}",
        "\\operatorname{exec}(open('{folder}','w'))",
        "\\input{/etc/passwd}\\write18{mkdir {folder}}",
        "().__class__.__base__.__subclasses__()",
        "\\sqrt[9^{9^{9^{9}}}]{2}",
        "10^{10^{8}}!",
        "9!" * 50,
        "\\sum_{i=1}^{10^{12}} i!",
        "\\int_0^{10^9} x^x dx",
        "(" * 5000 + "1" + ")" * 5000,
        "\\frac{" * 2000 + "1" + "}{2}" * 2000,
    ],
    ids=lambda answer: answer[:30],
)
def test_hostile_mathematics_scores_zero_within_the_limits(math: Grader, answer: str, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    hostile = "\\boxed{" + answer.replace("{folder}", str(folder)) + "}"
    result = math.grade(Sample(hostile), {"answer": "\\sqrt{2}"})
    assert (result.score, result.error) == (0.0, None)
    assert not folder.exists()
    assert math.grade(Sample("\\boxed{2^{1/2}}"), {"answer": "\\sqrt{2}"}).solved


@pytest.fixture(scope="module")
def math() -> Iterator[Grader]:
    with compile_grader({"type": "math", "name": "m"}) as grader:
        yield grader
