-- Charges counters, all or nothing over the enforced charges, in one step.
--
-- KEYS  one counter for each charge
-- ARGV  1: check, 8 bytes that the reply repeats
--       then for each charge, big-endian:
--         head 11 (what its value begins with: magic 2, check of the key 8, letter of the state 1)
--         algorithm 1 (s f d m b w l), spend 1, enforced 1,
--         limit u32, burst or slots u32, units u32,
--         tick, period or width of a slot u64, ticks u64,
--         and for a refund its receipt: birth, mark, position, returned u64
-- reply check 8, now u64, then for each charge
--         flags 1 (1 allowed, 2 never, 4 receipt), remaining u32,
--         reset, replenish, retry, birth, mark, position, returned, taken u64
-- value head 11, then as State::encode of quota/state.rs; any other bytes count as no state
--
-- The arithmetic is that of quota/*.rs, integer for integer; the reasons are told there.
--
-- Each algorithm takes (value, head, now, spend, units, limit, extra, tick, ticks, and a receipt)
-- and returns retry (-1: never), remaining, reset, replenish, the value to store or nil, how long
-- it is worth keeping, and of the receipt birth, mark, position, returned and the units taken.

-- A take of nothing arrives as a peek at no units.
local PEEK, TAKE, FORCE, REFUND = 0, 1, 2, 3
local MOST = 4294967295
local CHARGE = '>c11c1BBI4I4I4I8I8'

-- Until n units are free, if they are not. A function of its own, not one within the next: every
-- call would bind it to ten variables.
local function sliding_wait(n, now, limit, tick, ticks, start, previous, current, elapsed, used)
  if n > limit then return -1 end
  if current + n <= limit then
    local over = used - (limit - n) * ticks
    return start + (elapsed + ceil(over / previous)) * tick - now
  end
  return start + (ticks + ceil(ticks * (current + n - limit) / current)) * tick - now
end

local function sliding(value, head, now, spend, units, limit, _, tick, ticks, receipt)
  local birth, start, previous, current = now, now, 0, 0
  if value and #value == 35 then
    local h, b, s, p, c = unpack('>c11I8I8I4I4', value)
    if h == head and b < EXACT and s < EXACT then
      birth, start, previous, current = b, s, p, c
    end
  end
  local width = tick * ticks
  if start > now then start = now end
  if now - start >= width then
    if now - start < 2 * width then
      previous, current, start = current, 0, start + width
    else
      previous, current = 0, 0
    end
  end
  if previous == 0 and current == 0 then start = now end

  local whole = limit * ticks
  local elapsed = floor((now - start) / tick)
  local used = previous * (ticks - elapsed) + current * ticks
  local free = used < whole and floor((whole - used) / ticks) or 0

  local retry, taken, state = 0, 0, nil
  if spend < FORCE and units > free then
    retry = sliding_wait(units, now, limit, tick, ticks, start, previous, current, elapsed, used)
  elseif spend ~= PEEK then
    if spend < REFUND then
      taken = current + units > MOST and MOST - current or units
      current = current + taken
    elseif spend == REFUND then
      if receipt.birth == birth then
        if receipt.mark == start then
          current = current > units and current - units or 0
        elseif receipt.mark + width == start then
          previous = previous > units and previous - units or 0
        end
      end
    else
      birth = now > birth and now or birth + 1
      start, previous, current, elapsed = now, 0, 0, 0
    end
    used = previous * (ticks - elapsed) + current * ticks
    free = used < whole and floor((whole - used) / ticks) or 0
    state = pack('>c11I8I8I4I4', head, birth, start, previous, current)
  end
  local reset = 0
  if current > 0 then
    reset = start + 2 * width - now
  elseif previous > 0 then
    reset = start + width - now
  end
  local replenish = 0
  if free < limit then
    replenish = sliding_wait(free + 1, now, limit, tick, ticks, start, previous, current, elapsed, used)
  end
  return retry, free, reset, replenish, state, start + 2 * width - now, birth, start, 0, 0, taken
end

local now = clock()

-- Stores and answers the only charge of a call.
local function finish(retry, remaining, reset, replenish, state, keep, birth, mark, position,
    returned, taken)
  local flags = 1
  if state then
    call('SET', KEYS[1], state, 'PX', string.format('%d', ceil(keep / 1000) + LINGER))
    if taken > 0 then flags = 5 end
  elseif retry < 0 then
    flags, retry = 2, 0
  elseif retry > 0 then
    flags = 0
  end
  return pack('>c8I8BI4I8I8I8I8I8I8I8I8', ARGV[1], now, flags, remaining, reset, replenish, retry,
    birth, mark, position, returned, taken)
end

-- By far the most calls, and so before the functions that they do not need.
if #KEYS == 1 then
  local head, algorithm, spend, _, limit, extra, units, tick, ticks = unpack(CHARGE, ARGV[2])
  if algorithm == 's' and spend < REFUND then
    local value = call('GET', KEYS[1])
    return finish(sliding(value, head, now, spend, units, limit, extra, tick, ticks))
  end
end

local DAY = 86400000000
local LONGEST_LOG = 1000
local MOST_RETURNED = 4503599627370496

local function month(now)
  local today = floor(now / DAY)
  local shifted = today + 719468
  local era, day_of_era = floor(shifted / 146097), shifted % 146097
  local year_of_era = floor((day_of_era - floor(day_of_era / 1460) + floor(day_of_era / 36524)
    - floor(day_of_era / 146096)) / 365)
  local day_of_year = day_of_era
    - (365 * year_of_era + floor(year_of_era / 4) - floor(year_of_era / 100))
  local from_march = floor((5 * day_of_year + 2) / 153)
  local day = day_of_year - floor((153 * from_march + 2) / 5) + 1
  local number = from_march < 10 and from_march + 3 or from_march - 9
  local year = era * 400 + year_of_era + (number <= 2 and 1 or 0)
  local days = 31
  if number == 4 or number == 6 or number == 9 or number == 11 then
    days = 30
  elseif number == 2 then
    days = (year % 4 == 0 and year % 100 ~= 0 or year % 400 == 0) and 29 or 28
  end
  local first = today - (day - 1)
  return first * DAY, (first + days) * DAY
end

local function windowed(value, head, now, spend, units, limit, receipt, window)
  local birth, start, count = now, now, 0
  if value and #value == 31 then
    local h, b, s, c = unpack('>c11I8I8I4', value)
    if h == head and b < EXACT and s < EXACT then birth, start, count = b, s, c end
  end
  local kept = start < now and start or now
  local stop
  start, stop = window(kept, count)
  if kept < start then count = 0 end

  local free = count < limit and limit - count or 0
  local retry, taken, state = 0, 0, nil
  if spend < FORCE and units > free then
    retry = units > limit and -1 or stop - now
  elseif spend ~= PEEK then
    if spend < REFUND then
      taken = count + units > MOST and MOST - count or units
      count = count + taken
    elseif spend == REFUND then
      if receipt.birth == birth and receipt.mark == start then
        count = count > units and count - units or 0
      end
    else
      birth = now > birth and now or birth + 1
      count = 0
    end
    free = count < limit and limit - count or 0
    state = pack('>c11I8I8I4', head, birth, start, count)
  end
  local reset = count > 0 and stop - now or 0
  local replenish = free < limit and stop - now or 0
  return retry, free, reset, replenish, state, stop - now, birth, start, 0, 0, taken
end

local function fixed(value, head, now, spend, units, limit, _, period, _, receipt)
  return windowed(value, head, now, spend, units, limit, receipt, function(kept, count)
    if count > 0 and now - kept < period then return kept, kept + period end
    return now, now + period
  end)
end

local function daily(value, head, now, spend, units, limit, _, _, _, receipt)
  return windowed(value, head, now, spend, units, limit, receipt, function()
    return now - now % DAY, now - now % DAY + DAY
  end)
end

local function monthly(value, head, now, spend, units, limit, _, _, _, receipt)
  return windowed(value, head, now, spend, units, limit, receipt, function()
    return month(now)
  end)
end

local function bucket(value, head, now, spend, units, limit, burst, tick, ticks, receipt)
  local at = floor(now / tick)
  local birth, since, debt, returned = now, at, 0, 0
  if value and #value == 43 then
    local h, b, s, d, r = unpack('>c11I8I8I8I8', value)
    if h == head and b < EXACT and s < EXACT and d < EXACT and r < EXACT then
      birth, since, debt, returned = b, s, d, r
    end
  end
  local function disown()
    returned = 0
    birth = now > birth and now or birth + 1
  end
  local function leave(amount)
    debt, returned = debt - amount, returned + amount
    if returned > MOST_RETURNED then disown() end
  end
  leave(at > since and math.min((at - since) * limit, debt) or 0)
  local capacity = burst * ticks
  if debt > capacity then
    debt = capacity
    disown()
  end

  local function until_drained(owed)
    if owed <= 0 then return 0 end
    return (at + ceil(owed / limit)) * tick - now
  end
  local function wait(n)
    if n > burst then return -1 end
    return until_drained(debt + n * ticks - capacity)
  end

  local retry, taken, state = 0, 0, nil
  if spend < FORCE and units > floor((capacity - debt) / ticks) then
    retry = wait(units)
  elseif spend ~= PEEK then
    if spend < REFUND then
      local room, owed = capacity - debt, units * ticks
      taken = units
      debt = debt + math.min(owed, room)
      if owed > room then
        disown()
        taken = floor(room / ticks)
      end
    elseif spend == REFUND then
      if receipt.birth == birth then
        local gone = returned > receipt.returned and returned - receipt.returned or 0
        local left = receipt.position > gone and receipt.position - gone or 0
        leave(math.min(units * ticks, left, debt))
      end
    else
      debt = 0
      disown()
    end
    state = pack('>c11I8I8I8I8', head, birth, at, debt, returned)
  end
  local free = floor((capacity - debt) / ticks)
  local reset = until_drained(debt)
  local replenish = free < burst and wait(free + 1) or 0
  return retry, free, reset, replenish, state, reset > 0 and reset or 1, birth, 0, debt, returned,
    taken
end

local function strict(value, head, now, spend, units, limit, slots, width, _, receipt)
  local len = slots + 1
  local slot = floor(now / width)
  local format = '>c11I8I8' .. string.rep('I4', len)
  local birth, counts = now, {}
  for i = 1, len do counts[i] = 0 end
  if value and #value == 27 + 4 * len then
    local stored = { unpack(format, value) }
    if stored[1] == head and stored[2] < EXACT and stored[3] < EXACT then
      birth = stored[2]
      local passed = slot - stored[3]
      -- Clocks that were set back leave counts in the future, which count as of now.
      for i = 1, len do
        local place = i + passed
        if place < 1 then place = 1 end
        if place <= len then counts[place] = counts[place] + stored[3 + i] end
      end
      if counts[1] > MOST then counts[1] = MOST end
    end
  end

  local function used()
    local sum = 0
    for i = 1, len do sum = sum + counts[i] end
    return sum
  end
  local function wait(n)
    if n > limit then return -1 end
    local left, passed = used(), 0
    while left > limit - n do
      left = left - counts[len - passed]
      passed = passed + 1
    end
    return passed == 0 and 0 or (slot + passed) * width - now
  end

  local free = limit - used()
  if free < 0 then free = 0 end
  local retry, taken, state = 0, 0, nil
  if spend < FORCE and units > free then
    retry = wait(units)
  elseif spend ~= PEEK then
    if spend < REFUND then
      taken = counts[1] + units > MOST and MOST - counts[1] or units
      counts[1] = counts[1] + taken
    elseif spend == REFUND then
      local place = slot - receipt.mark + 1
      if receipt.birth == birth and place >= 1 and place <= len then
        counts[place] = counts[place] > units and counts[place] - units or 0
      end
    else
      birth = now > birth and now or birth + 1
      for i = 1, len do counts[i] = 0 end
    end
    free = limit - used()
    if free < 0 then free = 0 end
    state = pack(format, head, birth, slot, spread(counts))
  end
  local reset = 0
  for i = 1, len do
    if counts[i] > 0 then
      reset = (slot + len - i + 1) * width - now
      break
    end
  end
  local replenish = free < limit and wait(free + 1) or 0
  return retry, free, reset, replenish, state, reset > 0 and reset or 1, birth, slot, 0, 0, taken
end

local function log(value, head, now, spend, units, limit, _, period, _, receipt)
  local birth, times, counts, sum = now, {}, {}, 0
  if value and #value >= 19 and (#value - 19) % 12 == 0 then
    local h, b, at = unpack('>c11I8', value)
    if h == head and b < EXACT then
      birth = b
      local future = 0
      while at <= #value do
        local time, count
        time, count, at = unpack('>I8I4', value, at)
        if time >= EXACT then
          birth, times, counts, sum, future = now, {}, {}, 0, 0
          break
        end
        if time >= now then
          future = future + count
        elseif time + period > now then
          times[#times + 1], counts[#counts + 1] = time, count
          sum = sum + count
        end
      end
      if future > 0 then
        if future > MOST then future = MOST end
        times[#times + 1], counts[#counts + 1] = now, future
        sum = sum + future
      end
    end
  end

  local function wait(n)
    if n > limit then return -1 end
    local left, result = sum, 0
    for i = 1, #times do
      if left <= limit - n then break end
      left = left - counts[i]
      result = times[i] + period - now
    end
    return result
  end

  local free = sum < limit and limit - sum or 0
  local retry, taken, state = 0, 0, nil
  if spend < FORCE and units > free then
    retry = wait(units)
  elseif spend ~= PEEK then
    if spend < REFUND then
      local newest = #times
      if newest > 0 and (times[newest] == now or newest >= LONGEST_LOG) then
        taken = counts[newest] + units > MOST and MOST - counts[newest] or units
        times[newest], counts[newest] = now, counts[newest] + taken
      else
        taken = units
        times[newest + 1], counts[newest + 1] = now, units
      end
      sum = sum + taken
    elseif spend == REFUND then
      if receipt.birth == birth then
        for i = 1, #times do
          if times[i] == receipt.mark then
            local given = math.min(units, counts[i])
            counts[i], sum = counts[i] - given, sum - given
            if counts[i] == 0 then
              table.remove(times, i)
              table.remove(counts, i)
            end
            break
          end
        end
      end
    else
      birth = now > birth and now or birth + 1
      times, counts, sum = {}, {}, 0
    end
    free = sum < limit and limit - sum or 0
    local parts = { pack('>c11I8', head, birth) }
    for i = 1, #times do parts[i + 1] = pack('>I8I4', times[i], counts[i]) end
    state = table.concat(parts)
  end
  local reset = #times > 0 and times[#times] + period - now or 0
  local replenish = free < limit and wait(free + 1) or 0
  return retry, free, reset, replenish, state, reset > 0 and reset or 1, birth, now, 0, 0, taken
end

local algorithms =
  { s = sliding, f = fixed, d = daily, m = monthly, b = bucket, w = strict, l = log }

local function step(i, value, peek)
  local head, algorithm, spend, _, limit, extra, units, tick, ticks, at = unpack(CHARGE, ARGV[i + 1])
  if peek then spend, units = PEEK, 0 end
  local receipt
  if spend == REFUND then
    receipt = {}
    receipt.birth, receipt.mark, receipt.position, receipt.returned =
      unpack('>I8I8I8I8', ARGV[i + 1], at)
  end
  return algorithms[algorithm](value, head, now, spend, units, limit, extra, tick, ticks, receipt)
end

if #KEYS == 1 then return finish(step(1, call('GET', KEYS[1]))) end

-- A key of another type counts as no state here; reading each by itself would cost more.
local values = call('MGET', spread(KEYS))
local results, granted = {}, true
for i = 1, #KEYS do
  results[i] = { step(i, values[i]) }
  local enforced = ARGV[i + 1]:byte(14) == 1
  if enforced and results[i][1] ~= 0 then granted = false end
end
local reply = { pack('>c8I8', ARGV[1], now) }
for i = 1, #KEYS do
  local retry, remaining, reset, replenish, state, keep, birth, mark, position, returned, taken =
    spread(results[i], 1, 11)
  if state and granted then
    call('SET', KEYS[i], state, 'PX', string.format('%d', ceil(keep / 1000) + LINGER))
  elseif state then
    retry, remaining, reset, replenish = step(i, values[i], true)
  end
  local flags = retry == 0 and 1 or 0
  if state and granted and taken > 0 then flags = 5 end
  if retry < 0 then flags, retry = 2, 0 end
  reply[i + 1] = pack('>BI4I8I8I8I8I8I8I8I8', flags, remaining, reset, replenish, retry,
    birth, mark, position, returned, taken)
end
return table.concat(reply)
