"""The chat page, in a real browser: sending, streaming, stopping, reloading, a server that is killed, votes, two models."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers import running_server, started_environment
from speaking import TEXT, Speaker

from cot_unsloth.config import load_tree
from cot_unsloth.core.types import Prompt, SamplingParams
from cot_unsloth.models.protocols import Streamer
from cot_unsloth.server import Served
from cot_unsloth.server.pages import group
from cot_unsloth.server.protection import Access


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 380, "height": 700})
    page = context.new_page()
    page.set_default_timeout(15_000)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("dialog", lambda dialog: page.faults.append(dialog.message))
    yield page
    assert page.faults == []
    context.close()


def served(*engines: Streamer, **more: Any) -> Served:
    names = ["m", "base"][: len(engines)]
    return Served(dict(zip(names, engines, strict=True)), load_tree({}, {}), **more)


def ask(page: Any, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")


class Slow(Speaker):
    """Waits between its words."""

    def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
        for piece in super().stream(prompt, sampling):
            time.sleep(0.05)
            yield piece


def test_a_question_is_answered_with_its_thinking_folded_and_its_reflections_marked(page: Any) -> None:
    speaker = Speaker()
    with running_server(served(speaker)) as address:
        page.goto(address)
        ask(page, "1 + 1?\nPlease.")
        page.wait_for_selector("text=tokens in")
        assert page.inner_text(".content") == "2"
        assert not page.is_visible(".thinking pre")
        assert page.inner_text("summary >> nth=0") == "Thought for 3 lines, 1 reflection"
        page.click("details.thinking summary")
        assert page.inner_text(".reflection") == "it is 2"
        ask(page, "Sure?")
        page.locator(".content").nth(1).wait_for()
        page.wait_for_selector("#retry:enabled")
        page.reload()
        assert page.locator(".content").all_inner_texts() == ["2", "2"]
        ask(page, "Third")
        page.locator(".content").nth(2).wait_for()
        page.wait_for_selector("#retry:enabled")
    assert [turn["content"] for turn in speaker.asked[2].messages[1:]] == [
        "1 + 1?\nPlease.",
        TEXT,
        "Sure?",
        TEXT,
        "Third",
    ]


def test_an_answer_is_streamed_and_can_be_stopped_and_tried_again(page: Any) -> None:
    with running_server(served(Slow())) as address:
        page.goto(address)
        ask(page, "1 + 1?")
        page.locator(".thinking pre", has_text="1 + 1").wait_for()
        assert page.is_visible(".thinking pre")  # open while it is written
        page.press("#question", "Escape")
        page.wait_for_selector("text=stopped")
        page.click("#retry")
        page.wait_for_selector("text=tokens in")
        assert page.locator(".content").last.inner_text() == "2"


def test_a_new_conversation_does_not_begin_with_the_answer_that_it_interrupted(page: Any) -> None:
    """Unseen on the page, it was sent to the model as the first turn."""
    slow = Slow()
    with running_server(served(slow)) as address:
        page.goto(address)
        ask(page, "1 + 1?")
        page.locator(".thinking pre", has_text="1 + 1").wait_for()
        page.click("#new")
        page.wait_for_selector("#send:enabled")
        slow.text = "<output>5</output>"
        ask(page, "2 + 3?")
        page.wait_for_selector("text=tokens in")
    assert [turn["content"] for turn in slow.asked[1].messages if turn["role"] != "system"] == ["2 + 3?"]


def test_text_of_a_model_is_never_taken_for_html(page: Any) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    text = f"<thinking>\n{evil}\n<reflection>{evil}</reflection>\n</thinking>\n<output>{evil}</output>"
    with running_server(served(Speaker(text))) as address:
        page.goto(address)
        ask(page, evil)
        page.wait_for_selector("text=tokens in")
        assert page.inner_text(".content") == evil
        assert page.inner_text(".user") == evil
        assert page.locator("#turns img, #turns script").count() == 0


def test_errors_are_shown_and_a_key_is_asked_for(page: Any) -> None:
    with running_server(served(Speaker(), access=Access("secret"))) as address:
        page.goto(address)
        ask(page, "1 + 1?")
        page.wait_for_selector(".error")
        assert page.inner_text(".error") == "the API key is wrong or missing"
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        page.click("#retry")
        page.wait_for_selector("text=tokens in")
        assert page.locator(".content").last.inner_text() == "2"


def test_an_empty_conversation_offers_questions(page: Any) -> None:
    speaker = Speaker()
    questions = ("Make 5 from 2 and 3.\nUse each once.", "<b>1 + 1?</b>")
    with running_server(served(speaker, examples=questions)) as address:
        page.goto(address)
        page.locator(".example").nth(1).wait_for()
        assert page.locator(".example").all_inner_texts() == list(questions)
        page.locator(".example").nth(0).click()
        page.wait_for_selector("text=tokens in")
        assert page.inner_text(".user") == questions[0]
        assert page.locator(".example").count() == 0
        page.click("#new")
        assert page.locator(".example").count() == 2
    assert speaker.asked[0].messages[-1]["content"] == questions[0]


def test_held_out_questions_are_offered_with_the_key_only(page: Any) -> None:
    with running_server(served(Speaker(), access=Access("secret"), examples=("1 + 1?",))) as address:
        assert httpx.get(f"{address}/examples").status_code == 401
        page.goto(address)
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        page.locator(".example").wait_for()


def test_two_models_answer_side_by_side(page: Any) -> None:
    with running_server(served(Speaker(), Speaker("<output>5</output>"), slots=2)) as address:
        page.goto(address)
        page.check("#compare")
        ask(page, "1 + 1?")
        page.wait_for_selector("#retry:enabled")
        assert page.locator(".answer h2").all_inner_texts() == ["m", "base"]
        assert page.locator(".content").all_inner_texts() == ["2", "5"]


def test_the_majority_of_several_answers_is_counted(page: Any) -> None:
    class Divided(Speaker):
        def stream(self, prompt: Prompt, sampling: SamplingParams) -> Iterator[str]:
            yield f"<output>{('1/2', '0.5', '7')[sampling.seed % 3]}</output>"

    with running_server(served(Divided(), slots=3)) as address:
        page.goto(address)
        page.click("#settings summary")
        page.fill("#votes", "3")
        page.fill("#seed", "0")
        ask(page, "A half?")
        page.wait_for_selector(".votes")
        rows = page.locator(".votes td").all_inner_texts()
    assert rows == ["2", "1/2", "1", "7"]


def test_answers_to_vote_that_were_stopped_or_not_counted_are_in_the_conversation(page: Any) -> None:
    """The next question was asked without the question and the answer before it."""
    speaker = Slow(TEXT, size=1)
    with running_server(served(speaker, slots=2)) as address:
        page.goto(address)
        page.click("#settings summary")
        page.fill("#votes", "2")
        ask(page, "1 + 1?")
        page.locator(".thinking pre").first.wait_for()
        page.click("#stop")
        page.wait_for_selector("#retry:enabled")
        speaker.size = len(TEXT)
        page.route("**/votes", lambda route: route.fulfill(status=500, body="no"))
        ask(page, "Sure?")
        page.wait_for_selector(".error")
        page.wait_for_selector("#retry:enabled")
        page.fill("#votes", "1")
        ask(page, "Third")
        page.wait_for_selector("text=tokens in")
        page.wait_for_selector("#retry:enabled")
    roles = [turn["role"] for turn in speaker.asked[-1].messages if turn["role"] != "system"]
    assert roles == ["user", "assistant"] * 2 + ["user"]


def test_equal_answers_vote_together_and_none_is_never_first() -> None:
    groups = group(["", "", "", "12", "$12.00", "7"])
    assert [members for _, members in groups] == [[3, 4], [5], [0, 1, 2]]


def test_a_server_that_is_killed_in_mid_answer_is_reported(page: Any, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\nfrom cot_unsloth import server\nfrom cot_unsloth.config import load_tree\n"
        "from speaking import Speaker\n"
        "class Slow(Speaker):\n    def stream(self, prompt, sampling):\n        yield '<thinking>'\n"
        "        while True:\n            time.sleep(0.05)\n            yield 'one two '\n"
        "listener = server.bind('127.0.0.1', 0)\nprint(listener.getsockname()[1], flush=True)\n"
        "server.serve(server.Served({'m': Slow()}, load_tree({}, {})), listener)\n"
    )
    environment = started_environment(tests=True)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        page.goto(f"http://127.0.0.1:{process.stdout.readline().strip()}")
        ask(page, "1 + 1?")
        page.locator(".thinking pre", has_text="two").wait_for()
        process.kill()
        page.wait_for_selector(".error")
        assert page.locator(".error").inner_text()
        assert page.is_enabled("#send")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_has_no_serious_fault_of_accessibility(page: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    with running_server(served(Speaker(), Speaker(), slots=2)) as address:
        page.goto(address)
        ask(page, "1 + 1?")
        page.wait_for_selector("text=tokens in")
        page.click("details.thinking summary")
        page.click("#settings summary")
        # axe is injected as a script, which the policy of the page forbids; its context ignores it here only.
        found = axe.run(page).response["violations"]
        overflow = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
    assert [fault["id"] for fault in found if fault["impact"] in ("serious", "critical")] == []
    assert not overflow


def test_the_page_loads_nothing_from_elsewhere() -> None:
    with running_server(served(Speaker())) as address:
        index = httpx.get(address)
        assert "default-src 'none'" in index.headers["content-security-policy"]
        assert all("//" not in part for part in index.text.split('"') if part.startswith(("http", "/")))
        assert httpx.get(f"{address}/page/app.js").status_code == 200
        for name in ("nothing.js", "..%2fapp.py", "__init__.py"):
            assert httpx.get(f"{address}/page/{name}").status_code == 404
