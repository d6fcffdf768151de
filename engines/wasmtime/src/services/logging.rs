//! `wasi:logging`: a line on the container's standard error, with level and context.

use wasmtime::component::{ComponentType, Lift, LinkerInstance};
use wasmtime::{Result, StoreContextMut};

use crate::host::State;

/// As the interface orders them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "guests make them: their number is taken as it is")]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
    #[component(name = "critical")]
    Critical,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Trace => "TRACE",
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
            Self::Critical => "CRITICAL",
        }
    }
}

pub(super) fn add(instance: &mut LinkerInstance<'_, State>) -> Result<()> {
    instance.func_wrap(
        "log",
        |store: StoreContextMut<'_, State>, (level, context, message): (Level, String, String)| {
            let text = lines(level, &context, &message);
            // In one piece: others write between two.
            store.data().services.stderr.write(text.as_bytes());
            Ok(())
        },
    )
}

/// Each line of the message has the level in front, so that whoever filters by level sees
/// whole messages, and a message cannot pass for another one.
fn lines(level: Level, context: &str, message: &str) -> String {
    let context: String = context
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let prefix = match context.trim() {
        "" => level.name().to_owned(),
        context => format!("{} [{context}]", level.name()),
    };
    message
        .trim_end_matches('\n')
        .split('\n')
        .map(|line| format!("{prefix} {}\n", line.trim_end_matches('\r')))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_its_level() {
        for (context, message, expected) in [
            ("", "ready", "INFO ready\n"),
            ("db", "a\r\nb\n", "INFO [db] a\nINFO [db] b\n"),
            ("a\nERROR x", "", "INFO [a ERROR x] \n"),
        ] {
            assert_eq!(lines(Level::Info, context, message), expected);
        }
    }
}
