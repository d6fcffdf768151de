//! Network configuration: finding the conflist and reading it.
//!
//! Nothing is cached: one directory listing and one small file cost less than
//! a page fault storm, and an edited file takes effect at once, as the kubelet
//! expects of NetworkReady.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::version::Version;
use crate::error::NotReady;

/// A validated network configuration list.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Conflist {
    pub(crate) file: PathBuf,
    pub(crate) name: String,
    pub(crate) version: Version,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    pub(crate) plugins: Vec<Map<String, Value>>,
}

/// The first network of `conf_dir`, by file name. A broken first file is an
/// error and not skipped: pods must not land in another network by accident.
pub(crate) fn find(conf_dir: &Path) -> Result<Conflist, NotReady> {
    let missing = |why: String| NotReady {
        reason: "NetworkPluginNotReady",
        message: format!(
            "no cni network: {why} {}; install a pod network (it writes a .conflist there), or set [net] mode = \"builtin\"",
            conf_dir.display()
        ),
    };
    let entries = match std::fs::read_dir(conf_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(missing("there is no directory".into()));
        }
        Err(error) => return Err(missing(format!("{error} when listing"))),
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| is_configuration(p))
        .collect();
    files.sort();
    let Some(file) = files.into_iter().next() else {
        return Err(missing("no .conflist, .conf or .json file in".into()));
    };
    let invalid = |why: String| NotReady {
        reason: "InvalidCNIConfig",
        message: format!("cni configuration {} is not usable: {why}", file.display()),
    };
    let text = std::fs::read(&file).map_err(|error| invalid(error.to_string()))?;
    parse(&text, &file).map_err(invalid)
}

fn is_configuration(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e == "conflist" || e == "conf" || e == "json")
}

/// Reads a list, or a single plugin's configuration as a list of one.
pub(crate) fn parse(text: &[u8], file: &Path) -> Result<Conflist, String> {
    let mut top: Map<String, Value> =
        serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let name = match top.get("name") {
        Some(Value::String(name)) => name.clone(),
        _ => return Err("it has no \"name\"".into()),
    };
    if !is_network_name(&name) {
        return Err(format!(
            "the name {name:?} may only have letters, digits, '_', '.', '-' and must begin with a letter or digit"
        ));
    }
    let version = newest_version(&top)?;
    let disable_check = flag(&top, "disableCheck")?;
    let disable_gc = flag(&top, "disableGC")?;
    let plugins = match top.remove("plugins") {
        Some(Value::Array(list)) => list
            .into_iter()
            .map(|p| match p {
                Value::Object(plugin) => Ok(plugin),
                other => Err(format!("\"plugins\" holds {other}, which is not an object")),
            })
            .collect::<Result<Vec<_>, _>>()?,
        Some(_) => return Err("\"plugins\" is not a list".into()),
        None => vec![top],
    };
    if plugins.is_empty() {
        return Err("\"plugins\" is empty".into());
    }
    for plugin in &plugins {
        match plugin.get("type") {
            Some(Value::String(kind)) if is_plugin_name(kind) => {}
            Some(Value::String(kind)) => {
                return Err(format!("plugin type {kind:?} is not a file name"));
            }
            _ => return Err("a plugin has no \"type\"".into()),
        }
    }
    Ok(Conflist {
        file: file.to_owned(),
        name,
        version,
        disable_check,
        disable_gc,
        plugins,
    })
}

/// `cniVersions` (1.1) lets a list offer several; the newest that we speak counts.
fn newest_version(top: &Map<String, Value>) -> Result<Version, String> {
    let mut offered: Vec<String> = Vec::new();
    match top.get("cniVersion") {
        Some(Value::String(version)) => offered.push(version.clone()),
        Some(_) => return Err("\"cniVersion\" is not a string".into()),
        None => {}
    }
    match top.get("cniVersions") {
        Some(Value::Array(list)) => {
            offered.extend(list.iter().filter_map(|v| Some(v.as_str()?.to_owned())))
        }
        Some(_) => return Err("\"cniVersions\" is not a list".into()),
        None => {}
    }
    if offered.is_empty() {
        // The specification's meaning of an absent version.
        offered.push("0.1.0".into());
    }
    offered
        .iter()
        .filter_map(|v| Version::supported(v))
        .max()
        .ok_or_else(|| {
            format!(
                "cniVersion {} is not supported; supported are {}",
                offered.join(", "),
                Version::all()
            )
        })
}

/// The specification allows the strings "true" and "false" too.
fn flag(top: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match top.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("{key:?} is {other}, not true or false")),
    }
}

fn is_network_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// A type with a separator could run any file of the host.
fn is_plugin_name(kind: &str) -> bool {
    !kind.is_empty() && kind != "." && kind != ".." && !kind.contains('/') && !kind.contains('\0')
}

/// The plugin's `type`, which `parse` has checked.
pub(crate) fn plugin_type(plugin: &Map<String, Value>) -> &str {
    plugin
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The first directory that holds an executable file of that name.
pub(crate) fn find_plugin(kind: &str, bin_dirs: &[PathBuf]) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    if !is_plugin_name(kind) {
        return None;
    }
    bin_dirs.iter().map(|dir| dir.join(kind)).find(|path| {
        std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Conflist, String> {
        parse(text.as_bytes(), Path::new("10-x.conflist"))
    }

    #[test]
    fn good_lists() {
        for (text, version, plugins) in [
            (
                r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#,
                "1.0.0",
                2,
            ),
            (
                r#"{"cniVersion":"0.3.1","name":"n","type":"ptp"}"#,
                "0.3.1",
                1,
            ),
            (r#"{"name":"n","type":"ptp"}"#, "0.1.0", 1),
            (
                r#"{"cniVersion":"1.0.0","cniVersions":["0.4.0","1.1.0","9.0.0"],"name":"n","plugins":[{"type":"a"}]}"#,
                "1.1.0",
                1,
            ),
        ] {
            let list = read(text).unwrap();
            assert_eq!(
                (list.version.to_string().as_str(), list.plugins.len()),
                (version, plugins),
                "{text}"
            );
            assert!(!list.disable_check);
        }
        let list = read(r#"{"cniVersion":"1.1.0","name":"n","disableCheck":"TRUE","disableGC":true,"plugins":[{"type":"a"}]}"#).unwrap();
        assert!(list.disable_check && list.disable_gc);
    }

    #[test]
    fn bad_lists_say_why() {
        for (text, why) in [
            ("{", "EOF"),
            ("[]", "invalid type"),
            (r#"{"plugins":[{"type":"a"}]}"#, "no \"name\""),
            (
                r#"{"name":"../x","plugins":[{"type":"a"}]}"#,
                "letters, digits",
            ),
            (r#"{"name":"n","plugins":[]}"#, "empty"),
            (r#"{"name":"n","plugins":{}}"#, "not a list"),
            (r#"{"name":"n","plugins":[1]}"#, "not an object"),
            (r#"{"name":"n","plugins":[{}]}"#, "no \"type\""),
            (r#"{"name":"n"}"#, "no \"type\""),
            (r#"{"name":"n","type":"../../bin/sh"}"#, "not a file name"),
            (
                r#"{"name":"n","cniVersion":"2.0.0","type":"a"}"#,
                "supported are 0.1.0",
            ),
            (r#"{"name":"n","cniVersion":1,"type":"a"}"#, "not a string"),
            (
                r#"{"name":"n","disableGC":3,"type":"a"}"#,
                "not true or false",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn the_first_file_by_name_counts_and_a_broken_one_is_not_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let gone = find(&dir.path().join("none")).unwrap_err();
        assert!(gone.message.contains("there is no directory"), "{gone}");
        std::fs::write(dir.path().join("00-readme.txt"), "x").unwrap();
        let empty = find(dir.path()).unwrap_err();
        assert_eq!(empty.reason, "NetworkPluginNotReady");
        assert!(
            empty.message.contains(&dir.path().display().to_string()),
            "{empty}"
        );
        std::fs::write(
            dir.path().join("20-b.conflist"),
            r#"{"name":"b","plugins":[{"type":"x"}]}"#,
        )
        .unwrap();
        assert_eq!(find(dir.path()).unwrap().name, "b");
        std::fs::write(dir.path().join("10-a.conf"), r#"{"name":"a","type":"x"}"#).unwrap();
        assert_eq!(find(dir.path()).unwrap().name, "a");
        std::fs::write(dir.path().join("10-a.conf"), "{").unwrap();
        let broken = find(dir.path()).unwrap_err();
        assert_eq!(broken.reason, "InvalidCNIConfig");
        assert!(broken.message.contains("10-a.conf"), "{broken}");
    }
}
