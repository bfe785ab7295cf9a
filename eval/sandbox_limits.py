"""What a sandboxed process can't do, set from within before anything untrusted runs (see `eval/sandbox.py`)."""

import ctypes
import os
import resource
import struct
import sys

SIGKILL = 9
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column below, AUDIT_ARCH
REFUSED = (  # system calls (x86_64, aarch64) that no solution needs: escape hatches, and memory outside RLIMIT_AS
    (59, 221), (322, 281),  # execve, execveat
    (41, 198),  # socket: vsock and others know no network namespace
    (101, 117), (310, 270), (311, 271), (438, 438), (312, 272),  # ptrace, process_vm_*, pidfd_getfd, kcmp
    (272, 97), (308, 268), (165, 40), (166, 39), (155, 41),  # unshare, setns, mount, umount2, pivot_root
    (428, 428), (429, 429), (430, 430), (432, 432), (442, 442),  # open_tree ... mount_setattr
    (248, 217), (249, 218), (250, 219),  # keys
    (321, 280), (298, 241), (323, 282), (425, 425),  # bpf, perf_event_open, userfaultfd, io_uring_setup
    (319, 279), (447, 447), (29, 194), (68, 186), (64, 190),  # memfd_*, System V shared memory, queues, semaphores
)  # fmt: skip
NEW_NAMESPACES = 0x7E020000  # CLONE_NEW* flags of clone


def prctl(*args):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(*(ctypes.c_ulong(arg) if isinstance(arg, int) else arg for arg in args)):
        raise OSError(ctypes.get_errno(), "prctl")


def refuse_system_calls():
    """A seccomp filter over `REFUSED`, for this process and its children; none on machines not in `MACHINES`."""
    column, audit = MACHINES.get(os.uname().machine, (0, 0))
    if not audit:
        return
    denied, missing, allowed = 0x00050001, 0x00050026, 0x7FFF0000  # errno EPERM, errno ENOSYS, allow
    clone, clone3 = (56, 220)[column], 435
    jump, load, back = 0x15, 0x20, 0x06  # BPF_JMP|JEQ|K, BPF_LD|W|ABS, BPF_RET|K
    code = [(load, 0, 0, 4), (jump, 1, 0, audit), (back, 0, 0, denied), (load, 0, 0, 0)]
    code += [(0x35, 0, 1, 0x40000000), (back, 0, 0, denied)]  # BPF_JGE: the x32 interface would renumber the calls
    for pair in REFUSED:
        code += [(jump, 0, 1, pair[column]), (back, 0, 0, denied)]
    code += [(jump, 0, 1, clone3), (back, 0, 0, missing)]  # its flags are behind a pointer; libc falls back to clone
    code += [(jump, 0, 3, clone), (load, 0, 0, 16), (0x45, 0, 1, NEW_NAMESPACES), (back, 0, 0, denied)]
    code += [(back, 0, 0, allowed)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in code))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(program)))
    prctl(PR_SET_SECCOMP, 2, ctypes.byref(header), 0, 0)


def confine(limits, uid):
    """Sets hard limits on every process from here on, leaves root for `uid`, and shuts the doors between processes."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard < 0 else min(value, hard)
        resource.setrlimit(kind, (value, value))
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if sys.platform == "linux":
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)  # changing the uid has cleared it
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # same-uid processes may not trace or read this one
        refuse_system_calls()
