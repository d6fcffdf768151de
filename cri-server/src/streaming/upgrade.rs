//! What a client wants its connection to become, out of its request's headers. Pure.

use hyper::header::{CONNECTION, HeaderMap, UPGRADE};

/// Names the sub-protocol of SPDY, both ways.
pub const STREAM_PROTOCOL: &str = "x-stream-protocol-version";

/// The value of `Upgrade`.
pub const SPDY: &str = "SPDY/3.1";

/// Sub-protocol of port forwarding over SPDY.
pub const PORT_FORWARD: &str = "portforward.k8s.io";

/// The same inside a WebSocket.
pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// Versions of the remote-command protocol over SPDY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `channel.k8s.io`, also without a name.
    V1,
    /// With half-close of stdin.
    V2,
    /// With resize.
    V3,
    /// With exit codes.
    V4,
    /// With half-close in a WebSocket.
    V5,
}

impl Version {
    /// Its name on the wire; the oldest has two.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "channel.k8s.io",
            Self::V2 => "v2.channel.k8s.io",
            Self::V3 => "v3.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
            Self::V5 => "v5.channel.k8s.io",
        }
    }
}

/// How channels are written in a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Binary messages.
    Binary,
    /// Text messages.
    Base64,
}

/// What both sides agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreed {
    /// Remote command over SPDY.
    Spdy(Version),
    /// Port forwarding over SPDY.
    SpdyForward,
    /// Channels in a WebSocket.
    Channels(Version, Codec),
    /// Port forwarding over SPDY in a WebSocket.
    Tunnel,
}

/// An agreement, and the name to answer with, if the client gave any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// See [`Agreed`].
    pub agreed: Agreed,
    /// As the client wrote it.
    pub name: Option<&'static str>,
    /// `Sec-WebSocket-Key`, for a WebSocket.
    pub key: Option<String>,
}

/// Why not, as a status code and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// For the user.
    pub text: String,
}

fn refuse<T>(status: u16, text: impl Into<String>) -> Result<T, Refusal> {
    let text = text.into();
    Err(Refusal { status, text })
}

const REMOTE_SPDY: [(&str, Agreed); 4] = [
    ("v4.channel.k8s.io", Agreed::Spdy(Version::V4)),
    ("v3.channel.k8s.io", Agreed::Spdy(Version::V3)),
    ("v2.channel.k8s.io", Agreed::Spdy(Version::V2)),
    ("channel.k8s.io", Agreed::Spdy(Version::V1)),
];

const REMOTE_WEBSOCKET: [(&str, Agreed); 5] = [
    (
        "v5.channel.k8s.io",
        Agreed::Channels(Version::V5, Codec::Binary),
    ),
    (
        "v4.channel.k8s.io",
        Agreed::Channels(Version::V4, Codec::Binary),
    ),
    (
        "v4.base64.channel.k8s.io",
        Agreed::Channels(Version::V4, Codec::Base64),
    ),
    (
        "channel.k8s.io",
        Agreed::Channels(Version::V1, Codec::Binary),
    ),
    (
        "base64.channel.k8s.io",
        Agreed::Channels(Version::V1, Codec::Base64),
    ),
];

const FORWARD_SPDY: [(&str, Agreed); 1] = [(PORT_FORWARD, Agreed::SpdyForward)];

const FORWARD_WEBSOCKET: [(&str, Agreed); 3] = [
    (TUNNEL, Agreed::Tunnel),
    (
        "v4.channel.k8s.io",
        Agreed::Channels(Version::V4, Codec::Binary),
    ),
    (
        "v4.base64.channel.k8s.io",
        Agreed::Channels(Version::V4, Codec::Base64),
    ),
];

/// For exec and attach.
pub fn remote_command(headers: &HeaderMap) -> Result<Choice, Refusal> {
    let unnamed = Agreed::Channels(Version::V1, Codec::Binary);
    let spdy = Agreed::Spdy(Version::V1);
    choose(headers, (&REMOTE_SPDY, spdy), (&REMOTE_WEBSOCKET, unnamed))
}

/// For port forwarding.
pub fn port_forward(headers: &HeaderMap) -> Result<Choice, Refusal> {
    let unnamed = Agreed::Channels(Version::V4, Codec::Binary);
    let spdy = (&FORWARD_SPDY[..], Agreed::SpdyForward);
    choose(headers, spdy, (&FORWARD_WEBSOCKET, unnamed))
}

/// What is offered by name, and what a client gets that names nothing.
type Offer<'a> = (&'a [(&'static str, Agreed)], Agreed);

fn choose(headers: &HeaderMap, spdy: Offer<'_>, websocket: Offer<'_>) -> Result<Choice, Refusal> {
    let wants =
        |value: &str| words(headers, UPGRADE.as_str()).any(|word| word.eq_ignore_ascii_case(value));
    let upgrades = words(headers, CONNECTION.as_str()).any(|w| w.eq_ignore_ascii_case("upgrade"));
    if upgrades && wants("websocket") {
        let version = headers.get("sec-websocket-version");
        if version.is_none_or(|version| version != "13") {
            return refuse(
                426,
                "this server speaks version 13 of the WebSocket protocol",
            );
        }
        let key = headers
            .get("sec-websocket-key")
            .and_then(|k| k.to_str().ok());
        let Some(key) = key.filter(|key| key.len() == 24) else {
            return refuse(400, "the request has no valid Sec-WebSocket-Key");
        };
        let choice = agree(words(headers, "sec-websocket-protocol"), websocket)?;
        let key = Some(key.to_owned());
        return Ok(Choice { key, ..choice });
    }
    if upgrades && wants(SPDY) {
        return agree(words(headers, STREAM_PROTOCOL), spdy);
    }
    refuse(
        400,
        "the request asks for no upgrade of its connection: send Connection: Upgrade with Upgrade: SPDY/3.1 or websocket",
    )
}

/// The first that the client names and this side knows.
fn agree<'a>(named: impl Iterator<Item = &'a str>, offer: Offer<'_>) -> Result<Choice, Refusal> {
    let (offered, unnamed) = offer;
    let named: Vec<&str> = named.collect();
    let choice = |agreed, name| Choice {
        agreed,
        name,
        key: None,
    };
    if named.is_empty() {
        return Ok(choice(unnamed, None));
    }
    for wanted in &named {
        if let Some((name, agreed)) = offered.iter().find(|(name, _)| name == wanted) {
            return Ok(choice(*agreed, Some(name)));
        }
    }
    let offered: Vec<_> = offered.iter().map(|(name, _)| *name).collect();
    refuse(
        403,
        format!(
            "no protocol in common: the client speaks {}, this server {}",
            named.join(", "),
            offered.join(", ")
        ),
    )
}

/// The words of all header lines of a name.
fn words<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(lines: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines.split('|').filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').unwrap();
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value.trim()).unwrap(),
            );
        }
        headers
    }

    const WS: &str = "connection: Upgrade|upgrade: websocket|sec-websocket-version: 13|sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";
    const SP: &str = "connection: upgrade|upgrade: spdy/3.1";

    #[test]
    fn remote_commands() {
        let channels = |version, codec| Ok(Agreed::Channels(version, codec));
        for (base, lines, expected) in [
            (SP, "", Ok(Agreed::Spdy(Version::V1))),
            (
                SP,
                "x-stream-protocol-version: v4.channel.k8s.io",
                Ok(Agreed::Spdy(Version::V4)),
            ),
            (
                SP,
                "x-stream-protocol-version: v9.channel.k8s.io|x-stream-protocol-version: v3.channel.k8s.io, v2.channel.k8s.io",
                Ok(Agreed::Spdy(Version::V3)),
            ),
            (
                SP,
                "x-stream-protocol-version: channel.k8s.io",
                Ok(Agreed::Spdy(Version::V1)),
            ),
            (SP, "x-stream-protocol-version: v5.channel.k8s.io", Err(403)),
            (
                SP,
                "x-stream-protocol-version: portforward.k8s.io",
                Err(403),
            ),
            (WS, "", channels(Version::V1, Codec::Binary)),
            (
                WS,
                "sec-websocket-protocol: v5.channel.k8s.io",
                channels(Version::V5, Codec::Binary),
            ),
            (
                WS,
                "sec-websocket-protocol: v7.channel.k8s.io, v4.base64.channel.k8s.io",
                channels(Version::V4, Codec::Base64),
            ),
            (
                WS,
                "sec-websocket-protocol: base64.channel.k8s.io",
                channels(Version::V1, Codec::Base64),
            ),
            (
                WS,
                "sec-websocket-protocol: SPDY/3.1+portforward.k8s.io",
                Err(403),
            ),
            ("", "", Err(400)),
            ("connection: keep-alive|upgrade: SPDY/3.1", "", Err(400)),
            ("connection: upgrade|upgrade: h2c", "", Err(400)),
            ("connection: upgrade|upgrade: websocket", "", Err(426)),
            (
                "connection: upgrade|upgrade: websocket|sec-websocket-version: 13",
                "",
                Err(400),
            ),
            (
                "connection: keep-alive, Upgrade|upgrade: SPDY/3.1",
                "",
                Ok(Agreed::Spdy(Version::V1)),
            ),
        ] {
            let found = remote_command(&headers(&format!("{base}|{lines}")));
            let found = found.map(|choice| choice.agreed).map_err(|no| no.status);
            assert_eq!(found, expected, "{base} {lines}");
        }
    }

    #[test]
    fn port_forwards() {
        for (base, lines, expected) in [
            (SP, "", Ok((Agreed::SpdyForward, None))),
            (
                SP,
                "x-stream-protocol-version: portforward.k8s.io",
                Ok((Agreed::SpdyForward, Some(PORT_FORWARD))),
            ),
            (SP, "x-stream-protocol-version: v4.channel.k8s.io", Err(403)),
            (
                WS,
                "sec-websocket-protocol: SPDY/3.1+portforward.k8s.io",
                Ok((Agreed::Tunnel, Some(TUNNEL))),
            ),
            (
                WS,
                "sec-websocket-protocol: v4.channel.k8s.io",
                Ok((
                    Agreed::Channels(Version::V4, Codec::Binary),
                    Some("v4.channel.k8s.io"),
                )),
            ),
            (
                WS,
                "",
                Ok((Agreed::Channels(Version::V4, Codec::Binary), None)),
            ),
            (WS, "sec-websocket-protocol: v5.channel.k8s.io", Err(403)),
        ] {
            let found = port_forward(&headers(&format!("{base}|{lines}")));
            let found = found
                .map(|choice| (choice.agreed, choice.name))
                .map_err(|no| no.status);
            assert_eq!(found, expected, "{base} {lines}");
        }
    }
}
