use consumer_core::{Message, handler::handler};
use tower::Service;

fn run(_: impl Service<Message>) {}

struct Order;

async fn confirm(_: Order) {}

fn main() {
    run(handler(confirm));
}
