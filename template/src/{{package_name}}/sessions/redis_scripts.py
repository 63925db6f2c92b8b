"""The Lua scripts: one for each change, so that it happens as a whole and in one round trip.

Items are texts to them and nothing else: cjson would rewrite numbers and lose empty lists. KEYS are items, info and
batches of a session and, where the server is no cluster, the two indexes. ARGV begins with the time in microseconds,
the time to live in milliseconds (0: none), and the session's member in the indexes.
"""

from __future__ import annotations

from .redis_connection import Script

BATCH_MEMORY_SECONDS = 600
"""How long a batch is recognised when it is sent again. Much longer than any call is repeated."""
TIDY_SECONDS = 60
"""How often the batches that are older are forgotten, if there are any."""

_CONSTANTS = f"local BATCH_MEMORY, TIDY = {BATCH_MEMORY_SECONDS}, {TIDY_SECONDS}"

_COMMON = """
local items, info, batches = KEYS[1], KEYS[2], KEYS[3]
local now, ttl, member = ARGV[1], ARGV[2], ARGV[3]

local second

-- False if this batch was stored already. First of all writes: with a full memory it is the one that is refused.
local function begin(batch)
  second = tonumber(redis.call('TIME')[1])
  return redis.call('ZADD', batches, 'NX', second, batch) == 1
end

-- In portions: Lua's stack holds about 8000 values. Returns how many items there are now, if it stored any.
local function push(first)
  local count
  for from = first, #ARGV, 1000 do
    count = redis.call('RPUSH', items, unpack(ARGV, from, math.min(from + 999, #ARGV)))
  end
  return count
end

-- The session has been written to: bring its info, time to live and place in the indexes up to date.
local function written(count, title)
  local known = redis.call('HMGET', info, 'created_at', 'updated_at', 'title', 'ttl', 'tidied')
  if known[2] and tonumber(known[2]) > tonumber(now) then
    now = known[2]  -- by a client whose clock is ahead of this one's
  end
  local fields = {'item_count', count or redis.call('LLEN', items), 'updated_at', now}
  local function set(name, value)
    fields[#fields + 1], fields[#fields + 2] = name, value
  end
  if not known[1] then
    set('created_at', now)
  end
  if title and not known[3] then
    set('title', title)
  end
  if (known[4] or '0') ~= ttl then
    set('ttl', ttl)
  end
  if second and second - (known[5] or 0) >= TIDY then
    set('tidied', second)
    redis.call('ZREMRANGEBYSCORE', batches, '-inf', second - BATCH_MEMORY)
    redis.call('PEXPIRE', batches, (BATCH_MEMORY + TIDY) * 1000)
  end
  redis.call('HSET', info, unpack(fields))
  for _, key in ipairs({items, info}) do
    if ttl ~= '0' then
      redis.call('PEXPIRE', key, ttl)
    elseif (known[4] or '0') ~= '0' then
      redis.call('PERSIST', key)
    end
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

# ARGV: …, batch, has title, title, texts. False if the batch was there.
APPEND = Script.of(f"""{_CONSTANTS}{_COMMON}
if not begin(ARGV[4]) then
  return 0
end
written(push(7), title_at(5))
return 1
""")

POP = Script.of(f"""{_CONSTANTS}{_COMMON}
local text = redis.call('RPOP', items)
if text then
  written()
end
return text
""")

# A row that the app could not read stays, and the answer is empty. So it is for a readable one that cjson refuses, or that
# would keep other clients waiting while it is parsed: then the app looks itself.
POP_OBJECT = Script.of(f"""{_CONSTANTS}{_COMMON}
local text = redis.call('LRANGE', items, -1, -1)[1]
if not text then
  return false
end
-- cjson lets control characters pass, which JSON and Python do not.
local readable = #text < 2^20 and string.sub(text, 1, 1) == '{{' and not string.find(text, '[%z\1-\31]')
if not readable or not pcall(cjson.decode, text) then
  return ''
end
redis.call('RPOP', items)
written()
return text
""")

CLEAR = Script.of(f"""{_CONSTANTS}{_COMMON}
redis.call('DEL', items)
if redis.call('EXISTS', info) == 1 then
  written()
end
return 1
""")

# ARGV: …, batch, has title, title, number of expected texts (-1: all that are there), expected texts, texts.
REPLACE_TAIL = Script.of(f"""{_CONSTANTS}{_COMMON}
if redis.call('ZSCORE', batches, ARGV[4]) then
  return 1
end
local count = tonumber(ARGV[7])
local first = 8 + math.max(count, 0)
if count > 0 then
  local tail = redis.call('LRANGE', items, -count, -1)
  if #tail < count then
    return 0
  end
  for position, text in ipairs(tail) do
    if text ~= ARGV[7 + position] then
      return 0
    end
  end
end
if first > #ARGV and redis.call('EXISTS', info) == 0 then
  return 1  -- nothing in the place of nothing: no session comes into being
end
begin(ARGV[4])
if count < 0 then
  redis.call('DEL', items)
elseif count > 0 then
  redis.call('LTRIM', items, 0, -count - 1)
end
written(push(first), title_at(5))
return 1
""")

# KEYS: info. ARGV: has title, title, has metadata, metadata. False if there is no such session.
UPDATE = Script.of("""
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
if ARGV[1] == '1' then
  redis.call('HSET', KEYS[1], 'title', ARGV[2])
end
if ARGV[3] == '1' then
  redis.call('HSET', KEYS[1], 'metadata', ARGV[4])
end
return 1
""")

# KEYS: items, info. ARGV: had title, title, metadata, has title, title, metadata, first, number of texts, the expected
# texts, the texts. False if something is not as expected. No time changes, and none to live.
REWRITE = Script.of("""
local known = redis.call('HMGET', KEYS[2], 'title', 'metadata', 'created_at')
if not known[3] or known[1] ~= (ARGV[1] == '1' and ARGV[2]) or (known[2] or '{}') ~= ARGV[3] then
  return 0
end
local first, count = tonumber(ARGV[7]), tonumber(ARGV[8])
if count > 0 then
  local rows = redis.call('LRANGE', KEYS[1], 0, -1)
  for position = 1, count do
    if rows[first + position] ~= ARGV[8 + position] then
      return 0
    end
  end
  for position = 1, count do
    rows[first + position] = ARGV[8 + count + position]
  end
  -- All are written behind the old ones, which then go: so the list is never empty, and keeps its time to live.
  for from = 1, #rows, 1000 do
    redis.call('RPUSH', KEYS[1], unpack(rows, from, math.min(from + 999, #rows)))
  end
  redis.call('LTRIM', KEYS[1], #rows, -1)
end
if ARGV[4] == '1' then
  redis.call('HSET', KEYS[2], 'title', ARGV[5])
end
if (known[2] or '{}') ~= ARGV[6] then
  redis.call('HSET', KEYS[2], 'metadata', ARGV[6])
end
return 1
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

# KEYS: items, info, and the indexes if they are on this server. ARGV: delete only if last written before this time in
# microseconds (0: in any case), member. Returns 1 if the session was deleted, 0 if it was written to since, -1 if there
# is none; and when it was last written to. What is known of its batches stays: a late repeat must not bring it back.
DELETE = Script.of("""
local updated = redis.call('HGET', KEYS[2], 'updated_at')
if updated and ARGV[1] ~= '0' and tonumber(updated) >= tonumber(ARGV[1]) then
  return {0, updated}
end
redis.call('DEL', KEYS[1], KEYS[2])
for position = 3, #KEYS do
  redis.call('ZREM', KEYS[position], ARGV[2])
end
return {updated and 1 or -1, updated or ''}
""")

# KEYS: an index. ARGV: member, score. Takes the member out if nobody wrote to the session since the score was seen.
UNLIST = Script.of("""
if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return 1
""")
