//! `wget` and `nc`: TCP through the host.

use super::process;
use crate::context::{about, fail, usage, Context, Fail, Outcome};
use crate::host::{self, Stream};
use crate::{files, options, sys};
use std::io::{BufRead, BufReader, Read, Write};

/// Of a response's head.
const LONGEST_LINE: u64 = 64 << 10;
const MOST_REDIRECTS: u32 = 10;

#[derive(Debug, PartialEq, Clone)]
struct Url {
    host: String,
    port: u16,
    /// path and query
    path: String,
}

fn url(text: &str) -> Result<Url, String> {
    let rest = match text.split_once("://") {
        None => text,
        Some(("http", rest)) => rest,
        Some((scheme, _)) => return Err(format!("{scheme}: only http is spoken here")),
    };
    let rest = rest.split('#').next().unwrap_or(rest);
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let authority = authority.rsplit('@').next().unwrap_or(authority);
    let (host, port) = match authority
        .strip_prefix('[')
        .and_then(|rest| rest.split_once(']'))
    {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match authority.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = match port {
        None | Some("") => 80,
        Some(port) => port.parse().map_err(|_| format!("{port}: not a port"))?,
    };
    if host.is_empty() || text.contains(|c: char| c.is_ascii_control() || c == ' ') {
        return Err(format!("'{text}' is not a URL"));
    }
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    Ok(Url {
        host: host.to_owned(),
        port,
        path,
    })
}

struct Response {
    status: u16,
    line: String,
    fields: Vec<(String, String)>,
}

impl Response {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

fn line(reader: &mut dyn BufRead) -> Result<String, String> {
    let mut line = Vec::new();
    match reader.take(LONGEST_LINE).read_until(b'\n', &mut line) {
        Ok(_) if line.last() == Some(&b'\n') => {
            Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
        }
        Ok(_) => Err("the connection ended in the middle of the response".to_owned()),
        Err(error) => Err(about("connection", &error)),
    }
}

fn head(reader: &mut dyn BufRead) -> Result<Response, String> {
    loop {
        let first = line(reader)?;
        let status = match first
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.get(2..5))
            .and_then(|code| code.parse().ok())
        {
            Some(status) => status,
            None => {
                return Err(format!(
                    "'{}' is no HTTP response",
                    first.chars().take(60).collect::<String>()
                ))
            }
        };
        let mut fields = Vec::new();
        loop {
            let line = line(reader)?;
            if line.is_empty() {
                break;
            }
            if fields.len() >= 256 {
                return Err("the response has more than 256 fields".to_owned());
            }
            if let Some((name, value)) = line.split_once(':') {
                fields.push((name.trim().to_owned(), value.trim().to_owned()));
            }
        }
        if status != 100 {
            return Ok(Response {
                status,
                line: first,
                fields,
            });
        }
    }
}

/// Hands the body on; an error if it is shorter than was said.
fn body(response: &Response, reader: &mut dyn BufRead, out: &mut dyn Write) -> Result<(), Fail> {
    let ended = || {
        Fail::Text(
            1,
            "the connection ended in the middle of the response".to_owned(),
        )
    };
    let mut copy = |reader: &mut dyn BufRead, length: u64| -> Result<u64, Fail> {
        let mut left = length;
        while left > 0 {
            let piece = reader
                .fill_buf()
                .map_err(|error| Fail::Text(1, about("connection", &error)))?;
            let n = (piece.len() as u64).min(left) as usize;
            if n == 0 {
                break;
            }
            out.write_all(&piece[..n])?;
            reader.consume(n);
            left -= n as u64;
        }
        Ok(left)
    };
    if response
        .field("transfer-encoding")
        .map_or(false, |value| value.to_lowercase().contains("chunked"))
    {
        loop {
            let size = line(reader).map_err(|text| Fail::Text(1, text))?;
            let digits = size.split(';').next().unwrap_or("").trim();
            let size = match u64::from_str_radix(digits, 16) {
                Ok(size) => size,
                Err(_) => return fail("a chunk of the response has no size"),
            };
            if size == 0 {
                return Ok(());
            }
            if copy(reader, size)? > 0 {
                return Err(ended());
            }
            line(reader).map_err(|text| Fail::Text(1, text))?;
        }
    }
    match response.field("content-length").map(str::parse::<u64>) {
        Some(Ok(length)) => match copy(reader, length)? {
            0 => Ok(()),
            _ => Err(ended()),
        },
        Some(Err(_)) => fail("the response has a wrong content-length"),
        None => copy(reader, u64::MAX).map(drop),
    }
}

pub(super) fn wget(context: &mut Context) -> Outcome {
    let long = [
        ("output-document", 'O'),
        ("quiet", 'q'),
        ("spider", 's'),
        ("header", 'H'),
        ("post-data", 'D'),
        ("timeout", 'T'),
        ("tries", 't'),
        ("server-response", 'S'),
        ("user-agent", 'U'),
        ("no-check-certificate", 'N'),
        ("directory-prefix", 'P'),
    ];
    let options = options::parse(&context.args, "O:qsH:D:T:t:SU:NP:Y:c", &long)?;
    let first = match options.rest.as_slice() {
        [url] => url,
        _ => return usage("wants one URL"),
    };
    let mut target = url(first).map_err(|text| Fail::Text(1, text))?;
    let mut redirects = 0;
    loop {
        let shown = if target.host.contains(':') {
            format!("[{}]", target.host)
        } else {
            target.host.clone()
        };
        let authority = if target.port == 80 {
            shown.clone()
        } else {
            format!("{shown}:{}", target.port)
        };
        let handle = host::connect(&target.host, target.port).map_err(|errno| {
            Fail::Text(
                1,
                format!("can't connect to {shown} port {}: {errno}", target.port),
            )
        })?;
        let mut stream = Stream(handle);
        let data = options.value('D').filter(|_| redirects == 0);
        let method = match (options.has('s'), data) {
            (true, _) => "HEAD",
            (_, Some(_)) => "POST",
            _ => "GET",
        };
        let agent = options.value('U').unwrap_or("criw-wget");
        let mut request = format!("{method} {} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: {agent}\r\nAccept: */*\r\nConnection: close\r\n", target.path);
        for field in options.values('H') {
            if field.contains(['\r', '\n']) || !field.contains(':') {
                return usage(format!("'{field}' is no header field"));
            }
            request += field;
            request += "\r\n";
        }
        if let Some(data) = data {
            request += &format!(
                "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n",
                data.len()
            );
        }
        request += "\r\n";
        request += data.unwrap_or("");
        let sent = stream.write_all(request.as_bytes());
        // a server may answer before it has read all
        let mut reader = BufReader::new(stream);
        let response = match head(&mut reader) {
            Ok(response) => response,
            Err(text) => return fail(sent.err().map_or(text, |error| about("connection", &error))),
        };
        if options.has('S') {
            writeln!(context.error, "  {}", response.line)?;
            for (name, value) in &response.fields {
                writeln!(context.error, "  {name}: {value}")?;
            }
        }
        if let (301 | 302 | 303 | 307 | 308, Some(location)) =
            (response.status, response.field("location"))
        {
            redirects += 1;
            if redirects > MOST_REDIRECTS {
                return fail("too many redirections");
            }
            target = match location.starts_with('/') {
                true => Url {
                    path: location.to_owned(),
                    ..target
                },
                false => url(location).map_err(|text| Fail::Text(1, text))?,
            };
            continue;
        }
        if !(200..300).contains(&response.status) {
            return fail(format!("server returned error: {}", response.line));
        }
        if options.has('s') {
            return Ok(0);
        }
        let name = match options.value('O') {
            Some(name) => name.to_owned(),
            None => {
                let base =
                    files::base_name(target.path.split('?').next().unwrap_or("/")).to_owned();
                let base = if base == "/" || base.is_empty() {
                    "index.html".to_owned()
                } else {
                    base
                };
                options
                    .value('P')
                    .map_or(base.clone(), |directory| files::join(directory, &base))
            }
        };
        if name == "-" {
            body(&response, &mut reader, &mut context.output)?;
            return Ok(0);
        }
        let mut file = files::create(context, &name, false)
            .map_err(|error| Fail::Text(1, about(&name, &error)))?;
        match body(&response, &mut reader, &mut *file) {
            Err(Fail::Text(_, text)) => return fail(format!("{name}: {text}")),
            result => result?,
        }
        if !options.has('q') {
            writeln!(context.error, "'{name}' saved")?;
        }
        return Ok(0);
    }
}

pub(super) fn nc(context: &mut Context) -> Outcome {
    let options = options::parse(&context.args, "lkp:nvzw:q:u46N", &[])?;
    if options.has('u') {
        return fail("only TCP here");
    }
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) => Ok(port),
        Err(_) => usage(format!("{text}: not a port")),
    };
    if !options.has('l') {
        let (name, number) = match options.rest.as_slice() {
            [name, number] => (name, port(number)?),
            _ => return usage("wants: nc host port, or: nc -l -p port"),
        };
        let handle = host::connect(name, number)
            .map_err(|errno| Fail::Text(1, format!("{name} port {number}: {errno}")))?;
        let stream = Stream(handle);
        if options.has('v') || options.has('z') {
            context.warn(format!("{name} port {number} is open"));
        }
        if options.has('z') {
            return Ok(0);
        }
        return talk(context, stream);
    }
    let number = match (options.value('p'), options.rest.as_slice()) {
        (Some(number), [] | [_]) => port(number)?,
        (None, [number] | [_, number]) => port(number)?,
        _ => return usage("wants: nc -l -p port"),
    };
    let listener = Stream(
        host::listen(number).map_err(|errno| Fail::Text(1, format!("port {number}: {errno}")))?,
    );
    loop {
        let stream = Stream(
            host::accept(listener.0)
                .map_err(|errno| Fail::Text(1, format!("port {number}: {errno}")))?,
        );
        talk(context, stream)?;
        if !options.has('k') {
            return Ok(0);
        }
    }
}

/// Both ways at once: another command (`cat`) carries what comes in, we what goes out.
fn talk(context: &mut Context, mut stream: Stream) -> Outcome {
    let argv = ["criw-toolbox".to_owned(), "cat".to_owned()];
    let streams = [host::from_handle(stream.0), host::OWN, host::OWN];
    let child = process::spawn(context, &argv, &context.env.clone(), streams)?;
    let mut input = context.take_input();
    let mut buffer = vec![0; 16 << 10];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => break,
            // Ctrl-C at a terminal ends a line with 3
            Ok(n) if buffer[n - 1] == 3 && sys::is_terminal(0) => {
                let _ = host::signal(child, 15);
                break;
            }
            Ok(n) => {
                if stream.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                context.warn(about("standard input", &error));
                break;
            }
        }
    }
    // the other side may have closed already
    let _ = host::shutdown_write(stream.0);
    match host::wait_for(child) {
        Ok(_) => Ok(0),
        Err(errno) => fail(format!("can't wait for the copying command: {errno}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::testing::{run, Room};
    use std::net::TcpListener;

    /// Answers one connection after the other; each answer is sent as it is.
    fn server(answers: Vec<&'static str>) -> (u16, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let thread = std::thread::spawn(move || {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut connection, _) = listener.accept().expect("a client");
                let mut request = String::new();
                let mut reader = BufReader::new(&connection);
                while !request.ends_with("\r\n\r\n")
                    && reader.read_line(&mut request).expect("a request") > 0
                {}
                connection
                    .write_all(answer.as_bytes())
                    .expect("a client that reads");
                requests.push(request);
            }
            requests
        });
        (port, thread)
    }

    #[test]
    fn pages_are_fetched() {
        let (port, thread) = server(vec![
            "HTTP/1.1 302 Found\r\nLocation: /next?x=1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef",
            "HTTP/1.0 200 OK\r\n\r\nuntil the end",
        ]);
        assert_eq!(
            run(&format!("wget -q -O - http://127.0.0.1:{port}/start"), "").1,
            "hello world"
        );
        let room = Room::new();
        assert_eq!(
            room.run(
                &format!("wget -q --header=X-Y:z http://127.0.0.1:{port}/dir/file.txt"),
                ""
            )
            .0,
            0
        );
        assert_eq!(room.read("file.txt"), "abc");
        assert_eq!(
            run(&format!("wget -qO- 127.0.0.1:{port}"), "").1,
            "until the end"
        );
        let requests = thread.join().expect("the server");
        assert!(
            requests[0].starts_with("GET /start HTTP/1.1\r\n")
                && requests[1].starts_with("GET /next?x=1 HTTP/1.1\r\n")
        );
        assert!(requests[2].contains("\r\nX-Y:z\r\n"));
    }

    #[test]
    fn bad_servers_and_wrong_use_are_told() {
        let (port, thread) = server(vec![
            "HTTP/1.1 404 Not Found\r\n\r\n",
            "nonsense\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\nX",
            "",
        ]);
        for text in [
            "404 Not Found",
            "no HTTP response",
            "ended in the middle",
            "no size",
            "ended in the middle",
            "ended in the middle",
        ] {
            let (code, _, error) = run(&format!("wget -q -O - http://127.0.0.1:{port}/"), "");
            assert!(code == 1 && error.contains(text), "{error}");
        }
        thread.join().expect("the server");
        for command in [
            "wget",
            "wget https://x/",
            "wget http:///x",
            "wget http://h:99999/",
            "wget a b",
            "nc",
            "nc x",
            "nc h x",
            "nc -l",
            "nc -u h 1",
            "nc -l -p x",
        ] {
            assert_eq!(run(command, "").0, 1, "{command}");
        }
        // the server's port is free again
        assert!(run(&format!("wget -q -O - http://127.0.0.1:{port}/"), "")
            .2
            .contains("Connection refused"));
        assert!(run(&format!("nc 127.0.0.1 {port}"), "")
            .2
            .contains("Connection refused"));
    }

    #[test]
    fn urls_are_taken_apart() {
        for (text, host, port, path) in [
            ("http://h", "h", 80, "/"),
            ("h:81/x?y#z", "h", 81, "/x?y"),
            ("http://u:p@h/x", "h", 80, "/x"),
            ("http://[::1]:8080?q", "::1", 8080, "/?q"),
        ] {
            assert_eq!(
                url(text),
                Ok(Url {
                    host: host.to_owned(),
                    port,
                    path: path.to_owned()
                })
            );
        }
    }
}
