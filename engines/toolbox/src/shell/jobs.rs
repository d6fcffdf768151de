//! Commands that run beside the shell: pipelines, `&`, `wait`.

use super::ast::*;
use super::exec::{Flow, Shell, Status};
use super::print;
use super::streams::{Descriptors, Owned, Plan, Stream};
use crate::host::{self, Child, Errno};

/// A background command.
pub(super) struct Job {
    pub(super) child: Child,
    pub(super) text: String,
    /// once it has ended
    pub(super) status: Option<i32>,
    /// of a subshell that is over: only to be waited for
    pub(super) forgotten: bool,
}

impl Job {
    pub(super) fn forgotten(self) -> Job {
        Job {
            forgotten: true,
            ..self
        }
    }
}

/// Handed to another `sh`: first line `$$`, `$?`, `$!`; then a script.
pub(super) const STATE: &str = "CRIW_SHELL_STATE";

/// Builtins that only write a text of bounded size.
const WRITERS: &[&[u8]] = &[
    b"echo", b"printf", b"pwd", b"true", b"false", b":", b"type", b"set", b"export", b"jobs",
];

fn literal_name(command: &Command) -> Option<&[u8]> {
    match &command.kind {
        Kind::Simple(simple) => match simple.words.first()?.as_slice() {
            [Part::Literal(text)] if !crate::glob::has_magic(text) && text[0] != b'~' => Some(text),
            _ => None,
        },
        _ => None,
    }
}

impl Shell {
    /// Will the host run it, without shell code in between?
    fn is_external(&self, command: &Command) -> bool {
        literal_name(command).map_or(false, |name| {
            !self.state.functions.contains_key(name) && !super::builtins::exists(name)
        })
    }

    fn is_writer(&self, command: &Command) -> bool {
        literal_name(command).map_or(false, |name| {
            WRITERS.contains(&name) && !self.state.functions.contains_key(name)
        })
    }

    /// Starts another `sh` that runs code with a copy of our state.
    fn spawn_shell(
        &mut self,
        code: Vec<u8>,
        descriptors: &Descriptors,
    ) -> Result<(Child, Plan), i32> {
        let mut state = format!("{} {} ", self.number, self.state.status).into_bytes();
        if let Some(number) = self.state.last_background {
            state.extend_from_slice(number.to_string().as_bytes());
        }
        state.push(b'\n');
        state.extend_from_slice(&self.state.script());
        // our own module by its own name: an image may have another `sh`
        let words: [&[u8]; 5] = [b"criw-toolbox", b"sh", b"-c", &code, self.name.as_bytes()];
        let argv: Vec<Vec<u8>> = words.iter().map(|word| word.to_vec()).collect();
        let extra = [(
            STATE.to_owned(),
            String::from_utf8_lossy(&state).into_owned(),
        )];
        self.spawn(&argv, &extra, descriptors)
    }

    /// Starts one member of a pipeline, or a background command.
    fn start(
        &mut self,
        command: &Command,
        descriptors: &Descriptors,
    ) -> Result<Result<(Child, Plan), i32>, Flow> {
        if !self.is_external(command) {
            return Ok(self.spawn_shell(print::command(command), descriptors));
        }
        let simple = match &command.kind {
            Kind::Simple(simple) => simple,
            _ => return Ok(Err(2)),
        };
        // expanded as in a subshell: no assignment of it reaches us
        let mut started = Err(1);
        let state = self.state.clone();
        let saved = std::mem::replace(&mut self.descriptors, descriptors.clone());
        let result = (|| {
            let argv = self.expand_words(&simple.words)?;
            self.redirect(&command.redirects)?;
            let extra = self.assigned(simple)?;
            self.trace(&extra, &argv)?;
            let descriptors = self.descriptors.clone();
            started = self.spawn(&argv, &extra, &descriptors);
            Ok(())
        })();
        self.state = state;
        self.descriptors = saved;
        match result {
            Ok(()) => Ok(started),
            Err(Flow::Fatal(text)) => {
                let text = text.strip_prefix(super::redirect::MARK).unwrap_or(&text);
                self.complain_to(descriptors.get(2), text);
                Ok(Err(if started.is_err() { 2 } else { 1 }))
            }
            Err(flow) => Err(flow),
        }
    }

    pub(super) fn pipe(&mut self, members: &[Command]) -> Status {
        let last = members.len() - 1;
        let mut statuses = vec![0; members.len()];
        let mut children = Vec::new();
        let mut here = None;
        let mut input: Option<Stream> = None;
        let mut result = Ok(());
        for (number, member) in members.iter().enumerate() {
            let mut descriptors = self.descriptors.clone();
            if let Some(stream) = input.take() {
                descriptors.set(0, stream);
            }
            if number == last && !self.is_external(member) {
                // nothing runs behind it, so we can
                here = Some(descriptors);
                break;
            }
            if number < last && self.is_writer(member) {
                let (status, text) = self.written(member, descriptors)?;
                statuses[number] = status;
                input = Some(self.text_stream(text)?);
                continue;
            }
            if number < last {
                match host::pipe() {
                    Ok((reader, writer)) => {
                        input = Some(Stream::Handle(Owned(reader)));
                        descriptors.set(1, Stream::Handle(Owned(writer)));
                    }
                    Err(errno) => {
                        self.complain(&format!("can't make a pipe: {errno}"));
                        statuses[last] = 2;
                        break;
                    }
                }
            }
            // `|&` and `2>&1` stand among the member's redirections
            match self.start(member, &descriptors) {
                Ok(Ok((child, plan))) => children.push((number, child, plan)),
                Ok(Err(status)) => statuses[number] = status,
                Err(flow) => {
                    result = Err(flow);
                    break;
                }
            }
        }
        drop(input);
        if let (Some(descriptors), Ok(())) = (here, &result) {
            let member = &members[last];
            let ended = self.subshell(|shell| {
                shell.descriptors = descriptors;
                shell.command(member)
            });
            match ended {
                Ok(status) => statuses[last] = status,
                Err(flow) => result = Err(flow),
            }
        }
        for (_, _, plan) in &mut children {
            // errors of our side: the commands end by their own broken pipes
            if let Err(text) = plan.carry() {
                if !text.is_empty() {
                    self.complain(&text);
                }
            }
        }
        for (number, child, _) in children {
            match self.wait_for(child) {
                Ok(status) => statuses[number] = status,
                Err(flow) => result = Err(flow),
            }
        }
        result?;
        let status = match self.state.options.has(b'P') {
            true => statuses
                .iter()
                .rev()
                .copied()
                .find(|status| *status != 0)
                .unwrap_or(0),
            false => statuses[last],
        };
        Ok(status)
    }

    /// Runs a builtin that only writes; what it wrote.
    fn written(
        &mut self,
        command: &Command,
        descriptors: Descriptors,
    ) -> Result<(i32, Vec<u8>), Flow> {
        let buffer = std::rc::Rc::new(Stream::Capture(Default::default()));
        let sink = buffer.clone();
        let status = self.subshell(|shell| {
            shell.descriptors = descriptors;
            shell.descriptors.0.insert(1, sink);
            shell.command(command)
        })?;
        match buffer.as_ref() {
            Stream::Capture(text) => Ok((status, text.take())),
            _ => Ok((status, Vec::new())),
        }
    }

    pub(super) fn background(&mut self, item: &AndOr) -> Status {
        self.reap();
        let mut descriptors = self.descriptors.clone();
        if !self.interactive || !matches!(descriptors.get(0).as_deref(), Some(Stream::Own(_))) {
            descriptors.set(0, Stream::Null);
        }
        let one = match (
            item.first.members.as_slice(),
            item.rest.is_empty(),
            item.first.negated,
        ) {
            ([one], true, false) => Some(one),
            _ => None,
        };
        let started = match one {
            Some(one) => self.start(one, &descriptors)?,
            None => self.spawn_shell(print::and_or(item), &descriptors),
        };
        match started {
            Ok((child, plan)) => {
                let text = self.show(&print::and_or(item));
                self.leftovers.extend(plan.leave());
                self.jobs.push(Job {
                    child,
                    text,
                    status: None,
                    forgotten: false,
                });
                self.state.last_background = Some(child);
                self.state.status = 0;
                Ok(0)
            }
            Err(status) => {
                self.state.status = status;
                Ok(status)
            }
        }
    }

    /// Waits for a command in the foreground.
    pub(super) fn wait_for(&mut self, child: Child) -> Status {
        let mut interrupted = false;
        loop {
            match host::wait(child, true) {
                Err(Errno::INTR) => interrupted = true,
                Ok(130) if interrupted || self.terminal => return Err(Flow::Interrupt),
                Ok(status) => return Ok(status as i32),
                Err(errno) => {
                    return Err(Flow::Fatal(format!("can't wait for a command: {errno}")))
                }
            }
        }
    }

    /// Notes the ends of background commands, so that their numbers are free.
    pub(super) fn reap(&mut self) {
        for job in &mut self.jobs {
            if job.status.is_none() {
                match host::wait(job.child, false) {
                    Ok(status) => job.status = Some(status as i32),
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(_) => job.status = Some(127),
                }
            }
        }
        self.jobs
            .retain(|job| !(job.forgotten && job.status.is_some()));
        // a loop that never waits must not grow for ever
        while self.jobs.len() > 1000 {
            match self.jobs.iter().position(|job| job.status.is_some()) {
                Some(oldest) => drop(self.jobs.remove(oldest)),
                None => break,
            }
        }
    }

    /// `wait`: for all, or for one number.
    pub(super) fn wait_job(&mut self, number: Option<Child>) -> Status {
        let mut status = if number.is_some() { 127 } else { 0 };
        let (wanted, rest): (Vec<Job>, Vec<Job>) = std::mem::take(&mut self.jobs)
            .into_iter()
            .partition(|job| !job.forgotten && number.map_or(true, |number| number == job.child));
        self.jobs = rest;
        for job in wanted {
            let ended = match job.status {
                Some(status) => status,
                None => self.wait_for(job.child)?,
            };
            if number.is_some() {
                status = ended;
            }
        }
        Ok(status)
    }
}
