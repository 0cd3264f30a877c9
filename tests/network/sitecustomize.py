"""Loaded by every Python process whose path has this folder: what asks for the network is noted, and refused.

Standard library only, and little of it: memory and start of the processes are measured by some.
"""

import errno
import os
import sys

_NAMES = {"socket.getaddrinfo": 0, "socket.gethostbyname": 0, "socket.gethostbyaddr": 0}
_ADDRESSES = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1}  # events, and which argument says where


def _leaves(event: str, where: object) -> bool:
    if event in _ADDRESSES:
        return isinstance(where, tuple)  # a path is a socket of this machine's; None: where it is connected to
    from ipaddress import ip_address

    try:
        ip_address(where.decode() if isinstance(where, bytes) else str(where))
    except ValueError:
        return where is not None  # a name is asked of another machine
    return False


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    place = _ADDRESSES.get(event, _NAMES.get(event))
    if place is not None and _leaves(event, arguments[place]):
        with open(os.environ["MBEXPORT_TEST_NETWORK"], "a", encoding="utf-8") as noted:  # noqa: PTH123
            noted.write(f"{event} {arguments[place]!r} in {' '.join(sys.orig_argv)[:200]!r}\n")
        raise OSError(errno.ENETUNREACH, "refused by the test")


sys.addaudithook(_watch)
