"""A service for many users at once: one store for all of them, and each has conversations that no other can reach.

`authenticate` is where your own identity goes in: a cookie, a signed token, a gateway's header. From there on the user
id goes with everything: the session is made with it, the run carries it, the tools see it.
"""

import asyncio

from agents import Agent, Model, Runner

import project  # noqa: F401 - AGENT_PACKAGE=…, if your package is not called my_agent
from my_agent.app import open_app_store, open_model
from my_agent.conversation.turn import Done, RunContext, run_turn
from my_agent.sessions import SessionStore, WrongOwner
from my_agent.settings import load_settings

TOKENS = {f"secret of {name}": f"{name}@example.com" for name in ("ada", "bob", "cyd")}


def authenticate(token: str) -> str:
    """Whose request this is. Yours: verify the token; never take a user id from the request's own words."""
    return TOKENS[token]


class Service:
    def __init__(self, store: SessionStore, model: Model) -> None:
        self.store = store
        self.agent: Agent[RunContext] = Agent("Assistant", instructions="Answer briefly.", model=model)

    async def chat(self, token: str, message: str, session_id: str = "service") -> str:
        """One request. Sessions hold no connection, so each request makes its own."""
        session = self.store.session(session_id, user_id=authenticate(token))
        async for event in run_turn(self.agent, session, message, max_items=100):
            if isinstance(event, Done):
                return event.output
        raise AssertionError("no answer")

    async def sessions(self, token: str) -> list[str]:
        page = await self.store.list_sessions(authenticate(token))
        return [f"{info.session_id} ({info.item_count} items): {info.title}" for info in page.sessions]


async def visit(service: Service, token: str, introduction: str) -> str:
    """A user's requests, one after the other."""
    await service.chat(token, introduction)
    return await service.chat(token, "What is my name?")


async def main() -> None:
    settings = load_settings()
    async with open_app_store(settings) as store, open_model(settings) as model:
        service = Service(store, model)
        for user in TOKENS.values():
            await store.session("service", user_id=user).clear_session()  # so that this program always begins anew
        said = {"secret of ada": "My name is Ada", "secret of bob": "Call me Bob", "secret of cyd": "Good morning"}
        answers = await asyncio.gather(*(visit(service, token, text) for token, text in said.items()))
        for user, answer in zip(TOKENS.values(), answers, strict=True):
            print(f"{user} is told: {answer}")
        print("ada sees:", *await service.sessions("secret of ada"))

        # A mistake in an app: bob's run gets ada's session. It is refused before anything is read.
        adas = store.session("service", user_id="ada@example.com")
        try:
            await Runner.run(service.agent, "What is my name?", session=adas, context=RunContext("bob@example.com"))
        except WrongOwner as refusal:
            print(f"bob in ada's session: {refusal}")


asyncio.run(main())
