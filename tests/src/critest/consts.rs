//! The one change made to critest: the digest by which it asks for an image.
//!
//! Applied at build time to a copy of the module's own file, see `critest/build.sh`:
//! nothing of critest is kept in this repository.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::images;

/// Start of the reference in critest's source.
const REFERENCE: &str = "\"test-image-digest@sha256:";

/// Length of a SHA-256 in hexadecimal digits.
const DIGITS: usize = 64;

/// Changes `pkg/validate/consts.go` of a copy of cri-tools in place.
pub fn change(file: &Path) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let digest = images::by_digest()?.top.digest;
    let changed = replace(&text, &digest).with_context(|| format!("change {}", file.display()))?;
    std::fs::write(file, changed).with_context(|| format!("write {}", file.display()))
}

/// The text with the reference naming `digest` (`sha256:…`).
fn replace(text: &str, digest: &str) -> Result<String> {
    let hex = digest
        .strip_prefix("sha256:")
        .context("digest is not a SHA-256")?;
    let mut places = text.match_indices(REFERENCE);
    let (start, _) = places
        .next()
        .context("no reference by digest in it: another version of cri-tools?")?;
    ensure!(
        places.next().is_none(),
        "more than one reference by digest in it"
    );
    let (head, tail) = text.split_at(start + REFERENCE.len());
    let (old, rest) = tail
        .split_at_checked(DIGITS)
        .context("the reference is cut short")?;
    ensure!(
        old.bytes().all(|digit| digit.is_ascii_hexdigit()) && rest.starts_with('"'),
        "the reference holds no SHA-256"
    );
    Ok(format!("{head}{hex}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(digest: &str) -> String {
        format!(
            "\ta = registry + \"test-image-digest@{digest}\"\n\tb = registry + \"win-test-image-digest@sha256:0e8c\"\n"
        )
    }

    #[test]
    fn only_the_digest_changes() {
        let (old, new) = (format!("sha256:{:064x}", 1), format!("sha256:{:064x}", 2));
        assert_eq!(replace(&source(&old), &new).unwrap(), source(&new));
    }

    #[test]
    fn a_source_of_another_form_is_refused() {
        let new = format!("sha256:{:064x}", 2);
        let twice = source(&new).repeat(2);
        for text in ["", &source("sha256:abc"), &source(&"x".repeat(80)), &twice] {
            assert!(replace(text, &new).is_err(), "{text}");
        }
    }
}
