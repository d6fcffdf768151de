//! The command line, parsed by hand: four commands and one option need no library.

use std::ffi::OsString;
use std::path::PathBuf;

/// Shown for `--help` and after a wrong command.
pub const USAGE: &str = "\
usage: criw [serve] [--config FILE]    run the daemon (default)
       criw check [--config FILE]      look at this machine and say what is missing
       criw config default             print every key with its default
       criw fault-points               print the points at which CRIW_FAULT can kill it (tests)
       criw --version | --help

Without --config, /etc/criw/config.toml and /etc/criw/config.d/*.toml are read if they
are there. With it, FILE alone is read, so that daemons can run side by side.
";

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Run the daemon.
    Serve {
        /// This file alone, instead of /etc/criw.
        config: Option<PathBuf>,
    },
    /// Look at the machine.
    Check {
        /// As for `Serve`.
        config: Option<PathBuf>,
    },
    /// Print the default configuration.
    ConfigDefault,
    /// Print the fault points.
    FaultPoints,
    /// Print the version.
    Version,
    /// Print the usage.
    Help,
}

/// The command line makes no sense; the text says which word.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

/// Parses the arguments after the program's name.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, UsageError> {
    let mut words = Vec::new();
    let mut config = None;
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        if text == "--config" {
            let file = args
                .next()
                .ok_or_else(|| UsageError("--config needs a file".to_owned()))?;
            set_once(&mut config, PathBuf::from(file))?;
        } else if let Some(file) = text.strip_prefix("--config=") {
            set_once(&mut config, PathBuf::from(file))?;
        } else {
            words.push(text.into_owned());
        }
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let command = match words.as_slice() {
        [] | ["serve"] => return Ok(Command::Serve { config }),
        ["check"] => return Ok(Command::Check { config }),
        ["config", "default"] => Command::ConfigDefault,
        ["fault-points"] => Command::FaultPoints,
        ["--version" | "-V"] => Command::Version,
        ["--help" | "-h" | "help"] => Command::Help,
        ["config", ..] => return Err(UsageError("try `criw config default`".to_owned())),
        ["serve" | "check", extra, ..] => {
            return Err(UsageError(format!("unexpected argument {extra:?}")));
        }
        [word, ..] => return Err(UsageError(format!("unknown command {word:?}"))),
    };
    match config {
        None => Ok(command),
        Some(_) => Err(UsageError(
            "--config belongs to serve and check only".to_owned(),
        )),
    }
}

fn set_once(config: &mut Option<PathBuf>, file: PathBuf) -> Result<(), UsageError> {
    if file.as_os_str().is_empty() {
        return Err(UsageError("--config needs a file".to_owned()));
    }
    match config.replace(file) {
        None => Ok(()),
        Some(_) => Err(UsageError("--config is given twice".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_command_line() {
        let serve = |file: Option<&str>| Command::Serve {
            config: file.map(PathBuf::from),
        };
        let table: &[(&[&str], Result<Command, &str>)] = &[
            (&[], Ok(serve(None))),
            (&["serve"], Ok(serve(None))),
            (&["--config", "/a"], Ok(serve(Some("/a")))),
            (&["serve", "--config=/a"], Ok(serve(Some("/a")))),
            (&["--config", "/a", "serve"], Ok(serve(Some("/a")))),
            (&["check"], Ok(Command::Check { config: None })),
            (&["config", "default"], Ok(Command::ConfigDefault)),
            (&["--version"], Ok(Command::Version)),
            (&["--help"], Ok(Command::Help)),
            (&["frobnicate"], Err("unknown command \"frobnicate\"")),
            (&["serve", "now"], Err("unexpected argument \"now\"")),
            (&["config"], Err("try `criw config default`")),
            (&["--config"], Err("--config needs a file")),
            (&["--config="], Err("--config needs a file")),
            (
                &["--config=a", "--config=b"],
                Err("--config is given twice"),
            ),
            (
                &["--version", "--config=a"],
                Err("--config belongs to serve and check only"),
            ),
        ];
        for (args, expected) in table {
            let got = parse(args.iter().map(OsString::from)).map_err(|error| error.to_string());
            assert_eq!(got, expected.clone().map_err(str::to_owned), "{args:?}");
        }
    }
}
