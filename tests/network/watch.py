"""Runs a program and all that it starts with the network refused, and tells who asked for it.

Twice, for what one of them cannot see: Python's own events (``sitecustomize.py``), and, on Linux, the system's calls,
which native code makes, too. There a filter (seccomp, user_notif) hands each call that may send something to this
process, which reads the address out of the caller's memory. What stays on the machine (AF_UNIX, AF_NETLINK) goes on.
Loopback is refused like any other address: nothing of mbexport's connects to it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("connect", "sendto", "sendmsg", "sendmmsg")
# Their numbers on Linux.
CALLS = {"x86_64": (42, 44, 46, 307), "aarch64": (203, 206, 211, 269)}.get(platform.machine(), ())
SECCOMP = {"x86_64": 317, "aarch64": 277}.get(platform.machine(), 0)
PIDFD_OPEN, PIDFD_GETFD, IO_URING_SETUP = 434, 438, 425  # the same on all machines
ALLOW, NOTIFY, REFUSE = 0x7FFF0000, 0x7FC00000, 0x00050000 | errno.ENOSYS
RECEIVE, SEND = 0xC0502100, 0xC0182101  # SECCOMP_IOCTL_NOTIF_RECV and _SEND
REQUEST = struct.Struct("QIIiIQ6Q")  # id, pid, flags, and of the call: number, architecture, address, arguments
ANSWER = struct.Struct("QqiI")  # id, value, error, flags
CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
HARMLESS = (socket.AF_UNSPEC, socket.AF_UNIX, getattr(socket, "AF_NETLINK", 16))
# What would hide a call: switches that forbid it, and those by which a program knows that it is tested.
HIDING = ("HF_", "TRANSFORMERS_", "CI", "GITHUB_", "DO_NOT_TRACK", "ORT_", "PYTEST_", "XDG_")


def cannot_watch() -> str:
    """Why a program cannot be watched here; empty where it can."""
    if sys.platform != "linux" or not CALLS:
        return "what watches is Linux's seccomp, on x86_64 and aarch64"
    try:
        with watched([sys.executable, "-c", ""], Path(os.devnull)) as (process, _):
            process.wait(60)
    except OSError as cause:
        return f"seccomp is refused here: {cause}"
    return ""


def environment(noted: Path) -> dict[str, str]:
    """The environment of a watched program."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(HIDING)}
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {"PYTHONPATH": os.pathsep.join(paths), "MBEXPORT_TEST_NETWORK": str(noted)}


@contextmanager
def watched(
    command: Sequence[str], noted: Path, **settings: object
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A running program, and what it asked of the system so far.

    Args:
        command: the program.
        noted: the file that Python's events are written to.
        settings: for Popen; ``env`` is added to the environment.

    Raises:
        OSError: the system allows no such filter.
    """
    ours, theirs = socket.socketpair()
    launch = [sys.executable, "-I", str(Path(__file__).resolve()), str(theirs.fileno()), *command]
    added = settings.pop("env", {})
    with ours:
        with theirs:
            process = subprocess.Popen(  # type: ignore[call-overload]
                launch, pass_fds=[theirs.fileno()], env=environment(noted) | added, text=True, **settings
            )
        try:
            said = ours.recv(64).decode()
            if not said.isdigit():
                raise OSError(said)
            listener = _taken(process.pid, int(said))
        except BaseException:
            process.kill()
            process.communicate()
            raise
        ours.sendall(b"go")
    attempts: list[str] = []
    thread = threading.Thread(target=_listen, args=(listener, attempts), daemon=True)
    thread.start()
    try:
        yield process, attempts
    finally:
        process.kill()
        process.wait()
        thread.join(60)  # until the last of its children has ended
        assert not thread.is_alive(), f"what {command} started goes on"


def run_watched(
    command: Sequence[str], noted: Path, **settings: object
) -> tuple[subprocess.CompletedProcess[str], str]:
    """What a program said, and every attempt of its own or its children's to reach the network, one a line."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with watched(command, noted, **(pipes | settings)) as (process, attempts):
        out, err = process.communicate(timeout=600)
    noticed = noted.read_text("utf-8").splitlines() if noted.exists() else []
    return subprocess.CompletedProcess(command, process.returncode, out, err), "\n".join(attempts + noticed)


def _taken(pid: int, descriptor: int) -> int:
    """A copy of another process's file descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.syscall(PIDFD_OPEN, pid, 0)
    copy = libc.syscall(PIDFD_GETFD, handle, descriptor, 0)
    if copy < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    os.close(handle)
    return int(copy)


def _listen(listener: int, attempts: list[str]) -> None:
    """Answer every call, until no process is left that could make one."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while not any(event & select.POLLHUP for _, event in poll.poll()):
        request = bytearray(REQUEST.size)
        try:
            fcntl.ioctl(listener, RECEIVE, request)
            number, pid, _, call, _, _, *arguments = REQUEST.unpack(request)
            name = NAMES[CALLS.index(call)]
            where = _destination(pid, name, arguments)
            if where:
                attempts.append(f"{name} {where} by {_who(pid)}")
            answer = ANSWER.pack(number, 0, -errno.ENETUNREACH, 0) if where else ANSWER.pack(number, 0, 0, CONTINUE)
            fcntl.ioctl(listener, SEND, bytearray(answer))
        except FileNotFoundError:  # the caller was killed meanwhile
            continue
    os.close(listener)


def _destination(pid: int, call: str, arguments: Sequence[int]) -> str:
    """Where a call would send to, outside the machine; empty for nowhere."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:

        def read(address: int, size: int) -> bytes:
            memory.seek(address)
            return memory.read(size)

        address, size = arguments[1:3] if call == "connect" else arguments[4:6]
        if call.endswith("msg"):  # struct msghdr begins with them
            address, size = struct.unpack("QI", read(arguments[1], 12))
        if not address or size < 2:
            return ""
        content = read(address, min(size, 28))
    (family,) = struct.unpack_from("H", content)
    if family in HARMLESS:
        return ""
    if family not in (socket.AF_INET, socket.AF_INET6):
        return f"an address of family {family}"
    host = content[4:8] if family == socket.AF_INET else content[8:24]
    return f"{socket.inet_ntop(family, host)} port {int.from_bytes(content[2:4], 'big')}"


def _who(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")[:200]


def _launch() -> None:
    """In the new process: filter, hand over the listener, become the program."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    libc = ctypes.CDLL(None, use_errno=True)
    code = [(0x20, 0, 0, 0)]  # load the call's number
    for number in CALLS:
        code += [(0x15, 0, 1, number), (0x06, 0, 0, NOTIFY)]
    code += [(0x15, 0, 1, IO_URING_SETUP), (0x06, 0, 0, REFUSE), (0x06, 0, 0, ALLOW)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    described = ctypes.create_string_buffer(struct.pack("HP", len(code), ctypes.addressof(program)))
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges: no right is needed to filter
    listener = libc.syscall(SECCOMP, 1, 8, described)  # SET_MODE_FILTER, NEW_LISTENER
    if listener < 0:
        channel.sendall(os.strerror(ctypes.get_errno()).encode())
        return
    # send(2) is sendto without an address, which waits for the listener: write(2) is none of the calls.
    os.write(channel.fileno(), str(listener).encode())
    os.read(channel.fileno(), 2)
    os.close(listener)
    channel.close()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606


if __name__ == "__main__":
    _launch()
