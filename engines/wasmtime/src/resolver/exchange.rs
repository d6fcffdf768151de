//! One question to the name servers: UDP, then TCP if the answer was cut.
//! Answers come from outside: what does not fit the question is ignored.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::files::Config;

/// Bytes of an answer by UDP; we do not ask for more than the classic 512.
const MAX_DATAGRAM: usize = 4096;

/// Aliases that are followed within one answer.
const MAX_ALIASES: usize = 16;

/// Addresses of one answer.
const MAX_ADDRESSES: usize = 64;

/// What is known about a name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Addresses(Vec<IpAddr>),
    /// It does not exist, or has no address of this kind.
    Nothing,
    /// No server gave an answer.
    NoServer,
}

/// Asks the servers in turn until one answers.
pub(crate) async fn ask(config: &Config, name: &Name, kind: RecordType) -> Answer {
    for _ in 0..config.attempts {
        for server in &config.servers {
            let exchange = exchange(config, *server, name, kind);
            let Ok(Ok(message)) = tokio::time::timeout(config.timeout, exchange).await else {
                continue;
            };
            match message.metadata.response_code {
                ResponseCode::NoError => return answer(&message, name, kind),
                ResponseCode::NXDomain => return Answer::Nothing,
                _ => {}
            }
        }
    }
    Answer::NoServer
}

async fn exchange(
    config: &Config,
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
) -> io::Result<Message> {
    let mut id = [0; 2];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    let mut question = Message::new(u16::from_ne_bytes(id), MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), kind));
    let bytes = question.to_vec().map_err(io::Error::other)?;
    if !config.tcp {
        let message = by_udp(server, &question, &bytes).await?;
        if !message.metadata.truncation {
            return Ok(message);
        }
    }
    by_tcp(server, &question, &bytes).await
}

async fn by_udp(server: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    // Connected: the kernel drops datagrams of others.
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(message) = parse(&buffer[..length], question) {
            return Ok(message);
        }
    }
}

async fn by_tcp(server: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    parse(&answer, question).ok_or_else(|| io::Error::other("the answer does not fit the question"))
}

/// The message, if it answers this question.
fn parse(bytes: &[u8], question: &Message) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let fits = message.metadata.id == question.metadata.id
        && message.metadata.message_type == MessageType::Response
        && message.queries == question.queries;
    fits.then_some(message)
}

/// The addresses of a name in an answer, over its aliases.
fn answer(message: &Message, name: &Name, kind: RecordType) -> Answer {
    let mut wanted = name.clone();
    for _ in 0..MAX_ALIASES {
        let mut alias = None;
        let mut found = Vec::new();
        for record in message
            .answers
            .iter()
            .filter(|record| record.name == wanted)
        {
            match (&record.data, kind) {
                (RData::A(address), RecordType::A) => found.push(IpAddr::V4(address.0)),
                (RData::AAAA(address), RecordType::AAAA) => found.push(IpAddr::V6(address.0)),
                (RData::CNAME(target), _) => alias = Some(target.0.clone()),
                _ => {}
            }
        }
        found.truncate(MAX_ADDRESSES);
        match alias {
            _ if !found.is_empty() => return Answer::Addresses(found),
            Some(next) => wanted = next,
            None => return Answer::Nothing,
        }
    }
    Answer::Nothing
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, AAAA, CNAME};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn question() -> Message {
        let mut question = Message::new(7, MessageType::Query, OpCode::Query);
        question.add_query(Query::query(name("a.test."), RecordType::A));
        question
    }

    #[test]
    fn aliases_are_followed_and_loops_end() {
        let record = |owner: &str, data| Record::from_rdata(name(owner), 1, data);
        let alias = |owner: &str, target: &str| record(owner, RData::CNAME(CNAME(name(target))));
        let address = record("c.test.", RData::A(A::new(10, 0, 0, 1)));
        let other = record("c.test.", RData::AAAA(AAAA::new(1, 0, 0, 0, 0, 0, 0, 2)));
        let mut message = question();
        message.answers = vec![alias("a.test.", "B.test."), address, other];
        message.answers.push(alias("b.test.", "c.test."));
        let ask = |message: &Message, kind| answer(message, &name("a.test."), kind);
        let found = Answer::Addresses(vec!["10.0.0.1".parse().unwrap()]);
        assert_eq!(ask(&message, RecordType::A), found);
        let found = Answer::Addresses(vec!["1::2".parse().unwrap()]);
        assert_eq!(ask(&message, RecordType::AAAA), found);
        message.answers = vec![alias("a.test.", "a.test.")];
        assert_eq!(ask(&message, RecordType::A), Answer::Nothing);
        message.answers.clear();
        assert_eq!(ask(&message, RecordType::A), Answer::Nothing);
    }

    #[test]
    fn answers_to_other_questions_are_ignored() {
        let question = question();
        let bytes = |change: &dyn Fn(&mut Message)| {
            let mut message = question.clone();
            message.metadata.message_type = MessageType::Response;
            change(&mut message);
            message.to_vec().unwrap()
        };
        assert!(parse(&bytes(&|_| {}), &question).is_some());
        for wrong in [
            bytes(&|message| message.metadata.id = 8),
            bytes(&|message| message.metadata.message_type = MessageType::Query),
            bytes(&|message| message.queries.clear()),
            bytes(&|message| {
                message.queries[0].set_name(name("b.test."));
            }),
            b"rubbish".to_vec(),
            Vec::new(),
        ] {
            assert!(parse(&wrong, &question).is_none(), "{wrong:?}");
        }
    }
}
