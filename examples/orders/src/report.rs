//! What the commands print at their end: one JSON object in one line.

use consumer::Report;
use serde::Serialize;

use crate::plan::Mixture;

/// Of `consume`.
#[derive(Debug, Serialize)]
struct Consumed {
    received: u64,
    processed: u64,
    duplicates: u64,
    retried: u64,
    deferred: u64,
    dead_lettered: u64,
    returned: u64,
    in_flight_at_stop: u64,
}

/// Of `produce`.
#[derive(Debug, Serialize)]
struct Produced {
    published: u64,
    unique: u64,
    undecodable: u64,
    flaky: u64,
    bouncing: u64,
}

pub(crate) fn consumed(report: &Report) -> String {
    line(&Consumed {
        received: report.received,
        processed: report.processed,
        duplicates: report.duplicates,
        retried: report.retried,
        deferred: report.deferred,
        dead_lettered: report.dead_lettered,
        returned: report.returned,
        in_flight_at_stop: report.in_flight_at_stop,
    })
}

pub(crate) fn produced(mixture: &Mixture) -> String {
    line(&Produced {
        published: mixture.count,
        unique: mixture.unique(),
        undecodable: mixture.undecodable,
        flaky: mixture.flaky,
        bouncing: mixture.bouncing,
    })
}

fn line(report: &impl Serialize) -> String {
    // Numbers under fixed names: their conversion cannot fail.
    serde_json::to_string(report).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_have_the_names_of_the_contract() {
        let mixture = Mixture { count: 10, duplicates: 2, undecodable: 1, flaky: 3, bouncing: 4 };
        assert_eq!(
            produced(&mixture),
            r#"{"published":10,"unique":8,"undecodable":1,"flaky":3,"bouncing":4}"#
        );
        assert_eq!(
            consumed(&Report::default()),
            "{\"received\":0,\"processed\":0,\"duplicates\":0,\"retried\":0,\"deferred\":0,\"dead_lettered\":0,\
             \"returned\":0,\"in_flight_at_stop\":0}"
        );
    }
}
