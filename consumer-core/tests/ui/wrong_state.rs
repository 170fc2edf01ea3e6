use consumer_core::handler::{State, handler};

#[derive(Clone)]
struct Mailer;

#[derive(Clone)]
struct Database;

async fn confirm(_: State<Mailer>) {}

fn main() {
    let _ = handler(confirm).with_state(Database);
}
