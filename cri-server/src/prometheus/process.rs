//! The daemon as a process, under the names that all Prometheus clients use.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::time::{ClockId, clock_gettime};

/// Asks the kernel about this process; what it does not tell is left out.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
        let counter = encoder.encode_descriptor(
            "process_cpu_seconds",
            "CPU time of the daemon",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(seconds).encode(counter)?;
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let files = std::fs::read_dir("/proc/self/fd").map(|entries| entries.count() as u64);
        for (name, help, number) in [
            (
                "process_resident_memory_bytes",
                "Memory of the daemon",
                resident_bytes(&status),
            ),
            (
                "process_open_fds",
                "File descriptors of the daemon",
                files.ok(),
            ),
        ] {
            if let Some(number) = number {
                let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                ConstGauge::new(number).encode(gauge)?;
            }
        }
        Ok(())
    }
}

/// `VmRSS:     1234 kB`
fn resident_bytes(status: &str) -> Option<u64> {
    let rest = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\tcriw\nVmHWM:\t 3000 kB\nVmRSS:\t    2048 kB\n";
        assert_eq!(resident_bytes(status), Some(2 << 20));
        assert_eq!(resident_bytes("VmRSS: x kB"), None);
        assert_eq!(resident_bytes(""), None);
    }
}
