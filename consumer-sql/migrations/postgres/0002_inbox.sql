-- The messages whose effect is in this database: one row for each consumer and idempotency key, written in the transaction
-- of the effect.

CREATE TABLE consumer_inbox (
    -- XXH3-128 of consumer and key, big endian.
    key_hash        BYTEA       NOT NULL PRIMARY KEY,
    consumer        TEXT        NOT NULL,
    idempotency_key BYTEA       NOT NULL,
    -- XXH3-128 of the payload; another one under the same key is a conflict.
    fingerprint     BYTEA,
    recorded_at     TIMESTAMPTZ NOT NULL DEFAULT now()
);

-- For the retention, which each consumer has for itself.
CREATE INDEX consumer_inbox_recorded_at ON consumer_inbox (consumer, recorded_at);
