"""A tool that needs a person's approval: the run stops, this process ends, and another one goes on with it.

`approval.py ask` runs until somebody has to decide. `approval.py approve` (or `reject`) finds the turn that waits,
perhaps days later and on another machine, and goes on with it. All that is needed is stored with the session.
"""

import asyncio
import sys

from agents import Agent, Model, RunContextWrapper, function_tool

import project  # noqa: F401 - AGENT_PACKAGE=…, if your package is not called my_agent
from my_agent.app import open_app_store, open_model
from my_agent.conversation.approvals import pending
from my_agent.conversation.turn import ApprovalNeeded, Done, RunContext, ToolFinished, run_turn
from my_agent.sessions import StoredSession
from my_agent.settings import load_settings

USER = "ada"


@function_tool(needs_approval=True)
def refund(run: RunContextWrapper[RunContext], amount: int) -> str:
    """Pay money back."""
    return f"{amount} euros are on their way to {run.context.user_id}."


def build_agent(model: Model) -> Agent[RunContext]:
    return Agent("Cashier", instructions="Refund what the user asks for.", tools=[refund], model=model)


async def decided(agent: Agent[RunContext], session: StoredSession, decision: str) -> ApprovalNeeded:
    """The turn that waits, with its questions answered."""
    waiting = await pending(agent, session)
    if waiting is None:
        sys.exit("Nothing waits for a decision. Run `approval.py ask` first.")
    for call in waiting.state.get_interruptions():
        print(f"You {decision} {call.name}({call.arguments}).")
        waiting.state.approve(call) if decision == "approve" else waiting.state.reject(call)
    return waiting


async def main(command: str) -> None:
    settings = load_settings()
    async with open_app_store(settings) as store, open_model(settings) as model:
        agent = build_agent(model)
        session = store.session("approval", user_id=USER)
        if command == "ask":
            await session.clear_session()
        message = "Please refund 30 euros" if command == "ask" else await decided(agent, session, command)
        async for event in run_turn(agent, session, message, max_items=100):
            match event:
                case ApprovalNeeded(calls):
                    print("Waiting for approval:", *(f"{call.name}({call.arguments})" for call in calls))
                case ToolFinished(output):
                    print(f"The tool says: {output}")
                case Done(output):
                    print(f"Cashier: {output}")
        kinds = [str(item.get("type") or item.get("role")) for item in await session.get_items()]
        print(f"Stored: {', '.join(kinds)}")


if len(sys.argv) != 2 or sys.argv[1] not in ("ask", "approve", "reject"):
    sys.exit(__doc__)
asyncio.run(main(sys.argv[1]))
