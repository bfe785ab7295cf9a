"""What runs inside the sandbox: a supervisor that judges, and a child that runs the candidate.

The supervisor reads the candidate's source, forks the child, and only then reads the test and the secret, so that
neither is anywhere in the child's memory or file descriptors. The test runs in the supervisor; the names it takes from
the candidate are proxies (`Remote`) whose calls go over a pipe to the child. What comes back is rebuilt as plain data
(numbers, strings, lists, ...) or stays an opaque handle: code or objects of the candidate never enter the interpreter
that evaluates the assertions.

This module and the two it imports travel as compiled code. They import little, because every program pays for it:
`signal` and `contextlib` alone would double the start of Python.
"""

import _signal
import builtins
import marshal
import os
import select
import struct
import sys
import time
import types

from eval.sandbox_limits import SIGKILL, confine
from eval.sandbox_values import Decoder, encode, read_frame, write_frame

KEPT_OUTPUT = 1 << 16  # bytes of the candidate's output that are reported
LONGEST_OUTPUT = 1 << 24  # bytes after which it is ended
LONGEST_FRAME = 1 << 26  # bytes of one answer


class Server:
    """Runs the candidate and answers requests about it. Everything here is at the candidate's mercy, and may be."""

    def __init__(self, requests, answers):
        self.requests, self.answers, self.objects = requests, answers, []

    def refer(self, value):
        self.objects.append(value)
        return b"h" + struct.pack("<Q", len(self.objects) - 1)

    def run(self, source):
        module = types.ModuleType("solution")
        sys.modules["solution"] = module  # dataclasses and typing look their module up
        self.reply(lambda: exec(compile(source, "<candidate>", "exec", dont_inherit=True), module.__dict__))
        operations: dict = {
            "global": lambda name: module.__dict__[name],
            "call": lambda target, args, kwargs: target(*args, **kwargs),
            "attribute": getattr,
            "items": lambda target: list(target),
            "item": lambda target, key: target[key],
            "length": len,
            "text": str,
            "equal": lambda one, other: bool(one == other),
        }
        while True:
            name, args = Decoder(read_frame(self.requests), self.objects.__getitem__).value()
            self.reply(lambda name=name, args=args: operations[name](*args))

    def reply(self, action):
        try:
            answer = encode(("value", action()), self.refer)
        except BaseException as error:
            answer = encode(("error", type(error).__name__, str(error)[:1000]), self.refer)
        sys.stdout.flush()
        write_frame(self.answers, answer)


class Ended(BaseException):
    """The candidate's process is gone, or out of bounds: no `except Exception` in a test may swallow it."""


class CandidateError(Exception):
    """An exception of the candidate that must not, or can't, be rebuilt here."""


class Link:
    """The supervisor's end: sends requests, waits for answers until `deadline`, collects the candidate's output."""

    def __init__(self, child, seconds, pipes, deadline):
        self.child, self.seconds, self.deadline, self.reaped = child, seconds, deadline, False
        self.requests, self.answers, self.output = pipes
        for fd in pipes:
            os.set_blocking(fd, False)
        self.proxies, self.ended, self.printed, self.seen = {}, None, b"", 0

    def resolve(self, number):
        return self.proxies.setdefault(number, Remote(self, number))

    def refer(self, value):
        if isinstance(value, Remote):
            return b"h" + struct.pack("<Q", object.__getattribute__(value, "_number"))
        raise TypeError(f"a test can't pass a {type(value).__name__} to the candidate")

    def ask(self, name, *args):
        if name is not None:
            request = encode((name, args), self.refer)
            return self.answer(self.exchange(struct.pack("<I", len(request)) + request))
        return self.answer(self.exchange(b""))

    def answer(self, data):
        try:
            kind, first, *rest = Decoder(data, self.resolve).value()
            if kind == "value":
                return first
            name, message = str.__str__(first), str.__str__(rest[0])
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:
            raise self.end("it answered with garbage") from error
        kind = getattr(builtins, name, None)
        # StopIteration would end a loop of the test early and silently; what is no Exception would end the supervisor.
        unsafe = (StopIteration, StopAsyncIteration, UnicodeError)  # the last wants other arguments
        if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, unsafe):
            raise CandidateError(f"{name}: {message}")
        raise kind(message)

    def end(self, reason):
        self.ended = self.ended or reason
        return Ended(self.ended)

    def exchange(self, request):
        """Sends a frame and returns the next one, without ever blocking beyond the deadline."""
        answer = bytearray()
        poll = select.poll()
        poll.register(self.output, select.POLLIN)
        poll.register(self.answers, select.POLLIN)
        if request:
            poll.register(self.requests, select.POLLOUT)
        while self.ended is None:
            left = self.deadline - time.monotonic()
            events = poll.poll(max(0, left * 1000) + 1) if left > 0 else []
            if not events:
                raise self.end("timeout")
            ready = [fd for fd, _ in events]
            if self.requests in ready:
                request = self.send(request)
                if not request:
                    poll.unregister(self.requests)
            if self.output in ready and not self.collect():
                poll.unregister(self.output)
            if self.answers in ready:
                part = os.read(self.answers, 1 << 20)
                if not part:
                    raise self.end(self.cause())
                answer += part
                size = struct.unpack_from("<I", answer)[0] if len(answer) >= 4 else 0
                if size > LONGEST_FRAME:
                    raise self.end("its answer is too large")
                if len(answer) >= 4 and len(answer) >= size + 4:
                    return bytes(answer[4 : size + 4])
        raise Ended(self.ended)

    def send(self, request):
        try:
            return request[os.write(self.requests, request) :]
        except BlockingIOError:
            return request
        except BrokenPipeError:
            raise self.end(self.cause()) from None

    def cause(self):
        """Why the candidate's process is gone, or at least its pipe."""
        for _ in range(100):
            pid, status, usage = os.wait4(self.child, os.WNOHANG)
            self.reaped = pid != 0
            if pid and usage.ru_utime + usage.ru_stime > self.seconds - 0.5:
                return "timeout"
            if pid and os.WIFSIGNALED(status):
                return f"the program was ended by signal {os.WTERMSIG(status)}"
            if pid:
                break
            time.sleep(0.001)
        return "the program ended itself"

    def collect(self):
        """Reads what the candidate has printed; False once it can print no more."""
        try:
            part = os.read(self.output, 1 << 16)
        except BlockingIOError:
            return True
        self.printed += part[: KEPT_OUTPUT - len(self.printed)]
        self.seen += len(part)
        if self.seen > LONGEST_OUTPUT:
            raise self.end("it printed too much")
        return bool(part)

    def drain(self):
        """Takes what is left of the output, without waiting."""
        try:
            while select.select([self.output], [], [], 0)[0] and self.collect():
                pass
        except Ended:
            return


class Remote:
    """An object of the candidate, seen from the test. It equals nothing but objects of the candidate."""

    def __init__(self, link, number):
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args, **kwargs):
        return self._link.ask("call", self, args, kwargs)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask("attribute", self, name)

    def __setattr__(self, name, value):
        raise AttributeError("a test can't change the candidate's objects")

    def __iter__(self):
        return iter(self._link.ask("items", self))

    def __len__(self):
        return self._link.ask("length", self)

    def __bool__(self):
        return True

    def __getitem__(self, key):
        return self._link.ask("item", self, key)

    def __str__(self):
        return self._link.ask("text", self)

    def __eq__(self, other):
        return self._link.ask("equal", self, other) is True if isinstance(other, Remote) else NotImplemented

    __hash__ = object.__hash__


def judge(link, test, names):
    """Runs the test against the candidate behind `link`; returns the reason of failure, "" if it passes."""
    try:
        link.ask(None)  # the candidate's own code has run
        namespace = {"__name__": "test", "__builtins__": builtins}
        for name in names:
            try:
                namespace[name] = link.ask("global", name)
            except KeyError:
                continue  # the test fails with a NameError, as it should
        exec(compile(test, "<test>", "exec", dont_inherit=True), namespace)
    except Ended as ended:
        return str(ended)
    except BaseException as error:
        return link.ended or f"{type(error).__name__}: {str(error)[:500]}".rstrip(": ") + place(error, test)
    return link.ended or ""


def place(error, test):
    """The line of the test where it failed, to read in a record."""
    number, step = 0, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == "<test>":
            number = step.tb_lineno
        step = step.tb_next
    return f" [{test.splitlines()[number - 1].strip()[:200]}]" if number else ""


def main(source, verdict):
    """`source`: a descriptor with marshalled settings, candidate and test, in frames; `verdict`: where frames go."""
    sys.path = [folder for folder in sys.path if folder]  # not the working folder: the candidate may write there
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    limits, uid, timeout, wall = marshal.loads(read_frame(source))
    confine(limits, uid)
    candidate = read_frame(source)
    (requests_out, requests_in), (answers_out, answers_in), (output_out, output_in) = os.pipe(), os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        for fd in (1, 2):
            os.dup2(output_in, fd)
        for fd in (source, verdict, requests_in, answers_out, output_out, output_in):
            os.close(fd)
        try:
            Server(requests_out, answers_in).run(candidate.decode("utf-8", "replace"))
        finally:
            os._exit(0)
    for fd in (requests_out, answers_in, output_in):
        os.close(fd)
    write_frame(verdict, b"ready")
    secret, test, names = marshal.loads(read_frame(source))
    link = Link(child, timeout, (requests_in, answers_out, output_out), time.monotonic() + wall)
    reason = judge(link, test, names)
    if not link.reaped:
        os.kill(child, SIGKILL)
    link.drain()
    for part in (secret, reason.encode("utf-8", "replace"), link.printed):
        write_frame(verdict, part)
    os._exit(0)  # as the first process of its namespace, it takes all others with it
