//! Script text to `ast`, by recursive descent with a bounded depth. Words are in `words`.

use super::ast::*;
use std::cell::RefCell;
use std::rc::Rc;

/// Deeper nesting of quotes, substitutions and compound commands is refused: each level
/// costs stack, here and at the execution.
const DEPTH: u32 = 60;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Error {
    /// the text ended too early: a terminal asks for more
    Incomplete(String),
    Wrong(String),
}

pub(super) type Parsed<T> = Result<T, Error>;

struct Pending {
    end: Vec<u8>,
    strip_tabs: bool,
    expand: bool,
    body: Rc<RefCell<Word>>,
}

pub(super) struct Parser<'a> {
    pub(super) text: &'a [u8],
    pub(super) at: usize,
    pub(super) line: u32,
    depth: u32,
    pending: Vec<Pending>,
}

const KEYWORDS: &[&[u8]] = &[
    b"if",
    b"then",
    b"elif",
    b"else",
    b"fi",
    b"while",
    b"until",
    b"do",
    b"done",
    b"for",
    b"in",
    b"case",
    b"esac",
    b"{",
    b"}",
    b"!",
    b"function",
];

pub(super) fn is_keyword(word: &[u8]) -> bool {
    KEYWORDS.contains(&word)
}

pub(super) fn is_name(text: &[u8]) -> bool {
    !text.is_empty()
        && !text[0].is_ascii_digit()
        && text
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

pub(super) fn ends_word(byte: u8) -> bool {
    matches!(
        byte,
        b' ' | b'\t' | b'\n' | b';' | b'&' | b'|' | b'<' | b'>' | b'(' | b')'
    )
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a [u8]) -> Parser<'a> {
        Parser {
            text,
            at: 0,
            line: 1,
            depth: 0,
            pending: Vec::new(),
        }
    }

    /// For text inside of text: its nesting counts.
    pub(super) fn inherit(&mut self, outer: &Parser<'_>) {
        self.depth = outer.depth;
        self.line = outer.line;
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    pub(super) fn starts_with(&self, prefix: &[u8]) -> bool {
        self.text[self.at..].starts_with(prefix)
    }

    pub(super) fn eat(&mut self, prefix: &[u8]) -> bool {
        let eaten = self.starts_with(prefix);
        if eaten {
            self.at += prefix.len();
        }
        eaten
    }

    pub(super) fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= DEPTH {
            return Err(Error::Wrong(format!("nested deeper than {DEPTH} levels")));
        }
        self.depth += 1;
        let result = parse(self);
        self.depth -= 1;
        result
    }

    pub(super) fn ends_too_early<T>(&self, what: &str) -> Parsed<T> {
        Err(Error::Incomplete(format!("unexpected end of file, {what}")))
    }

    fn unexpected<T>(&self, wanted: &str) -> Parsed<T> {
        let rest = &self.text[self.at..];
        let end = match rest.first() {
            None => return self.ends_too_early(wanted),
            Some(b'\n') => return Err(Error::Wrong(format!("unexpected newline, {wanted}"))),
            Some(first) if ends_word(*first) => {
                let same = rest.iter().take_while(|byte| *byte == first).count();
                same.min(2)
            }
            Some(_) => rest
                .iter()
                .position(|byte| ends_word(*byte))
                .unwrap_or(rest.len())
                .min(40),
        };
        Err(Error::Wrong(format!(
            "unexpected \"{}\", {wanted}",
            show(&rest[..end])
        )))
    }

    /// Blanks, joined lines and comments.
    fn blanks(&mut self) {
        loop {
            match self.peek() {
                Some(b' ' | b'\t' | b'\r') => self.at += 1,
                Some(b'\\') if self.starts_with(b"\\\n") => {
                    self.at += 2;
                    self.line += 1;
                }
                Some(b'#') => {
                    while self.peek().map_or(false, |byte| byte != b'\n') {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    /// A newline, and the here-documents that begin behind it.
    fn newline(&mut self) -> Parsed<bool> {
        if self.peek() != Some(b'\n') {
            return Ok(false);
        }
        self.at += 1;
        self.line += 1;
        for pending in std::mem::take(&mut self.pending) {
            let body = self.here_body(&pending)?;
            *pending.body.borrow_mut() = body;
        }
        Ok(true)
    }

    fn here_body(&mut self, pending: &Pending) -> Parsed<Word> {
        let mut body = Vec::new();
        loop {
            let rest = &self.text[self.at..];
            if rest.is_empty() {
                return self
                    .ends_too_early(&format!("here-document wants \"{}\"", show(&pending.end)));
            }
            let length = rest
                .iter()
                .position(|byte| *byte == b'\n')
                .map_or(rest.len(), |end| end + 1);
            let mut line = &rest[..length];
            self.at += length;
            self.line += 1;
            if pending.strip_tabs {
                while let Some(stripped) = line.strip_prefix(b"\t") {
                    line = stripped;
                }
            }
            if line.strip_suffix(b"\n").unwrap_or(line) == pending.end.as_slice() {
                break;
            }
            body.extend_from_slice(line);
        }
        if !pending.expand {
            return Ok(vec![Part::Quoted(body)]);
        }
        let mut inner = Parser::new(&body);
        inner.inherit(self);
        match inner.here_text() {
            // more text from a terminal would not mend it
            Err(Error::Incomplete(text)) => Err(Error::Wrong(text)),
            parts => Ok(vec![Part::Double(parts?)]),
        }
    }

    fn newlines(&mut self) -> Parsed<()> {
        loop {
            self.blanks();
            if !self.newline()? {
                return Ok(());
            }
        }
    }

    /// The next line of commands; none at the end of the text.
    pub(super) fn next(&mut self) -> Parsed<Option<List>> {
        self.newlines()?;
        if self.at == self.text.len() {
            return Ok(None);
        }
        let mut list = Vec::new();
        loop {
            self.and_or(&mut list)?;
            self.blanks();
            if self.newline()? {
                return Ok(Some(list));
            }
            if self.at == self.text.len() {
                return match self.pending.first() {
                    Some(pending) => self
                        .ends_too_early(&format!("here-document wants \"{}\"", show(&pending.end))),
                    None => Ok(Some(list)),
                };
            }
            if !self.separated(&list) {
                return self.unexpected("a command wants an end");
            }
        }
    }

    /// Did a `;` or `&` end the last command?
    fn separated(&self, list: &List) -> bool {
        let before = self.text[..self.at]
            .iter()
            .rev()
            .find(|byte| !matches!(byte, b' ' | b'\t' | b'\r'));
        !list.is_empty() && matches!(before, Some(b';' | b'&'))
    }

    /// Commands up to one of the closing words, which stays.
    fn list(&mut self, closing: &[&[u8]]) -> Parsed<List> {
        let mut list = Vec::new();
        loop {
            self.newlines()?;
            if closing.iter().any(|word| self.at_closing(word)) {
                break;
            }
            if self.at == self.text.len() {
                return self.ends_too_early(&format!("wanted \"{}\"", show(closing[0])));
            }
            self.and_or(&mut list)?;
            self.blanks();
            let next = self.peek();
            if next != Some(b'\n')
                && !self.separated(&list)
                && !closing
                    .iter()
                    .any(|word| ends_word(word[0]) && self.at_closing(word))
            {
                return self.unexpected(&format!("wanted \"{}\"", show(closing[0])));
            }
        }
        if list.is_empty() {
            return self.unexpected("wanted a command");
        }
        Ok(list)
    }

    fn at_closing(&self, word: &[u8]) -> bool {
        self.starts_with(word)
            && (ends_word(word[0])
                || self
                    .text
                    .get(self.at + word.len())
                    .map_or(true, |byte| ends_word(*byte) || *byte == b'\r'))
    }

    fn keyword(&mut self, word: &[u8]) -> bool {
        let found = self.at_closing(word);
        if found {
            self.at += word.len();
        }
        found
    }

    fn want(&mut self, word: &[u8]) -> Parsed<()> {
        self.newlines()?;
        if self.keyword(word) {
            Ok(())
        } else {
            self.unexpected(&format!("wanted \"{}\"", show(word)))
        }
    }

    fn and_or(&mut self, list: &mut List) -> Parsed<()> {
        let first = self.pipeline()?;
        let mut and_or = AndOr {
            first,
            rest: Vec::new(),
            background: false,
        };
        loop {
            self.blanks();
            let and = if self.eat(b"&&") {
                true
            } else if self.eat(b"||") {
                false
            } else {
                break;
            };
            self.newlines()?;
            and_or.rest.push((and, self.pipeline()?));
        }
        if self.peek() == Some(b'&') {
            self.at += 1;
            and_or.background = true;
        } else if self.peek() == Some(b';') && !self.starts_with(b";;") && !self.starts_with(b";&")
        {
            self.at += 1;
        }
        list.push(and_or);
        Ok(())
    }

    fn pipeline(&mut self) -> Parsed<Pipeline> {
        self.blanks();
        let mut negated = false;
        while self.keyword(b"!") {
            negated = !negated;
            self.blanks();
        }
        let mut members = vec![self.nested(Self::command)?];
        loop {
            self.blanks();
            if self.starts_with(b"||") || !self.eat(b"|") {
                return Ok(Pipeline { negated, members });
            }
            // `|&` sends standard error too
            if self.eat(b"&") {
                // a definition writes nothing
                let last = members.last_mut();
                if let Some(last) = last.filter(|last| !matches!(last.kind, Kind::Function { .. }))
                {
                    last.redirects.push(Redirect {
                        fd: 2,
                        target: Target::Duplicate(vec![Part::Literal(b"1".to_vec())]),
                    });
                }
            }
            self.newlines()?;
            members.push(self.nested(Self::command)?);
        }
    }

    fn command(&mut self) -> Parsed<Command> {
        self.blanks();
        let line = self.line;
        let kind = if self.peek() == Some(b'(') {
            self.at += 1;
            let list = self.list(&[b")"])?;
            self.want(b")")?;
            Kind::Subshell(list)
        } else if self.keyword(b"{") {
            let list = self.list(&[b"}"])?;
            self.want(b"}")?;
            Kind::Group(list)
        } else if self.keyword(b"if") {
            self.branches()?
        } else if self.keyword(b"while") {
            self.looping(false)?
        } else if self.keyword(b"until") {
            self.looping(true)?
        } else if self.keyword(b"for") {
            self.for_loop()?
        } else if self.keyword(b"case") {
            self.case()?
        } else if self.keyword(b"function") {
            self.blanks();
            let name = self.function_name();
            self.blanks();
            if self.eat(b"(") {
                self.blanks();
                self.want(b")")?;
            }
            return self.function(name, line);
        } else {
            let start = self.at;
            let name = self.function_name();
            self.blanks();
            if !name.is_empty() && self.eat(b"(") {
                self.blanks();
                self.want(b")")?;
                return self.function(name, line);
            }
            self.at = start;
            return self.simple(line);
        };
        let mut redirects = Vec::new();
        loop {
            self.blanks();
            match self.redirect()? {
                Some(redirect) => redirects.push(redirect),
                None => {
                    return Ok(Command {
                        kind,
                        redirects,
                        line,
                    })
                }
            }
        }
    }

    fn function_name(&mut self) -> Vec<u8> {
        let rest = &self.text[self.at..];
        let is_part =
            |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':');
        let length = rest
            .iter()
            .position(|byte| !is_part(byte))
            .unwrap_or(rest.len());
        self.at += length;
        rest[..length].to_vec()
    }

    fn function(&mut self, name: Vec<u8>, line: u32) -> Parsed<Command> {
        if name.is_empty() || is_keyword(&name) {
            return self.unexpected("wanted the name of a function");
        }
        self.newlines()?;
        let body = Rc::new(self.nested(Self::command)?);
        Ok(Command {
            kind: Kind::Function { name, body },
            redirects: Vec::new(),
            line,
        })
    }

    fn branches(&mut self) -> Parsed<Kind> {
        let mut branches = Vec::new();
        loop {
            let condition = self.list(&[b"then"])?;
            self.want(b"then")?;
            let body = self.list(&[b"fi", b"elif", b"else"])?;
            branches.push((condition, body));
            if self.keyword(b"elif") {
                continue;
            }
            let otherwise = if self.keyword(b"else") {
                Some(self.list(&[b"fi"])?)
            } else {
                None
            };
            self.want(b"fi")?;
            return Ok(Kind::If {
                branches,
                otherwise,
            });
        }
    }

    fn body(&mut self) -> Parsed<List> {
        self.want(b"do")?;
        let body = self.list(&[b"done"])?;
        self.want(b"done")?;
        Ok(body)
    }

    fn looping(&mut self, until: bool) -> Parsed<Kind> {
        let condition = self.list(&[b"do"])?;
        Ok(Kind::Loop {
            until,
            condition,
            body: self.body()?,
        })
    }

    fn for_loop(&mut self) -> Parsed<Kind> {
        self.blanks();
        let name = self.function_name();
        if !is_name(&name) {
            return self.unexpected("wanted the variable of \"for\"");
        }
        self.newlines()?;
        let mut words = None;
        if self.keyword(b"in") {
            let mut list = Vec::new();
            loop {
                self.blanks();
                match self.peek() {
                    Some(byte) if !ends_word(byte) => list.push(self.word()?),
                    _ => break,
                }
            }
            words = Some(list);
            if !self.eat(b";") && !self.newline()? {
                return self.unexpected("wanted \"do\"");
            }
        } else {
            self.eat(b";");
        }
        Ok(Kind::For {
            name,
            words,
            body: self.body()?,
        })
    }

    fn case(&mut self) -> Parsed<Kind> {
        self.blanks();
        let subject = self.wanted_word("wanted the word of \"case\"")?;
        self.want(b"in")?;
        let mut arms = Vec::new();
        loop {
            self.newlines()?;
            if self.keyword(b"esac") {
                return Ok(Kind::Case { subject, arms });
            }
            self.eat(b"(");
            let mut patterns = Vec::new();
            loop {
                self.blanks();
                patterns.push(self.wanted_word("wanted a pattern of \"case\"")?);
                self.blanks();
                if !self.eat(b"|") {
                    break;
                }
            }
            if !self.eat(b")") {
                return self.unexpected("wanted \")\"");
            }
            self.newlines()?;
            let ends: &[&[u8]] = &[b";;", b";&", b"esac"];
            let empty = ends.iter().any(|word| self.at_closing(word));
            let body = if empty { Vec::new() } else { self.list(ends)? };
            let falls_through = self.eat(b";&");
            let ended = falls_through || self.eat(b";;");
            arms.push(Arm {
                patterns,
                body,
                falls_through,
            });
            if !ended {
                self.want(b"esac")?;
                return Ok(Kind::Case { subject, arms });
            }
        }
    }

    fn wanted_word(&mut self, wanted: &str) -> Parsed<Word> {
        match self.peek() {
            Some(byte) if !ends_word(byte) => self.word(),
            _ => self.unexpected(wanted),
        }
    }

    fn simple(&mut self, line: u32) -> Parsed<Command> {
        let mut simple = Simple::default();
        let mut redirects = Vec::new();
        loop {
            self.blanks();
            if let Some(redirect) = self.redirect()? {
                redirects.push(redirect);
                continue;
            }
            match self.peek() {
                Some(byte) if !ends_word(byte) => {}
                _ => break,
            }
            if simple.words.is_empty() {
                let start = self.at;
                if redirects.is_empty() && simple.assignments.is_empty() {
                    let found = KEYWORDS
                        .iter()
                        .any(|word| self.at_closing(word) && *word != b"in" && *word != b"{");
                    if found {
                        return self.unexpected("wanted a command");
                    }
                }
                if let Some(assignment) = self.assignment()? {
                    simple.assignments.push(assignment);
                    continue;
                }
                self.at = start;
            }
            let word = self.word()?;
            if let (true, true, [Part::Literal(text)]) = (
                simple.words.is_empty() && redirects.is_empty(),
                simple.assignments.is_empty(),
                word.as_slice(),
            ) {
                // a keyword with a joined line in it
                if is_keyword(text) && text != b"in" {
                    return self.unexpected("wanted a command");
                }
            }
            simple.words.push(word);
        }
        if simple.words.is_empty() && simple.assignments.is_empty() && redirects.is_empty() {
            return self.unexpected("wanted a command");
        }
        Ok(Command {
            kind: Kind::Simple(simple),
            redirects,
            line,
        })
    }

    fn assignment(&mut self) -> Parsed<Option<(Vec<u8>, Word)>> {
        let rest = &self.text[self.at..];
        let length = rest
            .iter()
            .position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
            .unwrap_or(rest.len());
        if rest.get(length) != Some(&b'=') || !is_name(&rest[..length]) {
            return Ok(None);
        }
        let name = rest[..length].to_vec();
        self.at += length + 1;
        let value = match self.peek() {
            Some(byte) if !ends_word(byte) => self.word()?,
            _ => Vec::new(),
        };
        Ok(Some((name, value)))
    }

    fn redirect(&mut self) -> Parsed<Option<Redirect>> {
        let start = self.at;
        while self.peek().map_or(false, |byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        let digits = &self.text[start..self.at];
        let number: Option<u32> = std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| digits.parse().ok());
        if digits.is_empty() && self.eat(b"&>") {
            return Ok(Some(Redirect {
                fd: 1,
                target: Target::Both(self.redirect_word()?),
            }));
        }
        let default = match self.peek() {
            Some(b'<') => 0,
            Some(b'>') => 1,
            _ => {
                self.at = start;
                return Ok(None);
            }
        };
        let fd = if digits.is_empty() {
            default
        } else {
            number.unwrap_or(u32::MAX)
        };
        if fd > 99 {
            return Err(Error::Wrong(format!(
                "{}: descriptors go up to 99",
                show(digits)
            )));
        }
        let target = if self.eat(b"<<<&") {
            // our own, see `print`: a here-document in one line
            Target::Here(Rc::new(RefCell::new(self.redirect_word()?)))
        } else if self.eat(b"<<<") {
            Target::String(self.redirect_word()?)
        } else if self.eat(b"<<") {
            let strip_tabs = self.eat(b"-");
            self.here_document(strip_tabs)?
        } else if self.eat(b"<&") || self.eat(b">&") {
            let output = self.text[self.at - 2] == b'>';
            let word = self.redirect_word()?;
            // `>& file` of csh and bash
            match word.as_slice() {
                [Part::Literal(text)]
                    if digits.is_empty()
                        && output
                        && text != b"-"
                        && text.iter().any(|byte| !byte.is_ascii_digit()) =>
                {
                    Target::Both(word)
                }
                _ => Target::Duplicate(word),
            }
        } else if self.eat(b"<>") {
            Target::ReadWrite(self.redirect_word()?)
        } else if self.eat(b">>") {
            Target::Append(self.redirect_word()?)
        } else if self.eat(b">|") || self.eat(b">") {
            Target::Write(self.redirect_word()?)
        } else {
            self.at += 1;
            Target::Read(self.redirect_word()?)
        };
        Ok(Some(Redirect { fd, target }))
    }

    fn redirect_word(&mut self) -> Parsed<Word> {
        self.blanks();
        self.wanted_word("wanted the file of a redirection")
    }

    fn here_document(&mut self, strip_tabs: bool) -> Parsed<Target> {
        let word = self.redirect_word()?;
        let mut end = Vec::new();
        let mut expand = true;
        for part in &word {
            match part {
                Part::Literal(text) => end.extend_from_slice(text),
                Part::Quoted(text) => {
                    end.extend_from_slice(text);
                    expand = false;
                }
                Part::Double(parts) => {
                    expand = false;
                    for part in parts {
                        match part {
                            Part::Literal(text) | Part::Quoted(text) => end.extend_from_slice(text),
                            _ => {
                                return Err(Error::Wrong(
                                    "the end word of a here-document is not expanded".to_owned(),
                                ))
                            }
                        }
                    }
                }
                _ => {
                    return Err(Error::Wrong(
                        "the end word of a here-document is not expanded".to_owned(),
                    ))
                }
            }
        }
        let body = Rc::new(RefCell::new(Vec::new()));
        self.pending.push(Pending {
            end,
            strip_tabs,
            expand,
            body: body.clone(),
        });
        Ok(Target::Here(body))
    }

    /// Commands of `$( )`, behind its opening.
    pub(super) fn substitution(&mut self) -> Parsed<List> {
        self.newlines()?;
        if self.eat(b")") {
            return Ok(Vec::new());
        }
        let list = self.list(&[b")"])?;
        self.want(b")")?;
        Ok(list)
    }
}
