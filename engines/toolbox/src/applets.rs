//! The tools, and which name runs which.

mod basic;
mod copy;
mod date;
mod dump;
mod expr;
mod fields;
mod file;
mod find;
mod grep;
mod hash;
mod list;
mod net;
pub(crate) mod printf;
pub(crate) mod process;
mod sed;
mod sed_run;
mod sort;
mod stat;
mod system;
mod tar;
mod tar_read;
pub(crate) mod test;
mod text;

use crate::context::{Context, Fail, Outcome};
use crate::shell;
use crate::sys::Own;
use std::io::BufWriter;

type Applet = fn(&mut Context) -> Outcome;

macro_rules! applets {
    ($($name:literal => $run:expr,)*) => {
        const APPLETS: &[(&str, Applet)] = &[$(($name, $run),)*];
        const NAMES: &str = concat!("criw-toolbox\nsh\nash\n", $($name, "\n",)*);
    };
}

applets! {
    "[" => test::run,
    "base64" => dump::base64,
    "basename" => basic::basename,
    "cat" => text::cat,
    "chgrp" => file::chown,
    "chmod" => file::chmod,
    "chown" => file::chown,
    "cksum" => hash::cksum,
    "cmp" => dump::cmp,
    "cp" => copy::cp,
    "cut" => fields::cut,
    "date" => date::run,
    "dd" => dump::dd,
    "df" => system::cannot,
    "dirname" => basic::dirname,
    "du" => stat::du,
    "echo" => printf::run_echo,
    "egrep" => grep::run,
    "env" => process::env,
    "expr" => expr::run,
    "false" => basic::no,
    "fgrep" => grep::run,
    "find" => find::run,
    "grep" => grep::run,
    "groups" => system::groups,
    "hd" => dump::hexdump,
    "head" => text::head,
    "hexdump" => dump::hexdump,
    "hostname" => system::hostname,
    "id" => system::id,
    "kill" => process::kill,
    "ln" => file::ln,
    "ls" => list::run,
    "md5sum" => hash::run,
    "mkdir" => file::mkdir,
    "mkfifo" => system::cannot,
    "mount" => system::cannot,
    "mv" => copy::mv,
    "nc" => net::nc,
    "nl" => text::nl,
    "nohup" => process::nohup,
    "nproc" => system::cannot,
    "od" => dump::od,
    "pgrep" => system::pgrep,
    "pidof" => system::pidof,
    "ping" => system::cannot,
    "printenv" => process::printenv,
    "printf" => printf::run,
    "ps" => system::ps,
    "pwd" => basic::pwd,
    "readlink" => file::readlink,
    "realpath" => file::realpath,
    "rev" => text::rev,
    "rm" => file::rm,
    "rmdir" => file::rmdir,
    "sed" => sed::run,
    "seq" => basic::seq,
    "sha1sum" => hash::run,
    "sha256sum" => hash::run,
    "sha512sum" => hash::run,
    "sleep" => basic::sleep,
    "sort" => sort::run,
    "stat" => stat::stat,
    "tac" => text::tac,
    "tail" => text::tail,
    "tar" => tar::run,
    "tee" => text::tee,
    "test" => test::run,
    "time" => process::time,
    "timeout" => process::timeout,
    "top" => system::top,
    "touch" => file::touch,
    "tr" => fields::tr,
    "true" => basic::yes_true,
    "umount" => system::cannot,
    "uname" => system::uname,
    "uniq" => fields::uniq,
    "wc" => text::wc,
    "wget" => net::wget,
    "which" => process::which,
    "whoami" => system::whoami,
    "xargs" => find::xargs,
    "yes" => basic::yes,
}

/// The daemon reads the names here: it runs no guest to ask for them.
#[cfg(target_arch = "wasm32")]
#[used]
#[link_section = "criw.applets"]
static SECTION: [u8; NAMES.len()] = {
    let mut bytes = [0; NAMES.len()];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = NAMES.as_bytes()[at];
        at += 1;
    }
    bytes
};

/// An applet by its name; the shell is one too.
pub(crate) fn find(name: &str) -> Option<Applet> {
    match name {
        "sh" | "ash" | "criw-toolbox" | "toolbox" => Some(|_| Ok(0)),
        _ => APPLETS
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, run)| *run),
    }
}

/// Runs the command that argv names, on the process's own streams.
pub(crate) fn main(mut argv: Vec<String>, env: Vec<(String, String)>) -> i32 {
    let mut name = argv.first().cloned().unwrap_or_default();
    let base = |name: &str| {
        crate::files::base_name(name)
            .trim_start_matches('-')
            .to_owned()
    };
    if matches!(base(&name).as_str(), "criw-toolbox" | "toolbox") && argv.len() > 1 {
        argv.remove(0);
        name = argv[0].clone();
    }
    let directory = env
        .iter()
        .find(|(name, value)| name == "PWD" && value.starts_with('/'));
    let directory = directory.map_or_else(
        || "/".to_owned(),
        |(_, value)| crate::files::logical("/", value),
    );
    let base = base(&name);
    let shell = matches!(base.as_str(), "sh" | "ash");
    // A terminal wants to see lines at once, and so does a shell's user.
    let output: Box<dyn std::io::Write> = if crate::sys::is_terminal(1) {
        Box::new(std::io::LineWriter::new(Own(1)))
    } else {
        Box::new(BufWriter::with_capacity(16 << 10, Own(1)))
    };
    let context = Context {
        name: if shell { name } else { base },
        args: argv.drain(..).skip(1).collect(),
        env,
        directory,
        input: Box::new(Own(0)),
        output,
        error: Box::new(Own(2)),
    };
    if shell {
        return shell::main(context);
    }
    run(context)
}

/// Runs an applet; its exit code.
pub(crate) fn run(mut context: Context) -> i32 {
    let applet = APPLETS
        .iter()
        .find(|(name, _)| *name == context.name)
        .map(|(_, run)| *run);
    let result = match applet {
        Some(applet) => applet(&mut context),
        None if matches!(context.name.as_str(), "criw-toolbox" | "toolbox") => context
            .output
            .write_all(NAMES.as_bytes())
            .map(|()| 0)
            .map_err(Fail::from),
        None => Err(Fail::Text(
            127,
            "not a tool of the toolbox; without arguments it lists them".to_owned(),
        )),
    };
    let result = match (result, context.output.flush()) {
        (Ok(code), Ok(())) => Ok(code),
        (Ok(_), Err(error)) => Err(Fail::from(error)),
        (failed, _) => failed,
    };
    match result {
        Ok(code) => code,
        Err(Fail::Pipe) => 141,
        Err(Fail::Text(code, text)) => {
            if !text.is_empty() {
                context.warn(text);
            }
            code
        }
    }
}
