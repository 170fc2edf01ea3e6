//! Rules as a list, so that none is forgotten and none is skipped in silence.

use std::fmt;

use super::{Capabilities, Capability};

/// Something that every source or publisher has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    /// Its name, and that of the function that checks it.
    pub name: &'static str,
    /// What it asks, in one line.
    pub what: &'static str,
    /// The capability without which it does not apply.
    pub needs: Option<Capability>,
}

impl Rule {
    pub(super) const fn new(name: &'static str, what: &'static str, needs: Option<Capability>) -> Self {
        Self { name, what, needs }
    }

    /// The capability that is missing for it.
    pub(super) fn missing(&self, capabilities: &Capabilities) -> Option<Capability> {
        self.needs.filter(|needed| !capabilities.has(*needed))
    }
}

/// What a run of all rules has done. Shown, it has one line for each rule that does not apply.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct RulesReport {
    /// The rules that were run, all of which hold.
    pub held: Vec<Rule>,
    /// The rules that do not apply, as the broker lacks what they need.
    pub not_applicable: Vec<Rule>,
}

impl fmt::Display for RulesReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Rule { name, needs, .. } in &self.not_applicable {
            let what = needs.map_or("do that", Capability::what);
            writeln!(f, "rule {name} not applicable: the broker cannot {what}")?;
        }
        Ok(())
    }
}

/// Runs the rules that apply and says on standard output which do not.
pub(super) async fn run_rules(
    rules: &[Rule],
    capabilities: Capabilities,
    run: impl AsyncFn(&'static str),
) -> RulesReport {
    let mut report = RulesReport::default();
    for rule in rules {
        if rule.missing(&capabilities).is_some() {
            report.not_applicable.push(*rule);
            continue;
        }
        tracing::debug!(rule = rule.name, "conformance");
        run(rule.name).await;
        report.held.push(*rule);
    }
    print!("{report}");
    report
}

/// Lists rules, each a function of its name: makes `RULES`, `run` and `run_all` of them.
macro_rules! rules {
    ($($rule:ident $(needs $capability:ident)?: $what:literal;)*) => {
        /// Every rule, in the order in which they are run.
        pub const RULES: &[Rule] = &[
            $(Rule::new(stringify!($rule), $what, rules!(@needs $($capability)?)),)*
        ];

        /// Runs one rule by its name, whether or not it applies.
        ///
        /// # Panics
        /// When it is broken, and when there is no such rule.
        pub async fn run<T: BrokerUnderTest>(subject: &T, rule: &str) {
            match rule {
                $(stringify!($rule) => Box::pin($rule(subject)).await,)*
                _ => panic!("there is no rule {rule}"),
            }
        }

        /// Runs every rule that the broker's [capabilities](super::Capabilities) call for. The report says which do not
        /// apply, and so does a line on standard output for each.
        ///
        /// # Panics
        /// When one is broken, with its name.
        pub async fn run_all<T: BrokerUnderTest>(subject: &T) -> RulesReport {
            run_rules(RULES, subject.capabilities(), async |rule| run(subject, rule).await).await
        }
    };
    (@needs) => { None };
    (@needs $capability:ident) => { Some(Capability::$capability) };
}

pub(super) use rules;

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::super::{publisher, source};

    /// A rule that is written and not listed would never be run.
    #[test]
    fn every_rule_that_is_written_is_listed() {
        for (folder, rules) in [("source", source::RULES), ("publisher", publisher::RULES)] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/conformance").join(folder);
            let mut written = Vec::new();
            for file in fs::read_dir(folder).unwrap() {
                let text = fs::read_to_string(file.unwrap().path()).unwrap();
                let names = text.lines().filter_map(|line| line.strip_prefix("pub async fn "));
                written.extend(names.filter_map(|line| Some(line.split_once('<')?.0.to_owned())));
            }
            let mut listed: Vec<_> = rules.iter().map(|rule| rule.name.to_owned()).collect();
            written.sort();
            listed.sort();
            assert_eq!(written, listed);
        }
    }
}
