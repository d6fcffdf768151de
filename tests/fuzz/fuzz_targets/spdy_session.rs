//! A well-formed SPDY connection that the fuzzer composes: each stream brings just the
//! bytes that were sent on it, in their order, and each odd ping is answered.

#![no_main]

use std::collections::BTreeMap;

use criw_fuzz::streaming::channels::Peer;
use criw_fuzz::streaming::spdy::connection;
use criw_fuzz::streaming::spdy::frame;
use criw_fuzz::streaming::spdy::header::{Blocks, Headers};
use criw_fuzz::{Heard, Source, answered_pings, client, hear, run};
use libfuzzer_sys::fuzz_target;

/// Frames of one input: below what may wait for a client that does not read.
const MOST: usize = 200;

const NAMES: [&str; 4] = ["streamtype", "port", "requestid", "x"];

fuzz_target!(|input: &[u8]| {
    let mut source = Source(input);
    let piece = 1 + 16 * usize::from(source.byte());
    let mut script = Script::default();
    for _ in 0..MOST {
        if source.is_empty() {
            break;
        }
        script.add(&mut source);
    }
    let Script {
        bytes,
        streams: expected,
        pings,
        ..
    } = script;
    run(async {
        let (near, far) = tokio::io::duplex(4096);
        let (mut streams, link) = connection::serve(far, Peer::unknown());
        let session = async {
            let mut readers = Vec::new();
            while let Some(new) = streams.recv().await {
                let (id, headers, incoming, outgoing) = new.accept().expect("the client reads");
                readers.push((id, headers, outgoing, tokio::spawn(hear(incoming))));
            }
            let mut found = BTreeMap::new();
            for (id, headers, _outgoing, reader) in readers {
                let heard = reader.await.expect("a session reads to the end");
                found.insert(id, (headers, heard));
            }
            link.close().await;
            found
        };
        let (answer, found) = tokio::join!(client(near, bytes, piece), session);
        assert_eq!(answered_pings(&answer), pings);
        assert_eq!(found.len(), expected.len());
        for ((id, (headers, heard)), (wanted_id, wanted)) in found.into_iter().zip(expected) {
            assert_eq!(id, wanted_id);
            assert_eq!(headers, wanted.headers);
            assert_eq!(heard, wanted.heard, "stream {id}");
        }
    });
});

/// What a client sends, and what has to come of it.
#[derive(Default)]
struct Script {
    bytes: Vec<u8>,
    blocks: Blocks,
    streams: BTreeMap<u32, Stream>,
    pings: Vec<u32>,
}

#[derive(Default)]
struct Stream {
    headers: Headers,
    heard: Heard,
    reset: bool,
}

impl Script {
    fn add(&mut self, source: &mut Source<'_>) {
        let choice = source.byte();
        match choice % 8 {
            0 | 1 => self.open(choice & 0x80 != 0, source),
            2..=4 => self.data(choice & 0x80 != 0, source),
            5 => {
                let id = self.pick(source);
                self.bytes
                    .extend_from_slice(&frame::reset(id, frame::Reset::Cancel));
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.reset = true;
                }
            }
            6 => {
                let id = u32::from(source.byte());
                self.bytes.extend_from_slice(&frame::ping(id));
                if id % 2 == 1 {
                    self.pings.push(id);
                }
            }
            // SETTINGS of any content are read and ignored.
            _ => {
                let payload = source.bytes(usize::from(source.0.len().min(12) as u8));
                self.control(4, 0, payload);
            }
        }
    }

    fn control(&mut self, kind: u16, flags: u8, payload: &[u8]) {
        self.bytes.extend_from_slice(&0x8003_u16.to_be_bytes());
        self.bytes.extend_from_slice(&kind.to_be_bytes());
        let length = (payload.len() as u32).to_be_bytes();
        self.bytes
            .extend_from_slice(&[flags, length[1], length[2], length[3]]);
        self.bytes.extend_from_slice(payload);
    }

    fn open(&mut self, fin: bool, source: &mut Source<'_>) {
        let last = self.streams.keys().next_back().copied();
        let id = last.map_or(1, |last| last + 2 * (1 + u32::from(source.byte() % 4)));
        let count = usize::from(source.byte()) % (NAMES.len() + 1);
        let values: Vec<String> = (0..count)
            .map(|_| {
                let length = usize::from(source.byte());
                String::from_utf8_lossy(source.bytes(length)).into_owned()
            })
            .collect();
        let pairs: Vec<(&str, &str)> = NAMES
            .into_iter()
            .zip(values.iter().map(String::as_str))
            .collect();
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend_from_slice(&[0; 6]);
        payload.extend_from_slice(&self.blocks.block(&pairs));
        self.control(1, u8::from(fin), &payload);
        let stream = Stream {
            headers: Headers::new(&pairs),
            heard: Heard {
                bytes: Vec::new(),
                ended: fin,
            },
            reset: false,
        };
        self.streams.insert(id, stream);
    }

    fn data(&mut self, fin: bool, source: &mut Source<'_>) {
        let id = self.pick(source);
        let length = usize::from(source.byte()) << (source.byte() % 9);
        let fill = source.byte();
        let bytes: Vec<u8> = (0..length).map(|at| fill.wrapping_add(at as u8)).collect();
        self.bytes.extend_from_slice(&frame::data(id, fin, length));
        self.bytes.extend_from_slice(&bytes);
        // After its end or reset a stream brings nothing.
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.reset
            && !stream.heard.ended
        {
            stream.heard.bytes.extend_from_slice(&bytes);
            stream.heard.ended = fin;
        }
    }

    /// A stream that exists, mostly.
    fn pick(&self, source: &mut Source<'_>) -> u32 {
        let at = usize::from(source.byte());
        let known = self.streams.keys().nth(at % (self.streams.len() + 1));
        known.copied().unwrap_or(0x7fff_fffd)
    }
}
