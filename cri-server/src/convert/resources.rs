//! Resource limits, both ways.

use criw_proto::v1 as cri;
use criw_sandbox::model::Resources;

use crate::error::{Invalid, invalid};

/// Zeros and empty strings stay: they mean "unset" on both sides.
pub fn resources(asked: &cri::LinuxContainerResources) -> Result<Resources, Invalid> {
    for (name, value) in [
        ("cpu_period", asked.cpu_period),
        ("cpu_shares", asked.cpu_shares),
        ("memory_limit_in_bytes", asked.memory_limit_in_bytes),
    ] {
        if value < 0 {
            return invalid(format!("{name} {value} is negative"));
        }
    }
    if asked.cpu_quota < -1 {
        return invalid(format!("cpu_quota {} is below -1", asked.cpu_quota));
    }
    if !(-1000..=1000).contains(&asked.oom_score_adj) {
        return invalid(format!(
            "oom_score_adj {} is not within -1000 and 1000",
            asked.oom_score_adj
        ));
    }
    Ok(Resources {
        cpu_period: asked.cpu_period,
        cpu_quota: asked.cpu_quota,
        cpu_shares: asked.cpu_shares,
        memory_limit: asked.memory_limit_in_bytes,
        memory_swap_limit: asked.memory_swap_limit_in_bytes,
        oom_score_adj: asked.oom_score_adj,
        cpuset_cpus: asked.cpuset_cpus.clone(),
        cpuset_mems: asked.cpuset_mems.clone(),
        hugepage_limits: asked
            .hugepage_limits
            .iter()
            .map(|limit| (limit.page_size.clone(), limit.limit))
            .collect(),
        unified: asked.unified.clone().into_iter().collect(),
    })
}

/// For status.
pub fn resources_status(resources: &Resources) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit,
        memory_swap_limit_in_bytes: resources.memory_swap_limit,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|(page_size, limit)| cri::HugepageLimit {
                page_size: page_size.clone(),
                limit: *limit,
            })
            .collect(),
        unified: resources.unified.clone().into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_come_back_as_they_were() {
        let full = cri::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 2,
            memory_limit_in_bytes: 1 << 20,
            memory_swap_limit_in_bytes: 1 << 21,
            oom_score_adj: -998,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![cri::HugepageLimit {
                page_size: "2MB".into(),
                limit: 0,
            }],
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
        };
        assert_eq!(resources_status(&resources(&full).unwrap()), full);
        let none = cri::LinuxContainerResources::default();
        assert_eq!(resources(&none).unwrap(), Resources::default());
        for bad in [
            cri::LinuxContainerResources {
                cpu_quota: -2,
                ..none.clone()
            },
            cri::LinuxContainerResources {
                cpu_shares: -1,
                ..none.clone()
            },
            cri::LinuxContainerResources {
                oom_score_adj: 1001,
                ..none.clone()
            },
            cri::LinuxContainerResources {
                memory_limit_in_bytes: -5,
                ..none
            },
        ] {
            assert!(resources(&bad).is_err(), "{bad:?}");
        }
    }
}
