//! `$name` and what stands in `${ }`.

use super::ast::*;
use super::exec::{Flow, Shell};
use super::expand::Fields;
use crate::glob::{self, Pattern};

/// What a parameter holds.
enum Value {
    Unset,
    Text(Vec<u8>),
    /// `$@` and `$*`
    All(Vec<Vec<u8>>),
}

impl Value {
    fn map(self, change: impl Fn(&[u8]) -> Vec<u8>) -> Value {
        match self {
            Value::Unset => Value::Unset,
            Value::Text(text) => Value::Text(change(&text)),
            Value::All(all) => Value::All(all.iter().map(|text| change(text)).collect()),
        }
    }
}

/// Offsets of the characters of a text, and its end.
fn boundaries(text: &[u8]) -> Vec<usize> {
    let mut offsets = vec![0];
    let mut at = 0;
    while at < text.len() {
        at += glob::decode(&text[at..]).1;
        offsets.push(at);
    }
    offsets
}

fn trim(text: &[u8], pattern: &Pattern, back: bool, longest: bool) -> Vec<u8> {
    let mut offsets = boundaries(text);
    // from the cut that takes least, unless the longest is wanted
    if back != longest {
        offsets.reverse();
    }
    for at in offsets {
        let (cut, rest) = if back {
            (&text[at..], &text[..at])
        } else {
            (&text[..at], &text[at..])
        };
        if pattern.matches(cut) {
            return rest.to_vec();
        }
    }
    text.to_vec()
}

fn replace(text: &[u8], pattern: &[u8], with: &[u8], all: bool) -> Vec<u8> {
    let (front, back, pattern) = match pattern.first() {
        Some(b'#') => (true, false, &pattern[1..]),
        Some(b'%') => (false, true, &pattern[1..]),
        _ => (false, false, pattern),
    };
    if pattern.is_empty() && !front && !back {
        return text.to_vec();
    }
    let pattern = Pattern::new(pattern);
    let offsets = boundaries(text);
    let mut out = Vec::new();
    let mut number = 0;
    while number < offsets.len() {
        let start = offsets[number];
        // the longest match that begins here
        let found = offsets[number..].iter().rposition(|end| {
            let fits = (!front || start == 0) && (!back || *end == text.len());
            fits && (*end > start || front || back) && pattern.matches(&text[start..*end])
        });
        if let Some(length) = found {
            out.extend_from_slice(with);
            let end = number + length;
            if !all || front || back || length == 0 {
                out.extend_from_slice(&text[offsets[end]..]);
                return out;
            }
            number = end;
            continue;
        }
        let end = offsets.get(number + 1).copied().unwrap_or(text.len());
        out.extend_from_slice(&text[start..end]);
        number += 1;
    }
    out
}

/// The range of `offset:length` in something of `count` pieces; offsets below zero count
/// from the end, and so do lengths.
fn range(offset: i64, length: Option<i64>, count: usize) -> Option<(usize, usize)> {
    let count = count as i64;
    let start = if offset < 0 {
        offset.checked_add(count)?
    } else {
        offset
    };
    if start < 0 || start > count {
        return None;
    }
    let end = match length {
        None => count,
        Some(length) if length < 0 => length.checked_add(count)?,
        Some(length) => start.saturating_add(length).min(count),
    };
    (end >= start).then_some((start as usize, end as usize))
}

impl Shell {
    /// The text of a parameter; none if it is not set.
    pub(super) fn value_of(&self, name: &[u8]) -> Option<Vec<u8>> {
        let number = |n: i64| Some(n.to_string().into_bytes());
        match name {
            b"?" => number(self.state.status.into()),
            b"$" => number(self.number.into()),
            b"!" => self
                .state
                .last_background
                .map(|n| n.to_string().into_bytes()),
            b"#" => number(self.state.parameters.len() as i64),
            b"-" => {
                let letters = self
                    .state
                    .options
                    .0
                    .iter()
                    .filter(|letter| **letter != b'P');
                let mut text: Vec<u8> = letters.copied().collect();
                if self.interactive {
                    text.push(b'i');
                }
                Some(text)
            }
            b"0" => Some(self.name.clone().into_bytes()),
            b"@" | b"*" => Some(self.state.parameters.join(&b' ')),
            b"LINENO" if self.state.get(name).is_none() => number(self.line.into()),
            b"RANDOM" if self.state.get(name).is_none() => number(i64::from(random() & 0x7fff)),
            _ if name[0].is_ascii_digit() => {
                let index: usize = std::str::from_utf8(name).ok()?.parse().ok()?;
                self.state.parameters.get(index.checked_sub(1)?).cloned()
            }
            _ => self.state.get(name).cloned(),
        }
    }

    pub(super) fn expand_parameter(
        &mut self,
        parameter: &Parameter,
        fields: &mut Fields,
        quoted: bool,
    ) -> Result<(), Flow> {
        let name = &parameter.name;
        let mut value = match name.as_slice() {
            b"@" | b"*" => Value::All(self.state.parameters.clone()),
            _ => self.value_of(name).map_or(Value::Unset, Value::Text),
        };
        match &parameter.operation {
            Operation::Test { colon, kind, word } => {
                let set = match &value {
                    Value::Unset => false,
                    Value::Text(text) => !(*colon && text.is_empty()),
                    Value::All(all) => {
                        !(all.is_empty() || (*colon && all.iter().all(Vec::is_empty)))
                    }
                };
                match (kind, set) {
                    (b'+', true) | (b'-', false) => {
                        return self.expand_parts(word, fields, quoted, false)
                    }
                    (b'+', false) => return Ok(()),
                    (_, true) => {}
                    (b'=', false) => {
                        let text = self.expand_string(word)?;
                        if !super::parser::is_name(name) {
                            return Err(Flow::Fatal(format!(
                                "{}: cannot be assigned to",
                                self.show(name)
                            )));
                        }
                        self.state.set(name, text.clone()).map_err(Flow::Fatal)?;
                        value = Value::Text(text);
                    }
                    _ => {
                        let text = self.expand_string(word)?;
                        let text = match (text.is_empty(), colon) {
                            (false, _) => self.show(&text),
                            (true, true) => "parameter not set or null".to_owned(),
                            (true, false) => "parameter not set".to_owned(),
                        };
                        return Err(Flow::Fatal(format!("{}: {text}", self.show(name))));
                    }
                }
            }
            _ if matches!(value, Value::Unset) && self.state.options.has(b'u') => {
                return Err(Flow::Fatal(format!(
                    "{}: parameter not set",
                    self.show(name)
                )));
            }
            Operation::Plain => {}
            Operation::Length => {
                let length = match &value {
                    Value::Unset => 0,
                    Value::Text(text) => boundaries(text).len() - 1,
                    Value::All(all) => all.len(),
                };
                value = Value::Text(length.to_string().into_bytes());
            }
            Operation::Trim {
                back,
                longest,
                pattern,
            } => {
                let pattern = Pattern::new(&self.expand_pattern(pattern)?);
                value = value.map(|text| trim(text, &pattern, *back, *longest));
            }
            Operation::Slice { offset, length } => {
                let text = self.expand_text(offset)?;
                let offset = self.arithmetic(&text)?;
                let length = match length {
                    None => None,
                    Some(length) => {
                        let text = self.expand_text(length)?;
                        Some(self.arithmetic(&text)?)
                    }
                };
                value = match value {
                    Value::Unset => Value::Unset,
                    Value::Text(text) => {
                        let offsets = boundaries(&text);
                        let range = range(offset, length, offsets.len() - 1);
                        Value::Text(range.map_or(Vec::new(), |(start, end)| {
                            text[offsets[start]..offsets[end]].to_vec()
                        }))
                    }
                    Value::All(mut all) => {
                        // `${@:0}` has $0 in front
                        all.insert(0, self.name.clone().into_bytes());
                        let range = range(offset, length, all.len());
                        Value::All(
                            range.map_or(Vec::new(), |(start, end)| all[start..end].to_vec()),
                        )
                    }
                };
            }
            Operation::Replace { all, pattern, text } => {
                let pattern = self.expand_pattern(pattern)?;
                let with = self.expand_string(text)?;
                value = value.map(|text| replace(text, &pattern, &with, *all));
            }
        }
        match value {
            Value::Unset => {}
            Value::Text(text) => self.put(&text, fields, quoted),
            Value::All(all) => self.put_all(name, &all, fields, quoted),
        }
        Ok(())
    }

    fn put_all(&self, name: &[u8], all: &[Vec<u8>], fields: &mut Fields, quoted: bool) {
        if quoted && (name == b"*" || !fields.splits()) {
            let separator = match name {
                b"*" => self.separators().first().copied(),
                _ => Some(b' '),
            };
            let joined = match separator {
                Some(separator) => all.join(&separator),
                None => all.concat(),
            };
            return fields.quoted(&joined);
        }
        for (number, text) in all.iter().enumerate() {
            if number > 0 {
                match fields.splits() {
                    true => fields.end(),
                    false => fields.split(b" "),
                }
            }
            if quoted {
                fields.quoted(text);
            } else {
                fields.split(text);
            }
        }
    }

    pub(super) fn show(&self, bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }
}

/// A number that the host chose.
pub(super) fn random() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_trimmed_and_replaced() {
        let cut = |text: &str, pattern: &str, back, longest| {
            String::from_utf8(trim(
                text.as_bytes(),
                &Pattern::new(pattern.as_bytes()),
                back,
                longest,
            ))
            .expect("text")
        };
        assert_eq!(cut("a/b/c", "*/", false, false), "b/c");
        assert_eq!(cut("a/b/c", "*/", false, true), "c");
        assert_eq!(cut("a/b/c", "/*", true, false), "a/b");
        assert_eq!(cut("a/b/c", "/*", true, true), "a");
        assert_eq!(cut("äöü", "?", false, false), "öü");
        assert_eq!(cut("abc", "x", true, true), "abc");
        let change = |text: &str, pattern: &str, with: &str, all| {
            String::from_utf8(replace(
                text.as_bytes(),
                pattern.as_bytes(),
                with.as_bytes(),
                all,
            ))
            .expect("text")
        };
        assert_eq!(change("aXbXc", "X", "-", false), "a-bXc");
        assert_eq!(change("aXbXc", "X", "-", true), "a-b-c");
        assert_eq!(change("aXbXc", "X*", "-", true), "a-");
        assert_eq!(change("abab", "#ab", "-", true), "-ab");
        assert_eq!(change("abab", "%ab", "-", false), "ab-");
        assert_eq!(change("ab", "", "-", true), "ab");
        assert_eq!(change("", "*", "x", true), "");
    }

    #[test]
    fn slices_stay_inside() {
        for (offset, length, expected) in [
            (0, None, Some((0, 5))),
            (2, Some(2), Some((2, 4))),
            (-2, None, Some((3, 5))),
            (1, Some(-1), Some((1, 4))),
            (9, None, None),
            (-9, None, None),
            (i64::MIN, None, None),
            (1, Some(i64::MAX), Some((1, 5))),
            (3, Some(-4), None),
        ] {
            assert_eq!(range(offset, length, 5), expected, "{offset} {length:?}");
        }
    }
}
