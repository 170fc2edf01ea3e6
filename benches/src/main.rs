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
}

fn main() -> ExitCode {
    let args = Args::parse();
    let servers = match (args.kafka, args.amqp, args.redis, args.postgres) {
        (Some(kafka), Some(amqp), Some(redis), Some(postgres)) => {
            Some(Servers { kafka, amqp, redis, postgres })
        }
        _ => None,
    };
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
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
