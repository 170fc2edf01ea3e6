//! Headers as JSON: `[["name", "value"], …]`, in their order; a value that is no text is `{"base64": "…"}`, one that is
//! null is null. What people write by hand, an object of names and values, is read as well.

use base64::{Engine, prelude::BASE64_STANDARD};
use consumer_core::Headers;
use serde_json::{Value, json};

const BASE64: &str = "base64";

pub(crate) fn write(headers: &Headers) -> String {
    let value = |value: Option<&bytes::Bytes>| match value {
        None => Value::Null,
        Some(value) => match std::str::from_utf8(value) {
            Ok(text) => text.into(),
            Err(_) => json!({ BASE64: BASE64_STANDARD.encode(value) }),
        },
    };
    let all: Vec<_> = headers.iter().map(|(name, it)| json!([name, value(it)])).collect();
    Value::Array(all).to_string()
}

pub(crate) fn read(text: &str) -> Result<Headers, String> {
    let wrong = |what: String| format!("the headers cannot be read: {what}");
    let value = serde_json::from_str(text).map_err(|error| wrong(format!("no JSON: {error}")))?;
    let mut headers = Headers::new();
    match value {
        Value::Array(all) => {
            for (at, header) in all.into_iter().enumerate() {
                let Value::Array(pair) = header else {
                    return Err(wrong(format!("entry {at} is no array of a name and a value")));
                };
                let [Value::String(name), value] = &pair[..] else {
                    return Err(wrong(format!("entry {at} is no array of a name and a value")));
                };
                append(&mut headers, name, value).map_err(wrong)?;
            }
        }
        Value::Object(all) => {
            for (name, value) in &all {
                append(&mut headers, name, value).map_err(wrong)?;
            }
        }
        _ => return Err(wrong("neither an array nor an object".to_owned())),
    }
    Ok(headers)
}

fn append(headers: &mut Headers, name: &str, value: &Value) -> Result<(), String> {
    match value {
        Value::Null => headers.append_null(name.to_owned()),
        Value::String(text) => headers.append(name.to_owned(), text.clone()),
        Value::Number(number) => headers.append(name.to_owned(), number.to_string()),
        Value::Bool(value) => headers.append(name.to_owned(), value.to_string()),
        Value::Object(object) => match (object.len(), object.get(BASE64)) {
            (1, Some(Value::String(text))) => {
                let raw = BASE64_STANDARD
                    .decode(text)
                    .map_err(|error| format!("`{name}` is no base64: {error}"))?;
                headers.append(name.to_owned(), raw);
            }
            _ => return Err(format!("`{name}` is an object, and no {{\"base64\": \"…\"}}")),
        },
        Value::Array(_) => return Err(format!("`{name}` is an array")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_they_were() {
        let mut headers = Headers::new();
        headers.append("a", "1");
        headers.append("a", "2");
        headers.append("raw", vec![0xff, 0x00]);
        headers.append_null("none");
        headers.append("text", "\"quoted\", ümlaut");
        let read = read(&write(&headers)).unwrap();
        assert_eq!(read.iter().collect::<Vec<_>>(), headers.iter().collect::<Vec<_>>());
    }

    #[test]
    fn what_others_write_is_read_or_told_apart() {
        let object = read(r#"{"tenant":"t-1","tries":3}"#).unwrap();
        assert_eq!((object.get_str("tenant"), object.get_str("tries")), (Some("t-1"), Some("3")));
        for (bad, word) in [
            ("{", "no JSON"),
            ("3", "neither"),
            (r#"[["a"]]"#, "entry 0"),
            (r#"[["a","1"],"b"]"#, "entry 1"),
            (r#"{"a":["x"]}"#, "`a`"),
            (r#"[["a",{"base64":"%"}]]"#, "base64"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
