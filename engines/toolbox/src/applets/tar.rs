//! `tar`: c, x and t of ustar archives with GNU's and POSIX's long names. What `kubectl cp`
//! needs, and the archives that people carry around; no compression.

use super::tar_read;
use crate::context::{about, usage, Context, Fail, Outcome};
use crate::glob::Pattern;
use crate::{files, options};
use std::io::Write;

pub(super) const BLOCK: usize = 512;

pub(super) struct Tar {
    pub(super) options: options::Options,
    /// where relative names are looked for
    pub(super) directory: String,
    pub(super) excluded: Vec<Pattern>,
}

pub(super) fn wrong<T>(text: impl Into<String>) -> Result<T, Fail> {
    Err(Fail::Text(2, text.into()))
}

pub(super) fn run(context: &mut Context) -> Outcome {
    let long = [
        ("create", 'c'),
        ("extract", 'x'),
        ("get", 'x'),
        ("list", 't'),
        ("file", 'f'),
        ("directory", 'C'),
        ("verbose", 'v'),
        ("touch", 'm'),
        ("exclude", 'X'),
        ("strip-components", 'N'),
        ("no-same-owner", 'o'),
        ("no-same-permissions", 'R'),
        ("numeric-owner", 'R'),
        ("keep-old-files", 'k'),
        ("overwrite", 'R'),
        ("dereference", 'h'),
        ("to-stdout", 'O'),
        ("preserve-permissions", 'p'),
        ("gzip", 'z'),
    ];
    let mut args = context.args.clone();
    // old style: the first word is letters without a dash, values follow in order
    if let Some(first) = args.first().filter(|word| !word.starts_with('-')).cloned() {
        args.remove(0);
        let mut values = Vec::new();
        for letter in first.chars() {
            let takes = "fCX".contains(letter);
            if takes && args.is_empty() {
                return usage(format!("{letter} wants a value"));
            }
            values.push(if takes {
                format!("-{letter}{}", args.remove(0))
            } else {
                format!("-{letter}")
            });
        }
        args.splice(0..0, values);
    }
    // -C stands between names, and is meant for those behind it; one is enough for all we know of
    let options = options::parse(&args, "cxtf:C:vmX:N:oRkhOpzPjJ", &long)?;
    if options.has('z') || options.has('j') || options.has('J') {
        return wrong(
            "no compression here: (un)compress on the other side, as in: gzip -d | tar x",
        );
    }
    let mut directory = context.directory.clone();
    for value in options.values('C') {
        directory = files::absolute(&directory, value);
    }
    if !std::fs::metadata(&directory).map_or(false, |data| data.is_dir()) {
        return wrong(format!(
            "{}: no such directory",
            options.value('C').unwrap_or(".")
        ));
    }
    let excluded = options
        .values('X')
        .map(|text| Pattern::new(text.as_bytes()))
        .collect();
    let tar = Tar {
        options,
        directory,
        excluded,
    };
    match tar.options.last_of("cxt") {
        Some('c') => tar.create(context),
        Some(_) => tar_read::run(&tar, context),
        None => usage("wants one of c, x and t"),
    }
}

impl Tar {
    pub(super) fn is_excluded(&self, name: &str) -> bool {
        let name = name.trim_end_matches('/');
        self.excluded.iter().any(|pattern| {
            pattern.matches(name.as_bytes()) || pattern.matches(files::base_name(name).as_bytes())
        })
    }

    fn create(&self, context: &mut Context) -> Outcome {
        if self.options.rest.is_empty() {
            return wrong("refused to make an empty archive: wants names");
        }
        let file = self.options.value('f').unwrap_or("-").to_owned();
        let own = file == "-";
        let mut output: Box<dyn Write> = if own {
            std::mem::replace(&mut context.output, Box::new(std::io::sink()))
        } else {
            match files::create(context, &file, false) {
                Ok(file) => Box::new(std::io::BufWriter::new(file)),
                Err(error) => return wrong(about(&file, &error)),
            }
        };
        let archive = if own { None } else { Some(context.path(&file)) };
        let result = self.write_all(context, &mut *output, archive.as_deref());
        let result = result.and_then(|code| {
            output.write_all(&[0; 2 * BLOCK])?;
            output.flush()?;
            Ok(code)
        });
        if own {
            context.output = output;
        }
        result
    }

    fn write_all(
        &self,
        context: &mut Context,
        output: &mut dyn Write,
        archive: Option<&str>,
    ) -> Outcome {
        let mut code = 0;
        for root in &self.options.rest {
            let mut work = vec![root.clone()];
            while let Some(name) = work.pop() {
                let path = files::absolute(&self.directory, &name);
                if self.is_excluded(&name) || archive == Some(path.as_str()) {
                    continue;
                }
                match self.write_one(context, output, &name, path.trim_end_matches('/')) {
                    Ok(below) => work.extend(below.into_iter().rev()),
                    Err(Fail::Text(_, text)) => {
                        context.warn(text);
                        code = 1;
                    }
                    Err(fail) => return Err(fail),
                }
            }
        }
        Ok(code)
    }

    /// Writes one entry; the names below it.
    fn write_one(
        &self,
        context: &mut Context,
        output: &mut dyn Write,
        name: &str,
        path: &str,
    ) -> Result<Vec<String>, Fail> {
        let path = if path.is_empty() { "/" } else { path };
        let failed = |error: &std::io::Error| Fail::Text(1, about(name, error));
        let data = if self.options.has('h') {
            std::fs::metadata(path)
        } else {
            files::lookup(path)
        };
        let data = data.map_err(|error| failed(&error))?;
        // as everybody does: no absolute names, none that climb
        let mut stored = name.trim_start_matches('/').to_owned();
        while let Some(rest) = stored.strip_prefix("../") {
            stored = rest.to_owned();
        }
        if stored.is_empty() || stored == ".." {
            stored = ".".to_owned();
        }
        let (seconds, _) = super::file::modified(&data);
        if self.options.has('v') {
            let stream = if self.options.value('f').unwrap_or("-") == "-" {
                &mut context.error
            } else {
                &mut context.output
            };
            writeln!(stream, "{stored}")?;
        }
        if data.is_dir() {
            if !stored.ends_with('/') {
                stored.push('/');
            }
            let names = files::list(path).map_err(|error| failed(&error))?;
            output.write_all(&header(&stored, b'5', 0, seconds, ""))?;
            return Ok(names.iter().map(|below| files::join(name, below)).collect());
        }
        if data.file_type().is_symlink() {
            let target = std::fs::read_link(path).map_err(|error| failed(&error))?;
            output.write_all(&header(
                &stored,
                b'2',
                0,
                seconds,
                &target.to_string_lossy(),
            ))?;
            return Ok(Vec::new());
        }
        let file = std::fs::File::open(path).map_err(|error| failed(&error))?;
        let size = data.len();
        output.write_all(&header(&stored, b'0', size, seconds, ""))?;
        // exactly as many bytes as the header says, however the file grows or shrinks
        let mut reader = std::io::Read::take(file, size);
        let mut left = size;
        let mut buffer = vec![0; 32 << 10];
        let mut error = None;
        while left > 0 {
            match std::io::Read::read(&mut reader, &mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    output.write_all(&buffer[..n])?;
                    left -= n as u64;
                }
                Err(e) => {
                    error = Some(e);
                    break;
                }
            }
        }
        buffer.iter_mut().for_each(|byte| *byte = 0);
        let short = left;
        left += (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        while left > 0 {
            let n = left.min(buffer.len() as u64);
            output.write_all(&buffer[..n as usize])?;
            left -= n;
        }
        match error {
            Some(error) => Err(failed(&error)),
            None if short > 0 => Err(Fail::Text(
                1,
                format!("{name}: became shorter while it was read"),
            )),
            None => Ok(Vec::new()),
        }
    }
}

fn put(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// A header; in front of it GNU's entries for a name or a link target that is too long.
pub(super) fn header(name: &str, kind: u8, size: u64, seconds: i64, target: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for (text, long) in [(name, b'L'), (target, b'K')] {
        if text.len() > 100 {
            let mut body = text.as_bytes().to_vec();
            body.push(0);
            out.extend(header("././@LongLink", long, body.len() as u64, 0, ""));
            let padded = (body.len() + BLOCK - 1) / BLOCK * BLOCK;
            body.resize(padded, 0);
            out.extend(body);
        }
    }
    let mut block = [0u8; BLOCK];
    put(&mut block[..100], name.as_bytes());
    // WASI tells neither modes nor owners
    put(
        &mut block[100..108],
        if kind == b'5' { b"0000755" } else { b"0000644" },
    );
    put(&mut block[108..116], b"0000000");
    put(&mut block[116..124], b"0000000");
    if size < 1 << 33 {
        put(&mut block[124..136], format!("{size:011o}").as_bytes());
    } else {
        // GNU's binary numbers
        block[124] = 0x80;
        block[128..136].copy_from_slice(&size.to_be_bytes());
    }
    put(
        &mut block[136..148],
        format!("{:011o}", seconds.clamp(0, (1 << 33) - 1)).as_bytes(),
    );
    block[156] = kind;
    put(&mut block[157..257], target.as_bytes());
    put(&mut block[257..265], b"ustar  ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
    put(&mut block[148..156], format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&block);
    out
}
