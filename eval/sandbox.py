"""Run generated programs against their tests, each in a bubblewrap sandbox of its own.

A sandbox has its own process, network, IPC and host-name namespaces; a read-only file system of nothing but the C
library, Python's library and NumPy, and a small private /tmp; no /proc, no shell, no environment; and the limits
below. Memory is bounded for the whole program: by a cgroup where this process may make one (as root), and everywhere
by the summed resident size of its processes, read every 50 ms, beside the limit of each on its address space. Without
a cgroup, memory that belongs to no process (memory files, System V segments) is not counted. At the end, or at a
limit, the kernel ends all processes of the namespace.

Candidate and test run in one process, as in every published harness. A pass needs a random token, sent on standard
input, that only the end of the test prints: leaving early, exit codes and printed words fake nothing. It does not stop
a program that searches the interpreter's frames for the token, or replaces what the test compares with; a model that
was never rewarded for passing tests does neither.
"""

import functools
import json
import os
import platform
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from utils.errors import UserError
from utils.log import log, progress

WALL = 15.0  # seconds from the program's start
CPU = 10  # seconds, per process
MEMORY = 1 << 30  # bytes: resident, of all processes together; and address space, per process
PROCESSES = 16  # threads count too
OUTPUT = 1 << 20  # bytes printed
FILE_SIZE = 1 << 24  # bytes per file
TMP_SIZE = 1 << 25  # bytes of /tmp
START_SECONDS = 60  # for a sandbox to come up on a busy machine
TICK = 0.05  # seconds between two looks at a program's processes
_MODES = ("root", "namespace")
_PYTHON = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)  # not the virtual environment's

# What runs inside: reads everything, gives up root and standard input, then runs candidate and test in one namespace.
_BOOT = r"""
import json, os, resource, sys
given = json.loads(sys.stdin.buffer.read())
os.dup2(os.open("/dev/null", os.O_RDONLY), 0), os.dup2(1, 2)
if given["uid"]:
    os.setgroups([]), os.setgid(given["uid"]), os.setuid(given["uid"])
for name, value in given["limits"].items():
    resource.setrlimit(getattr(resource, name), (value, value + 1))  # the soft limit of CPU time can be told apart
sys.path[:], sys.argv[:] = [path for path in sys.path if path] + given["packages"], ["program"]
os.write(1, b"ready\n")
def run(given, exit=os._exit, write=os.write, out=sys.stdout):
    space = (sys.modules.setdefault("program", type(sys)("program"))).__dict__
    try:
        for part in ("candidate", "test"):
            exec(compile(given[part], part, "exec"), space)
        out.flush(), write(1, str(given["token"]).encode()), exit(0)
    except BaseException as error:
        import traceback
        reason = traceback.format_exception_only(error)[-1].strip().partition("\n")[0][:500]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "test"]
        if lines:
            reason += " [" + given["test"].splitlines()[lines[-1] - 1].strip()[:200] + "]"
        out.flush(), write(1, ("\n" + reason).encode("utf-8", "replace")), exit(1)
run(given)
"""


@dataclass(frozen=True)
class Program:
    """Source of a candidate, and of its test, which runs after it in the same namespace and fails by raising."""

    candidate: str
    test: str


@dataclass(frozen=True)
class Verdict:
    """What became of a program."""

    passed: bool  # its test ran to the end
    reason: str = ""  # why not, in one line
    output: str = ""  # what it printed
    flag: str = ""  # "timeout", or "sandbox": two sandboxes in a row failed to start


def run_all(
    programs: Iterable[Program], workers: int | None = None, wall: float = WALL, unsafe: bool = False
) -> list[Verdict]:
    """Run programs, `workers` at a time (default: one per core), `wall` seconds each; verdicts in their order.

    Where bubblewrap does not work, `unsafe` runs them in plain processes with limits instead of raising `UserError`.
    """
    check(unsafe)
    programs = list(programs)
    if reason := available():
        log.warning("RUNNING GENERATED CODE UNPROTECTED, with the rights of this user (eval.unsafe_code): %s", reason)
    command = [] if reason else _bubblewrap(_mode())
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        verdicts = pool.map(lambda program: _run_twice(program, command, wall), programs)
        return list(progress(verdicts, "running programs", len(programs), "programs"))


def check(unsafe: bool) -> None:
    """Raise a `UserError` where there is no working sandbox, unless `unsafe`."""
    if (reason := available()) and not unsafe:
        raise UserError(f"eval.unsafe_code: {reason}; true runs generated code unprotected")


@functools.cache
def available() -> str | None:
    """Return None if programs can be sandboxed here, else the reason why not, in one line."""
    if sys.platform != "linux" or shutil.which("bwrap") is None:
        return "bubblewrap is not installed (Debian, Ubuntu: apt install bubblewrap)"
    allow = "sysctl kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0, or for a "
    allow += "container docker run --security-opt seccomp=unconfined or --cap-add SYS_ADMIN"
    return None if _mode() in _MODES else f"bubblewrap can't start here ({_mode()}); allow user namespaces: {allow}"


@functools.cache
def _mode() -> str:
    """How bubblewrap works here: as "root", given up inside, or in a user "namespace"; or why it doesn't."""
    trial = Program("import numpy" if _numpy() else "", "")
    for mode in _MODES if os.geteuid() == 0 else _MODES[1:]:
        verdict = _run_twice(trial, _bubblewrap(mode), WALL)
        if verdict.passed:
            return mode
    return verdict.reason


def _bubblewrap(mode: str) -> list[str]:
    """The bubblewrap command up to the program: what the sandbox sees and may do."""
    command = [shutil.which("bwrap") or "bwrap", "--die-with-parent", "--new-session", "--unshare-pid"]
    command += ["--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox"]
    if mode == "root":
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    seen = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/alternatives"]
    seen += [f"{sys.base_prefix}/{name}" for name in ("lib", "lib64") if sys.base_prefix != "/usr"] + [_PYTHON]
    links = [path for path in seen if os.path.islink(path)]
    binds = {path: path for path in seen if os.path.exists(path) and path not in links} | _numpy()
    above = {parent for path in (*binds.values(), *links, "/dev/null") for parent in Path(path).parents} - {Path("/")}
    for parent in sorted(above):
        command += ["--perms", "0755", "--dir", str(parent)]  # bubblewrap would make them 0700
    for path in links:
        command += ["--symlink", os.readlink(path), path]
    for path, inside in binds.items():
        command += ["--ro-bind", path, inside]
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        command += ["--dev-bind", device, device]
    command += ["--perms", "1777", "--size", str(TMP_SIZE), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]
    return command


@functools.cache
def _numpy() -> dict[str, str]:
    """Return NumPy's folders and where the sandbox has them; nothing where it is not installed."""
    spec = find_spec("numpy")
    folder = Path(spec.origin).parent if spec and spec.origin else Path("/nowhere")
    folders = (folder, folder.with_name("numpy.libs"))
    return {str(path): f"/packages/{path.name}" for path in folders if path.is_dir()}


def _run_twice(program: Program, command: list[str], wall: float) -> Verdict:
    """Run a program, and once more if its sandbox fails to start; then mark it as not run."""
    for _ in range(2):
        try:
            return _run(program, command, wall)
        except OSError as error:
            reason = str(error)
    return Verdict(False, f"the sandbox failed to start: {reason}", flag="sandbox")


def _run(program: Program, command: list[str], wall: float) -> Verdict:
    as_root = bool(command) and "--unshare-user" not in command
    limits = {"RLIMIT_AS": MEMORY, "RLIMIT_CPU": CPU, "RLIMIT_FSIZE": FILE_SIZE, "RLIMIT_NOFILE": 64, "RLIMIT_CORE": 0}
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if as_root or (command and release >= (5, 14)):  # else it would count all processes of this user
        limits["RLIMIT_NPROC"] = PROCESSES
    given = {
        "token": secrets.token_hex(16),
        "limits": limits,
        "uid": (1 << 30) + secrets.randbelow(1 << 28) if as_root else None,  # nobody's: its processes are all ours
        "packages": ["/packages"] if command else [str(Path(path).parent) for path in _numpy()][:1],
        "candidate": program.candidate.encode("utf-8", "replace").decode(),
        "test": program.test,
    }
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as errors, _cgroup() as group:
        source.write(json.dumps(given).encode())
        source.seek(0)
        enter = ["/bin/sh", "-c", 'echo $$ > "$0"; exec "$@"', group] if group else []
        with subprocess.Popen(
            [*enter, *command, _PYTHON, "-S", "-s", "-B", "-X", "utf8", "-c", _BOOT],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "HOME": "/tmp", "OPENBLAS_NUM_THREADS": "1"},
            cwd=None if command else tempfile.gettempdir(),
            start_new_session=True,
        ) as process:
            try:
                printed, stopped = _watch(process, wall)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if not printed.startswith(b"ready\n"):
            errors.seek(0)
            lines = errors.read(4096).decode("utf-8", "replace").strip().splitlines()
            raise OSError(lines[-1] if lines else stopped or f"exit status {process.returncode}")
        return _verdict(printed.removeprefix(b"ready\n"), stopped, process.returncode, str(given["token"]).encode())


def _watch(process: subprocess.Popen, wall: float) -> tuple[bytes, str]:
    """What a program prints, and why it was stopped; "" if it ended by itself."""
    assert process.stdout is not None
    printed, looked, deadline, ready = b"", time.monotonic(), time.monotonic() + START_SECONDS, False
    while (now := time.monotonic()) < deadline:
        if select.select([process.stdout], [], [], min(TICK, deadline - now))[0]:
            part = os.read(process.stdout.fileno(), 1 << 16)
            if not part:
                return printed, ""
            printed += part
            if not ready and printed.startswith(b"ready\n"):
                ready, deadline = True, time.monotonic() + wall
            if len(printed) > OUTPUT:
                return printed, "printed too much"
        if time.monotonic() - looked >= TICK:
            looked = time.monotonic()
            if reason := _too_large(process.pid):
                return printed, reason
    return printed, "timeout"


def _too_large(pid: int) -> str:
    """Say which of the limits on all its processes together a program is beyond; "" if none."""
    family, threads, pages = {pid}, 0, 0
    for number in sorted(int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) >= pid):
        with suppress(OSError):  # it has ended meanwhile
            fields = Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()
            if number == pid or int(fields[1]) in family:
                family.add(number)
                threads, pages = threads + int(fields[17]), pages + int(fields[21])
    if pages * os.sysconf("SC_PAGE_SIZE") > MEMORY:
        return "out of memory"
    return "too many processes" if threads > PROCESSES + 3 else ""  # bubblewrap has some of its own


def _verdict(output: bytes, stopped: str, status: int, token: bytes) -> Verdict:
    text = output.removesuffix(token).decode("utf-8", "replace")
    if not stopped and output.endswith(token):
        return Verdict(True, output=text)
    number = -status if status < 0 else status - 128  # bubblewrap's way to say that a signal ended the program
    if not stopped and status == 1:
        text, _, stopped = text.rpartition("\n")
    ended = f"ended by signal {number}" if 0 < number < 65 else f"ended itself with status {status}"
    stopped = stopped or ("timeout" if number == signal.SIGXCPU else ended)
    return Verdict(False, stopped, text, "timeout" if stopped == "timeout" else "")


@functools.cache
def _cgroup_parent() -> Path | None:
    """The cgroup below which this process may make others that bound memory; None if there is none."""
    paths = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    own = Path("/sys/fs/cgroup" + paths.get("", "/none"))  # version 2; a group with processes hands nothing down
    controls = [(folder, folder / "cgroup.subtree_control") for folder in (own, *own.parents)]
    found = [folder for folder, control in controls if control.is_file() and "memory" in control.read_text().split()]
    found.append(Path("/sys/fs/cgroup/memory" + paths.get("memory", "/none")))  # version 1
    return next((folder for folder in found if os.access(folder / "cgroup.procs", os.W_OK)), None)


@contextmanager
def _cgroup() -> Iterator[str | None]:
    """Make a cgroup that holds a program to `MEMORY`; yield the file that takes its process, None if we may not."""
    folder = (_cgroup_parent() or Path("/none")) / f"astra-{secrets.token_hex(8)}"
    try:
        folder.mkdir()
        limit = folder / "memory.max"
        (limit if limit.exists() else folder / "memory.limit_in_bytes").write_text(str(MEMORY))
    except OSError:
        yield None
        return
    try:
        yield str(folder / "cgroup.procs")
    finally:
        for pause in [TICK / 10] * 200:
            with suppress(OSError):  # its last process is about to end
                folder.rmdir()
                break
            time.sleep(pause)
