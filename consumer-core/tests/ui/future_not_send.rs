use std::rc::Rc;

use consumer_core::{Message, handler::handler};
use tower::Service;

fn run(_: impl Service<Message>) {}

async fn confirm() {
    let local = Rc::new(1);
    std::future::ready(()).await;
    drop(local);
}

fn main() {
    run(handler(confirm));
}
