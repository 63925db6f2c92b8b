"""Which server, and how hard it may be used."""

from __future__ import annotations

import math

from pydantic import Field, SecretStr, field_validator

from ..credentials import Credentials, named_function
from ..errors import SettingMissing, forgets_locals
from ..settings import StoreSettings
from .address import EXAMPLE, RedisAddress, parse_address

MAX_TTL = 10 * 365 * 86_400
"""Longest time to live in seconds."""


class RedisSettings(StoreSettings):
    """Where the server is, and how hard it may be used."""

    redis_url: SecretStr | None = None
    """redis://user:password@host:6379/0; rediss:// for TLS; redis+cluster:// or redis+sentinel:// and several hosts;
    redis+proxy:// for a cluster behind one address."""
    redis_credentials: str | None = Field(default=None, repr=False)
    """An async function, as module:function, that returns user and password for each new connection.
    Not shown: by mistake it may be a user and a password."""
    redis_timeout_seconds: float = Field(default=10.0, gt=0)
    """For one attempt of a command: finding the server, connecting and the answer."""
    session_ttl: float | None = None
    """A session vanishes when nothing was written to it for so many seconds, 1 to 10 years. Unset or 0: never."""
    session_key_prefix: str = Field(default="agent", pattern=r"^[A-Za-z0-9._:-]{1,100}$")
    """First part of every key, so that several apps can share a server."""

    @field_validator("session_ttl")
    @classmethod
    def _check_ttl(cls, ttl: float | None) -> float | None:
        if ttl and not 1 <= ttl <= MAX_TTL:  # NaN is not either
            raise ValueError(f"must be 0 (never), or between 1 second and 10 years ({MAX_TTL:,} seconds)")
        return ttl

    @property
    def ttl_milliseconds(self) -> int:
        """`session_ttl` as the server takes it; 0: never."""
        return math.ceil((self.session_ttl or 0) * 1000)

    @property
    @forgets_locals
    def url(self) -> str:
        """The address as it was given.

        Raises:
            SettingMissing: REDIS_URL is not set, or not a Redis URL.
        """
        if self.redis_url is None:
            raise SettingMissing(f"REDIS_URL is not set. Put {EXAMPLE} into .env.")
        parse_address(url := self.redis_url.get_secret_value())
        return url

    @property
    def address(self) -> RedisAddress:
        """What the URL says; raises as `url` does."""
        return parse_address(self.url)

    @property
    def credentials(self) -> Credentials | None:
        """The function that `redis_credentials` names.

        Raises:
            SettingMissing: The function does not exist.
        """
        return named_function(self.redis_credentials, "REDIS_CREDENTIALS")

    @property
    def where(self) -> str:
        """Hosts and database, for messages: the address without its secrets."""
        return self.address.where
