//! What the probe tells of its own accord: cgroups made and removed, and what is worth a warning.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use ecoprobe_ebpf::CgroupEvent;

/// What happened to a cgroup of the followed hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupNews {
    pub cgroup_id: u64,
    pub what: Fate,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// With its path from the root of the hierarchy, unless that is too long to be told.
    Made(Option<PathBuf>),
    Removed,
}

impl CgroupNews {
    pub(super) fn new(event: &CgroupEvent, path: &[u8]) -> Self {
        let path = (!path.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(path)));
        let what = if event.made != 0 { Fate::Made(path) } else { Fate::Removed };
        Self { cgroup_id: event.cgroup_id, what }
    }
}

/// A ring buffer item as what the probe put there, and the path; `None` if it is too short.
pub(super) fn cgroup_event(item: &[u8]) -> Option<(CgroupEvent, &[u8])> {
    let (event, rest) = item.split_at_checked(size_of::<CgroupEvent>())?;
    // SAFETY: long enough; integers only, so every bit pattern is valid.
    let event: CgroupEvent = unsafe { ptr::read_unaligned(event.as_ptr().cast()) };
    let path = rest.get(..event.path_len as usize)?;
    Some((event, path))
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
        assert!(cgroup_event(&[0; 31]).is_none());
        assert!(cgroup_event(&[0; 32]).is_some());
        // Of one that says that it has a path.
        let mut item = [0; 36];
        item[28..32].copy_from_slice(&4_u32.to_ne_bytes());
        item[32..].copy_from_slice(b"/a\xff!");
        let (_, path) = cgroup_event(&item).unwrap();
        assert_eq!(path, b"/a\xff!");
        assert!(cgroup_event(&item[..35]).is_none());
    }
}
