"""The chat page in a browser that reaches nothing but this machine (Chromium, headless)."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from agents import Agent, function_tool, set_tracing_disabled
from playwright.async_api import Browser, BrowserContext, Page, Route, async_playwright, expect
from pydantic import SecretStr

from my_agent.sessions import SessionRef, SessionStore
from my_agent.sessions.records import Batch, Row, new_id
from proof.support.helpers import answer, missing, texts, user
from proof.support.scripted_model import call, say
from proof.support.turns import SlowModel, launch_rocket, launched
from proof.web.serving import SECRET, app_of, serving
from proof.web.test_identity import token

NASTY = (
    '<img src=x onerror="window.broken=1"><script>window.broken=1</script> [x](javascript:window.broken=1) \u202etxt'
)


@function_tool
def look_up(text: str = "") -> str:
    """Look something up."""
    return NASTY


class Model(SlowModel):
    """Says what the test set last, word by word as it likes."""

    def __init__(self) -> None:
        super().__init__(seconds=0)

    def says(self, *script: Any, seconds: float = 0) -> None:
        self.__dict__ |= vars(SlowModel(*script, seconds=seconds))


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        missing("the page is tried in Chromium, which is not here: apt-get install chromium")
    async with async_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]  # in a container, and as root
        browser = await playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        await browser.close()


class Site:
    """The service at one address, and people in front of it."""

    def __init__(self, browser: Browser, environment: dict[str, str]) -> None:
        self.browser, self.environment, self.model = browser, environment, Model()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.elsewhere: list[str] = []
        self.problems: list[str] = []

    @asynccontextmanager
    async def up(self, **settings: Any) -> AsyncIterator[None]:
        def build(_: Any) -> Agent[Any]:
            return Agent(name="Helper", model=self.model, tools=[look_up, launch_rocket])

        async with serving(app_of(self.environment, build, **settings), self.port):
            yield

    async def person(self, **options: Any) -> BrowserContext:
        """Somebody with a browser of their own."""
        person = await self.browser.new_context(**options)

        async def only_here(route: Route) -> None:
            if route.request.url.startswith((self.url, "blob:", "data:")):
                await route.continue_()
            else:
                self.elsewhere.append(route.request.url)
                await route.abort()

        await person.route("**/*", only_here)
        return person

    async def open(self, person: BrowserContext | None = None, place: str = "", **options: Any) -> Page:
        page = await (person or await self.person(**options)).new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda line: self.problems.append(line.text) if "Content Security" in line.text else None)
        await page.goto(self.url + place)
        await expect(page.locator("#state")).to_have_text("")
        return page


@pytest.fixture
async def site(store: SessionStore, browser: Browser, server_environment: dict[str, str]) -> AsyncIterator[Site]:
    set_tracing_disabled(True)
    launched.clear()
    site = Site(browser, server_environment)
    yield site
    assert site.elsewhere == [], "it asked for something elsewhere"
    assert site.problems == []


async def send(page: Page, text: str) -> None:
    await page.fill("#message", text)
    await page.press("#message", "Enter")


def shown(page: Page) -> Any:
    return page.locator("#messages .body")


async def said(store: SessionStore, page: Page) -> list[str]:
    return texts(await store.session(page.url.partition("#")[2]).get_items())


# ── Talking ─────────────────────────────────────────────────────────────────


async def test_what_was_said_is_there_after_a_reload_and_a_restart(site: Site, store: SessionStore) -> None:
    person = await site.person()
    async with site.up():
        page = await site.open(person)
        await expect(page.locator("#empty")).to_be_visible()
        site.model.says(say("Nice to meet you."), say("You are Ada."))
        await send(page, "My name is Ada")
        await expect(shown(page)).to_have_text(["My name is Ada", "Nice to meet you."])
        await expect(page.locator("#list b")).to_have_text(["My name is Ada"])
        await page.reload()
        await expect(shown(page)).to_have_text(["My name is Ada", "Nice to meet you."])
    await send(page, "Are you there?")
    await expect(page.locator("#problem")).to_contain_text("cannot be reached")
    async with site.up():
        await page.click("#problem button")
        await expect(shown(page)).to_have_text(
            ["My name is Ada", "Nice to meet you.", "Are you there?", "You are Ada."]
        )
        assert await said(store, page) == ["My name is Ada", "Nice to meet you.", "Are you there?", "You are Ada."]


async def test_tools_are_folded_and_nothing_that_was_said_becomes_a_part_of_the_page(
    site: Site, store: SessionStore
) -> None:
    async with site.up():
        page = await site.open()
        site.model.says(
            call("look_up", text=NASTY), say(f"{NASTY}\n\n```\n{NASTY}\n```\n**bold** [ok](https://ok.example)")
        )
        await send(page, NASTY)
        await expect(page.locator(".answer strong")).to_have_text("bold")
        for _ in range(2):
            await page.click("summary")
            await expect(page.locator("details pre")).to_have_count(2)
            await expect(page.locator("details")).to_contain_text("onerror")
            assert await page.evaluate("window.broken") is None
            assert await page.locator("main img, main script").count() == 0
            links = await page.eval_on_selector_all("main a", "all => all.map(each => each.getAttribute('href'))")
            assert [link for link in links if link and not link.startswith("#")] == ["https://ok.example"]
            await page.reload()
            await expect(shown(page)).to_have_count(2)
        assert "\u202e" in await page.inner_text("#title") or "onerror" in await page.inner_text("#title")


async def test_an_answer_is_stopped_and_nothing_of_it_stays(site: Site, store: SessionStore) -> None:
    async with site.up():
        page = await site.open()
        site.model.says(say("never"), seconds=30)
        for how in ("button", "Escape"):
            await send(page, "Think")
            await expect(page.locator("#stop")).to_be_visible()
            await asyncio.wait_for(site.model.asked.wait(), 10)
            site.model.asked.clear()
            await (page.click("#stop") if how == "button" else page.keyboard.press("Escape"))
            await expect(page.locator("#send")).to_be_visible()
            await expect(shown(page)).to_have_count(0)
            await expect(page.locator("#message")).to_have_value("Think")
        assert (await store.list_sessions()).sessions == []


@pytest.mark.parametrize("approve", [True, False])
async def test_a_tool_waits_for_a_decision_also_after_a_reload(site: Site, approve: bool) -> None:
    async with site.up():
        page = await site.open()
        site.model.says(call("launch_rocket", text="Apollo"), say("done"))
        await send(page, "Launch it")
        await expect(page.locator(".card")).to_contain_text("launch_rocket")
        await page.reload()
        await expect(page.locator(".card")).to_contain_text("Apollo")
        await expect(page.locator("#message")).to_be_disabled()
        await page.click(f".card button:has-text('{'Approve' if approve else 'Reject'}')")
        await expect(shown(page).last).to_have_text("done")
        assert launched == (["Apollo"] if approve else [])
        await page.reload()
        await expect(shown(page)).to_have_text(["Launch it", "done"])
        await expect(page.locator(".card")).to_have_count(0)


async def test_edit_and_answer_again_leave_the_first_conversation_as_it_is(site: Site, store: SessionStore) -> None:
    async with site.up():
        page = await site.open()
        site.model.says(say("one"), say("two"), say("another two"), say("edited"))
        for text in ("first", "second"):
            await send(page, text)
            await expect(page.locator("#send")).to_be_visible()
        await expect(shown(page)).to_have_text(["first", "one", "second", "two"])
        before = page.url
        await page.locator(".user").nth(1).get_by_text("Answer again").click()
        await expect(shown(page)).to_have_text(["first", "one", "second", "another two"])
        assert page.url != before
        await page.locator(".user").nth(0).get_by_text("Edit").click()
        await expect(page.locator("#message")).to_have_value("first")
        await send(page, "first, edited")
        await expect(shown(page)).to_have_text(["first, edited", "edited"])
        await page.goto(before)
        await expect(shown(page)).to_have_text(["first", "one", "second", "two"])


# ── Conversations ───────────────────────────────────────────────────────────


async def test_conversations_are_renamed_searched_deleted_and_taken_back(site: Site, store: SessionStore) -> None:
    for name in ("one", "two", "three"):
        await store.session(name).add_items([user(f"about {name}"), answer("yes")])
    async with site.up():
        page = await site.open(place="#two")
        names = page.locator("#list b")
        await expect(names).to_have_text(["about three", "about two", "about one"])
        await page.fill("#search", "T")
        await expect(names).to_have_text(["about three", "about two", "about one"])
        await page.fill("#search", "two")
        await expect(names).to_have_text(["about two"])
        await page.get_by_label("Rename about two").click()
        await page.keyboard.type("A better title")
        await page.keyboard.press("Enter")
        await page.fill("#search", "")
        await expect(page.locator("#title")).to_have_text("A better title")
        await page.get_by_label("Delete A better title").click()
        await expect(names).to_have_text(["about three", "about one"])
        await page.get_by_text("Undo").click()
        await expect(names).to_have_text(["about three", "A better title", "about one"])
        assert await store.find_session(SessionRef("", "two")) is not None
        await page.get_by_label("Delete about one").click()
        assert await store.find_session(SessionRef("", "one")) is not None
        await page.close(run_before_unload=True)  # it is sent when the page goes
        for _ in range(100):
            if await store.find_session(SessionRef("", "one")) is None:
                break
            await asyncio.sleep(0.1)
        assert await store.find_session(SessionRef("", "one")) is None


async def test_two_tabs_wait_for_each_other(site: Site, store: SessionStore) -> None:
    await store.session("shared").add_items([user("begun"), answer("yes")])
    async with site.up(session_wait_seconds=0.2):
        person = await site.person()
        left, right = [await site.open(person, "#shared") for _ in range(2)]
        site.model.says(say("from the left"), say("from the right"), seconds=1.5)
        await send(left, "left")
        await asyncio.wait_for(site.model.asked.wait(), 10)
        await send(right, "right")
        await expect(right.locator("#problem")).to_contain_text("Another answer is being written")
        await expect(shown(left).last).to_have_text("from the left")
        await expect(shown(right).last).to_have_text("from the left")
        await expect(right.locator("#message")).to_have_value("right")
        assert texts(await store.session("shared").get_items()) == ["begun", "yes", "left", "from the left"]


async def test_a_long_conversation_is_read_page_by_page(site: Site, store: SessionStore) -> None:
    rows = [Row(f'{{"role": "user", "content": "message {number}"}}') for number in range(10_000)]
    await store.append(SessionRef("", "long"), Batch(new_id(), rows))
    async with site.up():
        page = await site.open(place="#long")
        await expect(shown(page)).to_have_count(100)
        await expect(shown(page).last).to_have_text("message 9999")
        await page.evaluate("document.getElementById('scroll').scrollTop = 0")
        await expect(shown(page)).to_have_count(200)
        await expect(shown(page).first).to_have_text("message 9800")


async def test_offline_and_back(site: Site) -> None:
    async with site.up():
        person = await site.person()
        page = await site.open(person)
        site.model.says(say("back"))
        await person.set_offline(True)
        await expect(page.locator("#state")).to_have_text("Offline")
        await send(page, "Hello")
        await expect(page.locator("#problem")).to_contain_text("offline")
        await expect(page.locator("#message")).to_have_value("Hello")
        await person.set_offline(False)
        await expect(page.locator("#state")).to_have_text("")
        await send(page, "Hello")
        await expect(shown(page)).to_have_text(["Hello", "back"])


# ── People ──────────────────────────────────────────────────────────────────


async def test_two_users_see_their_own(site: Site, store: SessionStore) -> None:
    for name in ("ada", "bob"):
        await store.session("same", user_id=name).add_items([user(f"I am {name}")])
    async with site.up(web_jwt_secret=SecretStr(SECRET)):
        for name in ("ada", "bob"):
            page = await (await site.person()).new_page()
            await page.goto(site.url + "#same")
            await expect(page.locator("#sign-in")).to_be_visible()
            await page.fill("#token", "wrong")
            await page.keyboard.press("Enter")
            await expect(page.locator("#sign-in-text")).to_contain_text("not valid")
            await page.fill("#token", token(name))
            await page.keyboard.press("Enter")
            await expect(shown(page)).to_have_text([f"I am {name}"])
            await expect(page.locator("#list b")).to_have_text([f"I am {name}"])
            assert await page.evaluate("document.cookie + JSON.stringify(localStorage)") == "{}"


async def test_everything_can_be_reached_by_keyboard_and_has_a_name(site: Site, store: SessionStore) -> None:
    await store.session("one").add_items([user("about one"), answer("yes")])
    async with site.up():
        page = await site.open(place="#one")
        unnamed = await page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea, a[href]")]
                .filter((each) => !(each.innerText.trim() || each.ariaLabel || each.labels?.[0]?.innerText.trim()))
                .map((each) => each.outerHTML)"""
        )
        assert unnamed == []
        focused = set()
        for _ in range(25):
            await page.keyboard.press("Tab")
            focused.add(await page.evaluate("document.activeElement.id || document.activeElement.ariaLabel"))
        assert {"new", "search", "message", "export", "Delete about one"} <= focused
        assert await page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_colours_can_be_told_apart(site: Site, store: SessionStore, scheme: str) -> None:
    """WCAG AA: 4.5 to 1 for text."""
    await store.session("one").add_items([user("about one"), answer("yes `code`")])
    async with site.up():
        page = await site.open(place="#one", color_scheme=scheme)
        pairs = await page.evaluate(
            """() => [...document.querySelectorAll("*")].filter((each) =>
                each.offsetParent && [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
              .map((each) => {
                const paper = (of) => getComputedStyle(of).backgroundColor;
                let under = each;
                while (under !== document.body && paper(under) === "rgba(0, 0, 0, 0)") under = under.parentElement;
                return [getComputedStyle(each).color, paper(under), each.outerHTML];
              })"""
        )
        assert len(pairs) > 5
        assert [
            (round(contrast(ink, paper), 1), where) for ink, paper, where in pairs if contrast(ink, paper) < 4.5
        ] == []


def contrast(*colours: str) -> float:
    """How far two colours are apart, from 1 to 21."""
    light = []
    for colour in colours:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        light.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(light) + 0.05) / (min(light) + 0.05)


async def test_a_phone_has_room_for_everything(site: Site, store: SessionStore) -> None:
    await store.session("one").add_items([user("x" * 500), answer("```\n" + "y" * 500 + "\n```")])
    async with site.up():
        page = await site.open(place="#one", viewport={"width": 360, "height": 640}, has_touch=True)
        await expect(shown(page)).to_have_count(2)
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        await expect(page.locator("#new")).not_to_be_visible()
        await page.click("#menu")
        await expect(page.locator("#new")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.locator("#new")).not_to_be_visible()
