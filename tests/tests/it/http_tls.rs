//! Components that serve HTTPS with a certificate from a mounted Secret.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;

use criw_proto::v1::*;
use criw_tests::https::Trust;
use criw_tests::machine::{Machine, Pod};
use criw_tests::{http, images, plan, wait};

/// Name in all certificates.
const NAME: &str = "web.test";

/// A certificate and its key, with the names that a Secret of the type kubernetes.io/tls has.
fn make(machine: &Machine, directory: &Path) {
    std::fs::create_dir_all(directory).unwrap();
    let certificate = directory.join("tls.crt").display().to_string();
    let key = directory.join("tls.key").display().to_string();
    let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
                 -subj /CN=web -addext subjectAltName=DNS:web.test -addext basicConstraints=critical,CA:FALSE";
    let mut args: Vec<&str> = words.split_whitespace().collect();
    args.extend(["-out", &certificate, "-keyout", &key]);
    machine.world.run("openssl", &args).unwrap();
    // As the kubelet leaves it.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(key, mode).unwrap();
}

/// A volume as the kubelet makes it: files lead through `..data`, which is exchanged.
fn point(volume: &Path, version: &str) {
    let new = volume.join("..data_tmp");
    symlink(version, &new).unwrap();
    std::fs::rename(new, volume.join("..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        let _ = symlink(format!("..data/{name}"), volume.join(name));
    }
}

fn config(image: &str, volume: &Path, tls: &str) -> ContainerConfig {
    let mut config = plan::container("web", image);
    config.mounts = vec![plan::mount(volume, "/tls", true)];
    config.annotations = [("criw.dev/http-tls".to_owned(), tls.to_owned())]
        .into_iter()
        .collect();
    config
}

fn address(machine: &Machine, pod: &Pod) -> SocketAddr {
    (machine.pod_ip(&pod.id).unwrap(), 8080).into()
}

fn status(machine: &Machine, trust: &Trust, at: SocketAddr) -> Option<u16> {
    let answer = machine.world.enter(|| trust.request(at, "GET", "/", &[]));
    answer.ok().map(|answer| answer.status)
}

#[test]
fn https_is_served_and_follows_the_secret() {
    let machine = Machine::new().unwrap();
    let image = machine
        .provide("proxy:1", &images::wasm("proxy.component").unwrap())
        .unwrap();
    let volume = machine.world.subdir("secret").unwrap();
    make(&machine, &volume.join("..1"));
    make(&machine, &volume.join("..2"));
    point(&volume, "..1");
    let trust = |version: &str| Trust::file(&volume.join(version).join("tls.crt"), NAME).unwrap();
    let (first, second) = (trust("..1"), trust("..2"));
    let pod = machine.pod("tls").unwrap();
    let id = machine.run(&pod, config(&image, &volume, "/tls")).unwrap();
    let at = address(&machine, &pod);
    assert_eq!(status(&machine, &first, at), Some(200));
    assert_eq!(status(&machine, &second, at), None);
    by_http_2(&machine, &first, at);
    // Who does not know that it is HTTPS is told so.
    let plain = machine
        .world
        .enter(|| http::request(at, "GET", "/", &[], b""));
    let plain = plain.unwrap();
    assert_eq!(plain.status, 400);
    assert!(plain.text().contains("HTTPS"), "{plain:?}");

    // A pair that does not fit together changes nothing, and the log says so.
    std::fs::create_dir(volume.join("..bad")).unwrap();
    std::fs::copy(volume.join("..2/tls.crt"), volume.join("..bad/tls.crt")).unwrap();
    std::fs::copy(volume.join("..1/tls.key"), volume.join("..bad/tls.key")).unwrap();
    point(&volume, "..bad");
    wait::until("the bad pair to be seen", wait::PATIENCE, || {
        assert_eq!(status(&machine, &first, at), Some(200));
        let lines = machine.log(&machine.status(&id).ok()?).ok()?;
        let told = |text: &str| text.contains("does not belong to the certificate");
        lines.iter().any(|line| told(&line.text)).then_some(())
    })
    .unwrap();
    // The rotation is seen without a restart.
    point(&volume, "..2");
    wait::until("the new certificate", wait::PATIENCE, || {
        status(&machine, &second, at).filter(|status| *status == 200)
    })
    .unwrap();
    // A client that has been there before may resume its session.
    assert_eq!(status(&machine, &trust("..1"), at), None);
    let running = machine.status(&id).unwrap();
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    machine.stop(&id, 10).unwrap();
    assert_eq!(machine.status(&id).unwrap().exit_code, 0);
    machine.remove_pod(&pod.id).unwrap();
}

/// One request by HTTP/2, which the server prefers.
fn by_http_2(machine: &Machine, trust: &Trust, at: SocketAddr) {
    let (mut status, mut body) = (0, Vec::new());
    machine
        .world
        .enter(|| {
            let mut stream = trust.connect(at, &["http/1.1", "h2"])?;
            assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
            let frame = |kind: u8, flags: u8, id: u32, payload: &[u8]| {
                let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
                frame.extend([kind, flags]);
                frame.extend(id.to_be_bytes());
                frame.extend(payload);
                frame
            };
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
            stream.write_all(&frame(4, 0, 0, &[]))?;
            // :method GET, :scheme https, :path /, :authority pod; the whole request.
            let fields = [&[0x82, 0x87, 0x84, 0x41, 3][..], b"pod"].concat();
            stream.write_all(&frame(1, 5, 1, &fields))?;
            loop {
                let mut head = [0; 9];
                stream.read_exact(&mut head)?;
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let mut payload = vec![0; length as usize];
                stream.read_exact(&mut payload)?;
                match head[3] {
                    0 => body.extend_from_slice(&payload),
                    1 => status = payload[0],
                    // SETTINGS wants to be acknowledged.
                    4 if head[4] == 0 => stream.write_all(&frame(4, 1, 0, &[]))?,
                    _ => {}
                }
                if head[3] <= 1 && head[4] & 1 != 0 {
                    return Ok(());
                }
            }
        })
        .unwrap();
    // 0x88 is ":status 200" in the static table.
    assert_eq!((status, &*body), (0x88, &b"hello from a component\n"[..]));
}

#[test]
fn a_secret_that_cannot_be_used_fails_the_start_and_says_why() {
    let machine = Machine::new().unwrap();
    let image = machine
        .provide("proxy:1", &images::wasm("proxy.component").unwrap())
        .unwrap();
    let volume = machine.world.subdir("secret").unwrap();
    make(&machine, &volume);
    make(&machine, &volume.join("other"));
    std::fs::write(volume.join("text"), "no certificate\n").unwrap();
    std::fs::write(volume.join("secret"), "").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o400);
    std::fs::set_permissions(volume.join("secret"), mode).unwrap();
    let pod = machine.pod("bad").unwrap();
    for (tls, words) in [
        ("/nowhere", ["/nowhere/tls.crt", "No such file"]),
        (
            "/tls/text,/tls/tls.key",
            ["/tls/text", "no certificate in PEM"],
        ),
        (
            "/tls/tls.crt,/tls/text",
            ["/tls/text", "no private key in PEM"],
        ),
        (
            "/tls/tls.crt,/tls/other/tls.key",
            ["/tls/other/tls.key", "does not belong to the certificate"],
        ),
        (
            "/tls/tls.crt,/tls/secret",
            ["/tls/secret", "may not read it"],
        ),
        ("/tls/tls.crt,/tls", ["/tls", "no regular file"]),
    ] {
        let mut config = config(&image, &volume, tls);
        let linux = config.linux.get_or_insert_default();
        let context = linux.security_context.get_or_insert_default();
        context.run_as_user = Some(Int64Value { value: 1000 });
        let id = machine.create(&pod, config).unwrap();
        let error = machine.start(&id).unwrap_err();
        for word in words {
            assert!(error.message().contains(word), "{tls}: {error:?}");
        }
        let status = machine.status(&id).unwrap();
        assert_eq!((status.exit_code, &*status.reason), (128, "StartError"));
        machine.remove(&id).unwrap();
    }
    let error = machine
        .create(&pod, config(&image, &volume, "relative/path"))
        .unwrap_err();
    assert!(error.message().contains("criw.dev/http-tls"), "{error:?}");
    machine.remove_pod(&pod.id).unwrap();
}
