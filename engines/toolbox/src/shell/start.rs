//! `sh`: where its commands come from.

use super::exec::{Flow, Shell, Status};
use super::jobs::STATE;
use super::parser::{Error, Parser};
use super::state::State;
use super::streams::Descriptors;
use crate::context::Context;
use crate::host;
use crate::sys;
use std::io::Read;

/// Where commands are looked for when nothing says it.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

enum Source {
    Text(Vec<u8>),
    File(String),
    Input,
}

/// Runs the shell with a process's own streams; its exit code.
pub(crate) fn main(context: Context) -> i32 {
    let mut shell = Shell {
        state: State {
            directory: context.directory.clone(),
            ..State::default()
        },
        name: context.name.clone(),
        number: 2 + super::parameter::random() % 32_000,
        line: 0,
        script: false,
        interactive: false,
        terminal: sys::is_terminal(0) || sys::is_terminal(1),
        descriptors: Descriptors::own(),
        jobs: Vec::new(),
        loops: 0,
        tested: 0,
        calls: 0,
        depth: 0,
        substituted: None,
        leftovers: Vec::new(),
        option_offset: 0,
    };
    let mut handed = None;
    for (name, value) in &context.env {
        if super::builtins::is_private(name) {
            handed = Some(value.clone());
        } else {
            shell.import(format!("{name}={value}").as_bytes());
        }
    }
    let mut default = |name: &[u8], value: &[u8]| {
        if shell.state.get(name).is_none() {
            // nothing is read only yet
            let _ = shell.state.set(name, value.to_vec());
        }
    };
    default(b"PATH", PATH.as_bytes());
    default(b"OPTIND", b"1");
    default(b"PS2", b"> ");
    default(b"PS4", b"+ ");
    let directory = context.directory.clone().into_bytes();
    let separators = b" \t\n".to_vec();
    for (name, value) in [(&b"PWD"[..], directory), (b"IFS", separators)] {
        let _ = shell.state.set(name, value);
    }
    let result = match shell.options(&context.args) {
        Ok(source) => {
            if let Some(handed) = handed {
                shell.take_over(&handed);
            }
            shell.run(source)
        }
        Err(flow) => Err(flow),
    };
    // an interrupt ends it as SIGINT would
    shell.ended(result).unwrap_or(130)
}

impl Shell {
    fn options(&mut self, args: &[String]) -> Result<Source, Flow> {
        let mut words = args.iter();
        let (mut text, mut input, mut login) = (false, false, false);
        let mut rest: Vec<String> = Vec::new();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--" | "-" => break,
                "--login" => login = true,
                _ if word.len() > 1 && (word.starts_with('-') || word.starts_with('+')) => {
                    let on = word.starts_with('-');
                    for letter in word.bytes().skip(1) {
                        match letter {
                            b'c' => text = true,
                            b's' => input = true,
                            b'i' => self.interactive = true,
                            b'l' => login = true,
                            b'o' => match words.next() {
                                Some(name) => self.option_by_name(name.as_bytes(), on)?,
                                None => return Err(Flow::Fatal("-o wants a name".to_owned())),
                            },
                            letter => self.option(letter, on)?,
                        }
                    }
                }
                _ => {
                    rest.push(word.clone());
                    break;
                }
            }
        }
        rest.extend(words.cloned());
        let mut rest = rest.into_iter();
        let source = if text {
            match rest.next() {
                Some(text) => Source::Text(text.into_bytes()),
                None => return Err(Flow::Fatal("-c wants a command".to_owned())),
            }
        } else {
            match (input, rest.len()) {
                (false, 1..) => Source::File(rest.next().unwrap_or_default()),
                _ => Source::Input,
            }
        };
        if let Source::File(file) = &source {
            self.name = file.clone();
            self.script = true;
        } else if text {
            if let Some(name) = rest.next() {
                self.name = name;
            }
        }
        self.state.parameters = rest.map(String::into_bytes).collect();
        if matches!(source, Source::Input) && sys::is_terminal(0) {
            self.interactive = true;
        }
        if login {
            if let Ok(profile) = std::fs::read("/etc/profile") {
                match self.run_text(&profile) {
                    Err(Flow::Fatal(text)) => self.complain(&text),
                    Ok(_) | Err(Flow::Return(_)) => {}
                    Err(flow) => return Err(flow),
                }
            }
        }
        Ok(source)
    }

    /// Becomes the copy of the shell that started us, see `jobs`.
    fn take_over(&mut self, handed: &str) {
        let (first, script) = handed.split_once('\n').unwrap_or((handed, ""));
        let numbers: Vec<&str> = first.split(' ').collect();
        let number = |index: usize| numbers.get(index).and_then(|text| text.parse::<u32>().ok());
        if let Err(Flow::Fatal(text)) = self.run_text(script.as_bytes()) {
            self.complain(&format!("{STATE}: {text}"));
        }
        self.number = number(0).unwrap_or(self.number);
        self.state.status = number(1).unwrap_or(0) as i32;
        self.state.last_background = number(2);
    }

    fn run(&mut self, source: Source) -> Status {
        match source {
            Source::Text(text) => self.run_text(&text),
            Source::File(name) => {
                let path = match self.search(&name) {
                    Some(path) if name.contains('/') => path,
                    _ => crate::files::absolute(&self.state.directory, &name),
                };
                match std::fs::read(path) {
                    Ok(text) => self.run_text(&text),
                    Err(error) => {
                        self.script = false;
                        self.name = "sh".to_owned();
                        self.complain(&format!(
                            "can't open '{name}': {}",
                            crate::context::reason(&error)
                        ));
                        Err(Flow::Exit(127))
                    }
                }
            }
            Source::Input => self.run_input(),
        }
    }

    fn prompt(&self, more: bool) -> Vec<u8> {
        if more {
            return self.state.get(b"PS2").cloned().unwrap_or_default();
        }
        match self.state.get(b"PS1") {
            Some(prompt) => prompt.clone(),
            None => {
                let root = host::info(host::INFO_IDS)
                    .map_or(false, |ids| ids.split(' ').next() == Some("0"));
                format!("{} {} ", self.state.directory, if root { '#' } else { '$' }).into_bytes()
            }
        }
    }

    /// Commands line by line. No byte behind the line is taken: commands share the input.
    fn run_input(&mut self) -> Status {
        let mut text: Vec<u8> = Vec::new();
        let mut over = false;
        while !over {
            if self.interactive {
                self.reap();
                if let Some(stream) = self.descriptors.get(2) {
                    let _ = stream.write(&self.prompt(!text.is_empty()));
                }
            }
            let start = text.len();
            over = !read_line(&mut text)
                .map_err(|reason| Flow::Fatal(format!("standard input: {reason}")))?;
            if text[start..].contains(&3) && self.interactive {
                // Ctrl-C while no command ran
                text.clear();
                self.state.status = 130;
                self.fresh_line();
                continue;
            }
            let mut parser = Parser::new(&text);
            let mut lists = Vec::new();
            let wrong = loop {
                match parser.next() {
                    Ok(Some(list)) => lists.push(list),
                    Ok(None) => break None,
                    Err(Error::Incomplete(_)) if !over => {
                        lists.clear();
                        break Some(None);
                    }
                    Err(Error::Incomplete(reason) | Error::Wrong(reason)) => {
                        break Some(Some(reason))
                    }
                }
            };
            match wrong {
                // more lines are wanted
                Some(None) => continue,
                // a line that ends in a backslash goes on
                None if !over && text.ends_with(b"\\\n") => continue,
                _ => text.clear(),
            }
            for list in lists {
                match self.list(&list) {
                    Ok(_) => {}
                    Err(Flow::Fatal(reason)) if self.interactive => {
                        self.complain(&reason);
                        self.state.status = 2;
                    }
                    Err(Flow::Interrupt) if self.interactive => {
                        self.state.status = 130;
                        self.fresh_line();
                        break;
                    }
                    Err(Flow::Return(status)) => self.state.status = status,
                    Err(flow) => return Err(flow),
                }
                (self.loops, self.calls, self.depth, self.tested) = (0, 0, 0, 0);
            }
            if let Some(Some(reason)) = wrong {
                let reason = format!("syntax error: {reason}");
                if !self.interactive {
                    return Err(Flow::Fatal(reason));
                }
                self.complain(&reason);
                self.state.status = 2;
            }
        }
        if self.interactive {
            self.fresh_line();
        }
        Ok(self.state.status)
    }

    fn fresh_line(&self) {
        if let Some(stream) = self.descriptors.get(2) {
            let _ = stream.write(b"\n");
        }
    }
}

/// Adds a line with its end; false at the end of the input.
fn read_line(text: &mut Vec<u8>) -> Result<bool, String> {
    let mut byte = [0];
    loop {
        match sys::Own(0).read(&mut byte) {
            Ok(0) => return Ok(false),
            Ok(_) => {
                text.push(byte[0]);
                // the terminal ends a line with 3, see the interface of the toolbox
                if byte[0] == b'\n' || byte[0] == 3 {
                    return Ok(true);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(crate::context::reason(&error)),
        }
    }
}
