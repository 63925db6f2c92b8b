"""Leases and turns: fields of a session's `info`, so that they are deleted and expire with it.

    lease, lease_until, lease_began   who has the session, until when (microseconds), whether it began with the lease
    turns, turn_next                  numbers of the turns, the oldest first, with commas; the newest number
    turn:7:status …                   what is noted of turn 7: id, request, status, content, first, last, time (seconds)

Positions are places in the list of items, from 0 on.
"""

from __future__ import annotations

from ..records import TURN_DAYS, TURNS_KEPT, Leased, Turn
from .connection import Script
from .scripts import COMMON, NOTE_ENTRIES, RIGHTS, TIME

LONGEST_LEASE = 3600
"""A lease that lasts for more seconds than this was taken under a wrong clock, and is not one."""
LOST = -2
"""Answer of a script that needs a lease which is not the session's (any more)."""
ENTRIES_NEEDED, REMOVED = 2, 3
"""Answers of RELEASE: tell it the scores first, nothing was done yet; the session is gone."""

_TURNS = (
    f"\nlocal KEPT, SECONDS, LONGEST, LOST = {TURNS_KEPT}, {TURN_DAYS * 86400}, {LONGEST_LEASE} * 1000000, {LOST}"
    + """
-- With HMGET, which every script has called before its first write: whoever may not is refused there.
local function numbers()
  local found = {}
  for number in string.gmatch(redis.call('HMGET', info, 'turns')[1] or '', '%d+') do
    found[#found + 1] = number
  end
  return found
end

local function field(number, part)
  return 'turn:' .. number .. ':' .. part
end

local function names(number)
  local found = {}
  for position, part in ipairs({'id', 'request', 'status', 'content', 'first', 'last', 'time'}) do
    found[position] = field(number, part)
  end
  return found
end

local function is_kept(time)
  return math.abs(second - (tonumber(time or '') or 0)) <= SECONDS
end

-- Its parts; false if there is none, or it is too old.
local function turn(number)
  local parts = number and redis.call('HMGET', info, unpack(names(number)))
  return parts and parts[1] and is_kept(parts[7]) and parts or false
end

-- One part of each of these turns, without their contents, which may be long.
local function part_of_each(list, part)
  local found = {}
  for position, number in ipairs(list) do
    found[position] = field(number, part)
  end
  return found[1] and redis.call('HMGET', info, unpack(found)) or found
end

-- The number of the newest turn of which this part is this text.
local function newest(list, part, text)
  local texts = part_of_each(list, part)
  for position = #list, 1, -1 do
    if texts[position] == text then
      return list[position]
    end
  end
end

local function forget(number)
  redis.call('HDEL', info, unpack(names(number)))
end
"""
)

# ARGV: …, batch. All items go, and what is noted of turns.
CLEAR = Script.of(
    COMMON
    + _TURNS
    + """
if redis.call('ZSCORE', batches, ARGV[5]) then
  return 1
end
need_to_remember()
if count == 0 and not known[1] then
  remember(ARGV[5])  -- no session comes into being, and a repetition does nothing
  return 1
end
need_to_write()
need('DEL', items)
need('HDEL', info)
remember(ARGV[5])
redis.call('DEL', items)
count = 0
for _, number in ipairs(numbers()) do
  forget(number)
end
redis.call('HDEL', info, 'turns')
if known[1] then
  written()
end
return 1
"""
)

# ARGV: …, token, microseconds, number of items ('': all), has request, request. False while another one has it.
# Returns whether the session began with it, the newest turn, the turn of the request, the newest items.
LEASE = Script.of(
    COMMON
    + _TURNS
    + """
local held = redis.call('HMGET', info, 'lease', 'lease_until', 'lease_began')
local left = (tonumber(held[2] or '') or 0) - now
if held[1] and held[1] ~= ARGV[5] and left > 0 and left <= LONGEST then
  return false
end
if unlisted() then
  return UNLISTED
end
local rows = {}
if ARGV[7] == '' then
  rows = redis.call('LRANGE', items, 0, -1)
elseif ARGV[7] ~= '0' then
  rows = redis.call('LRANGE', items, '-' .. ARGV[7], -1)
end
need_to_write()
local began = not known[1] or held[3] == '1'
set('lease', ARGV[5])
set('lease_until', text_of(now + ARGV[6]))
set('lease_began', began and '1' or '0')
local list = numbers()
local last = turn(list[#list])
local same = ARGV[8] == '1' and turn(newest(list, 'request', ARGV[9]))
if not known[1] then
  written()
else
  if (known[4] or '0') ~= ttl then
    set('ttl', ttl)
  end
  redis.call('HSET', info, unpack(fields))
  for _, key in ipairs(expires and {items, info} or {}) do  -- what a run has read does not expire before it writes
    if expires == 'PEXPIRE' then
      redis.call('PEXPIRE', key, ttl)
    else
      redis.call('PERSIST', key)
    end
  end
end
return {began and count == 0 and 1 or 0, last, same, rows}
"""
)

# KEYS: items, info. ARGV: token, microseconds, time to live in milliseconds (0: none): what is in use does not expire.
RENEW = Script.of(
    TIME
    + RIGHTS
    + """
if redis.call('HMGET', KEYS[2], 'lease')[1] ~= ARGV[1] then
  return 0
end
if ARGV[3] ~= '0' then
  need('PEXPIRE', KEYS[1])
end
redis.call('HSET', KEYS[2], 'lease_until', text_of(now + ARGV[2]))
if ARGV[3] ~= '0' then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
return 1
"""
)

# ARGV: …, has token, token. 0: there was no such lease, 1: it is given back. A session with nothing in it goes, also
# from the indexes: on one server here; in a cluster this needs the scores of its entries, and the caller removes those.
RELEASE = Script.of(
    COMMON
    + NOTE_ENTRIES
    + f"\nlocal ENTRIES_NEEDED, REMOVED = {ENTRIES_NEEDED}, {REMOVED}"
    + """
local held = redis.call('HMGET', info, 'lease', 'lease_began', 'metadata', 'turns')
if not held[1] or (ARGV[5] == '1' and held[1] ~= ARGV[6]) then
  return 0
end
local has_something = count > 0 or known[3] or (held[3] or '{}') ~= '{}' or (held[4] or '') ~= ''
if held[2] ~= '1' or has_something then
  need('HDEL', info)
  redis.call('HDEL', info, 'lease', 'lease_until', 'lease_began')
  return 1
end
if ARGV[3] == '0' then
  return ENTRIES_NEEDED
end
need('DEL', info)
need_to_note_entries()
for position = 4, #KEYS do
  need('ZREM', KEYS[position])
end
note_entries()
redis.call('DEL', info)
for position = 4, #KEYS do
  redis.call('ZREM', KEYS[position], member)
end
return REMOVED
"""
)

# ARGV: …, batch, has title, title, token, release, has turn, id, has request, request, status, content, texts.
LEASED_APPEND = Script.of(
    COMMON
    + _TURNS
    + """
if redis.call('ZSCORE', batches, ARGV[5]) then
  return 1
end
if not known[1] or redis.call('HMGET', info, 'lease')[1] ~= ARGV[8] then
  return LOST
end
need_to_remember()
need_to_write()
need('RPUSH', items)
need('HDEL', info)
local before = count
remember(ARGV[5])
push(16)
if ARGV[10] == '1' then
  local list = numbers()
  local times, number = part_of_each(list, 'time'), newest(list, 'id', ARGV[11])
  local begins
  for position, each in ipairs(list) do
    if each == number and is_kept(times[position]) then
      begins = redis.call('HMGET', info, field(number, 'first'))[1] or ''
    end
  end
  if not begins then
    number = text_of((tonumber(redis.call('HMGET', info, 'turn_next')[1] or '') or 0) + 1)
    set('turn_next', number)
    list[#list + 1], times[#list + 1] = number, second
  end
  local kept = {}
  for position, each in ipairs(list) do
    if each == number or (#list - position < KEPT and is_kept(times[position])) then
      kept[#kept + 1] = each
    else
      forget(each)
    end
  end
  set('turns', table.concat(kept, ','))
  set(field(number, 'id'), ARGV[11])
  set(field(number, 'status'), ARGV[14])
  set(field(number, 'content'), ARGV[15])
  set(field(number, 'time'), second)
  if ARGV[12] == '1' then
    set(field(number, 'request'), ARGV[13])
  else
    redis.call('HDEL', info, field(number, 'request'))
  end
  if count > before then
    set(field(number, 'last'), count - 1)
    if (begins or '') == '' then
      set(field(number, 'first'), before)
    end
  end
end
if ARGV[9] == '1' then
  redis.call('HDEL', info, 'lease', 'lease_until', 'lease_began')
end
written(title_at(6))
return 1
"""
)

# KEYS: info. ARGV: has id, id, how many. The turns, newest first.
TURNS = Script.of(
    TIME
    + "local info = KEYS[1]"
    + _TURNS
    + """
local found = {}
if ARGV[1] == '1' then
  found[1] = turn(newest(numbers(), 'id', ARGV[2])) or nil
  return found
end
local list = numbers()
for position = #list, 1, -1 do
  local parts = #found < tonumber(ARGV[3]) and turn(list[position])
  if parts then
    found[#found + 1] = parts
  end
end
return found
"""
)

# KEYS: info. ARGV: has lease, lease, id, the status and content that it had, those that it gets.
CHANGE_TURN = Script.of(
    TIME
    + RIGHTS
    + "local info = KEYS[1]"
    + _TURNS
    + """
if ARGV[1] == '1' and redis.call('HMGET', info, 'lease')[1] ~= ARGV[2] then
  return 0
end
local number = newest(numbers(), 'id', ARGV[3])
local parts = turn(number)
if not parts then
  return 0
end
local is_before = parts[3] == ARGV[4] and parts[4] == ARGV[5]
local is_after = parts[3] == ARGV[6] and parts[4] == ARGV[7]
if not is_before and not is_after then
  return 0
end
need('HSET', info)
redis.call('HSET', info, field(number, 'status'), ARGV[6], field(number, 'content'), ARGV[7])
redis.call('HSET', info, field(number, 'time'), second)
return 1
"""
)

# KEYS: items. ARGV: a position ('': behind the last), how many. Where the first row is, and the rows.
PAGE = Script.of("""
local last = redis.call('LLEN', KEYS[1])
if ARGV[1] ~= '' then
  last = math.min(last, tonumber(ARGV[1]))
end
local first = math.max(last - ARGV[2], 0)
return {first, last > first and redis.call('LRANGE', KEYS[1], first, last - 1) or {}}
""")

# KEYS: items and info of the old session, of the new one, the indexes. ARGV: time to live in milliseconds (0: none),
# the new member, a position ('': behind the last). False if the new one is there, or the old one is not.
FORK = Script.of(
    TIME
    + RIGHTS
    + """
local known = redis.call('HMGET', KEYS[2], 'created_at', 'title', 'metadata')
local count = redis.call('LLEN', KEYS[1])
if not known[1] or redis.call('EXISTS', KEYS[4]) == 1 or redis.call('LLEN', KEYS[3]) > 0 then
  return 0
end
for position = 5, 6 do
  redis.call('ZSCORE', KEYS[position], ARGV[2])
  need('ZADD', KEYS[position])
end
need('LRANGE', KEYS[1])
need('RPUSH', KEYS[3])
need('HSET', KEYS[4])
local fields = {'created_at', text_of(now), 'updated_at', text_of(now), 'ttl', ARGV[1]}
for position, name in ipairs({'title', 'metadata'}) do
  if known[position + 1] then
    fields[#fields + 1], fields[#fields + 2] = name, known[position + 1]
  end
end
if ARGV[1] ~= '0' then
  need('PEXPIRE', KEYS[3])
  need('PEXPIRE', KEYS[4])
end
if ARGV[3] ~= '' then
  count = math.min(count, tonumber(ARGV[3]))
end
fields[#fields + 1], fields[#fields + 2] = 'item_count', count
redis.call('HSET', KEYS[4], unpack(fields))
for first = 0, count - 1, 1000 do
  redis.call('RPUSH', KEYS[3], unpack(redis.call('LRANGE', KEYS[1], first, math.min(first + 999, count - 1))))
end
if ARGV[1] ~= '0' then
  redis.call('PEXPIRE', KEYS[3], ARGV[1])
  redis.call('PEXPIRE', KEYS[4], ARGV[1])
end
for position = 5, 6 do
  redis.call('ZADD', KEYS[position], text_of(now), ARGV[2])
end
return 1
"""
)


def turn_of(parts: list[str | None]) -> Turn:
    """A turn as the scripts return it."""
    turn_id, request_id, status, content, first, last, _ = parts
    position = [int(each) if each is not None and each.isdecimal() else None for each in (first, last)]
    return Turn(turn_id or "", status or "", content or "", request_id, *position)


def leased_of(reply: list[object]) -> Leased:
    """What LEASE answers."""
    began, last, same, rows = reply
    turns = [turn_of(parts) if isinstance(parts, list) else None for parts in (last, same)]
    assert isinstance(rows, list)  # noqa: S101 - the script says so
    return Leased(rows, turns[0], turns[1], bool(began))
