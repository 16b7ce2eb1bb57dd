# Copyright 2026 The trl_gist authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""The page at the server's root, in a real browser."""

import json
import re
import shutil
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import pytest
from serving_run import NAME, running, slowed
from tiny import PARAGRAPH
from tiny_sessions import GIST

from trl_gist.evaluation.gists.patterns import survival_pieces
from trl_gist.inference.windows import windows_of
from trl_gist.prompts import before_last_k
from trl_gist.serving.page import page as served_page


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARTICLE = "".join(f"{number}. {PARAGRAPH}" for number in range(13))
EVIL = "<script>document.title = 'run'</script> <img src=x onerror=\"document.title = 'run'\"> &lt;b&gt; Soho 1854"
REFUSED = "Failed to load resource: the server responded with a status of"  # the browser's own line of a 4xx
PHONE = {"viewport": {"width": 390, "height": 800}, "has_touch": True}


@pytest.fixture(scope="module")
def url(compactor):
    with running(compactor, max_context_tokens=5000) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium is installed: `apt-get install chromium`")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `pip install playwright`")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, url, refused=False, ready=True, **settings):
    """The page, which then asks nobody but its server, and says nothing in the console."""
    with browser.new_context(**settings) as context:
        page, said, asked = context.new_page(), [], []
        page.set_default_timeout(90_000)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        if ready:
            page.wait_for_function("name => document.querySelector('h1').textContent === name", arg=NAME)
        yield page
        assert [line for line in said if not (refused and line.startswith(REFUSED))] == []
        assert {urlsplit(each).netloc for each in asked} == {urlsplit(url).netloc}


def compress(page, text, certify=False):
    page.set_checked("#certify", certify, force=True)
    page.fill("#text", text)
    page.click("#go")
    page.wait_for_selector("#answering:not([hidden])")
    page.wait_for_selector("#stop", state="hidden")


def gists_of(page):
    return page.locator(".card .gist").all_text_contents()


# ---- Gists ----


def test_an_article_is_compressed_window_by_window_with_what_each_gist_keeps_marked(browser, url, compactor):
    windows, gists = list(windows_of(compactor, ARTICLE)), compactor.compress_windows(ARTICLE)
    assert len(compactor.token_ids(ARTICLE, "the article")) > 2000
    with opened(browser, url) as page:
        page.set_checked("#certify", False, force=True)
        with slowed(compactor.summarizer, 0.005):
            page.fill("#text", ARTICLE)
            page.keyboard.press("Control+Enter")
            page.wait_for_selector("#gists li")
            early = page.locator("#gists li").count()
            assert page.is_visible("#stop") and page.is_hidden("#answering")
            page.wait_for_selector("#answering:not([hidden])")
        assert 0 < early < len(gists) == page.locator("#gists li").count()
        assert page.is_hidden("#stop") and page.is_hidden("#progress")
        assert gists_of(page) == [gist.text or "(empty)" for gist in gists]
        items = page.evaluate(
            "[...document.querySelectorAll('.source')].map(source => [...source.childNodes].map(node => "
            "[node.textContent, node.style ? +node.style.getPropertyValue('--share') : 0]))"
        )
        stretches = [before_last_k(window.context_ids, window.last_k_ids) for window in windows]
        for item, stretch, gist in zip(items, stretches, gists, strict=True):
            assert item == [[text, share] for text, share in survival_pieces(compactor.decode(stretch), gist.text)]
        assert "".join(text for item in items for text, _ in item) == ARTICLE
        counts = [
            re.search(r"([\d,]+) → ([\d,]+) tokens?", card)[0] for card in page.locator(".card").all_inner_texts()
        ]
        assert counts == [
            f"{len(stretch)} → {len(gist.token_ids)} token{'s' * (len(gist.token_ids) != 1)}"
            for stretch, gist in zip(stretches, gists, strict=True)
        ]
        tokens = len(compactor.token_ids(ARTICLE, "the article"))
        written = sum(len(gist.token_ids) for gist in gists)
        assert f"{len(gists)} windows · {tokens:,} tokens → {written}" in page.inner_text("#summary")


def test_certificates_are_bars_on_one_scale(browser, url, compactor):
    text = PARAGRAPH[:300]
    gists = compactor.compress_windows(text, certify=True)
    with opened(browser, url) as page:
        compress(page, text, certify=True)
        top = max(1, *(gist.expected_kl + gist.expected_kl_se for gist in gists))
        for gist, card in zip(gists, page.locator(".card").all(), strict=True):
            said = f"expected to cost {gist.expected_kl:.2f} ± {gist.expected_kl_se:.2f} nats a token"
            assert said in card.inner_text() and card.locator(".bar").get_attribute("aria-label") == said
            share = card.evaluate(
                "card => { const [bar, i] = card.querySelectorAll('.bar, .bar i'); "
                "return i.getBoundingClientRect().width / bar.getBoundingClientRect().width }"
            )
            assert share == pytest.approx(gist.expected_kl / top, abs=0.01)


def test_gists_come_first_and_a_question_holds_their_certificates_up_for_its_time_alone(browser, url, compactor):
    with opened(browser, url) as page, slowed(compactor.generator, 0.05):
        page.fill("#text", PARAGRAPH[50:350])
        page.click("#go")
        page.wait_for_selector("#answering:not([hidden])")
        gists = page.locator("#gists li").count()
        assert page.locator(".bar").count() < gists > 2
        page.wait_for_selector(".bar")
        page.click("#answer")
        page.wait_for_selector("#answers:not([hidden])")
        assert page.locator(".bar").count() < gists
        page.wait_for_selector("#stop", state="hidden")
        assert page.locator(".bar").count() == gists
        summary = page.inner_text("#summary")
        assert summary.endswith("nats a token") and summary.count("certifying") == 0


def test_the_budget_and_what_is_kept_write_the_gists_anew(browser, url, compactor):
    text = PARAGRAPH[:400]
    with opened(browser, url, refused=True) as page:
        compress(page, text)
        assert page.input_value("#budget") == str(GIST)
        page.get_by_text("numbers", exact=True).click()
        page.wait_for_selector(".spans")
        page.fill("#literal", "Broad Street")
        page.press("#literal", "Enter")
        page.fill("#budget", "5")
        expected = compactor.compress_windows(text, 5, keep=["numbers", "Broad Street"])
        texts = [gist.text for gist in expected]
        page.wait_for_function(
            "texts => texts.join() === [...document.querySelectorAll('.card .gist')].map(e => e.textContent).join()",
            arg=texts,
        )
        spans = [[f"✓ {span}" for span in gist.kept] + gist.not_kept for gist in expected]
        assert [card.locator(".spans span").all_text_contents() for card in page.locator(".card").all()] == spans
        assert any(gist.kept for gist in expected) and any(gist.not_kept for gist in expected)
        page.fill("#budget", "1")
        page.wait_for_function(
            "() => [...document.querySelectorAll('.card small')].some(e => e.textContent.includes('→ 1 '))"
        )
        assert page.inner_text("#tokens") == "1 token" and "1 tokens" not in page.inner_text("#gists")
        page.fill("#literal", "regex:a+")
        page.press("#literal", "Enter")
        page.wait_for_selector("#error:not([hidden])")
        assert "patterns are not matched for clients" in page.inner_text("#error")


def test_esc_stops_and_what_was_written_stays(browser, url, compactor):
    with opened(browser, url) as page, slowed(compactor.summarizer, 0.02):
        page.set_checked("#certify", False, force=True)
        page.fill("#text", ARTICLE[::-1])
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#gists li")
        page.keyboard.press("Escape")
        page.wait_for_selector("#stop", state="hidden")
        assert page.inner_text("#summary").endswith(" · stopped")
        assert 0 < page.locator("#gists li").count() < 40 and page.is_hidden("#answering")


def test_files_are_dropped_and_no_text_is_refused(browser, url):
    drop = """([bytes, name]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], name));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    }"""
    with opened(browser, url) as page:
        page.set_checked("#certify", False, force=True)
        page.evaluate(drop, [list("Zoë met John Snow.".encode()), "a.txt"])
        page.wait_for_selector("#answering:not([hidden])")
        assert "".join(page.locator(".source").all_text_contents()) == "Zoë met John Snow."
        page.evaluate(drop, [[255, 0, 254], "<b>.png"])
        page.wait_for_selector("#error:not([hidden])")
        assert page.inner_text("#error") == "<b>.png is no text in UTF-8."


# ---- Answers ----


@pytest.mark.parametrize("question", ["", "Who met <b>whom</b>?"])
def test_answers_stand_side_by_side_coloured_by_where_they_differ(browser, url, compactor, question):
    text = PARAGRAPH[:300]
    body = {
        "input": text,
        "gists": [gist.token_ids for gist in compactor.compress_windows(text)],
        "max_tokens": 24 if question else 48,
    }
    if question:
        body["cue"] = f"\nQuestion: {question}\nAnswer:"
    expected = httpx.post(f"{url}/v1/compare", json=body, timeout=60).json()["data"]
    with opened(browser, url) as page:
        compress(page, text)
        page.fill("#question", question)
        assert page.inner_text("#answer") == ("Ask" if question else "Go on")
        page.press("#question", "Enter")
        page.wait_for_selector("#answers:not([hidden])")
        for row in expected:
            box = page.locator(f".answer.{row['from']}")
            spans = box.locator(".text span:not(.before)")
            assert spans.all_text_contents() == [piece["text"] for piece in row["pieces"]]
            far = [float(span.evaluate("span => span.style.getPropertyValue('--far')")) for span in spans.all()]
            apart = [piece["log_prob"] - piece["other_log_prob"] for piece in row["pieces"]]
            assert far == pytest.approx([min(max(each / 4, 0), 1) for each in apart], abs=0.006)
            assert f"{row['prompt_tokens']} tokens read" in box.inner_text()
        assert max(far) > 0.1
        # From token to token, without a mouse
        page.focus(".answer.gists .text")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        piece = expected[0]["pieces"][1]
        assert page.locator(".answer.gists .at").text_content() == piece["text"]
        assert piece["text"] in page.locator("#token").text_content() and "%" in page.inner_text("#token")
        # One window alone
        page.select_option("#scope", "0")
        with page.expect_request("**/v1/compare") as asked:
            page.click("#answer")
        assert json.loads(asked.value.post_data)["gists"] == body["gists"][:1]
        assert text.startswith(json.loads(asked.value.post_data)["input"])
        page.wait_for_function("() => document.querySelector('.answer strong').textContent === 'From the gist'")


def test_a_whole_text_that_no_reader_has_room_for_is_said_so(browser, url, compactor):
    with opened(browser, url) as page:
        compress(page, ARTICLE[:2500])
        page.select_option("#scope", "0")
        page.select_option("#scope", "all")
        page.click("#answer")
        page.wait_for_selector("#answers:not([hidden])")
        assert "The full-context reader would need" in page.inner_text(".answer.input")
        assert len(page.inner_text(".answer.gists .text")) > 20


# ---- What a page must be ----


def test_what_a_text_spells_is_text(browser, url):
    with opened(browser, url) as page:
        page.fill("#literal", EVIL)
        page.press("#literal", "Enter")
        page.fill("#budget", "12")
        compress(page, f"{EVIL}\n\0\u202e{EVIL} &amp;\r\n", certify=True)
        page.fill("#question", EVIL)
        page.click("#answer")
        page.wait_for_selector("#answers:not([hidden])")
        assert EVIL in "".join(page.locator(".source").all_text_contents())
        assert page.title() == f"{NAME} · trl_gist" and page.locator("main img, main script").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways_in_the_pages_colours(browser, url, scheme):
    with opened(browser, url, color_scheme=scheme, **PHONE) as page:
        page.fill("#literal", "Broad Street " * 9)
        page.press("#literal", "Enter")
        compress(page, "x" * 200 + PARAGRAPH[:200], certify=True)
        page.click("#answer")
        page.wait_for_selector("#answers:not([hidden])")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        outside = page.evaluate(
            "[...document.querySelectorAll('body *')].filter(e => { const box = e.getBoundingClientRect(); "
            "return box.width && (box.right > 391 || box.left < 0) && !e.closest('.bar, .chip') }).map(e => e.outerHTML)"
        )
        assert outside == []
        for control in page.locator("button:visible, select:visible, #question, .chip").all():
            assert control.bounding_box()["height"] >= 28
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(254, 254, 254)", "dark": "rgb(21, 24, 28)"}[scheme]
        tall = page.evaluate(
            "[...document.querySelectorAll('#gists li')].map(e => e.children[1].offsetTop > e.children[0].offsetTop)"
        )
        assert all(tall)


def test_a_keyboard_is_enough(browser, url):
    with opened(browser, url) as page:
        page.wait_for_function("() => document.activeElement.id === 'text'")
        page.keyboard.type("John Snow marked on a map of Soho the houses where people had died.")
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowLeft")
        assert (page.inner_text("#tokens"), page.evaluate("document.activeElement.id")) == (
            f"{GIST - 1} tokens",
            "budget",
        )
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        for _ in range(3):
            page.keyboard.press("Tab")
        page.keyboard.type("Soho")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert page.evaluate("[...document.querySelectorAll('input:checked')].map(e => e.value)") == ["names", "Soho"]
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector("#answering:not([hidden])")
        page.focus("#question")
        page.keyboard.type("Who?")
        page.keyboard.press("Enter")
        page.wait_for_selector("#answers:not([hidden])")


def test_the_key_is_asked_for_and_used(browser, compactor):
    with running(compactor, api_key="s3cret") as url:
        with opened(browser, url, refused=True, ready=False) as page:
            keys = []
            page.on("request", lambda request: keys.append(request.headers.get("authorization")))
            page.wait_for_selector("#login:not([hidden])")
            assert page.inner_text("#wrong") == ""
            page.keyboard.type("wrong")
            page.keyboard.press("Enter")
            page.wait_for_function("() => document.querySelector('#wrong').textContent !== ''")
            assert "API key is missing or wrong" in page.inner_text("#wrong")
            page.keyboard.type("s3cret")
            page.keyboard.press("Enter")
            page.wait_for_function("name => document.querySelector('h1').textContent === name", arg=NAME)
            assert page.is_hidden("#login")
            compress(page, "John Snow marked on a map of Soho the houses.")
            assert keys[:2] == ["Bearer wrong", "Bearer s3cret"] and set(keys[1:]) == {"Bearer s3cret"}
            assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


def test_whatever_waits_for_the_key_goes_on_when_it_is_given(browser, compactor):
    """A text that is compressed before the server was told a key, and again: the page knows its pair all the same."""
    with running(compactor, api_key="s3cret") as url, opened(browser, url, refused=True, ready=False) as page:
        page.wait_for_selector("#login:not([hidden])")
        page.set_checked("#certify", False, force=True)
        page.fill("#text", PARAGRAPH[:200])
        page.click("#go")
        page.wait_for_function("() => document.activeElement.id === 'key'")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.wait_for_function("() => document.querySelector('#wrong').textContent !== ''")
        page.click("#go")
        page.fill("#key", "s3cret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#answering:not([hidden])")
        assert page.is_hidden("#login") and page.inner_text("h1") == NAME
        assert page.get_attribute("#budget", "max") == str(2 * GIST)
        assert gists_of(page) == [gist.text or "(empty)" for gist in compactor.compress_windows(PARAGRAPH[:200])]
        page.click("#answer")
        page.wait_for_selector("#answers:not([hidden])")


def test_a_server_that_comes_back_is_asked_again_what_it_is(browser, url, compactor):
    with browser.new_context() as context:
        page = context.new_page()
        page.route("**/v1/models", lambda route: route.abort())
        page.goto(url)
        page.wait_for_selector("#error:not([hidden])")
        page.set_checked("#certify", False, force=True)
        page.fill("#text", "John Snow in Soho.")
        page.click("#go")
        assert page.inner_text("#error").startswith("The server gave no answer.")
        page.unroute("**/v1/models")
        page.click("#go")
        page.wait_for_selector("#answering:not([hidden])")
        assert page.inner_text("h1") == NAME and page.is_hidden("#error")
        page.click("#answer")
        page.wait_for_selector("#answers:not([hidden])")


def test_what_is_written_from_right_to_left_is_shown_so(browser, url):
    with opened(browser, url) as page:
        for place in ("#text", "#question", "#literal"):
            for text, direction in (("مضخة 12", "rtl"), ("משאבה", "rtl"), ("a pump", "ltr")):
                page.evaluate("([place, text]) => { document.querySelector(place).value = text }", [place, text])
                assert page.evaluate(f"getComputedStyle(document.querySelector('{place}')).direction") == direction


def test_what_the_server_says_is_said_and_the_page_goes_on(browser, compactor):
    with running(compactor) as url:
        with opened(browser, url, refused=True) as page:

            def error_of(text):
                page.fill("#text", text)
                page.click("#go")
                page.wait_for_selector("#error:not([hidden])")
                return page.inner_text("#error")

            page.set_checked("#certify", False, force=True)
            assert "this server takes 2000" in error_of(PARAGRAPH * 20)
            assert "50000 bytes" in error_of("a" * 60_000)
            assert page.is_hidden("#result") and page.is_hidden("#stop")
            calls = iter(range(10**6))

            def fail(*_):
                if next(calls) == 20:
                    raise RuntimeError("secret of the server")

            hook = compactor.summarizer.register_forward_hook(fail)
            assert error_of(PARAGRAPH[::-1]) == "The server failed on this request; its log says why."
            hook.remove()
            assert page.locator("#gists li").count() > 0 and page.is_hidden("#stop")
            page.route("**/v1/compress", lambda route: route.fulfill(status=502, body="<b>Bad</b> Gateway"))
            assert error_of("Soho.") == "The server answered 502. <b>Bad</b> Gateway"
            page.unroute("**/v1/compress")
            page.route("**/v1/compress", lambda route: route.fulfill(status=200, body='data: {"object": "li'))
            assert error_of("Soho.") == "The server broke off."
            page.unroute("**/v1/compress")
            compress(page, "John Snow in Soho.")
            assert page.is_hidden("#error")


def test_a_server_that_is_gone_is_said_to_be(browser, compactor):
    with running(compactor) as url, browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        page.wait_for_function("name => document.querySelector('h1').textContent === name", arg=NAME)
        page.route("**/v1/compress", lambda route: route.abort())
        page.fill("#text", "Soho.")
        page.click("#go")
        page.wait_for_selector("#error:not([hidden])")
        assert page.inner_text("#error").startswith("The server gave no answer.")


def test_the_browser_is_told_to_run_and_load_nothing_else(browser, url):
    response = httpx.get(url)
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'" and policy["img-src"] == "data:"
    assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy["script-src"]) and "unsafe" not in str(policy)
    assert response.headers["content-type"] == "text/html; charset=utf-8" and response.text == served_page()[0]
    assert not re.search(r"(?:src|href|url\()\s*=?\s*['\"(]?\s*(?:https?:)?//", response.text)
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(url)
        ran = page.evaluate(
            "() => { const script = document.createElement('script'); script.textContent = 'window.ran = 1'; "
            "document.body.append(script); return window.ran }"
        )
        assert ran is None
        foreign = page.evaluate("fetch('http://localhost:9/').then(() => 'sent', () => 'refused')")
        assert foreign == "refused"
    assert httpx.head(url).status_code == 200 and httpx.post(url, json={}).status_code == 405
