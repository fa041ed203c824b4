-- In front of every script.
--
-- Numbers are doubles here, and whole up to 2^53: times are microseconds, and every product of the
-- quotas' arithmetic stays below. struct reads and writes what Rust calls to_be_bytes.

-- Milliseconds added to every expiry. Keys expire to be collected; what has died is told by the
-- times within the values.
local LINGER = 0
-- Stored numbers from here on are not ours.
local EXACT = 9007199254740992

local call, pack, unpack, spread = redis.call, struct.pack, struct.unpack, unpack
local floor, ceil = math.floor, math.ceil

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
