"""The scripts that ``store_redis`` runs in Redis: each one atomic, and one round trip.

A value that is none of ours (another program's, an operator's, half a restored dump) must not
turn Redis off for everybody: the script that meets it deletes it, names its key, and goes on as if
it had not been there.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from redis.exceptions import ResponseError

log = logging.getLogger("joulegate.store")

T = TypeVar("T")

_SOUND = """
local damaged = {}
local function drop(key)
  redis.call('DEL', key)
  damaged[#damaged + 1] = key
end
local function drop_field(key, field)
  redis.call('HDEL', key, field)
  damaged[#damaged + 1] = key .. ' ' .. field
end
local function is_count(value)
  return string.find(value, '^-?%d+$') and math.abs(tonumber(value)) <= 8e18 -- room for 2^60 more
end
local function ask(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if string.find(reply.err, 'WRONGTYPE') then drop(key) end
  return redis.call(command, key, ...)
end
local function count(key)
  local have = ask('GET', key)
  if not have or is_count(have) then return have end
  drop(key)
  return false
end
local function margin(margins, key)
  local have = ask('HGET', margins, key)
  if not have or is_count(have) then return have or '0' end
  drop_field(margins, key)
  return '0'
end
"""

# A reservation is kept as JSON: for each counter its key, the amount, and the margin beside it.
_GIVE_BACK = (
    _SOUND
    + """
local function give_back(order, held, margins, id)
  ask('ZREM', order, id)
  local kept = ask('HGET', held, id)
  if not kept then return end
  local read, parts = pcall(cjson.decode, kept)
  if not read or type(parts) ~= 'table' then return drop_field(held, id) end
  for _, part in ipairs(parts) do
    if count(part[1]) then redis.call('DECRBY', part[1], part[2]) end
    if part[3] and part[3] ~= '0' then
      margin(margins, part[1])
      if redis.call('HINCRBY', margins, part[1], '-' .. part[3]) <= 0 then
        redis.call('HDEL', margins, part[1])
      end
    end
  end
  redis.call('HDEL', held, id)
end
"""
)

# KEYS: order of reservations, reservations, margins, cached answer, claim, counters...
# ARGV: now, lease's end, id, 1 to look in the cache, claim's milliseconds, reservation as JSON,
#       the same after a hit, then for each counter: limit, amount, margin, 1 for hard, 1 if a hit
#       counts, 1 if the ledger knows what was used before, its end. Times in milliseconds.
# Gives: {0, leads, answer, damaged keys, used and others' margins of each counter...};
#        {n, 0, answer, ...} when counter n has no room; {-1, 0, answer, damaged keys} when a
#        counter is missing that the ledger knows.
ADMIT = (
    _GIVE_BACK
    + """
local order, held, margins, now = KEYS[1], KEYS[2], KEYS[3], tonumber(ARGV[1])
for _, id in ipairs(ask('ZRANGEBYSCORE', order, '-inf', now, 'LIMIT', 0, 10)) do
  give_back(order, held, margins, id)
end
local answer = false
if ARGV[4] == '1' then answer = ask('GET', KEYS[4]) end
local told, denied = {}, 0
for i = 6, #KEYS do
  local at = 8 + (i - 6) * 7
  local have = count(KEYS[i])
  if not have then
    if ARGV[at + 5] == '1' then return {-1, 0, answer, damaged} end
    redis.call('SET', KEYS[i], '0', 'PXAT', ARGV[at + 6])
    have = '0'
  end
  local beside = margin(margins, KEYS[i])
  told[#told + 1] = have
  told[#told + 1] = beside
  have = tonumber(have) + tonumber(beside)
  local limit, amount = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local counts = not answer or ARGV[at + 4] == '1'
  if denied == 0 and counts and ARGV[at + 3] == '1'
      and (have >= limit or have + amount > limit) then
    denied = i - 5
  end
end
if denied > 0 then return {denied, 0, answer, damaged, unpack(told)} end
if #KEYS > 5 and ask('HEXISTS', held, ARGV[3]) == 0 then
  for i = 6, #KEYS do
    local at = 8 + (i - 6) * 7
    if not answer or ARGV[at + 4] == '1' then
      redis.call('INCRBY', KEYS[i], ARGV[at + 1])
      told[2 * (i - 5) - 1] = redis.call('GET', KEYS[i])
    end
    if not answer and ARGV[at + 2] ~= '0' then
      redis.call('HINCRBY', margins, KEYS[i], ARGV[at + 2])
    end
  end
  redis.call('HSET', held, ARGV[3], answer and ARGV[7] or ARGV[6])
  redis.call('ZADD', order, ARGV[2], ARGV[3])
end
local leads = 1
if not answer and ARGV[5] ~= '0' then
  local claim = ask('GET', KEYS[5])
  if not claim then redis.call('SET', KEYS[5], ARGV[3], 'PX', ARGV[5]) end
  if claim and claim ~= ARGV[3] then leads = 0 end
end
return {0, leads, answer, damaged, unpack(told)}
"""
)

# KEYS: the shared answer, the claim on it. ARGV: who claims it, for how many milliseconds
# Gives: {leads, answer, damaged keys}
CLAIM = (
    _SOUND
    + """
local answer, claim = ask('GET', KEYS[1]), ask('GET', KEYS[2])
if not answer and not claim then redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2]) end
local leads = answer or not claim or claim == ARGV[1]
return {leads and 1 or 0, answer, damaged}
"""
)

# KEYS: the answer, the claim on it. ARGV: for how many milliseconds, 0 for no answer; the answer
PUT = """
if ARGV[1] ~= '0' then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[1]) end
redis.call('DEL', KEYS[2])
"""

# KEYS: the same. Gives: {1 while it is claimed, answer, damaged keys}
LOOK = (
    _SOUND
    + """
return {redis.call('EXISTS', KEYS[2]), ask('GET', KEYS[1]), damaged}
"""
)

# KEYS: order of reservations, reservations, margins, this settlement's mark, counters...
# ARGV: how long the mark stays in seconds; for each counter the amount taken, and its end in
#       milliseconds, or 0 where a counter that is missing is read from the ledger later; then the
#       ids whose reservations are given back
# Gives: damaged keys
SETTLE = (
    _GIVE_BACK
    + """
if not redis.call('SET', KEYS[4], '1', 'NX', 'EX', ARGV[1]) then return damaged end
for i = 5, #KEYS do
  local at = (i - 5) * 2 + 2
  local there = count(KEYS[i])
  if there or ARGV[at + 1] ~= '0' then redis.call('INCRBY', KEYS[i], ARGV[at]) end
  if not there and ARGV[at + 1] ~= '0' then redis.call('PEXPIREAT', KEYS[i], ARGV[at + 1]) end
end
for i = (#KEYS - 4) * 2 + 2, #ARGV do give_back(KEYS[1], KEYS[2], KEYS[3], ARGV[i]) end
return damaged
"""
)

# KEYS: a counter. ARGV: what the ledger says was used, which other replicas may have told it too
# Gives: damaged keys
RAISE = (
    _SOUND
    + """
local have = count(KEYS[1])
if have and tonumber(have) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL')
end
return damaged
"""
)


def say_damaged(keys: Sequence[Any]) -> None:
    """Name keys that held something else, and were deleted."""
    for key in keys:
        name = key.decode(errors="replace") if isinstance(key, bytes) else str(key)
        log.warning(
            "What Redis held under %s is nothing that Joulegate writes: it was deleted, and "
            "begins anew.",
            name,
        )


async def anew_if_damaged(client: Any, keys: Sequence[str], ask: Callable[[], Awaitable[T]]) -> T:
    """What Redis answers; keys that are of another kind are deleted, and it is asked again."""
    try:
        return await ask()
    except ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        await client.delete(*keys)
        say_damaged(keys)
        return await ask()
