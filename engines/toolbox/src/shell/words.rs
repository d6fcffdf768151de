//! Words: quotes, parameters, substitutions.

use super::ast::*;
use super::parser::{ends_word, Error, Parsed, Parser};
use std::rc::Rc;

/// Where a piece of a word stands decides what ends it and what a backslash means.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Word,
    /// between double quotes
    Quotes,
    Here,
    /// in `${ … }`, bare or between double quotes; the byte ends it besides `}`
    Brace {
        quoted: bool,
        end: u8,
    },
    /// in `$(( … ))`
    Arithmetic,
}

fn literal(parts: &mut Vec<Part>, byte: u8) {
    match parts.last_mut() {
        Some(Part::Literal(text)) => text.push(byte),
        _ => parts.push(Part::Literal(vec![byte])),
    }
}

impl Parser<'_> {
    pub(super) fn word(&mut self) -> Parsed<Word> {
        self.nested(|parser| parser.parts(Place::Word))
    }

    /// The whole text as the body of a here-document.
    pub(super) fn here_text(&mut self) -> Parsed<Vec<Part>> {
        self.parts(Place::Here)
    }

    fn parts(&mut self, place: Place) -> Parsed<Vec<Part>> {
        let quoting = matches!(
            place,
            Place::Quotes | Place::Here | Place::Arithmetic | Place::Brace { quoted: true, .. }
        );
        let mut parts = Vec::new();
        let mut open = 0usize; // parentheses inside of arithmetic
        loop {
            let byte = match self.peek() {
                Some(byte) => byte,
                None if place == Place::Word || place == Place::Here => return Ok(parts),
                None if place == Place::Quotes => {
                    return self.ends_too_early("a quote is not closed")
                }
                None => return self.ends_too_early("wanted \"}\" or \"))\""),
            };
            match place {
                Place::Word if ends_word(byte) => return Ok(parts),
                Place::Quotes if byte == b'"' => return Ok(parts),
                Place::Brace { end, .. } if byte == b'}' || (end != b'}' && byte == end) => {
                    return Ok(parts)
                }
                Place::Arithmetic if byte == b'(' => open += 1,
                Place::Arithmetic if byte == b')' => {
                    if open == 0 {
                        return Ok(parts);
                    }
                    open -= 1;
                }
                _ => {}
            }
            self.at += 1;
            match byte {
                b'\n' => {
                    self.line += 1;
                    literal(&mut parts, byte);
                }
                b'\\' => self.backslash(place, quoting, &mut parts),
                b'\'' if !quoting => {
                    let start = self.at;
                    loop {
                        match self.peek() {
                            None => return self.ends_too_early("a quote is not closed"),
                            Some(b'\'') => break,
                            Some(b'\n') => self.line += 1,
                            _ => {}
                        }
                        self.at += 1;
                    }
                    parts.push(Part::Quoted(self.text[start..self.at].to_vec()));
                    self.at += 1;
                }
                b'"' if place == Place::Arithmetic => {}
                b'"' if place != Place::Here => {
                    let inner = self.nested(|parser| parser.parts(Place::Quotes))?;
                    self.at += 1;
                    parts.push(Part::Double(inner));
                }
                b'`' => parts.push(self.backquotes(quoting)?),
                b'$' => self.dollar(quoting, &mut parts)?,
                _ => literal(&mut parts, byte),
            }
        }
    }

    fn backslash(&mut self, place: Place, quoting: bool, parts: &mut Vec<Part>) {
        let next = match self.peek() {
            // at the very end it is itself
            None => return parts.push(Part::Quoted(vec![b'\\'])),
            Some(next) => next,
        };
        if next == b'\n' {
            self.at += 1;
            self.line += 1;
            return;
        }
        let quotes = match next {
            b'$' | b'`' | b'\\' => true,
            b'"' => place != Place::Here,
            b'}' => matches!(place, Place::Brace { .. }),
            _ => !quoting,
        };
        if quotes {
            self.at += 1;
            parts.push(Part::Quoted(vec![next]));
        } else {
            // in quotes a backslash before anything else stays, and is no quote of patterns
            parts.push(Part::Quoted(vec![b'\\']));
        }
    }

    fn dollar(&mut self, quoting: bool, parts: &mut Vec<Part>) -> Parsed<()> {
        let next = match self.peek() {
            Some(next) => next,
            None => {
                literal(parts, b'$');
                return Ok(());
            }
        };
        match next {
            b'(' if self.starts_with(b"((") => {
                let start = (self.at, self.line);
                self.at += 2;
                let inner = self.nested(|parser| parser.parts(Place::Arithmetic))?;
                if self.eat(b"))") {
                    parts.push(Part::Arithmetic(inner));
                    return Ok(());
                }
                // `$((a) b)`: a command that begins with a subshell
                self.at = start.0 + 1;
                self.line = start.1;
                parts.push(Part::Command(Rc::new(self.nested(Self::substitution)?)));
            }
            b'(' => {
                self.at += 1;
                parts.push(Part::Command(Rc::new(self.nested(Self::substitution)?)));
            }
            b'{' => {
                self.at += 1;
                let parameter = self.nested(|parser| parser.braces(quoting))?;
                parts.push(Part::Parameter(Box::new(parameter)));
            }
            b'\'' if !quoting => {
                self.at += 1;
                let start = self.at;
                loop {
                    match self.peek() {
                        None => return self.ends_too_early("a quote is not closed"),
                        Some(b'\'') => break,
                        Some(b'\\') => self.at += 1,
                        _ => {}
                    }
                    self.at += 1;
                }
                let text = self.text.get(start..self.at).unwrap_or_default();
                parts.push(Part::Quoted(crate::applets::printf::unescape(text).0));
                self.at += 1;
            }
            _ => match self.name() {
                Some(name) => parts.push(Part::Parameter(Box::new(Parameter {
                    name,
                    operation: Operation::Plain,
                }))),
                None => literal(parts, b'$'),
            },
        }
        Ok(())
    }

    /// A variable's name, a digit or a special parameter.
    fn name(&mut self) -> Option<Vec<u8>> {
        let rest = &self.text[self.at..];
        let first = *rest.first()?;
        let length = if first.is_ascii_alphabetic() || first == b'_' {
            rest.iter()
                .position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
                .unwrap_or(rest.len())
        } else if first.is_ascii_digit() || b"?$!#@*-".contains(&first) {
            1
        } else {
            return None;
        };
        self.at += length;
        Some(rest[..length].to_vec())
    }

    fn braces(&mut self, quoted: bool) -> Parsed<Parameter> {
        if self.starts_with(b"#")
            && !self.starts_with(b"#}")
            && !b"-?+=:%#/".contains(self.text.get(self.at + 1).unwrap_or(&b'}'))
        {
            self.at += 1;
            let name = self.brace_name()?;
            return match self.eat(b"}") {
                true => Ok(Parameter {
                    name,
                    operation: Operation::Length,
                }),
                false => Err(Error::Wrong("bad substitution".to_owned())),
            };
        }
        let name = self.brace_name()?;
        let operation = self.operation(quoted)?;
        if self.peek().is_none() {
            return self.ends_too_early("wanted \"}\"");
        }
        if !self.eat(b"}") {
            return Err(Error::Wrong("bad substitution".to_owned()));
        }
        Ok(Parameter { name, operation })
    }

    fn brace_name(&mut self) -> Parsed<Vec<u8>> {
        let rest = &self.text[self.at..];
        let digits = rest
            .iter()
            .position(|byte| !byte.is_ascii_digit())
            .unwrap_or(rest.len());
        if digits > 1 {
            self.at += digits;
            return Ok(rest[..digits].to_vec());
        }
        match self.name() {
            Some(name) => Ok(name),
            None if rest.is_empty() => self.ends_too_early("wanted \"}\""),
            None => Err(Error::Wrong("bad substitution".to_owned())),
        }
    }

    fn operation(&mut self, quoted: bool) -> Parsed<Operation> {
        let until = |end: u8| Place::Brace { quoted, end };
        // patterns have their own quotes, also between double quotes
        let pattern = |end: u8| Place::Brace { quoted: false, end };
        let colon = self.eat(b":");
        match self.peek() {
            Some(kind @ (b'-' | b'=' | b'?' | b'+')) => {
                self.at += 1;
                return Ok(Operation::Test {
                    colon,
                    kind,
                    word: self.parts(until(b'}'))?,
                });
            }
            _ if colon => {
                let offset = self.parts(Place::Brace {
                    quoted: true,
                    end: b':',
                })?;
                let length = match self.eat(b":") {
                    true => Some(self.parts(Place::Brace {
                        quoted: true,
                        end: b'}',
                    })?),
                    false => None,
                };
                return Ok(Operation::Slice { offset, length });
            }
            _ => {}
        }
        for (sign, back) in [(b"#", false), (b"%", true)] {
            if self.eat(sign) {
                let longest = self.eat(sign);
                return Ok(Operation::Trim {
                    back,
                    longest,
                    pattern: self.parts(pattern(b'}'))?,
                });
            }
        }
        if self.eat(b"/") {
            let all = self.eat(b"/");
            let pattern = self.parts(pattern(b'/'))?;
            let text = if self.eat(b"/") {
                self.parts(until(b'}'))?
            } else {
                Vec::new()
            };
            return Ok(Operation::Replace { all, pattern, text });
        }
        Ok(Operation::Plain)
    }

    fn backquotes(&mut self, quoted: bool) -> Parsed<Part> {
        let mut inner = Vec::new();
        loop {
            match self.peek() {
                None => return self.ends_too_early("a backquote is not closed"),
                Some(b'`') => break,
                Some(b'\\') => {
                    let next = self.text.get(self.at + 1).copied();
                    match next {
                        Some(next @ (b'$' | b'`' | b'\\')) => inner.push(next),
                        Some(b'"') if quoted => inner.push(b'"'),
                        Some(next) => inner.extend_from_slice(&[b'\\', next]),
                        None => return self.ends_too_early("a backquote is not closed"),
                    }
                    self.at += 2;
                    continue;
                }
                Some(byte) => inner.push(byte),
            }
            self.at += 1;
        }
        self.at += 1;
        inner.push(b'\n');
        let list = self.nested(|outer| {
            let mut parser = Parser::new(&inner);
            parser.inherit(outer);
            let mut list = Vec::new();
            while let Some(more) = parser.next()? {
                list.extend(more);
            }
            Ok(list)
        });
        match list {
            Ok(list) => Ok(Part::Command(Rc::new(list))),
            Err(Error::Incomplete(text)) => Err(Error::Wrong(text)),
            Err(error) => Err(error),
        }
    }
}
