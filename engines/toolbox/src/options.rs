//! Options of applets: `-ab -n3 -n 3 --long --long=value`, in any place before `--`.

use std::time::Duration;

use crate::context::{usage, Fail};

pub(crate) struct Options {
    given: Vec<(char, String)>,
    /// what is not an option
    pub(crate) rest: Vec<String>,
}

/// Reads arguments. `short` has the letters, one that takes a value is followed by `:`;
/// a leading `+` ends the options at the first word that is none. `long` gives words for letters.
pub(crate) fn parse(args: &[String], short: &str, long: &[(&str, char)]) -> Result<Options, Fail> {
    let (short, ends_early) = match short.strip_prefix('+') {
        Some(rest) => (rest, true),
        None => (short, false),
    };
    let takes_value = |letter: char| -> Option<bool> {
        let at = short.find(letter).filter(|_| letter != ':')?;
        Some(short[at + letter.len_utf8()..].starts_with(':'))
    };
    let mut options = Options {
        given: Vec::new(),
        rest: Vec::new(),
    };
    let mut words = args.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            options.rest.extend(words.cloned());
            break;
        }
        if let Some(name) = word.strip_prefix("--") {
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            let letter = match long.iter().find(|(n, _)| *n == name) {
                Some((_, letter)) => *letter,
                None => return usage(format!("unrecognized option '--{name}'")),
            };
            let value = match (takes_value(letter), value) {
                (Some(true), None) => match words.next() {
                    Some(value) => value.clone(),
                    None => return usage(format!("option '--{name}' requires an argument")),
                },
                (_, value) => value.unwrap_or_default(),
            };
            options.given.push((letter, value));
        } else if word.len() > 1 && word.starts_with('-') {
            for (at, letter) in word[1..].char_indices() {
                match takes_value(letter) {
                    None => return usage(format!("invalid option -- '{letter}'")),
                    Some(false) => options.given.push((letter, String::new())),
                    Some(true) => {
                        let attached = &word[1 + at + letter.len_utf8()..];
                        let value = if attached.is_empty() {
                            match words.next() {
                                Some(value) => value.clone(),
                                None => {
                                    return usage(format!(
                                        "option requires an argument -- '{letter}'"
                                    ))
                                }
                            }
                        } else {
                            attached.to_owned()
                        };
                        options.given.push((letter, value));
                        break;
                    }
                }
            }
        } else {
            options.rest.push(word.clone());
            if ends_early {
                options.rest.extend(words.cloned());
                break;
            }
        }
    }
    Ok(options)
}

impl Options {
    pub(crate) fn has(&self, letter: char) -> bool {
        self.given.iter().any(|(l, _)| *l == letter)
    }

    /// The last value given.
    pub(crate) fn value(&self, letter: char) -> Option<&str> {
        self.given
            .iter()
            .rev()
            .find(|(l, _)| *l == letter)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn values(&self, letter: char) -> impl Iterator<Item = &str> + '_ {
        self.given
            .iter()
            .filter(move |(l, _)| *l == letter)
            .map(|(_, value)| value.as_str())
    }

    /// The last of several letters given.
    pub(crate) fn last_of(&self, letters: &str) -> Option<char> {
        self.given
            .iter()
            .rev()
            .map(|(l, _)| *l)
            .find(|l| letters.contains(*l))
    }
}

/// A count with the suffixes of dd, head and find: c, w, b, k, M, G (and kB for 1000).
pub(crate) fn number(text: &str) -> Result<u64, Fail> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let unit: u64 = match &text[digits..] {
        "" | "c" => 1,
        "w" => 2,
        "b" => 512,
        "k" | "K" | "KiB" => 1 << 10,
        "m" | "M" | "MiB" => 1 << 20,
        "g" | "G" | "GiB" => 1 << 30,
        "kB" => 1000,
        "MB" => 1_000_000,
        _ => return usage(format!("invalid number '{text}'")),
    };
    match text[..digits]
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(unit))
    {
        Some(n) => Ok(n),
        None => usage(format!("invalid number '{text}'")),
    }
}

/// What "infinity" is, and all that is longer: a hundred years. WASI counts a sleep in
/// nanoseconds of 64 bits, which is 584 years, and std panics beyond.
pub(crate) const FOREVER: Duration = Duration::from_secs(100 * 365 * 86400);

/// A time span as sleep and timeout take it: seconds with a fraction, or with s, m, h, d.
pub(crate) fn span(text: &str) -> Result<Duration, Fail> {
    let (digits, unit) = match text.chars().last() {
        Some('s') => (&text[..text.len() - 1], 1.0),
        Some('m') => (&text[..text.len() - 1], 60.0),
        Some('h') => (&text[..text.len() - 1], 3600.0),
        Some('d') => (&text[..text.len() - 1], 86400.0),
        _ => (text, 1.0),
    };
    if text == "infinity" || text == "inf" {
        return Ok(FOREVER);
    }
    match digits.parse::<f64>() {
        Ok(n) if n >= 0.0 && digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {
            let seconds = (n * unit).min(FOREVER.as_secs_f64());
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => usage(format!("invalid time interval '{text}'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn options_stand_anywhere_and_together() {
        let options = parse(
            &words("a -xn3 b -n 4 --deep --level=5 -- -z"),
            "xn:dl:",
            &[("deep", 'd'), ("level", 'l')],
        );
        let options = options.expect("all known");
        assert!(options.has('x') && options.has('d') && !options.has('z'));
        assert_eq!(options.values('n').collect::<Vec<_>>(), ["3", "4"]);
        assert_eq!(options.value('l'), Some("5"));
        assert_eq!(options.rest, ["a", "b", "-z"]);
    }

    #[test]
    fn wrong_options_are_told() {
        for bad in ["-q", "-n", "--none", "-:", "--level"] {
            assert!(
                parse(&words(bad), "xn:l:", &[("level", 'l')]).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn numbers_have_units_and_bounds() {
        assert_eq!(number("20M").expect("fits"), 20 << 20);
        assert_eq!(number("7").expect("fits"), 7);
        for bad in [
            "",
            "x",
            "-1",
            "99999999999999999999",
            "18446744073709551615k",
            "1x",
        ] {
            assert!(number(bad).is_err(), "{bad}");
        }
        assert_eq!(span("0.5m").expect("a span").as_secs(), 30);
        for endless in ["infinity", "inf", "1000000d", "9e99"] {
            assert_eq!(span(endless).expect("a span"), FOREVER, "{endless}");
        }
        // or std's sleep panics
        assert!(u64::try_from(FOREVER.as_nanos()).is_ok());
        for bad in ["", "s", "-1", "nan", "1y", "é"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }
}
