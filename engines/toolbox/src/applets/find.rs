//! `find` and `xargs`.

use super::process::run_command;
use crate::context::{about, usage, Context, Fail, Outcome};
use crate::glob::Pattern;
use crate::{files, host, options};

/// Parentheses and negations nest this deep.
const DEPTH: u32 = 50;
/// What one command gets: the host takes 256 KiB with the environment.
const BATCH: usize = 64 << 10;

enum Test {
    Name(Pattern, bool),
    Path(Pattern),
    Type(String),
    Size(Ordering, u64, u64),
    Newer(i64, u32),
    Age(Ordering, u64, u64),
    Empty,
    True(bool),
    Print(&'static str),
    Delete,
    Prune,
    Quit,
    Exec(Vec<String>, bool),
    Not(Box<Test>),
    And(Vec<Test>),
    Or(Vec<Test>),
}

#[derive(Clone, Copy)]
enum Ordering {
    Less,
    Same,
    More,
}

impl Ordering {
    fn holds(self, value: u64, limit: u64) -> bool {
        match self {
            Ordering::Less => value < limit,
            Ordering::Same => value == limit,
            Ordering::More => value > limit,
        }
    }
}

struct Parser<'a> {
    words: &'a [String],
    at: usize,
    depth: u32,
    least: usize,
    most: usize,
    bottom_up: bool,
    acts: bool,
    context: &'a Context,
}

fn count(word: &str) -> Result<(Ordering, &str), Fail> {
    Ok(match word.chars().next() {
        Some('+') => (Ordering::More, &word[1..]),
        Some('-') => (Ordering::Less, &word[1..]),
        _ => (Ordering::Same, word),
    })
}

impl Parser<'_> {
    fn either(&mut self) -> Result<Test, Fail> {
        if self.depth >= DEPTH {
            return usage("the expression nests too deeply");
        }
        self.depth += 1;
        let mut branches = Vec::new();
        loop {
            let mut tests = Vec::new();
            while let Some(word) = self.words.get(self.at) {
                match word.as_str() {
                    ")" | "-o" | "-or" => break,
                    "-a" | "-and" => self.at += 1,
                    _ => tests.push(self.primary()?),
                }
            }
            if tests.is_empty() {
                return usage("the expression has an empty part");
            }
            branches.push(Test::And(tests));
            match self.words.get(self.at).map(String::as_str) {
                Some("-o" | "-or") => self.at += 1,
                _ => break,
            }
        }
        self.depth -= 1;
        Ok(Test::Or(branches))
    }

    fn value(&mut self, name: &str) -> Result<String, Fail> {
        self.at += 1;
        match self.words.get(self.at - 1) {
            Some(word) => Ok(word.clone()),
            None => usage(format!("{name} wants a value")),
        }
    }

    fn primary(&mut self) -> Result<Test, Fail> {
        let word = self.words[self.at].clone();
        self.at += 1;
        Ok(match word.as_str() {
            "(" => {
                let test = self.either()?;
                if self.words.get(self.at).map(String::as_str) != Some(")") {
                    return usage("missing )");
                }
                self.at += 1;
                test
            }
            "!" | "-not" => {
                if self.depth >= DEPTH || self.at >= self.words.len() {
                    return usage("an expression is missing behind !");
                }
                self.depth += 1;
                let test = self.primary()?;
                self.depth -= 1;
                Test::Not(Box::new(test))
            }
            "-name" => Test::Name(Pattern::new(self.value(&word)?.as_bytes()), false),
            "-iname" => Test::Name(
                Pattern::new(self.value(&word)?.to_lowercase().as_bytes()),
                true,
            ),
            "-path" | "-wholename" => Test::Path(Pattern::new(self.value(&word)?.as_bytes())),
            "-type" => Test::Type(self.value(&word)?),
            "-size" => {
                let value = self.value(&word)?;
                let (order, number) = count(&value)?;
                let digits = number.trim_end_matches(|c: char| c.is_ascii_alphabetic());
                let unit = match &number[digits.len()..] {
                    "" | "b" => 512,
                    "c" => 1,
                    "w" => 2,
                    "k" => 1 << 10,
                    "M" => 1 << 20,
                    "G" => 1 << 30,
                    _ => return usage(format!("invalid size '{value}'")),
                };
                Test::Size(order, options::number(digits)?, unit)
            }
            "-mtime" | "-mmin" => {
                let value = self.value(&word)?;
                let (order, number) = count(&value)?;
                Test::Age(
                    order,
                    options::number(number)?,
                    if word == "-mmin" { 60 } else { 86_400 },
                )
            }
            "-newer" => {
                let name = self.value(&word)?;
                match std::fs::metadata(self.context.path(&name)) {
                    Ok(data) => {
                        let (seconds, nanoseconds) = super::file::modified(&data);
                        Test::Newer(seconds, nanoseconds)
                    }
                    Err(error) => return Err(Fail::Text(1, about(&name, &error))),
                }
            }
            "-empty" => Test::Empty,
            "-true" => Test::True(true),
            "-false" => Test::True(false),
            "-maxdepth" | "-mindepth" => {
                let value = options::number(&self.value(&word)?)? as usize;
                match word.as_str() {
                    "-maxdepth" => self.most = value,
                    _ => self.least = value,
                }
                Test::True(true)
            }
            "-depth" => {
                self.bottom_up = true;
                Test::True(true)
            }
            "-xdev" | "-mount" | "-noleaf" | "-follow" => Test::True(true),
            "-print" | "-print0" => {
                self.acts = true;
                Test::Print(if word == "-print" { "\n" } else { "\0" })
            }
            "-delete" => {
                self.acts = true;
                self.bottom_up = true;
                Test::Delete
            }
            "-prune" => Test::Prune,
            "-quit" => Test::Quit,
            "-exec" => {
                self.acts = true;
                let mut argv = Vec::new();
                loop {
                    let word = self.value("-exec without ; or +:")?;
                    match word.as_str() {
                        ";" => break,
                        "+" if argv.last().map(String::as_str) == Some("{}") => {
                            argv.pop();
                            return if argv.is_empty() {
                                usage("-exec wants a command")
                            } else {
                                Ok(Test::Exec(argv, true))
                            };
                        }
                        _ => argv.push(word),
                    }
                }
                if argv.is_empty() {
                    return usage("-exec wants a command");
                }
                Test::Exec(argv, false)
            }
            word => return usage(format!("unknown test '{word}'")),
        })
    }
}

struct Find {
    least: usize,
    most: usize,
    bottom_up: bool,
    code: i32,
    prune: bool,
    quit: bool,
    /// for each `-exec … +`, by its command
    batches: Vec<(Vec<String>, Vec<String>)>,
}

pub(super) fn run(context: &mut Context) -> Outcome {
    let words = context.args.clone();
    let is_test =
        |word: &String| word.starts_with('-') && word.len() > 1 || word == "(" || word == "!";
    let start = words
        .iter()
        .position(|word| is_test(word) && !matches!(word.as_str(), "-L" | "-H" | "-P"))
        .unwrap_or(words.len());
    let mut roots: Vec<String> = words[..start]
        .iter()
        .filter(|word| !matches!(word.as_str(), "-L" | "-H" | "-P"))
        .cloned()
        .collect();
    if roots.is_empty() {
        roots.push(".".to_owned());
    }
    let mut parser = Parser {
        words: &words,
        at: start,
        depth: 0,
        least: 0,
        most: usize::MAX,
        bottom_up: false,
        acts: false,
        context,
    };
    let mut test = if start < words.len() {
        parser.either()?
    } else {
        Test::True(true)
    };
    if parser.at < words.len() {
        return usage(format!("unexpected '{}'", words[parser.at]));
    }
    if !parser.acts {
        test = Test::And(vec![test, Test::Print("\n")]);
    }
    let mut find = Find {
        least: parser.least,
        most: parser.most,
        bottom_up: parser.bottom_up,
        code: 0,
        prune: false,
        quit: false,
        batches: Vec::new(),
    };
    for root in &roots {
        find.tree(context, root, &test)?;
    }
    for (argv, names) in std::mem::take(&mut find.batches) {
        find.flush(context, &argv, names)?;
    }
    Ok(find.code)
}

impl Find {
    fn tree(&mut self, context: &mut Context, root: &str, test: &Test) -> Result<(), Fail> {
        // name, depth, and whether its tests are left for after its entries
        let mut work = vec![(root.to_owned(), 0, false)];
        while let Some((name, depth, late)) = work.pop() {
            if self.quit {
                return Ok(());
            }
            let path = context.path(&name);
            let data = match files::lookup(&path) {
                Ok(data) => data,
                Err(error) => {
                    context.warn(about(&name, &error));
                    self.code = 1;
                    continue;
                }
            };
            self.prune = false;
            let tested = depth >= self.least && (late || !self.bottom_up || !data.is_dir());
            if tested {
                self.test(context, test, &name, &path, &data)?;
            }
            if !data.is_dir() || late || depth >= self.most || (self.prune && !self.bottom_up) {
                continue;
            }
            if self.bottom_up {
                work.push((name.clone(), depth, true));
            }
            match files::list(&path) {
                Ok(names) => work.extend(
                    names
                        .iter()
                        .rev()
                        .map(|below| (files::join(&name, below), depth + 1, false)),
                ),
                Err(error) => {
                    context.warn(about(&name, &error));
                    self.code = 1;
                }
            }
        }
        Ok(())
    }

    fn test(
        &mut self,
        context: &mut Context,
        test: &Test,
        name: &str,
        path: &str,
        data: &std::fs::Metadata,
    ) -> Result<bool, Fail> {
        Ok(match test {
            Test::True(value) => *value,
            Test::Not(test) => !self.test(context, test, name, path, data)?,
            Test::And(tests) => {
                for test in tests {
                    if !self.test(context, test, name, path, data)? {
                        return Ok(false);
                    }
                }
                true
            }
            Test::Or(tests) => {
                for test in tests {
                    if self.test(context, test, name, path, data)? {
                        return Ok(true);
                    }
                }
                false
            }
            Test::Name(pattern, fold) => {
                let base = files::base_name(name);
                match fold {
                    true => pattern.matches(base.to_lowercase().as_bytes()),
                    false => pattern.matches(base.as_bytes()),
                }
            }
            Test::Path(pattern) => pattern.matches(name.as_bytes()),
            Test::Type(letters) => {
                let kind = data.file_type();
                let own = if kind.is_dir() {
                    'd'
                } else if kind.is_symlink() {
                    'l'
                } else if kind.is_file() {
                    'f'
                } else {
                    'c'
                };
                letters.contains(own)
            }
            Test::Size(order, size, unit) => order.holds((data.len() + unit - 1) / unit, *size),
            Test::Newer(seconds, nanoseconds) => {
                super::file::modified(data) > (*seconds, *nanoseconds)
            }
            Test::Age(order, age, unit) => {
                let passed = super::date::now()
                    .0
                    .saturating_sub(super::file::modified(data).0)
                    .max(0) as u64;
                order.holds(passed / unit, *age)
            }
            Test::Empty => match data.is_dir() {
                true => files::list(path).map_or(false, |names| names.is_empty()),
                false => data.is_file() && data.len() == 0,
            },
            Test::Print(end) => {
                write!(context.output, "{name}{end}")?;
                true
            }
            Test::Delete => {
                let result = if data.is_dir() {
                    std::fs::remove_dir(path)
                } else {
                    std::fs::remove_file(path)
                };
                if let Err(error) = &result {
                    context.warn(format!("can't remove {}", about(name, error)));
                    self.code = 1;
                }
                result.is_ok()
            }
            Test::Prune => {
                self.prune = true;
                true
            }
            Test::Quit => {
                self.quit = true;
                true
            }
            Test::Exec(argv, false) => {
                let argv: Vec<String> = argv.iter().map(|word| word.replace("{}", name)).collect();
                let env = context.env.clone();
                run_command(context, &argv, &env, [host::OWN; 3])? == 0
            }
            Test::Exec(argv, true) => {
                let at = match self.batches.iter().position(|(other, _)| other == argv) {
                    Some(at) => at,
                    None => {
                        self.batches.push((argv.clone(), Vec::new()));
                        self.batches.len() - 1
                    }
                };
                self.batches[at].1.push(name.to_owned());
                let size: usize = self.batches[at].1.iter().map(|name| name.len() + 8).sum();
                if size > BATCH || self.batches[at].1.len() >= 1000 {
                    let names = std::mem::take(&mut self.batches[at].1);
                    self.flush(context, argv, names)?;
                }
                true
            }
        })
    }

    fn flush(
        &mut self,
        context: &mut Context,
        argv: &[String],
        names: Vec<String>,
    ) -> Result<(), Fail> {
        if names.is_empty() {
            return Ok(());
        }
        let argv = [argv, &names].concat();
        let env = context.env.clone();
        if run_command(context, &argv, &env, [host::OWN; 3])? != 0 {
            self.code = 1;
        }
        Ok(())
    }
}

/// Words of xargs: blanks separate, quotes and backslashes quote.
fn split(text: &[u8]) -> Result<Vec<String>, Fail> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<Vec<u8>>, 0u8);
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            byte if quote != 0 && byte == quote => quote = 0,
            b'\n' if quote != 0 => return usage("a quote is not closed"),
            byte if quote != 0 => word.get_or_insert_with(Vec::new).push(byte),
            b'\'' | b'"' => {
                quote = byte;
                word.get_or_insert_with(Vec::new);
            }
            b'\\' => word.get_or_insert_with(Vec::new).extend(bytes.next()),
            byte if byte.is_ascii_whitespace() => words.extend(word.take()),
            byte => word.get_or_insert_with(Vec::new).push(byte),
        }
    }
    if quote != 0 {
        return usage("a quote is not closed");
    }
    words.extend(word);
    Ok(words
        .into_iter()
        .map(|word| String::from_utf8_lossy(&word).into_owned())
        .collect())
}

pub(super) fn xargs(context: &mut Context) -> Outcome {
    let long = [
        ("null", '0'),
        ("max-args", 'n'),
        ("replace", 'I'),
        ("no-run-if-empty", 'r'),
        ("verbose", 't'),
        ("delimiter", 'd'),
        ("max-procs", 'P'),
        ("max-lines", 'L'),
        ("arg-file", 'a'),
    ];
    let options = options::parse(&context.args, "+0n:I:rtd:P:L:a:s:xE:p", &long)?;
    let argv = if options.rest.is_empty() {
        vec!["echo".to_owned()]
    } else {
        options.rest.clone()
    };
    let mut text = Vec::new();
    let source: Vec<String> = options.value('a').map(str::to_owned).into_iter().collect();
    files::each_input(context, &source, |_, _, reader| {
        reader.read_to_end(&mut text)?;
        Ok(())
    })?;
    let lines = |end: u8| -> Vec<String> {
        let text = text.strip_suffix(&[end]).unwrap_or(&text);
        let parts = text
            .split(|byte| *byte == end)
            .map(|part| String::from_utf8_lossy(part).into_owned());
        if text.is_empty() {
            Vec::new()
        } else {
            parts.collect()
        }
    };
    let replaces = options.value('I');
    let words = match (options.has('0'), options.value('d'), replaces) {
        (true, ..) => lines(0),
        (_, Some(delimiter), _) => lines(
            super::printf::unescape(delimiter.as_bytes())
                .0
                .first()
                .copied()
                .unwrap_or(b'\n'),
        ),
        (_, _, Some(_)) => lines(b'\n')
            .iter()
            .map(|line| line.trim_start().to_owned())
            .filter(|line| !line.is_empty())
            .collect(),
        _ if options.has('L') => lines(b'\n')
            .into_iter()
            .filter(|line| !line.trim().is_empty())
            .collect(),
        _ => split(&text)?,
    };
    let most = options
        .value('n')
        .or_else(|| options.value('L'))
        .map(options::number)
        .transpose()?
        .unwrap_or(4000)
        .min(4000) as usize;
    if most == 0 {
        return usage("-n wants a number above 0");
    }
    let mut commands: Vec<Vec<String>> = Vec::new();
    if let Some(mark) = replaces {
        commands.extend(
            words
                .iter()
                .map(|word| argv.iter().map(|arg| arg.replace(mark, word)).collect()),
        );
    } else {
        let (mut batch, mut size) = (Vec::new(), 0);
        for word in words {
            if batch.len() >= most || size + word.len() > BATCH {
                commands.push([&argv[..], &std::mem::take(&mut batch)].concat());
                size = 0;
            }
            size += word.len() + 8;
            match options.has('L') {
                true => batch.extend(split(word.as_bytes())?),
                false => batch.push(word),
            }
        }
        if !batch.is_empty() || (commands.is_empty() && !options.has('r')) {
            commands.push([&argv[..], &batch].concat());
        }
    }
    let env = context.env.clone();
    let mut code = 0;
    for command in commands {
        if options.has('t') {
            writeln!(context.error, "{}", command.join(" "))?;
        }
        // its input is ours, which is used up
        match run_command(context, &command, &env, [host::NULL, host::OWN, host::OWN])? {
            0 => {}
            255 => return Err(Fail::Text(124, format!("{}: ended with 255", command[0]))),
            128.. => {
                return Err(Fail::Text(
                    125,
                    format!("{}: ended by a signal", command[0]),
                ))
            }
            _ => code = 123,
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::split;
    use crate::context::testing::{run, Room};

    #[test]
    fn trees_are_searched() {
        let room = Room::new();
        room.output("mkdir -p a/b c");
        room.write("a/x.txt", "12345");
        room.write("a/b/y.TXT", "");
        room.output("touch -d @0 a/x.txt");
        for (command, expected) in [
            ("find", ".\n./a\n./a/b\n./a/b/y.TXT\n./a/x.txt\n./c\n"),
            ("find a -type f", "a/b/y.TXT\na/x.txt\n"),
            ("find . -name *.txt", "./a/x.txt\n"),
            ("find . -iname *.txt", "./a/b/y.TXT\n./a/x.txt\n"),
            ("find . -maxdepth 1 -type d", ".\n./a\n./c\n"),
            ("find . -mindepth 2 -type d", "./a/b\n"),
            ("find a -depth", "a/b/y.TXT\na/b\na/x.txt\na\n"),
            ("find . -empty", "./a/b/y.TXT\n./c\n"),
            ("find . -size -2 -type f", "./a/b/y.TXT\n./a/x.txt\n"),
            ("find . -size +4c -type f", "./a/x.txt\n"),
            ("find a ! -name x* -type f", "a/b/y.TXT\n"),
            (
                "find a ( -name x* -o -name y* ) -print0",
                "a/b/y.TXT\0a/x.txt\0",
            ),
            ("find . -name a -prune -o -print", ".\n./c\n"),
            ("find . -mtime +1", "./a/x.txt\n"),
            ("find a -path a/b*", "a/b\na/b/y.TXT\n"),
        ] {
            assert_eq!(room.output(command), expected, "{command}");
        }
        room.output("find a -type f -delete");
        assert_eq!(room.output("find a -type f"), "");
        assert_eq!(room.run("find none", "").0, 1);
    }

    #[test]
    fn wrong_use_is_told() {
        let deep = format!("find {}", "( ".repeat(1000).trim_end());
        let not = format!("find . {}", "! ".repeat(1000).trim_end());
        for command in [
            "find . -nonsense",
            "find . -name",
            "find . -size x",
            "find . -exec",
            "find . -exec ;",
            "find . ( -name x",
            "find . -o",
            "find . !",
            "find . -newer /nonexistent",
            "find . -maxdepth x",
            "find . -name x )",
            &deep,
            &not,
            "xargs -n 0",
            "xargs -n x",
        ] {
            assert_eq!(run(command, "").0, 1, "{command}");
        }
        assert_eq!(run("xargs", "'a").0, 1);
        assert_eq!(run("xargs /nonexistent/command", "a").0, 127);
    }

    #[test]
    fn words_of_xargs_are_quoted() {
        let words = |text: &str| split(text.as_bytes()).expect("closed quotes");
        assert_eq!(words("a 'b c'\n\"d\"e \\f ''"), ["a", "b c", "de", "f", ""]);
        assert!(words(" \n").is_empty());
    }
}
