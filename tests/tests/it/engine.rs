//! The same scenario for both kinds of container: what a test says is the same, what
//! the guest is differs.

use criw_proto::v1::ContainerConfig;
use criw_tests::image::Image;
use criw_tests::machine::Machine;
use criw_tests::{images, plan};

/// A kind of container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Wasm,
    Linux,
}

pub(crate) const BOTH: [Engine; 2] = [Engine::Wasm, Engine::Linux];

impl Engine {
    /// Pulls its image; the reference.
    pub(crate) fn provide(self, machine: &Machine) -> String {
        machine.provide(self.name(), &self.image()).unwrap()
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wasm => "guests:1",
            Self::Linux => "busybox:1",
        }
    }

    pub(crate) fn image(self) -> Image {
        match self {
            Self::Wasm => images::guests().unwrap(),
            Self::Linux => images::busybox().unwrap(),
        }
    }

    /// The handler by name, for pods that are to hold only this kind.
    pub(crate) fn handler(self) -> &'static str {
        match self {
            Self::Wasm => "wasmtime",
            Self::Linux => "runc",
        }
    }

    /// Says "ready" and waits for ever; ends at the stop signal with 143.
    pub(crate) fn idle(self, name: &str, image: &str) -> ContainerConfig {
        match self {
            Self::Wasm => plan::command(name, image, &["/bin/idle"]),
            // Pid 1 gets only signals that it handles.
            Self::Linux => plan::command(
                name,
                image,
                &[
                    "sh",
                    "-c",
                    "trap 'exit 143' TERM; echo ready; while :; do sleep 3600 & wait; done",
                ],
            ),
        }
    }

    /// Shows arguments and environment, reads $READ, writes $WRITE, ends with $EXIT_CODE.
    pub(crate) fn hello(self, name: &str, image: &str) -> ContainerConfig {
        match self {
            Self::Wasm => plan::command(name, image, &["/bin/hello"]),
            Self::Linux => plan::command(
                name,
                image,
                &[
                    "sh",
                    "-c",
                    "echo hello from linux; for a; do echo arg=$a; done; env | while read -r v; do echo \"env $v\"; done; \
                     [ -z \"$READ\" ] || cat $READ || exit 3; [ -z \"$WRITE\" ] || echo written by linux > $WRITE || exit 4; \
                     echo to stderr >&2; exit ${EXIT_CODE:-0}",
                    "sh",
                ],
            ),
        }
    }
}
