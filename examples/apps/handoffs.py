"""Several agents share one session: whoever answers next knows what the others were told.

Which of them speaks is kept in the session's metadata, so the next turn finds the right one in any process.
"""

import asyncio

from agents import Agent, Model

import project  # noqa: F401 - AGENT_PACKAGE=…, if your package is not called my_agent
from my_agent.app import open_app_store, open_model
from my_agent.conversation.turn import AgentChanged, Done, RunContext, run_turn
from my_agent.sessions import SessionStore, StoredSession
from my_agent.settings import load_settings

CONVERSATION = (
    "My name is Ada, and I have a question for Billing",
    "What is my name?",
    "Then let me talk to Repairs",
    "What did I say first?",
)


def team(model: Model) -> dict[str, Agent[RunContext]]:
    """Agents who may all hand over to each other."""
    agents = {name: Agent[RunContext](name, model=model) for name in ("Front desk", "Billing", "Repairs")}
    for agent in agents.values():
        agent.instructions = f"You work at the {agent.name}. Hand over what is not your job."
        agent.handoffs = [other for other in agents.values() if other is not agent]
    return agents


async def turn(agents: dict[str, Agent[RunContext]], store: SessionStore, session: StoredSession, said: str) -> None:
    info = await store.find_session(session.ref)
    speaking = info.metadata.get("agent", "Front desk") if info else "Front desk"
    print(f"Ada: {said}")
    async for event in run_turn(agents[speaking], session, said, max_items=100):
        match event:
            case AgentChanged(name):
                print(f"     ({speaking} hands over to {name})")
                speaking = name
            case Done(output):
                print(f"{speaking}: {output}")
    await store.update_session(session.ref, metadata={"agent": speaking})


async def main() -> None:
    settings = load_settings()
    async with open_app_store(settings) as store, open_model(settings) as model:
        session = store.session("handoffs", user_id="ada")
        await store.delete_session(session.ref)  # so that this program always begins anew
        for said in CONVERSATION:
            await turn(team(model), store, session, said)
        kinds = [str(item.get("type") or item.get("role")) for item in await session.get_items()]
        print(f"One session holds it all: {', '.join(kinds)}")


asyncio.run(main())
