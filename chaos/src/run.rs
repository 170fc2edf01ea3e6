//! A run from its begin to its verdict.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::time::sleep;

use crate::{
    Args, Fallible, IN_FLIGHT, LEASE, faults,
    figures::{self, Run},
    history::{History, Kind, Published},
    ledger::{Limits, judge},
    load::{KEYS, Load},
    plan::Plan,
    servers::TOPIC,
    timeline,
    world::{Setup, World},
};

/// From the end of a fault until everything flows again. Longer is stuck.
const RECOVERY: Duration = Duration::from_secs(90);
/// By how much later than it happened an effect may be seen, on a busy machine.
const SLACK: Duration = Duration::from_secs(1);
/// RabbitMQ gives back what a closed connection held a moment later.
const REQUEUE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ending {
    pub(crate) clean: bool,
    pub(crate) figures: Value,
    pub(crate) violations: String,
    pub(crate) folder: PathBuf,
}

pub(crate) async fn run(args: &Args, plan: &Plan, broker: &str, store: &str) -> Fallible<Ending> {
    let folder = folder(args, &format!("{broker}-{store}-{}", plan.seed))?;
    let setup = Setup {
        broker: args.broker,
        store: args.store,
        ordered: plan.ordered,
        broken: args.broken,
        orders: orders(args)?,
        folder: folder.clone(),
    };
    let mut world = World::start(setup).await?;
    let mut run = Run { broker: broker.to_owned(), store: store.to_owned(), ..Run::default() };
    let load = Load::start(world.broker.publisher()?, TOPIC, plan.seed, plan.ordered, world.began);
    let history = go(plan, &mut world, load, &mut run).await?;
    run.took = world.now();
    drop(world);

    let limits = Limits { lease: LEASE, in_flight: IN_FLIGHT, slack: SLACK };
    let verdict = judge(&history, limits);
    let figures = figures::line(plan, &run, &history, &verdict);
    fs::write(folder.join("doubles.txt"), figures::list(&run, &verdict))?;
    let title = figures.to_string();
    fs::write(folder.join("timeline.svg"), timeline::draw(&history, &verdict, &title))?;
    let clean = verdict.is_clean() && run.stuck.is_empty();
    Ok(Ending { clean, figures, violations: figures::violations(&run, &verdict), folder })
}

/// The cycles, and what is left to see when all is over.
async fn go(plan: &Plan, world: &mut World, mut load: Load, run: &mut Run) -> Fallible<History> {
    // Before the first fault everything works.
    let mut flows = recovered(world, &load, run).await?.is_some();
    for (nth, cycle) in plan.cycles.iter().enumerate() {
        if !flows {
            break;
        }
        sleep(cycle.lead).await;
        let at = world.now();
        faults::strike(world, &cycle.fault).await?;
        let shown = format!(
            "{:>4}/{}  at {:>6.1} s  {:<52}",
            nth + 1,
            plan.cycles.len(),
            at.as_secs_f64(),
            cycle.fault.to_string()
        );
        match recovered(world, &load, run).await? {
            Some(took) => {
                eprintln!("{shown} recovered in {:.1} s", took.as_secs_f64());
                run.longest_recovery = run.longest_recovery.max(took);
            }
            None => {
                eprintln!("{shown} NOT recovered");
                flows = false;
            }
        }
        run.cycles = nth + 1;
    }
    if !load.stop(RECOVERY).await {
        run.stuck.push("messages were not confirmed".to_owned());
    }
    let published = load.published();
    if flows {
        settled(world, &published, run).await?;
        // Copies have no effect by which they could be waited for.
        left(world, run, RECOVERY).await?;
    }
    let slots = world.slots();
    world.end_consumers(&slots).await?;
    run.copies = load.copies();
    run.stuck.append(&mut world.complaints);
    left(world, run, REQUEUE).await?;
    Ok(History {
        ordered: plan.ordered,
        published,
        effects: world.tail.effects()?,
        letters: world.broker.letters().await?,
        troubles: std::mem::take(&mut world.troubles),
        consumers: std::mem::take(&mut world.lives),
        marks: std::mem::take(&mut world.marks),
    })
}

/// Waits until all that was published, and some more, has had its effect; how long that took.
async fn recovered(world: &mut World, load: &Load, run: &mut Run) -> Fallible<Option<Duration>> {
    let (began, enough) = (Instant::now(), load.count() + KEYS);
    loop {
        world.look_after_consumers()?;
        let published = load.published();
        let first = &published[..enough.min(published.len())];
        let confirmed = first.len() == enough && first.iter().all(|published| published.confirmed.is_some());
        let flows = confirmed && world.tail.has_all(to_be_mailed(first));
        if flows && world.not_ready().is_none() {
            return Ok(Some(began.elapsed()));
        }
        if began.elapsed() > RECOVERY {
            match world.not_ready().filter(|_| flows) {
                Some(number) => {
                    run.stuck.push(format!("consumer #{number} takes no part after {RECOVERY:?}"))
                }
                None => stuck(world, first, run),
            }
            return Ok(None);
        }
        sleep(POLL).await;
    }
}

/// Waits until everything has had its effect.
async fn settled(world: &mut World, published: &[Published], run: &mut Run) -> Fallible<()> {
    let began = Instant::now();
    while !world.tail.has_all(to_be_mailed(published)) {
        world.look_after_consumers()?;
        if began.elapsed() > RECOVERY {
            stuck(world, published, run);
            break;
        }
        sleep(POLL).await;
    }
    Ok(())
}

fn stuck(world: &World, published: &[Published], run: &mut Run) {
    let missing = world.tail.missing(to_be_mailed(published));
    run.stuck.push(format!(
        "{} messages after {RECOVERY:?}, {:?} among them",
        missing.len(),
        missing.first()
    ));
}

fn to_be_mailed(published: &[Published]) -> impl Iterator<Item = &str> {
    published.iter().filter(|published| published.kind != Kind::Bouncing).map(|published| &*published.id)
}

/// There has to be nothing left at the broker.
async fn left(world: &World, run: &mut Run, limit: Duration) -> Fallible<()> {
    let began = Instant::now();
    loop {
        let left = world.broker.left().await?;
        if left == 0 {
            return Ok(());
        }
        if began.elapsed() > limit {
            run.stuck.push(format!("{left} messages are left at the broker"));
            return Ok(());
        }
        sleep(POLL * 10).await;
    }
}

/// An empty folder for this run.
fn folder(args: &Args, name: &str) -> Fallible<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/chaos");
    let folder = args.out.clone().unwrap_or(root).join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    Ok(folder.canonicalize()?)
}

fn orders(args: &Args) -> Fallible<PathBuf> {
    let orders = match &args.orders {
        Some(orders) => orders.clone(),
        None => env::current_exe()?.with_file_name("orders"),
    };
    if orders.is_file() {
        return Ok(orders);
    }
    Err(format!(
        "there is no {}: build it by `cargo build -p orders --features kafka,amqp,redis,postgres`",
        orders.display()
    )
    .into())
}
