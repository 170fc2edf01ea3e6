//! The message: an order that was placed.

use serde::{Deserialize, Serialize};

/// What the shop publishes. Anything else is undecodable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OrderPlaced {
    pub(crate) order_id: String,
    pub(crate) email: String,
    /// In cents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) total: Option<i64>,
}

impl OrderPlaced {
    pub(crate) fn to_json(&self) -> Vec<u8> {
        // Plain data, whose conversion cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_and_address_are_required_strings_and_the_total_is_optional() {
        let read = |text: &str| serde_json::from_str::<OrderPlaced>(text);
        assert_eq!(
            read(r#"{"order_id":"o-17","email":"ann@example.com","total":1999}"#).unwrap().total,
            Some(1999)
        );
        assert_eq!(read(r#"{"order_id":"o-17","email":"ann@example.com"}"#).unwrap().total, None);
        assert!(read(r#"{"order_id":"o-17","email":"ann@example.com","more":true}"#).is_ok());
        for wrong in [
            "",
            "null",
            "[]",
            r#"{"order_id":"o-17"}"#,
            r#"{"order_id":17,"email":"ann@example.com"}"#,
            r#"{"order_id":"o-17","email":null}"#,
            r#"{"order_id":"o-17","email":"ann@example.com","total":"much"}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
