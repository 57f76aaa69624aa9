//! What the probe tells of its own accord: cgroups made and removed, and what is worth a warning.

use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use ecoprobe_ebpf::CgroupEvent;

/// A ring buffer item as what the probe put there; `None` if it is too short.
pub(super) fn cgroup_event(item: &[u8]) -> Option<CgroupEvent> {
    if item.len() < size_of::<CgroupEvent>() {
        return None;
    }
    // SAFETY: long enough; integers only, so every bit pattern is valid.
    Some(unsafe { ptr::read_unaligned(item.as_ptr().cast()) })
}

/// Keeps what the probe logs until somebody asks.
#[derive(Debug, Clone, Default)]
pub(super) struct ProbeLog(Arc<Mutex<Vec<String>>>);

impl ProbeLog {
    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl log::Log for ProbeLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut messages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let message = format!("probe: {}", record.args());
        // Every CPU says it once.
        if !messages.contains(&message) {
            messages.push(message);
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_items_are_no_events() {
        assert!(cgroup_event(&[0; 15]).is_none());
        assert!(cgroup_event(&[0; 16]).is_some());
    }
}
