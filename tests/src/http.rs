//! A minimal HTTP/1.1 client: one request per connection, enough for a registry's
//! push API and for asking a guest's web server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail};

use crate::wait::PATIENCE;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, without the framing of chunks.
    pub body: Vec<u8>,
}

impl Answer {
    /// First header of that (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends one request and reads the answer to its end.
pub fn request(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer> {
    let what = || format!("{method} {address}{target}");
    let mut stream = connect(address).with_context(what)?;
    exchange(&mut stream, address, method, target, headers, body).with_context(what)
}

/// A connection whose reads and writes end within a deadline.
pub(crate) fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One request and its answer on a connection that is closed afterwards.
pub(crate) fn exchange(
    stream: &mut (impl Read + Write),
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer> {
    let mut head = format!(
        "{method} {target} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    stream.flush()?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&bytes)
}

/// `GET`, the body as text; any status but 200 is an error.
pub fn get(address: SocketAddr, target: &str) -> Result<String> {
    let answer = request(address, "GET", target, &[], &[])?;
    if answer.status != 200 {
        bail!("GET {address}{target}: status {}", answer.status);
    }
    Ok(answer.text())
}

fn parse(bytes: &[u8]) -> Result<Answer> {
    let end = bytes
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .context("the answer has no end of headers")?;
    let head = std::str::from_utf8(&bytes[..end]).context("the answer's head is not text")?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .context("the answer has no status")?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_lowercase(), value.trim().to_owned()))
        .collect();
    let mut answer = Answer {
        status,
        headers,
        body: bytes[end + 4..].to_vec(),
    };
    if answer.header("transfer-encoding") == Some("chunked") {
        answer.body = unchunk(&answer.body)?;
    }
    Ok(answer)
}

/// The content of a chunked body; one that ends early is an error.
fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let end = rest
            .windows(2)
            .position(|window| window == b"\r\n")
            .context("the chunked body ends early")?;
        let size = std::str::from_utf8(&rest[..end])?;
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).context("the size of a chunk")?;
        if size == 0 {
            return Ok(content);
        }
        let chunk = rest
            .get(end + 2..end + 2 + size)
            .context("a chunk ends early")?;
        content.extend_from_slice(chunk);
        rest = rest.get(end + 4 + size..).context("a chunk ends early")?;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_answer_is_taken_apart() {
        let answer = super::parse(b"HTTP/1.1 202 Accepted\r\nLocation: /v2/x\r\n\r\nbody").unwrap();
        assert_eq!(answer.status, 202);
        assert_eq!(answer.header("location"), Some("/v2/x"));
        assert_eq!(answer.text(), "body");
        assert!(super::parse(b"HTTP/1.1 200 OK\r\n").is_err());
    }

    #[test]
    fn chunks_are_put_together() {
        let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let parse = |body: &str| super::parse(format!("{head}{body}").as_bytes());
        let answer = parse("5\r\nhello\r\nC;x=y\r\n, you\r\nthere\r\n0\r\n\r\n").unwrap();
        assert_eq!(answer.text(), "hello, you\r\nthere");
        for cut in ["", "5\r\nhell", "5\r\nhello", "5\r\nhello\r\n", "x\r\n"] {
            assert!(parse(cut).is_err(), "{cut:?}");
        }
    }
}
