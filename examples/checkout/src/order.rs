//! What a client may order, and what is wrong with it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

const LONGEST_ID: usize = 64;
/// RFC 5321, section 4.5.3.1.3, less the brackets.
const LONGEST_EMAIL: usize = 254;
/// In cents. Millions of orders of this size fit into a balance of 64 bits.
const LARGEST_TOTAL: i64 = 1_000_000_000_000;

/// What a client asks for: checked, but without an id yet where it gave none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) order_id: Option<String>,
    pub(crate) email: String,
    /// In cents.
    pub(crate) total: i64,
}

/// An order, and the payload of its event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) order_id: String,
    pub(crate) email: String,
    pub(crate) total: i64,
}

/// One thing that is wrong with a field.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Reason {
    pub(crate) field: &'static str,
    pub(crate) reason: String,
}

impl Wanted {
    /// # Errors
    /// With everything that is wrong, so that a client can repair it at once.
    pub(crate) fn read(body: &Value) -> Result<Self, Vec<Reason>> {
        let Some(fields) = body.as_object() else {
            return Err(vec![Reason { field: "", reason: "an order is a JSON object".to_owned() }]);
        };
        match (order_id(fields), email(fields), total(fields)) {
            (Ok(order_id), Ok(email), Ok(total)) => Ok(Self { order_id, email, total }),
            (order_id, email, total) => {
                let wrong = [("order_id", order_id.err()), ("email", email.err()), ("total", total.err())];
                let reason = |(field, reason): (_, Option<String>)| Some(Reason { field, reason: reason? });
                Err(wrong.into_iter().filter_map(reason).collect())
            }
        }
    }

    /// The same request gives the same order, whichever process makes it: the key decides the id where there is one.
    pub(crate) fn order(self, key: Option<&str>) -> Order {
        let order_id = self.order_id.unwrap_or_else(|| match key {
            Some(key) => format!("o-{key}"),
            None => format!("o-{}", uuid::Uuid::now_v7()),
        });
        Order { order_id, email: self.email, total: self.total }
    }
}

impl Order {
    /// Names the effect: an order is placed once, however often that is said.
    pub(crate) fn message_id(&self) -> String {
        format!("placed-{}", self.order_id)
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        // Strings and a number: their conversion cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// What may stand in a URL and in a message id as it is.
pub(crate) fn is_plain(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !id.is_empty() && id.len() <= LONGEST_ID && id.chars().all(plain)
}

fn order_id(fields: &Map<String, Value>) -> Result<Option<String>, String> {
    match fields.get("order_id") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(id)) if is_plain(id) => Ok(Some(id.clone())),
        Some(_) => {
            Err(format!("left out, or 1 to {LONGEST_ID} letters, digits, `-`, `_` and `.` as a string"))
        }
    }
}

fn email(fields: &Map<String, Value>) -> Result<String, String> {
    let email = fields.get("email").ok_or("is required")?.as_str().ok_or("is a string")?;
    // Whether somebody reads it there, only a mail can tell.
    let parts = email
        .split_once('@')
        .filter(|(local, domain)| !local.is_empty() && !domain.is_empty() && !domain.contains('@'));
    let odd = |c: char| c.is_whitespace() || c.is_control();
    if parts.is_none() || email.len() > LONGEST_EMAIL || email.contains(odd) {
        return Err("is no mail address".to_owned());
    }
    Ok(email.to_owned())
}

fn total(fields: &Map<String, Value>) -> Result<i64, String> {
    let total = fields.get("total").ok_or("is required")?;
    total
        .as_i64()
        .filter(|total| (1..=LARGEST_TOTAL).contains(total))
        .ok_or_else(|| format!("is a whole number of cents, 1 to {LARGEST_TOTAL}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wrong(body: Value) -> Vec<&'static str> {
        Wanted::read(&body).unwrap_err().into_iter().map(|reason| reason.field).collect()
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once() {
        assert_eq!(wrong(json!([])), [""]);
        assert_eq!(wrong(json!({})), ["email", "total"]);
        let all = json!({"order_id": "a/b", "email": "ann", "total": -1});
        assert_eq!(wrong(all), ["order_id", "email", "total"]);
        for email in
            [json!(1), json!(""), json!("@h"), json!("a@"), json!("a@b@c"), json!("a b@h"), json!("a@h\n")]
        {
            assert_eq!(wrong(json!({"email": email, "total": 1})), ["email"], "{email}");
        }
        for total in
            [json!(0), json!(1.5), json!("1"), json!(null), json!(LARGEST_TOTAL + 1), json!(u64::MAX)]
        {
            assert_eq!(wrong(json!({"email": "a@h", "total": total})), ["total"], "{total}");
        }
        for id in [json!(""), json!(1), json!("ä"), json!("x".repeat(65))] {
            assert_eq!(wrong(json!({"email": "a@h", "total": 1, "order_id": id})), ["order_id"], "{id}");
        }
    }

    #[test]
    fn the_key_decides_the_id_that_the_client_leaves_out() {
        let read = |body| Wanted::read(&body).unwrap();
        let without = || read(json!({"email": "a@h", "total": 1}));
        assert_eq!(without().order(Some("17")), without().order(Some("17")));
        assert_eq!(without().order(Some("17")).order_id, "o-17");
        assert_ne!(without().order(None), without().order(None));
        let with = read(json!({"order_id": "mine", "email": "a@h", "total": 1}));
        assert_eq!(with.order(Some("17")).message_id(), "placed-mine");
    }

    #[test]
    fn the_payload_is_what_the_consumer_reads() {
        let order = Order { order_id: "o-17".into(), email: "ann@example.com".into(), total: 1999 };
        assert_eq!(order.to_json(), br#"{"order_id":"o-17","email":"ann@example.com","total":1999}"#);
    }
}
