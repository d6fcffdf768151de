//! A real kubelet drives a real criw: pods are manifests in a directory, and what is
//! checked is what the kubelet then says and what is on the machine.
//!
//! One kubelet serves all checks, because a start of it takes seconds and its clean-up a
//! minute: the manifests of all pods are laid down at once, the checks that only look run
//! side by side, those that end the kubelet or the daemon follow one by one, and at last
//! all manifests are taken away. Each check has a name and a result of its own.
//!
//! What a kubelet without an API server cannot do is not here: static pods have no
//! ConfigMap, Secret, claim, service account or projected volume, and their RuntimeClass
//! cannot be resolved, so every pod takes the default handler, which decides by image.

mod cadvisor;
mod exits;
mod gates;
mod lasting;
mod logs;
mod network;
mod node;
mod probes;
mod removal;
mod statistics;
mod streaming;
mod volumes;

use std::process::ExitCode;

use crate::checks::{Check, Report, Run};
use crate::node::Node;

/// Checks of a node.
mod checks {
    pub(crate) use criw_tests::checks::{Report, Run, alone, beside};
    pub(crate) type Check = criw_tests::checks::Check<crate::node::Node>;
}

/// In the order of the run.
fn all() -> Vec<Check> {
    [
        network::CHECKS,
        probes::CHECKS,
        exits::CHECKS,
        volumes::CHECKS,
        logs::CHECKS,
        statistics::CHECKS,
        streaming::CHECKS,
        removal::CHECKS,
        lasting::CHECKS,
        gates::CHECKS,
        cadvisor::CHECKS,
        removal::LAST,
    ]
    .concat()
}

fn main() -> ExitCode {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let chosen: Vec<Check> = all()
        .into_iter()
        .filter(|check| filter.as_ref().is_none_or(|part| check.name.contains(part)))
        .collect();
    let mut report = Report::begin(&chosen, all().len() - chosen.len());
    let pods: Vec<&str> = chosen
        .iter()
        .flat_map(|check| check.pods)
        .copied()
        .collect();
    let mut node = match Node::start(&pods) {
        Ok(node) => node,
        Err(error) => {
            eprintln!("no node to check: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    report.side_by_side(&chosen, &node);
    for check in &chosen {
        if let Run::Alone(run) = check.run {
            report.alone(check.name, || run(&mut node));
        }
    }
    report.end(|| node.keep_logs())
}
