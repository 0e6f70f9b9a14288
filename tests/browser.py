"""A headless Chromium over its own protocol, with the standard library alone.

    with Browser() as browser:
        page = browser.open(path, width=390, dark=True)
        page.value("document.title"); page.problems; page.picture(file)

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
WAIT = 60.0  # seconds for an answer


class Browser:
    """One process; messages end with a zero byte on its file descriptors 3 and 4."""

    def __init__(self):
        self.home = tempfile.mkdtemp()
        read, self.out = os.pipe()
        self.into, write = os.pipe()
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
            "--no-first-run", "--hide-scrollbars", f"--user-data-dir={self.home}",
            "--disable-dev-shm-usage", "--disable-background-networking",
        ]  # fmt: skip
        # A shell puts both pipes where Chromium looks for them.
        command = f'exec "$@" 3<&{read} 4>&{write}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, "bash", CHROMIUM, *options, "about:blank"],
            pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read), os.close(write)
        self.rest, self.count, self.events = b"", 0, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.out), os.close(self.into)
        shutil.rmtree(self.home, ignore_errors=True)

    def call(self, method, session=None, **parameters):
        """The result of a command; events that come meanwhile are kept."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def receive(self):
        end = time.monotonic() + WAIT
        while b"\0" not in self.rest:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.into], [], [], left)[0]:
                raise TimeoutError("the browser does not answer")
            self.rest += os.read(self.into, 1 << 20)
        head, _, self.rest = self.rest.partition(b"\0")
        return json.loads(head)

    def open(self, path, *, width=1280, height=900, dark=False):
        """The loaded page of a file, or of an address on this machine."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        served = str(path).startswith("http://127.0.0.1:")
        page.address = str(path) if served else Path(path).resolve().as_uri()
        page.call("Page.navigate", url=page.address)
        page.wait("document.readyState === 'complete' && location.protocol !== 'about:'")
        return page


class Page:
    """A tab."""

    def __init__(self, browser, session):
        self.browser, self.session, self.address = browser, session, ""

    def call(self, method, **parameters):
        return self.browser.call(method, self.session, **parameters)

    def value(self, expression):
        """What an expression of the page gives."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition):
        end = time.monotonic() + WAIT
        while not self.value(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def press(self, *keys):
        """Keys as a keyboard sends them, by their DOM names."""
        codes = {
            "Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36,
            "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "PageDown": 34,
        }  # fmt: skip
        for key in keys:
            about = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
            text = {"text": "\r"} if key == "Enter" else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def point(self, x, y):
        """Move the mouse there, in pixels of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    @property
    def problems(self):
        """Errors of the console, exceptions, and requests beyond its own place and data."""
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            what, about = event["method"], event["params"]
            if what == "Runtime.exceptionThrown":
                found.append(about["exceptionDetails"])
            if what == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning"):
                found.append(about["args"])
            if what == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                found.append(about["entry"])
            if what == "Network.requestWillBeSent":
                address = about["request"]["url"]
                if not address.startswith((self.address, "data:", "blob:")):
                    found.append(address)
        return found

    def picture(self, path, *, whole=True):
        """Write a PNG of the page, or of the window."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(found["data"]))
