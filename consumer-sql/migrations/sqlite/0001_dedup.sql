-- Idempotency keys and parked messages of consumers. Times are milliseconds since the Unix epoch.

CREATE TABLE consumer_dedup (
    -- XXH3-128 of consumer and key, big endian.
    key_hash    BLOB    NOT NULL PRIMARY KEY,
    -- Counts the writes.
    version     INTEGER NOT NULL DEFAULT 1,
    -- 1 claimed, 2 completed, 3 released, 4 deferred, 5 dead-lettered.
    state       INTEGER NOT NULL,
    -- The row means nothing from then on.
    expires_at  INTEGER NOT NULL,
    fingerprint BLOB,
    epoch       INTEGER NOT NULL DEFAULT 0,
    attempts    INTEGER NOT NULL DEFAULT 0,
    crashes     INTEGER NOT NULL DEFAULT 0,
    suspect     INTEGER NOT NULL DEFAULT 0,
    redrive     INTEGER NOT NULL DEFAULT 0,
    -- Of a claim: who holds it until when, and how (0 beside others, 1 suspect, 2 alone).
    owner       BLOB,
    lease_until INTEGER,
    mode        INTEGER,
    -- Of a deferred key: the attempt that its copy asks for.
    attempt     INTEGER
) WITHOUT ROWID;

CREATE INDEX consumer_dedup_expires_at ON consumer_dedup (expires_at);

CREATE TABLE consumer_parked (
    key_hash   BLOB    NOT NULL PRIMARY KEY,
    version    INTEGER NOT NULL DEFAULT 1,
    -- The hashes of the messages that wait, 16 bytes each, in their order.
    ids        BLOB    NOT NULL,
    -- When the first one comes back; 0 where that is not known.
    until      INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX consumer_parked_expires_at ON consumer_parked (expires_at);
