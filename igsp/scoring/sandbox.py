"""Runs generated programs isolated; a verdict as in HumanEval: did solution and tests run to their end?

Each program has an interpreter of its own inside Linux namespaces (mount, network, process, IPC), made by bubblewrap
where it is installed and by `unshare` of util-linux otherwise. It sees the interpreter's own folders read-only and an
empty, size-limited `/tmp`; no home, no network, no `/proc`, no process but its own, no environment, no privilege.

What a verdict is worth. A program passes when the harness reaches the line after it and hands back a random token.
Until then the token lies unread in an open file: not in memory, arguments, environment or frames. So `sys.exit(0)` or
`os._exit(0)` before the tests, a printed "passed" or a patched `os.write` do not pass. Two limits remain. Solution and
tests share one interpreter: a solution may patch what its tests call, and one written against this very harness could
read the token from the inherited descriptor. And no system call is filtered: the isolation is as good as the kernel.
"""

from __future__ import annotations

import functools
import inspect
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

from tqdm import tqdm

from igsp.errors import IgspError, UsageError

SCRATCH_MB = 16  # size of /tmp, and of the largest file
PROCESSES = 16  # processes and threads of one program; each may use `memory_mb`
STARTUP_S = 30.0  # for a sandbox to stand, on a busy machine
TIMED_OUT = 124  # exit status
TOOLS = {"bubblewrap": "bwrap", "namespaces": "unshare"}


@dataclass(frozen=True)
class Outcome:
    """Whether a program ran to its end, and if not, why."""

    passed: bool
    reason: str = ""


def available() -> str | None:
    """What isolates programs on this machine, found by running one: `bubblewrap`, `namespaces`, or None."""
    return next((backend for backend in TOOLS if not _problem(backend)), None)


def run_programs(
    programs: Sequence[str],
    timeout_s: float = 3.0,
    memory_mb: int = 512,
    workers: int | None = None,
    progress: bool = True,
) -> list[Outcome]:
    """Runs Python programs (each a solution followed by its tests) and says which ran to their end.

    Args:
        programs: source texts; they can import the standard library, but no installed package.
        timeout_s: seconds of wall-clock time per program.
        memory_mb: address space per process, in MiB; a program has at most `PROCESSES` of them.
        workers: programs at a time; None: as many as there are cores.

    Raises:
        UsageError: nothing on this machine isolates programs (says what is missing), or a limit is not positive.
        IgspError: a sandbox broke before its program started.
    """
    if timeout_s <= 0 or memory_mb <= 0 or (workers is not None and workers < 1):
        raise UsageError("timeout_s, memory_mb and workers must be positive")
    backend = available()
    if backend is None:
        raise UsageError(
            "generated programs are not run without isolation, and there is none here ("
            + "; ".join(f"{name}: {_problem(name)}" for name in TOOLS)
            + "). Way out, on Linux: install bubblewrap (`bwrap`), or allow unprivileged user namespaces for `unshare`"
        )
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        outcomes = pool.map(lambda program: _run(backend, program, timeout_s, memory_mb), programs)
        return list(tqdm(outcomes, total=len(programs), desc="programs", disable=not progress))


@functools.cache
def _problem(backend: str) -> str:
    """Why a backend is of no use here; empty if it works."""
    if not shutil.which(TOOLS[backend]):
        return f"no `{TOOLS[backend]}` on the PATH"
    try:
        return _run(backend, "pass", timeout_s=STARTUP_S, memory_mb=512).reason
    except (IgspError, OSError) as error:
        return str(error)


def _run(backend: str, program: str, timeout_s: float, memory_mb: int) -> Outcome:
    source, token = program.encode("utf8", "surrogatepass"), secrets.token_hex(32)
    # Not as root, whose processes the kernel does not count; ids of their own also keep programs apart.
    user = 20_000 + secrets.randbelow(40_000) if os.geteuid() == 0 else 0
    plan = {"length": len(source), "seconds": timeout_s, "memory": memory_mb << 20, "user": user,
            "scratch": SCRATCH_MB << 20, "processes": PROCESSES, "timed_out": TIMED_OUT}
    with TemporaryFile() as given, TemporaryFile() as answer, TemporaryFile() as log, TemporaryDirectory() as root:
        given.write(source + token.encode())
        given.seek(0)
        process = subprocess.Popen(
            _command(backend, plan, root), stdin=given, stdout=answer, stderr=log, cwd="/", start_new_session=True,
            env={"PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"},  # sets in the same order: the same verdict
        )
        try:
            status = process.wait(timeout_s + STARTUP_S)
        except subprocess.TimeoutExpired:
            status = TIMED_OUT
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the process namespace dies with its first process
                process.wait()
        started, said = _head(log), _head(answer)
    if started != "started":
        raise IgspError(f"the sandbox ({backend}) did not start: {started[-200:] or f'status {status}'}")
    if status == TIMED_OUT:
        return Outcome(False, f"no end within {timeout_s:g} s")
    if said == token and status == 0:
        return Outcome(True)
    return Outcome(False, said[:200] or f"ended with status {status} before its last line")


def _head(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(4096).decode(errors="replace").strip()


def _command(backend: str, plan: dict[str, Any], root: str) -> list[str]:
    folders = [sys.base_prefix, sys.base_exec_prefix, "/usr", "/lib", "/lib64", "/etc/ld.so.cache"]
    visible = [path for path in dict.fromkeys(folders) if os.path.exists(path)]
    text = "from __future__ import annotations\n" + inspect.getsource(_harness)
    if backend == "bubblewrap":
        command = ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--perms", "1777"]
        command += ["--size", str(plan["scratch"]), "--tmpfs", "/tmp", "--dev-bind", "/dev/null", "/dev/null"]
        command += [f"--unshare-{kind}" for kind in ("net", "pid", "ipc", "uts")]
        for path in visible:  # above a folder that others may not enter, bubblewrap's own parents would shut them out
            command += [word for up in reversed(Path(path).parents) for word in ("--perms", "0755", "--dir", str(up))]
            command += ["--ro-bind", path, path]
        command += ["--remount-ro", "/", "--chdir", "/tmp"]
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if plan["user"] else []
    else:
        command = ["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        command += [] if plan["user"] else ["--user", "--map-root-user"]
        text += inspect.getsource(_change_root) + f"_change_root({root!r}, {visible!r}, {plan['scratch']})\n"
    python = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
    return [shutil.which(TOOLS[backend]) or "", *command, python, "-S", "-c", f"{text}_harness({plan!r})"]


# The two functions below travel as text: they run where this package cannot be imported.


def _change_root(root: str, visible: Sequence[str], scratch: int) -> None:
    """Inside fresh namespaces: builds a root folder of `visible` (read-only) and `/tmp`, and enters it for good."""
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)
    read_only, no_suid, no_device, remount, bind, recursive = 1, 2, 4, 32, 4096, 16384  # <sys/mount.h>
    guarded = (ctypes.c_uint64 * 4)(read_only | no_suid | no_device)

    def call(function: str, target: str, *arguments: object) -> None:
        if getattr(libc, function)(*arguments):
            raise OSError(ctypes.get_errno(), f"{function} {target}: {os.strerror(ctypes.get_errno())}")

    def mount(source: str, target: str, flags: int, options: str = "") -> None:
        kind = None if flags & bind else b"tmpfs"
        call("mount", target, source.encode(), target.encode(), kind, ctypes.c_ulong(flags), options.encode())

    mount("tmpfs", root, no_suid | no_device, "mode=755,size=1m")
    for path in [*visible, "/dev/null"]:
        target = root + path
        os.makedirs(target if os.path.isdir(path) else os.path.dirname(target), exist_ok=True)
        if not os.path.isdir(path):
            os.close(os.open(target, os.O_CREAT))
        mount(path, target, bind | recursive)
        if path != "/dev/null":  # mount_setattr, number 442 everywhere, reaches the mounts below too; Linux 5.12
            number, anywhere, below, size = (ctypes.c_long(value) for value in (442, -100, 0x8000, 32))
            call("syscall", f"mount_setattr {target}", number, anywhere, target.encode(), below, guarded, size)
    os.makedirs(root + "/tmp", exist_ok=True)
    mount("tmpfs", root + "/tmp", no_suid | no_device, f"mode=1777,size={scratch}")
    mount("tmpfs", root, remount | bind | read_only | no_suid | no_device)
    os.chroot(root)
    os.chdir("/tmp")


def _harness(plan: dict[str, Any]) -> None:
    """Inside: drops every privilege, runs the program on descriptor 0, answers on descriptor 1: token or reason."""
    import ctypes
    import os
    import resource
    import signal
    import sys
    import types

    given, answer, null = os.dup(0), os.dup(1), os.open("/dev/null", os.O_RDWR)
    os.write(2, b"started")
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    child = os.fork()
    if child:
        signal.signal(signal.SIGALRM, lambda *_: os._exit(plan["timed_out"]))
        signal.setitimer(signal.ITIMER_REAL, plan["seconds"])
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    if plan["user"]:
        os.setgroups([])
        os.setresgid(*[plan["user"]] * 3)
        os.setresuid(*[plan["user"]] * 3)
    libc = ctypes.CDLL(None)
    if libc.prctl(38, *map(ctypes.c_ulong, (1, 0, 0, 0))):  # PR_SET_NO_NEW_PRIVS
        os._exit(1)
    if libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()):  # none, in layout version 3
        os._exit(1)
    limits = {"AS": plan["memory"], "CPU": int(plan["seconds"]) + 1, "FSIZE": plan["scratch"], "NOFILE": 64,
              "NPROC": plan["processes"], "CORE": 0}
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    main, read, write, leave, length = types.ModuleType("__main__"), os.pread, os.write, os._exit, plan["length"]
    sys.modules["__main__"], sys.argv[:] = main, [""]
    os.environ.clear()
    try:
        exec(compile(read(given, length, 0), "<program>", "exec"), main.__dict__)
        verdict = read(given, 64, length)
    except BaseException as error:
        verdict = f"{type(error).__name__}: {error}"[:200].encode(errors="replace")
    write(answer, verdict)
    leave(0)
