//! The command line of a benchmark: words in pairs, `--name value`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

/// What was given and not taken yet.
pub struct Options {
    usage: &'static str,
    given: Vec<(String, String)>,
}

impl Options {
    /// Of this process.
    ///
    /// # Errors
    /// A name without a value.
    pub fn read(usage: &'static str) -> Result<Self> {
        Self::of(usage, std::env::args().skip(1))
    }

    fn of(usage: &'static str, words: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut words = words.into_iter();
        let mut given = Vec::new();
        while let Some(name) = words.next() {
            let value = words
                .next()
                .with_context(|| format!("{name} needs a value; {usage}"))?;
            given.push((name, value));
        }
        Ok(Self { usage, given })
    }

    /// The last value of that name, if it was given.
    fn take(&mut self, name: &str) -> Option<String> {
        let mut last = None;
        self.given.retain(|(given, value)| {
            if given == name {
                last = Some(value.clone());
            }
            given != name
        });
        last
    }

    /// A number.
    ///
    /// # Errors
    /// It is none.
    pub fn number(&mut self, name: &str, default: usize) -> Result<usize> {
        match self.take(name) {
            Some(value) => usize::from_str(&value).with_context(|| format!("{name} {value}")),
            None => Ok(default),
        }
    }

    /// A number of rounds whose percentiles are shown.
    ///
    /// # Errors
    /// It is no number, or too small for that.
    pub fn rounds(&mut self, name: &str, default: usize) -> Result<usize> {
        let rounds = self.number(name, default)?;
        ensure!(
            rounds >= 30,
            "percentiles of fewer than 30 rounds say nothing"
        );
        Ok(rounds)
    }

    /// A file or directory, made absolute.
    ///
    /// # Errors
    /// It is empty.
    pub fn path(&mut self, name: &str) -> Result<Option<PathBuf>> {
        self.take(name)
            .map(|value| std::path::absolute(&value).with_context(|| name.to_owned()))
            .transpose()
    }

    /// After the last one that is known.
    ///
    /// # Errors
    /// Another one was given.
    pub fn end(self) -> Result<()> {
        match self.given.first() {
            Some((name, _)) => bail!("{name} is unknown; {}", self.usage),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Result<Options> {
        Options::of("usage: x", words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn what_is_given_is_taken_and_nothing_else_may_be_there() {
        let mut given = options(&["--n", "31", "--to", "/a", "--n", "40"]).unwrap();
        assert_eq!(given.rounds("--n", 30).unwrap(), 40);
        assert_eq!(given.number("--m", 7).unwrap(), 7);
        assert_eq!(given.path("--to").unwrap(), Some("/a".into()));
        assert_eq!(given.path("--from").unwrap(), None);
        given.end().unwrap();
    }

    #[test]
    fn mistakes_are_told() {
        let told = |error: anyhow::Error, wanted: &str| {
            let text = format!("{error:#}");
            assert!(text.contains(wanted), "{text}");
        };
        told(options(&["--n"]).err().unwrap(), "--n needs a value");
        let mut given = options(&["--n", "29", "--m", "x"]).unwrap();
        told(given.rounds("--n", 30).unwrap_err(), "fewer than 30");
        told(given.number("--m", 1).unwrap_err(), "--m x");
        let given = options(&["--what", "1"]).unwrap();
        told(given.end().unwrap_err(), "--what is unknown; usage: x");
    }
}
