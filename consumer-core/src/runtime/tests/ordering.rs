//! Which deliveries run one after another.

use super::{super::Ordering as Order, *};

/// Messages `0..n` in one partition; even ones have the key `a`, odd ones `b`.
async fn keyed(n: usize) -> MemoryBroker {
    let broker = broker(1, 0).await;
    for n in 0..n {
        let key = if n % 2 == 0 { "a" } else { "b" };
        let message = Message::builder().payload(n.to_string()).key(key).build();
        broker.publisher().publish(Outgoing::new("t", message)).await.unwrap();
    }
    broker
}

/// Fails message 0 three times; every call takes a second.
fn first_one_fails(log: &Log) -> ServiceFn<impl FnMut(Message) -> Handling + Clone + Send + 'static> {
    let log = log.clone();
    handle(move |message| {
        log.call(&message);
        let failing = number(&message) == 0 && log.times_of(0).len() < 4;
        Box::pin(async move {
            sleep(SECOND).await;
            if failing { Err(Failure::transient("down")) } else { Ok(()) }
        }) as Handling
    })
}

type Handling = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

#[tokio::test(start_paused = true)]
async fn without_an_order_a_message_waits_for_no_other() {
    let (broker, log) = (keyed(6).await, Log::new());
    let run = Run::start(Consumer::new(source(&broker).finite(), first_one_fails(&log)));
    assert_eq!(run.report().await.processed, 6);
    assert_eq!((1..6).map(|n| log.times_of(n)).collect::<Vec<_>>(), vec![vec![0]; 5]);
}

#[tokio::test(start_paused = true)]
async fn fm22_a_partition_waits_for_the_message_that_is_presented_again() {
    for lanes in [None, Some(3)] {
        let (broker, log) = (keyed(6).await, Log::new());
        let mut consumer =
            Consumer::new(source(&broker).finite(), first_one_fails(&log)).ordering(Order::Partition);
        if let Some(lanes) = lanes {
            consumer = consumer.lanes(lanes);
        }
        assert_eq!(Run::start(consumer).report().await.processed, 6);
        assert_eq!(log.numbers(), [0, 0, 0, 0, 1, 2, 3, 4, 5]);
        // One at a time: each starts when the one before has taken its second.
        let after: Vec<_> = (1..6).map(|n| log.times_of(n)[0]).collect();
        assert!(after.windows(2).all(|pair| pair[1] == pair[0] + 1), "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn fm22_a_key_waits_for_its_message_and_other_keys_go_on() {
    for lanes in [None, Some(3)] {
        let (broker, log) = (keyed(6).await, Log::new());
        let mut consumer =
            Consumer::new(source(&broker).finite(), first_one_fails(&log)).ordering(Order::Key);
        if let Some(lanes) = lanes {
            consumer = consumer.lanes(lanes);
        }
        assert_eq!(Run::start(consumer).report().await.processed, 6);
        let even: Vec<_> = log.numbers().into_iter().filter(|n| n % 2 == 0).collect();
        assert_eq!(even, [0, 0, 0, 0, 2, 4]);
        let odd: Vec<_> = [1, 3, 5].map(|n| log.times_of(n)).into();
        assert_eq!(odd, [[0], [1], [2]], "the other key was not held up");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_keeps_the_order() {
    let (broker, log) = (keyed(6).await, Log::new());
    let stack = handle({
        let log = log.clone();
        move |message| {
            log.call(&message);
            let panics = number(&message) == 2 && log.times_of(2).len() < 3;
            async move {
                assert!(!panics, "the panic of this test");
                Ok(())
            }
        }
    });
    let consumer = Consumer::new(source(&broker).finite(), stack).ordering(Order::Partition);
    assert_eq!(Run::start(consumer).report().await.processed, 6);
    assert_eq!(log.numbers(), [0, 1, 2, 2, 2, 3, 4, 5]);
}

/// What waits for its turn in a partition that is taken away is handed back and never starts.
#[tokio::test(start_paused = true)]
async fn fm32_what_waits_behind_a_backoff_is_handed_back_with_the_partition() {
    for order in [Order::Partition, Order::Key] {
        let (script, log) = (scripted::Script::default(), Log::new());
        let stack = handle({
            let log = log.clone();
            move |message| {
                log.call(&message);
                async { Err(Failure::transient("down")) }
            }
        });
        let run = Run::start(Consumer::new(script.clone(), stack).ordering(order));
        (0..4).for_each(|seq| script.deliver(1, seq));
        sleep(SECOND / 2).await;
        script.then(scripted::Step::Event(crate::Event::Closing { scope: 1, within: 10 * SECOND }));
        sleep(SECOND / 10).await;
        assert_eq!(script.released(), [1], "a backoff is no reason to keep a partition");
        sleep(60 * SECOND).await;
        assert_eq!(log.numbers(), [0]);
        let settled = script.settled();
        assert_eq!(settled.len(), 4);
        assert!(settled.iter().all(|(_, how)| *how == crate::Settlement::Nack), "{settled:?}");
        assert_eq!(run.stopped().await.returned, 4);
    }
}
