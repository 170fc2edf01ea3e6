//! Queues of RabbitMQ: what is declared, and what is done about one that is there already.

use consumer::amqp::Queue;

use crate::{
    common::{Done, Folder, mails, run},
    topic::{Broker, Topic, block_on, order},
};

fn consume(topic: &Topic, folder: &Folder, more: &[&str]) -> Done {
    let mut arguments = topic.arguments("consume");
    arguments.extend(["--mail-log".to_owned(), folder.path("mails.jsonl").to_str().unwrap().to_owned()]);
    arguments.extend(["--until-idle", "2s"].map(str::to_owned));
    run(arguments.iter().map(String::as_str).chain(more.iter().copied()))
}

fn produce(topic: &Topic, count: &str) -> Done {
    let arguments = topic.arguments("produce");
    run(arguments.iter().map(String::as_str).chain(["--count", count]))
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn either_command_declares_both_queues() {
    let by_consume = Topic::shared(Broker::RabbitMq, "by-consume");
    let done = consume(&by_consume, &Folder::new(), &[]).ok();
    assert_eq!(done.number("received"), 0);
    let by_produce = Topic::shared(Broker::RabbitMq, "by-produce");
    produce(&by_produce, "0").ok();
    for topic in [by_consume, by_produce] {
        block_on(async {
            topic.rabbitmq().check_queue(Queue::quorum(&topic.name)).await.unwrap();
            topic.rabbitmq().check_queue(Queue::dead_letters(topic.dead())).await.unwrap();
        });
    }
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn a_foreign_queue_is_taken_with_a_warning_and_not_changed() {
    let topic = Topic::shared(Broker::RabbitMq, "foreign");
    let foreign = Queue::classic(&topic.name).without_dead_letter();
    block_on(topic.rabbitmq().ensure_queue(foreign.clone())).unwrap();
    topic.publish_as_it_is(vec![order("1", "ann@example.com"), order("2", "x@bounces.example")]);
    let warned = |done: &Done| {
        for said in [&*topic.name, "not as asked for", "classic", "quorum"] {
            assert!(done.stderr.contains(said), "{said}: {}", done.stderr);
        }
    };
    warned(&produce(&topic, "3").ok());
    let folder = Folder::new();
    let done = consume(&topic, &folder, &[]).ok();
    warned(&done);
    assert_eq!((done.number("processed"), done.number("dead_lettered")), (4, 1));
    assert_eq!(mails(&folder.path("mails.jsonl")).len(), 4);
    assert_eq!(topic.dead_letters().len(), 1);
    block_on(topic.rabbitmq().check_queue(foreign)).unwrap();
}

#[test]
#[ignore = "needs servers: cargo xtask test"]
fn an_order_is_refused_on_a_queue_that_cannot_keep_it() {
    let topic = Topic::shared(Broker::RabbitMq, "shared-by-many");
    produce(&topic, "3").ok();
    for ordering in ["key", "partition"] {
        let done = consume(&topic, &Folder::new(), &["--ordering", ordering]);
        assert_eq!((done.code(), &*done.stdout), (Some(1), ""), "{done:?}");
        for said in [&*topic.name, "x-single-active-consumer", "consume without an order", "declared anew"] {
            assert!(done.stderr.contains(said), "{said}: {}", done.stderr);
        }
    }
    assert_eq!(consume(&topic, &Folder::new(), &[]).ok().number("processed"), 3);
    // The way out: with the queue gone, the consumer declares one that can.
    block_on(topic.rabbitmq().delete_queue(&topic.name)).unwrap();
    consume(&topic, &Folder::new(), &["--ordering", "key"]).ok();
    produce(&topic, "3").ok();
    assert_eq!(consume(&topic, &Folder::new(), &["--ordering", "key"]).ok().number("received"), 3);
}
