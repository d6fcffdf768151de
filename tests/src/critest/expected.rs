//! What is expected of critest, by name, and the comparison with what happened.
//!
//! The lists stand in `critest/expected`, those for images of Wasm in `wasm` below it: `passed.txt`,
//! `skipped.txt`, `failing.txt`, `left-out.txt`. A line is a spec's full name. In all but the first a
//! line `# …` gives the reason for the names below it, and none may be without one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::report::{Outcome, Spec};

/// The lists.
#[derive(Debug, Default)]
pub struct Expected {
    passed: BTreeSet<String>,
    /// With reasons.
    skipped: BTreeMap<String, String>,
    /// With reasons.
    failing: BTreeMap<String, String>,
    /// Not run at all, with reasons.
    left_out: BTreeMap<String, String>,
}

/// What a run means.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Specs that passed as expected.
    pub passed: usize,
    /// Specs that skipped themselves as expected.
    pub skipped: usize,
    /// Specs that do not pass yet, as expected.
    pub failing: usize,
    /// Specs that were not run, as they should not.
    pub left_out: usize,
    /// One line for each spec that did something else.
    pub surprises: Vec<String>,
}

impl Expected {
    /// Reads the lists of a directory.
    pub fn read(dir: &Path) -> Result<Self> {
        let text = |name: &str| {
            let path = dir.join(name);
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        Self::parse(
            &text("passed.txt")?,
            &text("skipped.txt")?,
            &text("failing.txt")?,
            &text("left-out.txt")?,
        )
    }

    fn parse(passed: &str, skipped: &str, failing: &str, left_out: &str) -> Result<Self> {
        let lists = Self {
            passed: names(passed).map(str::to_owned).collect(),
            skipped: with_reasons(skipped).context("skipped.txt")?,
            failing: with_reasons(failing).context("failing.txt")?,
            left_out: with_reasons(left_out).context("left-out.txt")?,
        };
        let mut seen = BTreeSet::new();
        if let Some(name) = lists.names().find(|name| !seen.insert(*name)) {
            bail!("{name:?} stands in two lists");
        }
        Ok(lists)
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        self.passed
            .iter()
            .chain(self.skipped.keys())
            .chain(self.failing.keys())
            .chain(self.left_out.keys())
    }

    /// A regular expression of the names that are not to be run; `None` if all are.
    pub fn skip(&self) -> Option<String> {
        let names: Vec<String> = self.left_out.keys().map(|name| escaped(name)).collect();
        // critest puts the name of the suite and a blank in front.
        (!names.is_empty()).then(|| format!("(?:^| )(?:{})$", names.join("|")))
    }

    /// Compares; `whole` says that every spec was run, so that a missing one counts.
    pub fn judge(&self, specs: &[Spec], whole: bool) -> Verdict {
        let mut verdict = Verdict::default();
        for Spec { name, outcome, .. } in specs {
            match outcome {
                Outcome::Passed if self.passed.contains(name) => verdict.passed += 1,
                Outcome::Skipped(_) if self.skipped.contains_key(name) => verdict.skipped += 1,
                Outcome::Failed(_) if self.failing.contains_key(name) => verdict.failing += 1,
                Outcome::LeftOut if self.left_out.contains_key(name) => verdict.left_out += 1,
                Outcome::LeftOut if !whole => {}
                Outcome::LeftOut => verdict.surprises.push(format!("did not run: {name}")),
                Outcome::Passed => verdict
                    .surprises
                    .push(format!("passed, but is not in passed.txt: {name}")),
                Outcome::Skipped(why) => verdict
                    .surprises
                    .push(format!("skipped, but is not in skipped.txt: {name}: {why}")),
                Outcome::Failed(why) => verdict.surprises.push(format!("failed: {name}: {why}")),
            }
        }
        if whole {
            let seen: BTreeSet<&str> = specs.iter().map(|spec| &*spec.name).collect();
            verdict.surprises.extend(
                self.names()
                    .filter(|name| !seen.contains(name.as_str()))
                    .map(|name| format!("critest has no such spec: {name}")),
            );
        }
        verdict
    }

    /// Names that are not expected to pass, below their reasons.
    pub fn exceptions(&self) -> Vec<(&str, &str, Vec<&str>)> {
        let mut all = Vec::new();
        for (kind, list) in [
            ("skipped", &self.skipped),
            ("not yet passing", &self.failing),
            ("not run", &self.left_out),
        ] {
            let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for (name, reason) in list {
                reasons.entry(reason).or_default().push(name);
            }
            all.extend(
                reasons
                    .into_iter()
                    .map(|(reason, names)| (kind, reason, names)),
            );
        }
        all
    }
}

fn names(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// For a regular expression that means just this text.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        if r"\.+*?()|[]{}^$".contains(letter) {
            out.push('\\');
        }
        out.push(letter);
    }
    out
}

fn with_reasons(text: &str) -> Result<BTreeMap<String, String>> {
    let mut reason = "";
    let mut list = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.strip_prefix('#') {
            Some(text) => reason = text.trim(),
            None => {
                ensure!(!reason.is_empty(), "no reason above {line:?}");
                list.insert(line.to_owned(), reason.to_owned());
            }
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, outcome: Outcome) -> Spec {
        Spec {
            name: name.into(),
            outcome,
            seconds: 0.0,
        }
    }

    fn expected() -> Expected {
        Expected::parse(
            "a\nb\n",
            "# no AppArmor\nc\n",
            "# not written yet\nd\n",
            "# not of Wasm\ne [1|2]\nf\n",
        )
        .unwrap()
    }

    #[test]
    fn a_run_as_expected_has_no_surprise() {
        let specs = [
            spec("a", Outcome::Passed),
            spec("b", Outcome::Passed),
            spec("c", Outcome::Skipped("so".into())),
            spec("d", Outcome::Failed("so".into())),
            spec("e [1|2]", Outcome::LeftOut),
            spec("f", Outcome::LeftOut),
        ];
        let verdict = Verdict {
            passed: 2,
            skipped: 1,
            failing: 1,
            left_out: 2,
            surprises: vec![],
        };
        assert_eq!(expected().judge(&specs, true), verdict);
    }

    #[test]
    fn every_other_outcome_of_every_spec_is_a_surprise() {
        let outcomes = [
            Outcome::Passed,
            Outcome::Skipped("so".into()),
            Outcome::Failed("so".into()),
            Outcome::LeftOut,
        ];
        for (name, wanted) in [
            ("a", Some(0)),
            ("c", Some(1)),
            ("d", Some(2)),
            ("f", Some(3)),
            ("new", None),
        ] {
            for (number, outcome) in outcomes.iter().enumerate() {
                let surprises = expected()
                    .judge(&[spec(name, outcome.clone())], true)
                    .surprises;
                // The five others are missing.
                let others = if name == "new" { 6 } else { 5 };
                assert_eq!(
                    surprises.len() == others,
                    wanted == Some(number),
                    "{name}: {surprises:?}"
                );
            }
        }
        // Specs that a focus leaves out are none of its business.
        let focused = [spec("a", Outcome::LeftOut)];
        assert!(expected().judge(&focused, false).surprises.is_empty());
        assert_eq!(expected().judge(&[], true).surprises.len(), 6);
        assert!(expected().judge(&[], false).surprises.is_empty());
    }

    #[test]
    fn lists_without_a_reason_or_with_a_name_twice_are_refused() {
        assert!(Expected::parse("", "c\n", "", "").is_err());
        assert!(Expected::parse("", "", "", "c\n").is_err());
        assert!(Expected::parse("a\n", "# so\na\n", "", "").is_err());
        assert!(Expected::parse("", "# so\na\n", "# so\na\n", "").is_err());
        assert!(Expected::parse("a\n", "", "", "# so\na\n").is_err());
    }

    #[test]
    fn names_become_a_regular_expression() {
        let skip = expected().skip();
        assert_eq!(skip.as_deref(), Some(r"(?:^| )(?:e \[1\|2\]|f)$"));
        assert_eq!(Expected::parse("a\n", "", "", "").unwrap().skip(), None);
    }
}
