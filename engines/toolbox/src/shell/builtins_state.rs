//! Builtins that change what the shell knows: `set`, `read`, `getopts`, `trap`.

use super::builtins::split_assignment;
use super::exec::{Flow, Shell, Status};
use super::parser::is_name;
use super::state::OPTIONS;

impl Shell {
    pub(super) fn set_builtin(&mut self, args: &[Vec<u8>]) -> Status {
        if args.is_empty() {
            let mut text = Vec::new();
            for (name, variable) in &self.state.variables {
                if let Some(value) = &variable.value {
                    text.extend_from_slice(
                        &[name.as_slice(), b"=", &super::print::quote(value), b"\n"].concat(),
                    );
                }
            }
            return self.say("set", &text);
        }
        let mut words = args.iter();
        while let Some(word) = words.next() {
            let (on, letters) = match word.as_slice() {
                b"--" => {
                    self.state.parameters = words.cloned().collect();
                    return Ok(0);
                }
                b"-" => {
                    self.state.options.set(b'x', false);
                    self.state.options.set(b'v', false);
                    continue;
                }
                [b'-', letters @ ..] if !letters.is_empty() => (true, letters),
                [b'+', letters @ ..] if !letters.is_empty() => (false, letters),
                _ => {
                    self.state.parameters = std::iter::once(word).chain(words).cloned().collect();
                    return Ok(0);
                }
            };
            for &letter in letters {
                if letter == b'o' {
                    match words.next() {
                        None => return self.show_options(on),
                        Some(name) => self.option_by_name(name, on)?,
                    }
                } else {
                    self.option(letter, on)?;
                }
            }
        }
        Ok(0)
    }

    fn show_options(&mut self, table: bool) -> Status {
        let mut text = String::new();
        for (letter, name) in OPTIONS {
            let on = self.state.options.has(*letter);
            text += &match table {
                true => format!("{name:<15} {}\n", if on { "on" } else { "off" }),
                false => format!("set {}o {name}\n", if on { '-' } else { '+' }),
            };
        }
        self.say("set", text.as_bytes())
    }

    pub(super) fn option(&mut self, letter: u8, on: bool) -> Result<(), Flow> {
        // capital letters of ours have names only, but for -C and -E
        let known = OPTIONS.iter().any(|(l, _)| *l == letter) && !matches!(letter, b'P' | b'V');
        if !known {
            return Err(Flow::Fatal(format!(
                "set: unknown option -{}",
                letter as char
            )));
        }
        self.state.options.set(letter, on);
        Ok(())
    }

    pub(super) fn option_by_name(&mut self, name: &[u8], on: bool) -> Result<(), Flow> {
        match OPTIONS.iter().find(|(_, n)| n.as_bytes() == name) {
            Some((letter, _)) => self.state.options.set(*letter, on),
            None => {
                return Err(Flow::Fatal(format!(
                    "set: unknown option {}",
                    self.show(name)
                )))
            }
        }
        Ok(())
    }

    /// One byte at a time: what is behind the line belongs to the commands that follow.
    pub(super) fn read_builtin(&mut self, args: &[Vec<u8>]) -> Status {
        let (mut raw, mut end, mut most, mut prompt) = (false, b'\n', usize::MAX, None);
        let mut words = args.iter();
        let mut names: Vec<Vec<u8>> = Vec::new();
        while let Some(word) = words.next() {
            let letters = match word.as_slice() {
                b"--" => {
                    names.extend(words.by_ref().cloned());
                    break;
                }
                [b'-', letters @ ..] if !letters.is_empty() => letters,
                _ => {
                    names.push(word.clone());
                    names.extend(words.by_ref().cloned());
                    break;
                }
            };
            for (at, letter) in letters.iter().enumerate() {
                let mut value = || match &letters[at + 1..] {
                    [] => words.next().cloned().unwrap_or_default(),
                    rest => rest.to_vec(),
                };
                match letter {
                    b'r' => raw = true,
                    b's' => {}
                    b'p' => prompt = Some(value()),
                    b'd' => end = value().first().copied().unwrap_or(0),
                    b'n' | b'N' => {
                        let count = value();
                        most = self
                            .show(&count)
                            .parse()
                            .map_err(|_| Flow::Fatal("read: bad count".to_owned()))?;
                    }
                    b't' => {
                        value();
                        self.complain("read: no time-outs here, -t is ignored");
                    }
                    letter => {
                        return Err(Flow::Fatal(format!(
                            "read: unknown option -{}",
                            *letter as char
                        )))
                    }
                }
                if b"pdnNt".contains(letter) {
                    break;
                }
            }
        }
        if names.is_empty() {
            names.push(b"REPLY".to_vec());
        }
        for name in &names {
            if !is_name(name) {
                return Err(Flow::Fatal(format!(
                    "read: {}: bad variable name",
                    self.show(name)
                )));
            }
        }
        let stream = match self.descriptors.get(0) {
            Some(stream) => stream,
            None => return Ok(1),
        };
        if let (Some(prompt), Some(error)) = (prompt, self.descriptors.get(2)) {
            if self.terminal {
                let _ = error.write(&prompt);
            }
        }
        // what a backslash quotes is no separator
        let mut line: Vec<(u8, bool)> = Vec::new();
        let mut status = 1;
        let mut escaped = false;
        let mut byte = [0];
        while line.len() < most {
            match stream.read(&mut byte) {
                Ok(0) => break,
                Ok(_) => {}
                Err(text) => {
                    self.complain(&format!("read: {text}"));
                    break;
                }
            }
            if byte[0] == 3 && self.terminal {
                return Err(Flow::Interrupt);
            }
            if escaped {
                escaped = false;
                if byte[0] != b'\n' {
                    line.push((byte[0], true));
                }
            } else if byte[0] == end {
                status = 0;
                break;
            } else if byte[0] == b'\\' && !raw {
                escaped = true;
            } else if byte[0] != 0 {
                line.push((byte[0], false));
            }
        }
        if line.len() == most {
            status = 0;
        }
        self.assign_fields(&names, &line)?;
        Ok(status)
    }

    fn assign_fields(&mut self, names: &[Vec<u8>], line: &[(u8, bool)]) -> Result<(), Flow> {
        let separators = self.separators();
        let separates = |piece: &(u8, bool)| !piece.1 && separators.contains(&piece.0);
        let blank =
            |piece: &(u8, bool)| separates(piece) && matches!(piece.0, b' ' | b'\t' | b'\n');
        let text = |pieces: &[(u8, bool)]| pieces.iter().map(|piece| piece.0).collect::<Vec<u8>>();
        let skip = |pieces: &[(u8, bool)]| {
            pieces
                .iter()
                .position(|piece| !blank(piece))
                .unwrap_or(pieces.len())
        };
        let mut rest = &line[skip(line)..];
        for (number, name) in names.iter().enumerate() {
            let value = if number + 1 == names.len() {
                let mut end = rest
                    .iter()
                    .rposition(|piece| !blank(piece))
                    .map_or(0, |last| last + 1);
                // one separator at the very end belongs to the last field
                let ends_field = end > 0 && separates(&rest[end - 1]);
                if ends_field && !rest[..end - 1].iter().any(separates) {
                    end -= 1;
                }
                text(&rest[..end])
            } else {
                let end = rest.iter().position(separates).unwrap_or(rest.len());
                let field = text(&rest[..end]);
                rest = &rest[end..];
                rest = &rest[skip(rest)..];
                if rest.first().map_or(false, separates) {
                    rest = &rest[1..];
                    rest = &rest[skip(rest)..];
                }
                field
            };
            self.state
                .set(name, value)
                .map_err(|text| Flow::Fatal(format!("read: {text}")))?;
        }
        Ok(())
    }

    pub(super) fn getopts(&mut self, args: &[Vec<u8>]) -> Status {
        let (letters, name) = match args {
            [letters, name, ..] => (letters.clone(), name.clone()),
            _ => {
                return Err(Flow::Fatal(
                    "getopts: wants the letters and a variable".to_owned(),
                ))
            }
        };
        let words = if args.len() > 2 {
            args[2..].to_vec()
        } else {
            self.state.parameters.clone()
        };
        let index = self
            .state
            .get(b"OPTIND")
            .and_then(|value| super::arith::number(value))
            .unwrap_or(1)
            .max(1) as usize;
        if index == 1
            && self
                .state
                .get(b"OPTIND")
                .map_or(true, |value| value.as_slice() != b"1")
        {
            self.option_offset = 0;
        }
        let silent = letters.first() == Some(&b':');
        let set = |shell: &mut Shell, name: &[u8], value: &[u8]| {
            shell.state.set(name, value.to_vec()).map_err(Flow::Fatal)
        };
        let word = match words.get(index - 1) {
            Some(word) if word.len() > 1 && word[0] == b'-' && word != b"--" => word,
            other => {
                let next = index + usize::from(other.map_or(false, |word| word == b"--"));
                set(self, b"OPTIND", next.to_string().as_bytes())?;
                set(self, &name, b"?")?;
                self.option_offset = 0;
                return Ok(1);
            }
        };
        let at = self.option_offset.max(1).min(word.len() - 1);
        let letter = word[at];
        let known = letters.iter().position(|l| *l == letter && *l != b':');
        let takes = known.map_or(false, |position| letters.get(position + 1) == Some(&b':'));
        let mut next = index;
        self.option_offset = at + 1;
        if at + 1 == word.len() {
            next += 1;
            self.option_offset = 0;
        }
        let mut result = vec![letter];
        self.state.unset(b"OPTARG").map_err(Flow::Fatal)?;
        if known.is_none() {
            result = b"?".to_vec();
            match silent {
                true => set(self, b"OPTARG", &[letter])?,
                false => self.complain(&format!("illegal option -{}", letter as char)),
            }
        } else if takes {
            let value = if at + 1 < word.len() {
                Some(word[at + 1..].to_vec())
            } else {
                words.get(index).cloned()
            };
            next = if at + 1 < word.len() {
                index + 1
            } else {
                index + 2
            };
            self.option_offset = 0;
            match value {
                Some(value) => set(self, b"OPTARG", &value)?,
                None if silent => {
                    set(self, b"OPTARG", &[letter])?;
                    result = b":".to_vec();
                }
                None => {
                    self.complain(&format!("no argument for -{} option", letter as char));
                    result = b"?".to_vec();
                }
            }
        }
        set(self, b"OPTIND", next.to_string().as_bytes())?;
        set(self, &name, &result)?;
        Ok(0)
    }

    /// EXIT runs; other signals end the shim before the shell could run anything, which is
    /// said once it is asked for.
    pub(super) fn trap(&mut self, args: &[Vec<u8>]) -> Status {
        if args.is_empty() {
            let mut text = Vec::new();
            for (name, action) in &self.state.traps {
                text.extend_from_slice(
                    &[
                        b"trap -- ",
                        &super::print::quote(action)[..],
                        b" ",
                        name.as_bytes(),
                        b"\n",
                    ]
                    .concat(),
                );
            }
            return self.say("trap", &text);
        }
        let args = if args[0] == b"--" { &args[1..] } else { args };
        let only = args.len() == 1;
        let (action, signals) = match args.split_first() {
            None => return Ok(0),
            Some((first, rest)) if !only => (first.clone(), rest),
            _ => (b"-".to_vec(), args),
        };
        let mut status = 0;
        for signal in signals {
            let name = self.show(signal).to_uppercase();
            let name = match name.as_str() {
                "0" | "EXIT" => "EXIT".to_owned(),
                name => match crate::applets::process::signal(name) {
                    Some(number) => crate::applets::process::signal_name(number),
                    None => {
                        self.complain(&format!("trap: {name}: bad signal"));
                        status = 1;
                        continue;
                    }
                },
            };
            if action == b"-" {
                self.state.traps.remove(&name);
            } else {
                self.state.traps.insert(name, action.clone());
            }
        }
        Ok(status)
    }

    /// A variable of the environment, at the start.
    pub(super) fn import(&mut self, line: &[u8]) {
        if let (name, Some(value)) = split_assignment(line) {
            if is_name(name) {
                let variable = self.state.variables.entry(name.to_vec()).or_default();
                variable.value = Some(value.to_vec());
                variable.exported = true;
            }
        }
    }
}
