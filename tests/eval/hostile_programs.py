# ruff: noqa: E501 - programs, one a string
"""Programs that try to pass `assert f(2) == 3`, `assert f(10) == 11` without computing it, or to do harm.

name -> (source, a pattern of the reason of the failure). What a program prints is checked in `test_sandbox.py`.
"""

REPORT = """
def attempt(name, action):
    try:
        print(name, "DONE", str(action())[:200])
    except BaseException as error:
        print(name, "refused", type(error).__name__)
"""

HOSTILE = {
    # faking the verdict
    "exit status 0": ("import os\nos._exit(0)", "ended itself"),
    "sys.exit 0": ("import sys\nsys.exit(0)", "SystemExit"),
    "exit status 0 when called": ("import os\ndef f(x): os._exit(0)", "ended itself"),
    "printed verdict": (
        "print('ready')\nprint('{\"passed\": true}\\nOK 1 passed')\ndef f(x): return None",
        "Assertion",
    ),
    "equal to everything": (
        "class E(int):\n  def __eq__(s, o): return True\n  __hash__ = int.__hash__\ndef f(x): return E(0)",
        "Assertion",
    ),
    "object equal to everything": (
        "class E:\n  def __eq__(s, o): return True\n  def __ne__(s, o): return False\ndef f(x): return E()",
        "Assertion",
    ),
    "metaclass equal to everything": (
        "class M(type):\n  def __eq__(s, o): return True\n  __hash__ = type.__hash__\nclass C(metaclass=M): pass\n"
        "def f(x): return C",
        "Assertion",
    ),
    "patched builtins": (
        "import builtins, sys\nbuiltins.AssertionError = ValueError\nbuiltins.exec = lambda *a: None\n"
        "builtins.compile = lambda *a, **k: None\nbuiltins.isinstance = lambda *a: True\nbuiltins.__import__ = None\n"
        "def f(x): return None",
        "",
    ),
    "patched worker": (
        "import sys\nwork = sys._getframe(1)\nwhile work.f_back: work = work.f_back\n"
        "for frame in [work]:\n  frame.f_globals['judge'] = lambda *a: ''\n"
        "import os\nos.write = lambda *a: 0\ndef f(x): return None",
        "",
    ),
    "frames and gc for the test": (
        "import gc, sys\ndef f(x):\n  texts = [repr(o)[:9999] for o in gc.get_objects() if isinstance(o, (list, tuple))]\n"
        "  frame = sys._getframe()\n  while frame:\n    texts.append(str(frame.f_locals) + str(frame.f_globals))\n"
        "    frame = frame.f_back\n  print('FOUND' if any(chr(61) * 2 + ' ' + chr(49) * 2 in t for t in texts) else '-')\n",
        "Assertion",
    ),
    "writing to every descriptor": (
        "import os, struct\nfor fd in range(3, 256):\n  for text in (b'', b'ready', bytes(16)):\n"
        "    try: os.write(fd, struct.pack('<I', len(text)) + text)\n    except OSError: pass\ndef f(x): return None",
        "",
    ),
    "answering before being asked": (
        "import os, struct\nvalue = b't' + struct.pack('<I', 2) + b's' + struct.pack('<I', 5) + b'value' + b'N'\n"
        "for fd in range(3, 64):\n  try: os.write(fd, (struct.pack('<I', len(value)) + value) * 9)\n"
        "  except OSError: pass\ndef f(x): return None",
        "",
    ),
    "truncated answer": (
        "import os, struct\nfor fd in range(3, 64):\n  try: os.write(fd, struct.pack('<I', 10) + b'l' + b'\\xff' * 9)\n"
        "  except OSError: pass",
        "garbage",
    ),
    "endless answer": (
        "import os, struct\nfor fd in range(3, 64):\n  try: os.write(fd, struct.pack('<I', 2**32 - 1))\n"
        "  except OSError: pass",
        "too large",
    ),
    "reading the secret from memory": (
        REPORT + "import os\nattempt('maps', lambda: open('/proc/1/mem', 'rb').read(10))\n"
        "attempt('self', lambda: os.listdir('/proc/self/fd'))\nattempt('environ', lambda: open('/proc/1/environ').read())",
        "NameError",
    ),
    "tracing the supervisor": (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nprint('ptrace', libc.ptrace(16, os.getppid(), 0, 0))\n"
        "class V(ctypes.Structure): _fields_ = [('p', ctypes.c_void_p), ('n', ctypes.c_size_t)]\n"
        "b = ctypes.create_string_buffer(64)\nv = V(ctypes.addressof(b), 64)\n"
        "print('readv', libc.process_vm_readv(os.getppid(), ctypes.byref(v), 1, ctypes.byref(v), 1, 0))",
        "NameError",
    ),
    "crashing the interpreter": ("import ctypes\nctypes.string_at(0)", "signal 11"),
    "trace hooks": (
        "import sys, threading\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\n"
        "sys.addaudithook(lambda *a: None)\ndef f(x): return None",
        "Assertion",
    ),
    "ending the test's loop": ("def f(x): raise StopIteration", "CandidateError"),
    "exception out of bounds": (
        "class Evil(BaseException):\n  def __str__(self): raise self\ndef f(x): raise Evil",
        "ended itself",
    ),
    "module in the way": (
        "import os\nfor name in ('decimal', 'json', 'builtins', 'datetime'):\n"
        "  open(name + '.py', 'w').write('import os; os._exit(0)')\nimport decimal\n"
        "def f(x): return decimal.Decimal(5)",
        "",
    ),
    "atexit and finalisers": (
        "import atexit, os\natexit.register(os._exit, 0)\nclass D:\n  def __del__(self): os._exit(0)\n"
        "def f(x):\n  D()\n  return None",
        "ended itself",
    ),
    # killing and staying
    "killing the parent": (
        "import os, signal\nfor pid in (1, os.getppid(), -1, 0):\n  for number in (15, 2, 1, 19, 9):\n"
        "    try: os.kill(pid, number) if pid or number == 15 else None\n    except OSError: pass\ndef f(x): return None",
        "",
    ),
    "signal handlers": (
        "import signal, time\nfor n in range(1, 65):\n  try: signal.signal(n, lambda *a: None)\n"
        "  except (OSError, ValueError): pass\nwhile True: pass",
        "timeout",
    ),
    "leftover daemon": (
        "import os, time, ctypes\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n"
        "    ctypes.CDLL(None).prctl(15, b'astra-hostile')\n    time.sleep(600)\n  os._exit(0)\ndef f(x): return None",
        "Assertion",
    ),
    "leftover thread": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\ndef f(x): return None",
        "Assertion",
    ),
    # using up
    "infinite loop": ("while True: pass", "timeout"),
    "infinite loop when called": ("def f(x):\n  while True: pass", "timeout"),
    "sleep": ("import time\ntime.sleep(600)", "timeout"),
    "fork bomb": (
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        "timeout",
    ),
    "fork count": (
        "import os, time\nn = 0\nwhile n < 1000:\n  try:\n    if os.fork() == 0: time.sleep(600)\n    n += 1\n"
        "  except OSError: break\nprint('forked', n)\ndef f(x): return None",
        "Assertion",
    ),
    "thread bomb": (
        "import threading, time\nn = 0\ntry:\n  while n < 1000:\n    threading.Thread(target=time.sleep, args=(600,), "
        "daemon=True).start()\n    n += 1\nexcept RuntimeError: pass\nprint('threads', n)\ndef f(x): return None",
        "Assertion",
    ),
    "memory bomb": ("x = []\nwhile True: x.append(bytearray(1 << 24))", "MemoryError|timeout"),
    "big number": ("x = 10 ** 10 ** 10", ""),
    "deep recursion": ("def f(x): return f(x)", "RecursionError"),
    "deep value": ("def f(x):\n  v = []\n  for _ in range(10 ** 5): v = [v]\n  return v", ""),
    "endless output": ("while True: print('x' * 1000)", "printed too much"),
    "endless output of bytes": ("import os\nwhile True: os.write(2, b'\\xff' * 4096)", "printed too much"),
    "disk bomb": (
        REPORT + "def fill():\n  for i in range(1000):\n    with open(f'/tmp/{i}', 'wb') as file:\n"
        "      file.write(bytes(1 << 20))\nattempt('disk', fill)\ndef f(x): return None",
        "Assertion",
    ),
    "large file": (
        REPORT + "attempt('file', lambda: open('/tmp/x', 'wb').write(bytes(1 << 25)))\n"
        "attempt('shm', lambda: open('/dev/shm/x', 'wb').write(bytes(1 << 25)))\ndef f(x): return None",
        "",
    ),
    "memory outside the limit": (
        REPORT + "import os, ctypes\nattempt('memfd', lambda: os.memfd_create('x'))\n"
        "print('shmget', ctypes.CDLL(None).shmget(0, 1 << 28, 0o1600))\ndef f(x): return None",
        "Assertion",
    ),
    # getting out
    "deleting files": (
        REPORT + "import os, shutil\nattempt('remove', lambda: os.remove(CANARY))\n"
        "attempt('rmtree', lambda: shutil.rmtree('/usr'))\nattempt('library', lambda: open(os.__file__, 'a'))\n"
        "attempt('root', lambda: open('/file', 'w'))\nattempt('dev', lambda: open('/dev/file', 'w'))",
        "NameError",
    ),
    "reading files": (
        REPORT
        + "for name in ('/etc/shadow', '/etc/passwd', '../etc/passwd', '../../../../etc/passwd', CANARY, REPOSITORY,"
        " '/proc/self/environ', '/root/.ssh', '/home', '/sys/class', '/dev/mem'):\n"
        "  attempt('read', lambda: open(name).read())\n"
        "import os\nprint('entries', sorted(os.listdir('/')))\nprint('env', sorted(os.environ))",
        "NameError",
    ),
    "sockets": (
        REPORT + "import socket\nattempt('dns', lambda: socket.getaddrinfo('example.com', 80))\n"
        "attempt('tcp', lambda: socket.create_connection(('127.0.0.1', 22), 1))\n"
        "attempt('raw', lambda: socket.socket(socket.AF_VSOCK))\nattempt('unix', lambda: socket.socket(socket.AF_UNIX))",
        "NameError",
    ),
    "shell": (
        REPORT + "import os, subprocess, sys\nattempt('shell', lambda: subprocess.check_output('id', shell=True))\n"
        "attempt('python', lambda: subprocess.check_output([sys.executable, '-c', 'print(1)']))\n"
        "attempt('system', lambda: {0: 'ran'}[os.system('id')])",
        "",
    ),
    "namespaces and mounts": (
        "import ctypes\nlibc = ctypes.CDLL(None)\nprint('unshare', libc.unshare(0x10000000))\n"
        "print('mount', libc.mount(b'none', b'/tmp', b'tmpfs', 0, None))\nprint('setuid', libc.setuid(0))\n"
        "print('chroot', libc.chroot(b'/tmp'))\nprint('clone', libc.syscall(56, 0x10000011, 0, 0, 0, 0))",
        "",
    ),
    "raising its limits": (
        REPORT + "import resource as r\nfor name in ('AS', 'CPU', 'NPROC', 'FSIZE'):\n"
        "  attempt(name, lambda: r.setrlimit(getattr(r, 'RLIMIT_' + name), (r.RLIM_INFINITY, r.RLIM_INFINITY)))\n",
        "NameError",
    ),
}
