-- Gives a claim up, and says what comes next. (A completion is not here: it is one native SET.)
--
-- KEYS[1]  the record
-- ARGV     1 owner (24 bytes)
--          2 what became of it: returned, failed, dead-lettered, deferred
--          3 returned, failed: failed calls so far; deferred: the attempt the copy asks for; else 0
--          4 lifetime of the new record in ms
--
-- Returns 1 if it is recorded, 0 if the claim is not this owner's (nothing changes).

local owner, what, number = ARGV[1], ARGV[2], tonumber(ARGV[3])

local record = read()
if record == nil then
    return unknown()
end
if not record or record.tag ~= CLAIMED or record.owner ~= owner then
    return 0
end

local suspect = record.mode ~= NORMAL
record.mode, record.suspect = NORMAL, false
if what == 'returned' then
    record.tag, record.suspect = RELEASED, suspect
    record.attempts = math.max(record.attempts, number)
elseif what == 'failed' then
    record.tag = RELEASED
    record.attempts = math.max(record.attempts, number)
elseif what == 'dead-lettered' then
    record.tag, record.attempts, record.crashes = DEAD_LETTERED, 0, 0
elseif what == 'deferred' then
    record.tag, record.attempt = DEFERRED, number
    record.attempts = math.max(record.attempts, number - 1)
else
    return redis.error_reply('ERR a resolution that this script does not know')
end
write(record, tonumber(ARGV[4]))
return 1
