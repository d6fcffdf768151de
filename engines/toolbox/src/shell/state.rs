//! What a shell knows; a subshell works on a copy.

use super::ast::Command;
use super::print;
use std::collections::BTreeMap;
use std::rc::Rc;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Variable {
    /// none: declared only (`export x`, `local x`)
    pub(super) value: Option<Vec<u8>>,
    pub(super) exported: bool,
    pub(super) read_only: bool,
}

/// `set -e -u …`
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Options(pub(super) Vec<u8>);

pub(super) const OPTIONS: &[(u8, &str)] = &[
    (b'a', "allexport"),
    (b'e', "errexit"),
    (b'f', "noglob"),
    (b'n', "noexec"),
    (b'u', "nounset"),
    (b'v', "verbose"),
    (b'x', "xtrace"),
    // letters of our own for what has none
    (b'P', "pipefail"),
    (b'C', "noclobber"),
    // what a shell without job control and history accepts and need not do
    (b'b', "notify"),
    (b'm', "monitor"),
    (b'E', "emacs"),
    (b'V', "vi"),
    (b'h', "hashall"),
];

impl Options {
    pub(super) fn has(&self, letter: u8) -> bool {
        self.0.contains(&letter)
    }

    pub(super) fn set(&mut self, letter: u8, on: bool) {
        self.0.retain(|other| *other != letter);
        if on {
            self.0.push(letter);
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct State {
    pub(super) variables: BTreeMap<Vec<u8>, Variable>,
    pub(super) functions: BTreeMap<Vec<u8>, Rc<Command>>,
    /// `$1` …
    pub(super) parameters: Vec<Vec<u8>>,
    pub(super) options: Options,
    /// absolute
    pub(super) directory: String,
    /// `$?`
    pub(super) status: i32,
    /// `$!`
    pub(super) last_background: Option<u32>,
    pub(super) traps: BTreeMap<String, Vec<u8>>,
    /// variables that functions hide, one map per call
    pub(super) hidden: Vec<BTreeMap<Vec<u8>, Option<Variable>>>,
}

impl State {
    pub(super) fn get(&self, name: &[u8]) -> Option<&Vec<u8>> {
        self.variables.get(name)?.value.as_ref()
    }

    pub(super) fn set(&mut self, name: &[u8], value: Vec<u8>) -> Result<(), String> {
        let all = self.options.has(b'a');
        let variable = self.variables.entry(name.to_vec()).or_default();
        if variable.read_only {
            return Err(format!("{}: is read only", String::from_utf8_lossy(name)));
        }
        variable.value = Some(value);
        variable.exported |= all;
        Ok(())
    }

    pub(super) fn unset(&mut self, name: &[u8]) -> Result<(), String> {
        if self
            .variables
            .get(name)
            .map_or(false, |variable| variable.read_only)
        {
            return Err(format!("{}: is read only", String::from_utf8_lossy(name)));
        }
        self.variables.remove(name);
        Ok(())
    }

    /// What commands get as their environment.
    pub(super) fn environment(&self) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let exported = self
            .variables
            .iter()
            .filter(|(_, variable)| variable.exported);
        exported
            .filter_map(|(name, variable)| Some((text(name), text(variable.value.as_ref()?))))
            .collect()
    }

    /// Everything else that another `sh` needs to go on in our place, as a script.
    pub(super) fn script(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut line = |pieces: &[&[u8]]| {
            pieces.iter().for_each(|piece| out.extend_from_slice(piece));
            out.push(b'\n');
        };
        for (name, variable) in &self.variables {
            let text = variable
                .value
                .as_ref()
                .map_or(true, |value| std::str::from_utf8(value).is_ok());
            // exported text is in the environment
            if !(variable.exported && text) {
                match &variable.value {
                    Some(value) => line(&[name, b"=", &print::quote(value)]),
                    None if variable.exported => line(&[b"export ", name]),
                    None => {}
                }
            }
            if variable.read_only {
                line(&[b"readonly ", name]);
            }
        }
        for (name, body) in &self.functions {
            line(&[name, b"() ", &print::command(body)]);
        }
        let mut parameters = b"set --".to_vec();
        for parameter in &self.parameters {
            parameters.push(b' ');
            parameters.extend_from_slice(&print::quote(parameter));
        }
        line(&[&parameters]);
        // last: the script itself must not be traced, nor end at the first false
        for letter in &self.options.0 {
            if let Some((_, name)) = OPTIONS.iter().find(|(l, _)| l == letter) {
                line(&[b"set -o ", name.as_bytes()]);
            }
        }
        out
    }
}
