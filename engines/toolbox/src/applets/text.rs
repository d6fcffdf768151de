//! Tools that pass text on: cat, tee, head, tail, wc and their kin.

use crate::context::{about, fail, Context, Fail, Outcome};
use crate::{files, options};
use std::collections::VecDeque;
use std::io::{BufRead, Read, Seek, SeekFrom, Write};

/// Copies bytes as they come: what a slow writer has written is passed on at once.
fn pass(reader: &mut dyn BufRead, writer: &mut dyn Write) -> Result<(), Fail> {
    loop {
        let piece = reader.fill_buf()?;
        let n = piece.len();
        if n == 0 {
            return Ok(());
        }
        writer.write_all(piece)?;
        writer.flush()?;
        reader.consume(n);
    }
}

pub(super) fn cat(context: &mut Context) -> Outcome {
    let options = options::parse(
        &context.args,
        "nbsvetuAE",
        &[("number", 'n'), ("show-all", 'A'), ("show-ends", 'E')],
    )?;
    let names = options.rest.clone();
    let (number, visible) = (
        options.has('n') || options.has('b'),
        options.has('v') || options.has('A') || options.has('e') || options.has('t'),
    );
    let ends = options.has('A') || options.has('E') || options.has('e');
    let tabs = options.has('A') || options.has('t');
    if !number && !visible && !ends && !options.has('s') {
        return files::each_input(context, &names, |context, _, reader| {
            pass(reader, &mut context.output)
        });
    }
    let mut count = 0u64;
    let mut blank = false;
    files::each_input(context, &names, |context, _, reader| {
        let mut line = Vec::new();
        while files::next_line(reader, b'\n', &mut line)? {
            let empty = line == b"\n";
            if empty && std::mem::replace(&mut blank, empty) && options.has('s') {
                continue;
            }
            blank = empty;
            if number && !(options.has('b') && empty) {
                count += 1;
                write!(context.output, "{count:6}\t")?;
            }
            let ended = line.last() == Some(&b'\n');
            for &byte in files::chomp(&line, b'\n') {
                match byte {
                    b'\t' if tabs => context.output.write_all(b"^I")?,
                    b'\t' => context.output.write_all(b"\t")?,
                    _ if !visible => context.output.write_all(&[byte])?,
                    _ => {
                        let low = byte & 0x7f;
                        let meta = if byte > 0x7f { "M-" } else { "" };
                        match low {
                            0..=31 => write!(context.output, "{meta}^{}", (low + 64) as char)?,
                            127 => write!(context.output, "{meta}^?")?,
                            _ => write!(context.output, "{meta}{}", low as char)?,
                        }
                    }
                }
            }
            context
                .output
                .write_all(if ends && ended { b"$" } else { b"" })?;
            context.output.write_all(if ended { b"\n" } else { b"" })?;
        }
        Ok(())
    })
}

pub(super) fn tee(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "ai", &[("append", 'a')])?;
    let mut code = 0;
    let mut outputs = Vec::new();
    for name in &options.rest {
        match files::create(context, name, options.has('a')) {
            Ok(file) => outputs.push((name.clone(), file)),
            Err(error) => {
                context.warn(about(name, &error));
                code = 1;
            }
        }
    }
    let read = files::each_input(context, &[], |context, _, reader| loop {
        let piece = reader.fill_buf()?.to_vec();
        if piece.is_empty() {
            return Ok(());
        }
        context.output.write_all(&piece)?;
        context.output.flush()?;
        let mut failed = None;
        outputs.retain_mut(|(name, file)| match file.write_all(&piece) {
            Ok(()) => true,
            Err(error) => {
                failed = Some(about(name, &error));
                false
            }
        });
        if let Some(text) = failed {
            context.warn(text);
            code = 1;
        }
        reader.consume(piece.len());
    })?;
    Ok(code.max(read))
}

/// Old style: `head -5`
fn with_count(args: &[String]) -> Vec<String> {
    let mut args = args.to_vec();
    if let Some(first) = args.first_mut() {
        let digits = first.strip_prefix('-').unwrap_or("");
        if digits.starts_with(|c: char| c.is_ascii_digit()) {
            *first = format!("-n{digits}");
        }
    }
    args
}

fn header(
    context: &mut Context,
    options: &options::Options,
    name: &str,
    first: &mut bool,
) -> Result<(), Fail> {
    let wanted = (options.rest.len() > 1 && !options.has('q')) || options.has('v');
    if wanted {
        let name = if name == "-" { "standard input" } else { name };
        let before = if *first { "" } else { "\n" };
        writeln!(context.output, "{before}==> {name} <==")?;
    }
    *first = false;
    Ok(())
}

pub(super) fn head(context: &mut Context) -> Outcome {
    let options = options::parse(
        &with_count(&context.args),
        "n:c:qv",
        &[("lines", 'n'), ("bytes", 'c'), ("quiet", 'q')],
    )?;
    let bytes = options.value('c');
    let count = bytes.or_else(|| options.value('n')).unwrap_or("10");
    let but_last = count.starts_with('-');
    let count = options::number(count.trim_start_matches(['-', '+']))?;
    let mut first = true;
    files::each_input(context, &options.rest, |context, name, reader| {
        header(context, &options, name, &mut first)?;
        if bytes.is_some() && !but_last {
            std::io::copy(&mut reader.take(count), &mut context.output)?;
            return Ok(());
        }
        if bytes.is_some() {
            let mut all = Vec::new();
            reader.read_to_end(&mut all)?;
            let end = (all.len() as u64).saturating_sub(count) as usize;
            context.output.write_all(&all[..end])?;
            return Ok(());
        }
        let mut line = Vec::new();
        if but_last {
            let mut held = VecDeque::new();
            while files::next_line(reader, b'\n', &mut line)? {
                held.push_back(std::mem::take(&mut line));
                if held.len() as u64 > count {
                    context
                        .output
                        .write_all(&held.pop_front().unwrap_or_default())?;
                }
            }
            return Ok(());
        }
        let mut left = count;
        while left > 0 && files::next_line(reader, b'\n', &mut line)? {
            context.output.write_all(&line)?;
            left -= 1;
        }
        Ok(())
    })
}

pub(super) fn tail(context: &mut Context) -> Outcome {
    let long = [
        ("lines", 'n'),
        ("bytes", 'c'),
        ("follow", 'f'),
        ("quiet", 'q'),
    ];
    let options = options::parse(&with_count(&context.args), "n:c:fFqvs:", &long)?;
    let bytes = options.value('c');
    let count = bytes.or_else(|| options.value('n')).unwrap_or("10");
    let from_start = count.starts_with('+');
    let count = options::number(count.trim_start_matches(['-', '+']))?;
    let mut first = true;
    let code = files::each_input(context, &options.rest, |context, name, reader| {
        header(context, &options, name, &mut first)?;
        let mut piece = Vec::new();
        if from_start {
            if bytes.is_some() {
                std::io::copy(
                    &mut reader.take(count.saturating_sub(1)),
                    &mut std::io::sink(),
                )?;
            } else {
                let mut skipped = 1;
                while skipped < count && files::next_line(reader, b'\n', &mut piece)? {
                    skipped += 1;
                }
            }
            return pass(reader, &mut context.output);
        }
        if bytes.is_some() {
            let mut held: VecDeque<u8> = VecDeque::new();
            loop {
                let piece = reader.fill_buf()?;
                let n = piece.len();
                if n == 0 {
                    break;
                }
                held.extend(piece);
                reader.consume(n);
                let over = (held.len() as u64).saturating_sub(count) as usize;
                held.drain(..over);
            }
            let (a, b) = held.as_slices();
            context.output.write_all(a)?;
            context.output.write_all(b)?;
            return Ok(());
        }
        let mut held = VecDeque::new();
        while files::next_line(reader, b'\n', &mut piece)? {
            held.push_back(std::mem::take(&mut piece));
            if held.len() as u64 > count {
                held.pop_front();
            }
        }
        held.iter()
            .try_for_each(|line| context.output.write_all(line).map_err(Fail::from))
    })?;
    match options.rest.as_slice() {
        [name] if options.has('f') || options.has('F') => follow(context, name),
        [_, _, ..] if options.has('f') => fail("-f follows one file"),
        _ => Ok(code),
    }
}

/// Prints what is added to a file, for ever. A file that became shorter was written anew.
fn follow(context: &mut Context, name: &str) -> Outcome {
    let path = context.path(name);
    let mut at = std::fs::metadata(&path).map_or(0, |data| data.len());
    loop {
        context.output.flush()?;
        std::thread::sleep(std::time::Duration::from_millis(200));
        let length = std::fs::metadata(&path).map_or(at, |data| data.len());
        if length < at {
            at = 0;
        }
        if length == at {
            continue;
        }
        let read = std::fs::File::open(&path).and_then(|mut file| {
            file.seek(SeekFrom::Start(at))?;
            let mut more = Vec::new();
            // what fits the memory; the rest in the next round
            file.take(1 << 20).read_to_end(&mut more)?;
            Ok(more)
        });
        match read {
            Ok(more) => {
                at += more.len() as u64;
                context.output.write_all(&more)?;
            }
            Err(error) => return fail(about(name, &error)),
        }
    }
}

pub(super) fn wc(context: &mut Context) -> Outcome {
    let long = [
        ("lines", 'l'),
        ("words", 'w'),
        ("bytes", 'c'),
        ("chars", 'm'),
    ];
    let options = options::parse(&context.args, "lwcmL", &long)?;
    let letters: Vec<char> = "lwmcL"
        .chars()
        .filter(|letter| options.has(*letter))
        .collect();
    let letters = if letters.is_empty() {
        vec!['l', 'w', 'c']
    } else {
        letters
    };
    let mut rows: Vec<([u64; 5], String)> = Vec::new();
    let code = files::each_input(context, &options.rest, |_, name, reader| {
        let [mut lines, mut words, mut chars, mut bytes, mut longest] = [0u64; 5];
        let (mut inside, mut width) = (false, 0u64);
        loop {
            let piece = reader.fill_buf()?;
            let n = piece.len();
            if n == 0 {
                break;
            }
            bytes += n as u64;
            for &byte in piece {
                let blank = byte.is_ascii_whitespace() || byte == 11;
                words += u64::from(!blank && !inside);
                inside = !blank;
                chars += u64::from(byte & 0xc0 != 0x80);
                if byte == b'\n' {
                    lines += 1;
                    longest = longest.max(std::mem::take(&mut width));
                } else {
                    width += u64::from(byte & 0xc0 != 0x80);
                }
            }
            reader.consume(n);
        }
        rows.push((
            [lines, words, chars, bytes, longest.max(width)],
            name.to_owned(),
        ));
        Ok(())
    })?;
    if rows.len() > 1 {
        let mut total = [0; 5];
        for (row, _) in &rows {
            (0..4).for_each(|column| total[column] += row[column]);
            total[4] = total[4].max(row[4]);
        }
        rows.push((total, "total".to_owned()));
    }
    let column = |letter: char| "lwmcL".find(letter).unwrap_or(0);
    let width = match rows.len() > 1 || letters.len() > 1 {
        true => rows
            .iter()
            .flat_map(|(row, _)| row)
            .map(|number| number.to_string().len())
            .max()
            .unwrap_or(1),
        false => 1,
    };
    for (row, name) in &rows {
        let cells: Vec<String> = letters
            .iter()
            .map(|letter| format!("{:>width$}", row[column(*letter)]))
            .collect();
        let name = if name == "-" && options.rest.is_empty() {
            String::new()
        } else {
            format!(" {name}")
        };
        writeln!(context.output, "{}{name}", cells.join(" "))?;
    }
    Ok(code)
}

pub(super) fn tac(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "", &[])?;
    files::each_input(context, &options.rest, |context, _, reader| {
        let mut all = Vec::new();
        reader.read_to_end(&mut all)?;
        let mut end = all.len();
        while end > 0 {
            let start = all[..end - 1]
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            context.output.write_all(&all[start..end])?;
            end = start;
        }
        Ok(())
    })
}

pub(super) fn rev(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "", &[])?;
    files::each_input(context, &options.rest, |context, _, reader| {
        let mut line = Vec::new();
        while files::next_line(reader, b'\n', &mut line)? {
            let ended = line.last() == Some(&b'\n');
            let text = files::chomp(&line, b'\n');
            let mut pieces = Vec::new();
            let mut at = 0;
            while at < text.len() {
                let length = crate::glob::decode(&text[at..]).1;
                pieces.push(&text[at..at + length]);
                at += length;
            }
            pieces.reverse();
            context.output.write_all(&pieces.concat())?;
            context.output.write_all(if ended { b"\n" } else { b"" })?;
        }
        Ok(())
    })
}

pub(super) fn nl(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "b:w:s:n:v:i:", &[])?;
    let number = |letter, default: &str| options::number(options.value(letter).unwrap_or(default));
    let (width, mut count, step) = (
        number('w', "6")?.min(1000) as usize,
        number('v', "1")?,
        number('i', "1")?,
    );
    let separator = options.value('s').unwrap_or("\t").to_owned();
    let all = options.value('b') == Some("a");
    files::each_input(context, &options.rest, |context, _, reader| {
        let mut line = Vec::new();
        while files::next_line(reader, b'\n', &mut line)? {
            if line == b"\n" && !all {
                writeln!(context.output, "{:1$}", "", width + separator.len())?;
                continue;
            }
            write!(context.output, "{count:>width$}{separator}")?;
            count = count.saturating_add(step);
            context.output.write_all(&line)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use crate::context::testing::{output, run, Room};

    #[test]
    fn text_is_passed_on() {
        for (command, input, expected) in [
            ("cat", "a\nb", "a\nb"),
            ("cat -n", "a\n\nb\n", "     1\ta\n     2\t\n     3\tb\n"),
            ("cat -A", "a\tb\u{7f}\n", "a^Ib^?$\n"),
            ("cat -s", "a\n\n\n\nb\n", "a\n\nb\n"),
            ("head -n 2", "1\n2\n3\n", "1\n2\n"),
            ("head -2", "1\n2\n3\n", "1\n2\n"),
            ("head -c 3", "12345", "123"),
            ("head -n -1", "1\n2\n3\n", "1\n2\n"),
            ("head -c -1", "123", "12"),
            ("tail -n 2", "1\n2\n3", "2\n3"),
            ("tail -n +2", "1\n2\n3\n", "2\n3\n"),
            ("tail -c 2", "12345", "45"),
            ("tail -c +3", "12345", "345"),
            ("tail -0", "1\n", ""),
            ("wc", "a b\nc\n", "2 3 6\n"),
            ("wc -l", "a\nb", "1\n"),
            ("wc -m", "äö", "2\n"),
            ("wc -L", "abc\nab\n", "3\n"),
            ("tac", "1\n2\n3\n", "3\n2\n1\n"),
            ("rev", "abä\nx", "äba\nx"),
            ("nl", "a\n\nb\n", "     1\ta\n       \n     2\tb\n"),
            ("tee", "x", "x"),
        ] {
            assert_eq!(output(command, input), expected, "{command}");
        }
    }

    #[test]
    fn files_are_told_apart() {
        let room = Room::new();
        room.write("a", "1\n2\n");
        room.write("b", "3\n");
        assert_eq!(room.output("cat a b"), "1\n2\n3\n");
        assert_eq!(
            room.output("head -n 1 a b"),
            "==> a <==\n1\n\n==> b <==\n3\n"
        );
        assert_eq!(room.output("wc -l a b"), "2 a\n1 b\n3 total\n");
        room.run("tee -a a c", "9\n");
        assert_eq!(
            (room.read("a"), room.read("c")),
            ("1\n2\n9\n".to_owned(), "9\n".to_owned())
        );
        let (code, out, error) = room.run("cat none b", "");
        assert_eq!(
            (code, out.as_str(), error.as_str()),
            (1, "3\n", "cat: none: No such file or directory\n")
        );
        assert_eq!(room.run("cat .", "").2, "cat: .: Is a directory\n");
        assert_eq!(room.output("head -c 3 /dev/zero"), "\0\0\0");
        assert_eq!(room.output("cat /dev/null"), "");
    }

    #[test]
    fn wrong_use_is_told() {
        for command in [
            "head -n x",
            "tail -c 1x",
            "cat -q",
            "wc -x",
            "tee /nonexistent/x",
            "nl -w x",
            "tac /nonexistent",
            "rev /nonexistent",
            "tail -f a b",
        ] {
            assert_eq!(run(command, "").0, 1, "{command}");
        }
    }
}
