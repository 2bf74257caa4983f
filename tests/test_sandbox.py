"""Generated programs: a verdict that cannot be had cheaply, and nothing reaches out of the sandbox."""

import contextlib
import os
import shutil
import socket
import sys
import time
from pathlib import Path

import pytest

from igsp.errors import UsageError
from igsp.scoring import sandbox
from igsp.scoring.sandbox import Outcome, run_programs

PASSING = "def add(a, b):\n    return a + b\n\n\nassert add(1, 2) == 3\n"
FAILING = "def add(a, b):\n    return a - b\n\n\nassert add(1, 2) == 3, 'one and two'\n"
CHEAT_FREE = "\nassert False, 'the tests ran'\n"


@pytest.fixture(params=list(sandbox.TOOLS), autouse=True)
def backend(request, monkeypatch):
    """Every test on every kind of isolation that this machine has."""
    if problem := sandbox._problem(request.param):
        pytest.skip(f"{request.param}: {problem}")
    monkeypatch.setattr(sandbox, "TOOLS", {request.param: sandbox.TOOLS[request.param]})
    return request.param


def run(program, **options):
    return run_programs([program], progress=False, **options)[0]


def left_over(*marks):
    """Command lines of running processes that hold one of the marks."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            commands.append(path.read_text(errors="replace"))
    return [command for command in commands if any(mark in command for mark in marks)]


def test_right_programs_pass_wrong_ones_fail_in_the_order_given(backend):
    outcomes = run_programs([PASSING, FAILING, PASSING, "x ="], workers=3, progress=False)
    assert [outcome.passed for outcome in outcomes] == [True, False, True, False]
    assert outcomes[0] == Outcome(True, "") and outcomes[1].reason == "AssertionError: one and two"
    assert "SyntaxError" in outcomes[3].reason and sandbox.available() == backend
    assert run_programs([], progress=False) == []


def test_the_program_is_main_with_the_standard_library():
    assert run(
        "import dataclasses, json, math, pickle\n"
        "@dataclasses.dataclass\nclass P:\n    x: int\n"
        "assert pickle.loads(pickle.dumps(P(1))) == P(1) and __name__ == '__main__'\n"
        "open('note.txt', 'w').write('scratch')\nassert open('note.txt').read() == 'scratch'"
    ).passed


@pytest.mark.parametrize(
    "cheat",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "print('passed'); print('started'); import os; os._exit(0)",
        "import os\nos.write = os.pread = os._exit = lambda *a: b'passed'\nimport sys\nsys.exit = print",
        "import builtins\nbuiltins.AssertionError = builtins.BaseException = ()",
        "import sys, types\nsys.modules['__main__'] = types.ModuleType('__main__')\nsys.excepthook = print",
        "import os\nfor d in range(3, 64):\n    try: os.write(d, b'passed')\n    except OSError: pass\nos._exit(0)",
        "import os\nif os.fork(): os._exit(0)",
    ],
)
def test_a_program_that_skips_or_patches_its_tests_fails(cheat):
    assert not run(cheat + CHEAT_FREE).passed


def test_the_token_is_in_no_frame_no_object_and_no_environment(monkeypatch):
    token = "0123456789abcdef" * 4
    monkeypatch.setattr(sandbox.secrets, "token_hex", lambda n: token)
    seek = (
        "import gc, os, sys\nseen = [os.environ, sys.argv, sys.orig_argv, gc.get_objects()]\nframe = sys._getframe()\n"
        "while frame:\n    seen += [frame.f_locals, frame.f_globals, frame.f_code.co_consts]\n"
        f"    frame = frame.f_back\nassert ''.join(reversed('{token[::-1]}')) not in repr(seen)"
    )
    assert run(seek, timeout_s=30) == Outcome(True)


@pytest.mark.parametrize("endless", ["while True: pass", "import time; time.sleep(60)", "input = 1\nwhile input: pass"])
def test_an_endless_program_is_stopped_in_time(endless):
    start = time.monotonic()
    assert run(endless, timeout_s=0.5) == Outcome(False, "no end within 0.5 s")
    assert time.monotonic() - start < 10


def test_a_fork_bomb_stays_small_and_leaves_nothing():
    mark, count = 5.0625, sandbox.PROCESSES
    bomb = "import os, time\nn = 0\ntry:\n    while True:\n        if not os.fork(): time.sleep(60)\n        n += 1\n"
    assert run(f"{bomb}except BlockingIOError:\n    assert 0 < n < {count}", timeout_s=mark) == Outcome(True)
    assert not run("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", timeout_s=mark / 5).passed
    deadline = time.monotonic() + 5
    while left_over(f"'seconds': {mark}", f"'seconds': {mark / 5}"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_memory_and_scratch_are_limited():
    assert "MemoryError" in run("x = bytearray(1 << 30)").reason
    assert run("x = bytearray(1 << 28)").passed and not run("x = bytearray(1 << 28)", memory_mb=128).passed
    fill = "import os\nfor i in range(8):\n    open(str(i), 'wb').write(bytes(4 << 20))"
    assert "OSError" in run(fill).reason
    assert "OSError" in run("open('a', 'wb').write(bytes(sandbox := 20 << 20))").reason


def test_nothing_outside_the_scratch_folder_can_be_written(tmp_path):
    places = ["/", "/usr", "/usr/lib", "/etc", sys.base_prefix, str(Path.home()), str(tmp_path), os.getcwd()]
    attempt = (
        f"written = []\nfor place in {places!r}:\n    try:\n        open(place + '/igsp-was-here', 'w')\n"
        "        written.append(place)\n    except OSError: pass\nassert not written, written"
    )
    assert run(attempt) == Outcome(True)
    assert not any((Path(place) / "igsp-was-here").exists() for place in places)


def test_home_repository_and_processes_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    kept = Path(sys.base_prefix).parts
    hidden = [str(path) for path in Path.home().iterdir() if path.name not in kept]
    hidden += [str(tmp_path / "secret"), __file__, "/etc/passwd", "/proc/self", "/var", "/dev/kmsg"]
    assert run(
        f"import os\nassert not os.environ\nseen = [path for path in {hidden!r} if os.path.exists(path)]\n"
        "assert not seen, seen"
    ) == Outcome(True)


def test_there_is_no_network_not_even_to_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        socket.create_connection(address, timeout=5).close()  # it can be reached from here
        server.accept()
        attempt = run(f"import socket\nsocket.create_connection({address!r}, timeout=2)")
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()
    assert not attempt.passed and ("unreachable" in attempt.reason or "refused" in attempt.reason)


def test_a_program_has_no_privilege_and_cannot_kill_its_keeper():
    assert run(
        "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
        "assert libc.mount(b'none', b'/usr', None, ctypes.c_ulong(32 | 4096), None) == -1  # remount, writable\n"
        "assert libc.umount2(b'/usr', 2) == -1 and libc.sethostname(b'x', 1) == -1\n"
        "try: os.chroot('/tmp')\nexcept PermissionError: pass\nelse: raise AssertionError('chroot')"
    ) == Outcome(True)
    kill = "import os\nfor p in (1, os.getppid(), -1):\n    try: os.kill(p, 9)\n    except OSError: pass"
    assert not run(kill + CHEAT_FREE).passed
    assert run(PASSING).passed


def test_output_is_thrown_away_and_a_flood_is_cut():
    assert run("import sys\nfor _ in range(100):\n    print('x' * 10**6); sys.stderr.write('y' * 10**6)").passed
    flood = "import os\ntry:\n    while os.write({}, b'x' * 65536): pass\nexcept OSError: pass\n"
    flooded = run(flood.format(3) + flood.format(4))
    assert not flooded.passed and len(flooded.reason) <= 200
    assert len(run("raise ValueError('x' * 10**6)").reason) <= 200


def test_deep_recursion_fails_without_harm():
    deep = "def f(n):\n    return f(n + 1)\n"
    assert "RecursionError" in run(f"{deep}f(0)").reason
    assert not run(f"import sys\nsys.setrecursionlimit(10**9)\n{deep}f(0)", timeout_s=1).passed
    assert not run("import ctypes; ctypes.string_at(0)").passed


def test_limits_must_be_positive():
    for wrong in ({"timeout_s": 0}, {"memory_mb": -1}, {"workers": 0}):
        with pytest.raises(UsageError, match="positive"):
            run(PASSING, **wrong)


@pytest.mark.parametrize("tool, says", [(None, "no `.*` on the PATH"), (shutil.which("false"), "did not start")])
def test_without_isolation_nothing_runs(monkeypatch, tool, says):
    sandbox._problem.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(sandbox.shutil, "which", lambda name: tool)
        assert sandbox.available() is None
        with pytest.raises(UsageError, match=f"{says}.*bubblewrap"):
            run(PASSING)
    sandbox._problem.cache_clear()
