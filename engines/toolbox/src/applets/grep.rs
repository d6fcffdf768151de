//! `grep`

use crate::context::{about, reason, Context, Fail, Outcome};
use crate::files;
use crate::glob::Pattern;
use crate::options;
use crate::regex::{Match, Regex, Syntax};
use std::io::{BufRead, BufReader};

struct Grep {
    /// one for each pattern: a line fits if one of them does
    patterns: Vec<Regex>,
    options: options::Options,
    most: u64,
    before: u64,
    after: u64,
}

fn fatal(text: impl Into<String>) -> Fail {
    Fail::Text(2, text.into())
}

/// Letters, digits and blanks as they are, all else behind a backslash or in brackets.
fn quote(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for &byte in text {
        match byte {
            b'\\' | b'^' => out.extend_from_slice(&[b'\\', byte]),
            b'.' | b'[' | b']' | b'*' | b'$' | b'(' | b')' | b'{' | b'}' | b'+' | b'?' | b'|' => {
                out.extend_from_slice(&[b'[', byte, b']'])
            }
            _ => out.push(byte),
        }
    }
    out
}

pub(super) fn run(context: &mut Context) -> Outcome {
    let long = [
        ("ignore-case", 'i'),
        ("invert-match", 'v'),
        ("line-number", 'n'),
        ("recursive", 'r'),
        ("extended-regexp", 'E'),
        ("fixed-strings", 'F'),
        ("quiet", 'q'),
        ("silent", 'q'),
        ("count", 'c'),
        ("only-matching", 'o'),
        ("regexp", 'e'),
        ("files-with-matches", 'l'),
        ("files-without-match", 'L'),
        ("word-regexp", 'w'),
        ("line-regexp", 'x'),
        ("no-messages", 's'),
        ("with-filename", 'H'),
        ("no-filename", 'h'),
        ("max-count", 'm'),
        ("file", 'f'),
        ("include", 'I'),
        ("exclude", 'X'),
        ("after-context", 'A'),
        ("before-context", 'B'),
        ("context", 'C'),
        ("text", 'a'),
        ("exclude-dir", 'D'),
    ];
    let args: Vec<String> = context
        .args
        .iter()
        .filter(|word| !word.starts_with("--color"))
        .cloned()
        .collect();
    let options =
        options::parse(&args, "ivnrREFGqcolLwxshHm:e:f:A:B:C:aI:X:D:z", &long).map_err(as_fatal)?;
    let mut rest = options.rest.clone();
    let mut sources: Vec<Vec<u8>> = Vec::new();
    for text in options.values('e') {
        sources.extend(
            text.as_bytes()
                .split(|byte| *byte == b'\n')
                .map(<[u8]>::to_vec),
        );
    }
    for name in options.values('f') {
        let path = context.path(name);
        let text = std::fs::read(path).map_err(|error| fatal(about(name, &error)))?;
        let text = text.strip_suffix(b"\n").unwrap_or(&text).to_vec();
        sources.extend(text.split(|byte| *byte == b'\n').map(<[u8]>::to_vec));
    }
    if !options.has('e') && !options.has('f') {
        if rest.is_empty() {
            return Err(fatal("wants a pattern"));
        }
        sources.extend(
            rest.remove(0)
                .as_bytes()
                .split(|byte| *byte == b'\n')
                .map(<[u8]>::to_vec),
        );
    }
    let fixed = options.has('F') || context.name == "fgrep";
    let extended = options.has('E') || context.name == "egrep" || fixed;
    let mut patterns = Vec::new();
    for source in sources {
        let plain = fixed && !options.has('w') && !options.has('x');
        let mut source = if fixed { quote(&source) } else { source };
        if options.has('x') {
            source = around(extended, b"^", &source, b"$");
        }
        if options.has('w') {
            source = around(extended, b"\\<", &source, b"\\>");
        }
        let syntax = Syntax {
            extended: extended || plain,
            ignore_case: options.has('i'),
        };
        patterns.push(Regex::new(&source, syntax).map_err(fatal)?);
    }
    let number = |letter| {
        options::number(
            options
                .value(letter)
                .or_else(|| options.value('C').filter(|_| letter != 'm'))
                .unwrap_or("0"),
        )
        .map_err(as_fatal)
    };
    let (before, after) = (number('B')?, number('A')?);
    let most = if options.has('m') {
        number('m')?
    } else {
        u64::MAX
    };
    let grep = Grep {
        patterns,
        options,
        most,
        before,
        after,
    };
    grep.all(context, rest)
}

fn as_fatal(fail: Fail) -> Fail {
    match fail {
        Fail::Text(_, text) => fatal(text),
        fail => fail,
    }
}

fn around(extended: bool, before: &[u8], source: &[u8], behind: &[u8]) -> Vec<u8> {
    let (open, close): (&[u8], &[u8]) = if extended {
        (b"(", b")")
    } else {
        (b"\\(", b"\\)")
    };
    [before, open, source, close, behind].concat()
}

impl Grep {
    fn all(&self, context: &mut Context, names: Vec<String>) -> Outcome {
        let recursive = self.options.has('r') || self.options.has('R');
        let names = match (names.is_empty(), recursive) {
            (true, true) => vec![".".to_owned()],
            (true, false) => vec!["-".to_owned()],
            _ => names,
        };
        let named =
            (names.len() > 1 || recursive || self.options.has('H')) && !self.options.has('h');
        let (mut found, mut failed) = (false, false);
        let mut work: Vec<(String, bool)> =
            names.into_iter().rev().map(|name| (name, true)).collect();
        while let Some((name, given)) = work.pop() {
            let path = context.path(&name);
            if name != "-" && std::fs::metadata(&path).map_or(false, |data| data.is_dir()) {
                let skip = self.options.values('D').any(|pattern| {
                    Pattern::new(pattern.as_bytes()).matches(files::base_name(&name).as_bytes())
                });
                let link = !given
                    && files::lookup(&path).map_or(false, |data| data.file_type().is_symlink());
                if !recursive {
                    context.warn(format!("{name}: Is a directory"));
                } else if !link && (given || !skip) {
                    match files::list(&path) {
                        Ok(below) => work.extend(
                            below
                                .iter()
                                .rev()
                                .map(|below| (files::join(&name, below), false)),
                        ),
                        Err(error) => {
                            context.warn(about(&name, &error));
                            failed = true;
                        }
                    }
                }
                continue;
            }
            let base = files::base_name(&name).as_bytes();
            let fits = |letter| {
                self.options
                    .values(letter)
                    .any(|pattern| Pattern::new(pattern.as_bytes()).matches(base))
            };
            if !given && ((self.options.has('I') && !fits('I')) || fits('X')) {
                continue;
            }
            let opened = files::open(context, &name);
            let mut reader = match opened {
                Ok(reader) => BufReader::new(reader),
                Err(error) => {
                    failed = true;
                    if !self.options.has('s') {
                        context.warn(about(&name, &error));
                    }
                    continue;
                }
            };
            match self.one(context, &name, named, &mut reader)? {
                Some(any) => found |= any,
                None => failed = true,
            }
            if found && self.options.has('q') {
                return Ok(0);
            }
        }
        Ok(match (found, failed) {
            (_, true) => 2,
            (true, false) => 0,
            (false, false) => 1,
        })
    }

    fn matches(&self, text: &[u8], start: usize) -> Result<Option<Match>, Fail> {
        let mut best: Option<Match> = None;
        for pattern in &self.patterns {
            let found = pattern.find(text, start).map_err(fatal)?;
            let key = |found: &Match| found[0].map(|(start, end)| (start, usize::MAX - end));
            if let Some(found) = found {
                if best.as_ref().map_or(true, |best| key(&found) < key(best)) {
                    best = Some(found);
                }
                // for the other lines one is enough
                if !self.options.has('o') {
                    break;
                }
            }
        }
        Ok(best)
    }

    /// Was there a line that fits? None after an error.
    fn one(
        &self,
        context: &mut Context,
        name: &str,
        named: bool,
        reader: &mut dyn BufRead,
    ) -> Result<Option<bool>, Fail> {
        let has = |letter| self.options.has(letter);
        let shown = if name == "-" {
            "(standard input)"
        } else {
            name
        };
        let quiet = has('q') || has('l') || has('L') || has('c');
        let (mut count, mut number, mut last_shown, mut behind) = (0u64, 0u64, 0u64, 0u64);
        let mut held: std::collections::VecDeque<Vec<u8>> = std::collections::VecDeque::new();
        let mut line = Vec::new();
        let mut binary = false;
        while count < self.most || behind > 0 {
            line.clear();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    context.warn(format!("{name}: {}", reason(&error)));
                    return Ok(None);
                }
            }
            number += 1;
            binary = binary || (line.contains(&0) && !has('a'));
            let text = files::chomp(&line, b'\n');
            let found = if count < self.most {
                self.matches(text, 0)?
            } else {
                None
            };
            let fits = found.is_some() != has('v') && count < self.most;
            if !fits {
                if behind > 0 && !quiet {
                    behind -= 1;
                    self.print(context, shown, named, number, b'-', text)?;
                    last_shown = number;
                } else if self.before > 0 {
                    held.push_back(text.to_vec());
                    if held.len() as u64 > self.before {
                        held.pop_front();
                    }
                }
                continue;
            }
            count += 1;
            if has('q') || has('l') || has('L') {
                break;
            }
            if quiet {
                continue;
            }
            if binary {
                writeln!(context.output, "Binary file {shown} matches")?;
                break;
            }
            let first = number - held.len() as u64;
            if (self.before > 0 || self.after > 0) && last_shown > 0 && first > last_shown + 1 {
                context.output.write_all(b"--\n")?;
            }
            for (offset, text) in std::mem::take(&mut held).iter().enumerate() {
                self.print(context, shown, named, first + offset as u64, b'-', text)?;
            }
            if !has('o') {
                self.print(context, shown, named, number, b':', text)?;
            } else if !has('v') {
                let mut found = found;
                while let Some((start, end)) = found.as_ref().and_then(|groups| groups[0]) {
                    if end > start {
                        self.print(context, shown, named, number, b':', &text[start..end])?;
                    }
                    let next = if end > start {
                        end
                    } else {
                        end + crate::glob::decode(&text[end..]).1.max(1)
                    };
                    found = if next > text.len() {
                        None
                    } else {
                        self.matches(text, next)?
                    };
                }
            }
            last_shown = number;
            behind = self.after;
        }
        if has('c') && !has('q') && !has('l') {
            let prefix = if named {
                format!("{shown}:")
            } else {
                String::new()
            };
            writeln!(context.output, "{prefix}{count}")?;
        }
        if (has('l') && count > 0) || (has('L') && count == 0) {
            writeln!(context.output, "{shown}")?;
        }
        Ok(Some((count > 0) != has('L')))
    }

    fn print(
        &self,
        context: &mut Context,
        name: &str,
        named: bool,
        number: u64,
        sign: u8,
        text: &[u8],
    ) -> Result<(), Fail> {
        let sign = sign as char;
        if named {
            write!(context.output, "{name}{sign}")?;
        }
        if self.options.has('n') {
            write!(context.output, "{number}{sign}")?;
        }
        context.output.write_all(text)?;
        context.output.write_all(b"\n")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::context::testing::{run, Room};

    #[test]
    fn lines_are_found() {
        let text = "one\nTwo two\nthree.3\n\nfour\n";
        for (command, expected) in [
            ("grep o", "one\nTwo two\nfour\n"),
            ("grep -i two", "Two two\n"),
            ("grep -v o", "three.3\n\n"),
            ("grep -n ^t", "3:three.3\n"),
            ("grep -c o", "3\n"),
            ("grep -o [wo]o*", "o\nwo\nwo\no\n"),
            ("grep -F .3", "three.3\n"),
            ("grep -E o(n|u)", "one\nfour\n"),
            ("grep -w two", "Two two\n"),
            ("grep -x four", "four\n"),
            ("grep -m 1 o", "one\n"),
            ("grep -e one -e four", "one\nfour\n"),
            ("grep -A 1 one", "one\nTwo two\n"),
            ("grep -B1 four", "\nfour\n"),
            ("grep -n -C1 three", "2-Two two\n3:three.3\n4-\n"),
            ("grep -l o", "(standard input)\n"),
            ("grep -H one", "(standard input):one\n"),
            ("grep -Fx four", "four\n"),
            ("grep ^$", "\n"),
        ] {
            assert_eq!(
                run(command, text),
                (0, expected.to_owned(), String::new()),
                "{command}"
            );
        }
        assert_eq!(run("grep -q none", text).0, 1);
        assert_eq!(run("grep -q one", text), (0, String::new(), String::new()));
        assert_eq!(
            run("grep a", "a\0b\n").1,
            "Binary file (standard input) matches\n"
        );
        // bytes that are no text are lines all the same
        let (code, ..) = crate::context::testing::run_in("/", &["grep", "b"], b"\xffb\n");
        assert_eq!(code, 0);
    }

    #[test]
    fn trees_are_searched() {
        let room = Room::new();
        room.output("mkdir -p d/e");
        room.write("d/a.txt", "x\n");
        room.write("d/e/b.log", "x\n");
        assert_eq!(room.output("grep -r x"), "./d/a.txt:x\n./d/e/b.log:x\n");
        assert_eq!(room.output("grep -rl --include=*.log x d"), "d/e/b.log\n");
        assert_eq!(room.output("grep -h x d/a.txt d/e/b.log"), "x\nx\n");
        let (code, _, error) = room.run("grep x none", "");
        assert_eq!(
            (code, error.as_str()),
            (2, "grep: none: No such file or directory\n")
        );
    }

    #[test]
    fn wrong_use_ends_with_two() {
        for command in [
            "grep",
            "grep -E (",
            "grep [a",
            "grep -m x y",
            "grep -f /nonexistent x",
            "grep --nonsense x",
        ] {
            assert_eq!(run(command, "").0, 2, "{command}");
        }
    }
}
