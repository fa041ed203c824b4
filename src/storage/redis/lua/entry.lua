-- Between the prelude and each script that works on entries.
--
-- An entry is a header and the value:
--   magic 2, flags 1, digest of the key 16, version, written, expires, deadline u64 (0: none),
--   generation 16 and stamp u64 of its fence, number of tags u16, digests of the tags 16 each.
-- The record of tags is a hash; what its fields mean, record.rs tells:
--   g generation 16, l last stamp, f floor, m longest life, c where trimming goes on,
--   and under the digest of each tag its hard and soft stamp, u64 both.

local MAGIC, FENCED = 'e\1', 1
local HEADER, HEADER_SIZE = '>c2Bc16I8I8I8I8c16I8I2', 77
-- More would not fit on Lua's stack; the client refuses them.
local MOST_TAGS = 4000
-- Read at once when the value is not wanted: a header with up to 16 tags.
local WINDOW = HEADER_SIZE + 16 * 16
-- A record of tags lives at least that long, in milliseconds.
local HOUR = 3600000

local ABSENT, LIVE, STALE, FOREIGN, DONE = 0, 1, 2, 3, 4

-- The entry in these bytes; nil if there are none, false if they are not one of this key.
local function parse(raw, digest)
  if not raw or raw == '' then return nil end
  if #raw < HEADER_SIZE then return false end
  local magic, flags, owner, version, written, expires, deadline, generation, stamp, count =
    unpack(HEADER, raw)
  if magic ~= MAGIC or owner ~= digest or flags > FENCED or count > MOST_TAGS
    or version >= EXACT or written >= EXACT or expires >= EXACT or deadline >= EXACT
    or stamp >= EXACT or #raw < HEADER_SIZE + 16 * count
  then
    return false
  end
  return {
    version = version, expires = expires, deadline = deadline, fenced = flags == FENCED,
    generation = generation, stamp = stamp, count = count,
    tags = raw:sub(HEADER_SIZE + 1, HEADER_SIZE + 16 * count),
  }
end

-- As parse, without reading the value; also the bytes that were read.
local function parse_head(key, digest)
  local raw = call('GETRANGE', key, 0, WINDOW - 1)
  if #raw == WINDOW then
    local size = HEADER_SIZE + 16 * unpack('>I2', raw, HEADER_SIZE - 1)
    if size > WINDOW then raw = call('GETRANGE', key, 0, size - 1) end
  end
  return parse(raw, digest), raw
end

-- The digests in a string of them.
local function split(digests, first, last)
  local list = {}
  for i = first, last do list[#list + 1] = digests:sub(16 * i - 15, 16 * i) end
  return list
end

-- A number of ours; nil for anything else, also for what Lua reads as one, such as nan.
local function whole(text)
  local number = tonumber(text)
  return number and number >= 0 and number < EXACT and number or nil
end

-- The record, with the newest hard and soft stamp of any of these tags; nil if there is none.
local function read_record(key, digests)
  local fields = call('HMGET', key, 'g', 'l', 'f', 'm', spread(split(digests, 1, #digests / 16)))
  local generation, last, lowest, longest =
    fields[1], whole(fields[2]), whole(fields[3]), whole(fields[4])
  -- A damaged record counts as lost, or its namespace would stay closed for as long as it is used.
  if not generation or #generation ~= 16 or not last or not lowest or not longest or lowest > last then
    return nil
  end
  local hard, soft = 0, 0
  for i = 5, #fields do
    local stamps = fields[i]
    if stamps then
      -- A stamp that cannot be read is newer than every fence.
      local h, s = EXACT, 0
      if #stamps == 16 then h, s = unpack('>I8I8', stamps) end
      if h > hard then hard = h end
      if s > soft then soft = s end
    end
  end
  return { generation = generation, last = last, lowest = lowest, longest = longest, hard = hard, soft = soft }
end

local function admits(record, generation, stamp)
  return record ~= nil and record.generation == generation
    and record.lowest <= stamp and stamp <= record.last and record.hard <= stamp
end

-- Whether the entry is alive, as one of the statuses above, and the record if it needs one.
local function judge(entry, record_key, now)
  if not entry or now >= entry.expires then return ABSENT end
  if not entry.fenced then return LIVE end
  local record = read_record(record_key, entry.tags)
  if not admits(record, entry.generation, entry.stamp) then return ABSENT end
  return record.soft > entry.stamp and STALE or LIVE, record
end

-- Whether a record knows tags by the names that the caller has for them: the second half of a
-- generation tells the secret with which they were hashed.
local function is_ours(record, generation)
  return record ~= nil and record.generation:sub(9) == generation:sub(9)
end

-- A record without tags. It replaces an older one and does not live shorter.
local function create_record(key, generation)
  local left = call('PTTL', key)
  call('UNLINK', key)
  call('HSET', key, 'g', generation, 'l', 0, 'f', 0, 'm', 0, 'c', 0)
  call('PEXPIRE', key, left > HOUR + LINGER and left or HOUR + LINGER)
end
