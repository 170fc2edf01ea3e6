//! What log and metrics say of a run.

use tower::{ServiceBuilder, limit::ConcurrencyLimitLayer};
use tracing::subscriber::{DefaultGuard, set_default};

use super::{
    scripted::{Script, Step},
    *,
};
use crate::{DedupLayer, Event, dedup::Gate, logged, memory::MemoryStore};

/// Everything of this thread is logged here, and so all of a test on the paused clock.
fn logged() -> (logged::Log, DefaultGuard) {
    let log = logged::Log::default();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone()).finish();
    (log, set_default(subscriber))
}

#[tokio::test(start_paused = true)]
async fn a_store_is_said_to_be_silent_at_the_end_only_if_it_is() {
    for down in [false, true] {
        let (log, _guard) = logged();
        let (script, store) = (Script::default(), MemoryStore::new());
        let layer = DedupLayer::new(store.clone(), "c").as_process(1, Gate::new());
        let stack = ServiceBuilder::new().layer(layer).service(handle(|_| std::future::pending()));
        let run = Run::start(Consumer::new(script.clone(), stack));
        script.deliver(1, 1);
        sleep(SECOND).await;
        store.set_down(down);
        assert_eq!(run.stopped().await.returned, 1);
        let text = log.text();
        assert_eq!(text.contains("the dedup store did not answer before the end"), down, "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_told_once_and_so_is_its_end() {
    let (log, _guard) = logged();
    let broker = broker(1, 1).await;
    let stack = ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(1)).service(handle(|_| async {
        sleep(10 * SECOND).await;
        Ok(())
    }));
    let run = Run::start(Consumer::new(source(&broker), stack));
    sleep(5 * SECOND).await;
    let told = |what| log.text().matches(what).count();
    assert_eq!((told("the stack is not ready"), told("the stack is ready again")), (1, 0), "{}", log.text());
    sleep(10 * SECOND).await;
    assert_eq!((told("the stack is not ready"), told("the stack is ready again")), (1, 1), "{}", log.text());
    run.stopped().await;
}

/// Who looks for a panic must not find the end of a drain, or of an assignment.
#[tokio::test(start_paused = true)]
async fn a_handler_that_was_dropped_is_not_said_to_have_panicked() {
    for revoked in [false, true] {
        let (log, _guard) = logged();
        let script = Script::default();
        let run = Run::start(Consumer::new(script.clone(), handle(|_| std::future::pending())));
        script.deliver(1, 1);
        sleep(SECOND).await;
        if revoked {
            script.then(Step::Event(Event::Closing { scope: 1, within: SECOND }));
            until(|| script.released() == [1]).await;
        }
        assert_eq!(run.stopped().await.returned, 1);
        assert!(log.text().contains("stopping") && !log.text().contains("panicked"), "{}", log.text());
    }
}

#[cfg(feature = "metrics")]
#[tokio::test(start_paused = true)]
async fn fm16_settlements_that_did_not_reach_the_broker_are_counted_and_logged() {
    let kept = crate::layers::metrics::tests::Kept::default();
    let _recorder = metrics::set_default_local_recorder(&kept);
    let (log, _guard) = logged();
    let script = Script::default();
    let run = Run::start(Consumer::new(script.clone(), handle(|_| std::future::ready(Ok(())))).name("mails"));
    script.then(Step::Event(Event::Unsettled { scope: 3, messages: 5 }));
    script.then(Step::Event(Event::Unsettled { scope: 4, messages: 2 }));
    sleep(SECOND).await;
    assert_eq!(kept.read()["consumer_unsettled_total consumer=mails"], 7);
    let told = "settlements did not reach the broker: the messages may be delivered again scope=3 messages=5";
    assert!(log.text().contains(told), "{}", log.text());
    run.stopped().await;
}
