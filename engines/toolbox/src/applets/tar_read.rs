//! `tar`: reading archives, which are hostile until shown otherwise.

use super::tar::{wrong, Tar, BLOCK};
use crate::context::{about, Context, Fail, Outcome};
use crate::glob::Pattern;
use crate::{files, sys};
use std::io::{self, Read};

/// Names and links longer than this are refused.
const LONGEST: u64 = 64 << 10;

struct Entry {
    name: String,
    target: String,
    kind: u8,
    size: u64,
    seconds: i64,
}

fn text(field: &[u8]) -> String {
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (high, low) = field.split_at(field.len() - 8);
        // the first byte is the mark of the format
        if high.iter().skip(1).any(|byte| *byte != 0) || field[0] != 0x80 {
            return None;
        }
        return Some(
            low.iter()
                .skip(usize::from(high.is_empty()))
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        );
    }
    let digits: String = text(field).trim().to_owned();
    if digits.is_empty() {
        return Some(0);
    }
    u64::from_str_radix(&digits, 8).ok()
}

/// A whole block; none at the end of the input.
fn block(reader: &mut dyn Read) -> Result<Option<[u8; BLOCK]>, Fail> {
    let mut block = [0; BLOCK];
    let mut at = 0;
    while at < BLOCK {
        match reader.read(&mut block[at..]) {
            Ok(0) if at == 0 => return Ok(None),
            Ok(0) => return wrong("the archive ends in the middle of a block"),
            Ok(n) => at += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return wrong(about("archive", &error)),
        }
    }
    Ok(Some(block))
}

/// Hands an entry's bytes on and skips the padding.
fn body(
    reader: &mut dyn Read,
    size: u64,
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<io::Result<()>, Fail> {
    let mut left = size;
    let mut result = Ok(());
    let mut buffer = vec![0; 32 << 10];
    while left > 0 {
        // whole blocks: the padding goes with the last piece
        let wanted = left.min(buffer.len() as u64) as usize;
        let padded = (wanted + BLOCK - 1) / BLOCK * BLOCK;
        let mut at = 0;
        while at < padded {
            match reader.read(&mut buffer[at..padded]) {
                Ok(0) => return wrong("the archive ends in the middle of a file"),
                Ok(n) => at += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return wrong(about("archive", &error)),
            }
        }
        if result.is_ok() {
            result = each(&buffer[..wanted]);
        }
        left -= wanted as u64;
    }
    Ok(result)
}

fn small_body(reader: &mut dyn Read, size: u64) -> Result<Vec<u8>, Fail> {
    if size > LONGEST {
        return wrong("a name in the archive is longer than 64 KiB");
    }
    let mut out = Vec::new();
    let _ = body(reader, size, |piece| {
        out.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(out)
}

/// `length key=value\n` of POSIX's extended headers.
fn extended(
    records: &[u8],
    entry: &mut (Option<String>, Option<String>, Option<u64>, Option<i64>),
) {
    let mut rest = records;
    while let Some(blank) = rest.iter().position(|byte| *byte == b' ') {
        let length: usize = match String::from_utf8_lossy(&rest[..blank]).parse() {
            Ok(length) if length > blank + 1 && length <= rest.len() => length,
            _ => return,
        };
        let record = String::from_utf8_lossy(&rest[blank + 1..length - 1]).into_owned();
        match record.split_once('=') {
            Some(("path", value)) => entry.0 = Some(value.to_owned()),
            Some(("linkpath", value)) => entry.1 = Some(value.to_owned()),
            Some(("size", value)) => entry.2 = value.parse().ok(),
            Some(("mtime", value)) => {
                entry.3 = value
                    .split('.')
                    .next()
                    .and_then(|seconds| seconds.parse().ok())
            }
            _ => {}
        }
        rest = &rest[length..];
    }
}

fn next(reader: &mut dyn Read) -> Result<Option<Entry>, Fail> {
    let mut more = (None, None, None, None);
    let mut empty = 0;
    loop {
        let head = match block(reader)? {
            None => return Ok(None),
            Some(head) => head,
        };
        if head.iter().all(|byte| *byte == 0) {
            empty += 1;
            if empty == 2 {
                // whoever writes to us may still be writing padding
                let mut rest = [0; 4096];
                while matches!(reader.read(&mut rest), Ok(1..)) {}
                return Ok(None);
            }
            continue;
        }
        empty = 0;
        let unsigned: u64 = head
            .iter()
            .enumerate()
            .map(|(at, byte)| {
                if (148..156).contains(&at) {
                    32
                } else {
                    u64::from(*byte)
                }
            })
            .sum();
        if number(&head[148..156]) != Some(unsigned) {
            return wrong("this is not a tar archive, or it is damaged (a header's checksum is wrong); compressed ones are not read here");
        }
        let (size, seconds) = match (number(&head[124..136]), number(&head[136..148])) {
            (Some(size), Some(seconds)) => (size, seconds as i64),
            _ => return wrong("a header of the archive has a bad number"),
        };
        match head[156] {
            b'L' => more.0 = Some(text(&small_body(reader, size)?)),
            b'K' => more.1 = Some(text(&small_body(reader, size)?)),
            b'x' => extended(&small_body(reader, size)?, &mut more),
            b'g' => drop(small_body(reader, size)?),
            kind => {
                let prefix = if &head[257..263] == b"ustar\0" {
                    text(&head[345..500])
                } else {
                    String::new()
                };
                let short = text(&head[..100]);
                let name = if prefix.is_empty() {
                    short
                } else {
                    format!("{prefix}/{short}")
                };
                return Ok(Some(Entry {
                    name: more.0.unwrap_or(name),
                    target: more.1.unwrap_or_else(|| text(&head[157..257])),
                    kind,
                    size: more.2.unwrap_or(size),
                    seconds: more.3.unwrap_or(seconds),
                }));
            }
        }
    }
}

pub(super) fn run(tar: &Tar, context: &mut Context) -> Outcome {
    let file = tar.options.value('f').unwrap_or("-").to_owned();
    let opened = files::open(context, &file);
    let mut reader = opened.map_err(|error| Fail::Text(2, about(&file, &error)))?;
    let wanted: Vec<(Pattern, String)> = tar
        .options
        .rest
        .iter()
        .map(|name| {
            (
                Pattern::new(name.as_bytes()),
                name.trim_end_matches('/').to_owned(),
            )
        })
        .collect();
    let mut found = vec![false; wanted.len()];
    let listing = tar.options.last_of("cxt") == Some('t');
    let strip = tar
        .options
        .value('N')
        .map(crate::options::number)
        .transpose()?
        .unwrap_or(0) as usize;
    let mut code = 0;
    // times of directories last: what is put into them changes them
    let mut directories: Vec<(String, i64)> = Vec::new();
    while let Some(entry) = next(&mut *reader)? {
        let name = entry.name.trim_end_matches('/');
        let mut fits = wanted.is_empty();
        for (number, (pattern, prefix)) in wanted.iter().enumerate() {
            let below = name
                .strip_prefix(prefix.as_str())
                .map_or(false, |rest| rest.is_empty() || rest.starts_with('/'));
            if below || pattern.matches(name.as_bytes()) {
                fits = true;
                found[number] = true;
            }
        }
        if !fits || tar.is_excluded(&entry.name) {
            let _ = body(&mut *reader, size_of(&entry), |_| Ok(()))?;
            continue;
        }
        if listing || tar.options.has('v') {
            let line = match listing && tar.options.has('v') {
                true => {
                    let kind = match entry.kind {
                        b'5' => 'd',
                        b'2' => 'l',
                        _ => '-',
                    };
                    let arrow = if entry.kind == b'2' {
                        format!(" -> {}", entry.target)
                    } else {
                        String::new()
                    };
                    format!(
                        "{kind} {:>9} {} {}{arrow}",
                        entry.size,
                        super::date::format("%F %R", entry.seconds, 0),
                        entry.name
                    )
                }
                false => entry.name.clone(),
            };
            writeln!(context.output, "{line}")?;
        }
        if listing {
            let _ = body(&mut *reader, size_of(&entry), |_| Ok(()))?;
            continue;
        }
        if let Err(fail) = extract(tar, context, &entry, &mut *reader, strip, &mut directories) {
            match fail {
                Fail::Text(1, text) => {
                    context.warn(text);
                    code = 1;
                }
                fail => return Err(fail),
            }
        }
    }
    for (path, seconds) in directories.iter().rev() {
        // the directory may have been replaced since
        let _ = sys::set_times(path, *seconds, 0);
    }
    for (found, (_, name)) in found.iter().zip(&wanted) {
        if !found {
            context.warn(format!("{name}: not found in the archive"));
            code = 2;
        }
    }
    Ok(code)
}

/// Only files have a body; a size in another header lies.
fn size_of(entry: &Entry) -> u64 {
    match entry.kind {
        b'1'..=b'6' => 0,
        _ => entry.size,
    }
}

/// The parts of a name; none if it climbs out of the directory.
fn safe_parts(name: &str, strip: usize) -> Option<Vec<&str>> {
    let parts: Vec<&str> = name
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if parts.contains(&"..") || name.contains('\0') {
        return None;
    }
    Some(parts.into_iter().skip(strip).collect())
}

/// Does the path lead through a link? An archive may bring the link itself, to write
/// through it to places that its names do not show.
fn leads_through_link(directory: &str, parts: &[&str]) -> bool {
    let mut path = directory.to_owned();
    parts[..parts.len() - 1].iter().any(|part| {
        path = files::join(&path, part);
        files::lookup(&path).map_or(false, |data| data.file_type().is_symlink())
    })
}

fn extract(
    tar: &Tar,
    context: &mut Context,
    entry: &Entry,
    reader: &mut dyn Read,
    strip: usize,
    directories: &mut Vec<(String, i64)>,
) -> Result<(), Fail> {
    let skip = |reader: &mut dyn Read| body(reader, size_of(entry), |_| Ok(())).map(drop);
    let told = |text: String| Err(Fail::Text(1, text));
    let parts = match safe_parts(&entry.name, strip) {
        None => {
            skip(reader)?;
            return told(format!(
                "{}: refused, the name leads out of the directory",
                entry.name
            ));
        }
        Some(parts) if parts.is_empty() => return skip(reader),
        Some(parts) => parts,
    };
    let path = files::join(&tar.directory, &parts.join("/"));
    if leads_through_link(&tar.directory, &parts) {
        skip(reader)?;
        return told(format!(
            "{}: refused, a symbolic link stands in its way",
            entry.name
        ));
    }
    let failed = |error: &io::Error| Fail::Text(1, about(&entry.name, error));
    if tar.options.has('O') {
        let output = &mut context.output;
        return body(reader, size_of(entry), |piece| output.write_all(piece))?.map_err(Fail::from);
    }
    let parent = super::basic::parent(&path).to_owned();
    if let Err(error) = super::file::make_all(&parent) {
        skip(reader)?;
        return Err(failed(&error));
    }
    let there = files::lookup(&path).ok();
    if let Some(there) = there.filter(|there| entry.kind != b'5' || !there.is_dir()) {
        if tar.options.has('k') {
            skip(reader)?;
            return told(format!("{}: exists already", entry.name));
        }
        if !there.is_dir() {
            // never written through: the old name may be a link to something else
            let _ = std::fs::remove_file(&path);
        }
    }
    let keeps_time = !tar.options.has('m');
    match entry.kind {
        b'5' => {
            if let Err(error) = std::fs::create_dir(&path) {
                if error.kind() != io::ErrorKind::AlreadyExists {
                    return Err(failed(&error));
                }
            }
            if keeps_time {
                directories.push((path, entry.seconds));
            }
            Ok(())
        }
        b'2' => sys::symlink(&entry.target, &path).map_err(|error| failed(&error)),
        b'1' => match safe_parts(&entry.target, strip) {
            Some(target) if !target.is_empty() && !leads_through_link(&tar.directory, &target) => {
                std::fs::hard_link(files::join(&tar.directory, &target.join("/")), &path)
                    .map_err(|error| failed(&error))
            }
            _ => told(format!(
                "{}: refused, its target leads out of the directory",
                entry.name
            )),
        },
        b'3' | b'4' | b'6' => told(format!(
            "{}: WASI has no devices and pipes in the file system",
            entry.name
        )),
        _ => {
            let mut file = match std::fs::File::create(&path) {
                Ok(file) => file,
                Err(error) => {
                    skip(reader)?;
                    return Err(failed(&error));
                }
            };
            body(reader, entry.size, |piece| {
                io::Write::write_all(&mut file, piece)
            })?
            .map_err(|error| failed(&error))?;
            drop(file);
            match keeps_time {
                true => sys::set_times(&path, entry.seconds, 0).map_err(|error| failed(&error)),
                false => Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tar::header;
    use crate::context::testing::{run_in, Room};
    use std::process::Command;

    fn bytes(room: &Room, args: &[&str], input: &[u8]) -> (i32, Vec<u8>, String) {
        // through a file: the output of a test is text
        let mut argv = vec!["tar"];
        argv.extend(args);
        let (code, _, error) = run_in(&room.0, &argv, input);
        (
            code,
            std::fs::read(format!("{}/out.tar", room.0)).unwrap_or_default(),
            error,
        )
    }

    fn tree() -> Room {
        let room = Room::new();
        room.output("mkdir -p in/sub/empty");
        room.write("in/a", vec![0xffu8; 70_000]);
        room.write("in/sub/b", "");
        room.write(
            &format!("in/sub/{}", "long".repeat(40)),
            "content of a long name",
        );
        room.output("ln -s ../a in/sub/link");
        room.output("touch -d @1234567890 in/a");
        room
    }

    #[test]
    fn what_goes_in_comes_out() {
        let room = tree();
        assert_eq!(bytes(&room, &["cf", "out.tar", "in"], b"").0, 0);
        room.output("mkdir x");
        room.output("tar xf out.tar -C x");
        assert_eq!(
            room.output("find in").replace("in/", ""),
            room.output("find x/in")
                .replace("x/in/", "")
                .replace("x/in", "in")
        );
        assert_eq!(
            std::fs::read(format!("{}/x/in/a", room.0)).expect("a file"),
            vec![0xffu8; 70_000]
        );
        assert_eq!(room.output("readlink x/in/sub/link"), "../a\n");
        assert_eq!(room.output("stat -c %Y x/in/a"), "1234567890\n");
        assert_eq!(room.output("tar tf out.tar in/sub/b"), "in/sub/b\n");
        room.output("mkdir y");
        room.output("tar -x -f out.tar -C y --strip-components=1 in/a");
        assert_eq!(room.output("ls y"), "a\n");
        // a pipe, as kubectl does it
        let archive = std::fs::read(format!("{}/out.tar", room.0)).expect("the archive");
        room.output("mkdir z");
        let (code, _, error) = run_in(&room.0, &["tar", "xmf", "-", "-C", "z"], &archive);
        assert_eq!((code, error.as_str()), (0, ""));
        assert_eq!(room.output("ls z/in/sub").lines().count(), 4);
    }

    #[test]
    fn gnu_tar_understands_us_and_we_it() {
        if Command::new("tar").arg("--version").output().is_err() {
            println!("skipped: no tar on this machine");
            return;
        }
        let room = tree();
        assert_eq!(bytes(&room, &["cf", "out.tar", "in"], b"").0, 0);
        room.output("mkdir gnu");
        let unpacked = Command::new("tar")
            .args(["xf", "out.tar", "-C", "gnu"])
            .current_dir(&room.0)
            .output()
            .expect("tar runs");
        assert_eq!(String::from_utf8_lossy(&unpacked.stderr), "");
        let same = Command::new("diff")
            .args(["-r", "--no-dereference", "in", "gnu/in"])
            .current_dir(&room.0)
            .output()
            .expect("diff runs");
        assert_eq!(String::from_utf8_lossy(&same.stdout), "");
        for format in ["gnu", "posix", "ustar", "v7"] {
            let name = format!("{format}.tar");
            // the two oldest have no long names
            let exclude = if format == "ustar" || format == "v7" {
                "--exclude=long*"
            } else {
                "--exclude=none"
            };
            let made = Command::new("tar")
                .args(["cf", &name, "--format", format, exclude, "in"])
                .current_dir(&room.0)
                .output()
                .expect("tar runs");
            assert!(
                made.status.success(),
                "{}",
                String::from_utf8_lossy(&made.stderr)
            );
            room.output(&format!("mkdir from-{format}"));
            room.output(&format!("tar xf {name} -C from-{format}"));
            let target = format!("from-{format}/in");
            let mut diff = Command::new("diff");
            diff.args(["-r", "--no-dereference", "--exclude=long*", "in", &target]);
            let same = diff.current_dir(&room.0).output().expect("diff runs");
            assert_eq!(String::from_utf8_lossy(&same.stdout), "", "{format}");
        }
    }

    #[test]
    fn hostile_archives_stay_inside() {
        let room = Room::new();
        room.output("mkdir x outside");
        let entry = |name: &str, kind: u8, target: &str, content: &[u8]| {
            let mut out = header(name, kind, content.len() as u64, 0, target);
            out.extend_from_slice(content);
            out.resize((out.len() + 511) / 512 * 512, 0);
            out
        };
        for (archive, message) in [
            (entry("../evil", b'0', "", b"x"), "leads out"),
            (entry("a/../../evil", b'0', "", b"x"), "leads out"),
            (
                [
                    entry("link", b'2', "../outside", b""),
                    entry("link/evil", b'0', "", b"x"),
                ]
                .concat(),
                "link stands in its way",
            ),
            (entry("hard", b'1', "../outside", b""), "leads out"),
            (entry("dev", b'3', "", b""), "no devices"),
        ] {
            let (code, _, error) = run_in(&room.0, &["tar", "xf", "-", "-C", "x"], &archive);
            assert!(code == 1 && error.contains(message), "{error}");
        }
        // an absolute name is taken as a relative one
        assert_eq!(
            run_in(
                &room.0,
                &["tar", "xf", "-", "-C", "x"],
                &entry("/abs", b'0', "", b"x")
            )
            .0,
            0
        );
        assert_eq!(room.output("ls outside"), "");
        assert_eq!(room.output("ls x"), "abs\nlink\n");
    }

    #[test]
    fn damage_is_told() {
        let room = Room::new();
        let mut good = header("f", b'0', 100_000, 0, "");
        let mut huge = header("f", b'L', 1 << 40, 0, "");
        huge.resize(4096, 0);
        let text = b"this is no archive".repeat(100);
        good.resize(2000, 0);
        for input in [&good[..], &good[..100], &huge, &text, &[0xff; 512]] {
            assert_eq!(run_in(&room.0, &["tar", "xf", "-"], input).0, 2);
        }
        assert_eq!(run_in(&room.0, &["tar", "xf", "-"], b"").0, 0);
        for command in [
            "tar",
            "tar c",
            "tar cf out.tar none",
            "tar xf none.tar",
            "tar xzf x",
            "tar xf",
            "tar -C none -tf x",
            "tar --nonsense",
        ] {
            assert!(room.run(command, "").0 > 0, "{command}");
        }
        let mut seed = 99u32;
        for _ in 0..2000 {
            let mut block = header("name", b'0', 10, 0, "target");
            for _ in 0..4 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                block[(seed >> 8) as usize % 512] = (seed >> 24) as u8;
            }
            let sum: u32 = block
                .iter()
                .enumerate()
                .map(|(at, byte)| {
                    if (148..156).contains(&at) {
                        32
                    } else {
                        u32::from(*byte)
                    }
                })
                .sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            block.resize(2048, 7);
            let _ = run_in(&room.0, &["tar", "tf", "-"], &block);
        }
    }
}
