//! skeleton
/// Keeps an image's content on disk while it lives.
#[derive(Debug)]
pub struct Hold {}
