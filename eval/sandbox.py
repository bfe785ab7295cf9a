"""Runs generated programs against their tests without trusting them.

Each program gets a bubblewrap sandbox of its own: new user, process, network, IPC and host-name namespaces; a file
system of nothing but the C library and the Python standard library, read-only, and a small private /tmp; no /proc, no
shell, no environment; hard limits on CPU seconds, memory, processes, file sizes and wall-clock time; a seccomp filter.
Started by root, it gives root up for an unused user id instead of a user namespace (process limits don't bind root).

Two processes share it (`eval/sandbox_worker.py`). The *candidate's* runs the generated code. The *supervisor* runs the
test, calls the candidate's functions over a pipe, rebuilds their results as plain data, evaluates the assertions
itself, and sends the verdict with a secret over a pipe that the candidate's process never had. That is forked before
test and secret are read, and neither may trace the other. So printed text, `os._exit(0)`, patched builtins, objects
that equal everything, frames, `gc` or writing to every descriptor fake nothing: to pass, a candidate has to return the
expected values.

What remains. A program may recognise the inputs of a test and return what it has learnt by heart. Where a test
compares results of the candidate with each other, the candidate decides both sides. Results are compared as plain
data: a `list` subclass counts as a list, other objects of the candidate only equal one another, and a test doesn't see
its own arguments changed in place. `memory` bounds a process, and a program may have a few of them. The kernel is
shared: a program that exploits it gets out. The seccomp filter exists for x86-64 and 64-bit ARM only.
"""

import ast
import builtins
import functools
import logging
import marshal
import math
import os
import platform
import secrets
import select
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from utils.errors import UserError
from utils.log import Progress

log = logging.getLogger("astra")

TIMEOUT = 10.0  # seconds of CPU time of a process: a busy machine must not fail a program
WALL = 3  # wall-clock seconds for each of them
MEMORY = 1 << 30  # bytes of address space, a process
PROCESSES = 8  # threads count as processes
FILE_SIZE = 1 << 24  # bytes, a file
TMP_SIZE = 1 << 25  # bytes of /tmp
START_SECONDS = 60  # for a sandbox to come up on a busy machine

_MODULES = ("eval.sandbox_values", "eval.sandbox_limits", "eval.sandbox_worker")  # the last imports the others
_BOOT = """
import marshal, os, struct, sys
source, verdict = map(int, sys.argv[1:])
for name, code in marshal.loads(os.read(source, struct.unpack("<I", os.read(source, 4))[0])):
    module = sys.modules[name] = type(sys)(name)
    exec(code, module.__dict__)
module.main(source, verdict)
"""


class SandboxError(RuntimeError):
    """The sandbox itself could not be started; says nothing about the program."""


@dataclass(frozen=True)
class Program:
    """A candidate and its test.

    Attributes:
        candidate: Source of the generated program, complete.
        test: Source of the test; it fails by raising.
        names: What the test takes from the candidate; default: every name it reads, and neither defines nor finds
            among the builtins.
    """

    candidate: str
    test: str
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether the test ran to its end; if not, the reason in a line; what the program printed (64 KiB at most)."""

    passed: bool
    reason: str = ""
    output: str = ""


def run_program(
    candidate: str,
    test: str,
    names: Sequence[str] | None = None,
    *,
    timeout: float = TIMEOUT,
    memory: int = MEMORY,
    unsafe: bool = False,
) -> Verdict:
    """Runs one program in a sandbox of its own; see `Program` for `candidate`, `test`, `names`.

    Args:
        timeout: seconds of CPU time; the wall-clock limit is three times as long, starting up not counted.
        memory: bytes of address space.
        unsafe: where bubblewrap can't be used, run in a plain process with limits instead of refusing.

    Raises:
        UserError: bubblewrap can't be used, and not `unsafe`.
        SandboxError: it could be used before, but not for this program.
    """
    program = Program(candidate, test, None if names is None else tuple(names))
    return _run(program, timeout, memory, _protected(unsafe))


def run_all(
    programs: Iterable[Program],
    workers: int | None = None,
    *,
    timeout: float = TIMEOUT,
    memory: int = MEMORY,
    unsafe: bool = False,
    desc: str = "running programs",
) -> list[Verdict]:
    """`run_program` over many, `workers` at a time (default: one a core), with a progress bar; verdicts in order."""
    protected = _protected(unsafe)
    programs = list(programs)
    pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)))
    with pool, Progress(desc, len(programs), "program") as bar:
        futures = [pool.submit(_run, program, timeout, memory, protected) for program in programs]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]


@functools.cache
def available() -> str | None:
    """None if programs can be sandboxed here, else the reason why not, in a line."""
    if sys.platform != "linux" or shutil.which("bwrap") is None:
        return "bubblewrap is not installed (Debian, Ubuntu: apt install bubblewrap)"
    try:
        verdict = _run(Program("def f(): return 1", "assert f() == 1"), TIMEOUT, MEMORY, protected=True)
    except SandboxError as error:
        return f"bubblewrap can't start here ({error}){_namespace_hint()}"
    return None if verdict.passed else f"bubblewrap starts, but a trial program failed ({verdict.reason})"


def _namespace_hint() -> str:
    """What the kernel says about user namespaces, where it is the likely cause."""
    for key, off in (
        ("kernel/unprivileged_userns_clone", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
        ("user/max_user_namespaces", "0"),
    ):
        path = Path("/proc/sys") / key
        if path.exists() and path.read_text().strip() == off:
            return f": user namespaces are disabled, sysctl {key.replace('/', '.')} = {off}"
    return ""


def _protected(unsafe: bool) -> bool:
    reason = available()
    if reason and not unsafe:
        raise UserError(f"generated code can't be run safely: {reason}; eval.unsafe_code=true runs it unprotected")
    if reason:
        _warn_unprotected(reason)
    return reason is None


@functools.cache
def _warn_unprotected(reason: str) -> None:
    log.warning("RUNNING GENERATED CODE UNPROTECTED, with the rights of this user (eval.unsafe_code): %s", reason)


# -------------------------------------------------------------------------------------------------------- one program


def _run(program: Program, timeout: float, memory: int, protected: bool) -> Verdict:
    secret = secrets.token_bytes(16)
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as errors:
        _write_source(source, program, secret, timeout, memory, protected)
        verdict_out, verdict_in = os.pipe()
        try:
            process = subprocess.Popen(
                [*(_bubblewrap() if protected else ()), *_python(), str(source.fileno()), str(verdict_in)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(source.fileno(), verdict_in),
                env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "HOME": "/tmp"},
                cwd=None if protected else tempfile.gettempdir(),
                start_new_session=True,
            )
            os.close(verdict_in)
            try:
                return _await(process, verdict_out, errors, secret, timeout)
            finally:
                _kill(process)
        finally:
            os.close(verdict_out)


def _write_source(
    source: IO[bytes], program: Program, secret: bytes, timeout: float, memory: int, protected: bool
) -> None:
    """What the supervisor reads, in frames: its own code, settings, the candidate, then secret and test."""
    names = program.names if program.names is not None else free_names(program.test)
    limits = {
        "RLIMIT_AS": memory,
        "RLIMIT_CPU": math.ceil(timeout),
        "RLIMIT_FSIZE": FILE_SIZE,
        "RLIMIT_NPROC": PROCESSES + _others(protected),
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }
    settings = (limits, _unused_uid() if protected and os.geteuid() == 0 else None, float(timeout), timeout * WALL)
    candidate = program.candidate.encode("utf-8", "replace")
    test = (secret, program.test, tuple(names))
    for frame in (_worker_code(), marshal.dumps(settings), candidate, marshal.dumps(test)):
        source.write(struct.pack("<I", len(frame)) + frame)
    source.flush()
    source.seek(0)


def _await(process: subprocess.Popen, fd: int, errors: IO[bytes], secret: bytes, timeout: float) -> Verdict:
    """Reads "ready" and the verdict; what comes late, cut off or without the secret is a failure."""
    frames = _frames(fd, time.monotonic() + START_SECONDS, 1)
    if frames != [b"ready"]:
        _kill(process)
        errors.seek(0)
        lines = errors.read(4096).decode("utf-8", "replace").strip().splitlines()
        raise SandboxError(lines[-1] if lines else f"exit status {process.returncode}")
    deadline = (
        time.monotonic() + timeout * WALL + 2
    )  # the supervisor keeps the time limit itself, unless its test is stuck
    frames = _frames(fd, deadline, 3)
    if len(frames) < 3:
        return Verdict(False, "timeout" if time.monotonic() >= deadline else "the sandbox ended without a verdict")
    if not secrets.compare_digest(frames[0], secret):
        return Verdict(False, "the verdict lacks the secret")
    reason, output = (frame.decode("utf-8", "replace") for frame in frames[1:])
    return Verdict(not reason, reason, output)


def _frames(fd: int, deadline: float, count: int) -> list[bytes]:
    """Up to `count` length-prefixed frames; fewer if the pipe ends or time is up."""
    data = b""
    frames: list[bytes] = []
    while len(frames) < count:
        if len(data) >= 4 and len(data) >= 4 + (size := struct.unpack_from("<I", data)[0]):
            frames.append(data[4 : 4 + size])
            data = data[4 + size :]
            continue
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            break
        wanted = 4 if len(data) < 4 else 4 + struct.unpack_from("<I", data)[0]
        part = os.read(fd, max(1, wanted - len(data)))
        if not part:
            break
        data += part
    return frames


def _kill(process: subprocess.Popen) -> None:
    """Ends the group and waits; inside a sandbox the kernel ends every process with the first one."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.poll()
    process.wait()


# ------------------------------------------------------------------------------------------------------- the commands


@functools.cache
def _worker_code() -> bytes:
    paths = [Path(__file__).parent.parent / f"{name.replace('.', '/')}.py" for name in _MODULES]
    codes = [compile(path.read_text(encoding="utf-8"), path.name, "exec") for path in paths]
    return marshal.dumps(list(zip(_MODULES, codes, strict=True)))


def _python() -> list[str]:
    """The base interpreter (not the virtual environment's), without site-packages and without writing bytecode."""
    executable = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
    return [executable, "-S", "-s", "-B", "-X", "utf8", "-c", _BOOT]


@functools.cache
def _bubblewrap() -> list[str]:
    """The bubblewrap command up to the program: what the sandbox sees and may do."""
    command = ["bwrap", "--die-with-parent", "--new-session", "--as-pid-1", "--unshare-pid", "--unshare-net"]
    command += ["--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox"]
    if os.geteuid() == 0:
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    base, executable = sys.base_prefix, _python()[0]
    folders = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/nix/store"]
    folders += [f"{base}/{name}" for name in ("lib", "lib64") if base != "/usr"]
    links = [folder for folder in folders if os.path.islink(folder)]
    seen = [path for path in (*folders, executable, "/etc/ld.so.cache") if os.path.exists(path) and path not in links]
    for parent in sorted(
        {parent for path in (*seen, *links, "/dev/null") for parent in Path(path).parents} - {Path("/")}
    ):
        command += ["--perms", "0755", "--dir", str(parent)]  # bubblewrap would make them 0700
    for path in links:
        command += ["--symlink", os.readlink(path), path]
    for path in seen:
        command += ["--ro-bind", path, path]
    packages = sysconfig.get_path("purelib", vars={"base": base})
    if packages.startswith(f"{base}/lib") and os.path.isdir(packages):
        command += ["--size", "4096", "--tmpfs", packages, "--remount-ro", packages]
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        command += ["--dev-bind", device, device]
    command += ["--perms", "1777", "--size", str(TMP_SIZE), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]
    return command


def _unused_uid() -> int:
    """A user id nobody has, so that the process limit counts this sandbox alone; "nobody" in containers without."""
    uid = (1 << 30) + secrets.randbelow(1 << 28)
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        start, _, count = map(int, line.split())
        if start <= uid < start + count:
            return uid
    return 65534


def _others(protected: bool) -> int:
    """Processes that count against the limit besides the sandbox's own: from Linux 5.14 a namespace counts its own."""
    if sys.platform == "linux" and protected:
        release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
        if os.geteuid() == 0 or release >= (5, 14):
            return 0
    return 64 + sum(_threads(folder) for folder in Path("/proc").glob("[0-9]*"))


def _threads(folder: Path) -> int:
    try:
        return len(os.listdir(folder / "task")) if folder.stat().st_uid == os.getuid() else 0
    except OSError:  # it has ended meanwhile
        return 0


def free_names(source: str) -> tuple[str, ...]:
    """The names a test reads but neither defines nor finds among the builtins; none if it doesn't compile."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ()
    read: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
    return tuple(sorted(read - bound - set(dir(builtins))))
