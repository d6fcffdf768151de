//! Making, removing and naming files and directories.

use crate::context::{about, fail, reason, usage, Context, Outcome};
use crate::{files, options, sys};
use std::io;

const NO_OPERAND: &str = "wants a file";

pub(super) fn mkdir(context: &mut Context) -> Outcome {
    let options = options::parse(
        &context.args,
        "pvm:",
        &[("parents", 'p'), ("verbose", 'v'), ("mode", 'm')],
    )?;
    if options.rest.is_empty() {
        return usage("wants a directory");
    }
    let mut code = 0;
    for name in &options.rest {
        let path = context.path(name);
        let result = match options.has('p') {
            true => make_all(path.trim_end_matches('/')),
            false => std::fs::create_dir(path.trim_end_matches('/')),
        };
        match result {
            Ok(()) if options.has('v') => writeln!(context.output, "created directory: '{name}'")?,
            Ok(()) => {}
            Err(error) => {
                context.warn(format!(
                    "can't create directory '{name}': {}",
                    reason(&error)
                ));
                code = 1;
            }
        }
    }
    Ok(code)
}

/// From the first missing one on: a parent that we may not look into must not fail.
pub(super) fn make_all(path: &str) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(data) if data.is_dir() => return Ok(()),
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "File exists")),
        Err(_) => {}
    }
    let parent = super::basic::parent(path);
    if parent != "/" && parent != "." {
        make_all(parent)?;
    }
    match std::fs::create_dir(path) {
        // another was quicker
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

pub(super) fn rmdir(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "pv", &[("parents", 'p')])?;
    if options.rest.is_empty() {
        return usage("wants a directory");
    }
    let mut code = 0;
    for name in &options.rest {
        let mut name = name.as_str();
        loop {
            if let Err(error) = std::fs::remove_dir(context.path(name).trim_end_matches('/')) {
                context.warn(format!("'{name}': {}", reason(&error)));
                code = 1;
                break;
            }
            name = super::basic::parent(name);
            if !options.has('p') || name == "." || name == "/" {
                break;
            }
        }
    }
    Ok(code)
}

/// Removes a tree without following links. All errors are told, each with its file.
pub(super) fn remove_tree(path: &str, failed: &mut dyn FnMut(&str, &io::Error)) {
    // a stack of ours: a deep tree must not take the program's
    let mut work = vec![(path.to_owned(), false)];
    while let Some((path, emptied)) = work.pop() {
        let directory = files::lookup(&path).map_or(false, |data| data.is_dir());
        let result = if !directory {
            std::fs::remove_file(&path)
        } else if emptied {
            std::fs::remove_dir(&path)
        } else {
            match files::list(&path) {
                Ok(names) => {
                    work.push((path.clone(), true));
                    work.extend(names.iter().map(|name| (files::join(&path, name), false)));
                    Ok(())
                }
                Err(error) => Err(error),
            }
        };
        if let Err(error) = result {
            failed(&path, &error);
        }
    }
}

pub(super) fn rm(context: &mut Context) -> Outcome {
    let long = [
        ("recursive", 'r'),
        ("force", 'f'),
        ("verbose", 'v'),
        ("dir", 'd'),
    ];
    let options = options::parse(&context.args, "rRfivd", &long)?;
    let force = options.has('f');
    let recursive = options.has('r') || options.has('R');
    if options.rest.is_empty() {
        return if force { Ok(0) } else { usage(NO_OPERAND) };
    }
    let mut code = 0;
    for name in &options.rest {
        let base = files::base_name(name);
        if base == "." || base == ".." || files::logical(&context.directory, name) == "/" {
            context.warn(format!("refused to remove '{name}'"));
            code = 1;
            continue;
        }
        let path = context.path(name).trim_end_matches('/').to_owned();
        let data = match files::lookup(&path) {
            Ok(data) => data,
            Err(error) if force && error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                context.warn(format!("can't remove '{name}': {}", reason(&error)));
                code = 1;
                continue;
            }
        };
        if data.is_dir() && !recursive && !options.has('d') {
            context.warn(format!("can't remove '{name}': Is a directory"));
            code = 1;
            continue;
        }
        if data.is_dir() && !recursive {
            if let Err(error) = std::fs::remove_dir(&path) {
                context.warn(format!("can't remove '{name}': {}", reason(&error)));
                code = 1;
            }
            continue;
        }
        let mut errors = Vec::new();
        remove_tree(&path, &mut |path, error| {
            errors.push(format!("can't remove '{path}': {}", reason(error)))
        });
        for error in &errors {
            context.warn(error);
            code = 1;
        }
        if options.has('v') && errors.is_empty() {
            writeln!(context.output, "removed '{name}'")?;
        }
    }
    Ok(code)
}

pub(super) fn touch(context: &mut Context) -> Outcome {
    let long = [("no-create", 'c'), ("date", 'd'), ("reference", 'r')];
    let options = options::parse(&context.args, "camd:r:t:", &long)?;
    if options.rest.is_empty() {
        return usage(NO_OPERAND);
    }
    let time = match (
        options.value('d').or_else(|| options.value('t')),
        options.value('r'),
    ) {
        (Some(text), _) => match super::date::parse(text) {
            Some(seconds) => (seconds, 0),
            None => return fail(format!("invalid date '{text}'")),
        },
        (None, Some(file)) => match std::fs::metadata(context.path(file)) {
            Ok(data) => modified(&data),
            Err(error) => return fail(about(file, &error)),
        },
        (None, None) => super::date::now(),
    };
    let mut code = 0;
    for name in &options.rest {
        let path = context.path(name);
        let exists = std::fs::metadata(&path).is_ok();
        if !exists && options.has('c') {
            continue;
        }
        let made = match exists {
            true => Ok(()),
            false => std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(&path)
                .map(drop),
        };
        let plain = !exists && !options.has('d') && !options.has('t') && !options.has('r');
        let result = made.and_then(|()| {
            if plain {
                Ok(())
            } else {
                sys::set_times(&path, time.0, time.1)
            }
        });
        if let Err(error) = result {
            context.warn(about(name, &error));
            code = 1;
        }
    }
    Ok(code)
}

/// Modification time, in seconds since 1970 and nanoseconds.
pub(super) fn modified(data: &std::fs::Metadata) -> (i64, u32) {
    let time = data.modified().unwrap_or(std::time::UNIX_EPOCH);
    match time.duration_since(std::time::UNIX_EPOCH) {
        Ok(since) => (since.as_secs() as i64, since.subsec_nanos()),
        Err(before) => (-(before.duration().as_secs() as i64), 0),
    }
}

pub(super) fn ln(context: &mut Context) -> Outcome {
    let options = options::parse(
        &context.args,
        "sfnvT",
        &[("symbolic", 's'), ("force", 'f'), ("no-dereference", 'n')],
    )?;
    let (targets, place) = match options.rest.as_slice() {
        [] => return usage("wants: ln [-s] target name"),
        [target] => (std::slice::from_ref(target), "."),
        [targets @ .., place] => (targets, place.as_str()),
    };
    let place_path = context.path(place);
    let link = files::lookup(&place_path).map_or(false, |data| data.file_type().is_symlink());
    let into = std::fs::metadata(&place_path).map_or(false, |data| data.is_dir())
        && !options.has('T')
        && !(options.has('n') && link);
    if targets.len() > 1 && !into {
        return fail(format!("'{place}' is not a directory"));
    }
    let mut code = 0;
    for target in targets {
        let path = if into {
            files::join(&place_path, files::base_name(target))
        } else {
            place_path.clone()
        };
        if options.has('f') {
            let _ = std::fs::remove_file(&path);
        }
        let result = match options.has('s') {
            true if target.starts_with('/') => {
                // preview 1 has no absolute links; the relative one leads to the same file
                sys::symlink(
                    &relative(super::basic::parent(&files::logical("/", &path)), target),
                    &path,
                )
            }
            true => sys::symlink(target, &path),
            false => std::fs::hard_link(context.path(target), &path),
        };
        if let Err(error) = result {
            context.warn(format!(
                "can't link '{path}' to '{target}': {}",
                reason(&error)
            ));
            code = 1;
        }
    }
    Ok(code)
}

/// An absolute path as seen from a directory.
pub(super) fn relative(directory: &str, target: &str) -> String {
    let from: Vec<&str> = directory
        .split('/')
        .filter(|part| !part.is_empty())
        .collect();
    let to: Vec<&str> = target.split('/').filter(|part| !part.is_empty()).collect();
    let same = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let mut parts = vec![".."; from.len() - same];
    parts.extend(&to[same..]);
    if parts.is_empty() {
        return ".".to_owned();
    }
    parts.join("/")
}

pub(super) fn readlink(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "fnemqsvz", &[("canonicalize", 'f')])?;
    if options.rest.is_empty() {
        return usage(NO_OPERAND);
    }
    let end = if options.has('n') { "" } else { "\n" };
    let mut code = 0;
    for name in &options.rest {
        let path = context.path(name);
        let target = match options.last_of("fem") {
            Some(mode) => canonical(&path, mode != 'e').map(Some),
            None => {
                std::fs::read_link(&path).map(|target| Some(target.to_string_lossy().into_owned()))
            }
        };
        match target {
            Ok(Some(target)) => write!(context.output, "{target}{end}")?,
            _ => code = 1,
        }
    }
    Ok(code)
}

pub(super) fn realpath(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "emqsLPz", &[])?;
    if options.rest.is_empty() {
        return usage(NO_OPERAND);
    }
    let mut code = 0;
    for name in &options.rest {
        match canonical(&context.path(name), options.has('m')) {
            Ok(path) => writeln!(context.output, "{path}")?,
            Err(error) => {
                context.warn(about(name, &error));
                code = 1;
            }
        }
    }
    Ok(code)
}

/// A path without links and dots. The last part may be missing, more of them with `missing`.
fn canonical(path: &str, missing: bool) -> io::Result<String> {
    let mut done: Vec<String> = Vec::new();
    let mut work: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    let mut links = 0;
    while let Some(part) = work.pop() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                done.pop();
                continue;
            }
            _ => {}
        }
        let here = format!("/{}/{part}", done.join("/"));
        match files::lookup(&here) {
            Ok(data) if data.file_type().is_symlink() => {
                links += 1;
                if links > 40 {
                    return Err(io::Error::new(
                        io::ErrorKind::Other,
                        "Too many levels of symbolic links",
                    ));
                }
                let target = std::fs::read_link(&here)?.to_string_lossy().into_owned();
                if target.starts_with('/') {
                    done.clear();
                }
                work.extend(target.split('/').rev().map(str::to_owned));
            }
            Ok(_) => done.push(part),
            Err(error)
                if missing
                    || (error.kind() == io::ErrorKind::NotFound
                        && work.iter().all(String::is_empty)) =>
            {
                done.push(part)
            }
            Err(error) => return Err(error),
        }
    }
    Ok(format!("/{}", done.join("/")))
}

/// Modes do not exist in WASI. What only asks for more than nothing holds already, so
/// `chmod +x script` of an install script succeeds; what would protect a file must not seem to.
pub(super) fn chmod(context: &mut Context) -> Outcome {
    let words: Vec<String> = context
        .args
        .iter()
        .filter(|word| !matches!(word.as_str(), "-R" | "-v" | "-c" | "-f" | "--"))
        .cloned()
        .collect();
    let (mode, names) = match words.split_first() {
        Some((mode, names)) if !names.is_empty() => (mode.as_str(), names),
        _ => return usage("wants: chmod mode file"),
    };
    let adds = mode.split(',').all(|clause| {
        let rest = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        rest.len() > 1
            && rest.starts_with('+')
            && rest[1..].chars().all(|letter| "rwxX".contains(letter))
    });
    if !adds {
        return fail("WASI has no mode bits: nothing was changed (only chmod +x and the like pass, as nothing forbids execution)");
    }
    let mut code = 0;
    for name in names {
        if let Err(error) = std::fs::metadata(context.path(name)) {
            context.warn(about(name, &error));
            code = 1;
        }
    }
    Ok(code)
}

pub(super) fn chown(_: &mut Context) -> Outcome {
    fail("WASI has no owners of files: nothing was changed")
}

#[cfg(test)]
mod tests {
    use super::relative;
    use crate::context::testing::{run, Room};

    #[test]
    fn files_are_made_and_removed() {
        let room = Room::new();
        assert_eq!(room.output("mkdir -p a/b/c"), "");
        assert_eq!(room.output("mkdir -p a/b/c"), "");
        assert_eq!(
            room.run("mkdir a", "").2,
            "mkdir: can't create directory 'a': File exists\n"
        );
        room.output("touch a/f");
        room.output("touch -d @100 a/f");
        assert_eq!(room.output("stat -c %Y a/f"), "100\n");
        assert_eq!(
            room.run("rm a", "").2,
            "rm: can't remove 'a': Is a directory\n"
        );
        assert_eq!(room.run("rmdir a", "").0, 1);
        room.output("ln -s a/f link");
        assert_eq!(room.output("readlink link"), "a/f\n");
        assert_eq!(room.output("readlink -f link"), format!("{}/a/f\n", room.0));
        room.output(&format!("ln -sf {}/a/f link", room.0));
        assert_eq!(room.output("readlink link"), "a/f\n");
        room.output("ln a/f hard");
        room.output("rm -rf a none");
        assert_eq!(room.output("ls"), "hard\nlink\n");
        room.output("rm link hard");
        room.output("mkdir -p x/y");
        room.output("rmdir -p x/y");
        assert_eq!(room.output("ls -A"), "");
    }

    #[test]
    fn a_link_is_removed_and_not_what_it_names() {
        let room = Room::new();
        room.output("mkdir d");
        room.write("d/f", "x");
        room.output("ln -s d link");
        room.output("rm -r link");
        assert_eq!(room.read("d/f"), "x");
    }

    #[test]
    fn paths_are_seen_from_directories() {
        for (directory, target, expected) in [
            ("/", "/a", "a"),
            ("/a", "/b/c", "../b/c"),
            ("/a/b", "/a/c", "../c"),
            ("/a", "/a", "."),
            ("/a/b", "/", "../.."),
        ] {
            assert_eq!(relative(directory, target), expected);
        }
    }

    #[test]
    fn wrong_use_is_told() {
        let room = Room::new();
        room.write("f", "");
        for command in [
            "mkdir",
            "mkdir f/x",
            "rm",
            "rm none",
            "rm .",
            "rm -rf /",
            "rm -rf ..",
            "rmdir",
            "rmdir f",
            "touch",
            "touch none/x",
            "touch -d nonsense f",
            "touch -r none f",
            "ln",
            "ln a b c",
            "ln none x",
            "readlink f",
            "readlink",
            "realpath none/x",
            "realpath",
            "chmod",
            "chmod 600 f",
            "chmod u+s f",
            "chmod +x none",
            "chown root f",
        ] {
            assert_eq!(room.run(command, "").0, 1, "{command}");
        }
        assert_eq!(room.run("chmod +x f", "").0, 0);
        assert_eq!(run("rm -f", "").0, 0);
    }
}
