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
    if value.is_empty() {
        return b"''".to_vec();
    }
    let mut out = Vec::new();
    for (number, piece) in value.split(|byte| *byte == b'\'').enumerate() {
        if number > 0 {
            out.extend_from_slice(b"\\'");
        }
        if !piece.is_empty() {
            out.push(b'\'');
            out.extend_from_slice(piece);
            out.push(b'\'');
        }
    }
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

#[cfg(test)]
mod tests {
    use super::super::parser::{Error, Parser};
    use super::*;

    fn parse(text: &[u8]) -> Result<List, Error> {
        let mut parser = Parser::new(text);
        let mut all = Vec::new();
        while let Some(more) = parser.next()? {
            all.extend(more);
        }
        Ok(all)
    }

    fn again(text: &[u8]) {
        let first = match parse(text) {
            Ok(parsed) => list(&parsed),
            Err(_) => return,
        };
        let shown = String::from_utf8_lossy(text).into_owned();
        let parsed = parse(&first).unwrap_or_else(|error| {
            panic!(
                "{shown:?} printed as {:?}: {error:?}",
                String::from_utf8_lossy(&first)
            )
        });
        assert_eq!(
            String::from_utf8_lossy(&list(&parsed)),
            String::from_utf8_lossy(&first),
            "{shown:?}"
        );
    }

    #[test]
    fn printed_scripts_mean_the_same() {
        for case in include_str!("../../tests/scripts.txt").split("@@\n") {
            again(
                case.split_once("\n=> ")
                    .map_or(case, |(script, _)| script)
                    .as_bytes(),
            );
        }
        for script in [
            "x='a'\\''b'\"c$d\"",
            "echo 2 >f",
            "echo $'x'",
            "a \"$\" \\$ '$'b",
            "${x:-a b} \"${x:-}\" ${x#\"a}\"}",
            "<f if",
            "$((a+(b)))",
            "a |& b",
            "cat <<<'x'",
            ": ${x/a\\/b/c}",
        ] {
            assert!(parse(script.as_bytes()).is_ok(), "{script}");
            again(script.as_bytes());
        }
    }

    #[test]
    fn random_text_is_parsed_or_refused() {
        let words: Vec<&[u8]> = vec![
            b"echo",
            b"if",
            b"then",
            b"fi",
            b"(",
            b")",
            b"{",
            b"}",
            b";",
            b"&",
            b"|",
            b"$x",
            b"${x",
            b"${x:-",
            b"'",
            b"\"",
            b"`",
            b"$((",
            b"))",
            b"$(",
            b"\n",
            b"case",
            b"in",
            b"esac",
            b";;",
            b"for",
            b"do",
            b"done",
            b"!",
            b"=",
            b"x=",
            b"<<A",
            b"<<-'B'",
            b"A",
            b"\\",
            b"#",
            b"%%",
            b"/",
            b"2>",
            b"&>",
            b">&",
            b"f()",
            b"*",
            b"~",
            b"\xff",
            b"\xc3\xa4",
            b"\0",
            b"while",
            b"function",
        ];
        let mut seed = 1u32;
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed >> 16
        };
        for round in 0..60_000 {
            let mut text = Vec::new();
            for _ in 0..next() % 12 + 1 {
                text.extend_from_slice(words[next() as usize % words.len()]);
                if round % 2 == 0 {
                    text.push(b' ');
                }
            }
            again(&text);
        }
        for _ in 0..20_000 {
            let text: Vec<u8> = (0..20).map(|_| next() as u8).collect();
            again(&text);
        }
    }

    #[test]
    fn nesting_is_bounded() {
        for piece in [
            "(",
            "$(",
            "{ ",
            "`",
            "\"$(",
            "${x:-",
            "if ",
            "while ",
            "$((",
            "f() ",
            "! ",
            "a|",
            "a&&",
            "case x in x) ",
            "\"${x:-\"",
        ] {
            let _ = parse(piece.repeat(20_000).as_bytes());
        }
        assert!(parse(("(".repeat(40) + "a" + &")".repeat(40)).as_bytes()).is_ok());
        assert!(matches!(
            parse("(".repeat(100).as_bytes()),
            Err(Error::Wrong(_))
        ));
    }
}
