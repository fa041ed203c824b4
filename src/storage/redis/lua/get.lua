-- Looks an entry up, extends its life if that is due, and takes a fence if one is wanted. The value
-- of a version that the caller knows is neither read nor sent.
--
-- KEYS  1: entry   2: record of tags
-- ARGV  1: check 8, digest of the key 16, touch u64 (0: none), slack u64, fence wanted 1,
--          generation for a missing record 16, known version u64 (0: none)
-- reply {head} or, if the entry is alive, {head, entry as it was stored}: of a known version
--       without its value;
--       head: check 8, now u64, status 1, expires u64, fence given 1, its generation 16, stamp u64

local now = clock()
local check, digest, touch, slack, fence, generation, known = unpack('>c8c16I8I8Bc16I8', ARGV[1])
local raw, entry
if known > 0 then
  entry, raw = parse_head(KEYS[1], digest)
  if entry and entry.version == known then
    raw = raw:sub(1, HEADER_SIZE + 16 * entry.count)
  elseif entry then
    raw = nil
  end
else
  raw = call('GET', KEYS[1])
  entry = parse(raw, digest)
end
local status, record = judge(entry, KEYS[2], now)
if entry == false then status = FOREIGN end

local expires = entry and entry.expires or 0
if touch > 0 and (status == LIVE or status == STALE) then
  local wanted = now + touch
  if entry.deadline > 0 and wanted > entry.deadline then wanted = entry.deadline end
  if wanted > expires + slack then
    expires = wanted
    -- In this order: a server without memory to spare refuses SETRANGE as the first write of a
    -- script, although nothing grows, and a touch would then fail the read.
    call('PEXPIRE', KEYS[1], ceil((expires - now) / 1000) + LINGER)
    call('SETRANGE', KEYS[1], 35, pack('>I8', expires))
  end
end

local stamp = 0
if fence == 1 then
  record = record or read_record(KEYS[2], '')
  if is_ours(record, generation) then
    generation, stamp = record.generation, record.last
  else
    create_record(KEYS[2], generation)
  end
end
local head = pack('>c8I8BI8Bc16I8', check, now, status, expires, fence, generation, stamp)
if status == LIVE or status == STALE then return { head, raw or call('GET', KEYS[1]) } end
return { head }
