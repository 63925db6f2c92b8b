"""The agent as a web service: OpenAI's Responses API over the stored conversations, and a page to talk on.

Usage::

    uvicorn.run(create_app())
    FastAPI().mount("/agent", create_app())
"""

from .app import create_app

__all__ = ["create_app"]
