-- The messages whose effect is in this database: one row for each consumer and idempotency key, written in the transaction
-- of the effect. Times are milliseconds since the Unix epoch.

CREATE TABLE consumer_inbox (
    -- XXH3-128 of consumer and key, big endian.
    key_hash        BLOB    NOT NULL PRIMARY KEY,
    consumer        TEXT    NOT NULL,
    idempotency_key BLOB    NOT NULL,
    -- XXH3-128 of the payload; another one under the same key is a conflict.
    fingerprint     BLOB,
    recorded_at     INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER))
) WITHOUT ROWID;

-- For the retention, which each consumer has for itself.
CREATE INDEX consumer_inbox_recorded_at ON consumer_inbox (consumer, recorded_at);
