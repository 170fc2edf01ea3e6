//! 100,000 dead letters: listed with a filter, and redriven, on each broker.

use std::time::Instant;

use consumer_admin::{Broker, Filter, Redrive, redrive};
use consumer_amqp::{AmqpAdmin, Queue};
use consumer_core::{DynPublisher, Message, Outgoing, Publisher};
use consumer_kafka::KafkaAdmin;
use futures_util::{StreamExt, stream::FuturesUnordered};

use super::{Fallible, Servers, topic};
use crate::report::{Report, Row};

const LETTERS: usize = 100_000;
/// As many as a redrive has on its way.
const AT_ONCE: usize = 1_000;
/// One in so many fits the filter.
const FITS: usize = 100;

pub(super) async fn measure(report: &mut Report, servers: &Servers) -> Fallible<()> {
    let kafka = format!("kafka://{}", servers.kafka);
    for (name, url, seconds) in [("kafka", &kafka, 10.0), ("rabbitmq", &servers.amqp, 60.0)] {
        let origin = format!("bench-redriven-{}", std::process::id());
        let dead = format!("{origin}.dead");
        create(url, &origin, &dead).await?;
        let broker = Broker::from_url(url)?;
        let publisher = broker.publisher()?;
        let published = fill(&publisher, name, &origin, &dead).await?;
        let before = resident()?;
        let from = Instant::now();
        let (read, found, most) = list(&broker, &dead).await?;
        let took = from.elapsed().as_secs_f64();
        if (read, found) != (LETTERS, LETTERS / FITS) {
            return Err(format!("{name}: {found} of {read} letters were listed").into());
        }
        let row =
            |what: &str, value, unit| Row::new(format!("{name}, 100,000 dead letters: {what}"), value, unit);
        report.add(row("listed with a filter", took, "s").at_most(seconds));
        report.add(
            row("resident memory added by that", most.saturating_sub(before) as f64 / 1024.0, "MiB")
                .at_most(64.0),
        );
        let from = Instant::now();
        let letters = broker.dead_letters(&dead)?.open().await?;
        let done = redrive(letters, publisher, &Filter::default(), &Redrive::default(), |_| {}).await?;
        let rate = LETTERS as f64 / from.elapsed().as_secs_f64();
        if done.redriven != LETTERS as u64 {
            return Err(format!("{name}: {done:?}").into());
        }
        let row = row("redriven", rate, "messages/s").against("publishing as many", published);
        report.add(row.ratio_at_least(0.3));
        delete(url, &origin, &dead).await?;
    }
    Ok(())
}

async fn create(url: &str, origin: &str, dead: &str) -> Fallible<()> {
    if url.starts_with("kafka") {
        let admin = KafkaAdmin::from_url(url)?;
        admin.ensure_topic(origin, 4, &[]).await?;
        admin.ensure_topic(dead, 4, &[]).await?;
    } else {
        AmqpAdmin::new(url)?.ensure_queue(Queue::quorum(origin).dead_letter(dead)).await?;
    }
    Ok(())
}

async fn delete(url: &str, origin: &str, dead: &str) -> Fallible<()> {
    if !url.starts_with("kafka") {
        let admin = AmqpAdmin::new(url)?;
        admin.delete_queue(origin).await?;
        admin.delete_queue(dead).await?;
    }
    Ok(())
}

/// Publishes the letters; how many in a second.
async fn fill(publisher: &DynPublisher, system: &str, origin: &str, dead: &str) -> Fallible<f64> {
    let source = if system == "kafka" { "kafka" } else { "amqp" };
    let place = if system == "kafka" { "dead-letter-topic" } else { "dead-letter-queue" };
    let mut confirms = FuturesUnordered::new();
    let from = Instant::now();
    for n in 0..LETTERS {
        if confirms.len() == AT_ONCE {
            confirms.next().await.ok_or("no confirm")??;
        }
        let reason = if n % FITS == 0 { "permanent" } else { "attempts-exhausted" };
        let letter = Message::builder()
            .payload(topic::payload(n))
            .key(format!("o-{n}"))
            .header("message-id", topic::id(n))
            .header("dead-letter-reason", reason)
            .header("dead-letter-error", "the provider is down: connection refused")
            .header("dead-letter-attempts", "3")
            .header("dead-letter-consumer", "order-mails")
            .header("dead-letter-last-failed-at", "2026-11-25T08:00:00.000Z")
            .header("dead-letter-source", source)
            .header(place, origin.to_owned())
            .build();
        confirms.push(publisher.publish(Outgoing::copy(dead, letter)));
    }
    while let Some(confirmed) = confirms.next().await {
        confirmed?;
    }
    Ok(LETTERS as f64 / from.elapsed().as_secs_f64())
}

/// Letters read, letters that fit, and the most that was resident meanwhile, in kilobytes.
async fn list(broker: &Broker, dead: &str) -> Fallible<(usize, usize, u64)> {
    let filter = Filter::default().reason("permanent");
    let mut letters = broker.dead_letters(dead)?.open().await?;
    let (mut read, mut found, mut most) = (0, 0, 0);
    while let Some(letter) = letters.next().await? {
        read += 1;
        found += usize::from(filter.fits(&letter));
        if read % 1_000 == 0 {
            most = most.max(resident()?);
        }
    }
    letters.close().await?;
    Ok((read, found, most))
}

fn resident() -> Fallible<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(value.trim().trim_end_matches(" kB").parse()?)
}
