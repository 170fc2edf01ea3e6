-- Claims a key in whatever state it is. Sent when `SET … NX GET` has found something other than a completed record.
--
-- KEYS[1]  the record
-- ARGV     1 owner (24 bytes)      2 fingerprint (16 bytes, or empty)
--          3 lease in ms           4 grace in ms
--          5 attempt asked for     6 redrive count
--          7 epoch of a record that is new
--
-- Returns the record (a string) if the key is claimed now; else a number: what is left of another owner's lease in ms,
-- or -1 completed, -2 conflict, -3 superseded by a delayed copy, -4 dead-lettered. What is left of a lease is what the
-- record has left to live, less the grace it was written with.

local owner, fingerprint = ARGV[1], ARGV[2]
local lease, grace = tonumber(ARGV[3]), tonumber(ARGV[4])
local attempt, redrive = tonumber(ARGV[5]), tonumber(ARGV[6])
local COMPLETE, CONFLICT, SUPERSEDED, SET_ASIDE = -1, -2, -3, -4

local function hold(record)
    record.tag, record.owner, record.grace = CLAIMED, owner, grace
    return write(record, lease + grace)
end

local function take(record)
    record.mode = record.suspect and SUSPECT or NORMAL
    return hold(record)
end

local function fresh(epoch)
    return {
        epoch = epoch,
        attempts = math.max(attempt - 1, 0),
        crashes = 0,
        suspect = false,
        fingerprint = fingerprint,
        redrive = redrive,
    }
end

-- The next claim of the same message; a redrive not seen yet starts counting anew.
local function continued(record)
    if redrive > record.redrive then
        return fresh(record.epoch + 1)
    end
    record.epoch = record.epoch + 1
    record.attempts = math.max(record.attempts, attempt - 1)
    if fingerprint ~= '' then
        record.fingerprint = fingerprint
    end
    return record
end

local record = read()
if record == nil then
    return unknown()
end
if not record then
    return take(fresh(tonumber(ARGV[7])))
end

local conflict = fingerprint ~= '' and record.fingerprint ~= '' and fingerprint ~= record.fingerprint

if record.tag == COMPLETED or record.tag == COMPLETED_FOR then
    return conflict and CONFLICT or COMPLETE
end

if record.tag == CLAIMED then
    if record.owner == owner then
        return hold(record)
    end
    if conflict then
        return CONFLICT
    end
    local remaining = redis.call('PTTL', KEYS[1]) - record.grace
    if remaining > 0 then
        return remaining
    end
    -- A process that died proves something only if it was another one, and only if the message ran alone in it.
    local died = string.sub(record.owner, 1, 16) ~= string.sub(owner, 1, 16)
    if died and record.mode == ALONE then
        record.crashes = math.min(record.crashes + 1, MAX_COUNT)
    end
    record.suspect = died or record.mode ~= NORMAL
    return take(continued(record))
end

if record.tag == DEFERRED then
    if conflict then
        return CONFLICT
    end
    if attempt < record.attempt and redrive <= record.redrive then
        return SUPERSEDED
    end
    return take(continued(record))
end

-- Released or dead-lettered: another payload is another message, only the epoch goes on.
if conflict then
    return take(fresh(record.epoch + 1))
end
if record.tag == DEAD_LETTERED and redrive <= record.redrive then
    return SET_ASIDE
end
return take(continued(record))
