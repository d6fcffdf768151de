//! The client side of the distribution protocol, for one pull: asks the places of
//! [`hosts`] in turn, authenticates, retries within bounds, verifies what comes.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use futures::StreamExt as _;
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};

use crate::challenge::{self, Challenge};
use crate::error::PullError;
use crate::hosts::{self, Endpoint, Tls};
use crate::image::{Auth, AuthKind, Limits};
use crate::reference::{Reference, Target};

/// HTTP clients by how they trust the other side, so that connections are reused.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    clients: Mutex<HashMap<Tls, reqwest::Client>>,
}

const TRIES: u32 = 3;
/// A registry may ask for longer than a pod's start can wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);
const MAX_TOKEN_BYTES: usize = 1 << 20;

impl Clients {
    fn get(&self, tls: &Tls, limits: &Limits) -> Result<reqwest::Client, String> {
        let mut clients = self.clients.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(client) = clients.get(tls) {
            return Ok(client.clone());
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("criw/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(limits.connect_timeout)
            .read_timeout(limits.stall_timeout)
            .pool_max_idle_per_host(2)
            // The pool looks once in this time, so a connection may idle twice as long.
            .pool_idle_timeout(Duration::from_secs(5));
        let read = |file: &std::path::Path| {
            std::fs::read(file).map_err(|error| format!("read {}: {error}", file.display()))
        };
        if tls.plain_http {
            // Works without certificates on the machine; a redirect to https then fails.
            builder = builder.tls_certs_only([]);
        }
        if tls.direct {
            builder = builder.no_proxy();
        }
        for file in &tls.ca {
            let pem = read(file)?;
            for certificate in reqwest::Certificate::from_pem_bundle(&pem)
                .map_err(|error| format!("read {}: {}", file.display(), chain(&error)))?
            {
                builder = builder.add_root_certificate(certificate);
            }
        }
        if !tls.client.is_empty() {
            let mut pem = Vec::new();
            for file in &tls.client {
                pem.extend(read(file)?);
                pem.push(b'\n');
            }
            let identity = reqwest::Identity::from_pem(&pem)
                .map_err(|error| format!("read the client certificate: {}", chain(&error)))?;
            builder = builder.identity(identity);
        }
        if tls.skip_verify {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        let client = builder.build().map_err(|error| {
            format!(
                "set up TLS: {} (are the CA certificates installed?)",
                chain(&error)
            )
        })?;
        // Certificates may be replaced in place: only the plain client is kept for ever.
        if tls.ca.is_empty() && tls.client.is_empty() {
            clients.insert(tls.clone(), client.clone());
        }
        Ok(client)
    }
}

/// One pull's conversation with the places that have the image.
pub(crate) struct Session<'a> {
    clients: &'a Clients,
    limits: &'a Limits,
    reference: &'a Reference,
    auth: Option<&'a Auth>,
    endpoints: Vec<Place>,
}

struct Place {
    endpoint: Endpoint,
    client: reqwest::Client,
    /// Learnt from the first 401, reused for the blobs.
    authorization: Mutex<Option<HeaderValue>>,
}

/// Why one place did not serve; the next is tried.
enum Failure {
    Transport(String),
    Denied(String),
    NotFound(String),
    BadContent(String),
}

impl From<Failure> for PullError {
    fn from(failure: Failure) -> PullError {
        match failure {
            Failure::Transport(text) => PullError::Transport(text),
            Failure::Denied(text) => PullError::Denied(text),
            Failure::NotFound(text) => PullError::NotFound(text),
            Failure::BadContent(text) => PullError::BadContent(text),
        }
    }
}

impl<'a> Session<'a> {
    pub(crate) fn open(
        clients: &'a Clients,
        limits: &'a Limits,
        hosts_dir: Option<&std::path::Path>,
        reference: &'a Reference,
        auth: Option<&'a Auth>,
    ) -> Result<Session<'a>, PullError> {
        let mut endpoints = Vec::new();
        for endpoint in
            hosts::endpoints(hosts_dir, &reference.registry).map_err(PullError::Transport)?
        {
            let client = clients.get(&endpoint.tls, limits).map_err(|reason| {
                PullError::Transport(format!("registry {}: {reason}", endpoint.host))
            })?;
            endpoints.push(Place {
                endpoint,
                client,
                authorization: Mutex::new(None),
            });
        }
        Ok(Session {
            clients,
            limits,
            reference,
            auth,
            endpoints,
        })
    }

    /// The bytes of a manifest or index.
    pub(crate) async fn manifest(
        &self,
        target: &Target,
        accept: &str,
    ) -> Result<Vec<u8>, PullError> {
        let name = match target {
            Target::Tag(tag) => tag.clone(),
            Target::Digest(digest) => digest.to_string(),
        };
        let mut last = None;
        for place in &self.endpoints {
            if matches!(target, Target::Tag(_)) && !place.endpoint.resolve {
                continue;
            }
            let answer = async {
                let response = self
                    .get(place, &format!("manifests/{name}"), Some(accept), 0)
                    .await?;
                let bytes = self
                    .body(place, response, self.limits.manifest_bytes)
                    .await?;
                if let Target::Digest(wanted) = target {
                    let found = crate::digest::Digest::of(&bytes);
                    if found != *wanted {
                        return Err(Failure::BadContent(format!(
                            "registry {} sent a manifest with the digest {found} where {wanted} was asked for",
                            place.endpoint.host
                        )));
                    }
                }
                Ok(bytes)
            };
            match answer.await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => last = Some(self.note(place, failure)),
            }
        }
        Err(last.unwrap_or_else(|| {
            PullError::Transport(format!(
                "no host for {} may resolve tags; allow \"resolve\" in its hosts.toml",
                self.reference.registry
            ))
        }))
    }

    /// Streams a blob into `sink`, verified by size and digest; a broken connection
    /// is taken up where it ended.
    pub(crate) async fn blob<S: Sink>(
        &self,
        digest: &crate::digest::Digest,
        size: u64,
        sink: &mut S,
    ) -> Result<(), PullError> {
        if size > self.limits.blob_bytes {
            return Err(PullError::Refused(format!(
                "blob {digest} has {size} bytes, more than the {} that are allowed",
                self.limits.blob_bytes
            )));
        }
        let mut last = None;
        for place in &self.endpoints {
            for _ in 0..TRIES {
                match self.blob_from(place, digest, size, sink).await {
                    Ok(()) => return Ok(()),
                    Err(Step::Stop(error)) => return Err(error),
                    Err(Step::Broken(failure)) => last = Some(self.note(place, failure)),
                    Err(Step::Next(failure)) => {
                        last = Some(self.note(place, failure));
                        break;
                    }
                }
            }
            sink.restart()?;
        }
        Err(last.unwrap_or_else(|| {
            PullError::Transport(format!(
                "no host is configured for {}",
                self.reference.registry
            ))
        }))
    }

    async fn blob_from<S: Sink>(
        &self,
        place: &Place,
        digest: &crate::digest::Digest,
        size: u64,
        sink: &mut S,
    ) -> Result<(), Step> {
        let start = sink.position();
        let response = self
            .get(place, &format!("blobs/{digest}"), None, start)
            .await
            .map_err(Step::Next)?;
        if start > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
            sink.restart().map_err(Step::Stop)?;
        }
        let host = &place.endpoint.host;
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) if error.is_timeout() => {
                    return Err(Step::Next(self.stalled(place)));
                }
                Err(error) => {
                    return Err(Step::Broken(Failure::BadContent(format!(
                        "registry {host} broke off blob {digest} after {} of {size} bytes: {}",
                        sink.position(),
                        chain(&error)
                    ))));
                }
            };
            if sink.position() + chunk.len() as u64 > size {
                return Err(Step::Next(Failure::BadContent(format!(
                    "registry {host} sent more than the {size} bytes of blob {digest}"
                ))));
            }
            sink.write(&chunk).map_err(Step::Stop)?;
        }
        if sink.position() < size {
            return Err(Step::Broken(Failure::BadContent(format!(
                "registry {host} sent only {} of the {size} bytes of blob {digest}",
                sink.position()
            ))));
        }
        let found = sink.digest();
        if found != *digest {
            return Err(Step::Next(Failure::BadContent(format!(
                "registry {host} sent content with the digest {found} for blob {digest}; \
                 the image is damaged there, push it again"
            ))));
        }
        Ok(())
    }

    fn note(&self, place: &Place, failure: Failure) -> PullError {
        let error = PullError::from(failure);
        tracing::debug!(image = %self.reference, host = place.endpoint.host, %error, "a place did not serve");
        error
    }

    async fn body(
        &self,
        place: &Place,
        response: reqwest::Response,
        limit: u64,
    ) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| self.transport(place, &error))?;
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(Failure::BadContent(format!(
                    "registry {} sent a manifest of more than {limit} bytes",
                    place.endpoint.host
                )));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    async fn get(
        &self,
        place: &Place,
        what: &str,
        accept: Option<&str>,
        from: u64,
    ) -> Result<reqwest::Response, Failure> {
        let mut url = format!(
            "{}/{}/{what}",
            place.endpoint.base, self.reference.repository
        );
        if let Some(namespace) = &place.endpoint.namespace {
            // Registry names hold nothing that a query must escape but `[` and `]`.
            let escaped = namespace.replace('[', "%5B").replace(']', "%5D");
            let _ = write!(url, "?ns={escaped}");
        }
        let mut authenticated = false;
        let mut tries = 0;
        loop {
            let mut request = place.client.get(&url);
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            for (name, value) in &place.endpoint.headers {
                request = request.header(name, value);
            }
            let authorization = place
                .authorization
                .lock()
                .unwrap_or_else(|e| e.into_inner())
                .clone();
            if let Some(value) = authorization {
                request = request.header(AUTHORIZATION, value);
            }
            tries += 1;
            let response = match request.send().await {
                Ok(response) => response,
                Err(error) if error.is_connect() && tries < TRIES && !error.is_timeout() => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
                Err(error) => return Err(self.transport(place, &error)),
            };
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            let retry = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
            if status == StatusCode::UNAUTHORIZED && !authenticated {
                let challenges: Vec<Challenge> = response
                    .headers()
                    .get_all(WWW_AUTHENTICATE)
                    .iter()
                    .filter_map(|value| value.to_str().ok())
                    .flat_map(challenge::parse)
                    .collect();
                if let Some(value) = self.answer(place, &challenges).await? {
                    *place
                        .authorization
                        .lock()
                        .unwrap_or_else(|e| e.into_inner()) = Some(value);
                    authenticated = true;
                    continue;
                }
            } else if retry && tries < TRIES {
                let wait = retry_after(&response).unwrap_or(Duration::from_millis(200 << tries));
                if wait <= MAX_RETRY_AFTER {
                    tokio::time::sleep(wait).await;
                    continue;
                }
            }
            return Err(self.refusal(place, response).await);
        }
    }

    /// The header that answers a challenge; `None` if there is nothing to answer with.
    async fn answer(
        &self,
        place: &Place,
        challenges: &[Challenge],
    ) -> Result<Option<HeaderValue>, Failure> {
        let secret = self.secret(&place.endpoint);
        if let Some(AuthKind::RegistryToken(token)) = &secret {
            return Ok(header("Bearer", token));
        }
        let basic = match &secret {
            Some(AuthKind::Basic { username, password }) => Some(
                base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}")),
            ),
            Some(AuthKind::Encoded(encoded)) => Some(encoded.trim_end().to_owned()),
            _ => None,
        };
        for challenge in challenges {
            match challenge {
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                } => {
                    let token = Token {
                        realm,
                        service: service.as_deref(),
                        scope: scope.clone().unwrap_or_else(|| {
                            format!("repository:{}:pull", self.reference.repository)
                        }),
                        basic: basic.as_deref(),
                        refresh: match &secret {
                            Some(AuthKind::IdentityToken(token)) => Some(token),
                            _ => None,
                        },
                    };
                    return self
                        .token(place, token)
                        .await
                        .map(|token| header("Bearer", &token));
                }
                Challenge::Basic => {
                    if let Some(basic) = &basic {
                        return Ok(header("Basic", basic));
                    }
                }
            }
        }
        Ok(None)
    }

    /// The secret, if it is meant for this host.
    fn secret(&self, endpoint: &Endpoint) -> Option<AuthKind> {
        let auth = self.auth?;
        let server = auth
            .server_address
            .trim_start_matches("https://")
            .trim_start_matches("http://");
        let server = hub(server.split('/').next().unwrap_or_default());
        let meant = server.is_empty() || server == hub(&endpoint.host);
        match &auth.kind {
            AuthKind::Anonymous => None,
            kind if meant => Some(kind.clone()),
            _ => None,
        }
    }

    async fn token(&self, place: &Place, token: Token<'_>) -> Result<String, Failure> {
        let host = &place.endpoint.host;
        let url = reqwest::Url::parse(token.realm)
            .ok()
            .filter(|url| {
                url.scheme() == "https" || (url.scheme() == "http" && place.endpoint.tls.plain_http)
            })
            .ok_or_else(|| {
                Failure::Denied(format!(
                    "registry {host} names {:?} as its token service, which is no https address",
                    token.realm.chars().take(256).collect::<String>()
                ))
            })?;
        // The service may be another host: it is trusted as any public host, or as this one.
        let client = if hosts::authority(&url).as_deref() == Some(host) {
            place.client.clone()
        } else {
            let tls = Tls {
                plain_http: url.scheme() == "http",
                direct: false,
                ..place.endpoint.tls.clone()
            };
            self.clients
                .get(&tls, self.limits)
                .map_err(Failure::Transport)?
        };
        let request = token.request(&client, url);
        let response = request
            .send()
            .await
            .map_err(|error| self.transport(place, &error))?;
        if !response.status().is_success() {
            return Err(self.refusal(place, response).await);
        }
        let bytes = self.body(place, response, MAX_TOKEN_BYTES as u64).await?;
        #[derive(serde::Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        serde_json::from_slice::<Answer>(&bytes)
            .ok()
            .and_then(|answer| answer.token.or(answer.access_token))
            .filter(|token| !token.is_empty())
            .ok_or_else(|| {
                Failure::Transport(format!(
                    "the token service of registry {host} sent no token"
                ))
            })
    }

    fn transport(&self, place: &Place, error: &reqwest::Error) -> Failure {
        let host = &place.endpoint.host;
        if error.is_connect() {
            return Failure::Transport(format!(
                "connect to registry {host} for {}: {}",
                self.reference,
                chain(error)
            ));
        }
        if error.is_timeout() {
            return self.stalled(place);
        }
        Failure::Transport(format!(
            "talk to registry {host} for {}: {}",
            self.reference,
            chain(error)
        ))
    }

    fn stalled(&self, place: &Place) -> Failure {
        Failure::Transport(format!(
            "registry {} sent nothing for {} s while {} was pulled; check the registry and the network",
            place.endpoint.host,
            self.limits.stall_timeout.as_secs_f32(),
            self.reference
        ))
    }

    /// The failure for a status, with what the registry says about it.
    async fn refusal(&self, place: &Place, response: reqwest::Response) -> Failure {
        let status = response.status();
        let wait = retry_after(&response);
        let said = match self.body(place, response, 64 << 10).await {
            Ok(bytes) => said(&bytes),
            Err(_) => String::new(),
        };
        let has_secret = self.secret(&place.endpoint).is_some();
        refusal_text(
            &place.endpoint.host,
            self.reference,
            status,
            wait,
            &said,
            has_secret,
        )
    }
}

/// What a failed attempt at a blob leads to.
enum Step {
    /// The connection broke: go on where it ended.
    Broken(Failure),
    /// This place will not serve it.
    Next(Failure),
    /// Nothing can help.
    Stop(PullError),
}

/// Where a blob goes; counts and hashes what it is given.
pub(crate) trait Sink {
    fn position(&self) -> u64;
    fn digest(&self) -> crate::digest::Digest;
    fn write(&mut self, bytes: &[u8]) -> Result<(), PullError>;
    /// Forget everything written.
    fn restart(&mut self) -> Result<(), PullError>;
}

struct Token<'a> {
    realm: &'a str,
    service: Option<&'a str>,
    scope: String,
    basic: Option<&'a str>,
    refresh: Option<&'a str>,
}

impl Token<'_> {
    fn request(&self, client: &reqwest::Client, mut url: reqwest::Url) -> reqwest::RequestBuilder {
        if let Some(refresh) = self.refresh {
            let mut form = reqwest::Url::parse("form:").expect("a constant URL is valid");
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("refresh_token", refresh)
                .append_pair("client_id", "criw")
                .append_pair("service", self.service.unwrap_or_default())
                .append_pair("scope", &self.scope);
            return client
                .post(url)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(form.query().unwrap_or_default().to_owned());
        }
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = self.service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &self.scope);
        }
        let request = client.get(url);
        match self.basic.and_then(|basic| header("Basic", basic)) {
            Some(value) => request.header(AUTHORIZATION, value),
            None => request,
        }
    }
}

fn header(scheme: &str, secret: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("{scheme} {secret}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn hub(host: &str) -> &str {
    match host {
        "registry-1.docker.io" | "index.docker.io" => "docker.io",
        other => other,
    }
}

fn retry_after(response: &reqwest::Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

/// The error list of the distribution protocol, as a short plain text.
fn said(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = serde_json::from_slice::<Body>(body)
        .map(|body| {
            let texts: Vec<String> = body
                .errors
                .iter()
                .map(|entry| match entry.message.as_str() {
                    "" => entry.code.clone(),
                    message => message.to_owned(),
                })
                .collect();
            texts.join(", ")
        })
        .unwrap_or_default();
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn refusal_text(
    host: &str,
    reference: &Reference,
    status: StatusCode,
    wait: Option<Duration>,
    said: &str,
    has_secret: bool,
) -> Failure {
    let answer = match said {
        "" => format!("({status})"),
        said => format!("({status}: {said})"),
    };
    match status.as_u16() {
        401 if has_secret => Failure::Denied(format!(
            "registry {host} does not accept the credentials given for {reference} {answer}; check the image pull secret"
        )),
        401 => Failure::Denied(format!(
            "registry {host} wants credentials for {reference} {answer}; give the pod an image pull secret"
        )),
        403 => Failure::Denied(format!(
            "registry {host} forbids pulling {reference} {answer}; grant the account access to the repository"
        )),
        404 => Failure::NotFound(format!(
            "registry {host} has no {reference} {answer}; check name and tag"
        )),
        429 => Failure::Transport(format!(
            "registry {host} limits how often it may be asked and refused {reference} {answer}{}; \
             pull with an account, use a mirror, or try again later",
            match wait {
                Some(wait) => format!(", free again in {} s", wait.as_secs()),
                None => String::new(),
            }
        )),
        500..=599 => Failure::Transport(format!(
            "registry {host} failed on {reference} {answer}; look at the registry's log, the pull may be tried again"
        )),
        _ => Failure::Transport(format!(
            "registry {host} answered {reference} with something unexpected {answer}"
        )),
    }
}

/// An error with its causes, without the URL (redirects carry signatures in it).
fn chain(error: &dyn std::error::Error) -> String {
    // reqwest prints the URL at its outermost level only.
    let mut texts: Vec<String> = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !texts.iter().any(|seen| seen.contains(&text)) {
            texts.push(text);
        }
        next = cause.source();
    }
    if texts.is_empty() {
        return "the answer could not be read".to_owned();
    }
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_says_what_to_do() {
        let reference = Reference::parse("r.example/a:1").unwrap();
        let text = |status: u16, wait: Option<u64>, has_secret: bool| {
            let failure = refusal_text(
                "r.example",
                &reference,
                StatusCode::from_u16(status).unwrap(),
                wait.map(Duration::from_secs),
                "manifest unknown",
                has_secret,
            );
            format!("{:?}", PullError::from(failure))
        };
        for (status, wait, secret, kind, part) in [
            (401, None, true, "Denied", "check the image pull secret"),
            (
                401,
                None,
                false,
                "Denied",
                "give the pod an image pull secret",
            ),
            (403, None, true, "Denied", "grant the account"),
            (404, None, false, "NotFound", "check name and tag"),
            (429, Some(77), false, "Transport", "free again in 77 s"),
            (500, None, false, "Transport", "registry's log"),
            (418, None, false, "Transport", "unexpected"),
        ] {
            let text = text(status, wait, secret);
            assert!(text.starts_with(kind) && text.contains(part), "{text}");
            assert!(
                text.contains("manifest unknown") && text.contains("r.example/a:1"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_a_registry_says_is_cut_and_cleaned() {
        assert_eq!(
            said(br#"{"errors":[{"code":"X","message":""},{"code":"Y","message":"z\n!"}]}"#),
            "X, z!"
        );
        assert_eq!(said(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "a".repeat(999));
        assert_eq!(said(long.as_bytes()).len(), 200);
    }

    #[test]
    fn secrets_are_never_printed() {
        let auth = Auth {
            server_address: "r".into(),
            kind: AuthKind::Basic {
                username: "bob".into(),
                password: "hunter2".into(),
            },
        };
        assert!(!format!("{auth:?}").contains("hunter2"));
        assert!(!format!("{:?}", AuthKind::RegistryToken("hunter2".into())).contains("hunter2"));
        assert!(!format!("{:?}", header("Basic", "hunter2")).contains("hunter2"));
    }
}
