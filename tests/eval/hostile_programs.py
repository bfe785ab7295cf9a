# ruff: noqa: E501 - programs, one per string
"""Programs that try to pass `assert f(2) == 3` and `assert f(10) == 11` without computing it, or to do harm.

name -> (source, a pattern of the reason of the failure). Each has `attempt`, which prints "DONE" where it gets
through, and the names CANARY and REPOSITORY of files of the host.
"""

REPORT = """
import os, sys, time
def attempt(name, action):
    try:
        print(name, "DONE", str(action())[:200])
    except BaseException as error:
        print(name, "refused", type(error).__name__)
"""

HOSTILE = {
    # passing without an answer
    "exit status 0": ("os._exit(0)", "ended itself with status 0"),
    "sys.exit 0": ("sys.exit(0)", "SystemExit"),
    "exit status 0 when called": ("def f(x): os._exit(0)", "ended itself"),
    "exit at the end": ("import atexit\natexit.register(os._exit, 0)\ndef f(x): return None", "Assertion"),
    "printed verdict": ("print('ready')\nprint('passed 1')\ndef f(x): return None", "Assertion"),
    "token from standard input": (
        "text = sys.stdin.read() + str(os.read(0, 10**6))\nprint('DONE' if 'token' in text else '-', text)\nos._exit(0)",
        "ended itself",
    ),
    "token from any descriptor": (
        "for fd in range(64):\n  if fd not in (1, 2):\n    try:\n      os.lseek(fd, 0, 0)\n"
        "      print('DONE', os.read(fd, 10**6))\n    except OSError: pass\nos._exit(0)",
        "ended itself",
    ),
    "token from the environment and arguments": ("print(os.environ, sys.argv, sys.orig_argv)\nos._exit(0)", "ended"),
    "token from /proc": (
        "for name in ('self/environ', 'self/cmdline', 'self/fd/0', 'self/mem', '1/mem', '1/environ'):\n"
        "  attempt(name, lambda: open('/proc/' + name, 'rb').read(10))\nos._exit(0)",
        "ended itself",
    ),
    "token from files": (
        "found = [os.path.join(folder, name) for top in ('/tmp', '/home', '/var', '/run')\n"
        "         for folder, _, names in os.walk(top) for name in names]\n"
        "attempt('files', lambda: found[0])\nos._exit(0)",
        "ended itself",
    ),
    "crashing the interpreter": ("import ctypes\nctypes.string_at(0)", "signal 11"),
    "exception out of bounds": (
        "class Evil(BaseException):\n  def __str__(self): raise self\ndef f(x): raise Evil",
        "Evil|ended",
    ),
    # killing and staying
    "killing the parent": (
        "import signal\nfor pid in (1, os.getppid(), -1):\n  for number in (15, 2, 1, 19, 9):\n"
        "    try: os.kill(pid, number)\n    except OSError: pass\ndef f(x): return None",
        "",
    ),
    "signals to all others": (
        "import signal\nfor pid in range(2, 40000):\n  try: pid == os.getpid() or os.kill(pid, 9)\n"
        "  except OSError: pass\ndef f(x): return None",
        "",
    ),
    "signal handlers": (
        "import signal\nfor n in range(1, 65):\n  try: signal.signal(n, lambda *a: None)\n"
        "  except (OSError, ValueError): pass\nwhile True: pass",
        "timeout",
    ),
    "leftover daemon": (
        "import ctypes\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n"
        "    ctypes.CDLL(None).prctl(15, b'astra-hostile')\n    time.sleep(600)\n  os._exit(0)\ndef f(x): return None",
        "Assertion",
    ),
    "leftover thread": (
        "import threading\nthreading.Thread(target=time.sleep, args=(600,)).start()\ndef f(x): return None",
        "Assertion",
    ),
    # using up
    "infinite loop": ("while True: pass", "timeout"),
    "sleep": ("time.sleep(600)", "timeout"),
    "sleep when called": ("def f(x): time.sleep(600)", "timeout"),
    "fork bomb": ("while True:\n  try: os.fork()\n  except OSError: pass", "timeout"),
    "fork count": (
        "n = 0\nwhile n < 1000:\n  try:\n    if os.fork() == 0: time.sleep(600)\n    n += 1\n"
        "  except OSError: break\nprint('started', n)\ndef f(x): return None",
        "Assertion",
    ),
    "thread bomb": (
        "import threading\nn = 0\ntry:\n  while n < 1000:\n    threading.Thread(target=time.sleep, args=(600,), "
        "daemon=True).start()\n    n += 1\nexcept RuntimeError: pass\nprint('started', n)\ndef f(x): return None",
        "Assertion",
    ),
    "memory bomb": ("x = []\nwhile True: x.append(bytearray(1 << 24))", "MemoryError|out of memory|signal 9"),
    "memory over processes": (
        "for i in range(8):\n  if os.fork() == 0:\n    x = bytearray(b'1') * (3 << 26)\n    time.sleep(600)\ntime.sleep(600)",
        "out of memory|signal 9|timeout",
    ),
    "big number": ("x = 10 ** 10 ** 10", ""),
    "deep recursion": ("def f(x): return f(x)", "RecursionError"),
    "endless output": ("while True: print('x' * 1000)", "printed too much"),
    "endless output of bytes": ("while True: os.write(2, b'\\xff' * 4096)", "printed too much"),
    "disk bomb": (
        "def fill():\n  for i in range(1000):\n    with open(f'/tmp/{i}', 'wb') as file:\n"
        "      file.write(bytes(1 << 20))\nattempt('disk', fill)\ndef f(x): return None",
        "Assertion",
    ),
    "large file": ("attempt('file', lambda: open('/tmp/x', 'wb').write(bytes(1 << 25)))\ndef f(x): return None", ""),
    "many files": (
        "attempt('files', lambda: [open('/dev/null') for _ in range(1000)])\ndef f(x): return None",
        "Assertion",
    ),
    # getting out
    "deleting files": (
        "import shutil\nattempt('remove', lambda: os.remove(CANARY))\nattempt('rmtree', lambda: shutil.rmtree('/usr'))\n"
        "attempt('library', lambda: open(os.__file__, 'a'))\nattempt('root', lambda: open('/file', 'w'))\n"
        "attempt('numpy', lambda: open('/packages/numpy/x', 'w'))\nattempt('dev', lambda: open('/dev/file', 'w'))",
        "NameError",
    ),
    "reading files": (
        "for name in ('/etc/shadow', '/etc/passwd', '../etc/passwd', CANARY, REPOSITORY, '/root/.ssh', '/home',\n"
        "             '/sys/class', '/dev/mem', '/proc/1/root/etc/passwd', '/var/log'):\n"
        "  attempt('read', lambda: open(name).read())\n  attempt('list', lambda: os.listdir(name))",
        "NameError",
    ),
    "network": (
        "import socket\nattempt('dns', lambda: socket.getaddrinfo('example.com', 80))\n"
        "attempt('tcp', lambda: socket.create_connection(('127.0.0.1', 22), 1))\n"
        "attempt('out', lambda: socket.create_connection(('1.1.1.1', 53), 1))",
        "NameError",
    ),
    "shell": (
        "import subprocess\nattempt('shell', lambda: subprocess.check_output('id', shell=True))\n"
        "attempt('system', lambda: {0: 'ran'}[os.system('id')])",
        "NameError",
    ),
    "namespaces and mounts": (
        "import ctypes\nlibc = ctypes.CDLL(None)\nfor name, status in (\n"
        "    ('mount', libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)), ('setuid', libc.setuid(0)),\n"
        "    ('chroot', libc.chroot(b'/tmp')), ('hostname', libc.sethostname(b'x', 1)), ('reboot', libc.reboot(0))):\n"
        "  print(name, 'DONE' if status == 0 else 'refused')",
        "NameError",
    ),
    "raising its limits": (
        "import resource as r\nfor name in ('AS', 'CPU', 'NPROC', 'FSIZE', 'NOFILE'):\n"
        "  attempt(name, lambda: r.setrlimit(getattr(r, 'RLIMIT_' + name), (r.RLIM_INFINITY, r.RLIM_INFINITY)))\n",
        "NameError",
    ),
    "typing into the terminal": (
        "import fcntl, termios\nattempt('tty', lambda: open('/dev/tty'))\n"
        "attempt('ioctl', lambda: fcntl.ioctl(2, termios.TIOCSTI, b'x'))",
        "NameError",
    ),
    "tracing others": (
        "import ctypes\nlibc = ctypes.CDLL(None)\nfor pid in (1, os.getppid()):\n"
        "  if pid != os.getpid(): print('ptrace', 'DONE' if libc.ptrace(16, 4242, 0, 0) == 0 else 'refused')",
        "NameError",
    ),
}
