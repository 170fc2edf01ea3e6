//! What can go wrong with a database, and what to do about it.

use std::fmt;

use consumer_core::BoxError;

/// A database that does not do what it was asked for.
///
/// The message says what to do where that is known. It holds no password.
pub struct SqlError {
    kind: Kind,
    message: String,
    source: Option<BoxError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Config,
    Schema,
    Denied,
    Unavailable,
    Other,
}

impl SqlError {
    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self { kind: Kind::Config, message: message.into(), source: None }
    }

    pub(crate) fn other(message: &str, source: impl Into<BoxError>) -> Self {
        Self { kind: Kind::Other, message: message.to_owned(), source: Some(source.into()) }
    }

    /// `doing` is what was tried, as in "the outbox cannot be read".
    pub(crate) fn driver(doing: impl fmt::Display, error: sqlx::Error) -> Self {
        let (kind, advice) = advice(&error);
        let message = match advice {
            Some(advice) => format!("{doing}: {advice}"),
            None => doing.to_string(),
        };
        Self { kind, message, source: Some(error.into()) }
    }

    pub(crate) fn migration(doing: impl fmt::Display, error: sqlx::migrate::MigrateError) -> Self {
        use sqlx::migrate::MigrateError as M;
        let advice = match error {
            M::Execute(error) | M::ExecuteMigration(error, _) => {
                let mut failed = Self::driver(&doing, error);
                if failed.kind == Kind::Denied {
                    failed.message = format!("{doing}: {MAY_NOT_CREATE}");
                }
                return failed;
            }
            M::VersionMissing(_) => {
                "they were made by a later version of this crate, which this one does not know"
            }
            M::VersionMismatch(_) => "they differ from those of this version: were they changed by hand?",
            M::Dirty(_) => "a migration was begun and not finished: see the table of migrations",
            _ => "the migrations cannot be run",
        };
        Self { kind: Kind::Schema, message: format!("{doing}: {advice}"), source: Some(error.into()) }
    }

    fn database(&self) -> Option<&dyn sqlx::error::DatabaseError> {
        self.source.as_ref()?.downcast_ref::<sqlx::Error>()?.as_database_error()
    }

    /// Whether there is no transaction any more, or another one, where the caller's should be.
    pub(crate) fn is_transaction_gone(&self) -> bool {
        self.database().is_some_and(|error| match error.code().as_deref() {
            Some("25P01" | "3B001") => true,
            Some("1") => ["no such savepoint", "no transaction is active"]
                .iter()
                .any(|gone| error.message().contains(gone)),
            _ => false,
        })
    }

    /// Whether another transaction was in the way for too long, or a time limit ended the wait for it.
    pub(crate) fn is_contended(&self) -> bool {
        let code = self.database().and_then(|error| error.code());
        matches!(code.as_deref(), Some("40001" | "40P01" | "55P03" | "57014"))
    }

    /// Whether the server only reads: a standby, or a primary that has been demoted.
    pub(crate) fn is_standby(&self) -> bool {
        self.database().and_then(|error| error.code()).as_deref() == Some("25006")
    }

    /// Whether it was found without asking the database: trying again cannot help.
    pub fn is_config(&self) -> bool {
        self.kind == Kind::Config
    }

    /// Whether tables are missing, or are those of another version. The message names what to run.
    pub fn is_schema(&self) -> bool {
        self.kind == Kind::Schema
    }

    /// Whether the user may not do this: a wrong password, a missing right, a file that cannot be opened, a database that is read only.
    pub fn is_denied(&self) -> bool {
        self.kind == Kind::Denied
    }

    /// Whether it may pass: the server is away, all connections are taken, or another process has the file.
    pub fn is_unavailable(&self) -> bool {
        self.kind == Kind::Unavailable
    }
}

const MIGRATE: &str =
    "its tables are missing or of another version: run `consumer-admin migrate`, or `consumer_sql::migrate`";
const DENIED: &str = "the user may not do this: it needs SELECT, INSERT, UPDATE and DELETE on these tables";
const MAY_NOT_CREATE: &str = "the user may not create tables there, or their schema: let their owner run `consumer-admin migrate` once";
const READ_ONLY: &str = "the database is read only: is it a standby, or a file without write permission?";
const AWAY: &str = "the server cannot be reached, or is going down";

/// Why the server's certificate is not trusted, if the driver's words (those of rustls) are about that.
fn distrust(words: &str) -> Option<&'static str> {
    const WHY: [(&str, &str); 4] = [
        (
            "certificate expired",
            "the server's certificate has expired: renew it, or see whether the clock here is right",
        ),
        ("certificate not valid yet", "the server's certificate is not valid yet: is the clock here right?"),
        (
            "not valid for name",
            "the server's certificate is not for this name: connect by a name that is in it",
        ),
        (
            "UnknownIssuer",
            "the server's certificate is from an authority that is not trusted: name the file with that authority's \
             certificate by `sslrootcert` in the url",
        ),
    ];
    WHY.iter().find(|(sign, _)| words.contains(sign)).map(|(_, why)| *why)
}

fn advice(error: &sqlx::Error) -> (Kind, Option<&'static str>) {
    match error {
        sqlx::Error::PoolTimedOut => {
            let advice = "every connection of the pool is taken: is it smaller than what runs at once?";
            (Kind::Unavailable, Some(advice))
        }
        sqlx::Error::Io(error) => (Kind::Unavailable, Some(distrust(&error.to_string()).unwrap_or(AWAY))),
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => (Kind::Unavailable, Some(AWAY)),
        sqlx::Error::Configuration(_) => (Kind::Config, Some("the url cannot be read")),
        sqlx::Error::Database(error) => {
            let code = error.code();
            let code = code.as_deref().unwrap_or_default();
            if is_sqlite(code) { sqlite(code, error.message()) } else { postgres(code) }
        }
        _ => (Kind::Other, None),
    }
}

/// SQLite's codes are numbers of up to four digits, SQLSTATEs have five characters.
fn is_sqlite(code: &str) -> bool {
    code.len() < 5
}

/// By SQLSTATE (PostgreSQL documentation, appendix A).
fn postgres(code: &str) -> (Kind, Option<&'static str>) {
    match code {
        "42P01" | "42703" | "3F000" => (Kind::Schema, Some(MIGRATE)),
        "42501" => (Kind::Denied, Some(DENIED)),
        "25006" => (Kind::Denied, Some(READ_ONLY)),
        "28P01" | "28000" => (Kind::Denied, Some("the server refuses the user or the password")),
        "3D000" => (Kind::Schema, Some("there is no such database: create it, or correct the url")),
        "55P03" => (
            Kind::Unavailable,
            Some(
                "another transaction (a relay's, an administrator's) has these rows for too long: try again",
            ),
        ),
        "53300" => (Kind::Unavailable, Some("the server has no connection left: see its max_connections")),
        "53100" => (Kind::Unavailable, Some("the disk of the server is full")),
        code if code.starts_with("53") => (Kind::Unavailable, Some("the server is short of resources")),
        code if code.starts_with("57P0") || code.starts_with("08") => (Kind::Unavailable, Some(AWAY)),
        _ => (Kind::Other, None),
    }
}

/// By result code; extended ones have the primary one in their low byte (sqlite.org/rescode.html).
fn sqlite(code: &str, message: &str) -> (Kind, Option<&'static str>) {
    match code.parse::<u32>().unwrap_or_default() & 0xff {
        1 if ["no such table", "no such column"].iter().any(|missing| message.contains(missing)) => {
            (Kind::Schema, Some(MIGRATE))
        }
        3 | 8 | 23 => (Kind::Denied, Some(READ_ONLY)),
        5 | 6 => (Kind::Unavailable, Some("another process has the file for too long")),
        13 => (Kind::Unavailable, Some("the disk is full")),
        14 => (
            Kind::Config,
            Some("the file cannot be opened: is the path right, and may this user write there?"),
        ),
        26 => (Kind::Other, Some("the file is no SQLite database")),
        _ => (Kind::Other, None),
    }
}

impl fmt::Debug for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlError")
            .field("kind", &self.kind)
            .field("message", &self.message)
            .field("source", &self.source)
            .finish()
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for SqlError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|error| error as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_is_short_of_may_pass() {
        for code in ["53000", "53100", "53200", "53300"] {
            assert_eq!(postgres(code).0, Kind::Unavailable, "{code}");
        }
    }

    #[test]
    fn only_missing_tables_are_to_be_migrated() {
        assert_eq!(sqlite("1", "no such table: consumer_inbox").0, Kind::Schema);
        assert_eq!(sqlite("1", "no such column: fingerprint").0, Kind::Schema);
        assert_eq!(sqlite("1", "no such savepoint: consumer_message").0, Kind::Other);
    }
}
