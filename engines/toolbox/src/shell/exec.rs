//! Runs lists, compound commands and subshells. Pipelines and background commands are in
//! `jobs`, simple commands in `simple`.

use super::ast::*;
use super::jobs::Job;
use super::state::State;
use super::streams::{Descriptors, Owned, Shared, Stream};
use crate::glob::Pattern;
use std::cell::RefCell;
use std::rc::Rc;

/// How deep functions, `eval`, sourced files and substitutions may nest: each level costs
/// stack, and an overflow of it would be a trap.
const CALL_DEPTH: u32 = 120;

/// The same for all commands that are inside of each other, of whatever kind.
const DEPTH: u32 = 300;

/// What ends a list early.
#[derive(Debug)]
pub(super) enum Flow {
    Break(u32),
    Continue(u32),
    Return(i32),
    Exit(i32),
    /// an error after which a script does not go on
    Fatal(String),
    /// Ctrl-C at the terminal
    Interrupt,
}

pub(super) type Status = Result<i32, Flow>;

pub(super) struct Shell {
    pub(super) state: State,
    /// `$0`
    pub(super) name: String,
    /// `$$`: made up, preview 1 tells no process number
    pub(super) number: u32,
    pub(super) line: u32,
    /// messages name the line
    pub(super) script: bool,
    pub(super) interactive: bool,
    /// one of our streams is a terminal, so an end with 130 is an interrupt
    pub(super) terminal: bool,
    pub(super) descriptors: Descriptors,
    pub(super) jobs: Vec<Job>,
    pub(super) loops: u32,
    /// above zero where a false command is not an error for `set -e`
    pub(super) tested: u32,
    pub(super) calls: u32,
    pub(super) depth: u32,
    /// status of the last `$( )`, for commands that are only assignments
    pub(super) substituted: Option<i32>,
    /// pipes of background commands that a substitution waits for
    pub(super) leftovers: Vec<(Owned, Shared)>,
    /// position of getopts inside of a word like `-abc`
    pub(super) option_offset: usize,
}

impl Shell {
    /// A message on the shell's standard error.
    pub(super) fn complain(&self, text: &str) {
        self.complain_to(self.descriptors.get(2), text);
    }

    pub(super) fn complain_to(&self, stream: Option<Shared>, text: &str) {
        let line = match self.script {
            true => format!("{}: line {}: {text}\n", self.name, self.line),
            false => format!("{}: {text}\n", self.name),
        };
        if let Some(stream) = stream {
            // a standard error that nobody reads loses messages, nothing else
            let _ = stream.write(line.as_bytes());
        }
    }

    pub(super) fn list(&mut self, list: &List) -> Status {
        let mut status = 0;
        for item in list {
            status = if item.background {
                self.background(item)?
            } else {
                self.and_or(item)?
            };
        }
        Ok(status)
    }

    pub(super) fn and_or(&mut self, item: &AndOr) -> Status {
        let mut status = self.pipeline(&item.first, !item.rest.is_empty())?;
        for (number, (and, pipeline)) in item.rest.iter().enumerate() {
            if (status == 0) == *and {
                status = self.pipeline(pipeline, number + 1 < item.rest.len())?;
            }
        }
        Ok(status)
    }

    /// `tested`: something looks at the status, so `set -e` does not.
    fn pipeline(&mut self, pipeline: &Pipeline, tested: bool) -> Status {
        let tested = tested || pipeline.negated;
        self.tested += u32::from(tested);
        let result = match pipeline.members.as_slice() {
            [one] => self.command(one),
            members => self.pipe(members),
        };
        self.tested -= u32::from(tested);
        let mut status = result?;
        if pipeline.negated {
            status = i32::from(status == 0);
        }
        self.state.status = status;
        let plain = match pipeline.members.as_slice() {
            [one] => matches!(one.kind, Kind::Simple(_) | Kind::Subshell(_)),
            _ => true,
        };
        if status != 0 && plain && !tested && self.tested == 0 && self.state.options.has(b'e') {
            return Err(Flow::Exit(status));
        }
        Ok(status)
    }

    pub(super) fn command(&mut self, command: &Command) -> Status {
        self.line = command.line;
        if self.depth >= DEPTH {
            return Err(Flow::Fatal(format!(
                "commands nest deeper than {DEPTH} levels"
            )));
        }
        self.depth += 1;
        let result = self.any_command(command);
        self.depth -= 1;
        result
    }

    fn any_command(&mut self, command: &Command) -> Status {
        if self.state.options.has(b'n') && !self.interactive {
            return Ok(0);
        }
        if let Kind::Simple(simple) = &command.kind {
            return self.simple(simple, &command.redirects);
        }
        let saved = self.descriptors.clone();
        let result = match self.redirect(&command.redirects) {
            Ok(()) => self.compound(&command.kind),
            Err(flow) => Err(flow),
        };
        self.descriptors = saved;
        match result {
            Err(Flow::Fatal(text))
                if !command.redirects.is_empty() && text.starts_with(super::redirect::MARK) =>
            {
                self.complain(&text[super::redirect::MARK.len()..]);
                Ok(1)
            }
            other => other,
        }
    }

    /// A condition: its status is looked at.
    fn condition(&mut self, list: &List) -> Result<bool, Flow> {
        self.tested += 1;
        let result = self.list(list);
        self.tested -= 1;
        Ok(result? == 0)
    }

    fn compound(&mut self, kind: &Kind) -> Status {
        match kind {
            Kind::Simple(_) => Ok(0), // runs before, with its own redirections
            Kind::Group(list) => self.list(list),
            Kind::Subshell(list) => self.subshell(|shell| shell.list(list)),
            Kind::If {
                branches,
                otherwise,
            } => {
                for (condition, body) in branches {
                    if self.condition(condition)? {
                        return self.list(body);
                    }
                }
                match otherwise {
                    Some(body) => self.list(body),
                    None => Ok(0),
                }
            }
            Kind::Loop {
                until,
                condition,
                body,
            } => {
                let mut status = 0;
                loop {
                    self.loops += 1;
                    let round = match self.condition(condition) {
                        Ok(go) if go != *until => self.list(body),
                        Ok(_) => Err(Flow::Break(1)),
                        Err(flow) => Err(flow),
                    };
                    self.loops -= 1;
                    match self.loop_step(round)? {
                        (Some(value), true) => status = value,
                        (_, true) => {}
                        (_, false) => return Ok(status),
                    }
                }
            }
            Kind::For { name, words, body } => {
                let words = match words {
                    Some(words) => self.expand_words(words)?,
                    None => self.state.parameters.clone(),
                };
                let mut status = 0;
                for word in words {
                    self.state.set(name, word).map_err(Flow::Fatal)?;
                    self.loops += 1;
                    let round = self.list(body);
                    self.loops -= 1;
                    match self.loop_step(round)? {
                        (Some(value), true) => status = value,
                        (_, true) => {}
                        (_, false) => break,
                    }
                }
                Ok(status)
            }
            Kind::Case { subject, arms } => {
                let subject = self.expand_string(subject)?;
                let mut falling = false;
                let mut status = 0;
                for arm in arms {
                    let mut fits = falling;
                    for pattern in &arm.patterns {
                        fits =
                            fits || Pattern::new(&self.expand_pattern(pattern)?).matches(&subject);
                    }
                    if !fits {
                        continue;
                    }
                    status = self.list(&arm.body)?;
                    falling = arm.falls_through;
                    if !falling {
                        break;
                    }
                }
                Ok(status)
            }
            Kind::Function { name, body } => {
                self.state.functions.insert(name.clone(), body.clone());
                Ok(0)
            }
        }
    }

    /// What one round of a loop says: its status, and whether the loop goes on.
    fn loop_step(&mut self, round: Status) -> Result<(Option<i32>, bool), Flow> {
        match round {
            Ok(status) => Ok((Some(status), true)),
            Err(Flow::Break(1)) => Ok((None, false)),
            Err(Flow::Continue(1)) => Ok((None, true)),
            Err(Flow::Break(levels)) => Err(Flow::Break(levels - 1)),
            Err(Flow::Continue(levels)) => Err(Flow::Continue(levels - 1)),
            Err(flow) => Err(flow),
        }
    }

    /// One level deeper, while there is stack for it.
    pub(super) fn deeper(&mut self, run: impl FnOnce(&mut Shell) -> Status) -> Status {
        if self.calls >= CALL_DEPTH {
            return Err(Flow::Fatal(format!(
                "functions and substitutions nest deeper than {CALL_DEPTH} levels"
            )));
        }
        self.calls += 1;
        let result = run(self);
        self.calls -= 1;
        result
    }

    /// Runs something as if in a forked copy of the shell.
    pub(super) fn subshell(&mut self, run: impl FnOnce(&mut Shell) -> Status) -> Status {
        self.deeper(|shell| {
            let state = shell.state.clone();
            let descriptors = shell.descriptors.clone();
            let jobs = std::mem::take(&mut shell.jobs);
            let loops = std::mem::replace(&mut shell.loops, 0);
            // what the outer shell ignores stays ignored, its actions are its own
            shell.state.traps.retain(|_, action| action.is_empty());
            let result = run(shell);
            let result = shell.ended(result);
            shell.state = state;
            shell.descriptors = descriptors;
            shell.loops = loops;
            // they go on; nobody can name them any more, but they must be waited for
            let strays = std::mem::replace(&mut shell.jobs, jobs);
            shell.jobs.extend(strays.into_iter().map(Job::forgotten));
            if let Ok(status) = result {
                shell.state.status = status;
            }
            result
        })
    }

    /// The exit code of a shell whose commands are over: runs the EXIT trap.
    pub(super) fn ended(&mut self, result: Status) -> Status {
        let status = match result {
            Ok(status) | Err(Flow::Exit(status) | Flow::Return(status)) => status,
            Err(Flow::Break(_) | Flow::Continue(_)) => self.state.status,
            Err(Flow::Fatal(text)) => {
                self.complain(&text);
                2
            }
            Err(Flow::Interrupt) => return Err(Flow::Interrupt),
        };
        let action = match self.state.traps.remove("EXIT") {
            Some(action) if !action.is_empty() => action,
            _ => return Ok(status),
        };
        self.state.status = status;
        match self.run_text(&action) {
            Err(Flow::Exit(status)) => Ok(status),
            Err(Flow::Fatal(text)) => {
                self.complain(&text);
                Ok(2)
            }
            Err(Flow::Interrupt) => Err(Flow::Interrupt),
            _ => Ok(status),
        }
    }

    /// The output of commands, without the newlines at its end.
    pub(super) fn capture(&mut self, list: &List) -> Result<Vec<u8>, Flow> {
        let buffer = Rc::new(Stream::Capture(RefCell::new(Vec::new())));
        let before = std::mem::take(&mut self.leftovers);
        let sink = buffer.clone();
        let status = self.subshell(|shell| {
            shell.descriptors.0.insert(1, sink);
            shell.list(list)
        });
        for (reader, stream) in std::mem::replace(&mut self.leftovers, before) {
            let mut piece = [0; 4096];
            while let Ok(n @ 1..) = crate::host::read(reader.0, &mut piece) {
                if stream.write(&piece[..n]).is_err() {
                    break;
                }
            }
        }
        self.substituted = Some(status?);
        let mut output = match buffer.as_ref() {
            Stream::Capture(bytes) => bytes.take(),
            _ => Vec::new(),
        };
        while output.last() == Some(&b'\n') {
            output.pop();
        }
        // as other shells: a value cannot hold NUL
        output.retain(|byte| *byte != 0);
        Ok(output)
    }

    /// Runs text as commands: `eval`, traps, `sh -c`.
    pub(super) fn run_text(&mut self, text: &[u8]) -> Status {
        let mut parser = super::parser::Parser::new(text);
        let mut status = 0;
        loop {
            match parser.next() {
                Ok(None) => return Ok(status),
                Ok(Some(list)) => {
                    if self.state.options.has(b'v') {
                        self.complain(&String::from_utf8_lossy(&super::print::list(&list)));
                    }
                    status = self.list(&list)?;
                }
                Err(super::parser::Error::Incomplete(text) | super::parser::Error::Wrong(text)) => {
                    self.line = parser.line;
                    return Err(Flow::Fatal(format!("syntax error: {text}")));
                }
            }
        }
    }
}
