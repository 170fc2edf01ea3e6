-- Idempotency keys and parked messages of consumers. Times are milliseconds since the Unix epoch.

CREATE TABLE consumer_dedup (
    -- XXH3-128 of consumer and key, big endian.
    key_hash    BYTEA    NOT NULL PRIMARY KEY,
    -- Counts the writes: who writes has seen the one before.
    version     BIGINT   NOT NULL DEFAULT 1,
    -- 1 claimed, 2 completed, 3 released, 4 deferred, 5 dead-lettered.
    state       SMALLINT NOT NULL,
    -- The row means nothing from then on.
    expires_at  BIGINT   NOT NULL,
    fingerprint BYTEA,
    epoch       BIGINT   NOT NULL DEFAULT 0,
    attempts    BIGINT   NOT NULL DEFAULT 0,
    crashes     BIGINT   NOT NULL DEFAULT 0,
    suspect     BOOLEAN  NOT NULL DEFAULT FALSE,
    redrive     BIGINT   NOT NULL DEFAULT 0,
    -- Of a claim: who holds it until when, and how (0 beside others, 1 suspect, 2 alone).
    owner       BYTEA,
    lease_until BIGINT,
    mode        SMALLINT,
    -- Of a deferred key: the attempt that its copy asks for.
    attempt     BIGINT
);

CREATE INDEX consumer_dedup_expires_at ON consumer_dedup (expires_at);

CREATE TABLE consumer_parked (
    key_hash   BYTEA  NOT NULL PRIMARY KEY,
    version    BIGINT NOT NULL DEFAULT 1,
    -- The hashes of the messages that wait, 16 bytes each, in their order.
    ids        BYTEA  NOT NULL,
    -- When the first one comes back; 0 where that is not known.
    until      BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE INDEX consumer_parked_expires_at ON consumer_parked (expires_at);
