"""The Lua scripts: one for each change of a session, so that it happens as a whole and in one round trip.

Items are texts to them and nothing else: cjson would rewrite numbers and lose empty lists.

Scripts do not roll back: an error in the middle leaves what was written before it. So each one reads first (a key of
another type raises there) and asks for its rights, then writes, and the first write is one that a full memory refuses,
unless it makes room. After the first write the server refuses nothing more of that kind.

Times are the server's. They never go back by less than a minute, which is how much the clocks of a primary and the
replica that takes over may differ; a time further in the future was made by a wrong clock and is replaced.
"""

from __future__ import annotations

from .connection import Script

BATCH_MEMORY_SECONDS = 3600
"""How long a batch is recognised at least when it is sent again, even if its session was deleted."""
TIDY_SECONDS = 60
"""How often the batches that are older are forgotten, if there are any."""
IN_FLIGHT_SECONDS = 600
"""Longer than a write may take from its entry in the indexes to its data."""
MAX_PARSED = 2**15
"""Longest item that a script looks into, in bytes."""
UNLISTED = -1
"""Answer of a script that would begin a session whose entries in the indexes are not written yet."""

RIGHTS = """
local function need(command, key)
  if redis.acl_check_cmd and not redis.acl_check_cmd(command, key) then
    error({err = 'NOPERM this user may not run ' .. command})
  end
end
"""

TIME = (
    f"\nlocal IN_FLIGHT = {IN_FLIGHT_SECONDS} * 1000000"
    + """
local SKEW = 60 * 1000000
local clock = redis.call('TIME')
local second = tonumber(clock[1])
local now = second * 1000000 + clock[2]
local function text_of(time)
  return string.format('%.0f', time)
end
"""
)

_CONSTANTS = (
    f"local BATCH_MEMORY, TIDY, MAX_PARSED, UNLISTED = {BATCH_MEMORY_SECONDS}, {TIDY_SECONDS}, {MAX_PARSED}, {UNLISTED}"
)
# KEYS are items, info and batches of a session and, without a cluster, the two indexes. ARGV begins with
# the time to live in milliseconds (0: none), the session's member in the indexes, and, in a cluster, the scores of its
# entries there (0: not written yet; empty: the indexes are among KEYS).
_READ = """
local items, info, batches = KEYS[1], KEYS[2], KEYS[3]
local ttl, member = ARGV[1], ARGV[2]
local count = redis.call('LLEN', items)
local known = redis.call('HMGET', info, 'created_at', 'updated_at', 'title', 'ttl', 'tidied')
for position = 4, #KEYS do
  redis.call('ZSCORE', KEYS[position], member)
end
"""
COMMON = (
    _CONSTANTS
    + _READ
    + RIGHTS
    + TIME
    + """
-- Both ways: it may have been written under a wrong clock.
local due = math.abs(second - (tonumber(known[5] or '') or 0)) >= TIDY
local expires = ttl ~= '0' and 'PEXPIRE' or (known[4] or '0') ~= '0' and 'PERSIST'

-- Whether the session would be new, and its entries in the indexes of a cluster are missing or were removed since.
local function unlisted()
  if known[1] or ARGV[3] == '' then
    return false
  end
  for position, index in ipairs({'all', 'user'}) do
    local score, removed = tonumber(ARGV[2 + position]), redis.call('ZSCORE', batches, index)
    if score == 0 or (removed and removed - score >= 0 and removed - score < IN_FLIGHT) then
      return true
    end
  end
end

local function need_to_remember()
  need('ZADD', batches)
  if due then
    need('ZREMRANGEBYSCORE', batches)
    need('PEXPIRE', batches)
  end
end

local function need_to_write()
  need('HSET', info)
  if expires then
    need(expires, info)
  end
  for position = 4, #KEYS do
    need('ZADD', KEYS[position])
  end
end

local fields = {}
local function set(name, value)
  fields[#fields + 1], fields[#fields + 2] = name, value
end

local function remember(batch)
  redis.call('ZADD', batches, second, batch)
  if due then
    set('tidied', second)
    redis.call('ZREMRANGEBYSCORE', batches, '-inf', second - BATCH_MEMORY)
    redis.call('PEXPIRE', batches, (BATCH_MEMORY + TIDY) * 1000)
  end
end

-- In portions: Lua's stack holds about 8000 values.
local function push(first)
  for from = first, #ARGV, 1000 do
    count = redis.call('RPUSH', items, unpack(ARGV, from, math.min(from + 999, #ARGV)))
  end
end

-- The session has been written to: bring its info, time to live and place in the indexes up to date.
local function written(title)
  local created, updated = tonumber(known[1] or ''), tonumber(known[2] or '')
  if updated and updated > now and updated - now <= SKEW then
    now = updated
  end
  if not created or created - now > SKEW then
    set('created_at', text_of(now))
  end
  now = text_of(now)
  set('updated_at', now)
  set('item_count', count)
  if title and not known[3] then
    set('title', title)
  end
  if (known[4] or '0') ~= ttl then
    set('ttl', ttl)
  end
  redis.call('HSET', info, unpack(fields))
  if ttl ~= '0' then
    redis.call('PEXPIRE', items, ttl)
    redis.call('PEXPIRE', info, ttl)
  elseif expires then
    redis.call('PERSIST', items)
    redis.call('PERSIST', info)
  end
  for position = 4, #KEYS do
    redis.call('ZADD', KEYS[position], now, member)
  end
end

-- ARGV[position] says whether there is a title, the next one is it.
local function title_at(position)
  return ARGV[position] == '1' and ARGV[position + 1]
end
"""
)

# Notes beside the data the scores of a session's entries in the indexes of a cluster, which are removed next (empty or
# missing: none): a first write that wrote these before must write new ones.
NOTE_ENTRIES = """
local function need_to_note_entries()
  if ARGV[3] then
    redis.call('ZSCORE', KEYS[3], 'all')
    need('ZADD', KEYS[3])
    need('PEXPIRE', KEYS[3])
  end
end

local function note_entries()
  for position, index in ipairs({'all', 'user'}) do
    local score = ARGV[2 + position]
    if score and score ~= '' then
      redis.call('ZADD', KEYS[3], score, index)
      redis.call('PEXPIRE', KEYS[3], (BATCH_MEMORY + TIDY) * 1000)
    end
  end
end
"""

# ARGV: …, batch, has title, title, texts. 0 if the batch was there.
APPEND = Script.of(
    COMMON
    + """
if redis.call('ZSCORE', batches, ARGV[5]) then
  return 0
end
if unlisted() then
  return UNLISTED
end
need_to_remember()
need_to_write()
need('RPUSH', items)
remember(ARGV[5])
push(8)
written(title_at(6))
return 1
"""
)

POP = Script.of(
    COMMON
    + """
if count == 0 then
  return false
end
need_to_write()
need('RPOP', items)
local text = redis.call('RPOP', items)
count = count - 1
if known[1] then
  written()
end
return text
"""
)

# A row that the app could not read stays, and the answer is empty. A long one is not parsed, because other clients
# would wait for it: it counts as readable if its ends are those of an object; the app puts it back if it is not.
POP_OBJECT = Script.of(
    COMMON
    + """
if count == 0 then
  return false
end
local text = redis.call('LRANGE', items, -1, -1)[1]
-- cjson lets control characters pass, which JSON and Python do not. (One class looks at each character once.)
local readable = string.sub(text, 1, 1) == '{' and string.find(text, '^%C*}$')
if not readable or (#text < MAX_PARSED and not pcall(cjson.decode, text)) then
  return ''
end
need_to_write()
need('RPOP', items)
redis.call('RPOP', items)
count = count - 1
if known[1] then
  written()
end
return text
"""
)

# ARGV: …, batch, has title, title, number of expected texts (-1: all that are there), expected texts, texts.
REPLACE_TAIL = Script.of(
    COMMON
    + """
if redis.call('ZSCORE', batches, ARGV[5]) then
  return 1
end
local expected = tonumber(ARGV[8])
local first = 9 + math.max(expected, 0)
if count < expected then
  return 0
elseif expected > 0 then
  for position, text in ipairs(redis.call('LRANGE', items, -expected, -1)) do
    if text ~= ARGV[8 + position] then
      return 0
    end
  end
end
need_to_remember()
if first > #ARGV and count == 0 and not known[1] then
  remember(ARGV[5])  -- nothing in the place of nothing: no session comes into being, and a repetition does nothing
  return 1
end
if unlisted() then
  return UNLISTED
end
need_to_write()
need('RPUSH', items)
need('DEL', items)
need('LTRIM', items)
remember(ARGV[5])
if expected < 0 then
  redis.call('DEL', items)
  count = 0
elseif expected > 0 then
  redis.call('LTRIM', items, 0, -expected - 1)
  count = count - expected
end
push(first)
written(title_at(6))
return 1
"""
)

# KEYS: info. ARGV: has title, title, has metadata, metadata. False if the session does not exist.
UPDATE = Script.of("""
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local fields = {}
for position, name in ipairs({'title', 'metadata'}) do
  if ARGV[2 * position - 1] == '1' then
    fields[#fields + 1], fields[#fields + 2] = name, ARGV[2 * position]
  end
end
if #fields > 0 then
  redis.call('HSET', KEYS[1], unpack(fields))
end
return 1
""")

# KEYS: items, info. ARGV: had title, title, metadata, has title, title, metadata, first, number of texts, the expected
# texts, the texts. False if something is not as expected. No time changes, and none to live.
REWRITE = Script.of(
    RIGHTS
    + """
local known = redis.call('HMGET', KEYS[2], 'title', 'metadata', 'created_at')
if not known[3] or known[1] ~= (ARGV[1] == '1' and ARGV[2]) or (known[2] or '{}') ~= ARGV[3] then
  return 0
end
local first, count = tonumber(ARGV[7]), tonumber(ARGV[8])
local rows = count > 0 and redis.call('LRANGE', KEYS[1], first, first + count - 1) or {}
for position = 1, count do
  if rows[position] ~= ARGV[8 + position] then
    return 0
  end
end
need('HSET', KEYS[2])
need('LSET', KEYS[1])
if ARGV[4] == '1' then
  redis.call('HSET', KEYS[2], 'title', ARGV[5])
end
if (known[2] or '{}') ~= ARGV[6] then
  redis.call('HSET', KEYS[2], 'metadata', ARGV[6])
end
-- One by one: the other rows are not touched, however many there are.
for position = 1, count do
  if ARGV[8 + count + position] ~= ARGV[8 + position] then
    redis.call('LSET', KEYS[1], first + position - 1, ARGV[8 + count + position])
  end
end
return 1
"""
)

# KEYS: items. ARGV: number of the first row from 0, how many rows at most, how many bytes at most unless one row has
# more. Returns the rows, and whether there may be more. One by one, because long rows would hold up other clients.
ROWS_FROM = Script.of("""
local rows, size = {}, 0
for position = tonumber(ARGV[1]), ARGV[1] + ARGV[2] - 1 do
  local text = redis.call('LRANGE', KEYS[1], position, position)[1]
  if not text then
    return {rows, 0}
  end
  size = size + #text
  if #rows > 0 and size > tonumber(ARGV[3]) then
    return {rows, 1}
  end
  rows[#rows + 1] = text
end
return {rows, 1}
""")

# KEYS: the canary. ARGV: is one expected, which, is there a new one, which. Returns what is kept then.
CANARY = Script.of("""
local kept = redis.call('GET', KEYS[1])
if kept == (ARGV[1] == '1' and ARGV[2]) then
  if ARGV[3] == '1' then
    redis.call('SET', KEYS[1], ARGV[4])
    return ARGV[4]
  elseif kept then
    redis.call('DEL', KEYS[1])
    return false
  end
end
return kept
""")

# KEYS: items, info, batches, and the indexes if they are on this server. ARGV: delete only if last written before this
# time in microseconds (0: in any case), member, and what `note_entries` takes. Returns 1 if the session was deleted, 0
# if it was written to since, -1 if there is none; and when it was last written to.
# What is known of its batches stays for its hour: a late repeat must not bring it back.
DELETE = Script.of(
    _CONSTANTS
    + RIGHTS
    + NOTE_ENTRIES
    + """
local updated = redis.call('HGET', KEYS[2], 'updated_at')
if updated and ARGV[1] ~= '0' and (tonumber(updated) or 0) >= tonumber(ARGV[1]) then
  return {0, updated}
end
need('DEL', KEYS[1])
need_to_note_entries()
for position = 4, #KEYS do
  redis.call('ZSCORE', KEYS[position], ARGV[2])
  need('ZREM', KEYS[position])
end
note_entries()
redis.call('DEL', KEYS[1], KEYS[2])
for position = 4, #KEYS do
  redis.call('ZREM', KEYS[position], ARGV[2])
end
return {updated and 1 or -1, updated or ''}
"""
)
