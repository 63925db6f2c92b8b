"""Lets the programs beside it say `my_agent`, whatever your package is called: AGENT_PACKAGE=your_package."""

import importlib
import os
import sys

PACKAGE = os.environ.get("AGENT_PACKAGE", "my_agent")
sys.modules["my_agent"] = importlib.import_module(PACKAGE)
