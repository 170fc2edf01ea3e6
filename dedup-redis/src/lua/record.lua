-- Prepended to every script: reading and writing the records of `src/format.rs`.
--
-- Owners and fingerprints are byte strings and only compared, never converted: a Lua number holds 53 bits. Epochs and
-- durations are milliseconds and fit. A missing fingerprint is the empty string.

local COMPLETED, COMPLETED_FOR, CLAIMED, RELEASED, DEFERRED, DEAD_LETTERED = 16, 17, 18, 19, 20, 21
local SIZE = { [COMPLETED] = 1, [COMPLETED_FOR] = 17, [CLAIMED] = 70, [RELEASED] = 38, [DEFERRED] = 42, [DEAD_LETTERED] = 38 }
local NORMAL, SUSPECT, ALONE = 0, 1, 2
local MAX_COUNT = 4294967295

-- The record as a table; false when there is none; nil when it is of a format that this script does not know.
local function read()
    local value = redis.call('GET', KEYS[1])
    if not value then
        return false
    end
    local tag = string.byte(value, 1)
    if SIZE[tag] == nil or SIZE[tag] ~= string.len(value) then
        return nil
    end
    if tag == COMPLETED then
        return { tag = tag, fingerprint = '' }
    end
    if tag == COMPLETED_FOR then
        return { tag = tag, fingerprint = string.sub(value, 2) }
    end
    local record = { tag = tag }
    local flags
    flags, record.fingerprint, record.epoch, record.attempts, record.crashes, record.redrive =
        struct.unpack('>Bc16I8I4I4I4', value, 2)
    if flags > 11 then
        return nil
    end
    if flags % 2 == 0 then
        record.fingerprint = ''
    end
    record.suspect = math.floor(flags / 2) % 2 == 1
    record.mode = math.floor(flags / 4)
    if tag == CLAIMED then
        record.owner, record.grace = struct.unpack('>c24I8', value, 39)
    elseif tag == DEFERRED then
        record.attempt = struct.unpack('>I4', value, 39)
    end
    return record
end

-- Writes the record, to live for so many milliseconds, and returns its bytes.
local function write(record, lifetime)
    local flags = 4 * (record.mode or NORMAL)
    local fingerprint = record.fingerprint
    if fingerprint ~= '' then
        flags = flags + 1
    else
        fingerprint = string.rep('\0', 16)
    end
    if record.suspect then
        flags = flags + 2
    end
    local value = struct.pack('>BBc16I8I4I4I4', record.tag, flags, fingerprint, record.epoch, record.attempts,
        record.crashes, record.redrive)
    if record.tag == CLAIMED then
        value = value .. struct.pack('>c24I8', record.owner, record.grace)
    elseif record.tag == DEFERRED then
        value = value .. struct.pack('>I4', record.attempt)
    end
    redis.call('SET', KEYS[1], value, 'PX', string.format('%.0f', lifetime))
    return value
end

local function unknown()
    return redis.error_reply('BADRECORD the key holds a record of an unknown format')
end
