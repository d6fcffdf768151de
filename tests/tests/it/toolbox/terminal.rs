//! A shell at a terminal, as `kubectl exec -it` has it.

use criw_proto::v1::{AttachRequest, ContainerConfig, ExecRequest};
use criw_tests::machine::Machine;
use criw_tests::spdy::Spdy;
use criw_tests::{plan, wait};

use super::{idle, text};
use crate::engine::Engine;

/// A client with a terminal.
struct Screen {
    client: Spdy,
    error: u32,
    stdin: u32,
    stdout: u32,
    resize: u32,
    /// How far of the output was looked at.
    seen: usize,
}

impl Screen {
    fn open(machine: &Machine, url: &str) -> Self {
        let mut client = machine
            .world
            .enter(|| Spdy::connect(url, "v4.channel.k8s.io"))
            .unwrap();
        let mut open = |kind| client.open(&[("streamtype", kind)]).unwrap();
        let (error, stdin) = (open("error"), open("stdin"));
        let (stdout, resize) = (open("stdout"), open("resize"));
        Self {
            client,
            error,
            stdin,
            stdout,
            resize,
            seen: 0,
        }
    }

    fn exec(machine: &Machine, id: &str, argv: &[&str]) -> Self {
        let request = ExecRequest {
            stdin: true,
            tty: true,
            ..crate::streaming::request(id, argv)
        };
        Self::open(machine, &machine.client.exec(request).unwrap().url)
    }

    fn send(&mut self, keys: &str) {
        self.client.send(self.stdin, keys.as_bytes()).unwrap();
    }

    /// What a command shows until the next prompt.
    fn ask(&mut self, command: &str) -> String {
        self.send(&format!("{command}\r"));
        self.expect(&format!("{command}\r\n"));
        self.expect("/ # ")
    }

    /// Waits until something is shown that was not looked at yet; what was before it.
    fn expect(&mut self, wanted: &str) -> String {
        loop {
            let all = self.client.data.get(&self.stdout);
            let shown = text(all.map_or(&[][..], |all| &all[self.seen..]));
            if let Some(at) = shown.find(wanted) {
                self.seen += at + wanted.len();
                return shown[..at].to_owned();
            }
            match self.client.step() {
                Ok(true) => {}
                end => panic!("{wanted:?} is not in {shown:?}: {end:?}"),
            }
        }
    }

    /// Waits for the end; the status.
    fn status(mut self) -> String {
        text(&self.client.all(self.error).unwrap())
    }
}

#[test]
fn a_shell_prompts_echoes_and_survives_an_interrupt() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    let before = machine.snapshot().unwrap();
    let mut screen = Screen::exec(&machine, &id, &["sh"]);
    screen.expect("/ # ");
    // Echoed by the terminal, then answered by the shell.
    screen.send("echo $((6*7)) | cat\r");
    screen.expect("echo $((6*7)) | cat\r\n");
    screen.expect("42\r\n");
    screen.expect("/ # ");
    screen.send("sleep 1000\r");
    wait::until("the command to run", wait::PATIENCE, || {
        super::processes(&machine, &id)
            .contains("sleep 1000")
            .then_some(())
    })
    .unwrap();
    screen.send("\x03");
    screen.expect("/ # ");
    screen.send("echo code $?\r");
    screen.expect("code 130\r\n");
    screen.expect("/ # ");
    // With nothing to interrupt the line is thrown away.
    screen.send("echo never\x03");
    screen.expect("/ # ");
    screen.send("exit 3\r");
    let status = screen.status();
    assert!(status.contains(r#""message":"3""#), "{status}");
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_terminal_has_a_size_and_tells_the_end_of_input() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    let mut screen = Screen::exec(&machine, &id, &["sh"]);
    screen.expect("/ # ");
    // The size is set a moment after it was sent.
    for (size, shown) in [
        (r#"{"Width":8,"Height":50}"#, "bin\r\ndata\r\netc\r\n"),
        (r#"{"Width":132,"Height":50}"#, "bin   data  etc\r\n"),
    ] {
        screen.client.send(screen.resize, size.as_bytes()).unwrap();
        wait::until(shown, wait::PATIENCE, || {
            (screen.ask("ls /") == shown).then_some(())
        })
        .unwrap();
    }
    screen
        .send("test -t 0 && test -t 1 && echo a $TERM; echo x | sh -c 'test -t 0 || echo none'\r");
    screen.expect("a xterm\r\n");
    screen.expect("none\r\n");
    screen.expect("/ # ");
    // An image's own module sees the terminal too, and Ctrl-D.
    screen.send("/bin/cat\r");
    screen.expect("/bin/cat\r\n");
    screen.send("typed\r\x04");
    screen.expect("typed\r\ntyped\r\n");
    screen.expect("/ # ");
    screen.send("\x04");
    let status = screen.status();
    assert!(status.contains("Success"), "{status}");
}

#[test]
fn an_interrupt_ends_what_is_no_shell() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    let before = machine.snapshot().unwrap();
    for argv in [
        &["/bin/cat"][..],
        &["sleep", "1000"],
        &["sh", "-c", "sleep 1000; echo never"],
    ] {
        let mut screen = Screen::exec(&machine, &id, argv);
        wait::until("the command to run", wait::PATIENCE, || {
            super::processes(&machine, &id)
                .contains(&argv.join(" "))
                .then_some(())
        })
        .unwrap();
        screen.send("\x03");
        let status = screen.status();
        assert!(status.contains(r#""message":"130""#), "{argv:?} {status}");
    }
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_client_that_leaves_takes_all_along() {
    let machine = Machine::new().unwrap();
    let (_pod, id) = idle(&machine);
    let before = machine.snapshot().unwrap();
    let mut screen = Screen::exec(&machine, &id, &["sh"]);
    screen.expect("/ # ");
    screen.send("sleep 1000 | sleep 2000\r");
    wait::until("the commands to run", wait::PATIENCE, || {
        super::processes(&machine, &id)
            .contains("sleep 2000")
            .then_some(())
    })
    .unwrap();
    drop(screen);
    machine.assert_nothing_left(&before).unwrap();
}

#[test]
fn a_container_has_a_terminal_to_attach_to() {
    let mut machine = Machine::new().unwrap();
    let image = Engine::Wasm.provide(&machine);
    let pod = machine.pod("terminal").unwrap();
    let config = ContainerConfig {
        stdin: true,
        tty: true,
        ..plan::command("shell", &image, &["sh"])
    };
    let id = machine.run(&pod, config).unwrap();
    let attach = |machine: &Machine| {
        let request = AttachRequest {
            container_id: id.clone(),
            stdin: true,
            stdout: true,
            tty: true,
            ..Default::default()
        };
        Screen::open(machine, &machine.client.attach(request).unwrap().url)
    };
    let mut screen = attach(&machine);
    screen.send("echo $((40+2)) | cat\r");
    screen.expect("42\r\n");
    drop(screen);
    // The shell lives, also for a new daemon.
    machine.daemon.kill().unwrap();
    machine.restart(&[]).unwrap();
    let mut screen = attach(&machine);
    screen.send("echo again | cat\r");
    screen.expect("\nagain\r\n");
    screen.send("sleep 1000\r");
    wait::until("the command to run", wait::PATIENCE, || {
        super::processes(&machine, &id)
            .contains("sleep 1000")
            .then_some(())
    })
    .unwrap();
    screen.send("\x03");
    screen.send("echo code $?\r");
    screen.expect("code 130\r\n");
    screen.send("exit 4\r");
    let status = machine.ended(&id).unwrap();
    assert_eq!(status.exit_code, 4);
    let log = criw_tests::machine::text(&machine.log(&status).unwrap());
    assert!(log.contains("42\n") && log.contains("code 130\n"), "{log}");
}
