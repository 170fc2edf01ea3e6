-- Messages to be published, written in the transaction of the business change. Any program may write a row:
--   INSERT INTO consumer_outbox (destination, message_id, message_key, headers, payload) VALUES (?, ?, ?, ?, ?)
-- The rest is the relay's. Times are milliseconds since the Unix epoch.

CREATE TABLE consumer_outbox (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The topic or queue.
    destination  TEXT    NOT NULL CHECK (typeof(destination) = 'text'),
    -- Stays the same however often it is published: consumers deduplicate by it.
    message_id   TEXT    NOT NULL CHECK (typeof(message_id) = 'text'),
    -- Rows of one destination and key are published in the order of their ids; those without one in any order.
    -- A blob and nothing else: SQLite takes the text 'k' and the blob x'6b' for two keys.
    message_key  BLOB    CHECK (typeof(message_key) IN ('blob', 'null')),
    -- [["name", "value"], …]; a value that is no text is {"base64": "…"}, one that is null is null.
    headers      TEXT    NOT NULL DEFAULT '[]' CHECK (typeof(headers) = 'text'),
    -- NULL is a tombstone.
    payload      BLOB    CHECK (typeof(payload) IN ('blob', 'text', 'null')),
    created_at   INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)),
    -- 0 waiting, 1 held behind an earlier one of its key, 2 failed (quarantined where due_at is null), 3 published.
    state        INTEGER NOT NULL DEFAULT 0 CHECK (state BETWEEN 0 AND 3),
    attempts     INTEGER NOT NULL DEFAULT 0,
    due_at       INTEGER,
    error        TEXT,
    published_at INTEGER
);

CREATE INDEX consumer_outbox_waiting ON consumer_outbox (id) WHERE state = 0;
CREATE INDEX consumer_outbox_blocked ON consumer_outbox (destination, message_key, id) WHERE state IN (1, 2);
CREATE INDEX consumer_outbox_due ON consumer_outbox (due_at) WHERE state = 2 AND due_at IS NOT NULL;
CREATE INDEX consumer_outbox_published ON consumer_outbox (published_at) WHERE state = 3;
