//! The performance harness: this framework beside hand-written consumers, in one run.
//!
//! `cargo xtask bench` starts the servers and calls it.

mod in_process;
mod report;
mod rounds;
mod servers;

use std::process::ExitCode;

use clap::Parser;
use report::Report;
use servers::Servers;

/// Measures, and prints one table.
#[derive(Debug, Parser)]
struct Args {
    /// The bootstrap servers of a Kafka that may be filled
    #[arg(long, value_name = "HOST:PORT")]
    kafka: Option<String>,
    /// The URL of a RabbitMQ that may be filled
    #[arg(long, value_name = "URL")]
    amqp: Option<String>,
    /// The URL of a Redis that may be flushed
    #[arg(long, value_name = "URL")]
    redis: Option<String>,
    /// The URL of a PostgreSQL that may be filled
    #[arg(long, value_name = "URL")]
    postgres: Option<String>,
    /// Print one JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Measure only what has this in its name
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// What the bench of the resident memory starts as a child: consumes this topic until it is killed
    #[arg(long, value_name = "TOPIC", hide = true)]
    consume_backlog: Option<String>,
    /// The same for a queue
    #[arg(long, value_name = "QUEUE", hide = true)]
    consume_queue: Option<String>,
    /// Instead of the benches: run at half of the maximum, and look whether anything grows
    #[arg(long, value_name = "BROKER")]
    endurance: Option<servers::endurance::Broker>,
    /// How long the endurance run lasts
    #[arg(long, value_name = "MINUTES", default_value_t = 30)]
    minutes: u64,
    #[command(flatten)]
    load: servers::endurance::Load,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let servers = match (args.kafka, args.amqp, args.redis, args.postgres) {
        (Some(kafka), Some(amqp), Some(redis), Some(postgres)) => {
            Some(Servers { kafka, amqp, redis, postgres })
        }
        _ => None,
    };
    if let (Some(servers), Some(broker)) = (&servers, args.endurance) {
        let mut report = Report::new(args.json, None);
        let lasts = std::time::Duration::from_secs(args.minutes * 60);
        let outcome = servers::endurance::run(&mut report, servers, broker, lasts, &args.load);
        if args.load.target.is_none() {
            report.finish();
        }
        return ended(outcome);
    }
    let outcome = match (&servers, &args.consume_backlog, &args.consume_queue) {
        (Some(servers), Some(topic), _) => servers::consume_backlog(servers, topic),
        (Some(servers), None, Some(queue)) => servers::consume_queue(servers, queue),
        (None, None, None) | (Some(_), None, None) => {
            let mut report = Report::new(args.json, args.only);
            in_process::run(&mut report);
            let outcome = match &servers {
                Some(servers) => servers::run(&mut report, servers),
                None => Ok(()),
            };
            report.finish();
            outcome
        }
        (None, ..) => Err("--kafka, --amqp, --redis or --postgres is missing".into()),
    };
    ended(outcome)
}

fn ended(outcome: servers::Fallible<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
