//! The caller's trace context, W3C Trace Context level 1, as headers of the event.

use axum::http::HeaderMap;
use consumer::{Headers, message::wire};

/// `traceparent` and `tracestate` of the request. One that is malformed is dropped, and the other with it.
pub(crate) fn context(caller: &HeaderMap) -> Headers {
    let mut context = Headers::new();
    let mut parents = caller.get_all(wire::TRACEPARENT).iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else { return context };
    let Some(parent) = parent.to_str().ok().filter(|parent| is_valid(parent)) else { return context };
    context.append(wire::TRACEPARENT, parent.to_owned());
    // A list, which may come in several headers.
    let states: Vec<_> =
        caller.get_all(wire::TRACESTATE).iter().filter_map(|state| state.to_str().ok()).collect();
    if !states.is_empty() {
        context.append(wire::TRACESTATE, states.join(","));
    }
    context
}

/// version-traceid-parentid-flags in lower-case hex; neither id is zero. Later versions may go on after that.
fn is_valid(parent: &str) -> bool {
    let hex = |part: &str, length| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
    };
    let is_zero = |part: &str| part.bytes().all(|b| b == b'0');
    let parts: Vec<&str> = parent.split('-').collect();
    let [version, trace, span, flags, rest @ ..] = &parts[..] else { return false };
    hex(version, 2)
        && *version != "ff"
        && (rest.is_empty() || *version != "00")
        && hex(trace, 32)
        && !is_zero(trace)
        && hex(span, 16)
        && !is_zero(span)
        && hex(flags, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_parent_is_no_parent() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(is_valid(good));
        assert!(is_valid(&format!("{}-more", good.replace("00-", "01-"))));
        for bad in [
            "",
            "00",
            &format!("{good}-more"),
            &good.replace("00-", "ff-"),
            &good.to_uppercase(),
            &good.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &good.replace("b7ad6b7169203331", &"0".repeat(16)),
            &good.replace("-01", "-1"),
        ] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
