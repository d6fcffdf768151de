//! Requests that were granted by an RPC and wait for their client: each behind a token
//! that nobody can guess, that works once, and for a minute.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

/// How long a token works.
pub const TTL: Duration = Duration::from_secs(60);

/// Requests that may wait.
pub const MAX_PENDING: usize = 1000;

/// Bytes of randomness: 128 bits.
const RANDOM: usize = 16;

/// What waits. `R` is what was granted.
#[derive(Debug)]
pub struct Pending<R> {
    waiting: Mutex<HashMap<String, (Instant, R)>>,
}

/// Why no token was given.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// As many wait as may.
    #[error(
        "{MAX_PENDING} exec, attach and port-forward requests wait for their clients already; try again in a minute"
    )]
    Full,
    /// The kernel has no randomness.
    #[error("make a token")]
    Random(#[source] io::Error),
}

impl<R> Default for Pending<R> {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
        }
    }
}

impl<R> Pending<R> {
    /// Keeps a request; the token to come back with.
    pub fn keep(&self, request: R, now: Instant) -> Result<String, Refusal> {
        let token = random().map_err(Refusal::Random)?;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= MAX_PENDING {
            waiting.retain(|_, (until, _)| *until > now);
        }
        if waiting.len() >= MAX_PENDING {
            return Err(Refusal::Full);
        }
        waiting.insert(token.clone(), (now + TTL, request));
        Ok(token)
    }

    /// The request behind a token, once.
    pub fn take(&self, token: &str, now: Instant) -> Option<R> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, request) = waiting.remove(token)?;
        (until > now).then_some(request)
    }
}

fn random() -> io::Result<String> {
    let mut bytes = [0; RANDOM];
    let read = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    if read != RANDOM {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_works_once_and_for_a_minute() {
        let pending = Pending::default();
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let token = pending.keep("a", start).unwrap();
        assert_eq!(token.len(), 22);
        assert_eq!(pending.take("guess", start), None);
        assert_eq!(pending.take(&token, start + TTL - second), Some("a"));
        assert_eq!(pending.take(&token, start), None);
        let token = pending.keep("b", start).unwrap();
        assert_eq!(pending.take(&token, start + TTL), None);
        assert_eq!(pending.take(&token, start), None);
    }

    #[test]
    fn only_so_many_wait() {
        let pending = Pending::default();
        let start = Instant::now();
        let tokens: Vec<_> = (0..MAX_PENDING)
            .map(|n| pending.keep(n, start).unwrap())
            .collect();
        assert!(matches!(pending.keep(0, start), Err(Refusal::Full)));
        assert_eq!(pending.take(&tokens[7], start), Some(7));
        pending.keep(0, start).unwrap();
        assert!(matches!(pending.keep(0, start), Err(Refusal::Full)));
        // Those that nobody came for make room.
        pending.keep(0, start + TTL).unwrap();
        assert_eq!(pending.waiting.lock().unwrap().len(), 1);
    }
}
