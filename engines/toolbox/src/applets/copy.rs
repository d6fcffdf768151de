//! `cp` and `mv`.

use crate::context::{fail, reason, usage, Context, Outcome};
use crate::{files, options, sys};
use std::io;

struct Copy {
    recursive: bool,
    times: bool,
    /// links are copied as links
    links: bool,
    force: bool,
    verbose: bool,
    keep: bool,
    update: bool,
    errors: Vec<String>,
    done: Vec<String>,
}

impl Copy {
    fn failed(&mut self, what: &str, error: &io::Error) {
        self.errors.push(format!("{what}: {}", reason(error)));
    }

    /// Copies a tree; what cannot be copied is told, the rest is.
    fn tree(&mut self, from: &str, to: &str) {
        let mut work = vec![(from.to_owned(), to.to_owned())];
        // times of directories last: what is put into them changes them
        let mut directories = Vec::new();
        while let Some((from, to)) = work.pop() {
            let data = if self.links {
                files::lookup(&from)
            } else {
                std::fs::metadata(&from)
            };
            let data = match data {
                Ok(data) => data,
                Err(error) => {
                    self.failed(&format!("can't stat '{from}'"), &error);
                    continue;
                }
            };
            if data.file_type().is_symlink() {
                let result = std::fs::read_link(&from).and_then(|target| {
                    if files::lookup(&to).is_ok() {
                        std::fs::remove_file(&to)?;
                    }
                    sys::symlink(&target.to_string_lossy(), &to)
                });
                if let Err(error) = result {
                    self.failed(&format!("can't copy link '{from}' to '{to}'"), &error);
                }
            } else if data.is_dir() {
                if !self.recursive {
                    self.errors
                        .push(format!("-r not given, '{from}' is a directory"));
                    continue;
                }
                if let Err(error) = std::fs::create_dir(&to) {
                    if error.kind() != io::ErrorKind::AlreadyExists {
                        self.failed(&format!("can't create directory '{to}'"), &error);
                        continue;
                    }
                }
                match files::list(&from) {
                    Ok(names) => work.extend(
                        names
                            .iter()
                            .map(|name| (files::join(&from, name), files::join(&to, name))),
                    ),
                    Err(error) => self.failed(&format!("can't read '{from}'"), &error),
                }
                directories.push((to, data));
                continue;
            } else {
                self.file(&from, &to, &data);
            }
            self.done.push(format!("'{from}' -> '{to}'"));
        }
        if self.times {
            for (to, data) in directories.iter().rev() {
                let (seconds, nanoseconds) = super::file::modified(data);
                if let Err(error) = sys::set_times(to, seconds, nanoseconds) {
                    self.failed(&format!("can't set the time of '{to}'"), &error);
                }
            }
        }
    }

    fn file(&mut self, from: &str, to: &str, data: &std::fs::Metadata) {
        let there = std::fs::metadata(to).ok();
        if let Some(there) = &there {
            if self.keep
                || (self.update && super::file::modified(there) >= super::file::modified(data))
            {
                return;
            }
            if there.is_dir() {
                self.errors
                    .push(format!("can't overwrite directory '{to}' with a file"));
                return;
            }
            if same(from, to) {
                self.errors
                    .push(format!("'{from}' and '{to}' are the same file"));
                return;
            }
        }
        // opened before the target is emptied
        let result = std::fs::File::open(from).and_then(|mut reader| {
            let writer = std::fs::File::create(to).or_else(|error| match self.force {
                true => std::fs::remove_file(to).and_then(|()| std::fs::File::create(to)),
                false => Err(error),
            });
            io::copy(&mut reader, &mut writer?).map(drop)
        });
        let result = result.and_then(|()| match self.times {
            true => {
                let (seconds, nanoseconds) = super::file::modified(data);
                sys::set_times(to, seconds, nanoseconds)
            }
            false => Ok(()),
        });
        if let Err(error) = result {
            self.failed(&format!("can't copy '{from}' to '{to}'"), &error);
        }
    }
}

fn same(a: &str, b: &str) -> bool {
    match (std::fs::canonicalize(a), std::fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        // no canonical names in WASI: the same name at least
        _ => files::logical("/", a) == files::logical("/", b),
    }
}

/// Sources and targets: `a b` or `a b c directory`.
fn pairs(
    context: &Context,
    options: &options::Options,
) -> Result<Vec<(String, String, String)>, crate::context::Fail> {
    let target = options.value('t');
    let (sources, target) = match (options.rest.as_slice(), target) {
        ([], _) => return usage("wants a source and a target"),
        (sources, Some(target)) => (sources, target),
        ([_], None) => return usage("wants a target"),
        ([sources @ .., target], None) => (sources, target.as_str()),
    };
    let path = context.path(target);
    let into = std::fs::metadata(&path).map_or(false, |data| data.is_dir()) && !options.has('T');
    if sources.len() > 1 && !into {
        return fail(format!("'{target}' is not a directory"));
    }
    let pair = |source: &String| {
        let base = files::base_name(source);
        let base = if base == ".." || base == "." {
            ""
        } else {
            base
        };
        let to = if into {
            files::join(&path, base)
        } else {
            path.trim_end_matches('/').to_owned()
        };
        (
            source.clone(),
            context.path(source).trim_end_matches('/').to_owned(),
            to,
        )
    };
    Ok(sources.iter().map(pair).collect())
}

pub(super) fn cp(context: &mut Context) -> Outcome {
    let long = [
        ("recursive", 'r'),
        ("archive", 'a'),
        ("force", 'f'),
        ("no-clobber", 'n'),
        ("preserve", 'p'),
        ("update", 'u'),
        ("verbose", 'v'),
        ("target-directory", 't'),
    ];
    let options = options::parse(&context.args, "rRafpdPLHnuvit:T", &long)?;
    let archive = options.has('a');
    let recursive = archive || options.has('r') || options.has('R');
    let mut copy = Copy {
        recursive,
        times: archive || options.has('p'),
        links: (recursive && !options.has('L')) || options.has('d') || options.has('P'),
        force: options.has('f'),
        verbose: options.has('v'),
        keep: options.has('n'),
        update: options.has('u'),
        errors: Vec::new(),
        done: Vec::new(),
    };
    for (name, from, to) in pairs(context, &options)? {
        let inside = format!("{}/", files::logical("/", &from));
        if recursive
            && format!("{}/", files::logical("/", &to)).starts_with(&inside)
            && std::fs::metadata(&from).map_or(false, |data| data.is_dir())
        {
            copy.errors.push(format!("can't copy '{name}' into itself"));
            continue;
        }
        copy.tree(&from, &to);
    }
    finish(context, &copy)
}

fn finish(context: &mut Context, copy: &Copy) -> Outcome {
    if copy.verbose {
        for line in &copy.done {
            writeln!(context.output, "{line}")?;
        }
    }
    for error in &copy.errors {
        context.warn(error);
    }
    Ok(i32::from(!copy.errors.is_empty()))
}

pub(super) fn mv(context: &mut Context) -> Outcome {
    let long = [
        ("force", 'f'),
        ("no-clobber", 'n'),
        ("update", 'u'),
        ("verbose", 'v'),
        ("target-directory", 't'),
    ];
    let options = options::parse(&context.args, "finuvt:T", &long)?;
    let mut copy = Copy {
        recursive: true,
        times: true,
        links: true,
        force: true,
        verbose: options.has('v'),
        keep: false,
        update: false,
        errors: Vec::new(),
        done: Vec::new(),
    };
    for (name, from, to) in pairs(context, &options)? {
        let there = files::lookup(&to);
        let data = match files::lookup(&from) {
            Ok(data) => data,
            Err(error) => {
                copy.failed(&format!("can't move '{name}'"), &error);
                continue;
            }
        };
        if let Ok(there) = &there {
            if options.has('n')
                || (options.has('u')
                    && super::file::modified(there) >= super::file::modified(&data))
            {
                continue;
            }
            if there.is_dir() && !data.is_dir() {
                copy.errors
                    .push(format!("can't overwrite directory '{to}' with '{name}'"));
                continue;
            }
        }
        match std::fs::rename(&from, &to) {
            Ok(()) => copy.done.push(format!("'{from}' -> '{to}'")),
            // between mounts of the container: copied, then removed
            Err(error) if crosses(&error) => {
                let before = copy.errors.len();
                copy.tree(&from, &to);
                if copy.errors.len() == before {
                    let errors = &mut copy.errors;
                    super::file::remove_tree(&from, &mut |path, error| {
                        errors.push(format!("can't remove '{path}': {}", reason(error)))
                    });
                }
            }
            Err(error) => copy.failed(&format!("can't move '{name}' to '{to}'"), &error),
        }
    }
    finish(context, &copy)
}

fn crosses(error: &io::Error) -> bool {
    // EXDEV of WASI and of Linux
    error.raw_os_error() == Some(if cfg!(target_arch = "wasm32") { 75 } else { 18 })
}

#[cfg(test)]
mod tests {
    use crate::context::testing::Room;

    #[test]
    fn trees_are_copied_and_moved() {
        let room = Room::new();
        room.output("mkdir -p a/b");
        room.write("a/f", "one");
        room.write("a/b/g", "two");
        room.output("ln -s f a/link");
        room.output("touch -d @1000 a/f");
        room.output("cp -a a c");
        assert_eq!(room.output("find c"), "c\nc/b\nc/b/g\nc/f\nc/link\n");
        assert_eq!(room.output("readlink c/link"), "f\n");
        assert_eq!(room.output("stat -c %Y c/f"), "1000\n");
        room.output("cp a/f c/b");
        assert_eq!(room.read("c/b/f"), "one");
        room.output("mv c/b/f new");
        assert_eq!(room.read("new"), "one");
        room.output("mv new a/b/g");
        assert_eq!(room.read("a/b/g"), "one");
        room.output("mv a c");
        assert_eq!(room.output("ls c"), "a\nb\nf\nlink\n");
        room.write("x", "x");
        room.output("cp -n x c/f");
        assert_eq!(room.read("c/f"), "one");
    }

    #[test]
    fn wrong_use_is_told() {
        let room = Room::new();
        room.output("mkdir d");
        room.write("f", "kept");
        for command in [
            "cp",
            "cp f",
            "cp none x",
            "cp d x",
            "cp f f",
            "cp f none/x",
            "cp f d f",
            "cp -r d d/e",
            "cp -r d d",
            "mv",
            "mv f",
            "mv none x",
            "mv f none/x",
            "mv -q f x",
            "cp d f",
        ] {
            assert_eq!(room.run(command, "").0, 1, "{command}");
        }
        assert_eq!(room.read("f"), "kept");
    }
}
