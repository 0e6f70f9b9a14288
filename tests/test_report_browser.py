"""The page of a run in a browser: no error, no request, no sideways scrolling, keys suffice."""

import pytest

from common.report import page
from tests.browser import CHROMIUM, Browser
from tests.report_pages import EVIL

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def browser():
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def report(kept_folder):
    return page.write_report(kept_folder, title=f"石鹸 עברית {EVIL}")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_page_fits_and_asks_nobody(browser, report, width, dark):
    shown = browser.open(report, width=width, dark=dark)
    assert shown.value("document.documentElement.scrollWidth") <= width
    assert shown.value("document.title") == f"石鹸 עברית {EVIL}"
    paper = "getComputedStyle(document.body).backgroundColor"
    sides = ("rgb(20, 24, 28)", "rgb(251, 251, 252)")
    assert shown.value(paper) == sides[0 if dark else 1]
    shown.value("theme.click()")  # light
    assert shown.value(paper) == sides[1]
    shown.value("theme.click()")
    assert shown.value(paper) == sides[0]
    assert shown.value("theme.textContent") == "Theme: dark"
    shown.value("theme.click()")
    assert shown.value("document.documentElement.scrollWidth") <= width
    # What the page forbids does not happen: no script of others, no request.
    shown.value("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/a'}))")
    assert any("Content Security Policy" in str(found) for found in shown.problems)
    kept = [found for found in shown.problems if "127.0.0.1:9" not in str(found)]
    assert kept == []
    assert not [e for e in browser.events if e["method"] == "Page.javascriptDialogOpening"]


def test_galleries_are_filtered_and_pictures_enlarged_by_keys(browser, report):
    shown = browser.open(report)
    gallery = "document.querySelector('[data-gallery]')"
    rows = f"[...{gallery}.querySelectorAll('.group')[0].querySelectorAll('.row')]"
    visible = f"{rows}.filter(row => !row.hidden).length"
    count = shown.value(f"{rows}.length")
    assert shown.value(visible) == count
    sift = f"{gallery}.dispatchEvent(new Event('input'))"
    shown.value(f"{gallery}.querySelector('select').value = 'wrong'; {sift}")
    wrong = shown.value(f"{rows}.filter(row => row.dataset.verdict === 'wrong').length")
    assert 0 < wrong < count
    assert shown.value(visible) == wrong
    assert (
        shown.value(f"{gallery}.querySelector('output').textContent") == f"{wrong} of {count} shown"
    )
    shown.value(f"{gallery}.querySelector('input[type=search]').value = 'no such thing'; {sift}")
    assert shown.value(visible) == 0
    shown.value(f"{gallery}.querySelector('input[type=search]').value = ''; {sift}")

    first = f"{gallery}.querySelector('.row:not([hidden]) button[data-about]')"
    shown.value(f"{first}.focus()")
    shown.press("Enter")
    assert shown.value("zoom.open && zoom.querySelector('img').naturalWidth > 0")
    told = shown.value("zoom.querySelector('p').textContent")
    shown.press("ArrowRight")
    assert shown.value("zoom.querySelector('p').textContent") != told
    shown.press("ArrowLeft")
    assert shown.value("zoom.querySelector('p').textContent") == told
    shown.press("Escape")
    assert not shown.value("zoom.open")
    assert shown.value(f"document.activeElement === {first}"), "the focus goes back"
    assert shown.problems == []


def test_the_map_shows_pictures_by_pointer_and_by_keys(browser, report):
    shown = browser.open(report)
    shown.value("plane.scrollIntoView({block: 'end', behavior: 'instant'})")
    spot = shown.value(
        "(() => { const b = document.querySelector('#marks').lastElementChild"
        ".getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] })()"
    )
    assert shown.value("tip.hidden")
    shown.point(*spot)
    assert not shown.value("tip.hidden")
    name = shown.value("tip.querySelector('b').textContent")
    assert name.endswith(EVIL), "text, not markup"
    assert not shown.value("tip.querySelector('script')")
    shown.value("document.querySelector('.skip').focus()")
    for _ in range(200):
        shown.press("Tab")
        if shown.value("document.activeElement.id") == "plane":
            break
    assert shown.value("document.activeElement.id") == "plane"
    assert not shown.value("tip.hidden")
    seen = {shown.value("said.textContent")}
    for key in ("Home", "PageDown", "PageDown", "ArrowRight", "ArrowLeft", "End"):
        shown.press(key)
        seen.add(shown.value("said.textContent"))
    assert len(seen) >= 4
    assert shown.value("tip.querySelector('img').style.width").endswith("px")
    shown.press("Escape")
    assert shown.value("tip.hidden")
    key = "document.querySelector('button[data-class]')"
    shown.value(f"{key}.click()")
    assert shown.value("document.querySelectorAll('#marks .off').length") > 0
    shown.value(f"{key}.click()")
    assert shown.value("document.querySelectorAll('#marks .off').length") == 0
    assert shown.problems == []
