"""Two paths change places in one step of the file system, where it has one."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

HERE = -100  # AT_FDCWD: relative paths count from the working directory
EXCHANGE, SWAP = 2, 2  # RENAME_EXCHANGE of Linux (renameat2(2)), RENAME_SWAP of macOS (renamex_np(2))
NOT_SUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def exchanged(first: Path, second: Path) -> bool:
    """Let two files or folders of one file system change places; nobody ever sees only one of them.

    Returns:
        False where the system, its C library or the file system (NFS, for one) cannot; nothing was changed then.

    Raises:
        OSError: it can and did not.
    """
    if sys.platform not in ("linux", "darwin"):
        return False
    library = ctypes.CDLL(None, use_errno=True)
    old, new = os.fsencode(first), os.fsencode(second)
    if sys.platform == "linux":
        name, arguments = "renameat2", (HERE, old, HERE, new, EXCHANGE)
    else:
        name, arguments = "renamex_np", (old, new, SWAP)
    function = getattr(library, name, None)
    if function is None:
        return False
    if function(*arguments) == 0:
        return True
    code = ctypes.get_errno()
    if code in NOT_SUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))
