"""How scripts speak and end: errors of the user's making are one line, Ctrl-C is no traceback."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable


def say(text: str) -> None:
    """Print once, whatever the number of processes."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def entry(main: Callable[[list[str]], object]) -> None:
    """Run `main` with the command line; exit 1 with `error: ...` where input or disk is at fault.

    KIT_TRACEBACK=1 shows the whole traceback.
    """
    keep_pages()
    try:
        main(sys.argv[1:])
    except BrokenPipeError:  # `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as stop:
        print(f"interrupted: {stop or 'run the same command to go on'}", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError, KeyError) as error:
        if os.environ.get("KIT_TRACEBACK"):
            raise
        text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
        if isinstance(error, OSError) and error.strerror and error.filename is None:
            text = error.strerror
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(1) from None


def keep_pages() -> None:
    """Let glibc keep freed memory instead of handing it back.

    On the CPU every activation is a large block that would be mapped, zeroed and unmapped again:
    `python -m tests.bench.keep_pages` measures what that costs. No effect elsewhere.
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 1 << 30)
