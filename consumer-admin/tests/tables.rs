//! Outbox, inbox and migrations as an operator calls them, on an SQLite file.

#![allow(clippy::unwrap_used, reason = "the helpers of tests panic as tests do")]

use std::{
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

struct File {
    folder: tempfile::TempDir,
}

impl File {
    /// With tables, and in its outbox: two rows that wait, two that are quarantined, one held behind one of them.
    async fn new() -> Self {
        let file = Self { folder: tempfile::tempdir().unwrap() };
        let output = file.admin("migrate --tables-prefix shop_");
        assert!(output.status.success(), "{}", said(&output));
        file.execute(
            r#"INSERT INTO shop_outbox (destination, message_id, message_key, headers, payload, state, attempts, error) VALUES
               ('orders', 'm-1', x'61', '[["tenant","t-1"]]', x'7b226e223a317d', 2, 10, 'no such queue: orders'),
               ('orders', 'm-2', x'61', '[]', x'7b7d', 1, 0, NULL),
               ('orders', 'm-3', x'62', 'no json', x'ff00', 2, 1, 'the headers cannot be read'),
               ('mails', 'm-4', x'61', '[]', x'7b7d', 0, 0, NULL),
               ('mails', 'm-5', NULL, '[]', NULL, 0, 0, NULL)"#,
        )
        .await;
        file
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("orders.db")
    }

    async fn execute(&self, sql: &str) {
        let mut connection =
            SqliteConnection::connect(&format!("sqlite:{}", self.path().display())).await.unwrap();
        sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }

    fn admin(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_consumer-admin"));
        command.args(arguments.split(' ')).env_clear();
        command.env("DATABASE_URL", format!("sqlite:{}", self.path().display())).output().unwrap()
    }

    /// What it prints, with the tables that are there.
    fn text(&self, arguments: &str) -> String {
        let output = self.admin(&format!("{arguments} --tables-prefix shop_"));
        assert!(output.status.success(), "{arguments}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &str) -> Vec<Value> {
        let text = self.text(&format!("{arguments} --output json"));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn fails(&self, arguments: &str, code: i32, word: &str) {
        let output = self.admin(&format!("{arguments} --tables-prefix shop_"));
        let said = said(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {said}");
        assert!(said.contains(word), "{arguments}: {said}");
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn ids(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_outbox_is_counted_listed_and_shown() {
    let file = File::new().await;
    let stats = file.json("outbox stats");
    assert_eq!(
        (&stats[0]["waiting"], &stats[0]["held"], &stats[0]["quarantined"]),
        (&2.into(), &1.into(), &2.into())
    );
    assert_eq!(stats[1], serde_json::json!({ "destination": "mails", "state": "waiting", "count": 2 }));
    assert!(stats.iter().any(|it| it["error"] == "no such queue: orders" && it["count"] == 1), "{stats:?}");
    let table = file.text("outbox stats");
    assert!(
        table.starts_with("2 waiting, the oldest for ") && table.contains("1 held, 2 quarantined"),
        "{table}"
    );

    assert_eq!(ids(&file.json("outbox list")), ["m-1", "m-2", "m-3", "m-4", "m-5"]);
    assert_eq!(ids(&file.json("outbox list --state quarantined")), ["m-1", "m-3"]);
    assert_eq!(ids(&file.json("outbox list --destination orders --key a")), ["m-1", "m-2"]);
    assert_eq!(ids(&file.json("outbox list --error queue")), ["m-1"]);
    assert_eq!(ids(&file.json("outbox list --limit 2")), ["m-1", "m-2"]);
    let row = &file.json("outbox list --id m-1")[0];
    assert_eq!(
        (&row["state"], &row["key"], &row["attempts"]),
        (&"quarantined".into(), &"a".into(), &10.into())
    );
    assert!(row.get("payload").is_none(), "{row}");
    let table = file.text("outbox list --state quarantined");
    assert!(table.starts_with("ROW") && table.contains("no such queue: orders"), "{table}");
    assert_eq!(file.text("outbox list --id nobody"), "no rows\n");

    let shown = &file.json("outbox show --id m-1")[0];
    assert_eq!(shown["headers"], serde_json::json!([["tenant", "t-1"]]));
    assert_eq!(shown["payload"], r#"{"n":1}"#);
    let shown = &file.json("outbox show --row 3")[0];
    assert_eq!((&shown["headers"], &shown["payload"]["base64"]), (&"no json".into(), &"/wA=".into()));
    let text = file.text("outbox show --id m-1");
    assert!(text.contains("tenant: t-1") && text.contains("\"n\": 1"), "{text}");
    assert!(file.text("outbox show --row 3").contains("no json"));
    assert!(file.text("outbox show --id m-5").contains("tombstone"));
    file.fails("outbox show --id nobody", 1, "no row");
}

#[tokio::test]
async fn rows_are_requeued_and_purged() {
    let file = File::new().await;
    let done = file.json("outbox requeue --id m-1");
    assert_eq!(done[0], serde_json::json!({ "requeued": 1, "freed": 1 }));
    assert_eq!(ids(&file.json("outbox list --state waiting")), ["m-1", "m-2", "m-4", "m-5"]);
    file.fails("outbox requeue --state waiting", 2, "refused");

    file.fails("outbox purge", 2, "--all");
    file.fails("outbox purge --state waiting --all", 2, "--unpublished");
    file.fails("outbox purge --state published --all", 2, "--older-than");
    file.fails("outbox purge --all --older-than 1d", 2, "--state published");
    let done = file.json("outbox purge --all");
    assert_eq!(done[0], serde_json::json!({ "purged": 1, "freed": 0 }));
    let done = file.json("outbox purge --state waiting --unpublished --destination mails");
    assert_eq!(done[0]["purged"], 2);
    file.execute("UPDATE shop_outbox SET state = 3, published_at = created_at").await;
    assert_eq!(
        file.text("outbox purge --state published --older-than 1h"),
        "0 rows purged, 0 freed behind them\n"
    );
    assert_eq!(
        file.text("outbox purge --state published --older-than 0s"),
        "2 rows purged, 0 freed behind them\n"
    );
}

#[tokio::test]
async fn many_rows_are_not_changed_without_a_question() {
    let file = File::new().await;
    file.execute(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 101) \
         INSERT INTO shop_outbox (destination, message_id, state) SELECT 'many', 'many-' || n, 2 FROM n",
    )
    .await;
    file.fails("outbox requeue --destination many", 1, "--yes");
    file.fails("outbox purge --destination many", 1, "--yes");
    assert_eq!(file.json("outbox list --state quarantined").len(), 103);
    assert_eq!(file.json("outbox requeue --destination many --yes")[0]["requeued"], 101);
    file.fails("outbox purge --destination many --unpublished", 1, "--yes");
    assert_eq!(file.json("outbox purge --destination many --unpublished --yes")[0]["purged"], 101);

    file.execute(
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 101) \
         INSERT INTO shop_inbox (key_hash, consumer, idempotency_key, recorded_at) \
         SELECT randomblob(16), 'mail', CAST('id-' || n AS BLOB), 0 FROM n",
    )
    .await;
    file.fails("inbox purge --consumer mail --older-than 1d", 1, "take effect again");
    assert_eq!(file.json("inbox purge --consumer mail --older-than 1d --yes")[0]["purged"], 101);
}

#[tokio::test]
async fn an_inbox_is_counted_listed_and_purged() {
    let file = File::new().await;
    assert_eq!(file.text("inbox stats"), "no records\n");
    file.execute(
        "INSERT INTO shop_inbox (key_hash, consumer, idempotency_key, recorded_at) VALUES \
         (x'01', 'mail', CAST('old' AS BLOB), 0), (x'02', 'mail', CAST('new' AS BLOB), 4102444800000), \
         (x'03', 'bill', x'ff', 0)",
    )
    .await;
    let stats = file.json("inbox stats");
    assert_eq!(stats[1]["count"], 2);
    assert_eq!(
        (&stats[1]["oldest"], &stats[1]["consumer"]),
        (&"1970-01-01T00:00:00.000Z".into(), &"mail".into())
    );
    assert!(file.text("inbox stats").contains("2100-01-01T00:00:00Z"));
    let listed = file.json("inbox list --consumer mail");
    assert_eq!(listed.iter().map(|it| &it["key"]).collect::<Vec<_>>(), ["new", "old"]);
    assert_eq!(file.json("inbox list --consumer bill")[0]["key"]["base64"], "/w==");
    file.fails("inbox purge --consumer mail", 2, "--older-than");
    file.fails("inbox purge --older-than 1d", 2, "--consumer");
    assert_eq!(file.text("inbox purge --consumer mail --older-than 1d"), "1 records purged\n");
    assert_eq!(file.text("inbox purge --consumer mail --key nobody"), "0 records purged\n");
    assert_eq!(file.json("inbox list").len(), 2);
}

#[tokio::test]
async fn migrations_are_run_or_printed() {
    let file = File { folder: tempfile::tempdir().unwrap() };
    let printed = file.text("migrate --print");
    assert!(printed.contains("CREATE TABLE shop_outbox") && !file.path().exists(), "{printed}");
    let printed = file.admin("migrate --print --database postgres://h/d --tables-schema shop");
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.starts_with("CREATE SCHEMA IF NOT EXISTS shop;"), "{printed}");
    assert!(printed.contains("CREATE TABLE shop.consumer_outbox"), "{printed}");
    file.fails("outbox stats", 1, "orders.db cannot be opened");
    for _ in 0..2 {
        assert_eq!(file.text("migrate"), "the tables are of this version\n");
    }
    assert_eq!(file.json("outbox stats").len(), 1);
    let output = file.admin("outbox stats");
    assert!(
        said(&output).contains("consumer-admin migrate") && output.status.code() == Some(1),
        "{}",
        said(&output)
    );
}
