-- Asks who waits of a message key, or changes that.
--
-- KEYS[1]  the list: a sorted set. Members of 16 bytes are messages, and their scores, from 1 on, are their order. The
--          member "u", if it is there, is no message: its score is less than 0, and is the time in ms, negated, at which
--          the first message comes back.
-- ARGV     1 what is asked: enter, defer, leave
--          2 message (16 bytes)
--          3 enter: how many may wait; defer: how long it waits in ms; leave: 0
--          4 how long the list is kept once its first message is due, in ms
--          5 the time in ms
--
-- Returns, to enter: what is left of the wait of the first message in ms, or -1 nobody waits, -2 it is the first, -3 too
-- many wait. To the others 0.

local what, id, number, lifetime, now = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local FREE, FIRST, FULL = -1, -2, -3

local function first()
    return redis.call('ZRANGE', KEYS[1], 1, '+inf', 'BYSCORE', 'LIMIT', 0, 1)[1]
end

local function append()
    local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
    redis.call('ZADD', KEYS[1], 'NX', last and math.max(tonumber(last), 0) + 1 or 1, id)
end

local function keep(milliseconds)
    redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(milliseconds, 1)))
end

if what == 'enter' then
    local head = first()
    if not head then
        return FREE
    end
    if head == id then
        return FIRST
    end
    if not redis.call('ZSCORE', KEYS[1], id) then
        if redis.call('ZCOUNT', KEYS[1], 1, '+inf') >= number then
            return FULL
        end
        append()
    end
    local due = redis.call('ZSCORE', KEYS[1], 'u')
    return due and math.max(-tonumber(due) - now, 0) or 0
elseif what == 'defer' then
    append()
    if first() == id then
        redis.call('ZADD', KEYS[1], string.format('%.0f', -(now + number)), 'u')
        keep(number + lifetime)
    end
    return 0
elseif what == 'leave' then
    if first() ~= id then
        redis.call('ZREM', KEYS[1], id)
    else
        local is_alone = redis.call('ZCOUNT', KEYS[1], 1, '+inf') == 1
        redis.call('ZREM', KEYS[1], id, 'u')
        -- A node of a Cluster that gives the slot away refuses calls on a key that is gone.
        if not is_alone then
            keep(lifetime)
        end
    end
    return 0
end
return redis.error_reply('ERR a question that this script does not know')
