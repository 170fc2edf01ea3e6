use consumer_core::{Message, handler::handler};
use tower::Service;

fn run(_: impl Service<Message>) {}

fn confirm(_: Message) {}

fn main() {
    run(handler(confirm));
}
