//! `sort`

use crate::context::{about, fail, Context, Fail, Outcome};
use crate::{files, options};
use std::cmp::Ordering;

#[derive(Clone, Default)]
struct Rules {
    numeric: bool,
    human: bool,
    version: bool,
    reverse: bool,
    fold: bool,
    blanks: bool,
    dictionary: bool,
}

impl Rules {
    fn letters(text: &str) -> Option<Rules> {
        let mut rules = Rules::default();
        for letter in text.chars() {
            match letter {
                'n' | 'g' => rules.numeric = true,
                'h' => rules.human = true,
                'V' => rules.version = true,
                'r' => rules.reverse = true,
                'f' => rules.fold = true,
                'b' => rules.blanks = true,
                'd' => rules.dictionary = true,
                'M' | 'i' => {}
                _ => return None,
            }
        }
        Some(rules)
    }
}

/// From field and character to field and character, counted from 1; an end of 0 is the
/// end of the field.
struct Key {
    from: (usize, usize),
    to: Option<(usize, usize)>,
    rules: Rules,
    own: bool,
}

fn key(text: &str) -> Option<Key> {
    let position = |text: &str, default: usize| -> Option<((usize, usize), String)> {
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (field, character) = text[..end].split_once('.').unwrap_or((&text[..end], ""));
        let character = if character.is_empty() {
            default
        } else {
            character.parse().ok()?
        };
        let field = field.parse().ok().filter(|field| *field > 0)?;
        Some(((field, character), text[end..].to_owned()))
    };
    let (from, to) = text
        .split_once(',')
        .map_or((text, None), |(from, to)| (from, Some(to)));
    let (from, mut letters) = position(from, 1)?;
    let to = match to {
        None => None,
        Some(to) => {
            let (to, more) = position(to, 0)?;
            letters += &more;
            Some(to)
        }
    };
    let own = !letters.is_empty();
    Some(Key {
        from: (from.0, from.1.max(1)),
        to,
        rules: Rules::letters(&letters)?,
        own,
    })
}

/// Where each field begins and ends. Without a separator a field has its leading blanks.
fn fields(line: &[u8], separator: Option<u8>) -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    let mut start = 0;
    match separator {
        Some(separator) => {
            for part in line.split(|byte| *byte == separator) {
                out.push((start, start + part.len()));
                start += part.len() + 1;
            }
        }
        None => {
            while start < line.len() {
                let blanks = line[start..]
                    .iter()
                    .position(|byte| !matches!(byte, b' ' | b'\t'))
                    .unwrap_or(line.len() - start);
                let text = &line[start + blanks..];
                let length = text
                    .iter()
                    .position(|byte| matches!(byte, b' ' | b'\t'))
                    .unwrap_or(text.len());
                out.push((start, start + blanks + length));
                start += blanks + length;
            }
        }
    }
    out
}

fn piece<'a>(line: &'a [u8], key: &Key, separator: Option<u8>) -> &'a [u8] {
    let fields = fields(line, separator);
    let skip = |(start, end): (usize, usize)| match key.rules.blanks {
        true => {
            start
                + line[start..end]
                    .iter()
                    .take_while(|byte| matches!(byte, b' ' | b'\t'))
                    .count()
        }
        false => start,
    };
    let start = match fields.get(key.from.0 - 1) {
        None => return b"",
        Some(field) => (skip(*field) + key.from.1 - 1).min(line.len()),
    };
    let end = match key
        .to
        .map(|(field, character)| (fields.get(field - 1), character))
    {
        None | Some((None, _)) => line.len(),
        Some((Some(field), 0)) => field.1,
        Some((Some(field), character)) => skip(*field).saturating_add(character).min(field.1),
    };
    &line[start..end.max(start)]
}

/// The number that a text begins with: sign, digits without leading zeros, fraction, unit.
fn number(text: &[u8]) -> (bool, &[u8], &[u8], u8) {
    let text = &text[text
        .iter()
        .take_while(|byte| byte.is_ascii_whitespace())
        .count()..];
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix(b"+").unwrap_or(text)),
    };
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let zeros = text[..digits]
        .iter()
        .take_while(|byte| **byte == b'0')
        .count();
    let rest = &text[digits..];
    let fraction = match rest.strip_prefix(b".") {
        Some(rest) => &rest[..rest.iter().take_while(|byte| byte.is_ascii_digit()).count()],
        None => &[],
    };
    let behind = digits
        + if fraction.is_empty() {
            0
        } else {
            1 + fraction.len()
        };
    let unit = text.get(behind).copied().unwrap_or(0);
    let trimmed = fraction.len()
        - fraction
            .iter()
            .rev()
            .take_while(|byte| **byte == b'0')
            .count();
    (negative, &text[zeros..digits], &fraction[..trimmed], unit)
}

fn by_number(a: &[u8], b: &[u8], human: bool) -> Ordering {
    let (a, b) = (number(a), number(b));
    let zero = |n: &(bool, &[u8], &[u8], u8)| n.1.is_empty() && n.2.is_empty();
    let sign = |n: &(bool, &[u8], &[u8], u8)| {
        if zero(n) {
            0
        } else if n.0 {
            -1
        } else {
            1
        }
    };
    let unit = |n: &(bool, &[u8], &[u8], u8)| {
        if human {
            b"KMGTPE"
                .iter()
                .position(|u| *u == n.3.to_ascii_uppercase())
                .map_or(0, |at| at + 1)
        } else {
            0
        }
    };
    let size = unit(&a)
        .cmp(&unit(&b))
        .then(a.1.len().cmp(&b.1.len()))
        .then(a.1.cmp(b.1))
        .then(a.2.cmp(b.2));
    sign(&a)
        .cmp(&sign(&b))
        .then(if sign(&a) < 0 { size.reverse() } else { size })
}

/// Digits as numbers, all else as text.
fn by_version(mut a: &[u8], mut b: &[u8]) -> Ordering {
    loop {
        let text = |part: &[u8]| {
            part.iter()
                .take_while(|byte| !byte.is_ascii_digit())
                .count()
        };
        let digits = |part: &[u8]| part.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (x, y) = (text(a), text(b));
        let order = a[..x].cmp(&b[..y]);
        a = &a[x..];
        b = &b[y..];
        let (x, y) = (digits(a), digits(b));
        let order = order.then(by_number(&a[..x], &b[..y], false));
        if order != Ordering::Equal || (a.is_empty() && b.is_empty()) {
            return order.then(a.len().cmp(&b.len()));
        }
        a = &a[x..];
        b = &b[y..];
    }
}

fn compare(a: &[u8], b: &[u8], rules: &Rules) -> Ordering {
    if rules.numeric || rules.human {
        return by_number(a, b, rules.human);
    }
    if rules.version {
        return by_version(a, b);
    }
    if !rules.fold && !rules.dictionary && !rules.blanks {
        return a.cmp(b);
    }
    let text = |text: &[u8]| -> Vec<u8> {
        let start = if rules.blanks {
            text.iter()
                .take_while(|byte| matches!(byte, b' ' | b'\t'))
                .count()
        } else {
            0
        };
        let kept = text[start..].iter().filter(|byte| {
            !rules.dictionary
                || byte.is_ascii_alphanumeric()
                || byte.is_ascii_whitespace()
                || **byte >= 0x80
        });
        kept.map(|byte| {
            if rules.fold {
                byte.to_ascii_uppercase()
            } else {
                *byte
            }
        })
        .collect()
    };
    text(a).cmp(&text(b))
}

pub(super) fn run(context: &mut Context) -> Outcome {
    let long = [
        ("numeric-sort", 'n'),
        ("reverse", 'r'),
        ("unique", 'u'),
        ("key", 'k'),
        ("field-separator", 't'),
        ("output", 'o'),
        ("ignore-case", 'f'),
        ("human-numeric-sort", 'h'),
        ("version-sort", 'V'),
        ("check", 'c'),
        ("stable", 's'),
        ("zero-terminated", 'z'),
        ("ignore-leading-blanks", 'b'),
    ];
    let options = options::parse(&context.args, "nrufbdghVMisczmk:t:o:T:S:", &long)?;
    let mut rules = String::new();
    for letter in "nrfbdghV".chars().filter(|letter| options.has(*letter)) {
        rules.push(letter);
    }
    let rules = Rules::letters(&rules).unwrap_or_default();
    let mut keys = Vec::new();
    for text in options.values('k') {
        match key(text) {
            Some(mut key) => {
                if !key.own {
                    key.rules = rules.clone();
                }
                keys.push(key);
            }
            None => return fail(format!("invalid key '{text}'")),
        }
    }
    let separator = match options.value('t') {
        None => None,
        Some("\\0") => Some(0),
        Some("\\t") => Some(b'\t'),
        Some(text) if text.len() == 1 => Some(text.as_bytes()[0]),
        Some(text) => return fail(format!("'{text}': the separator must be one character")),
    };
    let end = if options.has('z') { 0 } else { b'\n' };
    let mut lines: Vec<Vec<u8>> = Vec::new();
    let code = files::each_input(context, &options.rest, |_, _, reader| {
        let mut line = Vec::new();
        while files::next_line(reader, end, &mut line)? {
            lines.push(files::chomp(&line, end).to_vec());
        }
        Ok(())
    })?;
    let by_keys = |a: &Vec<u8>, b: &Vec<u8>| -> Ordering {
        if keys.is_empty() {
            let order = compare(a, b, &rules);
            return if rules.reverse {
                order.reverse()
            } else {
                order
            };
        }
        keys.iter().fold(Ordering::Equal, |order, key| {
            order.then_with(|| {
                let order = compare(
                    piece(a, key, separator),
                    piece(b, key, separator),
                    &key.rules,
                );
                if key.rules.reverse {
                    order.reverse()
                } else {
                    order
                }
            })
        })
    };
    let stable = options.has('s') || options.has('u');
    let whole = |a: &Vec<u8>, b: &Vec<u8>| {
        by_keys(a, b).then_with(|| match (stable, rules.reverse) {
            (true, _) => Ordering::Equal,
            (false, true) => b.cmp(a),
            (false, false) => a.cmp(b),
        })
    };
    if options.has('c') {
        let disorder = lines
            .windows(2)
            .position(|pair| match whole(&pair[0], &pair[1]) {
                Ordering::Greater => true,
                Ordering::Equal => options.has('u'),
                Ordering::Less => false,
            });
        return match disorder {
            Some(at) => fail(format!(
                "disorder at line {}: {}",
                at + 2,
                String::from_utf8_lossy(&lines[at + 1])
            )),
            None => Ok(code),
        };
    }
    lines.sort_by(whole);
    if options.has('u') {
        lines.dedup_by(|b, a| by_keys(a, b) == Ordering::Equal);
    }
    if let Some(name) = options.value('o') {
        let file = files::create(context, name, false)
            .map_err(|error| Fail::Text(2, about(name, &error)))?;
        context.output = Box::new(std::io::BufWriter::new(file));
    }
    for line in &lines {
        context.output.write_all(line)?;
        context.output.write_all(&[end])?;
    }
    Ok(code * 2)
}

#[cfg(test)]
mod tests {
    use crate::context::testing::{output, run, Room};

    #[test]
    fn lines_are_put_in_order() {
        for (command, input, expected) in [
            ("sort", "b\na\nc\n", "a\nb\nc\n"),
            ("sort -r", "b\na\nc\n", "c\nb\na\n"),
            ("sort -n", "10\n9\n-1\n2.5\nx\n", "-1\nx\n2.5\n9\n10\n"),
            ("sort -u", "b\na\nb\n", "a\nb\n"),
            ("sort -k2", "a 2\nb 1\n", "b 1\na 2\n"),
            ("sort -k2,2n -k1,1r", "a 10\nb 9\nc 9\n", "c 9\nb 9\na 10\n"),
            ("sort -t: -k2n", "a:10\nb:9\n", "b:9\na:10\n"),
            ("sort -f", "b\nA\nC\n", "A\nb\nC\n"),
            ("sort -h", "1K\n2\n1M\n512\n", "2\n512\n1K\n1M\n"),
            ("sort -V", "a10\na9\na9.1\n", "a9\na9.1\na10\n"),
            ("sort -nr", "1\n3\n2\n", "3\n2\n1\n"),
            ("sort -un", "1\n01\n2\n", "1\n2\n"),
            ("sort -k1.2", "ab\nba\n", "ba\nab\n"),
            (
                "sort -n",
                "123456789012345678901234567890\n99\n",
                "99\n123456789012345678901234567890\n",
            ),
            ("sort", "b\na", "a\nb\n"),
        ] {
            assert_eq!(output(command, input), expected, "{command}");
        }
        let room = Room::new();
        room.write("f", "b\na\n");
        room.output("sort -o f f");
        assert_eq!(room.read("f"), "a\nb\n");
        assert_eq!(run("sort -c", "a\nb\n").0, 0);
        assert_eq!(run("sort -c", "b\na\n").0, 1);
    }

    #[test]
    fn wrong_use_is_told() {
        for command in [
            "sort -k0",
            "sort -kx",
            "sort -k1q",
            "sort -k",
            "sort -t:: -k1",
            "sort --none",
        ] {
            assert_eq!(run(command, "a\n").0, 1, "{command}");
        }
        assert_eq!(run("sort /nonexistent", "").0, 2);
        assert_eq!(
            run("sort -k18446744073709551615.18446744073709551615", "a b\n").0,
            0
        );
    }
}
