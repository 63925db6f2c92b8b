"""The `sessions` package alone, in an app that is there already: in place of any other session of the SDK.

Copy `src/my_agent/sessions/` into your code base, and add its driver, msgspec and pydantic-settings to what you depend
on: it knows nothing of the rest of the project. This program runs on whichever backend the project was made for.
"""

import asyncio
from contextlib import AbstractAsyncContextManager

from agents import Agent, Runner

import project  # noqa: F401 - AGENT_PACKAGE=…, if your package is not called my_agent
from my_agent import app, sessions, settings
from my_agent.app import open_model
from my_agent.sessions import backend


def my_session(config: settings.Settings) -> AbstractAsyncContextManager[sessions.StoredSession]:
    """Whatever is left out comes from the environment. Sessions with the same address share their connections."""
    if hasattr(sessions, "PostgresSession"):
        dsn = config.database_url.get_secret_value()  # "postgresql://user:password@localhost:5432/yourdb"
        return sessions.PostgresSession(session_id="my-session-id", dsn=dsn)
    if hasattr(sessions, "RedisSession"):
        redis_url = config.redis_url.get_secret_value()  # "redis://localhost:6379/0"
        return sessions.RedisSession(session_id="my-session-id", redis_url=redis_url)
    url, key = config.supabase_url, config.supabase_key.get_secret_value()
    return sessions.SupabaseSession(session_id="my-session-id", url=url, key=key)


async def main() -> None:
    here = settings.load_settings()
    # Your app has a server. Without one in the environment this borrows the embedded one of the project.
    with app.server(here) as config:
        if config is not here:
            await backend.prepare(config)
        async with open_model(config) as model, my_session(config) as session:
            agent = Agent("Assistant", instructions="Reply very concisely.", model=model)
            await session.clear_session()
            for question in ("My name is Ada.", "What is my name?"):
                result = await Runner.run(agent, question, session=session)
                print(f"{question} -> {result.final_output}")

            # The four methods of the SDK's protocol.
            print(f"get_items: {len(await session.get_items())} items, the newest: {await newest(session)}")
            await session.pop_item()
            await session.add_items([{"role": "assistant", "content": "You are Ada."}])
            print(f"pop_item, add_items: the newest is {await newest(session)}")
            await session.clear_session()
            print(f"clear_session: {await session.get_items()}")


async def newest(session: sessions.StoredSession) -> str:
    """What the newest item says: plain text, or a list of parts as models return them."""
    content = (await session.get_items(limit=1))[0]["content"]
    return repr(content if isinstance(content, str) else content[0]["text"])


asyncio.run(main())
