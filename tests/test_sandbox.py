"""Generated programs: a verdict that cannot be had cheaply, and nothing reaches out of the sandbox."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from igsp.errors import UsageError
from igsp.scoring import inside, sandbox
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


def run(program, tests=None, **options):
    return run_programs([program], None if tests is None else [tests], progress=False, **options)[0]


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
    hidden += [str(tmp_path / "secret"), __file__, "/etc/passwd", "/proc/self", "/var", "/dev/kmsg", "/dev/mem"]
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
    assert not attempt.passed and "not supported" in attempt.reason


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


# --- solution and tests apart ----------------------------------------------------------------------------------

ADD = "def add(a, b):\n    return a + b\n"
FORGE = "import os\nfor d in range(3, 64):\n    try: os.write(d, b'passed')\n    except OSError: pass\n"


@pytest.mark.parametrize("solution, tests", [
    (ADD, "assert add(1, 2) == 3 and add('a', 'b') == 'ab' and add(b=1, a=2.5) == 3.5"),
    ("def both(x):\n    return (x, [x]), {x: {1, 2}}, frozenset([x])\n",
     "assert both(1) == ((1, [1]), {1: {1, 2}}, frozenset([1]))"),
    ("def order(x):\n    x.sort()\n", "x = [3, 1, 2]\nassert order(x) is None and x == [1, 2, 3]"),
    ("def numbers(n):\n    yield from range(n)\n", "assert list(numbers(3)) == [0, 1, 2] and numbers(1) != [0]"),
    ("from collections import Counter, OrderedDict\ndef count(x):\n    return Counter(x)\n",
     "assert count('aab') == {'a': 2, 'b': 1}"),
    ("import math\ndef root(x):\n    return math.sqrt(x), float('nan'), 1j, b'x', 10**40\n",
     "import math\na, b, c, d, e = root(4)\nassert a == 2 and math.isnan(b) and c == 1j and d == b'x' and e == 10**40"),
    ("def half(x):\n    raise ValueError('odd')\n",
     "try: half(1)\nexcept ValueError as error: assert str(error) == 'odd'\nelse: assert False"),
    ("LIMIT = 7\ndef below(x):\n    return x < LIMIT\n", "assert LIMIT == 7 and below(6) is True"),
    (ADD, "def check(candidate):\n    assert candidate(2, 2) == 4\ncheck(add)"),
])
def test_right_solutions_pass_when_tests_run_elsewhere(solution, tests):
    assert run(solution, tests) == Outcome(True)
    assert not run(solution, f"{tests}\nassert False").passed


@pytest.mark.parametrize("solution", [
    "class Any:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
    "def add(a, b): return Any()",
    "class Any(int):\n    def __eq__(self, other): return True\ndef add(a, b): return Any(7)",
    "class Any(list):\n    def __eq__(self, other): return True\ndef add(a, b): return Any([7])",
    "import os\nos._exit(0)",
    "import sys\nsys.exit(0)",
    "import os\ndef add(a, b): os._exit(0)",
    f"{FORGE}def add(a, b): return 0",
    "import builtins\nbuiltins.AssertionError = ()\ndef add(a, b): return 0",
    "import os\ndef add(a, b):\n    os.kill(os.getppid(), 9)\n    return 3",
    "def add(a, b):\n    return object()",
    "def add(a, b):\n    x = []\n    x.append(x)\n    return x",
    "def add(a, b):\n    while True: pass",
    "def add(a, b):\n    return 'x' * (1 << 25)",
    "import sys\nsys.modules['__main__'].add = lambda a, b: 4",
])
def test_what_decides_is_out_of_the_solutions_reach(solution):
    assert not run(solution, "assert add(1, 2) == 3", timeout_s=1).passed


def test_the_solution_cannot_see_its_tests():
    seek = ("import gc, os, sys\nseen = [gc.get_objects()]\nframe = sys._getframe()\nwhile frame:\n"
            "    seen += [frame.f_locals, frame.f_globals]\n    frame = frame.f_back\n"
            "for d in range(64):\n    try: seen.append(os.pread(d, 1 << 16, 0))\n    except OSError: pass\n"
            "found = ''.join(reversed('moordnop')) in repr(seen)\ndef add(a, b): return found")
    assert run(seek, "pondroom = 1\nassert add(1, 2) is False", timeout_s=30) == Outcome(True)


def test_tests_for_each_program():
    with pytest.raises(UsageError, match="2 programs and 1 tests"):
        run_programs([ADD, ADD], ["pass"], progress=False)


# --- verdicts as plain Python's --------------------------------------------------------------------------------


@pytest.mark.parametrize("program, passes", [
    ("def f(x: undefined) -> int: return x", False),  # no future import leaks into the program
    ("def f(x: int): return x\nassert f.__annotations__ == {'x': int}", True),
    ("exit()", False), ("quit(0)", False), ("assert exit and quit", True),
    ("import multiprocessing as m\nwith m.get_context('fork').Pool(2) as p:\n    assert p.map(abs, [-1]) == [1]", True),
    ("import os\nassert len(os.urandom(8)) == 8 and len(open('/dev/urandom', 'rb').read(4)) == 4", True),
    ("assert open('/dev/zero', 'rb').read(2) == bytes(2)", True),
    ("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()", True),
    ("import socket\na, b = socket.socketpair()\na.send(b'x')\nassert b.recv(1) == b'x'", True),
    ("import subprocess, sys\nassert subprocess.run([sys.executable, '-S', '-c', 'pass']).returncode == 0", True),
    ("import tempfile\nwith tempfile.NamedTemporaryFile('w') as f:\n    f.write('x')", True),
])
def test_verdicts_are_plain_pythons(program, passes):
    assert run(program, timeout_s=20).passed == passes


# --- ways out: each program passes if its way is shut -----------------------------------------------------------

COLUMN = inside.PROCESSORS[os.uname().machine][1]
CALLS = {name: numbers[COLUMN] for name, numbers in inside.DENIED.items()}
C = "import ctypes, os, socket\nlibc = ctypes.CDLL(None, use_errno=True)\n"
WAYS = {f"call {name}": f"{C}assert libc.syscall({number}, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1"
        for name, number in CALLS.items() if number is not None}
WAYS |= {
    f"socket {family}": f"{C}try: socket.socket({family}, {kind})\nexcept OSError: pass\nelse: raise AssertionError"
    for family, kind in ((2, 1), (2, 2), (10, 1), (10, 2), (16, 3), (17, 3), (40, 1), (38, 5))  # AF_INET to AF_ALG
}
WAYS |= {
    f"clone {flag:#x}": f"{C}assert libc.syscall({inside.CLONE[COLUMN]}, {flag | 17}, 0, 0, 0, 0) == -1"
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
}
WAYS |= {
    "new user namespace": f"{C}assert libc.unshare(0x10000000) == -1",
    "remount": f"{C}assert libc.mount(b'none', b'/usr', None, ctypes.c_ulong(32 | 4096), None) == -1",
    "set user": "import os\ntry: os.setuid(1)\nexcept OSError: pass\nelse: raise AssertionError",
    "raise a limit": "import resource\ntry: resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))\n"
                     "except (ValueError, PermissionError): pass\nelse: raise AssertionError",
    "many files": "n = 0\ntry:\n    for n in range(5000): open(str(n), 'w')\nexcept OSError: pass\nassert n < 1100",
    "many shared files": "n = 0\ntry:\n    for n in range(5000): open(f'/dev/shm/{n}', 'w')\nexcept OSError: pass\n"
                         "assert n < 100",
    "large shared file": "try: open('/dev/shm/x', 'wb').write(bytes(2 << 20))\nexcept OSError: pass\nelse: raise "
                         "AssertionError",
    "device nodes": "import os\ntry: os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0))\nexcept OSError: pass\n"
                    "else: raise AssertionError",
    "set-user file": "import os\nopen('x', 'w').close()\nos.chmod('x', 0o4755)\nassert os.statvfs('/tmp').f_flag & 2",
    "terminal": "import os\ntry: os.open('/dev/tty', os.O_RDWR)\nexcept OSError: pass\nelse: raise AssertionError",
    "parents": "import os\nassert not os.path.exists('/proc') or not os.listdir('/proc')",
}


def test_sixty_ways_out_are_shut():
    assert len(WAYS) >= 60
    outcomes = run_programs(list(WAYS.values()), timeout_s=20, progress=False)
    assert not {name: o.reason for name, o in zip(WAYS, outcomes, strict=True) if not o.passed}


def test_sixty_ways_out_are_shut_to_an_ordinary_user(backend, tmp_path):
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv to become another user")
    file = tmp_path / "ways.py"
    file.write_text("import sys\nfrom igsp.scoring import sandbox\nfrom igsp.scoring.sandbox import run_programs\n"
                    f"sandbox.TOOLS = {{{backend!r}: {sandbox.TOOLS[backend]!r}}}\n"
                    "if sandbox._problem(*sandbox.TOOLS): print(sandbox._problem(*sandbox.TOOLS)); sys.exit(3)\n"
                    f"ways = {WAYS!r}\n"
                    "found = run_programs(list(ways.values()), timeout_s=20, progress=False)\n"
                    "print({n: o.reason for n, o in zip(ways, found) if not o.passed})", encoding="utf8")
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    command = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", sys.executable, str(file)]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/")
    if done.returncode:
        pytest.skip(f"{backend} as an ordinary user: {done.stdout.strip() or done.stderr.strip()[-200:]}")
    assert done.stdout.strip() == "{}"


def test_all_processes_of_a_program_share_its_memory():
    share = (
        "import os, time\nfor _ in range(5):\n    if not os.fork(): break\nx = bytearray(60 << 20)\ntime.sleep(20)\n")
    found = run(share, memory_mb=160, timeout_s=15)
    assert found == Outcome(False, "more than 160 MiB of memory in all")
