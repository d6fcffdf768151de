//! What a container runs: argv, environment and working directory out of the pod's
//! and the image's wishes.

use criw_proto::v1::KeyValue;

use crate::error::{Invalid, invalid};

/// PATH when neither image nor pod sets one.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The pod's wishes for argv.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// Replaces ENTRYPOINT and CMD.
    pub command: &'a [String],
    /// Replaces CMD.
    pub args: &'a [String],
}

/// The image's wishes for argv.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// ENTRYPOINT
    pub entrypoint: &'a [String],
    /// CMD
    pub cmd: &'a [String],
    /// Stands for a missing ENTRYPOINT: the module of a Wasm artifact has no other name.
    pub implied: Option<&'a str>,
}

/// Kubernetes' rules: a command ignores the image, arguments alone follow its entrypoint.
pub fn argv(asked: Asked<'_>, image: Image<'_>) -> Result<Vec<String>, Invalid> {
    let implied: Vec<String> = match image.implied {
        Some(name) if image.entrypoint.is_empty() && image.cmd.is_empty() => vec![name.to_owned()],
        _ => Vec::new(),
    };
    let entrypoint = if image.entrypoint.is_empty() {
        implied.as_slice()
    } else {
        image.entrypoint
    };
    let argv: Vec<String> = match (asked.command, asked.args) {
        ([], []) => [entrypoint, image.cmd].concat(),
        ([], args) => [entrypoint, args].concat(),
        (command, args) => [command, args].concat(),
    };
    match argv.first() {
        None => invalid(
            "no command: neither the container (command, args) nor its image (ENTRYPOINT, CMD) names one",
        ),
        Some(first) if first.is_empty() => {
            invalid("the command is an empty string; name a program")
        }
        Some(_) => match argv.iter().find(|word| word.contains('\0')) {
            Some(word) => invalid(format!("argument {word:?} contains a NUL byte")),
            None => Ok(argv),
        },
    }
}

/// Puts `KEY=value` lines in the place of those with the same key, or at the end.
pub fn set(env: &mut Vec<String>, lines: &[String]) {
    for line in lines {
        let key = line.split_once('=').map_or(line.as_str(), |(key, _)| key);
        let same = |old: &&mut String| old.split_once('=').is_some_and(|(old, _)| old == key);
        match env.iter_mut().find(same) {
            Some(old) => old.clone_from(line),
            None => env.push(line.clone()),
        }
    }
}

/// `KEY=value` lines where later ones win but keep the first one's place.
pub fn env(
    defaults: &[(&str, &str)],
    image: &[String],
    asked: &[KeyValue],
) -> Result<Vec<String>, Invalid> {
    let mut merged: Vec<(String, String)> = Vec::new();
    let mut set = |key: &str, value: &str| match merged.iter_mut().find(|(k, _)| k == key) {
        Some((_, old)) => value.clone_into(old),
        None => merged.push((key.to_owned(), value.to_owned())),
    };
    for (key, value) in defaults {
        set(key, value);
    }
    for line in image {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        if !key.is_empty() {
            set(key, value);
        }
    }
    for KeyValue { key, value } in asked {
        if key.is_empty() || key.contains(['=', '\0']) {
            return invalid(format!("environment variable name {key:?} is not usable"));
        }
        match std::str::from_utf8(value) {
            Ok(value) if !value.contains('\0') => set(key, value),
            Ok(_) => {
                return invalid(format!(
                    "the value of environment variable {key:?} contains a NUL byte"
                ));
            }
            Err(_) => {
                return invalid(format!(
                    "the value of environment variable {key:?} is not valid UTF-8"
                ));
            }
        }
    }
    Ok(merged
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect())
}

/// The value of a key in `KEY=value` lines.
pub fn lookup<'a>(env: &'a [String], key: &str) -> Option<&'a str> {
    env.iter()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

/// The pod's working directory, else the image's, else `/`; made absolute.
pub fn cwd(asked: &str, image: &str) -> String {
    let chosen = if asked.is_empty() { image } else { asked };
    if chosen.starts_with('/') {
        chosen.to_owned()
    } else {
        format!("/{chosen}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn command_and_args_against_entrypoint_and_cmd() {
        let table = [
            // command, args, entrypoint, cmd, implied, expected
            ("", "", "e", "c", None, "e c"),
            ("", "", "", "c", None, "c"),
            ("", "", "e", "", None, "e"),
            ("", "a", "e", "c", None, "e a"),
            ("", "a", "", "c", None, "a"),
            ("x", "", "e", "c", None, "x"),
            ("x", "a", "e", "c", None, "x a"),
            ("", "", "", "", Some("m"), "m"),
            ("", "a b", "", "", Some("m"), "m a b"),
            ("x", "a", "", "", Some("m"), "x a"),
            ("", "", "e", "", Some("m"), "e"),
            ("", "", "", "", None, ""),
        ];
        for (command, args, entrypoint, cmd, implied, expected) in table {
            let got = argv(
                Asked {
                    command: &words(command),
                    args: &words(args),
                },
                Image {
                    entrypoint: &words(entrypoint),
                    cmd: &words(cmd),
                    implied,
                },
            );
            match expected {
                "" => assert!(got.unwrap_err().0.contains("no command")),
                expected => assert_eq!(got.unwrap(), words(expected)),
            }
        }
    }

    #[test]
    fn unusable_words_are_refused() {
        let none = Image {
            entrypoint: &[],
            cmd: &[],
            implied: None,
        };
        for bad in [vec![String::new()], vec!["a".to_owned(), "b\0".to_owned()]] {
            let asked = Asked {
                command: &bad,
                args: &[],
            };
            assert!(argv(asked, none).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn environment_merges_in_order() {
        let value = |key: &str, value: &[u8]| KeyValue {
            key: key.to_owned(),
            value: value.to_vec(),
        };
        let image = words("PATH=/bin A=1 B=2 =x C");
        let merged = env(
            &[("HOSTNAME", "pod"), ("PATH", "/default")],
            &image,
            &[value("A", b"9"), value("D", b"a=b"), value("A", b"10")],
        )
        .unwrap();
        assert_eq!(merged, words("HOSTNAME=pod PATH=/bin A=10 B=2 C= D=a=b"));
        assert_eq!(lookup(&merged, "A"), Some("10"));
        assert_eq!(lookup(&merged, "PAT"), None);
        for (key, bytes) in [
            ("RAW", &[0xff][..]),
            ("NUL", b"a\0"),
            ("", b"x"),
            ("A=B", b"x"),
        ] {
            let error = env(&[], &[], &[value(key, bytes)]).unwrap_err().0;
            assert!(error.contains(&format!("{key:?}")), "{error}");
        }
    }

    #[test]
    fn working_directories_are_absolute() {
        for (asked, image, expected) in [
            ("", "", "/"),
            ("", "/srv", "/srv"),
            ("/w", "/srv", "/w"),
            ("", "srv", "/srv"),
        ] {
            assert_eq!(cwd(asked, image), expected);
        }
    }
}
