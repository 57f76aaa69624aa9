//! What ecoprobe itself costs.

use serde::Serialize;

/// What ecoprobe itself cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Own {
    pub cpu_seconds: Option<f64>,
    pub rss_peak_bytes: Option<u64>,
    pub collect_us: Quantiles,
    pub nvml_us: Quantiles,
    pub probe: ProbeStats,
    /// Windows that were not written, because the output was not read fast enough.
    pub windows_lost: u64,
}

/// Microseconds; `null` before the first measurement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Quantiles {
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub max: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ProbeStats {
    /// Context switches seen.
    pub events: Option<u64>,
    /// Switches that must have happened and were hidden from tracers.
    pub dropped: Option<u64>,
    /// Only while `kernel.bpf_stats_enabled` is 1.
    pub ns_per_event: Option<f64>,
}
