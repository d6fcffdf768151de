//! `cut`, `tr`, `uniq`.

use crate::context::{fail, usage, Context, Fail, Outcome};
use crate::{files, glob, options};

/// `1,3-5,7-`: ranges that count from 1, ends included.
fn ranges(text: &str) -> Result<Vec<(usize, usize)>, Fail> {
    let mut out = Vec::new();
    for part in text.split(',') {
        let number = |text: &str, default: usize| match text {
            "" => Ok(default),
            text => text.parse::<usize>().ok().filter(|n| *n > 0).ok_or(()),
        };
        let range = match part.split_once('-') {
            None => number(part, 0).map(|one| (one, one)),
            Some(("", "")) => Err(()),
            Some((low, high)) => {
                number(low, 1).and_then(|low| Ok((low, number(high, usize::MAX)?)))
            }
        };
        match range {
            Ok((low, high)) if low > 0 && low <= high => out.push((low, high)),
            _ => return fail(format!("invalid range '{part}'")),
        }
    }
    Ok(out)
}

pub(super) fn cut(context: &mut Context) -> Outcome {
    let long = [
        ("fields", 'f'),
        ("delimiter", 'd'),
        ("characters", 'c'),
        ("bytes", 'b'),
        ("only-delimited", 's'),
        ("complement", 'C'),
        ("output-delimiter", 'o'),
    ];
    let options = options::parse(&context.args, "f:d:c:b:sno:C", &long)?;
    let (kind, list) = match (
        'f',
        options.value('f'),
        options.value('c'),
        options.value('b'),
    ) {
        (_, Some(list), None, None) => ('f', list),
        (_, None, Some(list), None) => ('c', list),
        (_, None, None, Some(list)) => ('b', list),
        _ => return usage("wants one of -f, -c and -b"),
    };
    let ranges = ranges(list)?;
    let keeps = |position: usize| {
        ranges
            .iter()
            .any(|(low, high)| (*low..=*high).contains(&position))
            != options.has('C')
    };
    let delimiter = options.value('d').unwrap_or("\t").as_bytes().to_vec();
    if glob::decode(&delimiter).1 != delimiter.len() || delimiter.is_empty() {
        return fail("the delimiter must be one character");
    }
    let joiner = options
        .value('o')
        .map_or_else(|| delimiter.clone(), |text| text.as_bytes().to_vec());
    files::each_input(context, &options.rest, |context, _, reader| {
        let mut line = Vec::new();
        while files::next_line(reader, b'\n', &mut line)? {
            let text = files::chomp(&line, b'\n');
            let mut out: Vec<u8> = Vec::new();
            if kind == 'f' {
                let (mut fields, mut start, mut at) = (Vec::new(), 0, 0);
                while let Some(found) = crate::regex::search(text, at, &delimiter) {
                    fields.push(&text[start..found]);
                    start = found + delimiter.len();
                    at = start;
                }
                fields.push(&text[start..]);
                if fields.len() == 1 {
                    if options.has('s') {
                        continue;
                    }
                    out.extend_from_slice(text);
                } else {
                    let kept: Vec<&[u8]> = fields
                        .iter()
                        .enumerate()
                        .filter(|(number, _)| keeps(number + 1))
                        .map(|(_, field)| *field)
                        .collect();
                    out = kept.join(&joiner[..]);
                }
            } else {
                let (mut at, mut position) = (0, 1);
                while at < text.len() {
                    let length = if kind == 'c' {
                        glob::decode(&text[at..]).1
                    } else {
                        1
                    };
                    if keeps(position) {
                        out.extend_from_slice(&text[at..at + length]);
                    }
                    at += length;
                    position += 1;
                }
            }
            out.push(b'\n');
            context.output.write_all(&out)?;
        }
        Ok(())
    })
}

/// The characters of a set of tr; ranges, classes, escapes. `[c*n]` stands for n times c.
fn set(text: &str, fill: Option<usize>) -> Result<Vec<u32>, Fail> {
    let (bytes, _) = super::printf::unescape(text.as_bytes());
    let mut out: Vec<u32> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        if rest.starts_with(b"[:") {
            if let Some(end) = rest[2..].windows(2).position(|pair| pair == b":]") {
                let class = &rest[2..2 + end];
                if glob::in_class(class, 0).is_none() {
                    return fail(format!(
                        "[:{}:] is no class of characters",
                        String::from_utf8_lossy(class)
                    ));
                }
                out.extend((0..128).filter(|c| glob::in_class(class, *c) == Some(true)));
                at += end + 4;
                continue;
            }
        }
        if let (b'[', Some(star), Some(end)) = (
            rest[0],
            rest.iter().position(|b| *b == b'*'),
            rest.iter().position(|b| *b == b']'),
        ) {
            let (c, length) = glob::decode(&rest[1..]);
            if star == 1 + length && end > star {
                let count = String::from_utf8_lossy(&rest[star + 1..end]).into_owned();
                let wanted = fill.unwrap_or(0).saturating_sub(out.len());
                let count = if count.is_empty() {
                    wanted
                } else {
                    count.parse().unwrap_or(0).min(1 << 16)
                };
                out.resize(out.len() + count, c);
                at += end + 1;
                continue;
            }
        }
        let (low, length) = glob::decode(rest);
        at += length;
        if bytes.get(at) == Some(&b'-') && at + 1 < bytes.len() {
            let (high, length) = glob::decode(&bytes[at + 1..]);
            if high < low {
                return fail(format!("'{text}': a range ends before it begins"));
            }
            out.extend(low..=high);
            at += 1 + length;
        } else {
            out.push(low);
        }
    }
    Ok(out)
}

fn put(c: u32, out: &mut Vec<u8>) {
    match char::from_u32(c) {
        Some(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        None => out.push(c.wrapping_sub(0x11_0000) as u8),
    }
}

pub(super) fn tr(context: &mut Context) -> Outcome {
    let options = options::parse(
        &context.args,
        "+dscCt",
        &[
            ("delete", 'd'),
            ("squeeze-repeats", 's'),
            ("complement", 'c'),
        ],
    )?;
    let (deletes, squeezes, complement) = (
        options.has('d'),
        options.has('s'),
        options.has('c') || options.has('C'),
    );
    let (first, second) = match options.rest.as_slice() {
        [first] if deletes || squeezes => (first, None),
        [first, second] if !deletes || squeezes => (first, Some(second)),
        _ => return usage("wants: tr [-cds] characters [characters]"),
    };
    let from = set(first, None)?;
    let to = second.map(|text| set(text, Some(from.len()))).transpose()?;
    let listed = |c: u32| from.contains(&c) != complement;
    let squeezed = |c: u32| match &to {
        Some(to) => to.contains(&c),
        None => listed(c),
    };
    if !deletes && to.as_ref().map_or(false, Vec::is_empty) {
        return fail("the second set is empty");
    }
    let mut last = None;
    files::each_input(context, &[], |context, _, reader| {
        // half a character may stand at the end of a piece
        let mut held: Vec<u8> = Vec::new();
        loop {
            let piece = reader.fill_buf()?;
            let n = piece.len();
            held.extend_from_slice(piece);
            let mut out = Vec::new();
            let mut at = 0;
            while at < held.len() {
                if n > 0
                    && held.len() - at < 4
                    && held[at] >= 0xc2
                    && glob::decode(&held[at..]).0 >= 0x11_0000
                {
                    break;
                }
                let (c, length) = glob::decode(&held[at..]);
                at += length;
                if deletes && listed(c) {
                    continue;
                }
                let mut new = c;
                if let (false, Some(to)) = (deletes, &to) {
                    if listed(c) {
                        let index = if complement {
                            usize::MAX
                        } else {
                            from.iter().rposition(|f| *f == c).unwrap_or(0)
                        };
                        new = to.get(index).or_else(|| to.last()).copied().unwrap_or(c);
                    }
                }
                if squeezes && squeezed(new) && last == Some(new) {
                    continue;
                }
                last = Some(new);
                put(new, &mut out);
            }
            held.drain(..at);
            context.output.write_all(&out)?;
            reader.consume(n);
            if n == 0 {
                return Ok(());
            }
        }
    })
}

pub(super) fn uniq(context: &mut Context) -> Outcome {
    let long = [
        ("count", 'c'),
        ("repeated", 'd'),
        ("unique", 'u'),
        ("ignore-case", 'i'),
        ("skip-fields", 'f'),
        ("skip-chars", 's'),
    ];
    let options = options::parse(&context.args, "cduif:s:w:", &long)?;
    let (input, output) = match options.rest.as_slice() {
        [] => ("-".to_owned(), None),
        [input] => (input.clone(), None),
        [input, output] => (input.clone(), Some(output.clone())),
        _ => return usage("takes one input and one output"),
    };
    let number = |letter| options::number(options.value(letter).unwrap_or("0"));
    let (fields, chars) = (number('f')?, number('s')? as usize);
    let width = options
        .value('w')
        .map(options::number)
        .transpose()?
        .map_or(usize::MAX, |n| n as usize);
    let key = |line: &[u8]| -> Vec<u8> {
        let mut rest = line;
        for _ in 0..fields.min(line.len() as u64) {
            let start = rest
                .iter()
                .position(|byte| !byte.is_ascii_whitespace())
                .unwrap_or(rest.len());
            let length = rest[start..]
                .iter()
                .position(u8::is_ascii_whitespace)
                .unwrap_or(rest.len() - start);
            rest = &rest[start + length..];
        }
        let rest = &rest[chars.min(rest.len())..];
        let rest = &rest[..width.min(rest.len())];
        if options.has('i') {
            rest.to_ascii_lowercase()
        } else {
            rest.to_vec()
        }
    };
    if let Some(output) = output {
        let file = files::create(context, &output, false);
        context.output =
            file.map_err(|error| Fail::Text(1, crate::context::about(&output, &error)))?;
    }
    let print = |context: &mut Context, line: &[u8], count: u64| -> Result<(), Fail> {
        let shown = match (options.has('d'), options.has('u')) {
            (true, true) => false,
            (true, false) => count > 1,
            (false, true) => count == 1,
            (false, false) => true,
        };
        if shown && count > 0 {
            if options.has('c') {
                write!(context.output, "{count:7} ")?;
            }
            context.output.write_all(line)?;
            context.output.write_all(b"\n")?;
        }
        Ok(())
    };
    files::each_input(context, &[input], |context, _, reader| {
        let (mut line, mut last, mut last_key, mut count) =
            (Vec::new(), Vec::new(), Vec::new(), 0u64);
        while files::next_line(reader, b'\n', &mut line)? {
            let text = files::chomp(&line, b'\n');
            let this = key(text);
            if count > 0 && this == last_key {
                count += 1;
                continue;
            }
            print(context, &last, count)?;
            last = text.to_vec();
            last_key = this;
            count = 1;
        }
        print(context, &last, count)
    })
}

#[cfg(test)]
mod tests {
    use crate::context::testing::{output, run, run_in};

    #[test]
    fn fields_are_cut() {
        for (command, input, expected) in [
            ("cut -d: -f1", "a:b:c\nx\n", "a\nx\n"),
            ("cut -d: -f2-", "a:b:c\n", "b:c\n"),
            ("cut -d: -f3,1", "a:b:c\n", "a:c\n"),
            ("cut -d: -s -f2", "a:b\nx\n", "b\n"),
            ("cut -c2-3", "aäbc\n", "äb\n"),
            ("cut -b1", "xyz\n", "x\n"),
            ("cut -f2", "a\tb\n", "b\n"),
            ("cut -d, --complement -f2", "a,b,c\n", "a,c\n"),
        ] {
            assert_eq!(output(command, input), expected, "{command}");
        }
    }

    #[test]
    fn characters_are_translated() {
        for (command, input, expected) in [
            ("tr a-z A-Z", "abc1", "ABC1"),
            ("tr -d 0-9", "a1b2", "ab"),
            ("tr -s x", "axxb", "axb"),
            ("tr -s [:space:] ,", "a  b", "a,b"),
            ("tr -cd [:alnum:]", "a-b_1\n", "ab1"),
            ("tr [:lower:] [:upper:]", "häuser", "HäUSER"),
            ("tr äö xy", "äöa", "xya"),
            ("tr abc x", "abcd", "xxxd"),
            ("tr \\n ,", "a\nb\n", "a,b,"),
            ("tr -c a-z _", "a1b\n", "a_b_"),
            ("tr abc [x*]", "abc", "xxx"),
        ] {
            assert_eq!(output(command, input), expected, "{command}");
        }
        assert_eq!(
            run_in("/", &["tr", "a", "b"], b"\xffa\xc3").1.len(),
            "\u{fffd}b\u{fffd}".len()
        );
    }

    #[test]
    fn repeats_are_found() {
        for (command, expected) in [
            ("uniq", "a\nb\na\n"),
            ("uniq -c", "      2 a\n      1 b\n      1 a\n"),
            ("uniq -d", "a\n"),
            ("uniq -u", "b\na\n"),
        ] {
            assert_eq!(output(command, "a\na\nb\na\n"), expected, "{command}");
        }
        assert_eq!(output("uniq -i", "a\nA\n"), "a\n");
        assert_eq!(output("uniq -f 1", "1 x\n2 x\n3 y\n"), "1 x\n3 y\n");
        assert_eq!(output("uniq", ""), "");
    }

    #[test]
    fn wrong_use_is_told() {
        for command in [
            "cut",
            "cut -f0",
            "cut -f2-1",
            "cut -f-",
            "cut -fx",
            "cut -d:: -f1",
            "cut -f1 -c1",
            "tr",
            "tr a",
            "tr z-a x",
            "tr [:none:] x",
            "tr a ",
            "uniq a b c",
            "uniq /nonexistent",
            "uniq -f x",
        ] {
            assert_eq!(run(command, "x\n").0, 1, "{command}");
        }
    }
}
