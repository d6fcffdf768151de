//! A whole control plane on one machine drives a real criw: etcd, kube-apiserver,
//! kube-controller-manager, kube-scheduler, kube-proxy and kubectl, and a kubelet that is
//! their only node. What is checked is what a user of the cluster sees.
//!
//! One cluster serves all checks. Those that touch their own objects only run side by
//! side; those that end a part of it follow one by one; at last all is deleted, and
//! nothing may be left on the machine.

mod classes;
mod cluster;
mod configuration;
mod control_plane;
mod lasting;
mod logs;
mod node;
mod refusals;
mod removal;
mod resize;
mod services;
mod streaming;
mod workloads;

use std::process::ExitCode;

use crate::checks::{Check, Report, Run};
use crate::cluster::Cluster;

/// Checks of a cluster.
mod checks {
    pub(crate) use criw_tests::checks::{Report, Run, alone, beside};
    pub(crate) type Check = criw_tests::checks::Check<crate::cluster::Cluster>;
}

/// In the order of the run.
fn all() -> Vec<Check> {
    [
        node::CHECKS,
        classes::CHECKS,
        workloads::CHECKS,
        services::CHECKS,
        configuration::CHECKS,
        refusals::CHECKS,
        logs::CHECKS,
        streaming::CHECKS,
        resize::CHECKS,
        lasting::CHECKS,
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
    let manifests: Vec<&str> = chosen
        .iter()
        .flat_map(|check| check.pods)
        .copied()
        .collect();
    let mut cluster = match Cluster::start(&manifests) {
        Ok(cluster) => cluster,
        Err(error) => {
            eprintln!("no cluster to check: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    report.side_by_side(&chosen, &cluster);
    for check in &chosen {
        if let Run::Alone(run) = check.run {
            report.alone(check.name, || run(&mut cluster));
        }
    }
    report.end(|| cluster.keep_logs())
}
