//! Names of guests as names of files: readable where they can be, never a way out of the
//! directory, and the other way round without loss.
//!
//! `/`, `%`, control characters and a point in front are written as `%` and two digits; a name
//! of nothing is `%`. So nothing that a guest names begins with a point: such files are ours.

/// Bytes of a file's name that a guest's name may become; file systems take 255.
const MAX: usize = 250;

/// The file's name. The error says what is wrong with it.
pub(super) fn encode(name: &str) -> Result<String, String> {
    let mut file = String::with_capacity(name.len());
    for (at, character) in name.char_indices() {
        match character {
            '/' | '%' | '\x7f' | '\0'..='\x1f' => escape(&mut file, character),
            '.' if at == 0 => escape(&mut file, character),
            other => file.push(other),
        }
    }
    if name.is_empty() {
        file.push('%');
    }
    if file.len() > MAX {
        return Err(format!(
            "the name has {} bytes, at most {MAX} are possible (\"/\", \"%\" and control characters count as three)",
            file.len()
        ));
    }
    Ok(file)
}

fn escape(file: &mut String, character: char) {
    use std::fmt::Write as _;
    // Writing to a string never fails.
    let _ = write!(file, "%{:02X}", u32::from(character));
}

/// The guest's name; `None` for a file that [`encode`] never makes.
pub(super) fn decode(file: &str) -> Option<String> {
    let mut name = String::with_capacity(file.len());
    let mut rest = file;
    while let Some(at) = rest.find('%').filter(|_| file != "%") {
        let digits = rest.get(at + 1..at + 3)?;
        name.push_str(&rest[..at]);
        name.push(char::from(u8::from_str_radix(digits, 16).ok()?));
        rest = &rest[at + 3..];
    }
    if file != "%" {
        name.push_str(rest);
    }
    (encode(&name).as_deref() == Ok(file)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for (name, file) in [
            ("plain-1_2.txt", "plain-1_2.txt"),
            ("", "%"),
            ("%", "%25"),
            (".", "%2E"),
            ("..", "%2E."),
            (".lock", "%2Elock"),
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
            ("a\0b\n", "a%00b%0A"),
            ("grün 日本:*?", "grün 日本:*?"),
            ("%41", "%2541"),
        ] {
            assert_eq!(encode(name).unwrap(), file);
            assert_eq!(decode(file).as_deref(), Some(name));
        }
        assert!(encode(&"x".repeat(250)).is_ok());
        assert!(encode(&"x".repeat(251)).unwrap_err().contains("251"));
        assert!(encode(&"/".repeat(84)).unwrap_err().contains("252"));
    }

    #[test]
    fn files_of_others_are_no_names() {
        for file in [
            ".lock", ".new", "%41", "%4", "a%", "%zz", "%2e", "a%é", "%FF",
        ] {
            assert_eq!(decode(file), None, "{file}");
        }
    }
}
