//! Image references as Docker reads them: `busybox` is
//! `docker.io/library/busybox:latest`, and of tag and digest the digest wins.

use std::fmt;

use crate::digest::{Digest, is_hex64};
use crate::error::PullError;

/// A normalised reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    /// `host[:port]`, `docker.io` for Docker Hub.
    pub(crate) registry: String,
    /// Path within the registry.
    pub(crate) repository: String,
    pub(crate) target: Target,
    /// Whether the text named a tag or digest itself.
    pub(crate) explicit: bool,
}

/// What is asked of the repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Tag(String),
    Digest(Digest),
}

const DEFAULT_REGISTRY: &str = "docker.io";
const MAX_NAME: usize = 255;

impl Reference {
    pub(crate) fn parse(text: &str) -> Result<Reference, PullError> {
        parse(text).map_err(|reason| PullError::InvalidReference {
            reference: text.chars().take(512).collect(),
            reason: reason.to_owned(),
        })
    }

    /// `registry/repository`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository at a digest.
    pub(crate) fn at(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Tag(tag) => write!(f, "{}:{tag}", self.name()),
            Target::Digest(digest) => write!(f, "{}@{digest}", self.name()),
        }
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if is_hex64(text) || text.starts_with("sha256:") {
        return Err("an image id cannot be pulled; give a name");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (
            rest,
            Some(
                digest
                    .parse::<Digest>()
                    .map_err(|_| "the digest after @ is not sha256: and 64 hex digits")?,
            ),
        ),
        None => (text, None),
    };
    let (name, tag) = match rest.rfind(':') {
        Some(at) if !rest[at..].contains('/') => (&rest[..at], Some(&rest[at + 1..])),
        _ => (rest, None),
    };
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_host(first) => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    if !valid_host(registry) {
        return Err("the registry is no host or host:port");
    }
    let registry = match registry {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    let repository = match (registry, path.contains('/')) {
        (DEFAULT_REGISTRY, false) => format!("library/{path}"),
        _ => path.to_owned(),
    };
    if registry.len() + repository.len() >= MAX_NAME {
        return Err("the name is longer than 255 characters");
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the repository must be lower case");
    }
    if !repository.split('/').all(valid_component) {
        return Err(
            "the repository may have lower-case letters, digits and single separators . _ -",
        );
    }
    if tag.is_some_and(|tag| !valid_tag(tag)) {
        return Err("the tag may have up to 128 letters, digits and . _ -");
    }
    let explicit = tag.is_some() || digest.is_some();
    let target = match digest {
        Some(digest) => Target::Digest(digest),
        None => Target::Tag(tag.unwrap_or("latest").to_owned()),
    };
    Ok(Reference {
        registry: registry.to_owned(),
        repository,
        target,
        explicit,
    })
}

/// Docker's rule for telling a host from the first part of a path.
fn is_host(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':', '['])
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn valid_host(host: &str) -> bool {
    let (name, port) = if let Some(v6) = host.strip_prefix('[') {
        let Some((address, rest)) = v6.split_once(']') else {
            return false;
        };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match rest {
            "" => return true,
            _ => match rest.strip_prefix(':') {
                Some(port) => ("v6", Some(port)),
                None => return false,
            },
        }
    } else {
        match host.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (host, None),
        }
    };
    let name_fits = name.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    });
    name_fits && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn valid_component(component: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    bytes.split(alphanumeric).all(|separator| match separator {
        b"" | b"." | b"_" | b"__" => true,
        dashes => dashes.iter().all(|b| *b == b'-'),
    })
}

fn valid_tag(tag: &str) -> bool {
    tag.len() <= 128
        && tag
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_are_normalised_as_docker_does() {
        let table = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("me/app", "docker.io/me/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/me/app:v1", "docker.io/me/app:v1"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            (
                "127.0.0.1:5000/a/b__c/d-e.f",
                "127.0.0.1:5000/a/b__c/d-e.f:latest",
            ),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("ghcr.io/a/b", "ghcr.io/a/b:latest"),
        ];
        for (text, full) in table {
            assert_eq!(Reference::parse(text).unwrap().to_string(), full, "{text}");
        }
        for text in [format!("busybox@{D}"), format!("busybox:1.36@{D}")] {
            assert_eq!(
                Reference::parse(&text).unwrap().to_string(),
                format!("docker.io/library/busybox@{D}")
            );
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_a_reason() {
        let table = [
            ("", "empty"),
            (D, "image id"),
            (&D[7..], "image id"),
            ("Busybox", "lower case"),
            ("a/Busybox", "lower case"),
            ("busybox:", "tag"),
            ("busybox:-x", "tag"),
            ("busybox@sha256:12", "digest"),
            ("a//b", "repository"),
            ("a/../b", "repository"),
            ("-a", "repository"),
            ("host.io/", "repository"),
            ("a b", "repository"),
            ("host.io:99999/a", "host"),
            ("ho_st.io/a", "host"),
            ("[::zz]/a", "host"),
        ];
        for (text, part) in table {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
