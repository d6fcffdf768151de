//! Sizes of a client's terminal: JSON objects one after the other, cut anywhere. Pure.

use serde::Deserialize;

/// Bytes that may come without being a whole object.
const MAX_OBJECT: usize = 1024;

/// Columns and rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// What came and is no whole object yet.
#[derive(Debug, Default)]
pub struct Sizes(Vec<u8>);

impl Sizes {
    /// The last size of what has come by now: those before it are history. The error
    /// is for a stream that is none of sizes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<Size>, &'static str> {
        self.0.extend_from_slice(bytes);
        let mut sizes = serde_json::Deserializer::from_slice(&self.0).into_iter::<Size>();
        let mut last = None;
        loop {
            match sizes.next() {
                Some(Ok(size)) => last = Some(size),
                None => break,
                Some(Err(error)) if error.is_eof() => break,
                Some(Err(_)) => return Err("the resize stream holds no sizes"),
            }
        }
        let read = sizes.byte_offset();
        self.0.drain(..read);
        if self.0.len() > MAX_OBJECT {
            return Err("a size has no end");
        }
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_may_be_cut_anywhere() {
        let text = br#"{"Width":80,"Height":24}{"Width":132,"Height":50}
{"Width":1,"Height":2}"#;
        for step in 1..text.len() {
            let mut sizes = Sizes::default();
            let last = text
                .chunks(step)
                .filter_map(|piece| sizes.feed(piece).unwrap())
                .last();
            let expected = Size {
                width: 1,
                height: 2,
            };
            assert_eq!(last, Some(expected), "pieces of {step}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "x",
            "[1]",
            r#"{"Width":80}"#,
            r#"{"Width":-1,"Height":2}"#,
            r#"{"Width":65536,"Height":2}"#,
        ] {
            assert!(Sizes::default().feed(text.as_bytes()).is_err(), "{text}");
        }
        let mut sizes = Sizes::default();
        assert!(
            sizes
                .feed(format!("{{\"{}", "x".repeat(2000)).as_bytes())
                .is_err()
        );
    }
}
