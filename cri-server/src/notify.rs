//! systemd's notification protocol (sd_notify(3)): datagrams to the socket in `NOTIFY_SOCKET`.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Tells the service manager, if there is one, that the daemon serves.
pub fn ready() {
    tell("READY=1\n");
}

/// Tells it that the daemon is ending.
pub fn stopping() {
    tell("STOPPING=1\n");
}

/// Shows the service manager twice per period that the async runtime still makes progress,
/// for as long as this future is polled. Without `WatchdogSec=` in the unit it waits for ever.
pub async fn watchdog() {
    let asked = |name| std::env::var(name).ok();
    let period = watchdog_period(asked("WATCHDOG_USEC"), asked("WATCHDOG_PID"));
    let Some(period) = period else {
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval(period / 2);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        tell("WATCHDOG=1\n");
    }
}

/// `None` when nobody watches, or somebody else is meant.
fn watchdog_period(microseconds: Option<String>, pid: Option<String>) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(std::process::id())) {
        return None;
    }
    let microseconds = microseconds?.parse().ok().filter(|n| *n > 1)?;
    Some(Duration::from_micros(microseconds))
}

fn tell(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(?socket, %error, "tell the service manager {state:?}");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    // A leading @ stands for the abstract name space.
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_meant_feeds_the_watchdog() {
        let own = std::process::id().to_string();
        let period = |usec: Option<&str>, pid: Option<&str>| {
            watchdog_period(usec.map(str::to_owned), pid.map(str::to_owned))
        };
        let second = Some(Duration::from_secs(1));
        assert_eq!(period(Some("1000000"), Some(&own)), second);
        assert_eq!(period(Some("1000000"), None), second);
        assert_eq!(period(Some("1000000"), Some("1")), None);
        assert_eq!(period(None, Some(&own)), None);
        assert_eq!(period(Some("0"), None), None);
        assert_eq!(period(Some("soon"), None), None);
    }

    #[test]
    fn path_and_abstract_sockets_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let abstract_name = format!("criw-notify-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&abstract_name).unwrap())
                .unwrap();
        send(path.as_os_str(), "READY=1\n").unwrap();
        send(OsStr::new(&format!("@{abstract_name}")), "READY=1\n").unwrap();
        for socket in [by_path, by_name] {
            let mut buffer = [0; 32];
            let n = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..n], b"READY=1\n");
        }
        assert!(send(OsStr::new("/no/such/socket"), "READY=1\n").is_err());
    }
}
