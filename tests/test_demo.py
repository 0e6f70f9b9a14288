"""The search page: served to this machine alone, asked through gradio's client where gradio is."""

import asyncio
import re
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import cv2
import pytest

from common.entry import entry
from common.report import demo, loopback
from tests.browser import CHROMIUM, Browser
from tests.test_lookup import finish, shopee, shopee_data, shopee_train
from tests.test_shopee import TINY, write_files

ROOT = Path(__file__).parents[1]


def test_a_taken_port_is_named_and_zero_is_any_free_one(capsys):
    with socket.socket() as taken:
        taken.bind((loopback.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"Port {port} of 127.0.0.1 cannot be used .*--port"):
            demo.main(["anything", "--port", str(port)])
        assert loopback.free_port(0) not in (0, port)
    assert loopback.free_port(port) == port


def test_an_impossible_port_is_one_line():
    with pytest.raises(ValueError, match="--port=70000: a port is 0 to 65535"):
        demo.main(["anything", "--port", "70000"])


def test_without_gradio_the_command_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "common.report.demo_page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["demo", "anything", "--port", "0"])
    with pytest.raises(SystemExit):
        entry(demo.main)
    said = capsys.readouterr().err
    assert said == (
        "error: The search page needs gradio, which is not installed: "
        'pip install "gradio>=5.50,<7"\n'
    )


def served(kind, *parts, scope="http"):
    """What `OnlyHere` sends where the app sends these parts."""

    async def app(scope, receive, send):
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(b"".join(parts)))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for n, part in enumerate(parts):
            more = n + 1 < len(parts)
            await send({"type": "http.response.body", "body": part, "more_body": more})

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(loopback.OnlyHere(app)({"type": scope}, None, send))
    return sent


def test_pages_lose_what_they_would_ask_of_others_and_streams_flow():
    page = [
        b'<html><link rel="preconnect" href="https://fonts.example" />\n<link href="./own.css">',
        b'<script\n src="https://cdn.example/a.js"\n async\n></script><script src="/b.js"></scr',
        b"ipt>",
    ]
    start, body = served(b"text/html; charset=utf-8", *page)
    assert body["body"] == b'<html>\n<link href="./own.css"><script src="/b.js"></script>'
    headers = dict(start["headers"])
    assert headers[b"content-length"] == b"%d" % len(body["body"])
    assert headers[b"content-security-policy"].startswith(b"default-src 'self' ")
    assert b"http" not in headers[b"content-security-policy"]
    start, *parts = served(b"text/event-stream", *page)
    assert [part["body"] for part in parts] == page
    assert b"content-security-policy" in dict(start["headers"])
    assert b"content-security-policy" not in dict(served(b"x", b"", scope="lifespan")[0]["headers"])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The running page of a run that reads pictures and titles, its address and its data."""
    pytest.importorskip("gradio", reason="gradio makes the search page")
    folder = tmp_path_factory.mktemp("page")
    data = write_files(folder / "listings", {"train": range(9), "test": range(9, 12)})
    words = [*TINY, f"data.root={data}", "model.uses=both"]
    run = finish((shopee, shopee_data, shopee_train), folder / "run", words)
    (data / "train_images" / "30.jpg").unlink()  # a result that cannot be shown
    port = loopback.free_port(0)
    running = demo.serve(run, None, port, folder / "files", wait=False)
    yield f"http://{loopback.HOST}:{port}", data
    running.close()


def ask(url, image, title, gallery="train", steps=()):
    """What the page shows: pictures, words."""
    from gradio_client import Client, handle_file

    client = Client(url, verbose=False)
    image = None if image is None else handle_file(str(image))
    found = client.predict(image, title, gallery, list(steps), api_name="/search")
    return found[0], re.sub(r"<[^>]+>", " ", str(found[1]))


def test_the_page_asks_nothing_of_other_machines(page):
    url, _ = page
    with urllib.request.urlopen(url) as answer:
        text = answer.read().decode()
        policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert not re.findall(r"<(?:script|link)\b[^>]*(?:src|href)=\"https?:", text)
    for path in re.findall(r"href=\"([^\"]*theme\.css[^\"]*)\"", text):
        with urllib.request.urlopen(f"{url}/{path.removeprefix('./')}") as answer:
            assert b"https:" not in answer.read()
    addresses = subprocess.run(["ss", "-ltn"], capture_output=True, text=True).stdout
    port = url.rsplit(":", 1)[1]
    heard = [line for line in addresses.splitlines() if f":{port} " in line]
    assert all(f"{loopback.HOST}:{port}" in line for line in heard)


def test_the_page_finds_a_listing_by_picture_and_title(page):
    url, data = page
    shown, said = ask(url, data / "train_images" / "41.jpg", "tea")
    assert len(shown) == 22
    assert "22 of train by knn" in said
    assert "Choose a result" in said
    captions = [item["caption"] for item in shown]
    assert all(re.fullmatch(r"-?\d\.\d{3} · \d+", caption) for caption in captions)
    image = cv2.imread(shown[0]["image"] if isinstance(shown[0]["image"], str) else
                       shown[0]["image"]["path"])  # fmt: skip
    assert image is not None
    assert ask(url, None, "tea")[1].count("a grey one stands in") == 1
    keys = ["alpha_qe k=5 alpha=3.0", "local top=20 cap=30 weight=0.5"]
    said = ask(url, data / "train_images" / "41.jpg", "", "test", keys)[1]
    assert "8 of test by alpha_qe → knn → local" in said
    assert "an empty one stands in" in said


def test_what_cannot_be_looked_up_is_said_on_the_page(page, tmp_path):
    url, _ = page
    shown, said = ask(url, None, "  ")
    assert (shown, said.strip()) == ([], "Drop a picture or type a title, and the results are "
                                     "shown here.")  # fmt: skip
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"<script>alert(1)</script>")
    shown, said = ask(url, bad, "")
    assert shown == []
    assert said.strip() == "bad.jpg: not an image that can be read"


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_the_page_is_used_in_a_browser(page):
    url, _ = page
    said, results = "document.querySelector('#said').textContent", "#results button img"
    with Browser() as browser:
        shown = browser.open(f"{url}/")

        def click(thing):
            shown.wait(f"Boolean({thing})")  # the page comes in parts
            shown.value(f"{thing}.click()")

        shown.wait("Boolean(document.querySelector('textarea'))")
        shown.value("document.querySelector('textarea').focus()")
        shown.call("Input.insertText", text="tea")
        click(
            "[...document.querySelectorAll('button')].find(b => b.textContent.trim() === 'Search')"
        )
        shown.wait(f"{said}.includes('22 of train by') && {said}.includes('a grey one stands in')")
        shown.wait(f"document.querySelectorAll('{results}').length === 22")
        # A picture of the test, then an expansion that the run does not have, then it is off again.
        click("document.querySelector('#examples button img')?.closest('button')")
        shown.wait(f"{said}.includes('22 of train by knn') && !{said}.includes('grey')")
        for now in ("by alpha_qe", "by knn"):
            click(
                "[...document.querySelectorAll('label')].find(l => l.textContent.includes("
                "'alpha_qe'))?.querySelector('input')"
            )
            shown.wait(f"{said}.includes('{now}')")
        shown.wait(f"document.querySelectorAll('{results}').length === 22")
        click(f"document.querySelector('{results}').closest('button')")
        shown.wait("document.querySelector('#more').textContent.includes('agree on one geometry')")
        shown.wait("document.querySelector('#pair img')?.naturalWidth > 0")
        assert not [found for found in shown.problems if isinstance(found, str)]
