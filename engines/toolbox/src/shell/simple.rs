//! Simple commands: assignments, functions, builtins, and commands of the host.

use super::ast::*;
use super::builtins;
use super::exec::{Flow, Shell, Status};
use super::print;
use super::redirect::MARK;
use super::state::Variable;
use super::streams::{Descriptors, Plan, Shared};
use crate::host::{self, Child, Errno, Request};
use crate::{context, files};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};

/// Applets that are over in no time and touch nothing but their streams and files: run in
/// place where the image has no program of that name.
const QUICK: &[&str] = &[
    "basename", "dirname", "expr", "seq", "date", "id", "whoami", "hostname", "uname", "printenv",
    "mkdir", "rmdir", "touch", "readlink", "realpath",
];

type Environment = Vec<(String, String)>;
/// Names, and what they were before.
type Hidden = Vec<(Vec<u8>, Option<Variable>)>;

impl Shell {
    pub(super) fn simple(&mut self, simple: &Simple, redirects: &[Redirect]) -> Status {
        self.substituted = None;
        let argv = self.expand_words(&simple.words)?;
        let saved = self.descriptors.clone();
        let result = self.simple_expanded(simple, redirects, &argv);
        // only `exec` without a command keeps its redirections
        if argv.len() != 1 || argv[0] != b"exec" || result.is_err() {
            self.descriptors = saved;
        }
        match result {
            Err(Flow::Fatal(text)) if text.starts_with(MARK) => {
                let text = &text[MARK.len()..];
                if argv
                    .first()
                    .map_or(false, |name| builtins::is_special(name))
                    && !self.interactive
                {
                    return Err(Flow::Fatal(text.to_owned()));
                }
                self.complain(text);
                Ok(1)
            }
            other => other,
        }
    }

    fn simple_expanded(
        &mut self,
        simple: &Simple,
        redirects: &[Redirect],
        argv: &[Vec<u8>],
    ) -> Status {
        self.redirect(redirects)?;
        let name = match argv.first() {
            None => {
                for (name, word) in &simple.assignments {
                    let value = self.expand_value(word)?;
                    if self.state.options.has(b'x') {
                        self.trace(&[(self.show(name), self.show(&value))], &[])?;
                    }
                    self.state.set(name, value).map_err(Flow::Fatal)?;
                }
                return Ok(self.substituted.unwrap_or(0));
            }
            Some(name) => name.as_slice(),
        };
        let function = self.state.functions.get(name).cloned();
        if builtins::is_special(name) && function.is_none() {
            for (name, word) in &simple.assignments {
                let value = self.expand_value(word)?;
                self.state.set(name, value).map_err(Flow::Fatal)?;
            }
            self.trace(&[], argv)?;
            return self.builtin(argv);
        }
        let extra = self.assigned(simple)?;
        self.trace(&extra, argv)?;
        if function.is_none() && !builtins::exists(name) {
            return self.external(argv, &extra);
        }
        let hidden = self.hide(&extra)?;
        let result = match function {
            Some(body) => self.call(&body, &argv[1..]),
            None => self.builtin(argv),
        };
        for (name, before) in hidden {
            match before {
                Some(variable) => drop(self.state.variables.insert(name, variable)),
                None => drop(self.state.variables.remove(&name)),
            }
        }
        result
    }

    /// Assignments in front of a command, for its environment.
    pub(super) fn assigned(&mut self, simple: &Simple) -> Result<Environment, Flow> {
        let mut extra = Vec::new();
        for (name, word) in &simple.assignments {
            let value = self.expand_value(word)?;
            extra.push((self.show(name), self.show(&value)));
        }
        Ok(extra)
    }

    /// Sets variables for the time of one command; what was there before.
    fn hide(&mut self, extra: &Environment) -> Result<Hidden, Flow> {
        let mut hidden = Vec::new();
        for (name, value) in extra {
            let name = name.clone().into_bytes();
            hidden.push((name.clone(), self.state.variables.get(&name).cloned()));
            self.state
                .set(&name, value.clone().into_bytes())
                .map_err(Flow::Fatal)?;
            if let Some(variable) = self.state.variables.get_mut(&name) {
                variable.exported = true;
            }
        }
        hidden.reverse();
        Ok(hidden)
    }

    /// `set -x`
    pub(super) fn trace(
        &mut self,
        extra: &[(String, String)],
        argv: &[Vec<u8>],
    ) -> Result<(), Flow> {
        if !self.state.options.has(b'x') {
            return Ok(());
        }
        let plain = |word: &[u8]| {
            !word.is_empty()
                && word
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_-+=./:,@%".contains(byte))
        };
        let show = |word: &[u8]| {
            if plain(word) {
                word.to_vec()
            } else {
                print::quote(word)
            }
        };
        let mut line = self
            .state
            .get(b"PS4")
            .cloned()
            .unwrap_or_else(|| b"+ ".to_vec());
        let mut words: Vec<Vec<u8>> = Vec::new();
        for (name, value) in extra {
            words.push([name.as_bytes(), b"=", &show(value.as_bytes())].concat());
        }
        words.extend(argv.iter().map(|word| show(word)));
        line.extend_from_slice(&words.join(&b' '));
        line.push(b'\n');
        if let Some(stream) = self.descriptors.get(2) {
            let _ = stream.write(&line);
        }
        Ok(())
    }

    /// Calls a function.
    fn call(&mut self, body: &Command, parameters: &[Vec<u8>]) -> Status {
        let saved = std::mem::replace(&mut self.state.parameters, parameters.to_vec());
        let loops = std::mem::replace(&mut self.loops, 0);
        self.state.hidden.push(BTreeMap::new());
        let result = self.deeper(|shell| shell.command(body));
        for (name, before) in self.state.hidden.pop().unwrap_or_default() {
            match before {
                Some(variable) => drop(self.state.variables.insert(name, variable)),
                None => drop(self.state.variables.remove(&name)),
            }
        }
        self.loops = loops;
        self.state.parameters = saved;
        match result {
            Err(Flow::Return(status)) => Ok(status),
            // a break does not reach the loops of the caller
            Err(Flow::Break(_) | Flow::Continue(_)) => Ok(0),
            other => other,
        }
    }

    /// Runs a command of the host and waits for it.
    pub(super) fn external(&mut self, argv: &[Vec<u8>], extra: &Environment) -> Status {
        if let Some(status) = self.quick(argv, extra) {
            return status;
        }
        self.reap();
        let descriptors = self.descriptors.clone();
        match self.spawn(argv, extra, &descriptors) {
            Err(status) => Ok(status),
            Ok((child, mut plan)) => {
                let carried = plan.carry();
                let status = self.wait_for(child)?;
                if let Err(text) = carried {
                    if text.is_empty() {
                        return Err(Flow::Exit(141));
                    }
                    self.complain(&text);
                }
                Ok(status)
            }
        }
    }

    /// The file that a command's name stands for, if the container has one.
    pub(super) fn search(&self, name: &str) -> Option<String> {
        let found = |path: &str| std::fs::metadata(path).map_or(false, |data| !data.is_dir());
        if name.contains('/') {
            let path = files::absolute(&self.state.directory, name);
            return found(&path).then_some(path);
        }
        let path = self
            .state
            .get(b"PATH")
            .map_or_else(|| super::start::PATH.to_owned(), |path| self.show(path));
        let candidates = path
            .split(':')
            .map(|directory| files::join(&files::absolute(&self.state.directory, directory), name));
        candidates.into_iter().find(|path| found(path))
    }

    fn quick(&mut self, argv: &[Vec<u8>], extra: &Environment) -> Option<Status> {
        let name = QUICK.iter().find(|name| name.as_bytes() == argv[0])?;
        if self.search(name).is_some() {
            return None;
        }
        let port = |fd: u32| Port(self.descriptors.get(fd));
        let mut env = self.state.environment();
        env.extend(extra.iter().cloned());
        let context = context::Context {
            name: (*name).to_owned(),
            args: argv[1..].iter().map(|word| self.show(word)).collect(),
            env,
            directory: self.state.directory.clone(),
            input: Box::new(port(0)),
            output: Box::new(port(1)),
            error: Box::new(port(2)),
        };
        match crate::applets::run(context) {
            141 => Some(Err(Flow::Exit(141))),
            status => Some(Ok(status)),
        }
    }

    /// Starts a command; the message and the status when that fails.
    pub(super) fn spawn(
        &mut self,
        argv: &[Vec<u8>],
        extra: &[(String, String)],
        descriptors: &Descriptors,
    ) -> Result<(Child, Plan), i32> {
        let words: Vec<String> = argv.iter().map(|word| self.show(word)).collect();
        let mut env = self.state.environment();
        for (name, value) in extra {
            env.retain(|(other, _)| other != name);
            env.push((name.clone(), value.clone()));
        }
        env.retain(|(name, _)| name != "PWD");
        env.push(("PWD".to_owned(), self.state.directory.clone()));
        let name = words.first().cloned().unwrap_or_default();
        let error = descriptors.get(2);
        let mut plan = match Plan::new(descriptors) {
            Ok(plan) => plan,
            Err(errno) => {
                self.complain_to(error, &format!("{name}: can't make a pipe: {errno}"));
                return Err(126);
            }
        };
        let directory = self.state.directory.clone();
        let spawn = |argv: &[String], streams| {
            host::spawn(&Request {
                argv,
                env: &env,
                directory: &directory,
                streams,
            })
        };
        let mut result = if name.is_empty() {
            Err(Errno::NOENT)
        } else {
            spawn(&words, plan.streams)
        };
        if result == Err(Errno::NOEXEC) {
            if let Some(argv) = self.interpreted(&words) {
                result = spawn(&argv, plan.streams);
            }
        }
        match result {
            Ok(child) => {
                plan.spawned();
                Ok((child, plan))
            }
            Err(errno) => {
                let (text, status) = match errno {
                    Errno::NOENT => ("not found".to_owned(), 127),
                    Errno::NOEXEC => ("not a WebAssembly command that runs here".to_owned(), 126),
                    errno => (errno.to_string(), 126),
                };
                self.complain_to(error, &format!("{name}: {text}"));
                Err(status)
            }
        }
    }

    /// The command that runs a script: by its first line, else `sh`.
    fn interpreted(&self, words: &[String]) -> Option<Vec<String>> {
        let path = self.search(words.first()?)?;
        let mut head = Vec::new();
        std::fs::File::open(&path)
            .ok()?
            .take(256)
            .read_to_end(&mut head)
            .ok()?;
        if head.contains(&0) {
            return None;
        }
        let mut argv: Vec<String> = match head.strip_prefix(b"#!") {
            Some(line) => {
                let line =
                    String::from_utf8_lossy(line.split(|byte| *byte == b'\n').next()?).into_owned();
                line.trim()
                    .splitn(2, char::is_whitespace)
                    .map(|word| word.trim().to_owned())
                    .collect()
            }
            None => vec!["sh".to_owned()],
        };
        argv.push(path);
        argv.extend(words[1..].iter().cloned());
        Some(argv)
    }
}

/// A descriptor of the shell as the stream of an applet.
struct Port(Option<Shared>);

impl Read for Port {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            Some(stream) => stream
                .read(buffer)
                .map_err(|text| io::Error::new(io::ErrorKind::Other, text)),
            None => Ok(0),
        }
    }
}

impl Write for Port {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Some(stream) => stream.write(bytes).map_err(|text| match text {
                None => io::Error::from(io::ErrorKind::BrokenPipe),
                Some(text) => io::Error::new(io::ErrorKind::Other, text),
            })?,
            None => return Err(io::Error::new(io::ErrorKind::Other, "Bad file descriptor")),
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
