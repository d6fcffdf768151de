//! What is asked of systemd: to start and stop scopes and to note limits. It is asked over
//! the system's message bus: zbus does not take the answers of systemd's own socket, whose
//! sender is not named as the specification has it.
//!
//! Each request has its own connection and thread: callers are blocking code, some of it
//! on threads of the daemon's runtime; a bus that was restarted costs no request but those
//! that were under way; and news of all other jobs of the machine come only while one waits.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use zbus::{Connection, MatchRule, MessageStream, OwnedObjectPath, Variant, fdo, message};

use crate::error::{Error, Result};

const SOCKET: &str = "/run/dbus/system_bus_socket";
const NAME: &str = "org.freedesktop.systemd1";
const OBJECT: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// Whether systemd is the init of this machine: what sd_booted(3) looks at.
pub fn runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Whether it is, and can be asked.
pub fn is_reachable() -> bool {
    runs() && Path::new(SOCKET).exists()
}

/// A property of a unit, as org.freedesktop.systemd1(5) names and types it.
pub(super) type Property = (&'static str, Variant<'static>);

/// The manager on the bus behind a socket.
#[derive(Debug)]
pub(super) struct Manager {
    socket: String,
    /// For one request, its job included.
    limit: Duration,
}

impl Default for Manager {
    fn default() -> Self {
        Self {
            socket: SOCKET.to_owned(),
            // Milliseconds, unless the machine is starved.
            limit: Duration::from_secs(20),
        }
    }
}

impl Manager {
    /// Starts a transient scope and returns when it is there, with its processes.
    pub(super) fn start_scope(&self, name: &str, properties: Vec<Property>) -> Result<()> {
        let what = format!("start {name} with systemd");
        let auxiliary: Vec<(&str, Vec<Property>)> = Vec::new();
        let result = self.run(&what, async |connection| {
            let body = (name, "fail", properties, auxiliary);
            job(&connection, "StartTransientUnit", &body).await
        })?;
        match result.as_str() {
            "done" => Ok(()),
            other => Err(Error::node(what, format!("its job ended as {other:?}"))),
        }
    }

    /// Changes limits of a unit, now and after every reload of systemd.
    pub(super) fn set_properties(&self, name: &str, properties: Vec<Property>) -> Result<()> {
        self.run(
            &format!("set limits of {name} with systemd"),
            async |connection| {
                let runtime = true;
                call(
                    &connection,
                    "SetUnitProperties",
                    &(name, runtime, properties),
                )
                .await
                .map(drop)
            },
        )
    }

    /// Stops a unit and forgets how it ended; success when there is none.
    pub(super) fn stop(&self, name: &str) -> Result<()> {
        self.run(&format!("stop {name} with systemd"), async |connection| {
            match job(&connection, "StopUnit", &(name, "replace")).await {
                Err(error) if is_no_such_unit(&error) => return Ok(()),
                other => drop(other?),
            }
            match call(&connection, "ResetFailedUnit", &name).await {
                Err(error) if !is_no_such_unit(&error) => Err(error),
                _ => Ok(()),
            }
        })
    }

    fn run<T: Send>(
        &self,
        what: &str,
        request: impl AsyncFnOnce(Connection) -> zbus::Result<T> + Send,
    ) -> Result<T> {
        let on_socket = || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Error::node(what, error))?;
            runtime.block_on(async {
                let work = async {
                    let address = format!("unix:path={}", self.socket);
                    let connection = zbus::connection::Builder::address(address.as_str())
                        .build()
                        .await?;
                    request(connection).await
                };
                match tokio::time::timeout(self.limit, work).await {
                    Ok(result) => result.map_err(|error| explain(what, error)),
                    Err(_) => Err(Error::Deadline(format!(
                        "{what}: no answer within {:?} on {}",
                        self.limit, self.socket
                    ))),
                }
            })
        };
        std::thread::scope(|scope| match scope.spawn(on_socket).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

async fn call<B>(connection: &Connection, method: &str, body: &B) -> zbus::Result<zbus::Message>
where
    B: serde::Serialize + zbus::DynamicType,
{
    connection
        .call_method(Some(NAME), OBJECT, Some(INTERFACE), method, body)
        .await
}

/// A call that is answered with a job, and the result of that job.
async fn job<B>(connection: &Connection, method: &str, body: &B) -> zbus::Result<String>
where
    B: serde::Serialize + zbus::DynamicType,
{
    let rule = MatchRule::builder()
        .msg_type(message::Type::Signal)
        .sender(NAME)
        .interface(INTERFACE)
        .member("JobRemoved")
        .build()?;
    let mut news = MessageStream::for_match_rule(rule, connection, None).await?;
    // Else it sends no signals.
    call(connection, "Subscribe", &()).await?;
    let mut answer = pin!(call(connection, method, body));
    let mut ours: Option<OwnedObjectPath> = None;
    let mut ended: Vec<(OwnedObjectPath, String)> = Vec::new();
    // Both at once: the answer would wait behind a full queue of news.
    loop {
        tokio::select! {
            answer = &mut answer, if ours.is_none() => ours = Some(answer?.body().deserialize()?),
            signal = news.next() => {
                let signal = signal.ok_or(zbus::Error::InvalidReply)??;
                let body = signal.body();
                let (_, job, _, result): (u32, OwnedObjectPath, &str, &str) = body.deserialize()?;
                ended.push((job, result.to_owned()));
            }
        }
        if let Some(ours) = &ours {
            ended.retain(|(job, _)| job == ours);
            if let Some((_, result)) = ended.pop() {
                return Ok(result);
            }
        }
    }
}

fn is_no_such_unit(error: &zbus::Error) -> bool {
    matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == NO_SUCH_UNIT)
}

fn explain(what: &str, error: zbus::Error) -> Error {
    match &error {
        zbus::Error::FDO(inner) if matches!(**inner, fdo::Error::InvalidArgs(_)) => {
            Error::Invalid(format!("{what}: it refuses a value: {error}"))
        }
        _ => Error::node(what, error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    use super::*;

    /// What a real manager answers is tested where there is one, in the virtual machine.
    #[test]
    fn a_manager_that_is_not_there_or_does_not_answer_is_an_error_in_time() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("private");
        let manager = Manager {
            socket: socket.display().to_string(),
            limit: Duration::from_millis(100),
        };
        let error = manager.stop("a.scope").unwrap_err();
        assert_eq!(error.to_string(), "stop a.scope with systemd");
        let chain = criw_engines::record::chain(&error);
        assert!(chain.contains(&manager.socket), "{chain}");

        let _silent = UnixListener::bind(&socket).unwrap();
        let begin = Instant::now();
        let error = manager.start_scope("a.scope", Vec::new()).unwrap_err();
        assert!(matches!(error, Error::Deadline(_)), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}
