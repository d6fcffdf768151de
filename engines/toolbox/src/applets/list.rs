//! `ls`

use crate::context::{reason, Context, Fail, Outcome};
use crate::{files, host, options};
use std::fs::Metadata;

struct Entry {
    name: String,
    path: String,
    data: Option<Metadata>,
}

impl Entry {
    fn is_directory(&self) -> bool {
        self.data.as_ref().map_or(false, Metadata::is_dir)
    }
    fn is_link(&self) -> bool {
        self.data
            .as_ref()
            .map_or(false, |data| data.file_type().is_symlink())
    }
    fn size(&self) -> u64 {
        self.data.as_ref().map_or(0, Metadata::len)
    }
}

/// 1536 as 1.5K
pub(super) fn human(size: u64) -> String {
    let mut value = size as f64;
    let units = ["", "K", "M", "G", "T", "P"];
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => size.to_string(),
        // rounded up, as ls does: a size is never shown smaller than it is
        unit if value < 10.0 => format!("{:.1}{}", (value * 10.0).ceil() / 10.0, units[unit]),
        unit => format!("{:.0}{}", value.ceil(), units[unit]),
    }
}

pub(super) fn run(context: &mut Context) -> Outcome {
    let long = [
        ("all", 'a'),
        ("almost-all", 'A'),
        ("recursive", 'R'),
        ("directory", 'd'),
        ("human-readable", 'h'),
        ("color", 'K'),
    ];
    let args: Vec<String> = context
        .args
        .iter()
        .filter(|word| !word.starts_with("--color"))
        .cloned()
        .collect();
    let options = options::parse(&args, "aAlRd1htrSFpiCnsLHTXkgo", &long)?;
    let names = if options.rest.is_empty() {
        vec![".".to_owned()]
    } else {
        options.rest.clone()
    };
    let mut code = 0;
    let (mut plain, mut directories) = (Vec::new(), Vec::new());
    for name in names {
        let path = context.path(&name);
        let follow = !options.has('l') && !options.has('d');
        let data = if follow {
            std::fs::metadata(&path).or_else(|_| files::lookup(&path))
        } else {
            files::lookup(&path)
        };
        match data {
            Err(error) => {
                context.warn(format!("{name}: {}", reason(&error)));
                code = 1;
            }
            Ok(data) => {
                let entry = Entry {
                    name,
                    path,
                    data: Some(data),
                };
                match entry.is_directory() && !options.has('d') {
                    true => directories.push(entry),
                    false => plain.push(entry),
                }
            }
        }
    }
    let lister = Lister { options };
    let headed = directories.len() + plain.len() > 1
        || lister.options.has('R')
        || code != 0 && !directories.is_empty() && lister.options.rest.len() > 1;
    let some = !plain.is_empty();
    lister.show(context, plain)?;
    let mut first = !some;
    // depth first, in order
    directories.reverse();
    lister.sort(&mut directories);
    directories.reverse();
    while let Some(directory) = directories.pop() {
        if !std::mem::take(&mut first) {
            context.output.write_all(b"\n")?;
        }
        if headed {
            writeln!(context.output, "{}:", directory.name)?;
        }
        let entries = match lister.entries(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                context.warn(format!("{}: {}", directory.name, reason(&error)));
                code = 1;
                continue;
            }
        };
        if lister.options.has('R') {
            let mut below: Vec<Entry> = Vec::new();
            for entry in &entries {
                if entry.is_directory() && entry.name != "." && entry.name != ".." {
                    below.push(Entry {
                        name: files::join(&directory.name, &entry.name),
                        path: entry.path.clone(),
                        data: entry.data.clone(),
                    });
                }
            }
            lister.sort(&mut below);
            directories.extend(below.into_iter().rev());
        }
        if lister.options.has('l') || lister.options.has('s') {
            let blocks: u64 = entries
                .iter()
                .map(|entry| (entry.size() + 1023) / 1024)
                .sum();
            writeln!(context.output, "total {blocks}")?;
        }
        lister.show(context, entries)?;
    }
    Ok(code)
}

struct Lister {
    options: options::Options,
}

impl Lister {
    fn entries(&self, directory: &Entry) -> std::io::Result<Vec<Entry>> {
        let mut names = files::list(&directory.path)?;
        if !self.options.has('a') && !self.options.has('A') {
            names.retain(|name| !name.starts_with('.'));
        }
        if self.options.has('a') {
            names.extend([".".to_owned(), "..".to_owned()]);
        }
        let entry = |name: String| {
            let path = files::absolute(&directory.path, &name);
            Entry {
                data: files::lookup(&path).ok(),
                name,
                path,
            }
        };
        Ok(names.into_iter().map(entry).collect())
    }

    fn sort(&self, entries: &mut [Entry]) {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let time = |entry: &Entry| entry.data.as_ref().map(super::file::modified);
        match self.options.last_of("tS") {
            Some('t') => entries.sort_by_key(|entry| std::cmp::Reverse(time(entry))),
            Some(_) => entries.sort_by_key(|entry| std::cmp::Reverse(entry.size())),
            None => {}
        }
        if self.options.has('r') {
            entries.reverse();
        }
    }

    fn shown(&self, entry: &Entry) -> String {
        let mark = match self.options.last_of("Fp") {
            Some(_) if entry.is_directory() => "/",
            Some('F') if entry.is_link() => "@",
            _ => "",
        };
        format!("{}{mark}", entry.name)
    }

    fn show(&self, context: &mut Context, mut entries: Vec<Entry>) -> Result<(), Fail> {
        self.sort(&mut entries);
        if self.options.has('l') {
            let size = |entry: &Entry| match self.options.has('h') {
                true => human(entry.size()),
                false => entry.size().to_string(),
            };
            let width = entries
                .iter()
                .map(|entry| size(entry).len())
                .max()
                .unwrap_or(0);
            for entry in &entries {
                // no modes, no owners: WASI does not tell them
                let kind = match (&entry.data, entry.is_directory(), entry.is_link()) {
                    (None, ..) => '?',
                    (_, true, _) => 'd',
                    (_, _, true) => 'l',
                    (Some(data), ..) if data.is_file() => '-',
                    _ => 'c',
                };
                let time = entry
                    .data
                    .as_ref()
                    .map_or(0, |data| super::file::modified(data).0);
                let time = super::date::format("%Y-%m-%d %H:%M", time, 0);
                let target = match entry.is_link() {
                    true => match std::fs::read_link(&entry.path) {
                        Ok(target) => format!(" -> {}", target.to_string_lossy()),
                        // the engine hides targets that are absolute
                        Err(_) => " -> ?".to_owned(),
                    },
                    false => String::new(),
                };
                writeln!(
                    context.output,
                    "{kind} {:>width$} {time} {}{target}",
                    size(entry),
                    self.shown(entry)
                )?;
            }
            return Ok(());
        }
        let names: Vec<String> = entries.iter().map(|entry| self.shown(entry)).collect();
        let columns = if self.options.has('1') || self.options.has('C') {
            None
        } else {
            terminal_columns()
        };
        match columns {
            Some(columns) => in_columns(context, &names, columns),
            None => names
                .iter()
                .try_for_each(|name| writeln!(context.output, "{name}").map_err(Fail::from)),
        }
    }
}

fn terminal_columns() -> Option<usize> {
    if cfg!(test) || !crate::sys::is_terminal(1) {
        return None;
    }
    let size = host::info(host::INFO_TERMINAL).unwrap_or_default();
    Some(
        size.split(' ')
            .next()
            .and_then(|columns| columns.parse().ok())
            .filter(|columns| *columns > 0)
            .unwrap_or(80),
    )
}

fn in_columns(context: &mut Context, names: &[String], columns: usize) -> Result<(), Fail> {
    let width = names
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0)
        + 2;
    let across = (columns / width).max(1);
    let rows = (names.len() + across - 1) / across;
    for row in 0..rows {
        let mut line = String::new();
        for name in names.iter().skip(row).step_by(rows) {
            line += &format!("{name:<width$}");
        }
        writeln!(context.output, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::human;
    use crate::context::testing::Room;

    #[test]
    fn directories_are_listed() {
        let room = Room::new();
        room.output("mkdir -p d/e");
        room.write("d/f", "1234567");
        room.write("a", "");
        room.write(".h", "");
        assert_eq!(room.output("ls"), "a\nd\n");
        assert_eq!(room.output("ls -A"), ".h\na\nd\n");
        assert_eq!(room.output("ls -a d"), ".\n..\ne\nf\n");
        assert_eq!(room.output("ls -d d a"), "a\nd\n");
        assert_eq!(room.output("ls -F -r"), "d/\na\n");
        assert_eq!(room.output("ls -R"), ".:\na\nd\n\n./d:\ne\nf\n\n./d/e:\n");
        assert_eq!(room.output("ls a d"), "a\n\nd:\ne\nf\n");
        room.output("touch -d @0 d/f");
        assert!(room.output("ls -l d/f") == "- 7 1970-01-01 00:00 d/f\n");
        let (code, out, error) = room.run("ls none a", "");
        assert_eq!(
            (code, out.as_str(), error.as_str()),
            (1, "a\n", "ls: none: No such file or directory\n")
        );
        assert_eq!(room.run("ls --nonsense", "").0, 1);
    }

    #[test]
    fn sizes_are_short() {
        for (size, text) in [
            (0, "0"),
            (1023, "1023"),
            (1536, "1.5K"),
            (10_240, "10K"),
            (u64::MAX, "16384P"),
        ] {
            assert_eq!(human(size), text);
        }
    }
}
