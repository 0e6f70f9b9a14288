"""Run the code cells of a notebook in this process, within limits, as a kernel would.

python -P common/kaggle/cells.py NOTEBOOK.ipynb MEMORY_BYTES
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import resource
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import NoReturn

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h


def raise_loopback() -> None:
    """Bring the loopback of a new network namespace up: torchrun's processes meet there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle, contextlib.suppress(OSError):
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(handle, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def end(number: int, frame: object) -> NoReturn:
    """Leave through every `finally`: what was started ends too."""
    raise SystemExit(128 + number)


def main(notebook: str, memory: int) -> None:
    """Run all code cells in one namespace."""
    signal.signal(signal.SIGTERM, end)
    raise_loopback()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    space: dict[str, object] = {"__name__": "__main__"}
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), space)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
