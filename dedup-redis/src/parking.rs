//! The lists of parked messages as commands.

use consumer_core::dedup::{ParkOperation, ParkReply, ParkRequest};
use redis::{Cmd, Value, cmd};

use crate::{
    format,
    operation::{Sending, millis},
    scripts,
};

/// A key that is free is one native command, as nearly all of them are; everything else is the script.
fn is_native(request: &ParkRequest, contested: bool) -> bool {
    !contested && matches!(request.operation, ParkOperation::Enter { .. })
}

pub(crate) fn command(request: &ParkRequest, contested: bool, sending: &Sending<'_>, whole: bool) -> Cmd {
    let key = format::list_key(sending.prefix, &request.key);
    if is_native(request, contested) {
        let mut look = cmd("ZRANGE");
        look.arg(key).arg(0).arg(0);
        return look;
    }
    let (what, number) = match request.operation {
        ParkOperation::Enter { limit } => ("enter", u64::from(limit)),
        ParkOperation::Defer { wait } => ("defer", millis(wait)),
        ParkOperation::Leave => ("leave", 0),
    };
    let mut call = scripts::PARK.call(whole, &key);
    call.arg(what)
        .arg(&request.id.to_be_bytes()[..])
        .arg(number)
        .arg(millis(request.lifetime))
        .arg(sending.now);
    call
}

/// None: somebody waits, and only the script can tell whose turn it is.
pub(crate) fn read(
    request: &ParkRequest,
    contested: bool,
    value: &Value,
) -> Result<Option<ParkReply>, String> {
    let is_native = is_native(request, contested);
    let is_enter = matches!(request.operation, ParkOperation::Enter { .. });
    Ok(Some(match value {
        Value::Array(waiting) if is_native && waiting.is_empty() => ParkReply::Free,
        Value::Array(_) if is_native => return Ok(None),
        Value::Int(0) if !is_enter => ParkReply::Done,
        Value::Int(-1) if is_enter => ParkReply::Free,
        Value::Int(-2) if is_enter => ParkReply::First,
        Value::Int(-3) if is_enter => ParkReply::Full,
        Value::Int(remaining) if is_enter && *remaining >= 0 => {
            ParkReply::Behind { remaining: std::time::Duration::from_millis(remaining.unsigned_abs()) }
        }
        _ => return Err("a reply that means nothing".to_owned()),
    }))
}
