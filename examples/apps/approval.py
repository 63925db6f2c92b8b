"""A tool that needs a person's approval: the run stops, this process ends, and another one goes on with it.

`approval.py ask` runs until somebody has to decide, and writes to approval.json what is needed to go on.
`approval.py approve` (or `reject`) reads that, perhaps days later and on another machine, and goes on. What was said is
in the session.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from agents import Agent, Model, RunContextWrapper, RunState, function_tool

import project  # noqa: F401 - AGENT_PACKAGE=…, if your package is not called my_agent
from my_agent.app import open_app_store, open_model
from my_agent.conversation.turn import ApprovalNeeded, Done, RunContext, ToolFinished, run_turn
from my_agent.settings import load_settings

STATE = Path("approval.json")  # a real app: a column of its database, beside the user who has to decide
USER = "ada"


@function_tool(needs_approval=True)
def refund(run: RunContextWrapper[RunContext], amount: int) -> str:
    """Pay money back."""
    return f"{amount} euros are on their way to {run.context.user_id}."


def build_agent(model: Model) -> Agent[RunContext]:
    return Agent("Cashier", instructions="Refund what the user asks for.", tools=[refund], model=model)


def save(state: RunState[RunContext]) -> None:
    STATE.write_text(json.dumps(state.to_json(context_serializer=vars)))


def saved() -> dict[str, Any]:
    state: dict[str, Any] = json.loads(STATE.read_text())
    STATE.unlink()  # a decision counts once
    return state


async def decided_state(agent: Agent[RunContext], decision: str) -> RunState[RunContext]:
    """The run as it was, with its questions answered. The tool gets a context of this process."""
    context = RunContextWrapper(RunContext(USER))
    state: RunState[RunContext] = await RunState.from_json(agent, saved(), context_override=context)
    for call in state.get_interruptions():
        print(f"You {decision} {call.name}({call.arguments}).")
        state.approve(call) if decision == "approve" else state.reject(call)
    return state


async def main(command: str) -> None:
    settings = load_settings()
    async with open_app_store(settings) as store, open_model(settings) as model:
        agent = build_agent(model)
        session = store.session("approval", user_id=USER)
        if command == "ask":
            await session.clear_session()
        message = "Please refund 30 euros" if command == "ask" else await decided_state(agent, command)
        async for event in run_turn(agent, session, message, max_items=100):
            match event:
                case ApprovalNeeded(calls, state):
                    print("Waiting for approval:", *(f"{call.name}({call.arguments})" for call in calls))
                    save(state)
                case ToolFinished(output):
                    print(f"The tool says: {output}")
                case Done(output):
                    print(f"Cashier: {output}")
        kinds = [str(item.get("type") or item.get("role")) for item in await session.get_items()]
        print(f"Stored: {', '.join(kinds)}")


if len(sys.argv) != 2 or sys.argv[1] not in ("ask", "approve", "reject"):
    sys.exit(__doc__)
asyncio.run(main(sys.argv[1]))
