//! Limits as properties of a scope. systemd writes the files of its units anew whenever it
//! is reloaded; what it was not told is without a limit from then on.

use zbus::Variant;

use super::systemd::Property;
use crate::error::{Error, Result};
use crate::model::Resources;

/// "infinity".
const UNLIMITED: u64 = u64::MAX;
const SECOND_IN_MICROS: u128 = 1_000_000;
/// systemd keeps quotas in its files as whole percents of a CPU.
const PERCENT_IN_MICROS: u128 = 10_000;

/// Of writes to files of cgroup v2. Files that systemd never touches (hugetlb, rdma, limits
/// of single disks) have no property and need none.
pub(super) fn of_v2(writes: &[(String, String)]) -> Result<Vec<Property>> {
    let mut properties = Vec::new();
    for (file, value) in writes {
        let value = value.trim();
        let name = match file.as_str() {
            "memory.max" => "MemoryMax",
            "memory.swap.max" => "MemorySwapMax",
            "memory.high" => "MemoryHigh",
            "memory.low" => "MemoryLow",
            "memory.min" => "MemoryMin",
            "pids.max" => "TasksMax",
            "cpu.weight" => "CPUWeight",
            "cpu.max" => {
                properties.extend(cpu_max(value).ok_or_else(|| unreadable(file, value))?);
                continue;
            }
            "cpuset.cpus" | "cpuset.mems" => {
                let name = match file.as_str() {
                    "cpuset.cpus" => "AllowedCPUs",
                    _ => "AllowedMemoryNodes",
                };
                let bits = bits(value).ok_or_else(|| unreadable(file, value))?;
                properties.push((name, bits.into()));
                continue;
            }
            _ => continue,
        };
        let number = number(value).ok_or_else(|| unreadable(file, value))?;
        properties.push((name, number.into()));
    }
    Ok(properties)
}

/// For a host whose controllers are in v1 hierarchies.
pub(super) fn of_v1(resources: &Resources) -> Vec<Property> {
    let mut properties = Vec::new();
    if resources.memory_limit != 0 {
        let limit = u64::try_from(resources.memory_limit).unwrap_or(UNLIMITED);
        properties.push(("MemoryLimit", limit.into()));
    }
    if let Ok(shares @ 1..) = u64::try_from(resources.cpu_shares) {
        properties.push(("CPUShares", shares.into()));
    }
    if resources.cpu_quota != 0 {
        let period = u64::try_from(resources.cpu_period).unwrap_or(0);
        let quota = u64::try_from(resources.cpu_quota).ok();
        properties.extend(quota_of(quota, if period == 0 { 100_000 } else { period }));
    }
    properties
}

fn unreadable(file: &str, value: &str) -> Error {
    Error::Invalid(format!("{value:?} is no value for {file}"))
}

/// "max", or bytes with the suffixes that the kernel takes.
fn number(text: &str) -> Option<u64> {
    if text == "max" {
        return Some(UNLIMITED);
    }
    let shift = match text.bytes().last()?.to_ascii_lowercase() {
        b'k' => 10,
        b'm' => 20,
        b'g' => 30,
        b't' => 40,
        _ => return text.parse().ok(),
    };
    text[..text.len() - 1]
        .parse::<u64>()
        .ok()?
        .checked_mul(1 << shift)
}

/// "quota period", "quota", "max" or "max period".
fn cpu_max(text: &str) -> Option<[Property; 2]> {
    let mut words = text.split_whitespace();
    let quota = match words.next()? {
        "max" => None,
        quota => Some(quota.parse().ok()?),
    };
    let period = words
        .next()
        .map_or(Some(100_000), |word| word.parse().ok())?;
    (period > 0).then(|| quota_of(quota, period))
}

/// Rounded up: the exact value is in the file until the next reload.
fn quota_of(quota: Option<u64>, period: u64) -> [Property; 2] {
    let per_second = quota.map_or(UNLIMITED, |quota| {
        let exact = (u128::from(quota) * SECOND_IN_MICROS).div_ceil(u128::from(period));
        let whole = exact.div_ceil(PERCENT_IN_MICROS) * PERCENT_IN_MICROS;
        u64::try_from(whole).unwrap_or(UNLIMITED)
    });
    [
        ("CPUQuotaPerSecUSec", per_second.into()),
        ("CPUQuotaPeriodUSec", period.into()),
    ]
}

/// The list format of cpuset(7) as one bit per number, lowest first.
fn bits(list: &str) -> Option<Vec<u8>> {
    // Far above what any kernel is built for: a bound on what a list may cost.
    const MOST: usize = 1 << 16;
    let mut bits = Vec::new();
    for range in list.split(',').map(str::trim).filter(|r| !r.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        if bits.len() <= last / 8 {
            bits.resize(last / 8 + 1, 0_u8);
        }
        for n in first..=last {
            bits[n / 8] |= 1 << (n % 8);
        }
    }
    Some(bits)
}

/// Those that every scope of ours has.
pub(super) fn of_scope(description: &str, slice: &str, pid: u32) -> Vec<Property> {
    let text = |text: &str| Variant::from(text.to_owned());
    vec![
        ("Description", text(description)),
        ("Slice", text(slice)),
        ("PIDs", vec![pid].into()),
        // What is below is ours.
        ("Delegate", true.into()),
        // Else systemd would end it by itself when the node goes down, beside the kubelet,
        // which ends pods in an order and with their graces.
        ("DefaultDependencies", false.into()),
        // Nothing stays of one that failed.
        ("CollectMode", text("inactive-or-failed")),
        // Not the 15 % of all pids that units have by default. A later property wins.
        ("TasksMax", UNLIMITED.into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(properties: &[Property]) -> Vec<String> {
        properties
            .iter()
            .map(|(name, value)| match value {
                Variant::U64(UNLIMITED) => format!("{name}=infinity"),
                Variant::U64(number) => format!("{name}={number}"),
                other => {
                    let bytes = Vec::<u8>::try_from(other.try_clone().unwrap()).unwrap();
                    format!("{name}={bytes:x?}")
                }
            })
            .collect()
    }

    #[test]
    fn every_file_that_systemd_writes_has_its_property() {
        for (file, value, expected) in [
            ("memory.max", "1048576", &["MemoryMax=1048576"][..]),
            ("memory.max", "max", &["MemoryMax=infinity"]),
            ("memory.high", "64M", &["MemoryHigh=67108864"]),
            ("memory.low", "1k\n", &["MemoryLow=1024"]),
            ("memory.min", "2G", &["MemoryMin=2147483648"]),
            ("memory.swap.max", "0", &["MemorySwapMax=0"]),
            ("pids.max", "50", &["TasksMax=50"]),
            ("cpu.weight", "59", &["CPUWeight=59"]),
            (
                "cpu.max",
                "50000 100000",
                &["CPUQuotaPerSecUSec=500000", "CPUQuotaPeriodUSec=100000"],
            ),
            (
                "cpu.max",
                "max 50000",
                &["CPUQuotaPerSecUSec=infinity", "CPUQuotaPeriodUSec=50000"],
            ),
            // 12.345 % of a CPU
            (
                "cpu.max",
                "12345 100000",
                &["CPUQuotaPerSecUSec=130000", "CPUQuotaPeriodUSec=100000"],
            ),
            (
                "cpu.max",
                "max",
                &["CPUQuotaPerSecUSec=infinity", "CPUQuotaPeriodUSec=100000"],
            ),
            ("cpuset.cpus", "0-2,9", &["AllowedCPUs=[7, 2]"]),
            ("cpuset.mems", "0", &["AllowedMemoryNodes=[1]"]),
            ("hugetlb.2MB.max", "0", &[]),
            ("memory.oom.group", "1", &[]),
        ] {
            let writes = [(file.to_owned(), value.to_owned())];
            let properties = of_v2(&writes).unwrap();
            assert_eq!(names(&properties), expected, "{file} {value}");
        }
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused() {
        for (file, value) in [
            ("memory.max", "much"),
            ("memory.max", "99999999999999999T"),
            ("cpu.max", ""),
            ("cpu.max", "5 0"),
            ("cpuset.cpus", "3-1"),
            ("cpuset.cpus", "0-99999999"),
        ] {
            let writes = [(file.to_owned(), value.to_owned())];
            let error = of_v2(&writes).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{file} {value}");
        }
    }

    #[test]
    fn hosts_with_v1_have_properties_of_their_own() {
        let resources = Resources {
            memory_limit: 1024,
            memory_swap_limit: 1024,
            cpu_shares: 512,
            cpu_quota: 5000,
            ..Resources::default()
        };
        assert_eq!(
            names(&of_v1(&resources)),
            [
                "MemoryLimit=1024",
                "CPUShares=512",
                "CPUQuotaPerSecUSec=50000",
                "CPUQuotaPeriodUSec=100000"
            ]
        );
        assert!(of_v1(&Resources::default()).is_empty());
    }
}
