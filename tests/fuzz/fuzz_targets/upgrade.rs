//! Any headers: an answer is one that the client asked for, or a refusal with a status.

#![no_main]

use criw_fuzz::streaming::upgrade::{self, Agreed};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 6] = [
    "connection",
    "upgrade",
    upgrade::STREAM_PROTOCOL,
    "sec-websocket-protocol",
    "sec-websocket-version",
    "sec-websocket-key",
];

fuzz_target!(|input: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in input.split(|byte| *byte == b'\n').take(64) {
        let Some((first, value)) = line.split_first() else {
            continue;
        };
        let name = HeaderName::from_static(NAMES[usize::from(*first) % NAMES.len()]);
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
    for choice in [
        upgrade::remote_command(&headers),
        upgrade::port_forward(&headers),
    ] {
        match choice {
            Ok(choice) => {
                let web_socket = matches!(choice.agreed, Agreed::Channels(..) | Agreed::Tunnel);
                assert_eq!(choice.key.is_some(), web_socket);
                if let Some(name) = choice.name {
                    let asked = headers
                        .values()
                        .any(|value| value.to_str().is_ok_and(|value| value.contains(name)));
                    assert!(asked, "{name} was not asked for");
                }
            }
            Err(refusal) => assert!((400..500).contains(&refusal.status), "{refusal:?}"),
        }
    }
});
