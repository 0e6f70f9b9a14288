"""What Kaggle does not have is not there: packages, and without a network namespace the network.

A rehearsal copies this file as `sitecustomize.py` to the front of the path of every process.
"""

from __future__ import annotations

import errno
import importlib.machinery
import os
import socket
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

ABSENT = {name for name in os.environ.get("KIT_REHEARSAL_ABSENT", "").split(",") if name}
WHEELS = os.path.join(os.environ.get("KIT_REHEARSAL", ""), "temp", "wheels")


class Without(importlib.machinery.PathFinder):
    """The usual search, which finds absent packages only among the kit's wheels."""

    @classmethod
    def find_spec(
        cls,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """As the base class has it."""
        if fullname in ABSENT:
            path = [WHEELS]
        return super().find_spec(fullname, path, target)


def refuse(address: Any) -> None:
    """Raise what the kernel of a machine without network does, unless it is this machine."""
    host = address[0] if isinstance(address, tuple) else "localhost"  # a path: a local socket
    if host not in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "", None, socket.gethostname()):
        raise OSError(errno.ENETUNREACH, f"Network is unreachable: {host}")


if "KIT_REHEARSAL" in os.environ:
    place = sys.meta_path.index(importlib.machinery.PathFinder)
    sys.meta_path[place] = Without
if "KIT_REHEARSAL_SOCKETS" in os.environ:
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def guarded(self: socket.socket, address: Any) -> None:
        """Connect within this machine."""
        refuse(address)
        connect(self, address)

    def looked_up(host: Any, *arguments: Any, **options: Any) -> Any:
        """Resolve names of this machine."""
        refuse((host,))
        return lookup(host, *arguments, **options)

    socket.socket.connect = guarded  # type: ignore[assignment,method-assign]
    socket.getaddrinfo = looked_up
