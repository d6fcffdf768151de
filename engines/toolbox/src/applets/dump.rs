//! Bytes made visible, and compared: `od`, `hexdump`, `base64`, `cmp`, `dd`.

use crate::context::{about, fail, usage, Context, Fail, Outcome};
use crate::{files, options};
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Reads until the buffer is full or the input ends.
fn fill(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut at = 0;
    while at < buffer.len() {
        match reader.read(&mut buffer[at..]) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

fn printable(byte: u8) -> char {
    if (32..127).contains(&byte) {
        byte as char
    } else {
        '.'
    }
}

/// Prints lines of 16 bytes; equal ones but the first as a star.
fn lines(
    context: &mut Context,
    names: &[String],
    skip: u64,
    most: u64,
    address: impl Fn(u64) -> String,
    show: impl Fn(&[u8]) -> Vec<String>,
    all: bool,
) -> Outcome {
    let standard = ["-".to_owned()];
    let mut inputs: Vec<Box<dyn Read>> = Vec::new();
    for name in if names.is_empty() {
        &standard[..]
    } else {
        names
    } {
        inputs
            .push(files::open(context, name).map_err(|error| Fail::Text(1, about(name, &error)))?);
    }
    let empty: Box<dyn Read> = Box::new(io::empty());
    let mut reader = inputs
        .into_iter()
        .fold(empty, |all, next| Box::new(all.chain(next)));
    let failed = |error: io::Error| Fail::Text(1, about("input", &error));
    io::copy(&mut (&mut reader).take(skip), &mut io::sink()).map_err(failed)?;
    let mut reader = reader.take(most);
    let (mut at, mut last, mut starred) = (skip, Vec::new(), false);
    loop {
        let mut buffer = [0; 16];
        let n = fill(&mut reader, &mut buffer).map_err(failed)?;
        if n == 0 {
            break;
        }
        let piece = &buffer[..n];
        if piece == last.as_slice() && n == 16 && !all {
            if !std::mem::replace(&mut starred, true) {
                context.output.write_all(b"*\n")?;
            }
        } else {
            starred = false;
            for (number, line) in show(piece).iter().enumerate() {
                let prefix = address(at);
                let prefix = if number == 0 {
                    prefix
                } else {
                    " ".repeat(prefix.len())
                };
                writeln!(context.output, "{prefix}{line}")?;
            }
        }
        last = piece.to_vec();
        at += n as u64;
    }
    if at > skip || skip > 0 || !names.is_empty() {
        writeln!(context.output, "{}", address(at).trim_end())?;
    }
    Ok(0)
}

fn group(piece: &[u8], size: usize) -> impl Iterator<Item = u64> + '_ {
    piece.chunks(size).map(|bytes| {
        bytes
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    })
}

pub(super) fn od(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "A:t:N:j:vbcdoxw:", &[])?;
    let mut formats: Vec<(char, usize)> = Vec::new();
    for text in options.values('t') {
        let mut letters = text.chars().peekable();
        while let Some(kind) = letters.next() {
            let size = match letters.peek() {
                Some(digit @ ('1' | '2' | '4' | '8')) => {
                    let size = digit.to_digit(10).unwrap_or(1) as usize;
                    letters.next();
                    size
                }
                _ => 4,
            };
            match kind {
                'x' | 'o' | 'd' | 'u' => formats.push((kind, size)),
                'c' | 'a' => formats.push(('c', 1)),
                'z' => {}
                _ => return usage(format!("invalid format '{text}'")),
            }
        }
    }
    for (letter, format) in [
        ('b', ('o', 1)),
        ('c', ('c', 1)),
        ('d', ('u', 2)),
        ('o', ('o', 2)),
        ('x', ('x', 2)),
    ] {
        if options.has(letter) {
            formats.push(format);
        }
    }
    if formats.is_empty() {
        formats.push(('o', 2));
    }
    let base = match options.value('A').unwrap_or("o") {
        base @ ("o" | "x" | "d" | "n") => base.to_owned(),
        other => return usage(format!("invalid base of addresses '{other}'")),
    };
    let address = |at: u64| match base.as_str() {
        "o" => format!("{at:07o}"),
        "x" => format!("{at:06x}"),
        "d" => format!("{at:07}"),
        _ => String::new(),
    };
    let show = |piece: &[u8]| {
        let line = |(kind, size): &(char, usize)| -> String {
            let width = match (kind, size) {
                ('c', _) => 3,
                ('x', size) => size * 2,
                ('o', size) => [3, 6, 0, 11, 0, 0, 0, 22][size - 1],
                ('u', size) => [3, 5, 0, 10, 0, 0, 0, 20][size - 1],
                (_, size) => [4, 6, 0, 11, 0, 0, 0, 20][size - 1],
            };
            let cell = |value: u64| match kind {
                'x' => format!(" {value:0width$x}"),
                'o' => format!(" {value:0width$o}"),
                'u' => format!(" {value:>width$}"),
                'd' => {
                    let shift = 64 - 8 * *size as u32;
                    format!(" {:>width$}", (value << shift) as i64 >> shift)
                }
                _ => match value as u8 {
                    0 => "  \\0".to_owned(),
                    7 => "  \\a".to_owned(),
                    8 => "  \\b".to_owned(),
                    9 => "  \\t".to_owned(),
                    10 => "  \\n".to_owned(),
                    11 => "  \\v".to_owned(),
                    12 => "  \\f".to_owned(),
                    13 => "  \\r".to_owned(),
                    byte if (32..127).contains(&byte) => format!("   {}", byte as char),
                    byte => format!(" {byte:03o}"),
                },
            };
            group(piece, *size).map(cell).collect()
        };
        formats.iter().map(line).collect()
    };
    let skip = options::number(options.value('j').unwrap_or("0"))?;
    let most = options
        .value('N')
        .map(options::number)
        .transpose()?
        .unwrap_or(u64::MAX);
    lines(
        context,
        &options.rest,
        skip,
        most,
        address,
        show,
        options.has('v'),
    )
}

pub(super) fn hexdump(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "Cvn:s:x", &[])?;
    let canonical = options.has('C') || context.name == "hd";
    let width = if canonical { 8 } else { 7 };
    let show = |piece: &[u8]| {
        if !canonical {
            return vec![group(piece, 2)
                .map(|value| format!(" {value:04x}"))
                .collect()];
        }
        let mut line = String::new();
        for at in 0..16 {
            line += if at % 8 == 0 { " " } else { "" };
            line += &piece
                .get(at)
                .map_or("   ".to_owned(), |byte| format!(" {byte:02x}"));
        }
        let text: String = piece.iter().map(|byte| printable(*byte)).collect();
        vec![format!("{line}  |{text}|")]
    };
    let skip = options::number(options.value('s').unwrap_or("0"))?;
    let most = options
        .value('n')
        .map(options::number)
        .transpose()?
        .unwrap_or(u64::MAX);
    lines(
        context,
        &options.rest,
        skip,
        most,
        |at| format!("{at:0width$x}"),
        show,
        options.has('v'),
    )
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(super) fn base64(context: &mut Context) -> Outcome {
    let options = options::parse(
        &context.args,
        "diw:",
        &[("decode", 'd'), ("ignore-garbage", 'i'), ("wrap", 'w')],
    )?;
    let wrap = options::number(options.value('w').unwrap_or("76"))? as usize;
    let mut all = Vec::new();
    let code = files::each_input(context, &options.rest, |_, _, reader| {
        reader.read_to_end(&mut all)?;
        Ok(())
    })?;
    if code != 0 {
        return Ok(code);
    }
    let mut out = Vec::new();
    if !options.has('d') {
        for piece in all.chunks(3) {
            let value = (0..3).fold(0u32, |sum, at| {
                sum << 8 | u32::from(piece.get(at).copied().unwrap_or(0))
            });
            for at in 0..4 {
                let index = (value >> (18 - 6 * at)) as usize & 63;
                out.push(if at <= piece.len() {
                    ALPHABET[index]
                } else {
                    b'='
                });
            }
        }
        if wrap == 0 {
            context.output.write_all(&out)?;
            return Ok(0);
        }
        for line in out.chunks(wrap) {
            context.output.write_all(line)?;
            context.output.write_all(b"\n")?;
        }
        return Ok(0);
    }
    let (mut bits, mut count, mut ended) = (0u32, 0, false);
    let mut bad = false;
    for byte in all {
        match ALPHABET.iter().position(|letter| *letter == byte) {
            Some(_) if ended => bad = true,
            Some(value) => {
                bits = bits << 6 | value as u32;
                count += 6;
                if count >= 8 {
                    count -= 8;
                    out.push((bits >> count) as u8);
                }
            }
            None if byte == b'=' => ended = true,
            None if byte.is_ascii_whitespace() || options.has('i') => {}
            None => bad = true,
        }
        if bad {
            break;
        }
    }
    context.output.write_all(&out)?;
    if bad || count == 6 {
        return fail("invalid input");
    }
    Ok(0)
}

pub(super) fn cmp(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "sln:b", &[("silent", 's'), ("quiet", 's')])?;
    let (first, second) = match options.rest.as_slice() {
        [first] => (first.clone(), "-".to_owned()),
        [first, second] => (first.clone(), second.clone()),
        _ => return Err(Fail::Text(2, "wants two files".to_owned())),
    };
    let open = |context: &mut Context, name: &str| {
        files::open(context, name)
            .map(io::BufReader::new)
            .map_err(|error| Fail::Text(2, about(name, &error)))
    };
    let (mut a, mut b) = (open(context, &first)?, open(context, &second)?);
    let most = options
        .value('n')
        .map(options::number)
        .transpose()?
        .unwrap_or(u64::MAX);
    let (mut at, mut line, mut code) = (0u64, 1u64, 0);
    let failed = |error: io::Error| Fail::Text(2, about("input", &error));
    while at < most {
        let (mut x, mut y) = ([0], [0]);
        let (n, m) = (
            fill(&mut a, &mut x).map_err(failed)?,
            fill(&mut b, &mut y).map_err(failed)?,
        );
        if n != m {
            if !options.has('s') {
                let short = if n < m { &first } else { &second };
                context.warn(format!("EOF on {short} after byte {at}"));
            }
            return Ok(1);
        }
        if n == 0 {
            break;
        }
        at += 1;
        if x != y {
            code = 1;
            if options.has('s') {
                break;
            }
            if !options.has('l') {
                writeln!(
                    context.output,
                    "{first} {second} differ: byte {at}, line {line}"
                )?;
                break;
            }
            writeln!(context.output, "{at} {:3o} {:3o}", x[0], y[0])?;
        }
        line += u64::from(x[0] == b'\n');
    }
    Ok(code)
}

pub(super) fn dd(context: &mut Context) -> Outcome {
    let mut input = None;
    let mut output = None;
    let (mut ibs, mut obs, mut count, mut skip, mut seek) = (512, 512, u64::MAX, 0, 0);
    let (mut quiet, mut truncates, mut whole, mut sync) = (false, true, false, false);
    for word in context.args.clone() {
        let (name, value) = match word.split_once('=') {
            Some(pair) => pair,
            None => return usage(format!("unknown operand '{word}'")),
        };
        match name {
            "if" => input = Some(value.to_owned()),
            "of" => output = Some(value.to_owned()),
            "bs" => {
                ibs = options::number(value)?;
                obs = ibs;
            }
            "ibs" => ibs = options::number(value)?,
            "obs" => obs = options::number(value)?,
            "count" => count = options::number(value)?,
            "skip" | "iseek" => skip = options::number(value)?,
            "seek" | "oseek" => seek = options::number(value)?,
            "status" => quiet = value == "none",
            "conv" => {
                for word in value.split(',') {
                    match word {
                        "notrunc" => truncates = false,
                        "sync" => sync = true,
                        "fsync" | "fdatasync" | "noerror" => {}
                        word => return usage(format!("unknown conversion '{word}'")),
                    }
                }
            }
            "iflag" => whole = value.split(',').any(|flag| flag == "fullblock"),
            "oflag" => {}
            name => return usage(format!("unknown operand '{name}'")),
        }
    }
    if ibs == 0 || obs == 0 || ibs > 1 << 31 {
        return usage("a block has between 1 byte and 2 GiB");
    }
    let name = input.unwrap_or_else(|| "-".to_owned());
    let opened = files::open(context, &name);
    let mut reader =
        opened.map_err(|error| Fail::Text(1, format!("can't open {}", about(&name, &error))))?;
    let mut writer: Box<dyn Write> = match &output {
        None => std::mem::replace(&mut context.output, Box::new(io::sink())),
        Some(name) => {
            let path = context.path(name);
            let special = path.starts_with("/dev/");
            let opened = if special {
                files::create(context, name, false)
            } else {
                let file = std::fs::OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(truncates && seek == 0)
                    .open(&path);
                file.and_then(|mut file| {
                    let start = seek.saturating_mul(obs);
                    if truncates && seek > 0 {
                        file.set_len(start)?;
                    }
                    file.seek(SeekFrom::Start(start))?;
                    Ok(Box::new(file) as Box<dyn Write>)
                })
            };
            opened.map_err(|error| Fail::Text(1, format!("can't open {}", about(name, &error))))?
        }
    };
    let start = std::time::Instant::now();
    let mut buffer = vec![0; ibs as usize];
    let (mut full, mut partial, mut bytes) = (0u64, 0u64, 0u64);
    let mut result: Result<(), String> = Ok(());
    for _ in 0..skip {
        match fill(&mut *reader, &mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    while full + partial < count {
        let read = if whole {
            fill(&mut *reader, &mut buffer)
        } else {
            reader.read(&mut buffer)
        };
        let mut n = match read {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                result = Err(about(&name, &error));
                break;
            }
        };
        if n == buffer.len() {
            full += 1;
        } else {
            partial += 1;
        }
        if sync {
            buffer[n..].iter_mut().for_each(|byte| *byte = 0);
            n = buffer.len();
        }
        if let Err(error) = writer.write_all(&buffer[..n]) {
            if error.kind() == io::ErrorKind::BrokenPipe {
                return Err(Fail::Pipe);
            }
            result = Err(about(
                output.as_deref().unwrap_or("standard output"),
                &error,
            ));
            break;
        }
        bytes += n as u64;
    }
    let flushed = writer.flush();
    if !quiet {
        let seconds = start.elapsed().as_secs_f64();
        let out = (bytes / obs, u64::from(bytes % obs > 0));
        writeln!(
            context.error,
            "{full}+{partial} records in\n{}+{} records out",
            out.0, out.1
        )?;
        writeln!(
            context.error,
            "{bytes} bytes ({}B) copied, {seconds:.6} seconds",
            super::list::human(bytes)
        )?;
    }
    match (result, flushed) {
        (Err(text), _) => fail(text),
        (_, Err(error)) => fail(about("output", &error)),
        _ => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use crate::context::testing::{output, run, run_in, Room};

    #[test]
    fn bytes_are_shown() {
        for (command, input, expected) in [
            ("od -c", "a\nb\u{1}", "0000000   a  \\n   b 001\n0000004\n"),
            ("od -An -tx1", "AB", " 41 42\n\n"),
            ("od -tx2", "ABC", "0000000 4241 0043\n0000003\n"),
            ("od", "AB", "0000000 041101\n0000002\n"),
            ("od -td1", "\u{7f}", "0000000  127\n0000001\n"),
            (
                "hexdump -C",
                "hi\n",
                "00000000  68 69 0a                                          |hi.|\n00000003\n",
            ),
            ("hexdump", "AB", "0000000 4241\n0000002\n"),
            ("base64", "hello", "aGVsbG8=\n"),
            ("base64 -d", "aGVs\nbG8=\n", "hello"),
            ("base64 -w 4", "hello", "aGVs\nbG8=\n"),
            ("base64 -w 0", "a", "YQ=="),
        ] {
            assert_eq!(output(command, input), expected, "{command}");
        }
        assert_eq!(output("hexdump -C", &"\0".repeat(64)).lines().count(), 3);
        assert_eq!(output("od -An -N2 -j1 -tu1", "ABCD").trim(), "66  67");
    }

    #[test]
    fn files_are_compared_and_copied() {
        let room = Room::new();
        room.write("a", "one\ntwo\n");
        room.write("b", "one\ntwx\n");
        assert_eq!(
            room.run("cmp a b", ""),
            (1, "a b differ: byte 7, line 2\n".to_owned(), String::new())
        );
        assert_eq!(room.run("cmp a a", "").0, 0);
        assert_eq!(room.run("cmp -s a b", "").0, 1);
        assert_eq!(
            room.run("dd if=a of=c bs=4 count=1 status=none", ""),
            (0, String::new(), String::new())
        );
        assert_eq!(room.read("c"), "one\n");
        room.run("dd if=a of=c bs=1 seek=2 skip=4 conv=notrunc", "");
        assert_eq!(room.read("c"), "ontwo\n");
        let (code, _, error) = room.run("dd if=/dev/zero of=z bs=1k count=3", "");
        assert!(
            code == 0
                && error.starts_with("3+0 records in\n3+0 records out\n3072 bytes (3.0KB) copied"),
            "{error}"
        );
        assert_eq!(run("dd bs=2 count=1 status=none", "abc").1, "ab");
    }

    #[test]
    fn wrong_use_is_told() {
        for command in [
            "od -t q",
            "od -A z",
            "od -j x",
            "od /nonexistent",
            "hexdump -n x",
            "base64 -w x",
            "dd x",
            "dd bs=0",
            "dd bs=9G",
            "dd if=/nonexistent",
            "dd of=/nonexistent/x",
            "dd conv=what",
            "dd what=1",
        ] {
            assert_eq!(run(command, "").0, 1, "{command}");
        }
        for command in ["cmp", "cmp /nonexistent /", "cmp a b c"] {
            assert_eq!(run(command, "").0, 2, "{command}");
        }
        for input in ["a", "!!!", "YQ==YQ"] {
            assert_eq!(run("base64 -d", input).0, 1, "{input}");
        }
        assert_eq!(run_in("/", &["base64", "-d"], &[0xff]).0, 1);
    }
}
