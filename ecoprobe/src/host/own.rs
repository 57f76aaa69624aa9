//! What ecoprobe itself costs, as the kernel accounts for it.

use std::path::Path;

use nix::sys::resource::{UsageWho, getrusage};

use crate::base::own::Own;

/// CPU time of this process so far, all threads, user and system, seconds.
pub(crate) fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6;
    Some(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// The largest resident set of this process so far, bytes. `VmHWM`, because `ru_maxrss` also
/// remembers what the process was before it became ecoprobe (a shell's fork). Always our own
/// `/proc`, not the host's of `--procfs`.
pub(crate) fn rss_peak_bytes() -> Option<u64> {
    let status = super::read(Path::new("/proc/self/status")).ok()?;
    vm_hwm_bytes(&String::from_utf8_lossy(&status))
}

/// Both of them; what the collector measures of itself is left empty.
pub(crate) fn so_far() -> Own {
    Own { cpu_seconds: cpu_seconds(), rss_peak_bytes: rss_peak_bytes(), ..Own::default() }
}

fn vm_hwm_bytes(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_in_kibibytes() {
        assert_eq!(
            vm_hwm_bytes("Name:\tx\nVmHWM:\t    9800 kB\nVmRSS:\t 1 kB\n"),
            Some(10_035_200)
        );
        for odd in ["", "VmHWM:\n", "VmHWM: 5\n", "VmHWM: x kB\n", "VmHWM: 18446744073709551615 kB"]
        {
            assert_eq!(vm_hwm_bytes(odd), None, "{odd}");
        }
    }

    #[test]
    fn this_process_costs_something() {
        assert!(rss_peak_bytes().unwrap() > 100_000);
        let before = cpu_seconds().unwrap();
        let mut spun = 0_u64;
        while cpu_seconds().unwrap() - before < 0.005 {
            spun = spun.wrapping_add(1);
        }
        assert!(spun > 0);
    }
}
