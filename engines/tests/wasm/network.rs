//! Preopened listeners: C and Go servers in a network namespace of their own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use criw_engines::protocol::{Reply, Request};
use criw_engines::spec::WasmSection;
use rustix::thread::UnshareFlags;

use crate::container::{Container, DEADLINE, Plan, compile, skip};
use crate::guests::{from_c, from_go};

/// A port below 1024, because the shim binds before it gives up privileges.
const ADDRESS: &str = "127.0.0.1:80";

/// A network namespace with a loopback, kept by its descriptor.
#[allow(
    unsafe_code,
    reason = "unshare without CLONE_FILES, on a fresh thread that ends"
)]
pub(crate) fn network() -> OwnedFd {
    std::thread::spawn(|| {
        // SAFETY: descriptors stay shared, and the thread does nothing else.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
        std::fs::File::open("/proc/thread-self/ns/net")
            .unwrap()
            .into()
    })
    .join()
    .unwrap()
}

/// Does something inside the namespace; sockets made there stay there.
pub(crate) fn inside<T: Send>(network: &OwnedFd, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let done = scope.spawn(|| {
            rustix::thread::move_into_link_name_space(network.as_fd(), None).unwrap();
            act()
        });
        done.join().unwrap()
    })
}

/// Connects inside the namespace, says `words`, and reads to the end.
fn talk(network: &OwnedFd, words: &str) -> std::io::Result<String> {
    inside(network, || {
        let address: SocketAddr = ADDRESS.parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(words.as_bytes())?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

fn serve(module: &[u8], listen: &str) -> (Container, OwnedFd) {
    let network = network();
    let plan = Plan {
        wasm: WasmSection {
            listen: vec![listen.to_owned()],
            ..WasmSection::default()
        },
        network: Some(network.try_clone().unwrap()),
        ..Plan::default()
    };
    let container = Container::create(&compile(module).unwrap(), plan).unwrap();
    assert_eq!(container.call(&Request::Start), Reply::Started);
    (container, network)
}

const C_ECHO: &str = r#"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void) {
    char line[256];
    /* Directories work beside a listener. */
    FILE *file = fopen("/greeting", "r");
    if (!file || !fgets(line, sizeof line, file)) return 2;
    printf("file says %s", line);
    fflush(stdout);
    for (;;) {
        int peer = accept(3, NULL, NULL);
        if (peer < 0) { printf("accept: %s\n", strerror(errno)); return 9; }
        ssize_t n;
        while ((n = read(peer, line, sizeof line)) > 0)
            if (send(peer, line, (size_t)n, 0) != n) return 3;
        close(peer);
    }
}
"#;

#[test]
fn a_c_server_echoes_and_drains() {
    if skip("a_c_server_echoes_and_drains") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let Some(module) = from_c("a_c_server_echoes_and_drains", directory.path(), C_ECHO) else {
        return;
    };
    let (mut container, network) = serve(&module, ADDRESS);
    container.await_log("file says hello from the root");
    for words in ["one", "two two", &"x".repeat(100_000)] {
        assert_eq!(talk(&network, words).unwrap(), *words);
    }
    // The listener closes, accept fails, and the guest decides how it ends.
    assert_eq!(container.stop(), Reply::Done);
    let (code, record) = container.wait();
    assert_eq!(code, 9, "{record:?} {}", container.log());
    assert!(container.log().contains("accept: "), "{}", container.log());
    assert!(talk(&network, "late").is_err());
}

const GO_ECHO: &str = r#"
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

func main() {
	if _, err := os.ReadFile("/greeting"); err != nil {
		fmt.Println("file:", err)
		os.Exit(2)
	}
	// Before NewFile looks at it: else accept blocks all goroutines.
	syscall.SetNonblock(3, true)
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		fmt.Println("listen:", err)
		os.Exit(3)
	}
	for {
		peer, err := listener.Accept()
		if err != nil {
			fmt.Println("accept:", err)
			os.Exit(9)
		}
		go func() {
			io.Copy(peer, peer)
			peer.Close()
		}()
	}
}
"#;

#[test]
fn a_go_server_echoes() {
    if skip("a_go_server_echoes") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let Some(module) = from_go("a_go_server_echoes", directory.path(), GO_ECHO) else {
        return;
    };
    let (mut container, network) = serve(&module, ADDRESS);
    // One that says nothing does not hinder the next: the guest polls.
    let silent = inside(&network, || {
        TcpStream::connect_timeout(&ADDRESS.parse().unwrap(), DEADLINE).unwrap()
    });
    let words = "y".repeat(300_000);
    assert_eq!(talk(&network, &words).unwrap(), words);
    drop(silent);
    container.stop();
    let (code, record) = container.wait();
    assert_eq!(code, 9, "{record:?} {}", container.log());
}

#[test]
fn a_port_that_is_taken_is_a_start_error() {
    if skip("a_port_that_is_taken_is_a_start_error") {
        return;
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let plan = Plan {
        wasm: WasmSection {
            listen: vec![address.clone()],
            ..WasmSection::default()
        },
        ..Plan::default()
    };
    let code = compile(crate::guests::hello().as_bytes()).unwrap();
    let mut container = Container::create(&code, plan).unwrap();
    let Reply::StartFailed { message } = container.call(&Request::Start) else {
        panic!("two listen on {address}");
    };
    assert!(
        message.contains(&address) && message.contains("in use"),
        "{message}"
    );
    assert_eq!(container.wait().0, 128);
}
