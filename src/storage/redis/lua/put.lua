-- Stores an entry if the condition and the fence allow.
--
-- KEYS  1: entry   2: record of tags
-- ARGV  1: check 8, digest of the key 16, condition 1 (0 always, 1 absent, 2 version),
--          version u64, ttl u64, lifetime u64 (0: none),
--          fence 1 (0 none, 1 given, 2 lost with its connection), its generation 16, stamp u64
--       2: digests of the tags   3: value
-- reply {head} or, if an entry is in the way, {head, entry as it was stored};
--       head: check 8, now u64, status 1 (absent: refused, and nothing is there), version u64

local ALWAYS, IF_ABSENT, IF_VERSION = 0, 1, 2
local NO_FENCE, FENCE = 0, 1

local now = clock()
local check, digest, condition, expected, ttl, lifetime, fence, generation, stamp =
  unpack('>c8c16BI8I8I8Bc16I8', ARGV[1])
local tags = ARGV[2]
local old = parse_head(KEYS[1], digest)

local function answer(status, version)
  local head = pack('>c8I8BI8', check, now, status, version)
  if status == LIVE or status == STALE then return { head, call('GET', KEYS[1]) } end
  return { head }
end

-- What is not ours may be replaced blindly, and is in the way of everything else.
if old == false and condition ~= ALWAYS then return answer(FOREIGN, 0) end

local status, record
local allowed = true
if condition ~= ALWAYS then
  status, record = judge(old, KEYS[2], now)
  if condition == IF_ABSENT then
    allowed = status == ABSENT
  else
    allowed = status ~= ABSENT and old.version == expected
  end
end
if fence ~= NO_FENCE and allowed then
  allowed = fence == FENCE
  if allowed then
    local current = read_record(KEYS[2], tags)
    allowed = admits(current, generation, stamp)
    record = record or current
  end
end
if not allowed then
  return answer(status or judge(old, KEYS[2], now), 0)
end

local deadline = lifetime > 0 and now + lifetime or 0
local fenced = fence == FENCE
if condition == IF_VERSION then
  fenced, generation, stamp, tags = old.fenced, old.generation, old.stamp, old.tags
  if old.deadline > 0 and (deadline == 0 or old.deadline < deadline) then deadline = old.deadline end
end
local expires = now + ttl
if deadline > 0 and expires > deadline then expires = deadline end
local version = old and old.version >= now and old.version + 1 or now

if fenced and deadline > 0 then
  -- The record outlives every entry that it judges, by at least half an hour so that it need not
  -- be extended each time.
  local life = deadline - now
  local left = ceil(life / 1000)
  if life > record.longest then call('HSET', KEYS[2], 'm', life) end
  if call('PTTL', KEYS[2]) < left + HOUR / 2 + LINGER then
    call('PEXPIRE', KEYS[2], left + HOUR + LINGER)
  end
end
local header = pack(HEADER, MAGIC, fenced and FENCED or 0, digest, version, now, expires, deadline,
  generation, fenced and stamp or 0, #tags / 16)
call('SET', KEYS[1], header .. tags .. ARGV[3], 'PX', ceil((expires - now) / 1000) + LINGER)
return answer(DONE, version)
