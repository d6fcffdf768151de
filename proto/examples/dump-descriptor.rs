//! Writes the encoded descriptor set to standard output, for the comparison with
//! upstream's descriptor in critest/descriptor.

use std::io::{self, Write as _};

fn main() -> io::Result<()> {
    io::stdout().write_all(criw_proto::FILE_DESCRIPTOR_SET)
}
