"""Lets the programs beside it say `my_agent`, whatever your package is called: AGENT_PACKAGE=your_package."""

import importlib
import os
import sys

# Without a server of your own these programs use the project's embedded one, which only its commands do unasked.
os.environ.setdefault("DEV_SERVER", "1")
PACKAGE = os.environ.get("AGENT_PACKAGE", "my_agent")
sys.modules["my_agent"] = importlib.import_module(PACKAGE)
