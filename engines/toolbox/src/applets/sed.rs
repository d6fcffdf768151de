//! `sed`: scripts to commands. Their execution is in `sed_run`.

use crate::context::{about, usage, Context, Fail, Outcome};
use crate::options;
use crate::regex::{Regex, Syntax};
use std::rc::Rc;

/// Braces nest this deep.
const DEPTH: usize = 50;

pub(super) enum Address {
    Line(u64),
    Last,
    /// none: the last one that was used
    Regex(Option<Rc<Regex>>),
    /// `first~step`
    Step(u64, u64),
    /// `+n` behind the first
    Plus(u64),
}

pub(super) enum Piece {
    Text(Vec<u8>),
    Group(usize),
    /// `\U` `\L` `\u` `\l` `\E`
    Case(u8),
}

pub(super) struct Substitute {
    pub(super) regex: Option<Rc<Regex>>,
    pub(super) with: Vec<Piece>,
    pub(super) all: bool,
    pub(super) number: u64,
    pub(super) print: bool,
    pub(super) file: Option<String>,
}

pub(super) enum Action {
    /// index behind the matching brace
    Open(usize),
    Close,
    Substitute(Substitute),
    Translate(Vec<(u32, u32)>),
    Text(u8, Vec<u8>),
    /// index to go on at
    Branch(u8, usize),
    File(u8, String),
    Quit(u8, i32),
    Plain(u8),
}

pub(super) struct Command {
    pub(super) first: Option<Address>,
    pub(super) second: Option<Address>,
    pub(super) negated: bool,
    pub(super) action: Action,
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    syntax: Syntax,
    open: Vec<usize>,
    labels: Vec<(String, usize)>,
    jumps: Vec<(usize, String)>,
    commands: Vec<Command>,
}

fn wrong<T>(text: impl Into<String>) -> Result<T, String> {
    Err(text.into())
}

pub(super) fn parse(script: &[u8], extended: bool) -> Result<Vec<Command>, String> {
    let mut parser = Parser {
        text: script,
        at: 0,
        syntax: Syntax {
            extended,
            ignore_case: false,
        },
        open: Vec::new(),
        labels: Vec::new(),
        jumps: Vec::new(),
        commands: Vec::new(),
    };
    parser.script()?;
    if !parser.open.is_empty() {
        return wrong("unmatched {");
    }
    for (command, label) in &parser.jumps {
        let target = match label.as_str() {
            "" => parser.commands.len(),
            label => match parser.labels.iter().find(|(name, _)| name == label) {
                Some((_, target)) => *target,
                None => return wrong(format!("no label '{label}'")),
            },
        };
        if let Action::Branch(_, to) = &mut parser.commands[*command].action {
            *to = target;
        }
    }
    Ok(parser.commands)
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn skip(&mut self, bytes: &[u8]) {
        while self.peek().map_or(false, |byte| bytes.contains(&byte)) {
            self.at += 1;
        }
    }

    fn number(&mut self) -> Result<Option<u64>, String> {
        let start = self.at;
        while self.peek().map_or(false, |byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if start == self.at {
            return Ok(None);
        }
        let digits = String::from_utf8_lossy(&self.text[start..self.at]).into_owned();
        digits
            .parse()
            .map(Some)
            .map_err(|_| format!("{digits}: too large"))
    }

    fn rest_of_line(&mut self) -> Vec<u8> {
        let rest = &self.text[self.at..];
        let length = rest
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or(rest.len());
        self.at += length;
        rest[..length].to_vec()
    }

    fn script(&mut self) -> Result<(), String> {
        loop {
            self.skip(b" \t\n;");
            if self.peek().is_none() {
                return Ok(());
            }
            let first = self.address()?;
            let mut second = None;
            self.skip(b" \t");
            if first.is_some() && self.peek() == Some(b',') {
                self.at += 1;
                self.skip(b" \t");
                second = match self.address()? {
                    None => return wrong("an address is missing behind the comma"),
                    some => some,
                };
                self.skip(b" \t");
            }
            let mut negated = false;
            while self.peek() == Some(b'!') {
                negated = true;
                self.at += 1;
                self.skip(b" \t");
            }
            let letter = match self.peek() {
                Some(letter) => letter,
                None => return wrong("a command is missing behind the address"),
            };
            self.at += 1;
            if letter == b'#' {
                self.rest_of_line();
                continue;
            }
            if letter == b':' {
                self.skip(b" \t");
                let label = self.label();
                self.labels.push((label, self.commands.len()));
                continue;
            }
            let action = self.action(letter)?;
            self.commands.push(Command {
                first,
                second,
                negated,
                action,
            });
        }
    }

    fn label(&mut self) -> String {
        let rest = &self.text[self.at..];
        let length = rest
            .iter()
            .position(|byte| matches!(byte, b'\n' | b';' | b'}'))
            .unwrap_or(rest.len());
        self.at += length;
        String::from_utf8_lossy(&rest[..length]).trim().to_owned()
    }

    fn action(&mut self, letter: u8) -> Result<Action, String> {
        let index = self.commands.len();
        let action = match letter {
            b'{' => {
                if self.open.len() >= DEPTH {
                    return wrong("braces nest too deeply");
                }
                self.open.push(index);
                return Ok(Action::Open(0));
            }
            b'}' => {
                let open = self.open.pop().ok_or("unmatched }")?;
                self.commands[open].action = Action::Open(index + 1);
                Action::Close
            }
            b's' => return self.substitute(),
            b'y' => {
                let delimiter = self.delimiter()?;
                let (from, to) = (self.until(delimiter, false)?, self.until(delimiter, false)?);
                let letters = |text: Vec<u8>| {
                    let text = simple_escapes(&text);
                    let (mut out, mut at) = (Vec::new(), 0);
                    while at < text.len() {
                        let (c, length) = crate::glob::decode(&text[at..]);
                        out.push(c);
                        at += length;
                    }
                    out
                };
                let (from, to) = (letters(from), letters(to));
                if from.len() != to.len() {
                    return wrong("the two strings of 'y' have different lengths");
                }
                Action::Translate(from.into_iter().zip(to).collect())
            }
            b'a' | b'i' | b'c' => {
                self.skip(b" \t");
                if self.peek() == Some(b'\\') {
                    self.at += 1;
                    self.skip(b" \t");
                    if self.peek() == Some(b'\n') {
                        self.at += 1;
                    }
                }
                let mut text = Vec::new();
                while let Some(byte) = self.peek() {
                    self.at += 1;
                    match byte {
                        b'\n' => break,
                        b'\\' => {
                            text.extend(self.peek());
                            self.at += 1;
                        }
                        byte => text.push(byte),
                    }
                }
                self.at = self.at.min(self.text.len());
                text.push(b'\n');
                return Ok(Action::Text(letter, text));
            }
            b'b' | b't' | b'T' => {
                let label = self.label();
                self.jumps.push((index, label));
                return Ok(Action::Branch(letter, 0));
            }
            b'r' | b'w' => {
                self.skip(b" \t");
                let name = self.rest_of_line();
                if name.is_empty() {
                    return wrong("a file name is missing");
                }
                return Ok(Action::File(
                    letter,
                    String::from_utf8_lossy(&name).into_owned(),
                ));
            }
            b'q' | b'Q' => {
                self.skip(b" \t");
                Action::Quit(letter, self.number()?.unwrap_or(0) as i32 & 0xff)
            }
            b'=' | b'd' | b'D' | b'g' | b'G' | b'h' | b'H' | b'l' | b'n' | b'N' | b'p' | b'P'
            | b'x' | b'z' | b'F' => Action::Plain(letter),
            letter => return wrong(format!("unknown command '{}'", letter as char)),
        };
        self.skip(b" \t");
        match self.peek() {
            None | Some(b'\n' | b';' | b'}' | b'#') => Ok(action),
            Some(_) => wrong(format!("extra characters behind '{}'", letter as char)),
        }
    }

    fn delimiter(&mut self) -> Result<u8, String> {
        match self.peek() {
            None | Some(b'\n' | b'\\') => wrong("a delimiter is missing"),
            Some(delimiter) => {
                self.at += 1;
                Ok(delimiter)
            }
        }
    }

    /// Text up to a delimiter; a delimiter behind a backslash is itself. In a regular
    /// expression it may stand between brackets too.
    fn until(&mut self, delimiter: u8, regex: bool) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        let mut bracket = None;
        loop {
            let byte = match self.peek() {
                None => return wrong("an expression does not end"),
                Some(byte) => byte,
            };
            self.at += 1;
            if let Some(start) = bracket {
                // `[]` and `[^]` do not end yet
                let inside = out.len() - start;
                if byte == b']' && inside > 1 && !(inside == 2 && out[start + 1] == b'^') {
                    bracket = None;
                }
                out.push(byte);
                continue;
            }
            if byte == delimiter {
                return Ok(out);
            }
            match byte {
                b'\\' => match self.peek() {
                    None => return wrong("an expression does not end"),
                    Some(next) => {
                        self.at += 1;
                        if next != delimiter {
                            out.push(b'\\');
                        }
                        out.push(next);
                    }
                },
                b'[' if regex && delimiter != b'[' => {
                    // only if it ends: s[a[b[ has none
                    if self.text[self.at..].contains(&b']') {
                        bracket = Some(out.len());
                    }
                    out.push(byte);
                }
                b'\n' if regex => return wrong("an expression does not end"),
                byte => out.push(byte),
            }
        }
    }

    fn regex(&mut self, source: &[u8], ignore_case: bool) -> Result<Option<Rc<Regex>>, String> {
        if source.is_empty() {
            return Ok(None);
        }
        Regex::new(
            source,
            Syntax {
                ignore_case,
                ..self.syntax
            },
        )
        .map(|regex| Some(Rc::new(regex)))
    }

    fn address(&mut self) -> Result<Option<Address>, String> {
        let address = match self.peek() {
            Some(b'$') => {
                self.at += 1;
                Address::Last
            }
            Some(b'+') => {
                self.at += 1;
                Address::Plus(self.number()?.ok_or("a number is missing behind +")?)
            }
            Some(byte) if byte.is_ascii_digit() => {
                let first = self.number()?.unwrap_or(0);
                if self.peek() == Some(b'~') {
                    self.at += 1;
                    Address::Step(first, self.number()?.unwrap_or(0))
                } else {
                    Address::Line(first)
                }
            }
            Some(byte @ (b'/' | b'\\')) => {
                self.at += 1;
                let delimiter = if byte == b'\\' {
                    self.delimiter()?
                } else {
                    b'/'
                };
                let source = self.until(delimiter, true)?;
                let ignore_case = self.peek() == Some(b'I');
                self.at += usize::from(ignore_case);
                Address::Regex(self.regex(&source, ignore_case)?)
            }
            _ => return Ok(None),
        };
        Ok(Some(address))
    }

    fn substitute(&mut self) -> Result<Action, String> {
        let delimiter = self.delimiter()?;
        let source = self.until(delimiter, true)?;
        let with = self.until_kept(delimiter)?;
        let mut substitute = Substitute {
            regex: None,
            with: Vec::new(),
            all: false,
            number: 1,
            print: false,
            file: None,
        };
        let mut ignore_case = false;
        loop {
            match self.peek() {
                Some(b'g') => substitute.all = true,
                Some(b'p') => substitute.print = true,
                Some(b'i' | b'I') => ignore_case = true,
                Some(b'w') => {
                    self.at += 1;
                    self.skip(b" \t");
                    substitute.file =
                        Some(String::from_utf8_lossy(&self.rest_of_line()).into_owned());
                    break;
                }
                Some(byte) if byte.is_ascii_digit() => {
                    substitute.number = self.number()?.unwrap_or(1);
                    if substitute.number == 0 {
                        return wrong("the number of 's' must not be 0");
                    }
                    continue;
                }
                None | Some(b' ' | b'\t' | b'\n' | b';' | b'}' | b'#') => break,
                Some(other) => return wrong(format!("unknown flag '{}' of 's'", other as char)),
            }
            self.at += 1;
        }
        substitute.regex = self.regex(&source, ignore_case)?;
        substitute.with = replacement(&with);
        let groups = substitute.regex.as_ref().map_or(9, |regex| regex.groups);
        for piece in &substitute.with {
            match piece {
                Piece::Group(number) if *number > groups => {
                    return wrong(format!("\\{number} refers to a group that is not there"))
                }
                _ => {}
            }
        }
        Ok(Action::Substitute(substitute))
    }

    /// The replacement: backslashes stay, to tell `\&` from `&`.
    fn until_kept(&mut self, delimiter: u8) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        loop {
            match self.peek() {
                None => return wrong("'s' does not end"),
                Some(byte) if byte == delimiter => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    let next = self
                        .text
                        .get(self.at + 1)
                        .copied()
                        .ok_or("'s' does not end")?;
                    if next != delimiter || next == b'&' {
                        out.push(b'\\');
                    }
                    out.push(next);
                    self.at += 2;
                }
                Some(byte) => {
                    out.push(byte);
                    self.at += 1;
                }
            }
        }
    }
}

fn simple_escapes(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        match (byte, byte == b'\\') {
            (_, true) => match bytes.next() {
                Some(b'n') => out.push(b'\n'),
                Some(b't') => out.push(b'\t'),
                Some(b'\\') | None => out.push(b'\\'),
                Some(other) => out.extend_from_slice(&[b'\\', *other]),
            },
            (byte, false) => out.push(byte),
        }
    }
    out
}

fn replacement(text: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut literal = Vec::new();
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        let piece = match byte {
            b'&' => Piece::Group(0),
            b'\\' => match bytes.next() {
                Some(digit @ b'0'..=b'9') => Piece::Group(usize::from(digit - b'0')),
                Some(case @ (b'U' | b'L' | b'u' | b'l' | b'E')) => Piece::Case(*case),
                other => {
                    literal.push(match other {
                        Some(b'n') => b'\n',
                        Some(b't') => b'\t',
                        Some(b'r') => b'\r',
                        Some(other) => *other,
                        None => b'\\',
                    });
                    continue;
                }
            },
            byte => {
                literal.push(byte);
                continue;
            }
        };
        if !literal.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut literal)));
        }
        pieces.push(piece);
    }
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal));
    }
    pieces
}

pub(super) fn run(context: &mut Context) -> Outcome {
    let long = [
        ("quiet", 'n'),
        ("silent", 'n'),
        ("expression", 'e'),
        ("file", 'f'),
        ("regexp-extended", 'E'),
        ("separate", 's'),
    ];
    // -i takes its suffix attached only
    let mut in_place = None;
    let mut args = Vec::new();
    for word in &context.args {
        let suffix = word.strip_prefix("--in-place=").or_else(|| {
            if word == "--in-place" {
                Some("")
            } else {
                None
            }
        });
        match suffix.or_else(|| word.strip_prefix("-i")) {
            Some(suffix) if !args.contains(&"--".to_owned()) => in_place = Some(suffix.to_owned()),
            _ => args.push(word.clone()),
        }
    }
    let options = options::parse(&args, "nEre:f:suz", &long)?;
    let mut rest = options.rest.clone();
    let mut script: Vec<Vec<u8>> = options
        .values('e')
        .map(|text| text.as_bytes().to_vec())
        .collect();
    for name in options.values('f') {
        match std::fs::read(context.path(name)) {
            Ok(text) => script.push(text),
            Err(error) => return Err(Fail::Text(1, about(name, &error))),
        }
    }
    if !options.has('e') && !options.has('f') {
        if rest.is_empty() {
            return usage("wants a script");
        }
        script.push(rest.remove(0).into_bytes());
    }
    let extended = options.has('E') || options.has('r');
    let commands = parse(&script.join(&b'\n'), extended).map_err(|text| Fail::Text(1, text))?;
    super::sed_run::run(context, &commands, options.has('n'), rest, in_place)
}
