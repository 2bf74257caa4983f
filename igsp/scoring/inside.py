"""What runs inside the sandbox. Its text is handed to a bare interpreter there: standard library alone, no package.

The *keeper* (the first process of the namespace) holds the clock; when it ends, all end. Below it the *judge* runs the
tests. Where solution and tests were given apart, the judge's child, the *solver*, runs the solution and can reach
neither tests nor verdict: the judge calls its functions over two pipes, and what crosses them is JSON of plain values.
Every process below the keeper has no privilege, few resources and few system calls left.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import resource
import signal
import struct
import sys
import types

PROCESSORS = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # audit number, column of the table below
DENIED = {  # system calls that no solution needs, by their numbers on x86_64 and aarch64 (None: not there)
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "reboot": (169, 142), "swapon": (167, 224), "acct": (163, 89), "quotactl": (179, 60), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161),
    "setdomainname": (171, 162), "personality": (135, 92), "syslog": (103, 116), "iopl": (172, None),
    "ioperm": (173, None), "modify_ldt": (154, None),
}
CLONE, CLONE3, SOCKET = (56, 220), (435, 435), (41, 198)
NAMESPACES = 0x7E020000  # the flags of clone that make a new one
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000  # REFUSE plus an error number
READ_ONLY, NO_SUID, NO_DEVICE, REMOUNT, BIND, RECURSIVE = 1, 2, 4, 32, 4096, 16384  # <sys/mount.h>
SPECIAL = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
LONGEST = 1 << 24  # bytes of one message between judge and solver


def call(function, *arguments, where=""):
    """A function of the C library; an `OSError` where it fails."""
    if getattr(ctypes.CDLL(None, use_errno=True), function)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function} {where}: {os.strerror(number)}")


def mount(source, target, flags, options=""):
    kind = None if flags & BIND else b"tmpfs"
    call("mount", source.encode(), target.encode(), kind, ctypes.c_ulong(flags), options.encode(), where=target)


def change_root(root, visible):
    """In fresh namespaces: builds a root folder of `visible` (read-only) and a few devices, and enters it for good."""
    guarded = (ctypes.c_uint64 * 4)(READ_ONLY | NO_SUID | NO_DEVICE)
    mount("tmpfs", root, NO_SUID | NO_DEVICE, "mode=755,size=1m")
    for path in [*visible, *filter(os.path.exists, SPECIAL)]:
        target = root + path
        os.makedirs(target if os.path.isdir(path) else os.path.dirname(target), exist_ok=True)
        if not os.path.isdir(path):
            os.close(os.open(target, os.O_CREAT))
        mount(path, target, BIND | RECURSIVE)
        if path not in SPECIAL:  # mount_setattr, number 442 everywhere, reaches the mounts below too; Linux 5.12
            number, anywhere, below, size = (ctypes.c_long(value) for value in (442, -100, 0x8000, 32))
            call("syscall", number, anywhere, target.encode(), below, guarded, size, where=f"mount_setattr {target}")
    for folder in ("/tmp", "/dev/shm"):
        os.makedirs(root + folder, exist_ok=True)
    mount("tmpfs", root, REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEVICE)
    os.chroot(root)


def own_folders(scratch, files):
    """Empty `/tmp` and `/dev/shm` that hold little, in bytes and in files."""
    mount("tmpfs", "/tmp", NO_SUID | NO_DEVICE, f"mode=1777,size={scratch},nr_inodes={files}")
    mount("tmpfs", "/dev/shm", NO_SUID | NO_DEVICE, "mode=1777,size=1m,nr_inodes=64")
    os.chdir("/tmp")


def filter_calls():
    """Installs a seccomp filter: `DENIED` calls, new namespaces and sockets other than local ones fail."""
    if os.uname().machine not in PROCESSORS:
        raise OSError(f"no list of system calls for processor {os.uname().machine}")
    audit, column = PROCESSORS[os.uname().machine]
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    code = [(load, 0, 0, 4), (equal, 1, 0, audit), (answer, 0, 0, KILL), (load, 0, 0, 0)]
    code += [(at_least, 0, 1, 0x40000000), (answer, 0, 0, KILL)]  # the x32 calls
    for numbers in DENIED.values():
        if numbers[column] is not None:
            code += [(equal, 0, 1, numbers[column]), (answer, 0, 0, REFUSE + 1)]  # EPERM
    code += [(equal, 0, 1, CLONE3[column]), (answer, 0, 0, REFUSE + 38)]  # ENOSYS: the library falls back to clone
    code += [(equal, 0, 4, CLONE[column]), (load, 0, 0, 16), (any_bit, 0, 1, NAMESPACES), (answer, 0, 0, REFUSE + 1)]
    code += [(answer, 0, 0, ALLOW)]
    code += [(equal, 0, 4, SOCKET[column]), (load, 0, 0, 16), (equal, 1, 0, 1), (answer, 0, 0, REFUSE + 97)]
    code += [(answer, 0, 0, ALLOW), (answer, 0, 0, ALLOW)]
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(text)))
    call("prctl", 22, 2, program, 0, 0, where="PR_SET_SECCOMP")


def confine(plan):
    """Gives up user, privileges, resources and system calls, for good."""
    if plan["user"]:
        os.setgroups([])
        os.setresgid(*[plan["user"]] * 3)
        os.setresuid(*[plan["user"]] * 3)
    call("prctl", 38, *map(ctypes.c_ulong, (1, 0, 0, 0)), where="PR_SET_NO_NEW_PRIVS")
    call("capset", (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(), where="(none, layout 3)")
    limits = {"AS": plan["memory"], "CPU": int(plan["seconds"]) + 1, "FSIZE": plan["scratch"], "NOFILE": 64,
              "NPROC": plan["processes"], "CORE": 0}
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    filter_calls()


def execute(text, name, space):
    """Runs a program's text as plain Python would, without what this file has switched on."""
    exec(compile(text, name, "exec", dont_inherit=True), space)


def main_module():
    """An empty `__main__` with what `site` adds to the builtins."""
    from _sitebuiltins import Quitter

    builtins.exit, builtins.quit = Quitter("exit", "exit"), Quitter("quit", "quit")
    main = types.ModuleType("__main__")
    sys.modules["__main__"], sys.argv[:] = main, [""]
    os.environ.clear()
    return main.__dict__


# --- values that cross between judge and solver ---------------------------------------------------------------------


def pack(value):
    """A plain value as JSON can hold it. Subclasses travel as what they are made of, iterators as what they yield."""
    if value is None or isinstance(value, bool | int | float | str):
        return value if type(value) in (type(None), bool, int, float, str) else pack(plain(value))
    if isinstance(value, complex | bytes):
        return [type(value).__name__, [value.real, value.imag] if isinstance(value, complex) else value.hex()]
    if isinstance(value, dict):
        return ["dict", [[pack(key), pack(inner)] for key, inner in dict.items(value)]]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [pack(inner) for inner in kind.__iter__(value)]]
    if isinstance(value, range) or hasattr(type(value), "__next__") or type(value).__name__.startswith("dict_"):
        return ["iter", [pack(inner) for inner in value]]
    raise TypeError(f"a value of type {type(value).__name__} cannot be compared from outside")


def plain(value):
    """An instance of a subclass of a simple type as that type."""
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return {bool: bool, int: int.__int__, float: float.__float__, str: str.__str__}[kind](value)
    return None


def unpack(value):
    """The inverse of `pack`."""
    if not isinstance(value, list):
        return value
    kind, inside = value
    if kind == "dict":
        return {unpack(key): unpack(inner) for key, inner in inside}
    if kind in ("complex", "bytes"):
        return complex(*inside) if kind == "complex" else bytes.fromhex(inside)
    items = [unpack(inner) for inner in inside]
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "iter": iter}[kind](items)


def send(pipe, message):
    data = json.dumps(message).encode()
    data = struct.pack("I", len(data)) + data
    while data:
        data = data[os.write(pipe, data):]


def receive(pipe):
    def exactly(size):
        data = b""
        while len(data) < size:
            part = os.read(pipe, size - len(data))
            if not part:
                raise EOFError("the solution ended by itself")
            data += part
        return data

    size = struct.unpack("I", exactly(4))[0]
    if size > LONGEST:
        raise ValueError("an answer too large to compare")
    return json.loads(exactly(size))


def solve(text, requests, answers):
    """The solver: defines the solution, then answers calls of its functions until the judge hangs up."""
    space = main_module()
    try:
        execute(text, "<solution>", space)
        names = {name: "call" if callable(value) else "value" for name, value in space.items() if name[:2] != "__"}
        values = {}
        for name, kind in names.items():
            if kind == "value":
                try:
                    values[name] = pack(space[name])
                except (TypeError, ValueError, RecursionError):
                    continue  # a module, say
        send(answers, {"calls": [name for name, kind in names.items() if kind == "call"], "values": values})
        while True:
            name, arguments, options = receive(requests)
            arguments, options = unpack(arguments), unpack(options)
            try:
                reply = {"value": pack(space[name](*arguments, **options)), "arguments": pack(arguments)}
            except Exception as error:
                reply = {"error": type(error).__name__, "says": str(error)[:200]}
            send(answers, reply)
    except EOFError:
        pass
    except BaseException as error:
        send(answers, {"error": type(error).__name__, "says": str(error)[:200]})
    os._exit(0)


def judge(given, length, split):
    """Runs the tests here on the functions of a solution in a process of its own, made before they are read."""
    (requests, to_solver), (from_solver, answers) = os.pipe(), os.pipe()
    if not os.fork():
        text, keep = os.pread(given, split, 0), {requests, answers, 0, 1, 2}
        for descriptor in range(3, 64):
            if descriptor not in keep:
                try:
                    os.close(descriptor)
                except OSError:
                    continue
        solve(text, requests, answers)
    os.close(requests)
    os.close(answers)
    space = main_module()

    def reply():
        found = receive(from_solver)
        if "error" in found:
            kind = getattr(builtins, str(found["error"]), Exception)
            raise (kind if isinstance(kind, type) and issubclass(kind, Exception) else Exception)(found["says"])
        return found

    def remote(name):
        def function(*arguments, **options):
            send(to_solver, [name, pack(list(arguments)), pack(options)])
            found = reply()
            for mine, theirs in zip(arguments, unpack(found["arguments"]), strict=True):
                if isinstance(mine, list):  # changed in place
                    mine[:] = theirs
                elif isinstance(mine, dict | set):
                    mine.clear()
                    mine.update(theirs)
            return unpack(found["value"])

        function.__name__ = name
        return function

    tests, found = os.pread(given, length - split, split), reply()
    space.update({name: unpack(value) for name, value in found["values"].items()})
    space.update({name: remote(name) for name in found["calls"]})
    execute(tests, "<tests>", space)


def run(plan):
    """Inside: reads program and token on descriptor 0, answers on descriptor 1: the token, or why not."""
    given, answer, null = os.dup(0), os.dup(1), os.open("/dev/null", os.O_RDWR)
    os.write(2, b"started")
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.set_inheritable(null, False)
    child = os.fork()
    if child:
        signal.signal(signal.SIGALRM, lambda *_: os._exit(plan["timed_out"]))
        signal.setitimer(signal.ITIMER_REAL, plan["seconds"])
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    read, write, leave, length, split = os.pread, os.write, os._exit, plan["length"], plan["split"]
    try:
        confine(plan)
        if split is None:
            execute(read(given, length, 0), "<program>", main_module())
        else:
            judge(given, length, split)
        verdict = read(given, 64, length)
    except BaseException as error:
        verdict = f"{type(error).__name__}: {error}"[:200].encode(errors="replace")
    write(answer, verdict)
    leave(0)
