//! `stat`, `du`, `df`: what preview 1 tells of files.

use crate::context::{about, fail, reason, usage, Context, Outcome};
use crate::{files, options};
use std::fs::Metadata;

fn kind(data: &Metadata) -> &'static str {
    let kind = data.file_type();
    if kind.is_dir() {
        "directory"
    } else if kind.is_symlink() {
        "symbolic link"
    } else if kind.is_file() && data.len() == 0 {
        "regular empty file"
    } else if kind.is_file() {
        "regular file"
    } else {
        "special file"
    }
}

fn format(pattern: &str, name: &str, path: &str, data: &Metadata) -> Result<String, String> {
    let (seconds, nanoseconds) = super::file::modified(data);
    let time = || super::date::format("%F %T.%N +0000", seconds, nanoseconds);
    let mut out = String::new();
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some('n') => out += name,
            Some('N') => match std::fs::read_link(path) {
                Ok(target) => out += &format!("'{name}' -> '{}'", target.to_string_lossy()),
                Err(_) => out += &format!("'{name}'"),
            },
            Some('s') => out += &data.len().to_string(),
            Some('F') => out += kind(data),
            Some('b') => out += &((data.len() + 511) / 512).to_string(),
            Some('B') => out += "512",
            Some('y') => out += &time(),
            Some('Y') => out += &seconds.to_string(),
            Some('%') => out.push('%'),
            Some(letter) => {
                return Err(format!(
                    "%{letter}: WASI does not tell that; there are %n %N %s %F %b %B %y %Y"
                ))
            }
            None => out.push('%'),
        }
    }
    Ok(out)
}

pub(super) fn stat(context: &mut Context) -> Outcome {
    let options = options::parse(
        &context.args,
        "c:Lft",
        &[("format", 'c'), ("printf", 'c'), ("dereference", 'L')],
    )?;
    if options.rest.is_empty() {
        return usage("wants a file");
    }
    let mut code = 0;
    for name in &options.rest {
        let path = context.path(name);
        let data = if options.has('L') {
            std::fs::metadata(&path)
        } else {
            files::lookup(&path)
        };
        let data = match data {
            Ok(data) => data,
            Err(error) => {
                context.warn(format!("can't stat '{name}': {}", reason(&error)));
                code = 1;
                continue;
            }
        };
        let pattern = options
            .value('c')
            .unwrap_or("  File: %N\n  Size: %s\tBlocks: %b\t%F\nModify: %y");
        match format(pattern, name, &path, &data) {
            Ok(text) => writeln!(context.output, "{text}")?,
            Err(text) => return fail(text),
        }
    }
    Ok(code)
}

pub(super) fn du(context: &mut Context) -> Outcome {
    let options = options::parse(
        &context.args,
        "sahkbmd:cx",
        &[
            ("summarize", 's'),
            ("all", 'a'),
            ("human-readable", 'h'),
            ("max-depth", 'd'),
            ("bytes", 'b'),
            ("total", 'c'),
        ],
    )?;
    let most = options
        .value('d')
        .map(options::number)
        .transpose()?
        .map_or(usize::MAX, |n| n as usize);
    let most = if options.has('s') { 0 } else { most };
    let show = |size: u64| match options.last_of("hkbm") {
        Some('h') => super::list::human(size),
        Some('b') => size.to_string(),
        Some('m') => ((size + (1 << 20) - 1) >> 20).to_string(),
        _ => ((size + 1023) / 1024).to_string(),
    };
    let mut code = 0;
    let mut total = 0;
    let roots = if options.rest.is_empty() {
        vec![".".to_owned()]
    } else {
        options.rest.clone()
    };
    for root in roots {
        // a directory is printed once all below it is known; sums of open ones
        let mut work = vec![(root, 0usize, false)];
        let mut sums: Vec<u64> = Vec::new();
        while let Some((name, depth, known)) = work.pop() {
            let path = context.path(&name);
            if known {
                let sum = sums.pop().unwrap_or(0);
                if depth <= most {
                    writeln!(context.output, "{}\t{name}", show(sum))?;
                }
                match sums.last_mut() {
                    Some(above) => *above += sum,
                    None => total += sum,
                }
                continue;
            }
            let data = match files::lookup(&path) {
                Ok(data) => data,
                Err(error) => {
                    context.warn(about(&name, &error));
                    code = 1;
                    continue;
                }
            };
            // what it holds: preview 1 does not tell blocks
            let size = if options.has('b') {
                data.len()
            } else {
                (data.len() + 511) / 512 * 512
            };
            if data.is_dir() {
                sums.push(size);
                work.push((name.clone(), depth, true));
                match files::list(&path) {
                    Ok(names) => work.extend(
                        names
                            .iter()
                            .rev()
                            .map(|below| (files::join(&name, below), depth + 1, false)),
                    ),
                    Err(error) => {
                        context.warn(about(&name, &error));
                        code = 1;
                    }
                }
                continue;
            }
            match sums.last_mut() {
                Some(above) => *above += size,
                None => total += size,
            }
            if (options.has('a') && depth <= most) || depth == 0 {
                writeln!(context.output, "{}\t{name}", show(size))?;
            }
        }
    }
    if options.has('c') {
        writeln!(context.output, "{}\ttotal", show(total))?;
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use crate::context::testing::Room;

    #[test]
    fn files_are_described() {
        let room = Room::new();
        room.output("mkdir d");
        room.write("d/f", vec![b'x'; 1500]);
        room.output("ln -s f d/l");
        room.output("touch -d @5 d/f");
        assert_eq!(
            room.output("stat -c %n:%s:%F:%Y:%b:%% d/f"),
            "d/f:1500:regular file:5:3:%\n"
        );
        assert_eq!(room.output("stat -c %N d/l"), "'d/l' -> 'f'\n");
        assert_eq!(room.output("stat -L -c %F d/l"), "regular file\n");
        assert!(room.output("stat d").contains("directory"));
        assert!(room.output("du -a d").contains("2\td/f\n"));
        assert!(room.output("du -sb d").ends_with("\td\n"));
        assert!(room.output("du -h d/f") == "1.5K\td/f\n");
    }

    #[test]
    fn wrong_use_is_told() {
        let room = Room::new();
        room.write("f", "");
        for command in ["stat", "stat none", "stat -c %a f", "du none", "du -d x"] {
            assert_eq!(room.run(command, "").0, 1, "{command}");
        }
    }
}
