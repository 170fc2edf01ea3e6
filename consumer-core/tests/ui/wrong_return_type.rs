use consumer_core::{Message, handler::handler};
use tower::Service;

fn run(_: impl Service<Message>) {}

async fn confirm(_: Message) -> u32 {
    7
}

fn main() {
    run(handler(confirm));
}
