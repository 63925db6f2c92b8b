"""Everything that can be set from outside: environment variables, or `.env` beside them. `.env.example` lists all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import Field, SecretStr, ValidationError

from .sessions import BackendSettings, SettingMissing


class Settings(BackendSettings):
    """Read once at start; frozen."""

    openai_api_key: SecretStr | None = None
    """Without a key the offline model answers (see `offline.py`)."""
    openai_base_url: str | None = None
    """Any server that speaks the Responses API."""
    openai_model: str | None = None
    """None: the default of the Agents SDK."""
    history_max_items: int = Field(default=200, ge=1)
    """How many of the newest items a model call sees; older ones stay stored. See `history.py`."""

    def with_environment(self, variables: Mapping[str, str]) -> Self:
        """These settings, as they would be if these variables were set as well."""
        return type(self)(**{**self.model_dump(), **{name.lower(): value for name, value in variables.items()}})


def load_settings() -> Settings:
    """Read the settings.

    Raises:
        SettingMissing: A variable has a value that cannot be used; the message names all of them, and no value.
    """
    try:
        return Settings()
    except UnicodeDecodeError:
        raise SettingMissing(".env is no UTF-8 text. Save it as UTF-8.") from None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise SettingMissing(f"Check the environment and .env. {problems}") from None
