//! The command line, parsed by hand: six commands and two options need no library.

use std::ffi::OsString;
use std::path::PathBuf;

/// Shown for `--help` and after a wrong command.
pub const USAGE: &str = "\
usage: criw [serve] [--config FILE]    run the daemon (default)
       criw check [--config FILE]      look at this machine and say what is missing
       criw images import FILE|- [--name NAME] [--config FILE]
                                       put the images of an archive into the running daemon
       criw images list [--config FILE]    print the images of the running daemon
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
    /// Put the images of an archive into the running daemon.
    ImagesImport {
        /// As for `Serve`.
        config: Option<PathBuf>,
        /// `-` is standard input.
        file: PathBuf,
        /// Stands for the name in the archive, when not empty.
        name: String,
    },
    /// Print the images of the running daemon.
    ImagesList {
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
    let mut config: Option<OsString> = None;
    let mut name: Option<OsString> = None;
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let text = arg.to_string_lossy();
        let (option, value) = match text.split_once('=') {
            Some((option, value)) => (option, Some(OsString::from(value))),
            None => (&*text, None),
        };
        let set = match option {
            "--config" => Some(("--config", "a file", &mut config)),
            "--name" => Some(("--name", "a name", &mut name)),
            _ => None,
        };
        if let Some((option, what, place)) = set {
            let value = value.or_else(|| args.next()).unwrap_or_default();
            set_once(option, what, place, value)?;
        } else {
            words.push(text.into_owned());
        }
    }
    let config = config.map(PathBuf::from);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let ["images", "import", file] = words.as_slice() {
        return Ok(Command::ImagesImport {
            config,
            file: PathBuf::from(file),
            name: name.unwrap_or_default().to_string_lossy().into_owned(),
        });
    }
    if name.is_some() {
        return Err(UsageError(
            "--name belongs to images import only".to_owned(),
        ));
    }
    let command = match words.as_slice() {
        [] | ["serve"] => return Ok(Command::Serve { config }),
        ["check"] => return Ok(Command::Check { config }),
        ["images", "list"] => return Ok(Command::ImagesList { config }),
        ["images", ..] => {
            return Err(UsageError(
                "try `criw images import FILE` or `criw images list`".to_owned(),
            ));
        }
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
            "--config belongs to serve, check and images only".to_owned(),
        )),
    }
}

fn set_once(
    option: &str,
    what: &str,
    place: &mut Option<OsString>,
    value: OsString,
) -> Result<(), UsageError> {
    if value.is_empty() {
        return Err(UsageError(format!("{option} needs {what}")));
    }
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(UsageError(format!("{option} is given twice"))),
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
                Err("--config belongs to serve, check and images only"),
            ),
            (
                &["images", "import", "-", "--name", "a:1", "--config=/a"],
                Ok(Command::ImagesImport {
                    config: Some(PathBuf::from("/a")),
                    file: PathBuf::from("-"),
                    name: "a:1".to_owned(),
                }),
            ),
            (
                &["images", "list"],
                Ok(Command::ImagesList { config: None }),
            ),
            (
                &["images"],
                Err("try `criw images import FILE` or `criw images list`"),
            ),
            (
                &["images", "import", "f", "--name"],
                Err("--name needs a name"),
            ),
            (
                &["images", "list", "--name=a"],
                Err("--name belongs to images import only"),
            ),
        ];
        for (args, expected) in table {
            let got = parse(args.iter().map(OsString::from)).map_err(|error| error.to_string());
            assert_eq!(got, expected.clone().map_err(str::to_owned), "{args:?}");
        }
    }
}
