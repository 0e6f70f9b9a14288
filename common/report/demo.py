"""A search page for a finished run: drop a picture or type a title, see what the run finds.

    python -m common.report.demo RUN [--data FOLDER] [--port 7860]

Steps can be switched on and off, and the keypoint matches of a result are drawn. Needs gradio 5.50
or 6 (`pip install "gradio>=5.50,<7"`). The page is served to this machine alone, and neither it nor
the server asks anything of another; `ssh -L 7860:127.0.0.1:7860 HOST` brings it to yours.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from common.entry import entry, say
from common.report.loopback import HOST, free_port


def main(arguments: list[str]) -> None:
    """Serve the page until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m common.report.demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="run folder in which infer.py has run")
    parser.add_argument("--data", metavar="FOLDER", help="data folder, if not where the run had it")
    parser.add_argument("--port", type=int, default=7860, help="of 127.0.0.1; 0 for any free one")
    given = parser.parse_args(arguments)
    if not 0 <= given.port < 1 << 16:
        raise ValueError(f"--port={given.port}: a port is 0 to 65535.")
    port = free_port(given.port)  # said now, not when everything is loaded
    with tempfile.TemporaryDirectory(prefix="demo-") as folder:
        serve(given.run, given.data, port, Path(folder))


def serve(run: Path, data: str | None, port: int, folder: Path, *, wait: bool = True) -> object:
    """The gradio page, running; its uploads, thumbnails and matches are kept in `folder`.

    Args:
        run: a run folder.
        data: the data folder, or None for the run's own.
        port: a free one.
        folder: for temporary files.
        wait: until Ctrl-C.

    Raises:
        ValueError: no gradio, or nothing that can be searched; FileNotFoundError likewise.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder / "files")}
    # Gradio asks its own server whether it is up: not through a proxy.
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), HOST]))
    try:
        from common.report import demo_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError(
            'The search page needs gradio, which is not installed: pip install "gradio>=5.50,<7"'
        ) from None
    # From here on, as the pipeline is above the report: this command needs both.
    from common.pipeline.finished import Finished
    from common.pipeline.lookup import Search

    opened = Finished.open(run, data=data)
    say(opened.said)
    search = Search(opened, folder / "cache")
    page = demo_page.launch(search, port)
    say(f"http://{HOST}:{port}  (Ctrl-C ends it)")
    if wait:
        page.block_thread()
    return page


if __name__ == "__main__":
    entry(main)
