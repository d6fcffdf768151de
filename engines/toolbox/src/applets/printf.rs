//! `echo` and `printf`, for the applets and the shell's builtins.

use crate::context::{Context, Outcome};

/// Backslash escapes of `$'…'`, printf and `echo -e`; false when `\c` ended the output.
pub(crate) fn unescape(text: &[u8]) -> (Vec<u8>, bool) {
    escapes(text, false)
}

/// `zero`: octal numbers begin with a zero, as in `echo -e` and `%b`.
fn escapes(text: &[u8], zero: bool) -> (Vec<u8>, bool) {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        if text[at] != b'\\' || at + 1 == text.len() {
            out.push(text[at]);
            at += 1;
            continue;
        }
        at += 1;
        let letter = text[at];
        at += 1;
        let digits = |from: usize, most: usize, base: u32| -> usize {
            let rest = &text[from.min(text.len())..];
            rest.iter()
                .take(most)
                .take_while(|byte| (**byte as char).is_digit(base))
                .count()
        };
        let value = |from: usize, count: usize, base: u32| -> u32 {
            text[from..from + count].iter().fold(0, |sum, byte| {
                sum * base + (*byte as char).to_digit(base).unwrap_or(0)
            })
        };
        match letter {
            b'a' => out.push(7),
            b'b' => out.push(8),
            b'c' => return (out, false),
            b'e' | b'E' => out.push(27),
            b'f' => out.push(12),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'v' => out.push(11),
            b'\\' | b'\'' | b'"' => out.push(letter),
            b'x' if digits(at, 2, 16) > 0 => {
                let count = digits(at, 2, 16);
                out.push(value(at, count, 16) as u8);
                at += count;
            }
            b'u' | b'U' if digits(at, if letter == b'u' { 4 } else { 8 }, 16) > 0 => {
                let count = digits(at, if letter == b'u' { 4 } else { 8 }, 16);
                let c = char::from_u32(value(at, count, 16)).unwrap_or(char::REPLACEMENT_CHARACTER);
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                at += count;
            }
            b'0'..=b'7' if !zero || letter == b'0' => {
                let from = if zero { at } else { at - 1 };
                let count = digits(from, 3, 8);
                out.push(value(from, count, 8) as u8);
                at = from + count;
            }
            _ => out.extend_from_slice(&[b'\\', letter]),
        }
    }
    (out, true)
}

pub(crate) fn echo(words: &[&[u8]]) -> Vec<u8> {
    let (mut newline, mut escaped) = (true, false);
    let mut words = words;
    while let Some((first, rest)) = words.split_first() {
        if first.len() < 2
            || first[0] != b'-'
            || !first[1..].iter().all(|letter| b"neE".contains(letter))
        {
            break;
        }
        for letter in &first[1..] {
            match letter {
                b'n' => newline = false,
                letter => escaped = *letter == b'e',
            }
        }
        words = rest;
    }
    let mut text = words.join(&b' ');
    if escaped {
        let (unescaped, whole) = escapes(&text, true);
        text = unescaped;
        newline = newline && whole;
    }
    if newline {
        text.push(b'\n');
    }
    text
}

/// What printf makes; with errors its exit code is 1.
#[derive(Default)]
pub(crate) struct Printed {
    pub(crate) text: Vec<u8>,
    pub(crate) errors: Vec<String>,
}

#[derive(Default)]
struct Spec {
    left: bool,
    plus: bool,
    space: bool,
    zero: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

/// No field is wider: a script's mistake must not take the memory.
const WIDEST: usize = 1 << 16;

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Spec {
    fn pad(&self, sign: &str, body: Vec<u8>, zero: bool) -> Vec<u8> {
        let length = sign.len() + String::from_utf8_lossy(&body).chars().count();
        let fill = self.width.saturating_sub(length);
        let mut out = Vec::new();
        if !self.left && !zero {
            out.resize(fill, b' ');
        }
        out.extend_from_slice(sign.as_bytes());
        if !self.left && zero {
            out.resize(out.len() + fill, b'0');
        }
        out.extend_from_slice(&body);
        if self.left {
            out.resize(out.len() + fill, b' ');
        }
        out
    }

    fn integer(&self, kind: u8, value: i64) -> Vec<u8> {
        let signed = matches!(kind, b'd' | b'i');
        let mut digits = match kind {
            b'd' | b'i' => value.unsigned_abs().to_string(),
            b'u' => (value as u64).to_string(),
            b'o' => format!("{value:o}"),
            b'x' => format!("{value:x}"),
            _ => format!("{value:X}"),
        };
        if let Some(precision) = self.precision {
            while digits.len() < precision {
                digits.insert(0, '0');
            }
        }
        let sign = match (signed, value < 0) {
            (true, true) => "-",
            (true, false) if self.plus => "+",
            (true, false) if self.space => " ",
            _ if self.alternate && value != 0 => match kind {
                b'o' => "0",
                b'x' => "0x",
                b'X' => "0X",
                _ => "",
            },
            _ => "",
        };
        self.pad(
            sign,
            digits.into_bytes(),
            self.zero && self.precision.is_none(),
        )
    }

    fn float(&self, kind: u8, value: f64) -> Vec<u8> {
        let precision = self.precision.unwrap_or(6);
        let size = value.abs();
        let mut digits = match kind {
            b'e' | b'E' => exponent(size, precision),
            b'g' | b'G' => general(size, precision.max(1), self.alternate),
            _ => format!("{size:.precision$}"),
        };
        if !value.is_finite() {
            digits = if value.is_nan() {
                "nan".to_owned()
            } else {
                "inf".to_owned()
            };
        }
        if kind.is_ascii_uppercase() {
            digits = digits.to_uppercase();
        }
        let sign = match value.is_sign_negative() {
            true => "-",
            false if self.plus => "+",
            false if self.space => " ",
            false => "",
        };
        self.pad(sign, digits.into_bytes(), self.zero && value.is_finite())
    }
}

fn exponent(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    match text.split_once('e') {
        Some((mantissa, power)) => {
            let power: i32 = power.parse().unwrap_or(0);
            let sign = if power < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", power.unsigned_abs())
        }
        None => text,
    }
}

fn general(value: f64, precision: usize, keep_zeros: bool) -> String {
    let scientific = exponent(value, precision - 1);
    let power: i32 = scientific
        .split_once('e')
        .and_then(|(_, power)| power.parse().ok())
        .unwrap_or(0);
    let strip = |text: &str| match keep_zeros || !text.contains('.') {
        true => text.to_owned(),
        false => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
    };
    if power < -4 || power >= precision as i32 {
        return match scientific.split_once('e') {
            Some((mantissa, power)) => format!("{}e{power}", strip(mantissa)),
            None => scientific,
        };
    }
    let digits = (precision as i32 - 1 - power).max(0) as usize;
    strip(&format!("{value:.digits$}"))
}

/// A number of printf: as in C, or the code of the character behind a quote.
fn integer(word: &[u8], errors: &mut Vec<String>) -> i64 {
    if let Some(rest) = word.strip_prefix(b"'").or_else(|| word.strip_prefix(b"\"")) {
        return crate::glob::decode(rest).0.into();
    }
    let text = show(word);
    let text = text.trim_start();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, base) = match digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
    {
        Some(rest) => (rest, 16),
        None if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        None => (digits, 10),
    };
    let length = digits
        .find(|c: char| !c.is_digit(base))
        .unwrap_or(digits.len());
    if length < digits.len() || digits.is_empty() {
        errors.push(format!("{}: invalid number", show(word)));
    }
    let value = match u64::from_str_radix(&digits[..length], base) {
        Ok(value) => value as i64,
        Err(_) if length == 0 => 0,
        Err(_) => {
            errors.push(format!("{}: number out of range", show(word)));
            i64::MAX
        }
    };
    if negative {
        value.wrapping_neg()
    } else {
        value
    }
}

/// The first word is the format, which is used again while words are left.
pub(crate) fn format(words: &[&[u8]]) -> Printed {
    let mut printed = Printed::default();
    let (format, mut arguments) = match words {
        [first, rest @ ..] if *first == b"--" && !rest.is_empty() => (rest[0], &rest[1..]),
        [first, rest @ ..] => (*first, rest),
        [] => {
            printed.errors.push("wants a format".to_owned());
            return printed;
        }
    };
    loop {
        let before = arguments.len();
        if !once(format, &mut arguments, &mut printed)
            || arguments.is_empty()
            || arguments.len() == before
        {
            return printed;
        }
    }
}

/// Prints the format once; false when `\c` ended it or it is wrong.
fn once(format: &[u8], arguments: &mut &[&[u8]], printed: &mut Printed) -> bool {
    let next = |arguments: &mut &[&[u8]]| -> Option<Vec<u8>> {
        let (first, rest) = arguments.split_first()?;
        *arguments = rest;
        Some(first.to_vec())
    };
    let mut at = 0;
    while at < format.len() {
        if format[at] != b'%' {
            let end = format[at..]
                .iter()
                .position(|byte| *byte == b'%')
                .map_or(format.len(), |end| at + end);
            let (text, whole) = unescape(&format[at..end]);
            printed.text.extend_from_slice(&text);
            if !whole {
                return false;
            }
            at = end;
            continue;
        }
        at += 1;
        let mut spec = Spec::default();
        loop {
            match format.get(at) {
                Some(b'-') => spec.left = true,
                Some(b'+') => spec.plus = true,
                Some(b' ') => spec.space = true,
                Some(b'0') => spec.zero = true,
                Some(b'#') => spec.alternate = true,
                _ => break,
            }
            at += 1;
        }
        let size = |at: &mut usize, arguments: &mut &[&[u8]], errors: &mut Vec<String>| -> i64 {
            if format.get(*at) == Some(&b'*') {
                *at += 1;
                return next(arguments).map_or(0, |word| integer(&word, errors));
            }
            let start = *at;
            while format.get(*at).map_or(false, u8::is_ascii_digit) {
                *at += 1;
            }
            show(&format[start..*at]).parse().unwrap_or(0)
        };
        let width = size(&mut at, arguments, &mut printed.errors);
        spec.left |= width < 0;
        spec.width = (width.unsigned_abs() as usize).min(WIDEST);
        if format.get(at) == Some(&b'.') {
            at += 1;
            let precision = size(&mut at, arguments, &mut printed.errors);
            spec.precision = (precision >= 0).then_some((precision as usize).min(WIDEST));
        }
        while format
            .get(at)
            .map_or(false, |byte| b"hlLjzt".contains(byte))
        {
            at += 1;
        }
        let kind = match format.get(at) {
            Some(kind) => *kind,
            None => {
                printed.errors.push("the format ends in %".to_owned());
                return false;
            }
        };
        at += 1;
        let piece = match kind {
            b'%' => b"%".to_vec(),
            b'd' | b'i' | b'u' | b'o' | b'x' | b'X' => {
                let value = next(arguments).map_or(0, |word| integer(&word, &mut printed.errors));
                spec.integer(kind, value)
            }
            b'e' | b'E' | b'f' | b'F' | b'g' | b'G' => {
                let word = next(arguments);
                let value = match &word {
                    None => 0.0,
                    Some(word) => show(word)
                        .trim()
                        .parse()
                        .unwrap_or_else(|_| integer(word, &mut printed.errors) as f64),
                };
                spec.float(kind, value)
            }
            b'c' => {
                let word = next(arguments).unwrap_or_default();
                let length = crate::glob::decode(&word).1;
                spec.pad("", word[..length].to_vec(), false)
            }
            b's' | b'b' => {
                let word = next(arguments).unwrap_or_default();
                let (text, whole) = if kind == b'b' {
                    escapes(&word, true)
                } else {
                    (word, true)
                };
                let length = spec.precision.map_or(text.len(), |precision| {
                    let mut end = 0;
                    (0..precision).for_each(|_| end += crate::glob::decode(&text[end..]).1);
                    end
                });
                let piece = spec.pad("", text[..length].to_vec(), false);
                if !whole {
                    printed.text.extend_from_slice(&piece);
                    return false;
                }
                piece
            }
            kind => {
                printed
                    .errors
                    .push(format!("%{}: unknown conversion", kind as char));
                return false;
            }
        };
        printed.text.extend_from_slice(&piece);
    }
    true
}

pub(crate) fn run_echo(context: &mut Context) -> Outcome {
    let words: Vec<&[u8]> = context.args.iter().map(|word| word.as_bytes()).collect();
    let text = echo(&words);
    context.output.write_all(&text)?;
    Ok(0)
}

pub(crate) fn run(context: &mut Context) -> Outcome {
    let words: Vec<&[u8]> = context.args.iter().map(|word| word.as_bytes()).collect();
    let printed = format(&words);
    context.output.write_all(&printed.text)?;
    for text in &printed.errors {
        context.warn(text);
    }
    Ok(i32::from(!printed.errors.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printf_prints_like_the_one_of_c() {
        for (words, expected) in [
            (&["%s\\n", "a", "b"][..], "a\nb\n"),
            (&["%d-%d", "1"], "1-0"),
            (&["%5d|%-5d|%05d", "42", "42", "-42"], "   42|42   |-0042"),
            (&["%x %X %o %#x", "255", "255", "8", "255"], "ff FF 10 0xff"),
            (
                &["%.2f %e %g", "3.14159", "12345.678", "0.0001"],
                "3.14 1.234568e+04 0.0001",
            ),
            (&["%g %g %g", "1000000", "1e10", "2.50"], "1e+06 1e+10 2.5"),
            (&["%c%c", "xyz", "ä"], "xä"),
            (&["%.2s|%5s|%-4s|", "abc", "ä", "b"], "ab|    ä|b   |"),
            (&["%b", "a\\tb\\0101"], "a\tbA"),
            (&["%*d", "4", "7"], "   7"),
            (&["%%"], "%"),
            (&["\\x41\\101\\u00e4"], "AAä"),
            (&["%i", "0x1f"], "31"),
            (&["%d", "'A"], "65"),
            (&["a\\cb"], "a"),
            (&["--", "%s", "x"], "x"),
            (&["%u", "-1"], "18446744073709551615"),
            (&["none", "x"], "none"),
        ] {
            let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            let printed = format(&words);
            assert_eq!(show(&printed.text), expected);
            assert!(printed.errors.is_empty(), "{:?}", printed.errors);
        }
    }

    #[test]
    fn printf_tells_what_is_wrong() {
        for words in [
            &["%d", "x"][..],
            &["%"],
            &["%q", "a"],
            &[],
            &["%d", "99999999999999999999"],
            &["%5"],
            &["%d", "12x"],
        ] {
            let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            assert!(!format(&words).errors.is_empty(), "{words:?}");
        }
        assert_eq!(format(&[b"%999999999999d", b"1"]).text.len(), WIDEST);
        assert_eq!(format(&[b"%99999999d", b"1"]).text.len(), WIDEST);
        assert!(format(&[b"\xff\\x", b"\xfe"]).text.starts_with(b"\xff"));
    }

    #[test]
    fn echo_knows_its_options() {
        for (words, expected) in [
            (&["a", "b"][..], "a b\n"),
            (&["-n", "a"], "a"),
            (&["-e", "a\\nb"], "a\nb\n"),
            (&["a\\nb"], "a\\nb\n"),
            (&["-ne", "a\\c", "b"], "a"),
            (&["-x"], "-x\n"),
            (&["-"], "-\n"),
            (&[], "\n"),
            (&["-e", "\\0101\\q\\"], "A\\q\\\n"),
        ] {
            let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
            assert_eq!(show(&echo(&words)), expected);
        }
    }
}
