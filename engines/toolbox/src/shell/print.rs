//! `ast` to script text, in one line: this is how shell code reaches the `sh` that runs it
//! beside us. Parsed again, it means the same.

use super::ast::*;

/// A value in quotes that the parser reads back byte for byte.
pub(super) fn quote(value: &[u8]) -> Vec<u8> {
    if std::str::from_utf8(value).is_err() {
        // arguments of commands are text
        let mut out = b"$'".to_vec();
        for byte in value {
            out.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
        }
        out.push(b'\'');
        return out;
    }
    let mut out = vec![b'\''];
    for byte in value {
        match byte {
            b'\'' => out.extend_from_slice(b"'\\''"),
            byte => out.push(*byte),
        }
    }
    out.push(b'\'');
    out
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Bare,
    Quotes,
    QuotedBrace,
    Arithmetic,
}

pub(super) fn list(list: &List) -> Vec<u8> {
    let mut printer = Printer(Vec::new());
    printer.list(list);
    printer.0
}

pub(super) fn command(command: &Command) -> Vec<u8> {
    let mut printer = Printer(Vec::new());
    printer.command(command);
    printer.0
}

pub(super) fn and_or(and_or: &AndOr) -> Vec<u8> {
    let mut printer = Printer(Vec::new());
    printer.and_or(and_or);
    printer.0
}

struct Printer(Vec<u8>);

impl Printer {
    fn put(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn list(&mut self, list: &List) {
        for item in list {
            self.put(" ");
            self.and_or(item);
            self.put(if item.background { " &" } else { ";" });
        }
        self.put(" ");
    }

    fn and_or(&mut self, item: &AndOr) {
        self.pipeline(&item.first);
        for (and, pipeline) in &item.rest {
            self.put(if *and { " && " } else { " || " });
            self.pipeline(pipeline);
        }
    }

    fn pipeline(&mut self, pipeline: &Pipeline) {
        if pipeline.negated {
            self.put("! ");
        }
        for (number, member) in pipeline.members.iter().enumerate() {
            if number > 0 {
                self.put(" | ");
            }
            self.command(member);
        }
    }

    fn command(&mut self, command: &Command) {
        match &command.kind {
            Kind::Simple(simple) => return self.simple(simple, &command.redirects),
            Kind::Group(list) => {
                self.put("{");
                self.list(list);
                self.put("}");
            }
            Kind::Subshell(list) => {
                self.put("(");
                self.list(list);
                self.put(")");
            }
            Kind::If {
                branches,
                otherwise,
            } => {
                for (number, (condition, body)) in branches.iter().enumerate() {
                    self.put(if number == 0 { "if" } else { "elif" });
                    self.list(condition);
                    self.put("then");
                    self.list(body);
                }
                if let Some(body) = otherwise {
                    self.put("else");
                    self.list(body);
                }
                self.put("fi");
            }
            Kind::Loop {
                until,
                condition,
                body,
            } => {
                self.put(if *until { "until" } else { "while" });
                self.list(condition);
                self.body(body);
            }
            Kind::For { name, words, body } => {
                self.put("for ");
                self.0.extend_from_slice(name);
                if let Some(words) = words {
                    self.put(" in");
                    self.words(words);
                }
                self.put("; ");
                self.body(body);
            }
            Kind::Case { subject, arms } => {
                self.put("case ");
                self.word(subject);
                self.put(" in ");
                for arm in arms {
                    self.put("(");
                    for (number, pattern) in arm.patterns.iter().enumerate() {
                        if number > 0 {
                            self.put("|");
                        }
                        self.word(pattern);
                    }
                    self.put(")");
                    self.list(&arm.body);
                    self.put(if arm.falls_through { ";& " } else { ";; " });
                }
                self.put("esac");
            }
            Kind::Function { name, body } => {
                self.0.extend_from_slice(name);
                self.put("() ");
                self.command(body);
            }
        }
        self.redirects(&command.redirects);
    }

    fn body(&mut self, body: &List) {
        self.put("do");
        self.list(body);
        self.put("done");
    }

    /// Redirections first: a word that ends in a digit must not become a descriptor.
    fn simple(&mut self, simple: &Simple, redirects: &[Redirect]) {
        let start = self.0.len();
        self.redirects(redirects);
        for (name, value) in &simple.assignments {
            self.put(" ");
            self.0.extend_from_slice(name);
            self.put("=");
            self.word(value);
        }
        self.words(&simple.words);
        if self.0.get(start) == Some(&b' ') {
            self.0.remove(start);
        }
    }

    fn words(&mut self, words: &[Word]) {
        for word in words {
            self.put(" ");
            self.word(word);
        }
    }

    fn redirects(&mut self, redirects: &[Redirect]) {
        for redirect in redirects {
            self.put(" ");
            if !matches!(redirect.target, Target::Both(_)) {
                self.put(&redirect.fd.to_string());
            }
            let (sign, word) = match &redirect.target {
                Target::Read(word) => ("<", word),
                Target::Write(word) => (">", word),
                Target::Append(word) => (">>", word),
                Target::ReadWrite(word) => ("<>", word),
                Target::Duplicate(word) => (">&", word),
                Target::Both(word) => ("&>", word),
                Target::String(word) => ("<<<", word),
                Target::Here(body) => {
                    self.put("<<<&");
                    let body = body.borrow();
                    self.word(&body);
                    if body.is_empty() {
                        self.put("''");
                    }
                    continue;
                }
            };
            self.put(sign);
            self.word(word);
        }
    }

    fn word(&mut self, word: &Word) {
        self.parts(word, Place::Bare);
    }

    fn escaped(&mut self, text: &[u8], place: Place) {
        for byte in text {
            let special = match byte {
                b'$' | b'`' | b'\\' => true,
                b'"' => place != Place::Arithmetic,
                b'}' => place == Place::QuotedBrace,
                _ => false,
            };
            if special {
                self.0.push(b'\\');
            }
            self.0.push(*byte);
        }
    }

    fn parts(&mut self, parts: &[Part], place: Place) {
        for part in parts {
            match part {
                // a dollar that begins nothing must not begin something with what follows
                Part::Literal(text) if place == Place::Bare => {
                    for byte in text {
                        match byte {
                            b'$' => self.put("'$'"),
                            byte => self.0.push(*byte),
                        }
                    }
                }
                Part::Quoted(text) if place == Place::Bare => {
                    let quoted = quote(text);
                    self.0.extend_from_slice(&quoted);
                }
                Part::Literal(text) | Part::Quoted(text) => self.escaped(text, place),
                Part::Double(inner) => {
                    self.put("\"");
                    self.parts(inner, Place::Quotes);
                    self.put("\"");
                }
                Part::Parameter(parameter) => self.parameter(parameter, place),
                Part::Command(list) => {
                    self.put("$(");
                    self.list(list);
                    self.put(")");
                }
                Part::Arithmetic(inner) => {
                    self.put("$((");
                    self.parts(inner, Place::Arithmetic);
                    self.put("))");
                }
            }
        }
    }

    fn parameter(&mut self, parameter: &Parameter, place: Place) {
        let inner = if place == Place::Bare {
            Place::Bare
        } else {
            Place::QuotedBrace
        };
        self.put("${");
        if parameter.operation == Operation::Length {
            self.put("#");
        }
        self.0.extend_from_slice(&parameter.name);
        match &parameter.operation {
            Operation::Plain | Operation::Length => {}
            Operation::Test { colon, kind, word } => {
                if *colon {
                    self.put(":");
                }
                self.0.push(*kind);
                self.parts(word, inner);
            }
            Operation::Trim {
                back,
                longest,
                pattern,
            } => {
                let sign = if *back { "%" } else { "#" };
                self.put(sign);
                if *longest {
                    self.put(sign);
                }
                self.parts(pattern, Place::Bare);
            }
            Operation::Slice { offset, length } => {
                self.put(":");
                self.parts(offset, Place::QuotedBrace);
                if let Some(length) = length {
                    self.put(":");
                    self.parts(length, Place::QuotedBrace);
                }
            }
            Operation::Replace { all, pattern, text } => {
                self.put(if *all { "//" } else { "/" });
                self.parts(pattern, Place::Bare);
                self.put("/");
                self.parts(text, inner);
            }
        }
        self.put("}");
    }
}
