//! Two clocks: the driver's and ours.

use crate::base::monotonic_ns;

/// The driver stamps its samples with the wall clock; everything here is monotonic. The two are
/// compared anew for every answer, so that a clock that was set does not matter for long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) now_ns: u64,
    real_ns: u64,
}

impl Clock {
    pub(super) fn now() -> Self {
        let now_ns = monotonic_ns();
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self { now_ns, real_ns: since_epoch.map_or(0, |time| time.as_nanos() as u64) }
    }

    pub(super) fn real_us(self, mono_ns: u64) -> u64 {
        self.real_ns.saturating_sub(self.now_ns.saturating_sub(mono_ns)) / 1000
    }

    /// A time stamp of the driver, or now, if it is ahead of that: the clock was set back, or the
    /// driver is wrong. To ask for what is newer would be to ask for nothing until then.
    pub(super) fn not_ahead(self, real_us: u64) -> u64 {
        real_us.min(self.real_ns / 1000)
    }

    pub(super) fn mono_ns(self, real_us: u64) -> u64 {
        let real_ns = real_us.saturating_mul(1000);
        if real_ns >= self.real_ns {
            self.now_ns.saturating_add(real_ns - self.real_ns)
        } else {
            self.now_ns.saturating_sub(self.real_ns - real_ns)
        }
    }
}
