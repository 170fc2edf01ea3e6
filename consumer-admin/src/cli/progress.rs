//! How far it is, on stderr and only for people.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar, or a spinner where the end is not known.
pub(crate) fn bar(expected: Option<u64>) -> ProgressBar {
    let (bar, shape) = match expected {
        Some(total) => (ProgressBar::new(total), "{msg} [{bar:30}] {pos}/{len} read, {per_sec}, {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg} {pos} read, {per_sec}"),
    };
    if let Ok(style) = ProgressStyle::with_template(shape) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
