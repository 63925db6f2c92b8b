"""Is this Redis or Valkey server set up as the app needs it?"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from time import perf_counter

from ..errors import Check, SchemaOutdated, SessionStoreError, SettingMissing, StoreRefused, StoreUnavailable
from .address import RedisAddress
from .connection import RedisConnection, Script
from .keys import canary_key, index_of
from .settings import RedisSettings
from .store import OLDEST, read_opening

ALL_SLOTS = "16384"

COMMANDS = (
    "DEL KEY",
    "EXISTS KEY",
    "GET KEY",
    "HGET KEY x",
    "HMGET KEY x",
    "HDEL KEY x",
    "HSET KEY x 1",
    "LLEN KEY",
    "LRANGE KEY 0 1",
    "LSET KEY 0 x",
    "LTRIM KEY 0 1",
    "PERSIST KEY",
    "PEXPIRE KEY 1",
    "RPOP KEY",
    "RPUSH KEY x",
    "SET KEY 1 NX GET",
    "TIME",
    "ZADD KEY 1 x",
    "ZRANGE KEY 0 1",
    "ZREM KEY x",
    "ZREMRANGEBYSCORE KEY 0 1",
    "ZSCORE KEY x",
)
"""What the store sends, by itself and in its scripts. redis/users.acl allows the same."""

# A user may ask this without any right of its own but EVAL (https://redis.io/docs/latest/develop/programmability/lua-api/).
_MISSING_RIGHTS = Script.of("""
local missing = {}
for _, command in ipairs(ARGV) do
  local words = {}
  for word in command:gmatch('%S+') do
    words[#words + 1] = word == 'KEY' and KEYS[1] or word
  end
  if not redis.acl_check_cmd(unpack(words)) then
    missing[#missing + 1] = words[1]
  end
end
return missing
""")

Info = Mapping[str, str]


async def check_redis(settings: RedisSettings) -> AsyncGenerator[Check, None]:
    """All checks of the server or servers. A later one is left out if an earlier one makes it pointless."""
    begin = perf_counter()
    try:
        connection = RedisConnection(settings)
    except SessionStoreError as error:
        yield Check("connection", "fail", "The settings cannot be used.", str(error))
        return
    try:
        await connection.call("PING")
    except SessionStoreError as error:
        yield Check("connection", "fail", "The server cannot be reached.", str(error))
        await connection.close()
        return
    try:
        yield Check("connection", "ok", f"Connected to {settings.where} in {(perf_counter() - begin) * 1000:.0f} ms.")
        if tls := _check_tls(connection.address):
            yield tls
        infos = await _infos(connection)
        if infos:
            version = _check_version(infos)
            yield version
            if version.state == "fail":
                return
            topology = await _check_topology(connection, infos, settings)
            yield topology
            if topology.state == "fail":
                return
            yield await _check_persistence(connection, infos)
            yield _check_memory(infos)
        else:
            what = "This user may not send INFO, so version, persistence and memory policy of the server are unknown."
            yield Check("server", "warn", what, "Allow it INFO, or look at them yourself.")
        if connection.address.kind == "cluster":
            slots = await _check_slots(connection)
            yield slots
            if slots.state == "fail":
                return
        rights = await _check_rights(connection, settings)
        yield rights
        if rights.state != "fail":
            yield await _check_format(connection, settings)
    except SessionStoreError as error:
        yield Check("connection", "fail", "The checks were cut short.", str(error))
    finally:
        await connection.close()


async def _infos(connection: RedisConnection) -> dict[str, Info]:
    """What each primary says of itself; empty if it may not be asked."""
    try:
        return {name: _fields(text) for name, text in (await connection.call_everywhere("INFO")).items()}
    except StoreUnavailable:
        raise
    except SessionStoreError:
        return {}


def _fields(text: str) -> Info:
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def _check_version(infos: Mapping[str, Info]) -> Check:
    oldest = min(infos.values(), key=lambda info: _numbers(info.get("redis_version", "0")))
    version = oldest.get("redis_version", "0")
    # Valkey says what it is, and which Redis it is compatible with.
    name = f"Valkey {oldest['valkey_version']}" if "valkey_version" in oldest else f"Redis {version}"
    if _numbers(version) < OLDEST:
        return Check("server version", "fail", f"The server is {name}, too old for this app.", "Upgrade it to Redis 7.")
    return Check("server version", "ok", f"The server is {name}.")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def _check_tls(address: RedisAddress) -> Check | None:
    if not address.tls:
        if not address.remote:
            return None
        what = f"Passwords and conversations go to {address.remote} without encryption."
        return Check("tls", "warn", what, "Write rediss:// in REDIS_URL, unless the network is yours alone.")
    if address.options.get("ssl_cert_reqs") == "none":
        what = "TLS is on, but any certificate is accepted (ssl_cert_reqs=none), that of an attacker as well."
        return Check("tls", "warn", what, "Add ssl_ca_certs=/path/to/ca.pem to REDIS_URL instead.")
    if address.options.get("ssl_check_hostname") is False:
        what = "TLS is on, but the certificate may be one of another host (ssl_check_hostname=false)."
        return Check("tls", "warn", what, "Leave this out of REDIS_URL, and use a name that the certificate has.")
    return Check("tls", "ok", "TLS is on, and the server's certificate is checked.")


async def _check_topology(connection: RedisConnection, infos: Mapping[str, Info], settings: RedisSettings) -> Check:
    name, info = next(iter(infos.items()))
    kind = connection.address.kind
    if info.get("cluster_enabled") == "1" and kind != "cluster":
        what = f"{name} is a node of a cluster, and REDIS_URL does not say so."
        return Check("topology", "fail", what, "Write redis+cluster:// in REDIS_URL.")
    if "sentinel_masters" in info:
        what = f"{name} is a Sentinel, which keeps no data."
        return Check("topology", "fail", what, "Write redis+sentinel:// in REDIS_URL, and ?service=mymaster behind it.")
    if info.get("role") == "slave":
        what = f"{name} is a replica, which takes no writes."
        return Check("topology", "fail", what, "Put its primary into REDIS_URL, or Sentinels (redis+sentinel://).")
    if kind == "proxy":
        return Check("topology", "ok", "It is one address for all keys.")
    if kind != "cluster":
        try:
            keys = [index_of(settings.session_key_prefix, None), canary_key(settings.session_key_prefix)]
            await connection.evaluate(Script.of("return 1"), keys, [])
        except SettingMissing as error:
            return Check("topology", "fail", "The server keeps keys in different places.", str(error))
        except StoreRefused:  # the check of rights says why
            pass
        return Check("topology", "ok", "It is a primary.")
    count = "a cluster of 1 primary" if len(infos) == 1 else f"a cluster of {len(infos)} primaries"
    return Check("topology", "ok", f"It is {count}.")


async def _check_persistence(connection: RedisConnection, infos: Mapping[str, Info]) -> Check:
    name = "persistence"
    for server, info in infos.items():
        if "err" in (info.get("aof_last_write_status"), info.get("rdb_last_bgsave_status")):
            what = f"{server} failed to write to its disk the last time it tried."
            return Check(name, "fail", what, "Look at its log, and at the space on its disk.")
    without = [server for server, info in infos.items() if info.get("aof_enabled") != "1"]
    if not without:
        return Check(name, "ok", "Every write goes to disk (AOF).")
    lost = f"A restart of {' and of '.join(without)} loses"
    todo = "Set `appendonly yes` and `appendfsync everysec`: then it loses a second at most."
    try:
        saves = await connection.call_everywhere("CONFIG", "GET", "save")
    except SessionStoreError:
        # Hosted servers have no CONFIG, and users confined by an ACL may not send it. Snapshots leave a trace.
        if all(int(infos[server].get("rdb_saves", 0)) > 0 for server in without):
            return Check(name, "warn", f"{lost} what came after the last snapshot.", todo)
        what = f"{lost} everything, unless snapshots are made: this user cannot see it, and there was none yet."
        return Check(name, "warn", what, f"Make sure of it. {todo}")
    if all(saves.get(server, ["save", ""])[1] for server in without):
        return Check(name, "warn", f"{lost} what came after the last snapshot.", todo)
    return Check(name, "warn", f"{lost} all sessions: neither AOF nor snapshots are on.", todo)


def _check_memory(infos: Mapping[str, Info]) -> Check:
    for server, info in infos.items():
        policy = info.get("maxmemory_policy")
        if policy is None:
            what = f"{server} does not say what it does when its memory is full."
            return Check("memory", "warn", what, "Make sure that it is `maxmemory-policy noeviction`.")
        if policy != "noeviction":
            what = f"When its memory is full, {server} silently deletes sessions ({policy})."
            return Check("memory", "warn", what, "Set `maxmemory-policy noeviction`: then writes fail, and say so.")
    return Check("memory", "ok", "Nothing is deleted when memory is full (noeviction).")


async def _check_slots(connection: RedisConnection) -> Check:
    try:
        states = await connection.call_everywhere("CLUSTER", "INFO")
    except SessionStoreError as error:
        return Check("cluster", "warn", "The state of the cluster cannot be seen.", str(error))
    for server, text in states.items():
        state = _fields(text)
        if state["cluster_state"] != "ok" or state["cluster_slots_ok"] != ALL_SLOTS:
            what = f"{server} sees {state['cluster_slots_ok']} of {ALL_SLOTS} slots served; sessions in the rest fail."
            return Check("cluster", "fail", what, "Look at `CLUSTER NODES`: a primary is down, or slots have no owner.")
    return Check("cluster", "ok", "All slots are served.")


async def _check_rights(connection: RedisConnection, settings: RedisSettings) -> Check:
    key = settings.session_key_prefix + ":{doctor}:items"
    todo = "Grant the rights of redis/users.acl."
    try:
        missing = set(await connection.evaluate(_MISSING_RIGHTS, [key], [*COMMANDS, "FLUSHALL"]))
    except SessionStoreError as error:
        return Check("rights", "fail", "This user may not run scripts on the keys of this app.", f"{error} {todo}")
    confined = "FLUSHALL" in missing
    if lacking := sorted(missing - {"FLUSHALL"}):
        return Check("rights", "fail", f"This user lacks {', '.join(lacking)} on the keys of this app.", todo)
    if confined:
        return Check("rights", "ok", "This user may do all that is needed, and not erase the server.")
    return Check("rights", "ok", "This user may do all that is needed, and erase the whole server as well.")


async def _check_format(connection: RedisConnection, settings: RedisSettings) -> Check:
    try:
        await read_opening(connection, settings.session_key_prefix)
    except SchemaOutdated as error:
        return Check("format", "fail", "The stored sessions do not fit this program.", str(error))
    return Check("format", "ok", "The stored sessions fit this program.")
