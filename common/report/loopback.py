"""A page that stays on this machine: a free port on loopback, and answers that ask nobody else."""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any

HOST = "127.0.0.1"
# The browser refuses whatever a page wants from elsewhere.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "frame-ancestors 'self'; form-action 'self'"
)
# Links and scripts of other machines; a policy does not stop `preconnect`.
_ELSEWHERE = re.compile(
    rb'<link\b[^>]*\bhref="https?://[^>]*>|<script\b[^>]*\bsrc="https?://[^>]*>\s*</script>'
)

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]


def free_port(port: int) -> int:
    """The port, or any free one for 0.

    Raises:
        OSError: somebody listens there already, or the port is not for everybody.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise OSError(
                f"Port {port} of {HOST} cannot be used ({error.strerror}): stop what listens "
                "there, or choose another with --port, 0 for any free one."
            ) from None
        return int(probe.getsockname()[1])


class OnlyHere:
    """ASGI middleware: pages without links to other machines, every answer with `POLICY`.

    Gradio 5 has a script from a CDN in its page and warms up connections to a font server.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        """Serve one request; an HTML page is held back until it is whole, all else streams."""
        start: list[Message] = []
        body: list[bytes] = []

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"content-security-policy", POLICY.encode())]
                message = {**message, "headers": headers}
                kind = dict(headers).get(b"content-type", b"")
                if kind.startswith(b"text/html"):
                    start.append(message)
                    return
            elif start and message["type"] == "http.response.body":
                body.append(message.get("body", b""))
                if message.get("more_body"):
                    return
                page = _ELSEWHERE.sub(b"", b"".join(body))
                kept = [(k, v) for k, v in start[0]["headers"] if k != b"content-length"]
                length = (b"content-length", str(len(page)).encode())
                await send({**start[0], "headers": [*kept, length]})
                message = {"type": "http.response.body", "body": page}
            await send(message)

        await self.app(scope, receive, answer if scope["type"] == "http" else send)
