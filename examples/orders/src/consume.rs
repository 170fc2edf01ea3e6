//! `orders consume`: the service itself.

use std::time::Duration;

use consumer::{
    Consumer, DynPublisher, Report, Source,
    dedup::DynStore,
    handler::handler,
    pipeline::Explanation,
    runtime::{Ordering, Stack, signal},
};
use tokio::{sync::watch, time::timeout};

use crate::{
    backend, block_on,
    cli::Consume,
    handler::confirm,
    logs,
    mail::{MailLog, Mailer},
    report,
    stack::{Settings, stack},
    stop::Stop,
};

/// Servers that do not answer by then are reported; the contract says 30 s.
const START_LIMIT: Duration = Duration::from_secs(28);

pub(crate) fn run(options: Consume) -> Result<(), Stop> {
    if !options.delays().is_empty() {
        delayed_retry(&options)?;
    }
    let dead_letter = options.broker.dead_letter();
    if dead_letter == options.broker.topic {
        return Err(Stop::usage(
            "--dead-letter names the topic that is consumed: dead letters would come back",
        ));
    }
    let broker = backend::consumer(&options)?;
    let store = backend::store(&options.store)?;
    let log = MailLog::open(&options.mail_log).map_err(|error| {
        Stop::usage(format!("the mail log {} cannot be opened: {error}", options.mail_log.display()))
    })?;
    let mailer = Mailer::new(log, options.handler_delay, options.repaired);
    // The driver of RabbitMQ shows whole messages there.
    logs::start("info,lapin::returned_messages=off");
    block_on(async {
        let mut stopping = stop_signal();
        let connecting = timeout(START_LIMIT, async { Ok((store.await?, broker.await?)) });
        let connected = tokio::select! {
            biased;
            () = stopped(&mut stopping) => {
                println!("{}", report::consumed(&Report::default()));
                return Ok(());
            }
            connected = connecting => connected,
        };
        let late = |_| Stop::failed(format!("broker and store did not answer within {START_LIMIT:?}"));
        let (store, (source, dead)) = connected.map_err(late)??;
        let (stack, explanation) = stacked(&options, store, dead, mailer);
        eprintln!("{explanation}");
        let consumer = configured(&options, Consumer::new(source, stack));
        match consumer.shutdown(async move { stopped(&mut stopping).await }).run().await {
            Ok(report) => {
                println!("{}", report::consumed(&report));
                Ok(())
            }
            Err(error) => {
                // A run that never began has nothing to report.
                if error.report().received > 0 {
                    println!("{}", report::consumed(error.report()));
                }
                Err(Stop::from_error(&error))
            }
        }
    })
}

/// Whether `--delays` can be had.
fn delayed_retry(options: &Consume) -> Result<(), Stop> {
    if matches!(options.ordering.into(), Ordering::Partition) {
        return Err(Stop::usage(
            "--delays and --ordering partition exclude each other: later messages pass the one that waits; with \
             --ordering key those of its key are parked behind it",
        ));
    }
    Ok(())
}

fn stacked(
    options: &Consume,
    store: DynStore,
    dead: DynPublisher,
    mailer: Mailer,
) -> (impl Stack + use<>, Explanation) {
    let settings = Settings {
        group: options.group.clone(),
        dead_letter: options.broker.dead_letter(),
        attempts: options.attempts.get(),
        backoff: options.backoff,
        rate: options.rate,
        lease: options.lease,
        retention: options.retention,
        delays: options.delays().to_vec(),
    };
    stack(&settings, dead, settings.dedup(store), handler(confirm).with_state(mailer))
}

fn configured<Src: Source, S: Stack>(options: &Consume, consumer: Consumer<Src, S>) -> Consumer<Src, S> {
    let consumer = consumer
        .name(&*options.group)
        .max_in_flight(options.max_in_flight.get() as usize)
        .ordering(options.ordering.into())
        .drain_timeout(options.drain);
    match options.until_idle {
        Some(idle) => consumer.stop_when_idle(idle),
        None => consumer,
    }
}

/// Becomes true at the first SIGINT or SIGTERM. The second one ends the process.
fn stop_signal() -> watch::Receiver<bool> {
    let (stop, stopping) = watch::channel(false);
    let first = signal::terminate();
    tokio::spawn(async move {
        first.await;
        let second = signal::terminate();
        stop.send_replace(true);
        second.await;
        eprintln!("error: stopped at once by a second signal; what was in flight will be delivered again");
        std::process::exit(1);
    });
    stopping
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // The sender lives as long as the runtime.
    if stopping.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
