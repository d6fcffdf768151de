//! Container Device Interface: devices by name, out of the specs that device plugins and
//! vendors' tools leave in `/etc/cdi` and `/var/run/cdi`.
//!
//! Specs are read anew for each container that asks: plugins write them at any time, and few
//! containers have devices. A broken spec costs its own devices only.

mod spec;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use criw_sandbox::model::Edits;

use crate::error::{Invalid, chain, invalid};
use spec::{ContainerEdits, Spec};

/// What the devices of a container bring.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// `KEY=value`.
    pub env: Vec<String>,
    /// Groups of its processes.
    pub gids: Vec<u32>,
    /// The rest.
    pub edits: Edits,
    /// The names, for error texts.
    names: Vec<String>,
}

/// Why a container cannot have its devices.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// It is no name of a CDI device.
    #[error(
        "CDI device {name:?} is not fully qualified: it must look like vendor.com/class=device"
    )]
    Name {
        /// As asked.
        name: String,
    },
    /// No spec has it.
    #[error(
        "CDI device {name:?} is not in any spec of {dirs}{broken}; is its device plugin running?"
    )]
    Unresolved {
        /// As asked.
        name: String,
        /// Where specs are looked for.
        dirs: String,
        /// Specs that could not be read, and why.
        broken: String,
    },
    /// Two specs of one directory have it.
    #[error("CDI device {name:?} stands in two specs of one directory, {} and {}: remove one", one.display(), other.display())]
    Conflict {
        /// As asked.
        name: String,
        /// A file.
        one: PathBuf,
        /// The other one.
        other: PathBuf,
    },
    /// The spec asks for what this daemon does not do.
    #[error("CDI device {name:?} of {}: {why}", file.display())]
    Edits {
        /// As asked.
        name: String,
        /// Its spec.
        file: PathBuf,
        /// What.
        why: String,
    },
}

/// A spec that was read, and how much it counts.
struct Loaded {
    file: PathBuf,
    rank: usize,
    spec: Spec,
}

/// Finds devices by their names.
///
/// # Errors
/// If one of them is not there, or cannot be had as its spec says.
pub fn resolve(names: &[String], dirs: &[PathBuf]) -> Result<Found, CdiError> {
    let (specs, broken) = load(dirs);
    let mut found = Found {
        names: names.to_vec(),
        ..Found::default()
    };
    let mut applied = BTreeSet::new();
    for name in names {
        let (kind, device) =
            qualified(name).ok_or_else(|| CdiError::Name { name: name.clone() })?;
        let Some(loaded) = owner(&specs, name, kind, device)? else {
            return Err(CdiError::Unresolved {
                name: name.clone(),
                dirs: list(dirs.iter().map(|dir| dir.display().to_string())),
                broken: match broken.as_slice() {
                    [] => String::new(),
                    broken => format!(" (not readable: {})", broken.join("; ")),
                },
            });
        };
        let mut apply = |edits: &ContainerEdits| {
            edits.apply(&mut found).map_err(|why| CdiError::Edits {
                name: name.clone(),
                file: loaded.file.clone(),
                why,
            })
        };
        // What all devices of a spec share comes once.
        if applied.insert(loaded.file.clone()) {
            apply(&loaded.spec.container_edits)?;
        }
        for edits in loaded.spec.edits_of(device) {
            apply(edits)?;
        }
    }
    Ok(found)
}

impl Found {
    /// A Wasm container has no device nodes, and nothing runs hooks for it.
    pub fn check_wasm(&self) -> Result<(), Invalid> {
        let edits = &self.edits;
        let has = match (edits.nodes.first(), edits.hooks.keys().next()) {
            (Some(node), _) => format!("the device node {}", node.path),
            (None, Some(moment)) => format!("a {moment} hook"),
            (None, None) => match edits.mounts.iter().find(|mount| !mount.is_bind()) {
                Some(mount) => format!("a mount of type {}", mount.kind),
                None => return Ok(()),
            },
        };
        invalid(format!(
            "CDI devices {} bring {has}, which a Wasm container cannot have: only environment and bind mounts",
            list(self.names.iter().cloned())
        ))
    }
}

fn list(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

/// `vendor.com/class=device`: kind and device.
fn qualified(name: &str) -> Option<(&str, &str)> {
    let (kind, device) = name.split_once('=')?;
    let (vendor, class) = kind.split_once('/')?;
    let word = |text: &str, also: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || also.contains(c))
    };
    let good = word(vendor, "-_.") && word(class, "-_") && word(device, "-_.:");
    good.then_some((kind, device))
}

/// The spec that has a device; a later directory wins.
fn owner<'a>(
    specs: &'a [Loaded],
    name: &str,
    kind: &str,
    device: &str,
) -> Result<Option<&'a Loaded>, CdiError> {
    let has = |loaded: &&Loaded| loaded.spec.kind == kind && loaded.spec.has(device);
    let Some(best) = specs.iter().filter(has).max_by_key(|loaded| loaded.rank) else {
        return Ok(None);
    };
    let same = |loaded: &&Loaded| loaded.rank == best.rank && loaded.file != best.file;
    match specs.iter().filter(has).find(same) {
        None => Ok(Some(best)),
        Some(other) => Err(CdiError::Conflict {
            name: name.to_owned(),
            one: best.file.clone().min(other.file.clone()),
            other: best.file.clone().max(other.file.clone()),
        }),
    }
}

/// Every spec of the directories, and a sentence for each that is broken.
fn load(dirs: &[PathBuf]) -> (Vec<Loaded>, Vec<String>) {
    let (mut specs, mut broken) = (Vec::new(), Vec::new());
    for (rank, dir) in dirs.iter().enumerate() {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            // A node without devices has no such directory.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                broken.push(format!("{}: {error}", dir.display()));
                continue;
            }
        };
        for entry in entries.flatten() {
            let file = entry.path();
            if !is_spec(&file) {
                continue;
            }
            match Spec::read(&file) {
                Ok(spec) => specs.push(Loaded { file, rank, spec }),
                Err(error) => broken.push(format!("{}: {}", file.display(), chain(&*error))),
            }
        }
    }
    broken.sort();
    (specs, broken)
}

fn is_spec(file: &Path) -> bool {
    file.extension()
        .is_some_and(|kind| kind == "json" || kind == "yaml")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two directories of specs; the second one wins.
    fn dirs(root: &Path, files: &[(&str, &str)]) -> Vec<PathBuf> {
        let dirs = ["one", "two"].map(|name| root.join(name));
        for dir in &dirs {
            std::fs::create_dir_all(dir).unwrap();
        }
        for (name, text) in files {
            std::fs::write(root.join(name), text).unwrap();
        }
        dirs.into()
    }

    const GPU: &str = r#"
cdiVersion: "0.6.0"
kind: vendor.com/gpu
containerEdits:
  env: ["SHARED=yes"]
  additionalGids: [44, 0]
devices:
- name: "0"
  containerEdits:
    env: ["GPU=0"]
    deviceNodes: [{path: /dev/gpu0, hostPath: /dev/null, permissions: rw}]
    mounts: [{hostPath: /etc/hostname, containerPath: /gpu/name, options: [ro]}]
- name: all
  containerEdits:
    env: ["GPU=all"]
    hooks: [{hookName: createContainer, path: /bin/true, args: ["true"], timeout: 3}]
"#;

    fn names(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn devices_bring_what_their_specs_say() {
        let root = tempfile::tempdir().unwrap();
        let json = r#"{"cdiVersion":"0.5.0","kind":"vendor.com/net","devices":[
            {"name":"a","containerEdits":{"env":["NET=a"]}}]}"#;
        let dirs = dirs(
            root.path(),
            &[("one/gpu.yaml", GPU), ("two/net.json", json)],
        );
        let asked = names(&["vendor.com/gpu=0", "vendor.com/net=a", "vendor.com/gpu=all"]);
        let found = resolve(&asked, &dirs).unwrap();
        assert_eq!(found.env, ["SHARED=yes", "GPU=0", "NET=a", "GPU=all"]);
        assert_eq!(found.gids, [44]);
        let [node] = found.edits.nodes.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(
            (&*node.path, &*node.kind, node.major, node.minor),
            ("/dev/gpu0", "c", 1, 3)
        );
        assert_eq!(node.permissions, "rw");
        let mount = &found.edits.mounts[0];
        assert_eq!(
            (&*mount.kind, &*mount.container_path),
            ("bind", "/gpu/name")
        );
        assert_eq!(mount.options, ["ro", "bind"]);
        assert_eq!(found.edits.hooks["createContainer"][0].timeout, Some(3));
        assert!(found.check_wasm().unwrap_err().0.contains("/dev/gpu0"));
        let found = resolve(&names(&["vendor.com/gpu=all"]), &dirs).unwrap();
        assert!(
            found
                .check_wasm()
                .unwrap_err()
                .0
                .contains("createContainer hook")
        );
        resolve(&names(&["vendor.com/net=a"]), &dirs)
            .unwrap()
            .check_wasm()
            .unwrap();
        assert_eq!(resolve(&[], &dirs).unwrap(), Found::default());
    }

    #[test]
    fn a_later_directory_wins_and_one_directory_must_not_contradict_itself() {
        let spec = |value: &str| {
            format!(
                "cdiVersion: 0.6.0\nkind: v.com/c\ndevices: [{{name: d, containerEdits: {{env: [\"FROM={value}\"]}}}}]\n"
            )
        };
        let (one, two) = (spec("one"), spec("two"));
        let root = tempfile::tempdir().unwrap();
        let dirs = dirs(root.path(), &[("one/x.yaml", &one), ("two/y.yaml", &two)]);
        let asked = names(&["v.com/c=d"]);
        assert_eq!(resolve(&asked, &dirs).unwrap().env, ["FROM=two"]);
        std::fs::write(root.path().join("two/z.yaml"), &one).unwrap();
        let error = resolve(&asked, &dirs).unwrap_err().to_string();
        assert!(
            error.contains("y.yaml") && error.contains("z.yaml"),
            "{error}"
        );
    }

    #[test]
    fn what_is_not_there_or_not_possible_says_so() {
        let root = tempfile::tempdir().unwrap();
        let device = |name: &str, edits: &str| {
            format!(
                "cdiVersion: 1.0.0\nkind: v.com/{name}\ndevices: [{{name: d, containerEdits: {edits}}}]\n"
            )
        };
        let files = [
            ("one/broken.yaml", "kind: [".to_owned()),
            (
                "one/old.json",
                "{\"kind\":\"v.com/x\",\"devices\":[]}".to_owned(),
            ),
            ("one/ignored.txt", "kind: [".to_owned()),
            ("one/rdt.yaml", device("rdt", "{intelRdt: {closID: x}}")),
            (
                "one/net.yaml",
                device("net", "{netDevices: [{hostInterfaceName: a, name: b}]}"),
            ),
            (
                "one/gone.yaml",
                device("gone", "{deviceNodes: [{path: /dev/no-such-device}]}"),
            ),
            (
                "one/bind.yaml",
                device(
                    "bind",
                    "{mounts: [{hostPath: /no/such/file, containerPath: /x}]}",
                ),
            ),
            (
                "one/hook.yaml",
                device("hook", "{hooks: [{hookName: never, path: /bin/true}]}"),
            ),
            ("one/env.yaml", device("env", "{env: [\"=x\"]}")),
        ];
        let files: Vec<_> = files
            .iter()
            .map(|(name, text)| (*name, text.as_str()))
            .collect();
        let mut dirs = dirs(root.path(), &files);
        dirs.push(root.path().join("not-there"));
        for (name, words) in [
            ("gpu0", &["not fully qualified"][..]),
            ("v.com/gpu", &["not fully qualified"]),
            ("v.com/../x=d", &["not fully qualified"]),
            (
                "v.com/gpu=d",
                &["not in any spec", "broken.yaml", "old.json", "cdiVersion"],
            ),
            ("v.com/rdt=d", &["rdt.yaml", "RDT"]),
            ("v.com/net=d", &["network interfaces"]),
            ("v.com/gone=d", &["/dev/no-such-device"]),
            ("v.com/bind=d", &["/no/such/file"]),
            ("v.com/hook=d", &["\"never\""]),
            ("v.com/env=d", &["\"=x\""]),
        ] {
            let error = resolve(&names(&[name]), &dirs).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{name}: {error}");
            }
            assert!(!error.contains("ignored.txt"), "{error}");
        }
    }
}
