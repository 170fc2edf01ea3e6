//! `docs/promises.md`: whether what it names is there. And the variants under `consumer-testing/broken`, each of which
//! breaks one promise.

use crate::stop::Stop;
use serde::Deserialize;
use std::{collections::BTreeSet, fs, path::Path};

pub(crate) const DOCUMENT: &str = "docs/promises.md";
const BROKEN: &str = "consumer-testing/broken";

/// A row of the document.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Promise {
    pub(crate) id: String,
    tests: Vec<String>,
    /// Whether a broken variant of it is kept.
    has_variant: bool,
}

/// A variant of the code that breaks a promise.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Broken {
    /// The row of the document.
    pub(crate) promise: String,
    /// From the root of the workspace.
    pub(crate) file: String,
    /// What keeps the promise; it has to be in the file once.
    pub(crate) line: String,
    /// What stands there in the variant.
    pub(crate) with: String,
    pub(crate) package: String,
    /// The integration test of the package; without it, its unit tests.
    pub(crate) target: Option<String>,
    /// Beyond the default ones.
    #[serde(default)]
    pub(crate) features: String,
    /// A part of the name of the test, which has to fail then.
    pub(crate) test: String,
    #[serde(default)]
    pub(crate) needs_servers: bool,
}

#[derive(Debug, Deserialize)]
struct Variants {
    broken: Vec<Broken>,
}

/// The rows of the tables whose first cell is a name in bold.
pub(crate) fn parse(document: &str) -> Vec<Promise> {
    document.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<Promise> {
    let cells: Vec<&str> = line.strip_prefix('|')?.trim_end_matches('|').split('|').map(str::trim).collect();
    let [id, _promise, _kept_by, tests, red] = cells[..] else { return None };
    let id = id.strip_prefix("**")?.strip_suffix("**")?;
    let tests = tests.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    Some(Promise { id: id.to_owned(), tests, has_variant: red.contains("variant") })
}

/// All variants, file by file.
pub(crate) fn broken(root: &Path) -> Result<Vec<Broken>, Stop> {
    let failed = |path: &Path, why: String| Stop::failed(format!("{}: {why}", path.display()));
    let folder = root.join(BROKEN);
    let entries = fs::read_dir(&folder).map_err(|error| failed(&folder, error.to_string()))?;
    let mut files: Vec<_> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    files.sort();
    let mut all = Vec::new();
    for file in files.iter().filter(|file| file.extension().is_some_and(|ending| ending == "toml")) {
        let text = fs::read_to_string(file).map_err(|error| failed(file, error.to_string()))?;
        let variants: Variants = toml::from_str(&text).map_err(|error| failed(file, error.to_string()))?;
        all.extend(variants.broken);
    }
    for variant in &all {
        let file = root.join(&variant.file);
        let text = fs::read_to_string(&file).map_err(|error| failed(&file, error.to_string()))?;
        let times = text.matches(&variant.line).count();
        if times != 1 {
            let why = format!(
                "what promise {} rests on is there {times} times:\n{}",
                variant.promise, variant.line
            );
            return Err(failed(&file, why));
        }
    }
    Ok(all)
}

/// What the document says and is not so. `listed` is what `cargo test -- --list` prints.
pub(crate) fn defects(document: &str, broken: &[Broken], listed: &str) -> Vec<String> {
    let tests: BTreeSet<&str> = listed
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(|path| path.rsplit("::").next().unwrap_or(path))
        .collect();
    let promises = parse(document);
    let mut defects = Vec::new();
    if promises.is_empty() {
        defects.push("there is no promise in it".to_owned());
    }
    let mut known = BTreeSet::new();
    for Promise { id, tests: named, has_variant } in &promises {
        if !known.insert(id.as_str()) {
            defects.push(format!("{id} is there twice"));
        }
        if named.is_empty() {
            defects.push(format!("{id} names no test"));
        }
        let missing = named.iter().filter(|name| !tests.contains(name.as_str()));
        defects.extend(missing.map(|name| format!("{id}: there is no test {name} that runs")));
        if *has_variant != broken.iter().any(|variant| variant.promise == *id) {
            defects.push(format!("{id}: what it says of a broken variant is not so"));
        }
    }
    let unknown = broken.iter().filter(|variant| !known.contains(variant.promise.as_str()));
    defects.extend(
        unknown.map(|variant| format!("a broken variant is for {}, which is no promise", variant.promise)),
    );
    defects
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "\
| # | promise | kept by | tests | seen red |
|---|---|---|---|---|
| **a** | x | `f.rs` | `one`, `two` | a variant |
| **b** | y | `g.rs` | `three` | naive |
";
    const LISTED: &str = "tests::one: test\ntwo: test\nc::d::three: test\nfour: benchmark\n";

    fn variant(promise: &str) -> Broken {
        let text = format!(
            "[[broken]]\npromise = '{promise}'\nfile = 'f'\nline = 'l'\nwith = 'w'\npackage = 'p'\ntest = 't'\n"
        );
        toml::from_str::<Variants>(&text).unwrap().broken.remove(0)
    }

    #[test]
    fn a_document_that_says_what_is_so_has_no_defect() {
        assert_eq!(defects(DOCUMENT, &[variant("a")], LISTED), [""; 0]);
    }

    #[test]
    fn whatever_is_not_so_is_found() {
        let missing = LISTED.replace("c::d::three", "c::three::more");
        assert_eq!(defects(DOCUMENT, &[variant("a")], &missing), ["b: there is no test three that runs"]);
        assert_eq!(defects(DOCUMENT, &[], LISTED), ["a: what it says of a broken variant is not so"]);
        let other = [variant("a"), variant("c")];
        assert_eq!(defects(DOCUMENT, &other, LISTED), ["a broken variant is for c, which is no promise"]);
        let twice = DOCUMENT.replace("**b**", "**a**");
        assert!(defects(&twice, &[variant("a")], LISTED).contains(&"a is there twice".to_owned()));
        assert_eq!(defects("nothing", &[], LISTED), ["there is no promise in it"]);
    }

    #[test]
    fn every_variant_still_finds_the_line_that_it_breaks() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        assert!(!broken(&root).unwrap().is_empty());
    }
}
