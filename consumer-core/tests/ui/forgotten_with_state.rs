use consumer_core::{Message, handler::{State, handler}};
use tower::Service;

fn run(_: impl Service<Message>) {}

#[derive(Clone)]
struct Mailer;

async fn confirm(_: State<Mailer>) {}

fn main() {
    run(handler(confirm));
}
