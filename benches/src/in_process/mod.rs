//! Without servers: what the layers and the runtime cost.

mod null;
mod replay;
mod runtime;
mod stack;

pub(crate) use stack::{full as full_stack, full_around as full_stack_around};

use crate::report::Report;

pub(crate) fn run(report: &mut Report) {
    if report.wants("stack") {
        stack::measure(report);
    }
    if report.wants("runtime") {
        runtime::measure(report);
    }
}
