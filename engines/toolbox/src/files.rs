//! Paths and files by the names that users give.

use crate::context::{about, Context, Fail};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};

/// Joins a name to an absolute directory. Dots stay for the host, which knows the links,
/// but none leads above the root, where WASI would refuse what Linux allows.
pub(crate) fn absolute(directory: &str, name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let mut depth = 0usize;
    let all = if name.starts_with('/') { "" } else { directory };
    for part in all.split('/').chain(name.split('/')) {
        match part {
            "" | "." => continue,
            ".." if depth == 0 => continue,
            ".." => depth -= 1,
            _ => depth += 1,
        }
        parts.push(part);
    }
    let mut path = format!("/{}", parts.join("/"));
    // "file/" must not name a file
    if name.ends_with('/') && path.len() > 1 {
        path.push('/');
    }
    path
}

/// The same with all dots resolved by name, as `cd` and `pwd` do.
pub(crate) fn logical(directory: &str, name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let all = if name.starts_with('/') { "" } else { directory };
    for part in all.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

pub(crate) fn base_name(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return if path.is_empty() { "" } else { "/" };
    }
    trimmed.rsplit('/').next().unwrap_or(trimmed)
}

struct Zero;
impl Read for Zero {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        buffer.iter_mut().for_each(|byte| *byte = 0);
        Ok(buffer.len())
    }
}

struct Random(u64);
impl Read for Random {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::collections::hash_map::RandomState;
        use std::hash::{BuildHasher, Hasher};
        for chunk in buffer.chunks_mut(8) {
            self.0 += 1;
            // keyed by the host's random numbers; not for secrets that must last
            let mut hasher = RandomState::new().build_hasher();
            hasher.write_u64(self.0);
            chunk.copy_from_slice(&hasher.finish().to_le_bytes()[..chunk.len()]);
        }
        Ok(buffer.len())
    }
}

/// The devices that scripts expect; a Wasm container has no /dev of its own.
pub(crate) fn is_null(path: &str) -> bool {
    path == "/dev/null"
}

/// Opens a file to read, `-` for standard input.
pub(crate) fn open(context: &mut Context, name: &str) -> io::Result<Box<dyn Read>> {
    let path = context.path(name);
    match path.as_str() {
        _ if name == "-" => return Ok(context.take_input()),
        "/dev/stdin" => return Ok(context.take_input()),
        "/dev/null" => return Ok(Box::new(io::empty())),
        "/dev/zero" => return Ok(Box::new(Zero)),
        "/dev/random" | "/dev/urandom" => return Ok(Box::new(Random(0))),
        _ => {}
    }
    let file = File::open(&path)?;
    if file.metadata()?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::Other, "Is a directory"));
    }
    Ok(Box::new(file))
}

pub(crate) fn create(context: &Context, name: &str, append: bool) -> io::Result<Box<dyn Write>> {
    let path = context.path(name);
    match path.as_str() {
        "/dev/null" => return Ok(Box::new(io::sink())),
        "/dev/stdout" => return Ok(Box::new(crate::sys::Own(1))),
        "/dev/stderr" => return Ok(Box::new(crate::sys::Own(2))),
        _ => {}
    }
    let file = if append {
        std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)?
    } else {
        File::create(path)?
    };
    Ok(Box::new(file))
}

/// Does something with each named input (standard input without names). A file that cannot
/// be read is told and costs exit code 1, the others are read.
pub(crate) fn each_input(
    context: &mut Context,
    names: &[String],
    mut each: impl FnMut(&mut Context, &str, &mut dyn BufRead) -> Result<(), Fail>,
) -> Result<i32, Fail> {
    let standard = ["-".to_owned()];
    let names = if names.is_empty() {
        &standard[..]
    } else {
        names
    };
    let mut code = 0;
    for name in names {
        let opened = open(context, name).map(BufReader::new);
        let result = match opened {
            Ok(mut reader) => {
                let read = Watched {
                    inner: &mut reader,
                    error: None,
                };
                let mut read = BufReader::new(read);
                each(context, name, &mut read)?;
                match read.get_mut().error.take() {
                    Some(error) => Err(error),
                    None => Ok(()),
                }
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            context.warn(about(name, &error));
            code = 1;
        }
    }
    Ok(code)
}

/// Ends the input at a read error and keeps the error, so that errors of reading and of
/// writing are not taken for each other.
struct Watched<'a> {
    inner: &'a mut dyn Read,
    error: Option<io::Error>,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(buffer) {
                Ok(n) => return Ok(n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.error = Some(error);
                    return Ok(0);
                }
            }
        }
    }
}

/// The next line with its end; none at the end of the input.
pub(crate) fn next_line(
    reader: &mut dyn BufRead,
    end: u8,
    line: &mut Vec<u8>,
) -> Result<bool, Fail> {
    line.clear();
    Ok(reader.read_until(end, line)? > 0)
}

/// The line without its end.
pub(crate) fn chomp(line: &[u8], end: u8) -> &[u8] {
    line.strip_suffix(&[end]).unwrap_or(line)
}

/// The names in a directory, sorted.
pub(crate) fn list(path: &str) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// What is there itself, not what a link points to.
pub(crate) fn lookup(path: &str) -> io::Result<std::fs::Metadata> {
    std::fs::symlink_metadata(path)
}

pub(crate) fn join(directory: &str, name: &str) -> String {
    if directory.ends_with('/') || directory.is_empty() {
        format!("{directory}{name}")
    } else {
        format!("{directory}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_absolute() {
        for (directory, name, expected) in [
            ("/", "a", "/a"),
            ("/a/b", "c", "/a/b/c"),
            ("/a", "/x", "/x"),
            ("/a", "..", "/a/.."),
            ("/a", "../..", "/a/.."),
            ("/", "../../etc", "/etc"),
            ("/a", "./b//c/", "/a/b/c/"),
            ("/", ".", "/"),
            ("/", "/", "/"),
            ("/a", "", "/a"),
        ] {
            assert_eq!(absolute(directory, name), expected, "{directory} {name}");
        }
        assert_eq!(logical("/a/b", "../c/."), "/a/c");
        assert_eq!(logical("/a", "../../.."), "/");
        for (path, base) in [
            ("/", "/"),
            ("", ""),
            ("a/", "a"),
            ("/x/y", "y"),
            ("//", "/"),
        ] {
            assert_eq!(base_name(path), base);
        }
    }
}
