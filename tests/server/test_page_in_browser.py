"""The page in a headless Chromium, as people use it. No test leaves a fault: an error, a refused load, a violated policy."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Iterator

import numpy as np
import pytest
from browser import Browser, browsing
from live_server import LiveServer, serving
from pictured import Pictured, pictured_server
from PIL import Image

pytestmark = pytest.mark.slow
ANSWERED = (
    "!document.querySelector('#stop').matches(':enabled') && document.querySelectorAll('#messages .assistant').length"
)
READY = "document.querySelector('#status').className === 'ready'"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    with serving("--selection", "lynx", "--served-model-name", "nano", "--served-model-name", "other") as started:
        yield started


@pytest.fixture(scope="module")
def keyed() -> Iterator[LiveServer]:
    with serving("--api-key", "secret key", "--max-num-seqs", "8", "--max-num-queued-reqs", "4") as started:
        started.client.headers["Authorization"] = "Bearer secret key"
        yield started


@pytest.fixture
def page(browser: Browser, live: LiveServer) -> Iterator[Browser]:
    browser.open(live.url + "/")
    browser.wait(READY)
    yield browser
    assert browser.all_faults() == []
    browser.open("about:blank")
    live.wait_idle()  # what the page had running has ended with it


def ask(page: Browser, text: str) -> None:
    page.fill("#message", text)
    page.click("#send")


def open_sampling(page: Browser, opened: bool = True) -> None:
    page.value(f"document.querySelector('#chat-form details').open = {str(opened).lower()}")


def last_answer(page: Browser) -> str:
    return page.value("[...document.querySelectorAll('#messages .assistant .text')].at(-1).innerText")


@pytest.fixture
def locked(browser: Browser, keyed: LiveServer) -> Iterator[Browser]:
    """A page that waits for the key. Its tests leave the policy as it was."""
    browser.open(keyed.url + "/")
    browser.value("sessionStorage.clear()")
    browser.open(keyed.url + "/")
    browser.wait("document.querySelector('#key-dialog').open")
    yield browser
    keyed.post("/v1/lynx/selection", {"expert_selection": "topk"})
    browser.open("about:blank")
    keyed.wait_idle()


def give_key(page: Browser, key: str = "secret key") -> None:
    page.fill("#key", key)
    page.press("Enter")


@pytest.fixture
def unlocked(locked: Browser) -> Browser:
    give_key(locked)
    locked.wait(READY)
    return locked


def without_401(faults: list[str]) -> list[str]:
    return [fault for fault in faults if "401" not in fault]


def test_chat(page: Browser) -> None:
    ask(page, "12 times 22 = ?")
    page.wait(ANSWERED)
    assert last_answer(page).strip() == "264"
    note = page.text("#messages .about")
    assert re.match(r"5 tokens · [\d.]+ tokens/s · first after \d+ ms · the model.s own routing$", note), note
    ask(page, "what is 33 times 31 ?")  # a second turn sends the first
    page.wait(f"({ANSWERED}) === 2")
    assert page.value("document.querySelectorAll('#messages li').length") == 4
    page.click("#clear")
    assert page.value("document.querySelectorAll('#messages li:not(.empty)').length") == 0


def test_sampling_and_model_are_sent(page: Browser) -> None:
    page.value(
        "(() => { const real = fetch; window.bodies = []; "
        "window.fetch = (path, options) => { if (options?.body) bodies.push(options.body); return real(path, options); }; })()"
    )
    open_sampling(page)
    for name, value in {"temperature": "0.5", "top_p": "0.9", "top_k": "7", "max_tokens": "3", "seed": "5"}.items():
        page.fill(f"#{name}", value)
    page.fill("#system", "Be short.")
    page.click("#exact")
    page.choose("#model", "other")
    ask(page, "Hello")
    page.wait(ANSWERED)
    [body] = [json.loads(text) for text in page.value("window.bodies")]
    sent = {name: body[name] for name in ("temperature", "top_p", "top_k", "max_tokens", "seed", "model")}
    assert sent == {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "max_tokens": 3, "seed": 5, "model": "other"}
    assert body["expert_selection"] == "exact"
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert "cut at the token limit" in page.text("#messages .about")


def test_text_is_never_html(page: Browser) -> None:
    evil = "<img src=x onerror='window.broken=1'> **bold** `a<b` <script>window.broken=1</script>"
    ask(page, evil)
    page.wait(ANSWERED)
    assert page.text("#messages .user .text") == evil
    drawn = page.value(
        """import('./page/chat.js').then(({ formatted }) => { const div = document.createElement('div');
        div.append(...formatted('# T\\n\\na **b** `<i>`\\n\\n- x\\n- y\\n\\n```js\\n<p>1</p>\\n```\\n<script>window.broken=1</script>'));
        return [...div.children].map((e) => e.outerHTML); })"""
    )
    assert drawn == [
        "<p><strong>T</strong></p>",
        "<p>a <strong>b</strong> <code>&lt;i&gt;</code></p>",
        "<ul><li>x</li><li>y</li></ul>",
        "<pre><code>&lt;p&gt;1&lt;/p&gt;</code></pre>",
        "<p>&lt;script&gt;window.broken=1&lt;/script&gt;</p>",
    ]
    assert page.value("window.broken") is None


def test_stop(page: Browser, live: LiveServer) -> None:
    page.value("""(() => { const real = fetch; window.fetch = (path, options) => real(path, options?.body && path.includes('chat')
        ? {...options, body: JSON.stringify({...JSON.parse(options.body), ignore_eos: true, max_tokens: 900})} : options); })()""")
    ask(page, "Tell me a long story")
    page.wait("document.querySelector('#messages .assistant .text').textContent.length > 40")
    page.click("#stop")
    page.wait(ANSWERED)
    assert page.text("#messages .about") == "stopped"
    live.wait_idle()


def test_live_numbers_with_a_crowd(page: Browser, live: LiveServer) -> None:
    page.choose("#crowd", "12")
    page.wait("Number(document.querySelector('#rows').textContent) > 11")
    page.wait(
        "/, 1[12].. rows each/.test(document.querySelector('#heat-window').textContent)"
    )  # a window of the crowd alone
    read, union = (float(page.text(f"#legend-{name}")) for name in ("read", "union"))
    assert 4 <= read < union <= 32 and page.text("#legend-all") == "32"
    assert "fewer than by the model" in page.text("#saved")
    assert page.text("#gbs").endswith("GB/s") and "not compared" in page.text("#machine")
    widths = page.value("['read', 'union'].map((n) => parseFloat(document.querySelector(`#gauge-${n}`).style.width))")
    assert 4 / 32 * 100 <= widths[0] < widths[1] <= 100
    page.value("document.querySelector('#heat-details').open = true")
    page.wait("document.querySelectorAll('#heat-table td').length === 8 * 32")
    shares = page.value("[...document.querySelectorAll('#heat-table td')].map((cell) => Number(cell.textContent))")
    assert min(shares) >= 0 and max(shares) <= 100 and sum(shares) / 800 == pytest.approx(read, rel=0.35)
    page.click("input[value=spared]")
    assert "the policy spared" in page.text("#heat-table caption")
    spared = page.value("[...document.querySelectorAll('#heat-table td')].map((cell) => Number(cell.textContent))")
    assert sum(spared) / 800 == pytest.approx(union - read, rel=0.35)
    page.value("document.querySelector('#heat').focus()")
    page.press("ArrowRight", 3)
    assert page.text("#cell").startswith("Layer 0, expert 3: read in ")
    page.press("ArrowDown")
    assert page.text("#cell").startswith("Layer 1, expert 3: ")
    page.choose("#crowd", "0")
    live.wait_idle()


def test_side_by_side_with_a_crowd(page: Browser, live: LiveServer) -> None:
    page.click("#tab-compare")
    assert page.value("[...document.querySelector('#policy-b').options].map((o) => o.value)") == ["exact", "server"]
    page.fill("#compare-crowd", "12")
    page.click("#compare-run")
    page.wait("document.querySelector('#compare-progress').textContent === 'done'", 60)
    rows = page.value(
        "[...document.querySelectorAll('#compare-numbers tr')].map((r) => [...r.cells].map((c) => c.textContent))"
    )
    table = {row[0]: row[1:] for row in rows}
    own, lynx = (float(value) for value in table["Experts read, per decode step and layer"])
    assert lynx < own, table
    assert table["Fewer"][0] == "0.0 %" and float(table["Fewer"][1].split()[0]) > 5
    assert table["Gate mass kept"][0] == "100.0 %"
    assert all(float(value) > 8 for value in table["Rows per decode step"]), table
    assert "#### 86" in page.text("#answer-a") and page.text("#answer-b").strip()
    assert "answers" in page.text("#compare-difference")
    live.wait_idle()


def test_a_comparison_that_is_stopped(page: Browser, live: LiveServer) -> None:
    page.click("#tab-compare")
    page.fill("#compare-crowd", "6")
    page.click("#compare-run")
    page.wait("document.querySelector('#compare-progress').textContent.includes('counting')")
    page.click("#compare-stop")
    page.wait("document.querySelector('#compare-progress').textContent === 'stopped'")
    live.wait_idle()


def test_keyboard_only(page: Browser) -> None:
    """The first Tab reaches the link to the message; tabs change by arrows; Enter sends; every stop of Tab can be seen."""
    page.press("Tab")
    assert page.value("document.activeElement.className") == "skip"
    page.press("Enter")
    page.type("12 times 22 = ?")
    page.press("Enter")
    page.wait(ANSWERED)
    assert last_answer(page).strip() == "264"
    page.value("document.querySelector('#tab-chat').focus()")
    page.press("ArrowRight")
    assert page.value("document.activeElement.id") == "tab-compare"
    assert page.value("document.querySelector('#chat').hidden && !document.querySelector('#compare').hidden")
    page.press("ArrowRight")
    reached = set()
    page.value("document.body.focus()")
    for _ in range(40):
        page.press("Tab")
        found = page.value(
            "(() => { const e = document.activeElement, b = e.getBoundingClientRect(), s = getComputedStyle(e);"
            " return [e.id || e.tagName, s.outlineStyle !== 'none' && b.width > 0]; })()"
        )
        assert found[1] or found[0] == "BODY", found
        reached.add(found[0])
    assert {"tab-chat", "messages", "message", "send", "clear", "crowd", "heat", "key-button", "SUMMARY"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page: Browser, scheme: str) -> None:
    """Text has 4.5:1 against what is behind it, in both schemes."""
    page.prefer(scheme)
    ask(page, "12 times 22 = ?")
    page.wait(ANSWERED)
    worst = page.value(_CONTRAST)
    assert worst[0] >= 4.5, worst
    dark = page.value("getComputedStyle(document.body).backgroundColor") == "rgb(14, 19, 23)"
    assert dark == (scheme == "dark")
    page.prefer("light")


_CONTRAST = """(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => { const [r, g, b] = c.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0.99) return c; } return [255, 255, 255]; };
  let worst = [99, ""];
  for (const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); walker.nextNode(); ) {
    const e = walker.currentNode.parentElement, box = e.getBoundingClientRect();
    if (!walker.currentNode.textContent.trim() || !box.width || e.closest(":disabled, option")) continue;
    const pair = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < worst[0]) worst = [ratio, e.outerHTML.slice(0, 120)];
  }
  return worst;
})()"""


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(page: Browser, width: int) -> None:
    page.resize(width, 800)
    ask(page, "x" * 300)
    page.wait(ANSWERED)
    for tab in ("compare", "chat"):
        page.click(f"#tab-{tab}")
        assert page.value("document.documentElement.scrollWidth") <= width
    page.resize(1280, 900)


def test_names_for_screen_readers(page: Browser) -> None:
    """Every control has a name, and there is one heading of the first level."""
    nameless = page.value(
        """[...document.querySelectorAll('button, input, select, textarea, canvas, [role=img], [tabindex]')].filter((e) => !(e.ariaLabel
        || e.labels?.length || e.textContent.trim() || e.getAttribute('aria-labelledby'))).map((e) => e.outerHTML)"""
    )
    assert nameless == [] or all("bandwidth" in text for text in nameless)
    assert page.value("document.querySelectorAll('h1').length") == 1


def test_without_a_key(locked: Browser) -> None:
    """A wrong key is told so, cancelling is possible, a right one opens the page and is sent with all that follows."""
    browser = locked
    give_key(browser, "wrong")
    browser.wait("document.querySelector('#key-error').textContent.includes('unknown API key')")
    assert browser.value("document.activeElement.id") == "key"
    browser.press("Escape")
    browser.wait("document.querySelector('#status').textContent.includes('API key')")
    assert not browser.value("document.querySelector('#key-dialog').open")
    browser.click("#key-button")
    give_key(browser)
    browser.wait(READY)
    ask(browser, "12 times 22 = ?")
    browser.wait(ANSWERED)
    assert last_answer(browser).strip() == "264"
    assert without_401(browser.all_faults()) == []


def test_policy_switch(unlocked: Browser, keyed: LiveServer) -> None:
    browser = unlocked
    browser.fill("#policy-text", "oea:k0=2")
    browser.press("Enter")
    browser.wait("document.querySelector('#policy').textContent === 'oea'")
    assert browser.text("#policy-now").startswith("oea:k0=2")
    assert keyed.client.get("/v1/lynx/state").json()["policy"].startswith("oea:k0=2")
    browser.fill("#policy-text", "nonsense")
    browser.click("#policy-set")
    browser.wait("document.querySelector('#policy-hint').textContent.includes('nonsense')")
    browser.faults = [fault for fault in browser.faults if "400" not in fault]
    assert without_401(browser.all_faults()) == []


def test_two_policies_of_a_server_with_a_key(unlocked: Browser, keyed: LiveServer) -> None:
    """Any two can be compared, and the server's own is back afterwards."""
    browser = unlocked
    browser.click("#tab-compare")
    browser.choose("#policy-b", "top1")
    browser.fill("#compare-crowd", "5")
    browser.click("#compare-run")
    browser.wait("document.querySelector('#compare-progress').textContent === 'done'", 60)
    assert float(browser.value("document.querySelector('#compare-numbers tbody tr').cells[2].textContent")) <= 6
    assert keyed.client.get("/v1/lynx/state").json()["policy"] == "topk"
    assert without_401(browser.all_faults()) == []


def test_a_comparison_that_is_left(unlocked: Browser, keyed: LiveServer) -> None:
    """The server's own policy is back although the page has gone."""
    browser = unlocked
    browser.click("#tab-compare")
    browser.choose("#policy-a", "lynx")
    browser.fill("#compare-crowd", "4")
    browser.click("#compare-run")
    browser.wait("document.querySelector('#policy').textContent === 'lynx'")
    browser.open("about:blank")
    end = time.monotonic() + 10
    while keyed.client.get("/v1/lynx/state").json()["policy"] != "topk":
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_comparison_whose_crowd_does_not_fit(unlocked: Browser, keyed: LiveServer) -> None:
    browser = unlocked
    browser.click("#tab-compare")
    browser.fill("#compare-crowd", "31")
    browser.click("#compare-run")
    browser.wait("document.querySelector('#compare-progress').className.includes('error')")
    assert "the crowd has stopped" in browser.text("#compare-progress")
    assert "queue is full" in browser.text("#notice")


def test_errors_are_shown(unlocked: Browser) -> None:
    """A refused message is told, and is in its field again; a crowd that does not fit is told and ends."""
    browser = unlocked
    open_sampling(browser)
    browser.fill("#top_p", "2")
    open_sampling(browser, False)
    ask(browser, "12 times 22 = ?")
    assert browser.value(
        "document.querySelector('#chat-form details').open"
    )  # the browser says what is wrong, and where
    assert browser.value("document.activeElement.id") == "top_p"
    browser.value("document.querySelector('#chat-form').noValidate = true")
    ask(browser, "12 times 22 = ?")
    browser.wait(ANSWERED)
    assert "top_p" in browser.text("#messages .about.error")
    assert browser.value("document.querySelector('#message').value") == "12 times 22 = ?"
    browser.choose("#crowd", "31")
    browser.wait("!document.querySelector('#notice').hidden")
    assert "queue is full" in browser.text("#notice") and browser.value("document.querySelector('#crowd').value") == "0"


def test_a_server_that_ends(browser: Browser) -> None:
    with serving("--shutdown-timeout", "0.1") as server:
        browser.open(server.url + "/")
        browser.wait(READY)
        assert server.stop() == 0
        browser.wait("document.querySelector('#status').className === 'failed'")
        ask(browser, "Hello")
        browser.wait(ANSWERED)
        assert "does not answer" in browser.text("#messages .about.error")


def test_nobody_looks(page: Browser, live: LiveServer) -> None:
    """A page that is hidden ends its stream and its crowd."""
    page.choose("#crowd", "4")
    page.wait("Number(document.querySelector('#rows').textContent) > 3")
    page.value(
        "(() => { Object.defineProperty(document, 'hidden', {value: true, configurable: true}); "
        "document.dispatchEvent(new Event('visibilitychange')); })()"
    )
    live.wait_idle()
    before = page.text("#rate")
    time.sleep(1.2)
    assert page.text("#rate") == before and page.value("document.querySelector('#crowd').value") == "0"


# --- images


@pytest.fixture(scope="module")
def pictured() -> Iterator[Pictured]:
    with pictured_server((), limit_mm_per_prompt={"image": 3}) as started:
        yield started


@pytest.fixture
def picture_page(browser: Browser, pictured: Pictured) -> Iterator[Browser]:
    browser.open(pictured.url + "/")
    browser.wait(READY)
    browser.wait("!document.querySelector('#add-picture').hidden")
    browser.value(_TRANSFER)
    yield browser
    browser.open("about:blank")


def png(grey: int) -> str:
    file = io.BytesIO()
    Image.fromarray(np.full((300, 280, 3), grey, np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


# transfer([base64, name, type], ...): what a browser hands over with a drop or a paste.
_TRANSFER = """window.transfer = (...files) => { const data = new DataTransfer();
  for (const [text, name, type] of files) data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name, {type}));
  return data; }"""
_SHOWN = "[...document.querySelectorAll('#pictures img')].filter((e) => e.complete && e.naturalWidth === 280).length"


def transfer(*greys: int, name: str = "p.png", kind: str = "image/png") -> str:
    return f"transfer({', '.join(json.dumps([png(grey), name, kind]) for grey in greys)})"


def drop(page: Browser, data: str, where: str = "#messages") -> None:
    page.value(
        f"document.querySelector('{where}').dispatchEvent(new DragEvent('drop', {{dataTransfer: {data}, bubbles: true, cancelable: true}}))"
    )


def test_images_dropped_pasted_and_chosen(picture_page: Browser, pictured: Pictured) -> None:
    """All go with the next message, in order, and stay in the conversation."""
    page, before = picture_page, len(pictured.images)
    drop(page, transfer(10))
    page.wait(f"{_SHOWN} === 1")
    page.value(
        f"document.querySelector('#message').dispatchEvent(new ClipboardEvent('paste', {{clipboardData: {transfer(20)}, bubbles: true}}))"
    )
    page.wait(f"{_SHOWN} === 2")
    page.value(
        f"(() => {{ const e = document.querySelector('#picture-files'); e.files = {transfer(30)}.files; e.dispatchEvent(new Event('change')); }})()"
    )
    page.wait(f"{_SHOWN} === 3")
    page.value("document.querySelector('#pictures button').focus()")  # the first is taken back, by the keyboard
    page.press("Enter")
    assert page.value(_SHOWN) == 2 and page.value("document.activeElement.closest('#pictures') !== null")
    ask(page, "what are these?")
    page.wait(ANSWERED)
    assert page.value("document.querySelectorAll('#messages .user img').length") == 2 and page.value(_SHOWN) == 0
    sent = pictured.images[before:]
    assert [len(images) for images in sent] == [2]
    page.fill("#max_tokens", "3")
    ask(page, "and now?")
    page.wait(f"({ANSWERED}) === 2")
    assert [image["digest"] for image in pictured.images[-1]] == [image["digest"] for image in sent[0]]
    assert page.all_faults() == []


def test_images_that_are_refused_come_back(picture_page: Browser) -> None:
    page = picture_page
    drop(page, transfer(1, 2, 3, 4))
    page.wait(f"{_SHOWN} === 4")
    ask(page, "what are these?")
    page.wait(ANSWERED)
    assert "at most 3 images may be in a prompt" in page.text("#messages .about.error")
    page.wait(f"{_SHOWN} === 4")
    assert page.value("document.querySelector('#message').value") == "what are these?"
    assert [fault for fault in page.all_faults() if "400" not in fault] == []


def test_files_that_are_no_images(picture_page: Browser) -> None:
    page = picture_page
    drop(page, transfer(1, name="a.txt", kind="text/plain"))
    page.wait("document.querySelector('#picture-note').textContent === 'Only images can be added.'")
    drop(page, transfer(1), "header")  # beside the chat: nothing happens, and above all the page stays
    large = "transfer(...Array(2).fill([btoa('x'.repeat(9e6)), 'large.png', 'image/png']))"
    drop(page, large)
    page.wait("document.querySelector('#picture-note').textContent === 'These images are too large together.'")
    assert page.value("document.querySelector('#pictures').hidden") and page.all_faults() == []
    worst = page.value(_CONTRAST)
    assert worst[0] >= 4.5, worst


def test_a_page_of_a_model_of_text_takes_no_images(page: Browser) -> None:
    assert page.value("document.querySelector('#add-picture').hidden")
    page.value(_TRANSFER)
    drop(page, transfer(1))
    page.wait("document.querySelector('#picture-note').textContent === 'This model reads text only.'")
