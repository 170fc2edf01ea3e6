-- Prolongs a claim and reports on it.
--
-- KEYS[1]  the record
-- ARGV     1 owner (24 bytes)
--          2 failed calls so far
--          3 how it runs now: 0 normal, 1 suspect, 2 alone
--          4 lease in ms           5 grace in ms
--
-- Returns 1 if the claim holds for another lease, 0 if it is not this owner's, 2 if the key is completed.

local record = read()
if record == nil then
    return unknown()
end
if not record then
    return 0
end
if record.tag == COMPLETED or record.tag == COMPLETED_FOR then
    return 2
end
if record.tag ~= CLAIMED or record.owner ~= ARGV[1] then
    return 0
end

record.attempts = math.max(record.attempts, tonumber(ARGV[2]))
record.mode = tonumber(ARGV[3])
record.grace = tonumber(ARGV[5])
write(record, tonumber(ARGV[4]) + record.grace)
return 1
