//! One plugin, one verb: environment, exec, and reading the answer.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::conflist::find_plugin;
use crate::error::{NetError, PluginError, PluginFailure};
use crate::exec::{self, Program, RunError};

/// What is the same for every plugin of one operation on one pod.
pub(crate) struct Call<'a> {
    pub(crate) verb: &'static str,
    pub(crate) conflist: &'a Path,
    pub(crate) bin_dirs: &'a [PathBuf],
    pub(crate) timeout: Duration,
    /// CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME and CNI_ARGS, as the verb needs them.
    pub(crate) env: Vec<(&'static str, OsString)>,
}

impl Call<'_> {
    /// Runs the plugin and returns what it printed, if it succeeded.
    pub(crate) async fn run(
        &self,
        plugin: &str,
        conf: &Map<String, Value>,
    ) -> Result<Vec<u8>, NetError> {
        self.try_run(plugin, conf)
            .await
            .map_err(|what| self.error(plugin, what))
    }

    pub(crate) fn error(&self, plugin: &str, what: PluginFailure) -> NetError {
        NetError::Plugin(Box::new(PluginError {
            plugin: plugin.to_owned(),
            conflist: self.conflist.to_owned(),
            verb: self.verb,
            what,
        }))
    }

    async fn try_run(
        &self,
        plugin: &str,
        conf: &Map<String, Value>,
    ) -> Result<Vec<u8>, PluginFailure> {
        let path = find_plugin(plugin, self.bin_dirs).ok_or_else(|| PluginFailure::Missing {
            dirs: self.bin_dirs.to_vec(),
        })?;
        let mut env = self.env.clone();
        env.push(("CNI_COMMAND", self.verb.into()));
        env.push(("CNI_PATH", join_paths(self.bin_dirs)));
        let stdin = serde_json::to_vec(conf).expect("a map with string keys always serializes");
        let output = exec::run(Program {
            path: &path,
            args: &[],
            env,
            stdin,
            timeout: self.timeout,
        })
        .await
        .map_err(|error| match error {
            RunError::Spawn(error) => PluginFailure::Spawn {
                path: path.clone(),
                error,
            },
            RunError::TimedOut { stderr } => PluginFailure::TimedOut {
                seconds: self.timeout.as_secs(),
                stderr,
            },
            RunError::TooMuchOutput { stderr } => PluginFailure::BadOutput {
                reason: "more than 1 MiB".into(),
                stderr,
            },
        })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(failure(
            &output.stdout,
            exec::describe(output.status),
            output.stderr,
        ))
    }
}

fn join_paths(dirs: &[PathBuf]) -> OsString {
    let mut joined = OsString::new();
    for (i, dir) in dirs.iter().enumerate() {
        if i > 0 {
            joined.push(":");
        }
        joined.push(dir);
    }
    joined
}

/// The error object of the specification, if the plugin printed one.
fn failure(stdout: &[u8], status: String, stderr: String) -> PluginFailure {
    #[derive(Deserialize)]
    struct ErrorObject {
        #[serde(default)]
        code: u64,
        #[serde(default)]
        msg: String,
        #[serde(default)]
        details: String,
    }
    match serde_json::from_slice::<ErrorObject>(stdout) {
        Ok(e) if e.code != 0 || !e.msg.is_empty() => PluginFailure::Reported {
            code: e.code,
            msg: e.msg,
            details: e.details,
            stderr,
        },
        _ => {
            // Some plugins print plain words on stdout instead of an error object.
            let words: String = String::from_utf8_lossy(stdout)
                .trim()
                .chars()
                .take(1024)
                .collect();
            let both = [stderr.trim(), words.as_str()]
                .into_iter()
                .filter(|t| !t.is_empty())
                .collect::<Vec<_>>()
                .join("; ");
            PluginFailure::Died {
                status,
                stderr: both,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::failure;

    #[test]
    fn failures_read_well() {
        for (stdout, stderr, want) in [
            (
                r#"{"cniVersion":"1.0.0","code":7,"msg":"bad conf","details":"no subnet"}"#,
                "",
                "bad conf (code 7): no subnet",
            ),
            (
                r#"{"code":11,"msg":"try later"}"#,
                "lock held\n",
                "try later (code 11); it printed: lock held",
            ),
            (
                "",
                "",
                "it ended with exit code 1 and no cni error on its output",
            ),
            (
                "panic: boom",
                "trace",
                "it ended with exit code 1 and no cni error on its output; it printed: trace; panic: boom",
            ),
            (
                "{}",
                "",
                "it ended with exit code 1 and no cni error on its output; it printed: {}",
            ),
        ] {
            assert_eq!(
                failure(stdout.as_bytes(), "exit code 1".into(), stderr.into()).to_string(),
                want
            );
        }
    }
}
