//! How often a counter has to be read.

use std::time::Duration;

use super::Domain;
use crate::base::Seconds;

/// A shorter time than this no reader keeps: a counter that may wrap sooner cannot be followed, and
/// its windows are said to be missing.
const SHORTEST: Duration = Duration::from_millis(10);

impl Domain {
    /// The least time in which the counter can pass through its whole range; `None` if it never
    /// comes back to where it was, or if it makes no sense.
    pub fn wrap_seconds(&self) -> Option<Seconds> {
        let seconds = self.range? as f64 * self.joules_per_count / self.max_watts;
        (seconds.is_finite() && seconds > 0.0).then_some(Seconds(seconds))
    }
}

/// The longest time that may pass between two readings of these counters, so that each wrap is seen:
/// a third of the shortest, which leaves room for a reading that fails and one that is late. `None`:
/// as long as one likes.
pub fn longest_interval(domains: &[Domain]) -> Option<Duration> {
    let wraps = domains.iter().filter_map(Domain::wrap_seconds);
    let shortest = wraps.map(|seconds| seconds.0).min_by(f64::total_cmp)?;
    Duration::try_from_secs_f64(shortest / 3.0).ok().map(|interval| interval.max(SHORTEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Component;

    fn domain(range: Option<u64>, joules_per_count: f64, max_watts: f64) -> Domain {
        let (name, component) = ("package-0".into(), Component::Cpu);
        Domain { name, component, package: 0, joules_per_count, range, max_watts }
    }

    #[test]
    fn the_shortest_range_decides() {
        // AMD's powercap zone wraps after 65.5 kJ, Intel's after 262 kJ.
        let amd = domain(Some(65_532_610_988), 1e-6, 2_000.0);
        let intel = domain(Some(262_143_328_851), 1e-6, 2_000.0);
        assert!((amd.wrap_seconds().unwrap().0 - 32.766).abs() < 1e-3);
        let interval = longest_interval(&[intel.clone(), amd, domain(None, 1e-9, 500.0)]);
        assert!((interval.unwrap().as_secs_f64() - 10.922).abs() < 1e-3);
        assert!((longest_interval(&[intel]).unwrap().as_secs_f64() - 43.690).abs() < 1e-3);
    }

    #[test]
    fn what_never_wraps_is_read_as_one_likes() {
        assert_eq!(longest_interval(&[]), None);
        for (range, joules, watts) in [
            (None, 1e-6, 500.0),
            (Some(100), f64::NAN, 1.0),
            (Some(0), 1.0, 1.0),
            (Some(9), 1.0, 0.0),
        ] {
            let odd = domain(range, joules, watts);
            assert_eq!(odd.wrap_seconds(), None, "{odd:?}");
            assert_eq!(longest_interval(&[odd]), None);
        }
        // A thousand microjoules wrap in half a microsecond.
        assert_eq!(longest_interval(&[domain(Some(1_000), 1e-6, 2_000.0)]), Some(SHORTEST));
        // More than any duration.
        assert_eq!(longest_interval(&[domain(Some(u64::MAX), 1e300, 1e-9)]), None);
    }
}
