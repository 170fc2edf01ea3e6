//! A picture of a run: who had which effects when, and which faults there were.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write,
};

use crate::{
    CONSUMERS,
    history::{Effect, History, Lane},
    ledger::Verdict,
};

const LEFT: f64 = 110.0;
const SECOND: f64 = 24.0;
const ROW: f64 = 44.0;
const TICK: f64 = 26.0;

/// The picture as SVG.
pub(crate) fn draw(history: &History, verdict: &Verdict, title: &str) -> String {
    let end = history
        .effects
        .iter()
        .map(|effect| effect.seen)
        .chain(history.marks.iter().map(|mark| mark.until))
        .chain(history.published.iter().filter_map(|published| published.confirmed))
        .max()
        .unwrap_or_default()
        .as_secs_f64();
    let (width, height) = (x(end) + 40.0, y(CONSUMERS + 4) + 40.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"16\">{}</text>\n",
        escaped(title)
    );
    lanes(&mut svg, end);
    lives(&mut svg, history);
    faults(&mut svg, history);
    deliveries(&mut svg, history, verdict);
    svg.push_str("</svg>\n");
    svg
}

fn lanes(svg: &mut String, end: f64) {
    let names = ["published".to_owned(), "broker".to_owned(), "store".to_owned()]
        .into_iter()
        .chain((0..=CONSUMERS).map(|slot| format!("consumer {slot}")));
    for (row, name) in names.enumerate() {
        text(svg, 10.0, y(row) + 18.0, &name);
    }
    let mut second = 0.0;
    while second <= end {
        let at = x(second);
        line(svg, &format!("M{at:.1} 24V{:.1}", y(CONSUMERS + 4)), "#eee", 1.0);
        text(svg, at, y(CONSUMERS + 4) + 14.0, &format!("{second:.0} s"));
        second += 5.0;
    }
}

fn lives(svg: &mut String, history: &History) {
    for (number, life) in history.consumers.iter().enumerate() {
        let from = x(life.from.as_secs_f64());
        let width = life.until.map_or(4_000.0, |until| x(until.as_secs_f64()) - from);
        // Beyond the picture, for those that ran to its end, is not shown.
        let top = y(row(Lane::Consumer(life.slot)));
        let _ = writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"#eef4ff\"><title>consumer \
             #{number}</title></rect>",
            ROW - 6.0
        );
        text(svg, from + 2.0, top + ROW - 8.0, &format!("#{number}"));
    }
}

fn faults(svg: &mut String, history: &History) {
    for mark in &history.marks {
        let (from, until) = (x(mark.from.as_secs_f64()), x(mark.until.as_secs_f64()));
        let (top, width) = (y(row(mark.lane)), (until - from).max(3.0));
        let what = escaped(&mark.what);
        let _ = writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"#f6c1b6\" \
             fill-opacity=\"0.7\"><title>{what}, {:.2} s to {:.2} s</title></rect>",
            ROW - 6.0,
            mark.from.as_secs_f64(),
            mark.until.as_secs_f64()
        );
        text(svg, from, top + 10.0, &mark.what);
    }
}

fn deliveries(svg: &mut String, history: &History, verdict: &Verdict) {
    let mut path = String::new();
    for confirmed in history.published.iter().filter_map(|published| published.confirmed) {
        let _ = write!(path, "M{:.1} {:.1}v{TICK}", x(confirmed.as_secs_f64()), y(0) + 6.0);
    }
    line(svg, &path, "#888", 0.7);
    // One path for all of a colour: a run has tens of thousands of them.
    let mut ticks: BTreeMap<&str, String> = BTreeMap::new();
    let wrong: HashSet<_> = verdict
        .unexplained
        .iter()
        .chain(&verdict.disorder)
        .flat_map(|pair| both(&pair.first, &pair.second))
        .collect();
    let explained: HashSet<_> =
        verdict.explained.iter().flat_map(|double| both(&double.pair.first, &double.pair.second)).collect();
    for effect in &history.effects {
        let Some(life) = history.consumers.get(effect.consumer) else { continue };
        let place = (&*effect.id, effect.consumer, effect.epoch);
        let colour = match () {
            () if wrong.contains(&place) => "#d00000",
            () if explained.contains(&place) => "#f08c00",
            () => "#2b8a3e",
        };
        let (x, y) = (x(effect.seen.as_secs_f64()), y(row(Lane::Consumer(life.slot))) + 6.0);
        let _ = write!(ticks.entry(colour).or_default(), "M{x:.1} {y:.1}v{TICK}");
    }
    for (colour, path) in ticks {
        line(svg, &path, colour, if colour == "#2b8a3e" { 0.7 } else { 2.0 });
    }
    for id in &verdict.lost {
        let Some(lost) = history.published.iter().find(|published| published.id == *id) else { continue };
        let at = x(lost.confirmed.unwrap_or_default().as_secs_f64());
        line(svg, &format!("M{at:.1} {:.1}v{TICK}", y(0) + 6.0), "#d00000", 2.5);
    }
}

fn both<'a>(first: &'a Effect, second: &'a Effect) -> [(&'a str, usize, u64); 2] {
    [first, second].map(|effect| (&*effect.id, effect.consumer, effect.epoch))
}

fn row(lane: Lane) -> usize {
    match lane {
        Lane::Broker => 1,
        Lane::Store => 2,
        Lane::Consumer(slot) => 3 + slot,
    }
}

fn x(seconds: f64) -> f64 {
    LEFT + seconds * SECOND
}

fn y(row: usize) -> f64 {
    // A few rows.
    28.0 + ROW * row as f64
}

// Writing to a string does not fail.
fn text(svg: &mut String, x: f64, y: f64, what: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escaped(what));
}

fn line(svg: &mut String, path: &str, colour: &str, width: f64) {
    let _ = writeln!(svg, "<path d=\"{path}\" stroke=\"{colour}\" stroke-width=\"{width}\" fill=\"none\"/>");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        history::{Life, Mark},
        ledger::Pair,
    };

    #[test]
    fn what_is_wrong_is_red_and_faults_are_named() {
        let effect =
            |epoch| Effect { id: "a".to_owned(), consumer: 0, epoch, seen: Duration::from_secs(epoch) };
        let life = Life { slot: 2, from: Duration::ZERO, until: None };
        let second = Duration::from_secs(1);
        let mark =
            Mark { lane: Lane::Broker, what: "cut < hang".to_owned(), from: second, until: second * 2 };
        let history = History {
            effects: vec![effect(1), effect(2), effect(3)],
            consumers: vec![life],
            marks: vec![mark],
            ..History::default()
        };
        let clean = draw(&history, &Verdict::default(), "a & b");
        assert!(!clean.contains("#d00000") && clean.contains("a &amp; b") && clean.contains("cut &lt; hang"));
        let unexplained = vec![Pair { first: effect(1), second: effect(2) }];
        let svg = draw(&history, &Verdict { unexplained, ..Verdict::default() }, "");
        let red = svg.lines().find(|line| line.contains("#d00000")).unwrap();
        assert_eq!(red.matches('M').count(), 2, "{red}");
    }
}
