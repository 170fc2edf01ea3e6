use bytes::Bytes;
use consumer_core::handler::handler;

#[rustfmt::skip]
async fn confirm(
    _: Bytes, _: Bytes, _: Bytes, _: Bytes, _: Bytes, _: Bytes, _: Bytes, _: Bytes, _: Bytes,
) {}

fn main() {
    let _ = handler(confirm);
}
