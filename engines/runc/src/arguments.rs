//! The command line of the sub-command; a shim's own is read by the frame.

use std::ffi::OsString;
use std::path::PathBuf;

/// `delete`: remove a container whose shim died.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Delete {
    pub(crate) binary: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) id: String,
}

const USAGE: &str = "usage: criw-shim-runc --id ID   (started by criw, socket at descriptor 3)
       criw-shim-runc delete --root DIRECTORY --binary RUNC ID";

/// `None` when it is a shim's command line. The error is what to print.
pub(crate) fn delete(mut words: impl Iterator<Item = OsString>) -> Result<Option<Delete>, String> {
    if words.next().is_none_or(|first| first != "delete") {
        return Ok(None);
    }
    let mut delete = Delete::default();
    while let Some(word) = words.next() {
        let name = word.to_string_lossy().into_owned();
        let mut value = || {
            let value = words.next().map(PathBuf::from);
            value.ok_or_else(|| format!("{name} needs a value\n{USAGE}"))
        };
        match name.as_str() {
            "--root" => delete.root = value()?,
            "--binary" => delete.binary = value()?,
            _ if !name.starts_with('-') && delete.id.is_empty() => delete.id = name,
            _ => return Err(format!("unknown argument {name}\n{USAGE}")),
        }
    }
    let Delete { binary, root, id } = &delete;
    if binary.as_os_str().is_empty() || root.as_os_str().is_empty() || id.is_empty() {
        return Err(format!("an argument is missing\n{USAGE}"));
    }
    Ok(Some(delete))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        let good = || {
            Ok(Some(Delete {
                binary: "/x/runc".into(),
                root: "/r".into(),
                id: "c1".into(),
            }))
        };
        for (line, expected) in [
            ("--id c1", Ok(None)),
            ("", Ok(None)),
            ("delete --root /r --binary /x/runc c1", good()),
            ("delete c1 --binary /x/runc --root /r", good()),
            ("delete", Err(())),
            ("delete --root", Err(())),
            ("delete --root /r c1", Err(())),
            ("delete --root /r --binary b", Err(())),
            ("delete --root /r --binary b c1 c2", Err(())),
            ("delete --root /r --binary b --force c1", Err(())),
        ] {
            let words = line.split_whitespace().map(OsString::from);
            assert_eq!(delete(words).map_err(drop), expected, "{line}");
        }
    }
}
