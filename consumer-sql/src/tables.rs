//! Where the tables are.

use std::{borrow::Cow, fmt};

use crate::SqlError;

/// What lies in the schema, by the names with which the migrations and the statements of this crate are written.
const IN_SCHEMA: [&str; 6] = [
    "consumer_dedup",
    "consumer_parked",
    "consumer_inbox",
    "consumer_outbox",
    "consumer_migrations",
    "consumer_notify",
];
const PREFIX: &str = "consumer_";
/// PostgreSQL cuts names at 63 bytes; the longest of ours has 30 behind the prefix.
const LONGEST: usize = 32;

/// Where the tables are: a schema (PostgreSQL only), and what their names begin with.
///
/// By default they are `consumer_inbox`, `consumer_outbox` and so on, wherever the connection looks for tables without a
/// schema.
///
/// ```
/// use consumer_sql::Tables;
///
/// // messaging.billing_outbox and so on
/// let tables = Tables::new().in_schema("messaging")?.with_prefix("billing_")?;
/// # Ok::<_, consumer_sql::SqlError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[must_use]
pub struct Tables {
    schema: Option<Cow<'static, str>>,
    prefix: Cow<'static, str>,
}

impl Tables {
    /// The default names.
    pub fn new() -> Self {
        Self { schema: None, prefix: Cow::Borrowed(PREFIX) }
    }

    /// In a schema; [`migrate`](crate::migrate) creates it. SQLite has none.
    ///
    /// # Errors
    /// With `is_config()` for anything but lower-case letters, digits and underscores, at most 32 of them, a digit not
    /// first.
    pub fn in_schema(mut self, schema: impl Into<String>) -> Result<Self, SqlError> {
        self.schema = Some(name("schema", schema.into())?);
        Ok(self)
    }

    /// With another prefix than `consumer_`.
    ///
    /// # Errors
    /// As [`in_schema`](Self::in_schema).
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Result<Self, SqlError> {
        self.prefix = name("prefix", prefix.into())?;
        Ok(self)
    }

    /// The schema, where one was given.
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The name of the table that is `consumer_…` by default, without its schema.
    pub(crate) fn bare(&self, table: &str) -> String {
        format!("{}{}", self.prefix, table.strip_prefix(PREFIX).unwrap_or(table))
    }

    /// A statement written with the default names, with these. Indexes and triggers get only
    /// the prefix, since they are where their table is.
    pub(crate) fn in_sql(&self, sql: &str) -> String {
        let mut out = String::with_capacity(sql.len() + 32);
        let mut rest = sql;
        while let Some(at) = rest.find(PREFIX) {
            let starts_a_word = !rest[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
            let (before, found) = rest.split_at(at);
            out.push_str(before);
            let end = found.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(found.len());
            let (word, behind) = found.split_at(end);
            if starts_a_word {
                if let Some(schema) = self.schema.as_deref().filter(|_| IN_SCHEMA.contains(&word)) {
                    out.push_str(schema);
                    out.push('.');
                }
                out.push_str(&self.bare(word));
            } else {
                out.push_str(word);
            }
            rest = behind;
        }
        out.push_str(rest);
        out
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}*", self.prefix),
            None => write!(f, "{}*", self.prefix),
        }
    }
}

/// Names go into the text of statements: nothing that would need quotes is let through.
fn name(what: &str, name: String) -> Result<Cow<'static, str>, SqlError> {
    let is_fine = (1..=LONGEST).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit());
    if is_fine {
        return Ok(Cow::Owned(name));
    }
    let shown: String = name.chars().take(LONGEST).collect();
    let cut = if shown.len() < name.len() { "…" } else { "" };
    Err(SqlError::config(format!(
        "the {what} `{}{cut}` cannot be used: it has to be 1 to {LONGEST} lower-case letters, digits and underscores, no digit first",
        shown.escape_debug()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_get_the_names() {
        let sql = "CREATE INDEX consumer_outbox_waiting ON consumer_outbox (id); SELECT my_consumer_outbox FROM consumer_inbox";
        assert_eq!(Tables::new().in_sql(sql), sql);
        let tables = Tables::new().with_prefix("billing_").unwrap().in_schema("m2").unwrap();
        assert_eq!(
            tables.in_sql(sql),
            "CREATE INDEX billing_outbox_waiting ON m2.billing_outbox (id); SELECT my_consumer_outbox FROM m2.billing_inbox"
        );
        assert_eq!(tables.to_string(), "m2.billing_*");
    }

    #[test]
    fn what_would_need_quotes_is_refused() {
        for bad in ["", "Messaging", "a-b", "a;drop table x", "a\"b", "1a", "ä", &"a".repeat(33)] {
            assert!(Tables::new().in_schema(bad).unwrap_err().is_config(), "{bad}");
            assert!(Tables::new().with_prefix(bad).unwrap_err().is_config(), "{bad}");
        }
        let long = Tables::new().with_prefix("\u{10}".repeat(10_000)).unwrap_err().to_string();
        assert!(long.contains("…`") && long.len() < 400, "{long}");
    }
}
