-- Deletes an entry if the condition holds.
--
-- KEYS  1: entry   2: record of tags
-- ARGV  1: check 8, digest of the key 16, condition 1 (0 always, 2 version), version u64
-- reply check 8, now u64, status 1 (done, or absent: not deleted)

local IF_VERSION = 2

local now = clock()
local check, digest, condition, expected = unpack('>c8c16BI8', ARGV[1])
local entry = parse_head(KEYS[1], digest)
local status = ABSENT
if entry == false then
  status = FOREIGN
elseif judge(entry, KEYS[2], now) ~= ABSENT
  and (condition ~= IF_VERSION or entry.version == expected)
then
  call('UNLINK', KEYS[1])
  status = DONE
end
return pack('>c8I8B', check, now, status)
