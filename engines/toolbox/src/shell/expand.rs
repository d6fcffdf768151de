//! Words to fields: parameters, substitutions, splitting, globbing, quotes.
//!
//! A field is kept as a pattern, what was quoted behind backslashes, until it is known
//! whether names match it.

use super::ast::*;
use super::exec::{Flow, Shell};
use crate::glob;

/// Bytes that mean something in a pattern.
fn is_magic(byte: u8) -> bool {
    matches!(byte, b'*' | b'?' | b'[' | b']' | b'\\' | b'-' | b'!' | b'^')
}

pub(super) fn escape(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        if is_magic(byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
}

pub(super) struct Fields {
    done: Vec<Vec<u8>>,
    current: Option<Vec<u8>>,
    /// blanks have ended the last field: a separator that is no blank belongs to the same end
    after_blank: bool,
    /// none: no splitting here
    separators: Option<Vec<u8>>,
}

impl Fields {
    fn new(separators: Option<Vec<u8>>) -> Fields {
        Fields {
            done: Vec::new(),
            current: None,
            after_blank: false,
            separators,
        }
    }

    pub(super) fn splits(&self) -> bool {
        self.separators.is_some()
    }

    fn open(&mut self) -> &mut Vec<u8> {
        self.after_blank = false;
        self.current.get_or_insert_with(Vec::new)
    }

    pub(super) fn quoted(&mut self, text: &[u8]) {
        escape(text, self.open());
    }

    fn literal(&mut self, text: &[u8]) {
        self.open().extend_from_slice(text);
    }

    /// Ends the field, if there is one.
    pub(super) fn end(&mut self) {
        self.done.extend(self.current.take());
    }

    /// The value of something that was not quoted.
    pub(super) fn split(&mut self, text: &[u8]) {
        let separators = match &self.separators {
            Some(separators) => separators.clone(),
            None => {
                let open = self.open();
                for &byte in text {
                    if byte == b'\\' {
                        open.push(byte);
                    }
                    open.push(byte);
                }
                return;
            }
        };
        for &byte in text {
            if !separators.contains(&byte) {
                let open = self.open();
                if byte == b'\\' {
                    open.push(byte);
                }
                open.push(byte);
            } else if matches!(byte, b' ' | b'\t' | b'\n') {
                if self.current.is_some() {
                    self.end();
                    self.after_blank = true;
                }
            } else {
                if self.current.is_some() {
                    self.end();
                } else if !self.after_blank {
                    self.done.push(Vec::new());
                }
                self.after_blank = false;
            }
        }
    }

    fn finish(mut self) -> Vec<Vec<u8>> {
        self.end();
        self.done
    }
}

impl Shell {
    pub(super) fn separators(&self) -> Vec<u8> {
        self.state
            .get(b"IFS")
            .cloned()
            .unwrap_or_else(|| b" \t\n".to_vec())
    }

    /// All expansions: what a command gets as its arguments.
    pub(super) fn expand_words(&mut self, words: &[Word]) -> Result<Vec<Vec<u8>>, Flow> {
        let mut out = Vec::new();
        for word in words {
            let mut fields = Fields::new(Some(self.separators()));
            self.expand_parts(word, &mut fields, false, true)?;
            for field in fields.finish() {
                if !self.state.options.has(b'f') && glob::has_magic(&field) {
                    let names = glob::names(&self.state.directory, &field);
                    if !names.is_empty() {
                        out.extend(names);
                        continue;
                    }
                }
                out.push(glob::unescape(&field));
            }
        }
        Ok(out)
    }

    /// One string, without splitting and globbing: values, files of redirections.
    pub(super) fn expand_string(&mut self, word: &[Part]) -> Result<Vec<u8>, Flow> {
        Ok(glob::unescape(&self.expand_pattern(word)?))
    }

    /// One pattern, for `case` and trims.
    pub(super) fn expand_pattern(&mut self, word: &[Part]) -> Result<Vec<u8>, Flow> {
        let mut fields = Fields::new(None);
        self.expand_parts(word, &mut fields, false, true)?;
        Ok(fields.finish().join(&b' '))
    }

    /// A value: tildes stand behind colons too.
    pub(super) fn expand_value(&mut self, word: &[Part]) -> Result<Vec<u8>, Flow> {
        let value = self.expand_string(word)?;
        Ok(value)
    }

    /// Text in which quotes mean nothing: arithmetic.
    pub(super) fn expand_text(&mut self, parts: &[Part]) -> Result<Vec<u8>, Flow> {
        let mut fields = Fields::new(None);
        self.expand_quoted(parts, &mut fields)?;
        Ok(glob::unescape(&fields.finish().join(&b' ')))
    }

    fn expand_quoted(&mut self, parts: &[Part], fields: &mut Fields) -> Result<(), Flow> {
        for part in parts {
            self.expand_part(part, fields, true, false)?;
        }
        Ok(())
    }

    /// `quoted`: between double quotes. `top`: not inside of `${ }`, where bare text is split
    /// like a value.
    pub(super) fn expand_parts(
        &mut self,
        parts: &[Part],
        fields: &mut Fields,
        quoted: bool,
        top: bool,
    ) -> Result<(), Flow> {
        for (number, part) in parts.iter().enumerate() {
            if let (0, false, Part::Literal(text)) = (number, quoted, part) {
                if let Some(length) = self.tilde(text, parts.len() == 1, fields) {
                    fields.literal(&text[length..]);
                    continue;
                }
            }
            self.expand_part(part, fields, quoted, top)?;
        }
        Ok(())
    }

    /// Puts the home directory for a leading `~`; how much of the text that was.
    fn tilde(&self, text: &[u8], alone: bool, fields: &mut Fields) -> Option<usize> {
        if text.first() != Some(&b'~')
            || !(text.get(1) == Some(&b'/') || (text.len() == 1 && alone))
        {
            return None;
        }
        let home = self.state.get(b"HOME").filter(|home| !home.is_empty())?;
        fields.quoted(home);
        Some(1)
    }

    fn expand_part(
        &mut self,
        part: &Part,
        fields: &mut Fields,
        quoted: bool,
        top: bool,
    ) -> Result<(), Flow> {
        match part {
            Part::Literal(text) if quoted => fields.quoted(text),
            Part::Literal(text) if top => fields.literal(text),
            Part::Literal(text) => fields.split(text),
            Part::Quoted(text) => fields.quoted(text),
            Part::Double(parts) => {
                let all = |part: &Part| match part {
                    Part::Parameter(parameter) => {
                        parameter.name == b"@" && parameter.operation == Operation::Plain
                    }
                    _ => false,
                };
                // "$@" without parameters is no field; "" is an empty one
                if parts.is_empty() || !self.state.parameters.is_empty() || !parts.iter().all(all) {
                    fields.open();
                }
                self.expand_quoted(parts, fields)?;
            }
            Part::Parameter(parameter) => self.expand_parameter(parameter, fields, quoted)?,
            Part::Command(list) => {
                let output = self.capture(list)?;
                self.put(&output, fields, quoted);
            }
            Part::Arithmetic(parts) => {
                let text = self.expand_text(parts)?;
                let value = self.arithmetic(&text)?;
                self.put(value.to_string().as_bytes(), fields, quoted);
            }
        }
        Ok(())
    }

    pub(super) fn put(&self, text: &[u8], fields: &mut Fields, quoted: bool) {
        if quoted {
            fields.quoted(text);
        } else {
            fields.split(text);
        }
    }

    pub(super) fn arithmetic(&mut self, text: &[u8]) -> Result<i64, Flow> {
        struct Adapter<'a>(&'a mut Shell);
        impl super::arith::Variables for Adapter<'_> {
            fn get(&self, name: &[u8]) -> Option<Vec<u8>> {
                self.0.value_of(name)
            }
            fn set(&mut self, name: &[u8], value: i64) -> Result<(), String> {
                self.0.state.set(name, value.to_string().into_bytes())
            }
        }
        super::arith::evaluate(text, &mut Adapter(self)).map_err(Flow::Fatal)
    }
}
