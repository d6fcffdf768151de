//! What is read: one module, or with `--link` several, each behind its name.

use std::io::Read;

use super::Failure;
use super::link::Part;

/// Bytes of a module, and of all modules that are linked. Compiling takes about twenty
/// times as much memory.
const MAX_MODULE: usize = 256 << 20;

/// Bytes of a name.
const MAX_NAME: usize = 4096;

/// A module alone.
pub(super) fn module(input: impl Read) -> Result<Vec<u8>, Failure> {
    let mut module = Vec::new();
    input
        .take(MAX_MODULE as u64 + 1)
        .read_to_end(&mut module)
        .map_err(|error| Failure::Internal(format!("read module: {error}")))?;
    if module.len() > MAX_MODULE {
        return Err(too_large());
    }
    Ok(module)
}

/// Several: of each the length of its name, the name, its own length, its bytes. Lengths
/// are eight bytes, the lowest first.
pub(super) fn parts(mut input: impl Read) -> Result<Vec<Part>, Failure> {
    let mut parts = Vec::new();
    let mut left = MAX_MODULE;
    while let Some(length) = length(&mut input)? {
        if length > MAX_NAME {
            return Err(broken());
        }
        let name = String::from_utf8_lossy(&exactly(&mut input, length)?).into_owned();
        let length = self::length(&mut input)?.ok_or_else(broken)?;
        left = left.checked_sub(length).ok_or_else(too_large)?;
        let bytes = exactly(&mut input, length)?;
        parts.push(Part { name, bytes });
    }
    if parts.is_empty() {
        return Err(broken());
    }
    Ok(parts)
}

fn too_large() -> Failure {
    Failure::Invalid(format!(
        "the module, with all that it may be linked with, has more than {MAX_MODULE} bytes"
    ))
}

fn broken() -> Failure {
    Failure::Internal("the modules to link did not come whole".to_owned())
}

/// `None` at the end of the input.
fn length(input: &mut impl Read) -> Result<Option<usize>, Failure> {
    let mut bytes = Vec::new();
    let read = input.take(8).read_to_end(&mut bytes);
    read.map_err(|error| Failure::Internal(format!("read modules: {error}")))?;
    match <[u8; 8]>::try_from(bytes.as_slice()) {
        Ok(bytes) => Ok(Some(
            usize::try_from(u64::from_le_bytes(bytes)).map_err(|_| broken())?,
        )),
        Err(_) if bytes.is_empty() => Ok(None),
        Err(_) => Err(broken()),
    }
}

/// Memory follows what comes, not what was announced.
fn exactly(input: &mut impl Read, length: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = input.take(length as u64).read_to_end(&mut bytes);
    read.map_err(|error| Failure::Internal(format!("read modules: {error}")))?;
    if bytes.len() != length {
        return Err(broken());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(name: &[u8], bytes: &[u8]) -> Vec<u8> {
        let mut all = (name.len() as u64).to_le_bytes().to_vec();
        all.extend(name);
        all.extend((bytes.len() as u64).to_le_bytes());
        all.extend(bytes);
        all
    }

    #[test]
    fn several_modules_come_whole_or_not_at_all() {
        let mut whole = framed(b"a.wasm", b"first");
        whole.extend(framed(b"", b""));
        let read = parts(whole.as_slice()).unwrap();
        let read: Vec<_> = read.iter().map(|p| (&*p.name, &*p.bytes)).collect();
        assert_eq!(read, [("a.wasm", &b"first"[..]), ("", b"")]);
        for cut in [0, 1, 7, 9, 20, whole.len() - 1] {
            assert!(parts(&whole[..cut]).is_err(), "cut at {cut}");
        }
        for huge in [MAX_NAME as u64 + 1, u64::MAX] {
            assert!(parts(huge.to_le_bytes().as_slice()).is_err(), "{huge}");
        }
        let mut large = framed(b"a", b"");
        let at = large.len() - 8;
        large[at..].copy_from_slice(&(MAX_MODULE as u64 + 1).to_le_bytes());
        let Err(Failure::Invalid(text)) = parts(large.as_slice()) else {
            panic!("taken");
        };
        assert!(text.contains("more than"), "{text}");
    }
}
