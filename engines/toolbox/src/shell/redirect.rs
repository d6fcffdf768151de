//! Redirections of the shell's own descriptors.

use super::ast::*;
use super::exec::{Flow, Shell};
use super::streams::{Owned, Stream, Text};
use crate::{files, host};
use std::cell::RefCell;

/// Begins the text of an error that costs the command and not the script.
pub(super) const MARK: &str = "\u{1}";

/// Text up to this size goes through a pipe without blocking; more goes through a file.
const PIPED: usize = 8 << 10;

fn wrong(text: impl std::fmt::Display) -> Flow {
    Flow::Fatal(format!("{MARK}{text}"))
}

impl Shell {
    /// Applies redirections in order. The caller keeps a copy of the descriptors to go back.
    pub(super) fn redirect(&mut self, redirects: &[Redirect]) -> Result<(), Flow> {
        for redirect in redirects {
            let fd = redirect.fd;
            match &redirect.target {
                Target::Read(word) => self.redirect_file(fd, word, host::READ)?,
                Target::Write(word) => {
                    self.refuse_clobber(word)?;
                    self.redirect_file(fd, word, host::WRITE | host::CREATE | host::TRUNCATE)?;
                }
                Target::Append(word) => {
                    self.redirect_file(fd, word, host::WRITE | host::CREATE | host::APPEND)?
                }
                Target::ReadWrite(word) => {
                    self.redirect_file(fd, word, host::READ | host::WRITE | host::CREATE)?
                }
                Target::Both(word) => {
                    self.redirect_file(1, word, host::WRITE | host::CREATE | host::TRUNCATE)?;
                    self.duplicate(2, b"1")?;
                }
                Target::Duplicate(word) => {
                    let from = self.expand_string(word)?;
                    self.duplicate(fd, &from)?;
                }
                Target::Here(body) => {
                    let body = body.borrow().clone();
                    let text = self.expand_string(&body)?;
                    let stream = self.text_stream(text)?;
                    self.descriptors.set(fd, stream);
                }
                Target::String(word) => {
                    let mut text = self.expand_string(word)?;
                    text.push(b'\n');
                    let stream = self.text_stream(text)?;
                    self.descriptors.set(fd, stream);
                }
            }
        }
        Ok(())
    }

    fn refuse_clobber(&mut self, word: &Word) -> Result<(), Flow> {
        if !self.state.options.has(b'C') {
            return Ok(());
        }
        let name = self.expand_string(word)?;
        let path = files::absolute(&self.state.directory, &self.show(&name));
        match std::fs::metadata(path) {
            Ok(data) if data.is_file() => Err(wrong(format!("{}: File exists", self.show(&name)))),
            _ => Ok(()),
        }
    }

    fn redirect_file(&mut self, fd: u32, word: &Word, flags: u32) -> Result<(), Flow> {
        let name = self.expand_string(word)?;
        let name = self.show(&name);
        let path = files::absolute(&self.state.directory, &name);
        // what every script expects, and a Wasm container's /dev does not have
        let number: u32 = match path.as_str() {
            "/dev/null" => {
                self.descriptors.set(fd, Stream::Null);
                return Ok(());
            }
            "/dev/stdin" => 0,
            "/dev/stdout" => 1,
            "/dev/stderr" => 2,
            _ => {
                if name.is_empty() {
                    return Err(wrong(
                        "redirection to an empty name: No such file or directory",
                    ));
                }
                return match host::open(&path, flags) {
                    Ok(handle) => {
                        self.descriptors.set(fd, Stream::Handle(Owned(handle)));
                        Ok(())
                    }
                    Err(errno) => {
                        let what = if flags & host::CREATE == 0 {
                            "open"
                        } else {
                            "create"
                        };
                        Err(wrong(format!("can't {what} {name}: {errno}")))
                    }
                };
            }
        };
        self.duplicate(fd, number.to_string().as_bytes())
    }

    fn duplicate(&mut self, fd: u32, from: &[u8]) -> Result<(), Flow> {
        let text = self.show(from);
        if text == "-" {
            self.descriptors.0.remove(&fd);
            return Ok(());
        }
        // `3>&1-` moves
        let (digits, moved) = match text.strip_suffix('-') {
            Some(digits) => (digits, true),
            None => (text.as_str(), false),
        };
        let number: u32 = digits
            .parse()
            .map_err(|_| wrong(format!("{text}: bad descriptor")))?;
        let stream = self
            .descriptors
            .get(number)
            .ok_or_else(|| wrong(format!("{number}: Bad file descriptor")))?;
        self.descriptors.0.insert(fd, stream);
        if moved {
            self.descriptors.0.remove(&number);
        }
        Ok(())
    }

    /// Text as an input.
    pub(super) fn text_stream(&mut self, text: Vec<u8>) -> Result<Stream, Flow> {
        if text.len() <= PIPED {
            return Ok(Stream::Text(RefCell::new(Text::Held(text, 0))));
        }
        // a reader that also writes to us could wait for ever for a pipe that both fill
        let directory = self
            .state
            .get(b"TMPDIR")
            .map_or_else(|| "/tmp".to_owned(), |name| self.show(name));
        let path = format!(
            "{}/.sh-{:08x}",
            files::absolute(&self.state.directory, &directory),
            super::parameter::random()
        );
        let failed = |errno: &dyn std::fmt::Display| {
            wrong(format!(
                "a here-document or pipe of {} bytes goes through {path}: {errno}",
                text.len()
            ))
        };
        std::fs::write(&path, &text).map_err(|error| failed(&crate::context::reason(&error)))?;
        let opened = host::open(&path, host::READ);
        let removed = std::fs::remove_file(&path);
        let handle = opened.map_err(|errno| failed(&errno))?;
        let stream = Stream::Handle(Owned(handle));
        removed.map_err(|error| failed(&crate::context::reason(&error)))?;
        Ok(stream)
    }
}
