//! Images of Wasm. The shell and nearly all tools are none of theirs: the toolbox answers, as
//! in any image that lacks them. There is no setuid in Wasm, so no `nonewprivs`.

use anyhow::Result;

use super::{Parts, alone, settings, skeleton};
use crate::binaries::guest;
use crate::image::{Entry, Image, Settings, file, rootfs};

const PLATFORM: &str = "wasi/wasm";

pub(super) struct Wasm {
    base: Vec<Entry>,
    /// Waits for ever.
    pause: Vec<u8>,
    /// A component that serves HTTP: the runtime listens for it.
    proxy: Vec<u8>,
    /// A component that listens by itself.
    httpd: Vec<u8>,
}

impl Wasm {
    pub(super) fn read() -> Result<Self> {
        let pause = guest("idle")?;
        let mut base = skeleton();
        // A tool of the image's own, which the spec of masked paths covers, and a second
        // module, because one alone would answer to every command.
        base.push(file("bin/ls", 0o755, guest("ls")?));
        base.push(file("bin/pause", 0o755, pause.clone()));
        Ok(Self {
            base,
            pause,
            proxy: guest("hello.component")?,
            httpd: guest("httpd.component")?,
        })
    }

    fn server(&self, name: &str, program: &[u8], settings: Settings) -> Result<Image> {
        let program = file(&format!("usr/sbin/{name}"), 0o755, program);
        self.busybox(vec![program], settings)
    }
}

impl Parts for Wasm {
    fn platform(&self) -> &'static str {
        PLATFORM
    }

    fn busybox(&self, above: Vec<Entry>, settings: Settings) -> Result<Image> {
        rootfs(PLATFORM, &[self.base.clone(), above], &settings)
    }

    fn nginx(&self, address: &str, port: u16) -> Result<Image> {
        let mut settings = settings(&["nginx", "-g", "daemon off;"]);
        let listen = format!("WASMTIME_HTTP_PROXY_SOCKET_ADDR={address}:{port}");
        settings.env.push(listen);
        self.server("nginx", &self.proxy, settings)
    }

    fn httpd(&self) -> Result<Image> {
        self.server("httpd", &self.httpd, settings(&["httpd", "80"]))
    }

    fn pause(&self, mark: &str) -> Result<Image> {
        alone(PLATFORM, "pause", 0o755, &self.pause, mark)
    }

    fn nonewprivs(&self) -> Result<Option<Image>> {
        Ok(None)
    }
}
