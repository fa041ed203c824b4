-- Invalidates tags, or everything that has a fence, and forgets a few tags that nothing can carry
-- any more.
--
-- KEYS  1: record of tags
-- ARGV  1: check 8, how 1 (0 hard, 1 soft, 2 all), generation for a new record 16
--       2: digests of the tags
-- reply check 8, now u64

local HARD, ALL = 0, 2
-- A record of up to that many tags is left alone.
local SMALL = 64
-- Beyond, the oldest of those looked at are forgotten early.
local MOST = 100000
-- How many tags a call looks at, beside four times as many as it adds.
local STEP = 20
-- Tags are remembered that long beyond the longest life; as in record.rs.
local MAKING = 60000000
-- How many go to one command: Lua's stack is small.
local CHUNK = 500

local now = clock()
local check, how, generation = unpack('>c8Bc16', ARGV[1])
local digests, key = ARGV[2], KEYS[1]
local count = #digests / 16

local record = read_record(key, '')
-- Sent again because the reply was lost: it has happened, and what was invalidated since must stay so.
if how == ALL and record and record.generation == generation then
  return pack('>c8I8', check, now)
end
if how == ALL or not is_ours(record, generation) then
  create_record(key, generation)
  record = { last = 0, lowest = 0, longest = 0 }
end
if how == ALL then return pack('>c8I8', check, now) end

local stamp = now > record.last and now or record.last + 1
for first = 1, count, CHUNK do
  local tags = split(digests, first, math.min(first + CHUNK - 1, count))
  local before = call('HMGET', key, spread(tags))
  local after = {}
  for i = 1, #tags do
    local hard, soft = 0, 0
    if before[i] and #before[i] == 16 then hard, soft = unpack('>I8I8', before[i]) end
    if how == HARD then hard = stamp else soft = stamp end
    after[2 * i - 1], after[2 * i] = tags[i], pack('>I8I8', hard, soft)
  end
  call('HSET', key, spread(after))
end

local known = call('HLEN', key) - 5
local lowest, cursor = record.lowest, 0
if known > SMALL then
  local from = call('HGET', key, 'c')
  if not from or not from:find('^%d+$') or #from > 19 then from = 0 end
  local scan = call('HSCAN', key, from, 'COUNT', STEP + 4 * count)
  cursor = scan[1]
  local found = {}
  for i = 1, #scan[2], 2 do
    local tag, stamps = scan[2][i], scan[2][i + 1]
    if #tag == 16 and #stamps == 16 then
      local hard, soft = unpack('>I8I8', stamps)
      found[#found + 1] = { tag = tag, newest = hard > soft and hard or soft }
    end
  end
  -- The oldest quarter of a random sample is old: forgetting it early raises the floor by little.
  local surplus = math.min(known - MOST, #found / 4)
  table.sort(found, function(a, b) return a.newest < b.newest end)
  local forgotten = {}
  for i = 1, #found do
    local newest = found[i].newest
    if newest + record.longest + MAKING >= now and #forgotten >= surplus then break end
    forgotten[#forgotten + 1] = found[i].tag
    if newest > lowest then lowest = newest end
  end
  for first = 1, #forgotten, CHUNK do
    call('HDEL', key, spread(forgotten, first, math.min(first + CHUNK - 1, #forgotten)))
  end
end
call('HSET', key, 'l', stamp, 'f', lowest, 'c', cursor)
if call('PTTL', key) < HOUR / 2 + LINGER then call('PEXPIRE', key, HOUR + LINGER) end
return pack('>c8I8', check, now)
