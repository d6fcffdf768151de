//! Shell patterns (`*`, `?`, `[a-z]`): matching of text, and of names in directories.

use crate::files;

/// The next character of some text and its length. A byte that is no UTF-8 is a character
/// of its own, beyond Unicode.
pub(crate) fn decode(bytes: &[u8]) -> (u32, usize) {
    let first = match bytes.first() {
        None => return (0, 0),
        Some(&first) => first,
    };
    let length = match first {
        0..=0x7f => return (first.into(), 1),
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    let decoded = bytes
        .get(..length)
        .and_then(|piece| std::str::from_utf8(piece).ok());
    match decoded.and_then(|text| text.chars().next()) {
        Some(c) => (c.into(), length),
        None => (0x11_0000 + u32::from(first), 1),
    }
}

/// Is a character in a class like `alpha`? None for an unknown class.
pub(crate) fn in_class(class: &[u8], c: u32) -> Option<bool> {
    let c = char::from_u32(c);
    let test = |ascii: fn(&char) -> bool, wide: fn(char) -> bool| match c {
        Some(c) if c.is_ascii() => ascii(&c),
        Some(c) => wide(c),
        None => false,
    };
    Some(match class {
        b"alpha" => test(char::is_ascii_alphabetic, char::is_alphabetic),
        b"digit" => test(char::is_ascii_digit, |_| false),
        b"alnum" => test(char::is_ascii_alphanumeric, char::is_alphanumeric),
        b"upper" => test(char::is_ascii_uppercase, char::is_uppercase),
        b"lower" => test(char::is_ascii_lowercase, char::is_lowercase),
        b"space" => test(
            |c| c.is_ascii_whitespace() || *c == '\x0b',
            char::is_whitespace,
        ),
        b"blank" => test(|c| *c == ' ' || *c == '\t', |_| false),
        b"punct" => test(char::is_ascii_punctuation, |_| false),
        b"cntrl" => test(char::is_ascii_control, char::is_control),
        b"print" => test(|c| c.is_ascii_graphic() || *c == ' ', |c| !c.is_control()),
        b"graph" => test(char::is_ascii_graphic, |c| {
            !c.is_control() && !c.is_whitespace()
        }),
        b"xdigit" => test(char::is_ascii_hexdigit, |_| false),
        _ => return None,
    })
}

#[derive(Debug, Clone, PartialEq)]
enum Member {
    Range(u32, u32),
    Class(Vec<u8>),
}

/// What stands between brackets.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Set {
    negated: bool,
    members: Vec<Member>,
}

impl Set {
    /// Reads a set behind its `[`; its length with the `]`. None if it does not end.
    /// `escapes`: a backslash quotes, as in shell patterns but not in regular expressions.
    pub(crate) fn parse(text: &[u8], negations: &[u8], escapes: bool) -> Option<(Set, usize)> {
        let mut at = 0;
        let negated = text
            .first()
            .map_or(false, |first| negations.contains(first));
        at += usize::from(negated);
        let start = at;
        let mut members = Vec::new();
        loop {
            let rest = text.get(at..)?;
            match rest.first()? {
                b']' if at > start => return Some((Set { negated, members }, at + 1)),
                b'[' if rest.starts_with(b"[:") => {
                    if let Some(length) = rest[2..].windows(2).position(|pair| pair == b":]") {
                        let class = &rest[2..2 + length];
                        if in_class(class, 0).is_some() {
                            members.push(Member::Class(class.to_vec()));
                            at += length + 4;
                            continue;
                        }
                    }
                }
                _ => {}
            }
            let one = |at: &mut usize| -> Option<u32> {
                if escapes && text.get(*at) == Some(&b'\\') && *at + 1 < text.len() {
                    *at += 1;
                }
                let (c, length) = decode(text.get(*at..)?);
                *at += length;
                (length > 0).then_some(c)
            };
            let low = one(&mut at)?;
            let mut high = low;
            if text.get(at) == Some(&b'-') && text.get(at + 1).map_or(false, |next| *next != b']') {
                at += 1;
                high = one(&mut at)?;
            }
            members.push(Member::Range(low, high));
        }
    }

    pub(crate) fn contains(&self, c: u32, ignore_case: bool) -> bool {
        let has = |c: u32| {
            self.members.iter().any(|member| match member {
                Member::Range(low, high) => (*low..=*high).contains(&c),
                Member::Class(class) => in_class(class, c).unwrap_or(false),
            })
        };
        let found = has(c) || (ignore_case && (has(lower(c)) || has(upper(c))));
        found != self.negated
    }
}

pub(crate) fn lower(c: u32) -> u32 {
    char::from_u32(c)
        .and_then(|c| c.to_lowercase().next())
        .map_or(c, u32::from)
}

pub(crate) fn upper(c: u32) -> u32 {
    char::from_u32(c)
        .and_then(|c| c.to_uppercase().next())
        .map_or(c, u32::from)
}

#[derive(Debug, Clone, PartialEq)]
enum Item {
    One(u32),
    Any,
    Star,
    Set(Set),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pattern(Vec<Item>);

impl Pattern {
    /// A pattern in which a backslash quotes.
    pub(crate) fn new(text: &[u8]) -> Pattern {
        let mut items = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let rest = &text[at..];
            match rest[0] {
                b'*' => {
                    if items.last() != Some(&Item::Star) {
                        items.push(Item::Star);
                    }
                    at += 1;
                    continue;
                }
                b'?' => {
                    items.push(Item::Any);
                    at += 1;
                    continue;
                }
                b'[' => {
                    if let Some((set, length)) = Set::parse(&rest[1..], b"!^", true) {
                        items.push(Item::Set(set));
                        at += 1 + length;
                        continue;
                    }
                }
                b'\\' if rest.len() > 1 => at += 1,
                _ => {}
            }
            let (c, length) = decode(&text[at..]);
            items.push(Item::One(c));
            at += length;
        }
        Pattern(items)
    }

    pub(crate) fn matches(&self, text: &[u8]) -> bool {
        let items = &self.0;
        let (mut item, mut at) = (0, 0);
        // where the last star stands, and up to where it has eaten
        let mut star: Option<(usize, usize)> = None;
        loop {
            if items.get(item) == Some(&Item::Star) {
                star = Some((item, at));
                item += 1;
                continue;
            }
            if at == text.len() && item == items.len() {
                return true;
            }
            let (c, length) = decode(&text[at..]);
            let fits = length > 0
                && match items.get(item) {
                    Some(Item::One(one)) => *one == c,
                    Some(Item::Any) => true,
                    Some(Item::Set(set)) => set.contains(c, false),
                    _ => false,
                };
            if fits {
                item += 1;
                at += length;
                continue;
            }
            match star {
                Some((position, eaten)) if eaten < text.len() => {
                    let eaten = eaten + decode(&text[eaten..]).1;
                    star = Some((position, eaten));
                    item = position + 1;
                    at = eaten;
                }
                _ => return false,
            }
        }
    }
}

pub(crate) fn has_magic(text: &[u8]) -> bool {
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

pub(crate) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter().peekable();
    while let Some(&byte) = bytes.next() {
        match (byte, bytes.peek()) {
            (b'\\', Some(&&next)) => {
                out.push(next);
                bytes.next();
            }
            _ => out.push(byte),
        }
    }
    out
}

/// The names that match a pattern of path components, sorted; empty if none does.
/// `directory` is where relative patterns start.
pub(crate) fn names(directory: &str, pattern: &[u8]) -> Vec<Vec<u8>> {
    let absolute = pattern.starts_with(b"/");
    let parts: Vec<&[u8]> = pattern.split(|byte| *byte == b'/').collect();
    let mut found: Vec<Vec<u8>> = vec![Vec::new()];
    for (number, part) in parts.iter().enumerate() {
        let last = number + 1 == parts.len();
        if part.is_empty() && number == 0 && absolute {
            found = vec![b"/".to_vec()];
            continue;
        }
        let mut next = Vec::new();
        for prefix in &found {
            let mut with = |name: &[u8]| {
                let mut path = prefix.clone();
                path.extend_from_slice(name);
                if !last {
                    path.push(b'/');
                }
                next.push(path);
            };
            let base = files::absolute(directory, &String::from_utf8_lossy(prefix));
            if !has_magic(part) {
                let name = unescape(part);
                let path = files::join(&base, &String::from_utf8_lossy(&name));
                if name.is_empty() || files::lookup(&path).is_ok() {
                    with(&name);
                }
                continue;
            }
            let matcher = Pattern::new(part);
            // dot, dot-dot and hidden names only by a dot in the pattern
            let hidden = part.starts_with(b".");
            let mut names = files::list(&base).unwrap_or_default();
            if hidden {
                names.extend([".".to_owned(), "..".to_owned()]);
                names.sort();
            }
            for name in names {
                if name.starts_with('.') != hidden || !matcher.matches(name.as_bytes()) {
                    continue;
                }
                if last
                    || std::fs::metadata(files::join(&base, &name))
                        .map_or(false, |data| data.is_dir())
                {
                    with(name.as_bytes());
                }
            }
        }
        found = next;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::testing::Room;

    #[test]
    fn patterns_match_as_in_the_shell() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("a*c", "abc", true),
            ("a*c", "abcd", false),
            ("*a*b*", "xaxxbx", true),
            ("?", "ä", true),
            ("??", "ä", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[^a-c]x", "dx", true),
            ("[]x]", "]", true),
            ("[[:digit:]]*", "7up", true),
            ("[[:digit:]]", "a", false),
            ("[a", "[a", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("[\\]]", "]", true),
            ("[a-]", "-", true),
            ("", "", true),
            ("*.txt", ".txt", true),
            ("\\", "\\", true),
        ] {
            assert_eq!(
                Pattern::new(pattern.as_bytes()).matches(text.as_bytes()),
                fits,
                "{pattern} {text}"
            );
        }
        // bytes that are no text
        assert!(Pattern::new(b"a?c").matches(b"a\xffc"));
        // exponential for a naive matcher
        assert!(!Pattern::new(&b"*a".repeat(50)).matches(&b"a".repeat(49)));
    }

    #[test]
    fn names_are_found_by_component() {
        let room = Room::new();
        for directory in ["d1", "d2", ".hidden"] {
            std::fs::create_dir(format!("{}/{directory}", room.0)).expect("a fresh room");
            room.write(&format!("{directory}/f.txt"), "");
        }
        room.write("file", "");
        let find = |pattern: &str| -> Vec<String> {
            names(&room.0, pattern.as_bytes())
                .iter()
                .map(|name| String::from_utf8_lossy(name).into_owned())
                .collect()
        };
        assert_eq!(find("*"), ["d1", "d2", "file"]);
        assert_eq!(find("d*/f*"), ["d1/f.txt", "d2/f.txt"]);
        assert_eq!(find("*/"), ["d1/", "d2/"]);
        assert_eq!(find(".h*"), [".hidden"]);
        assert_eq!(find("./f*"), ["./file"]);
        assert_eq!(
            find(&format!("{}/d[2-9]", room.0)),
            [format!("{}/d2", room.0)]
        );
        assert!(find("x*").is_empty() && find("file/*").is_empty());
    }
}
