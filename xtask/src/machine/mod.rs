//! What the tasks need of the machine: look, install from Debian's packages where that is allowed, otherwise say so.

mod autostart;
mod debian;
mod requirement;

use crate::{interrupt::Interrupt, stop::Stop};
use requirement::{Missing, Requirement};
use xtask::servers::kafka_libs;

pub(crate) use requirement::{EVERYTHING, SERVERS};

/// Makes the machine ready for what `needed` lists: afterwards everything is there, Kafka's jars included.
pub(crate) fn prepare(needed: &[Requirement], interrupt: &Interrupt) -> Result<(), Stop> {
    let missing = look(needed);
    if !missing.is_empty() {
        let system = debian::System::detect();
        let packages = debian::packages(&missing, &system);
        if !system.can_install() {
            return Err(Stop::failed(advice(&missing, &packages)));
        }
        eprintln!("    installing {}", packages.join(" "));
        debian::install(&packages, &system, interrupt)?;
        let still = look(needed);
        if !still.is_empty() {
            return Err(Stop::failed(advice(&still, &packages)));
        }
    }
    if needed.iter().any(Requirement::is_for_kafka) {
        kafka_libs()?;
    }
    Ok(())
}

fn look(needed: &[Requirement]) -> Vec<Missing> {
    needed.iter().filter_map(Requirement::look).collect()
}

/// What is missing, and what to type.
fn advice(missing: &[Missing], packages: &[&str]) -> String {
    let mut text = String::from("this machine lacks\n");
    for one in missing {
        text.push_str(&format!("  - {one}\n"));
    }
    text.push_str(
        "On Debian or Ubuntu, as root:\n  apt-get update && apt-get install --no-install-recommends ",
    );
    text.push_str(&packages.join(" "));
    text.push_str("\nElsewhere, the packages of the same purpose. Then run this again.");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_names_all_that_is_missing_and_how_to_get_it() {
        let redis =
            Missing { name: "Redis 7.0 or newer", found: Some("6.0.16".into()), package: "redis-server" };
        let make = Missing { name: "make", found: None, package: "make" };
        let text = advice(&[redis, make], &["redis-server", "make"]);
        assert!(text.contains("\n  - Redis 7.0 or newer (found 6.0.16)\n  - make\n"), "{text}");
        assert!(text.contains("--no-install-recommends redis-server make\n"), "{text}");
    }
}
