//! Commands that the shell runs itself. `set`, `read`, `getopts` and `trap` are in `builtins_state`.

use super::exec::{Flow, Shell, Status};
use super::jobs;
use super::parser::{is_keyword, is_name};
use super::state::Variable;
use crate::{applets, files, host};

/// POSIX's special builtins: their assignments stay, their errors end a script.
const SPECIAL: &[&[u8]] = &[
    b".",
    b":",
    b"break",
    b"continue",
    b"eval",
    b"exec",
    b"exit",
    b"export",
    b"readonly",
    b"return",
    b"set",
    b"shift",
    b"trap",
    b"unset",
];

const REGULAR: &[&[u8]] = &[
    b"[", b"[[", b"alias", b"cd", b"command", b"echo", b"false", b"getopts", b"hash", b"jobs",
    b"kill", b"let", b"local", b"printf", b"pwd", b"read", b"source", b"test", b"true", b"type",
    b"ulimit", b"umask", b"unalias", b"wait",
];

pub(super) fn is_special(name: &[u8]) -> bool {
    SPECIAL.contains(&name)
}

pub(super) fn exists(name: &[u8]) -> bool {
    is_special(name) || REGULAR.contains(&name)
}

impl Shell {
    /// Writes to the shell's standard output.
    pub(super) fn say(&mut self, name: &str, text: &[u8]) -> Status {
        match self.descriptors.get(1) {
            None => {
                self.complain(&format!("{name}: write error: Bad file descriptor"));
                Ok(1)
            }
            Some(stream) => match stream.write(text) {
                Ok(()) => Ok(0),
                // as SIGPIPE would
                Err(None) => Err(Flow::Exit(141)),
                Err(Some(reason)) => {
                    self.complain(&format!("{name}: write error: {reason}"));
                    Ok(1)
                }
            },
        }
    }

    fn number(&self, name: &str, word: Option<&Vec<u8>>, default: u32) -> Result<u32, Flow> {
        match word {
            None => Ok(default),
            Some(word) => match self.show(word).parse() {
                Ok(number) => Ok(number),
                Err(_) => Err(Flow::Fatal(format!(
                    "{name}: bad number: {}",
                    self.show(word)
                ))),
            },
        }
    }

    pub(super) fn builtin(&mut self, argv: &[Vec<u8>]) -> Status {
        let name = self.show(&argv[0]);
        let args = &argv[1..];
        match name.as_str() {
            ":" | "true" => Ok(0),
            "false" => Ok(1),
            "alias" | "unalias" | "hash" => Ok(0),
            "break" | "continue" => {
                let levels = self.number(&name, args.first(), 1)?.max(1).min(self.loops);
                match (levels, name.as_str()) {
                    (0, _) => Ok(0),
                    (levels, "break") => Err(Flow::Break(levels)),
                    (levels, _) => Err(Flow::Continue(levels)),
                }
            }
            "return" | "exit" => {
                let status = match args.first() {
                    None => self.state.status,
                    Some(word) => match super::arith::number(word) {
                        Some(status) => (status & 0xff) as i32,
                        None => {
                            self.complain(&format!("{name}: bad number: {}", self.show(word)));
                            2
                        }
                    },
                };
                Err(if name == "exit" {
                    Flow::Exit(status)
                } else {
                    Flow::Return(status)
                })
            }
            "eval" => {
                let text = args.join(&b' ');
                self.deeper(|shell| shell.run_text(&text))
            }
            "." | "source" => self.source(&name, args),
            "exec" => self.exec(args),
            "export" | "readonly" => self.declare(&name, args),
            "local" => self.local(args),
            "unset" => self.unset(args),
            "shift" => {
                let count = self.number("shift", args.first(), 1)? as usize;
                if count > self.state.parameters.len() {
                    self.complain("shift: can't shift that many");
                    return Ok(1);
                }
                self.state.parameters.drain(..count);
                Ok(0)
            }
            "cd" => self.cd(args),
            "pwd" => {
                let line = format!("{}\n", self.state.directory);
                self.say("pwd", line.as_bytes())
            }
            "echo" => {
                let words: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
                let text = applets::printf::echo(&words);
                self.say("echo", &text)
            }
            "printf" => {
                let words: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
                let printed = applets::printf::format(&words);
                for text in &printed.errors {
                    self.complain(&format!("printf: {text}"));
                }
                self.say("printf", &printed.text)?;
                Ok(i32::from(!printed.errors.is_empty()))
            }
            "test" | "[" | "[[" => {
                let words: Vec<String> = args.iter().map(|word| self.show(word)).collect();
                match applets::test::evaluate(&name, &words, &self.state.directory) {
                    Ok(true) => Ok(0),
                    Ok(false) => Ok(1),
                    Err(text) => {
                        self.complain(&format!("{name}: {text}"));
                        Ok(2)
                    }
                }
            }
            "let" => {
                let mut value = 0;
                for word in args {
                    value = self.arithmetic(word)?;
                }
                Ok(i32::from(value == 0))
            }
            "command" => self.command_builtin(args),
            "type" => {
                let mut status = 0;
                for word in args {
                    let word = self.show(word);
                    let line = match self.what(&word) {
                        Some((kind, _)) => format!("{word} is {kind}\n"),
                        None => {
                            status = 127;
                            format!("{word}: not found\n")
                        }
                    };
                    self.say("type", line.as_bytes())?;
                }
                Ok(status)
            }
            "wait" => self.wait_builtin(args),
            "jobs" => {
                self.reap();
                let jobs = self.jobs.iter().filter(|job| !job.forgotten);
                let lines: Vec<String> = jobs
                    .map(|job| {
                        let state = match job.status {
                            None => "Running".to_owned(),
                            Some(0) => "Done".to_owned(),
                            Some(status) => format!("Done({status})"),
                        };
                        format!("[{}] {state}\t{}\n", job.child, job.text)
                    })
                    .collect();
                self.jobs
                    .retain(|job| job.status.is_none() || job.forgotten);
                self.say("jobs", lines.concat().as_bytes())
            }
            "kill" => self.kill(args),
            "umask" => match args.first() {
                None => self.say("umask", b"0022\n"),
                Some(mask) if matches!(mask.as_slice(), b"022" | b"0022") => Ok(0),
                Some(_) => {
                    self.complain("umask: WASI has no mode bits, the mask stays 0022");
                    Ok(1)
                }
            },
            "ulimit" => match args.last() {
                None => self.say("ulimit", b"unlimited\n"),
                Some(_) => {
                    self.complain("ulimit: limits of a Wasm container are those of its cgroup");
                    Ok(1)
                }
            },
            "set" => self.set_builtin(args),
            "read" => self.read_builtin(args),
            "getopts" => self.getopts(args),
            "trap" => self.trap(args),
            _ => Err(Flow::Fatal(format!("{name}: not a builtin"))),
        }
    }

    fn source(&mut self, name: &str, args: &[Vec<u8>]) -> Status {
        let file = match args.first() {
            Some(file) => self.show(file),
            None => return Err(Flow::Fatal(format!("{name}: wants a file"))),
        };
        let path = self
            .search(&file)
            .unwrap_or_else(|| files::absolute(&self.state.directory, &file));
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) => {
                let text = format!(
                    "{name}: can't open '{file}': {}",
                    crate::context::reason(&error)
                );
                if name == "source" || self.interactive {
                    self.complain(&text);
                    return Ok(1);
                }
                return Err(Flow::Fatal(text));
            }
        };
        let saved = (args.len() > 1)
            .then(|| std::mem::replace(&mut self.state.parameters, args[1..].to_vec()));
        let result = self.deeper(|shell| shell.run_text(&text));
        if let Some(parameters) = saved {
            self.state.parameters = parameters;
        }
        match result {
            Err(Flow::Return(status)) => Ok(status),
            other => other,
        }
    }

    /// There is no exec in WASI: the command runs, then the shell ends as it did.
    fn exec(&mut self, args: &[Vec<u8>]) -> Status {
        match args {
            [] => Ok(0),
            args if exists(&args[0]) => {
                let status = self.deeper(|shell| shell.builtin(args))?;
                Err(Flow::Exit(status))
            }
            args => {
                let status = self.external(args, &Vec::new())?;
                Err(Flow::Exit(status))
            }
        }
    }

    fn declare(&mut self, name: &str, args: &[Vec<u8>]) -> Status {
        let words: Vec<&Vec<u8>> = args
            .iter()
            .filter(|word| word.as_slice() != b"-p" && word.as_slice() != b"--")
            .collect();
        let export = name == "export";
        if words.is_empty() {
            let mut text = Vec::new();
            for (variable, data) in &self.state.variables {
                if (export && data.exported) || (!export && data.read_only) {
                    text.extend_from_slice(name.as_bytes());
                    text.push(b' ');
                    text.extend_from_slice(variable);
                    if let Some(value) = &data.value {
                        text.push(b'=');
                        text.extend_from_slice(&super::print::quote(value));
                    }
                    text.push(b'\n');
                }
            }
            return self.say(name, &text);
        }
        let removes = export && words[0].as_slice() == b"-n";
        for word in &words[usize::from(removes)..] {
            let (variable, value) = split_assignment(word);
            if !is_name(variable) {
                return Err(Flow::Fatal(format!(
                    "{name}: {}: bad variable name",
                    self.show(variable)
                )));
            }
            if let Some(value) = value {
                self.state
                    .set(variable, value.to_vec())
                    .map_err(Flow::Fatal)?;
            }
            let data = self.state.variables.entry(variable.to_vec()).or_default();
            if export {
                data.exported = !removes;
            } else {
                data.read_only = true;
            }
        }
        Ok(0)
    }

    fn local(&mut self, args: &[Vec<u8>]) -> Status {
        for word in args {
            let (variable, value) = split_assignment(word);
            if !is_name(variable) {
                return Err(Flow::Fatal(format!(
                    "local: {}: bad variable name",
                    self.show(variable)
                )));
            }
            let before = self.state.variables.get(variable).cloned();
            match self.state.hidden.last_mut() {
                None => return Err(Flow::Fatal("local: not in a function".to_owned())),
                Some(hidden) => drop(
                    hidden
                        .entry(variable.to_vec())
                        .or_insert_with(|| before.clone()),
                ),
            }
            match value {
                Some(value) => self
                    .state
                    .set(variable, value.to_vec())
                    .map_err(Flow::Fatal)?,
                None => {
                    let exported = before.map_or(false, |data| data.exported);
                    self.state.variables.insert(
                        variable.to_vec(),
                        Variable {
                            exported,
                            ..Variable::default()
                        },
                    );
                }
            }
        }
        Ok(0)
    }

    fn unset(&mut self, args: &[Vec<u8>]) -> Status {
        let mut functions = false;
        for word in args {
            match word.as_slice() {
                b"-f" => functions = true,
                b"-v" => functions = false,
                name if functions => drop(self.state.functions.remove(name)),
                name => {
                    let known = self.state.variables.contains_key(name);
                    self.state
                        .unset(name)
                        .map_err(|text| Flow::Fatal(format!("unset: {text}")))?;
                    if !known {
                        self.state.functions.remove(name);
                    }
                }
            }
        }
        Ok(0)
    }

    fn cd(&mut self, args: &[Vec<u8>]) -> Status {
        let words: Vec<&Vec<u8>> = args
            .iter()
            .filter(|word| !matches!(word.as_slice(), b"-L" | b"-P" | b"--"))
            .collect();
        let variable = |name: &[u8]| self.state.get(name).map(|value| self.show(value));
        let (target, tell) = match words.first() {
            None => match variable(b"HOME") {
                Some(home) => (home, false),
                None => {
                    self.complain("cd: HOME not set");
                    return Ok(1);
                }
            },
            Some(word) if word.as_slice() == b"-" => match variable(b"OLDPWD") {
                Some(old) => (old, true),
                None => {
                    self.complain("cd: OLDPWD not set");
                    return Ok(1);
                }
            },
            Some(word) => (self.show(word), false),
        };
        if target.is_empty() {
            return Ok(0);
        }
        let path = files::logical(&self.state.directory, &target);
        let reason = match std::fs::metadata(&path) {
            Ok(data) if data.is_dir() => None,
            Ok(_) => Some("Not a directory".to_owned()),
            Err(error) => Some(crate::context::reason(&error)),
        };
        if let Some(reason) = reason {
            self.complain(&format!("cd: can't cd to {target}: {reason}"));
            return Ok(1);
        }
        let old = std::mem::replace(&mut self.state.directory, path.clone());
        self.state
            .set(b"OLDPWD", old.into_bytes())
            .map_err(Flow::Fatal)?;
        self.state
            .set(b"PWD", path.clone().into_bytes())
            .map_err(Flow::Fatal)?;
        match tell {
            true => self.say("cd", format!("{path}\n").as_bytes()),
            false => Ok(0),
        }
    }

    /// What a name means: in words, and as `command -v` prints it.
    fn what(&self, name: &str) -> Option<(String, String)> {
        if is_keyword(name.as_bytes()) {
            return Some(("a shell keyword".to_owned(), name.to_owned()));
        }
        if self.state.functions.contains_key(name.as_bytes()) {
            return Some(("a function".to_owned(), name.to_owned()));
        }
        if exists(name.as_bytes()) {
            return Some(("a shell builtin".to_owned(), name.to_owned()));
        }
        if let Some(path) = self.search(name) {
            return Some((path.clone(), path));
        }
        let applet = !name.contains('/') && applets::find(name).is_some();
        applet.then(|| ("a tool of the toolbox".to_owned(), name.to_owned()))
    }

    fn command_builtin(&mut self, args: &[Vec<u8>]) -> Status {
        match args.first().map(Vec::as_slice) {
            None => Ok(0),
            Some(option @ (b"-v" | b"-V")) => {
                let mut status = 0;
                for word in &args[1..] {
                    let word = self.show(word);
                    match self.what(&word) {
                        Some((kind, _)) if option == b"-V" => {
                            self.say("command", format!("{word} is {kind}\n").as_bytes())?;
                        }
                        Some((_, text)) => {
                            self.say("command", format!("{text}\n").as_bytes())?;
                        }
                        None => status = 127,
                    }
                }
                Ok(status)
            }
            Some(b"-p" | b"--") => self.deeper(|shell| shell.command_builtin(&args[1..])),
            Some(name) if exists(name) => self.deeper(|shell| shell.builtin(args)),
            Some(_) => self.external(args, &Vec::new()),
        }
    }

    fn job_number(&self, word: &[u8]) -> Option<u32> {
        let text = self.show(word);
        match text.strip_prefix('%') {
            Some("" | "%" | "+") => self
                .jobs
                .iter()
                .rev()
                .find(|job| !job.forgotten)
                .map(|job| job.child),
            Some(number) => number.parse().ok(),
            None => text.parse().ok(),
        }
    }

    fn wait_builtin(&mut self, args: &[Vec<u8>]) -> Status {
        if args.is_empty() {
            return self.wait_job(None);
        }
        let mut status = 0;
        for word in args {
            status = match self.job_number(word) {
                Some(number) => self.wait_job(Some(number))?,
                None => {
                    self.complain(&format!("wait: {}: no such job", self.show(word)));
                    2
                }
            };
        }
        Ok(status)
    }

    fn kill(&mut self, args: &[Vec<u8>]) -> Status {
        let mut signal = 15;
        let mut targets = args;
        if let Some(word) = args.first() {
            let text = self.show(word);
            if text == "-l" {
                let line = applets::process::SIGNALS
                    .iter()
                    .map(|(_, name)| *name)
                    .collect::<Vec<_>>()
                    .join(" ")
                    + "\n";
                return self.say("kill", line.as_bytes());
            }
            let (name, used) = match text.as_str() {
                "-s" | "-n" => (
                    args.get(1).map(|word| self.show(word)).unwrap_or_default(),
                    2,
                ),
                "--" => ("TERM".to_owned(), 1),
                _ => match text.strip_prefix('-') {
                    Some(name) => (name.to_owned(), 1),
                    None => ("TERM".to_owned(), 0),
                },
            };
            match applets::process::signal(&name) {
                Some(number) => signal = number,
                None => {
                    self.complain(&format!("kill: {name}: bad signal"));
                    return Ok(2);
                }
            }
            targets = args.get(used..).unwrap_or_default();
        }
        if targets.is_empty() {
            self.complain("kill: wants the number of a job");
            return Ok(2);
        }
        let mut status = 0;
        for word in targets {
            let number = self.job_number(word);
            if number == Some(self.number) {
                return match signal {
                    0 => Ok(0),
                    signal => Err(Flow::Exit(128 + signal as i32)),
                };
            }
            let known = self
                .jobs
                .iter()
                .any(|job| Some(job.child) == number && job.status.is_none());
            let sent = match number {
                Some(number) if known && signal == 0 => {
                    host::wait(number, false).err() == Some(host::Errno::AGAIN)
                }
                Some(number) if known => host::signal(number, signal).is_ok(),
                _ => false,
            };
            if !sent {
                self.complain(&format!(
                    "kill: {}: not a running command of this shell",
                    self.show(word)
                ));
                status = 1;
            }
        }
        Ok(status)
    }
}

pub(super) fn split_assignment(word: &[u8]) -> (&[u8], Option<&[u8]>) {
    match word.iter().position(|byte| *byte == b'=') {
        Some(at) => (&word[..at], Some(&word[at + 1..])),
        None => (word, None),
    }
}

/// The environment variable in which another `sh` handed us its state is no variable of ours.
pub(super) fn is_private(name: &str) -> bool {
    name == jobs::STATE
}
