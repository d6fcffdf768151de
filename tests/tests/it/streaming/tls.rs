//! Streams inside TLS.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;

use criw_tests::daemon::{self, Daemon};
use criw_tests::machine::Machine;
use criw_tests::noise::noise;
use criw_tests::{config, crictl, http, images, plan, spdy, wait};

use super::forward::Forward;
use super::{TRANSPORTS, idle, piped, request, text};
use crate::engine::{BOTH, Engine};

/// A self-signed certificate for the loopback address, and for the name that crictl asks for
/// there: certificate and key.
fn certificate(machine: &Machine, name: &str) -> (PathBuf, PathBuf) {
    let certificate = machine.world.path(format!("{name}.crt"));
    let key = machine.world.path(format!("{name}.key"));
    let (certificate_text, key_text) = (certificate.to_string_lossy(), key.to_string_lossy());
    let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
                 -subj /CN=streams -addext subjectAltName=IP:127.0.0.1,DNS:localhost";
    let mut args: Vec<&str> = words.split_whitespace().collect();
    args.extend(["-out", &*certificate_text, "-keyout", &*key_text]);
    machine.world.run("openssl", &args).unwrap();
    (certificate, key)
}

fn with_tls() -> (Machine, PathBuf, PathBuf) {
    let mut machine = Machine::new().unwrap();
    let (certificate, key) = certificate(&machine, "streams");
    let text = format!("[streaming]\ntls_cert = {certificate:?}\ntls_key = {key:?}\n");
    config::append(&machine.world, &text).unwrap();
    machine.daemon.terminate().unwrap();
    machine.restart(&[]).unwrap();
    (machine, certificate, key)
}

#[test]
fn every_stream_works_inside_tls() {
    let (machine, certificate, key) = with_tls();
    let (certificate, key) = (certificate.to_string_lossy(), key.to_string_lossy());
    let (stranger, _) = self::certificate(&machine, "stranger");
    let stranger = stranger.to_string_lossy();
    for engine in BOTH {
        let (pod, id) = idle(&machine, engine);
        for transport in TRANSPORTS {
            let trusting = |ca: &str| {
                let flags = [
                    "--tls-ca",
                    ca,
                    "--tls-cert",
                    &certificate,
                    "--tls-key",
                    &key,
                ];
                let args = [
                    &["exec", "-i", "-r", transport][..],
                    &flags,
                    &[&id, "/bin/cat"],
                ];
                piped(&machine, &args.concat(), &noise(1 << 20))
            };
            let copied = trusting(&certificate);
            assert!(copied.status.success(), "{}", text(&copied.stderr));
            assert!(copied.stdout == noise(1 << 20), "{transport}");
            // It is this certificate that is shown, and that the client looks at.
            let refused = trusting(&stranger);
            assert!(!refused.status.success());
            let said = text(&refused.stderr);
            assert!(said.contains("certificate"), "{said}");
        }
        machine.remove_pod(&pod.id).unwrap();
    }

    let image = machine
        .provide("busybox:1", &images::busybox().unwrap())
        .unwrap();
    let pod = machine.pod("httpd").unwrap();
    let argv = ["httpd", "-f", "-p", "8000", "-h", "/etc"];
    machine
        .run(&pod, plan::command("httpd", &image, &argv))
        .unwrap();
    for transport in TRANSPORTS {
        let forward = Forward::start(&machine, &pod.id, transport, 8000);
        let address = forward.address();
        let answer = wait::until("the server to answer", wait::PATIENCE, || {
            machine.world.enter(|| http::get(address, "/motd")).ok()
        });
        assert_eq!(answer.unwrap(), "a file of the image\n");
    }
}

#[test]
fn a_client_without_tls_is_not_heard() {
    let (machine, ..) = with_tls();
    let (_pod, id) = idle(&machine, Engine::Wasm);
    let url = machine
        .client
        .exec(request(&id, &["/bin/hello"]))
        .unwrap()
        .url;
    let rest = url.strip_prefix("https://").expect(&url);
    let (address, path) = spdy::parse_url(&format!("http://{rest}")).unwrap();
    let answer = machine
        .world
        .enter(|| {
            let mut plain = TcpStream::connect(address)?;
            plain.set_read_timeout(Some(wait::PATIENCE))?;
            let request = format!("POST {path} HTTP/1.1\r\nhost: x\r\n\r\n");
            let mut answer = Vec::new();
            // A reset is an end, too, and the first bytes are enough for one.
            let _ = plain
                .write_all(request.as_bytes())
                .and_then(|()| plain.read_to_end(&mut answer));
            Ok(answer)
        })
        .unwrap();
    assert!(!text(&answer).contains("HTTP"), "{}", text(&answer));
    // The token was not spent on it, and others are served.
    let done = crictl::ok(&machine, &["exec", &id, "/bin/cat", "/etc/motd"]);
    assert_eq!(done.unwrap(), "a file of the image");
}

#[test]
fn files_that_cannot_be_used_are_named_at_the_start() {
    let mut machine = Machine::new().unwrap();
    let (certificate, _) = certificate(&machine, "one");
    let (_, foreign_key) = self::certificate(&machine, "two");
    machine.daemon.terminate().unwrap();
    let before = std::fs::read_to_string(machine.world.path("config.toml")).unwrap();
    let nowhere = machine.world.path("nowhere.key");
    for (key, words) in [
        (&nowhere, ["streaming.tls_key", "nowhere.key"]),
        (&foreign_key, ["streaming.tls_cert", "two.key"]),
    ] {
        let text =
            format!("{before}\n[streaming]\ntls_cert = {certificate:?}\ntls_key = {key:?}\n");
        std::fs::write(machine.world.path("config.toml"), text).unwrap();
        let mut daemon = Daemon::spawn(&machine.world, &[]).unwrap();
        let status = daemon.ended(wait::PATIENCE).unwrap();
        assert!(!status.success());
        let log = daemon::tail(&machine.world);
        for word in words {
            assert!(log.contains(word), "no {word} in {log}");
        }
    }
    std::fs::write(machine.world.path("config.toml"), before).unwrap();
    machine.restart(&[]).unwrap();
}
