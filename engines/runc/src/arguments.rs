//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// Be a shim: join the cgroups and serve the socket at descriptor 3.
    Serve {
        /// One directory for each hierarchy.
        cgroups: Vec<PathBuf>,
    },
    /// Remove a container whose shim died.
    Delete {
        binary: PathBuf,
        root: PathBuf,
        id: String,
    },
}

const USAGE: &str = "usage: criw-shim-runc --id ID [--cgroup DIRECTORY]...   (started by criw, socket at descriptor 3)
       criw-shim-runc delete --root DIRECTORY --binary RUNC ID";

/// The error is what to print.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Arguments, String> {
    let mut arguments = arguments.peekable();
    let delete = arguments.next_if(|first| first == "delete").is_some();
    let (mut id, mut cgroups, mut root, mut binary) = (None, Vec::new(), None, None);
    while let Some(argument) = arguments.next() {
        let name = argument.to_string_lossy().into_owned();
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| format!("{name} needs a value\n{USAGE}"))
        };
        match (delete, name.as_str()) {
            (false, "--id") => id = Some(value()?),
            (false, "--cgroup") => cgroups.push(value()?.into()),
            (true, "--root") => root = Some(value()?.into()),
            (true, "--binary") => binary = Some(value()?.into()),
            (true, _) if !name.starts_with('-') && id.is_none() => id = Some(argument),
            _ => return Err(format!("unknown argument {name}\n{USAGE}")),
        }
    }
    let id = id.map(|id| id.to_string_lossy().into_owned());
    match (delete, id, root, binary) {
        // The id is for those who look at the process list.
        (false, Some(_), ..) => Ok(Arguments::Serve { cgroups }),
        (true, Some(id), Some(root), Some(binary)) => Ok(Arguments::Delete { binary, root, id }),
        _ => Err(format!("an argument is missing\n{USAGE}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let delete = || Arguments::Delete {
            binary: "/x/runc".into(),
            root: "/r".into(),
            id: "c1".into(),
        };
        for (line, expected) in [
            ("--id c1", Some(Arguments::Serve { cgroups: vec![] })),
            (
                "--cgroup /a --id c1 --cgroup /b",
                Some(Arguments::Serve {
                    cgroups: vec!["/a".into(), "/b".into()],
                }),
            ),
            ("delete --root /r --binary /x/runc c1", Some(delete())),
            ("delete c1 --binary /x/runc --root /r", Some(delete())),
            ("", None),
            ("--id", None),
            ("--cgroup /a", None),
            ("delete", None),
            ("delete --root /r c1", None),
            ("delete --root /r --binary b", None),
            ("delete --root /r --binary b c1 c2", None),
            ("delete --root /r --binary b --force c1", None),
            ("--id c1 --root /r", None),
        ] {
            let words = line.split_whitespace().map(OsString::from);
            assert_eq!(parse(words).ok(), expected, "{line}");
        }
    }
}
