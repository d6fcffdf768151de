//! `sed`: its commands at work on lines.

use super::sed::{Action, Address, Command, Piece, Substitute};
use crate::context::{about, Context, Fail, Outcome};
use crate::files;
use crate::regex::Regex;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::rc::Rc;

/// Branches of one line: a loop that never ends would only waste the CPU.
const STEPS: u64 = 10_000_000;

struct Sed<'a> {
    commands: &'a [Command],
    quiet: bool,
    /// for each command with two addresses: the line its range began at, and whether it is on
    ranges: Vec<Option<u64>>,
    space: Vec<u8>,
    hold: Vec<u8>,
    number: u64,
    last_regex: Option<Rc<Regex>>,
    /// text of `a` and `r` for the end of the cycle
    later: Vec<Vec<u8>>,
    files: HashMap<String, Box<dyn Write>>,
    input: Input,
    output: Box<dyn Write>,
    /// the last line had no newline
    unended: bool,
    /// neither has what we wrote last
    owes: bool,
}

/// Lines of several files, with one line looked ahead: `$` is the last.
struct Input {
    waiting: Vec<(String, Box<dyn Read>)>,
    current: Option<BufReader<Box<dyn Read>>>,
    ahead: Option<Vec<u8>>,
    error: Option<String>,
    name: String,
}

impl Input {
    fn read(&mut self) -> Option<Vec<u8>> {
        loop {
            if self.current.is_none() {
                let (name, reader) = self.waiting.pop()?;
                self.name = name;
                self.current = Some(BufReader::new(reader));
            }
            let mut line = Vec::new();
            match self.current.as_mut()?.read_until(b'\n', &mut line) {
                Ok(0) => self.current = None,
                Ok(_) => return Some(line),
                Err(error) => {
                    self.error = Some(about(&self.name, &error));
                    self.current = None;
                }
            }
        }
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let line = self.ahead.take().or_else(|| self.read())?;
        Some(line)
    }

    fn is_last(&mut self) -> bool {
        if self.ahead.is_none() {
            self.ahead = self.read();
        }
        self.ahead.is_none()
    }
}

enum End {
    Cycle,
    Restart,
    Quit(i32),
}

fn wrong(text: String) -> Fail {
    Fail::Text(1, text)
}

pub(super) fn run(
    context: &mut Context,
    commands: &[Command],
    quiet: bool,
    names: Vec<String>,
    in_place: Option<String>,
) -> Outcome {
    let mut code = 0;
    if let Some(suffix) = in_place {
        for name in names {
            let path = context.path(&name);
            let text = match std::fs::read(&path) {
                Ok(text) => text,
                Err(error) => {
                    context.warn(format!("can't read {}", about(&name, &error)));
                    code = 4;
                    continue;
                }
            };
            if !suffix.is_empty() {
                let copy = format!("{path}{suffix}");
                std::fs::write(&copy, &text).map_err(|error| wrong(about(&copy, &error)))?;
            }
            // beside it, then renamed: a failure leaves the old file
            let temporary = format!("{path}.sed-tmp");
            let file = std::fs::File::create(&temporary)
                .map_err(|error| wrong(about(&temporary, &error)))?;
            let input = vec![(
                name.clone(),
                Box::new(std::io::Cursor::new(text)) as Box<dyn Read>,
            )];
            let output = Box::new(std::io::BufWriter::new(file));
            let mut sed = Sed::new(commands, quiet, input, output);
            let result = sed.all(context);
            let result =
                result.and_then(|ended| sed.output.flush().map(|()| ended).map_err(Fail::from));
            if let Err(fail) = result {
                let _ = std::fs::remove_file(&temporary);
                return Err(fail);
            }
            std::fs::rename(&temporary, &path).map_err(|error| wrong(about(&name, &error)))?;
        }
        return Ok(code);
    }
    let names = if names.is_empty() {
        vec!["-".to_owned()]
    } else {
        names
    };
    let mut inputs = Vec::new();
    for name in names {
        match files::open(context, &name) {
            Ok(reader) => inputs.push((name, reader)),
            Err(error) => {
                context.warn(format!("can't read {}", about(&name, &error)));
                code = 2;
            }
        }
    }
    inputs.reverse();
    let output = std::mem::replace(&mut context.output, Box::new(std::io::sink()));
    let mut sed = Sed::new(commands, quiet, inputs, output);
    let result = sed.all(context);
    let failed = sed.input.error.take();
    context.output = sed.output;
    if let Some(text) = failed {
        context.warn(text);
        code = 2;
    }
    Ok(match result? {
        0 => code,
        status => status,
    })
}

impl<'a> Sed<'a> {
    fn new(
        commands: &'a [Command],
        quiet: bool,
        waiting: Vec<(String, Box<dyn Read>)>,
        output: Box<dyn Write>,
    ) -> Sed<'a> {
        Sed {
            commands,
            quiet,
            ranges: commands.iter().map(|_| None).collect(),
            space: Vec::new(),
            hold: Vec::new(),
            number: 0,
            last_regex: None,
            later: Vec::new(),
            files: HashMap::new(),
            input: Input {
                waiting,
                current: None,
                ahead: None,
                error: None,
                name: "-".to_owned(),
            },
            output,
            unended: false,
            owes: false,
        }
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        let mut line = self.input.next()?;
        self.number += 1;
        self.unended = line.last() != Some(&b'\n');
        if !self.unended {
            line.pop();
        }
        Some(line)
    }

    fn print(&mut self, text: &[u8]) -> Result<(), Fail> {
        self.emit(text)?;
        self.owes = self.unended && self.input.is_last();
        if !self.owes {
            self.output.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Writes; first the newline that the last line of the input did not have.
    fn emit(&mut self, text: &[u8]) -> Result<(), Fail> {
        if std::mem::take(&mut self.owes) {
            self.output.write_all(b"\n")?;
        }
        self.output.write_all(text)?;
        Ok(())
    }

    fn all(&mut self, context: &mut Context) -> Result<i32, Fail> {
        let mut kept = false;
        loop {
            if !std::mem::take(&mut kept) {
                match self.take() {
                    Some(line) => self.space = line,
                    None => return Ok(0),
                }
            }
            let end = self.cycle(context)?;
            if !self.quiet
                && matches!(end, End::Cycle | End::Quit(_))
                && !matches!(end, End::Quit(256..))
            {
                let space = std::mem::take(&mut self.space);
                self.print(&space)?;
                self.space = space;
            }
            for text in std::mem::take(&mut self.later) {
                self.emit(&text)?;
            }
            match end {
                End::Quit(status) => return Ok(status & 0xff),
                End::Restart if !self.space.is_empty() => kept = true,
                _ => {}
            }
        }
    }

    fn matches(&mut self, regex: &Option<Rc<Regex>>) -> Result<bool, Fail> {
        let regex = match regex.clone().or_else(|| self.last_regex.clone()) {
            Some(regex) => regex,
            None => return Err(wrong("no regular expression was used yet".to_owned())),
        };
        let found = regex.is_match(&self.space).map_err(wrong)?;
        self.last_regex = Some(regex);
        Ok(found)
    }

    fn fits(&mut self, address: &Address) -> Result<bool, Fail> {
        Ok(match address {
            Address::Line(number) => self.number == *number,
            Address::Last => self.input.is_last(),
            Address::Regex(regex) => self.matches(regex)?,
            Address::Step(first, 0) => self.number == *first,
            Address::Step(first, step) => {
                self.number >= *first && (self.number - first) % step == 0
            }
            Address::Plus(_) => false,
        })
    }

    fn selected(&mut self, index: usize) -> Result<bool, Fail> {
        let commands = self.commands;
        let command = &commands[index];
        let first = match &command.first {
            None => return Ok(!command.negated),
            Some(first) => first,
        };
        let second = match &command.second {
            None => return Ok(self.fits(first)? != command.negated),
            Some(second) => second,
        };
        let inside = match self.ranges[index] {
            Some(start) => {
                let ends = match second {
                    Address::Line(number) => self.number >= *number,
                    Address::Plus(count) => self.number >= start.saturating_add(*count),
                    address => self.fits(address)?,
                };
                if ends {
                    self.ranges[index] = None;
                }
                // a line number that lies behind us takes one line only
                !matches!(second, Address::Line(number) if self.number > *number)
            }
            None => {
                // 0,/x/ may end at the first line
                let begins =
                    matches!(first, Address::Line(0)) && self.number == 1 || self.fits(first)?;
                if begins {
                    let over = match second {
                        Address::Line(number) => *number <= self.number,
                        Address::Plus(count) => *count == 0,
                        Address::Last => self.input.is_last(),
                        address if matches!(first, Address::Line(0)) => self.fits(address)?,
                        _ => false,
                    };
                    if !over {
                        self.ranges[index] = Some(self.number);
                    }
                }
                begins
            }
        };
        Ok(inside != command.negated)
    }

    fn cycle(&mut self, context: &mut Context) -> Result<End, Fail> {
        let commands = self.commands;
        let (mut at, mut replaced, mut steps) = (0, false, 0u64);
        while at < commands.len() {
            steps += 1;
            if steps > STEPS {
                return Err(wrong("a loop of the script does not end".to_owned()));
            }
            let selected = self.selected(at)?;
            let command = &commands[at];
            at += 1;
            if !selected {
                if let Action::Open(end) = command.action {
                    at = end;
                }
                continue;
            }
            match &command.action {
                Action::Open(_) | Action::Close => {}
                Action::Substitute(substitute) => {
                    replaced |= self.substitute(context, substitute)?
                }
                Action::Translate(pairs) => {
                    let (mut out, mut from) = (Vec::new(), 0);
                    while from < self.space.len() {
                        let (c, length) = crate::glob::decode(&self.space[from..]);
                        match pairs
                            .iter()
                            .find(|(wanted, _)| *wanted == c)
                            .and_then(|(_, with)| char::from_u32(*with))
                        {
                            Some(with) => {
                                out.extend_from_slice(with.encode_utf8(&mut [0; 4]).as_bytes())
                            }
                            None => out.extend_from_slice(&self.space[from..from + length]),
                        }
                        from += length;
                    }
                    self.space = out;
                }
                Action::Text(b'a', text) => self.later.push(text.clone()),
                Action::Text(b'i', text) => self.emit(text)?,
                Action::Text(_, text) => {
                    // of a range, once at its end
                    if self.ranges[at - 1].is_none() || command.negated {
                        self.emit(text)?;
                    }
                    self.space.clear();
                    return Ok(End::Restart);
                }
                Action::Branch(kind, to) => {
                    let jumps = match kind {
                        b'b' => true,
                        b't' => std::mem::take(&mut replaced),
                        _ => !std::mem::take(&mut replaced),
                    };
                    if jumps {
                        at = *to;
                    }
                }
                Action::File(b'r', name) => {
                    let read = std::fs::read(context.path(name));
                    // as POSIX says: a file that cannot be read is empty
                    self.later.extend(read.ok());
                }
                Action::File(_, name) => {
                    let line = [&self.space[..], b"\n"].concat();
                    self.write(context, name, &line)?;
                }
                Action::Quit(b'q', status) => return Ok(End::Quit(*status)),
                Action::Quit(_, status) => return Ok(End::Quit(256 | *status)),
                Action::Plain(letter) => {
                    if let Some(end) = self.plain(*letter)? {
                        return Ok(end);
                    }
                }
            }
        }
        Ok(End::Cycle)
    }

    fn plain(&mut self, letter: u8) -> Result<Option<End>, Fail> {
        match letter {
            b'=' => self.emit(format!("{}\n", self.number).as_bytes())?,
            b'F' => self.emit(format!("{}\n", self.input.name).as_bytes())?,
            b'd' => {
                self.space.clear();
                return Ok(Some(End::Restart));
            }
            b'D' => {
                match self.space.iter().position(|byte| *byte == b'\n') {
                    Some(end) => drop(self.space.drain(..=end)),
                    None => self.space.clear(),
                }
                return Ok(Some(End::Restart));
            }
            b'g' => self.space = self.hold.clone(),
            b'G' => {
                self.space.push(b'\n');
                self.space.extend_from_slice(&self.hold);
            }
            b'h' => self.hold = self.space.clone(),
            b'H' => {
                self.hold.push(b'\n');
                self.hold.extend_from_slice(&self.space);
            }
            b'x' => std::mem::swap(&mut self.space, &mut self.hold),
            b'z' => self.space.clear(),
            b'l' => {
                let mut line = Vec::new();
                for &byte in &self.space {
                    match byte {
                        b'\\' => line.extend_from_slice(b"\\\\"),
                        b'\t' => line.extend_from_slice(b"\\t"),
                        b'\n' => line.extend_from_slice(b"\\n"),
                        32..=126 => line.push(byte),
                        byte => line.extend_from_slice(format!("\\{byte:03o}").as_bytes()),
                    }
                }
                line.extend_from_slice(b"$\n");
                self.emit(&line)?;
            }
            b'n' => {
                if self.input.is_last() {
                    return Ok(Some(End::Quit(if self.quiet { 256 } else { 0 })));
                }
                if !self.quiet {
                    let space = std::mem::take(&mut self.space);
                    self.print(&space)?;
                }
                for text in std::mem::take(&mut self.later) {
                    self.emit(&text)?;
                }
                self.space = self.take().unwrap_or_default();
            }
            b'N' => match self.take() {
                Some(line) => {
                    self.space.push(b'\n');
                    self.space.extend_from_slice(&line);
                }
                // as GNU: what is there is printed
                None => return Ok(Some(End::Quit(0))),
            },
            b'p' => {
                let space = std::mem::take(&mut self.space);
                self.print(&space)?;
                self.space = space;
            }
            _ => {
                let end = self
                    .space
                    .iter()
                    .position(|byte| *byte == b'\n')
                    .unwrap_or(self.space.len());
                let line = [&self.space[..end], b"\n"].concat();
                self.emit(&line)?;
            }
        }
        Ok(None)
    }

    fn write(&mut self, context: &Context, name: &str, text: &[u8]) -> Result<(), Fail> {
        if name == "/dev/stdout" {
            return self.emit(text);
        }
        if !self.files.contains_key(name) {
            let file =
                files::create(context, name, false).map_err(|error| wrong(about(name, &error)))?;
            self.files.insert(name.to_owned(), file);
        }
        match self.files.get_mut(name) {
            Some(file) => file
                .write_all(text)
                .map_err(|error| wrong(about(name, &error))),
            None => Ok(()),
        }
    }

    fn substitute(&mut self, context: &Context, substitute: &Substitute) -> Result<bool, Fail> {
        let regex = match substitute.regex.clone().or_else(|| self.last_regex.clone()) {
            Some(regex) => regex,
            None => return Err(wrong("no regular expression was used yet".to_owned())),
        };
        self.last_regex = Some(regex.clone());
        let text = std::mem::take(&mut self.space);
        let (mut out, mut at, mut copied, mut count) = (Vec::new(), 0, 0, 0u64);
        let mut changed = false;
        while at <= text.len() {
            let groups = match regex.find(&text, at).map_err(wrong)? {
                Some(groups) => groups,
                None => break,
            };
            let (start, end) = groups[0].unwrap_or((at, at));
            // an empty match right behind the last one is none
            let empty_behind = end == start
                && count > 0
                && start == copied
                && changed
                && start > 0
                && at == start
                && copied == at;
            if !empty_behind {
                count += 1;
                if count >= substitute.number {
                    out.extend_from_slice(&text[copied..start]);
                    let groups: Vec<&[u8]> = groups
                        .iter()
                        .map(|group| group.map_or(&b""[..], |(start, end)| &text[start..end]))
                        .collect();
                    build(&substitute.with, &groups, &mut out);
                    copied = end;
                    changed = true;
                    if !substitute.all {
                        break;
                    }
                }
            }
            at = if end > start {
                end
            } else {
                end + crate::glob::decode(&text[end..]).1.max(1)
            };
        }
        out.extend_from_slice(&text[copied.min(text.len())..]);
        self.space = out;
        if changed && substitute.print {
            let space = std::mem::take(&mut self.space);
            self.print(&space)?;
            self.space = space;
        }
        if let (true, Some(name)) = (changed, &substitute.file) {
            let line = [&self.space[..], b"\n"].concat();
            self.write(context, name, &line)?;
        }
        Ok(changed)
    }
}

fn build(pieces: &[Piece], groups: &[&[u8]], out: &mut Vec<u8>) {
    let (mut all, mut one) = (0u8, 0u8);
    for piece in pieces {
        let text: &[u8] = match piece {
            Piece::Text(text) => text,
            Piece::Group(number) => groups.get(*number).copied().unwrap_or_default(),
            Piece::Case(kind) => {
                match kind {
                    b'u' | b'l' => one = *kind,
                    kind => all = *kind,
                }
                continue;
            }
        };
        if all == 0 && one == 0 {
            out.extend_from_slice(text);
            continue;
        }
        let changed = String::from_utf8_lossy(text).into_owned();
        let mut changed = match all {
            b'U' => changed.to_uppercase(),
            b'L' => changed.to_lowercase(),
            _ => changed,
        };
        if one != 0 && !changed.is_empty() {
            let rest = changed.split_off(changed.chars().next().map_or(0, char::len_utf8));
            changed = if one == b'u' {
                changed.to_uppercase()
            } else {
                changed.to_lowercase()
            } + &rest;
            one = 0;
        }
        out.extend_from_slice(changed.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use crate::context::testing::{run_in, Room};

    fn sed(args: &[&str], input: &str) -> (i32, String) {
        let argv: Vec<&str> = std::iter::once("sed").chain(args.iter().copied()).collect();
        let (code, out, error) = run_in("/", &argv, input.as_bytes());
        (code, out + &error)
    }

    #[test]
    fn scripts_edit_lines() {
        let lines = "one\ntwo\nthree\n";
        for (args, input, expected) in [
            (&["s/o/0/"][..], "foo\n", "f0o\n"),
            (&["s/o/0/g"], "foo\n", "f00\n"),
            (&["s/o/0/2"], "foo\n", "fo0\n"),
            (&["s/x*/-/g"], "abc\n", "-a-b-c-\n"),
            (&["s/b*/-/g"], "abc\n", "-a-c-\n"),
            (&["s|/|-|g"], "a/b/c\n", "a-b-c\n"),
            (&["s/[/]/-/"], "a/b\n", "a-b\n"),
            (&["s/\\(a\\)\\(b\\)/\\2\\1&/"], "ab\n", "baab\n"),
            (&["-E", "s/(a+)(b?)/<\\1,\\2>/"], "aac\n", "<aa,>c\n"),
            (&["s/a\\/b/X/"], "a/b\n", "X\n"),
            (&["s/.*/\\U&/"], "abc\n", "ABC\n"),
            (&["s/\\(.\\)/\\u\\1/"], "abc\n", "Abc\n"),
            (&["s/A/x/I"], "a\n", "x\n"),
            (&["s/$/\\r/"], "a\n", "a\r\n"),
            (&["2d"], lines, "one\nthree\n"),
            (&["$d"], lines, "one\ntwo\n"),
            (&["/two/d"], lines, "one\nthree\n"),
            (&["/two/!d"], lines, "two\n"),
            (&["-n", "2p"], lines, "two\n"),
            (&["-n", "2,$p"], lines, "two\nthree\n"),
            (&["-n", "/one/,/two/p"], lines, "one\ntwo\n"),
            (&["-n", "2,1p"], lines, "two\n"),
            (&["-n", "1~2p"], lines, "one\nthree\n"),
            (&["-n", "/one/,+1p"], lines, "one\ntwo\n"),
            (&["-n", "$="], lines, "3\n"),
            (&["2q"], lines, "one\ntwo\n"),
            (&["-e", "1d", "-e", "s/t/T/"], lines, "Two\nThree\n"),
            (&["2i\\before"], lines, "one\nbefore\ntwo\nthree\n"),
            (&["2a after"], lines, "one\ntwo\nafter\nthree\n"),
            (&["2c\\new"], lines, "one\nnew\nthree\n"),
            (&["1,2c new"], lines, "new\nthree\n"),
            (&["y/abc/xyz/"], "aabbcc\n", "xxyyzz\n"),
            (&["N;s/\\n/ /"], lines, "one two\nthree\n"),
            (&[":a;N;$!ba;s/\\n/,/g"], lines, "one,two,three\n"),
            (&["-n", "1!G;h;$p"], lines, "three\ntwo\none\n"),
            (&["/two/{s/t/T/;s/o/O/}"], lines, "one\nTwO\nthree\n"),
            (&["s/o/0/;ta;s/$/!/;:a"], lines, "0ne\ntw0\nthree!\n"),
            (&["n;d"], lines, "one\nthree\n"),
            (&["-n", "s/o/0/p"], lines, "0ne\ntw0\n"),
            (&["p"], "a", "a\na"),
            (&["s/a/b/"], "a", "b"),
            (&["# comment\ns/a/b/ # more"], "a\n", "b\n"),
            (&["/a/s//x/"], "a\n", "x\n"),
            (&["-n", "l"], "a\tä\n", "a\\t\\303\\244$\n"),
            (&["s/[]/]/x/g"], "a]/\n", "axx\n"),
            (&["5!s/a/b/;x;G"], "a\n", "\nb\n"),
        ] {
            assert_eq!(sed(args, input), (0, expected.to_owned()), "{args:?}");
        }
        assert_eq!(sed(&["2q5"], lines).0, 5);
        assert_eq!(sed(&["-n", "2{p;Q7}"], lines), (7, "two\n".to_owned()));
    }

    #[test]
    fn files_are_edited_in_place() {
        let room = Room::new();
        room.write("f", "a\nb\n");
        room.output("sed -i s/a/x/ f");
        assert_eq!(room.read("f"), "x\nb\n");
        room.output("sed -i.bak 1d f");
        assert_eq!(
            (room.read("f"), room.read("f.bak")),
            ("b\n".to_owned(), "x\nb\n".to_owned())
        );
        assert_eq!(room.output("ls"), "f\nf.bak\n");
        assert_eq!(room.run("sed -i s/a/b/ none", "").0, 4);
        assert_eq!(room.run("sed p none", "").0, 2);
    }

    #[test]
    fn wrong_scripts_are_told() {
        let deep = "{".repeat(1000);
        for script in [
            "s/a",
            "s/a/b",
            "s/a/b/q",
            "k",
            "y/a/bc/",
            "{p",
            "p}",
            "b none",
            "1,p",
            "s/\\(/x/",
            "s/a/\\1/",
            "/a",
            "1",
            "dd",
            "a",
            "r",
            "s",
            "99999999999999999999p",
            "s/a/b/0",
            "s//x/",
            &deep,
            "\\",
            "+p",
            "y/a",
            "s/a\\",
        ] {
            let (code, text) = sed(&["--", script], "x\n");
            if script != "a" {
                assert_eq!(code, 1, "{script} {text}");
            }
        }
        assert_eq!(sed(&[":a;ba"], "x\n").0, 1);
        let mut seed = 7u32;
        let alphabet = b"sabipdnNGhHx{};/\\12$,!&g\n:tyc=";
        for _ in 0..20_000 {
            let mut script = Vec::new();
            for _ in 0..10 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                script.push(alphabet[(seed >> 16) as usize % alphabet.len()]);
            }
            // only parsed: some of them write files or loop
            let _ = crate::applets::sed::parse(&script, seed & 1 == 0);
        }
    }
}
