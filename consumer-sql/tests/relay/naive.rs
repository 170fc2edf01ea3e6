//! What people write by hand: a relay that remembers how far it has come. It fails where ours does not.

use consumer_core::{Message, Outgoing, Publisher, memory::MemoryPublisher};
use sqlx::{AssertSqlSafe, Row};

use crate::database::{OnPostgres, TestDatabase};

pub(crate) struct NaiveRelay {
    publisher: MemoryPublisher,
    /// The last id that was published.
    cursor: i64,
}

impl NaiveRelay {
    pub(crate) fn new(publisher: MemoryPublisher) -> Self {
        Self { publisher, cursor: 0 }
    }

    /// Publishes what is behind the cursor, one after another; ends at the first that cannot be.
    pub(crate) async fn round(&mut self, database: &OnPostgres) {
        let next =
            "SELECT id, destination, message_id, message_key, payload FROM OUTBOX WHERE id > $1 ORDER BY id";
        let rows = sqlx::query(AssertSqlSafe(database.sql(next))).bind(self.cursor);
        for row in rows.fetch_all(database.pool()).await.unwrap() {
            let message = Message::builder()
                .payload(row.get::<Vec<u8>, _>("payload"))
                .key(row.get::<Vec<u8>, _>("message_key"))
                .id(row.get::<String, _>("message_id"));
            let outgoing = Outgoing::new(row.get::<String, _>("destination"), message.build());
            if self.publisher.publish(outgoing).await.is_err() {
                return;
            }
            self.cursor = row.get("id");
        }
    }
}
