"""Runs generated programs isolated; a verdict as in HumanEval: do the tests run to their end on the solution?

Each program has interpreters of its own inside Linux namespaces (mount, network, process, IPC), made by bubblewrap
where it is installed and by `unshare` of util-linux otherwise. It sees the interpreter's own folders read-only and
empty, size-limited `/tmp` and `/dev/shm`; no home, no network, no `/proc`, no process but its own, no environment, no
privilege. A seccomp filter refuses the system calls that no solution needs (`inside.DENIED`: a table written here,
because a library for it would have to be installed inside the sandbox too). All processes of a program share one memory
limit.

What a verdict is worth. Given apart, solution and tests run in two interpreters: the solution can neither see the tests
nor reach what decides, and an object that claims to equal everything does not cross between them. Given as one text,
they share one: `sys.exit(0)` before the tests, a printed "passed" or a patched `os.write` do not pass, since passing
takes a random token that lies unread in an open file; but a solution may patch what its tests call, and one written
against this very harness could read the token. The isolation is as good as the kernel.
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

import psutil
from tqdm import tqdm

from igsp.errors import IgspError, UsageError
from igsp.scoring import inside

SCRATCH_MB, FILES = 16, 1024  # size of /tmp and of the largest file; how many files
PROCESSES = 16  # processes and threads of one program
LOOK_S = 0.05  # seconds between two looks at what a program uses
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
    tests: Sequence[str] | None = None,
    timeout_s: float = 3.0,
    memory_mb: int = 512,
    workers: int | None = None,
    progress: bool = True,
) -> list[Outcome]:
    """Runs Python programs and says which ran to their end.

    Args:
        programs: source texts; they can import the standard library, but no installed package.
        tests: the tests of each program, run in an interpreter of their own; plain values and functions of the program
            are known there by name. None: each program holds its own tests.
        timeout_s: seconds of wall-clock time per program.
        memory_mb: address space of a process, and memory of all processes of a program, in MiB.
        workers: programs at a time; None: as many as there are cores.

    Raises:
        UsageError: nothing on this machine isolates programs (says what is missing), a limit is not positive, or there
            are not as many tests as programs.
        IgspError: a sandbox broke before its program started.
    """
    if timeout_s <= 0 or memory_mb <= 0 or (workers is not None and workers < 1):
        raise UsageError("timeout_s, memory_mb and workers must be positive")
    if tests is not None and len(tests) != len(programs):
        raise UsageError(f"{len(programs)} programs and {len(tests)} tests: each program needs its own")
    backend = available()
    if backend is None:
        raise UsageError(
            "generated programs are not run without isolation, and there is none here ("
            + "; ".join(f"{name}: {_problem(name)}" for name in TOOLS)
            + "). Way out, on Linux: install bubblewrap (`bwrap`), or allow unprivileged user namespaces for `unshare`"
        )
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        outcomes = pool.map(
            lambda program, test: _run(backend, program, test, timeout_s, memory_mb), programs,
            tests or [None] * len(programs),
        )
        return list(tqdm(outcomes, total=len(programs), desc="programs", disable=not progress))


@functools.cache
def _problem(backend: str) -> str:
    """Why a backend is of no use here; empty if it works."""
    if not shutil.which(TOOLS[backend]):
        return f"no `{TOOLS[backend]}` on the PATH"
    try:
        return _run(backend, "pass", None, timeout_s=STARTUP_S, memory_mb=512).reason
    except (IgspError, OSError) as error:
        return str(error)


def _run(backend: str, program: str, tests: str | None, timeout_s: float, memory_mb: int) -> Outcome:
    source, token = program.encode("utf8", "surrogatepass"), secrets.token_hex(32)
    split = None if tests is None else len(source)
    source += (tests or "").encode("utf8", "surrogatepass")
    # Not as root, whose processes the kernel does not count; ids of their own also keep programs apart.
    user = 20_000 + secrets.randbelow(40_000) if os.geteuid() == 0 else 0
    plan = {"length": len(source), "split": split, "seconds": timeout_s, "memory": memory_mb << 20, "user": user,
            "scratch": SCRATCH_MB << 20, "files": FILES, "processes": PROCESSES, "timed_out": TIMED_OUT}
    with TemporaryFile() as given, TemporaryFile() as answer, TemporaryFile() as log, TemporaryDirectory() as root:
        given.write(source + token.encode())
        given.seek(0)
        process = subprocess.Popen(
            _command(backend, plan, root), stdin=given, stdout=answer, stderr=log, cwd="/", start_new_session=True,
            env={"PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"},  # sets in the same order: the same verdict
        )
        try:
            too_much = _watch(process, timeout_s + STARTUP_S, memory_mb << 20)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the process namespace dies with its first process
                process.wait()
        status, started, said = process.returncode, _head(log), _head(answer)
    if started != "started":
        raise IgspError(f"the sandbox ({backend}) did not start: {started[-200:] or f'status {status}'}")
    if too_much:
        return Outcome(False, too_much if "MiB" in too_much else f"no end within {timeout_s:g} s")
    if status == TIMED_OUT:
        return Outcome(False, f"no end within {timeout_s:g} s")
    if said == token and status == 0:
        return Outcome(True)
    return Outcome(False, said[:200] or f"ended with status {status} before its last line")


def _watch(process: subprocess.Popen[bytes], seconds: float, memory: int) -> str:
    """Waits for the end of a program; says why if it has to be ended from outside."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            process.wait(LOOK_S)
            return ""
        except subprocess.TimeoutExpired:
            if _used(process.pid) > memory:
                return f"more than {memory >> 20} MiB of memory in all"
    return "no end"


def _used(pid: int) -> int:
    """Bytes of memory of a process and all below it, each shared page once."""
    total = 0
    try:
        family = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return 0
    for one in family:
        try:
            total += one.memory_full_info().pss
        except (psutil.Error, OSError):  # it has ended, or may not be looked at: its own limit holds
            continue
    return total


def _head(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(4096).decode(errors="replace").strip()


def _command(backend: str, plan: dict[str, Any], root: str) -> list[str]:
    folders = [sys.base_prefix, sys.base_exec_prefix, "/usr", "/lib", "/lib64", "/etc/ld.so.cache"]
    visible = [path for path in dict.fromkeys(folders) if os.path.exists(path)]
    text = Path(inside.__file__).read_text(encoding="utf8")
    if backend == "bubblewrap":
        command = ["--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        command += [f"--unshare-{kind}" for kind in ("net", "pid", "ipc", "uts")]
        for path in visible:  # above a folder that others may not enter, bubblewrap's own parents would shut them out
            command += [word for up in reversed(Path(path).parents) for word in ("--perms", "0755", "--dir", str(up))]
            command += ["--ro-bind", path, path]
        for folder in ("/dev", "/dev/shm", "/tmp"):
            command += ["--perms", "0755", "--dir", folder]
        for device in filter(os.path.exists, inside.SPECIAL):
            command += ["--dev-bind", device, device]
        command += ["--remount-ro", "/", "--chdir", "/"]
        for privilege in ("SYS_ADMIN", *(("SETUID", "SETGID") if plan["user"] else ())):  # until `inside.confine`
            command += ["--cap-add", f"CAP_{privilege}"]
    else:
        command = ["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        command += [] if plan["user"] else ["--user", "--map-root-user"]
        text += f"\nchange_root({root!r}, {visible!r})\n"
    text += f"\nown_folders({plan['scratch']}, {plan['files']})\nrun({plan!r})\n"
    python = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
    return [shutil.which(TOOLS[backend]) or "", *command, python, "-S", "-c", text]
