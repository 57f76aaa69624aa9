//! Reading the probe's counters out of memory shared with the kernel.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use aya::maps::MapData;
use ecoprobe_ebpf::{CgroupEvent, CpuState, INIT, SLOT_IDLE};
use memmap2::{MmapOptions, MmapRaw};

use crate::base::monotonic_ns;

/// How often a CPU is read again because it switched meanwhile. A CPU that switches faster than we can
/// read has slices shorter than a read, so what the last attempt misses is microseconds, and the next
/// read has it.
const ATTEMPTS: u32 = 4;

/// How long to wait for a CPU that is in the middle of a switch, which takes some 50 ns unless its
/// hypervisor stops it right there.
const SPINS: u32 = 2_000;

/// The probe's two arrays: what each CPU does now, and a row of counters for each.
pub(super) struct Counters {
    cpus: MmapRaw,
    counters: MmapRaw,
    nr_slots: usize,
    package_of_cpu: Vec<Option<usize>>,
    packages: usize,
    row: Vec<u64>,
}

/// Sums over all CPUs.
pub(super) struct Totals {
    pub(super) switches: u64,
    pub(super) dropped: u64,
    pub(super) lost_events: u64,
}

impl Counters {
    pub(super) fn map(
        cpus: MapData,
        counters: MapData,
        nr_slots: usize,
        package_of_cpu: Vec<Option<usize>>,
        packages: usize,
    ) -> io::Result<Self> {
        let nr_cpus = package_of_cpu.len();
        // The mappings keep the maps alive; the descriptors are not needed any more.
        let counters = Self {
            cpus: map(&cpus, nr_cpus * size_of::<CpuState>())?,
            counters: map(&counters, nr_cpus * nr_slots * size_of::<u64>())?,
            nr_slots,
            package_of_cpu,
            packages,
            row: Vec::new(),
        };
        for cpu in 0..nr_cpus {
            let state = counters.state_ptr(cpu);
            // SAFETY: the probe is not attached yet, so these are ours.
            unsafe {
                ptr::write_volatile(&raw mut (*state).row, (cpu * nr_slots) as u32);
                ptr::write_volatile(&raw mut (*state).vanishing_tgid, INIT);
            }
        }
        Ok(counters)
    }

    pub(super) fn nr_cpus(&self) -> usize {
        self.package_of_cpu.len()
    }

    /// Sums of the first `slots` slots by package, running tasks included.
    pub(super) fn read(&mut self, slots: usize, cpu_ns: &mut Vec<Vec<u64>>) -> u64 {
        let slots = slots.min(self.nr_slots);
        cpu_ns.resize_with(self.packages, Vec::new);
        for row in &mut *cpu_ns {
            row.clear();
            row.resize(slots, 0);
        }
        let mut row = std::mem::take(&mut self.row);
        let now = monotonic_ns();
        for (cpu, &package) in self.package_of_cpu.iter().enumerate() {
            self.read_cpu(cpu, slots, now, &mut row);
            if let Some(sums) = package.and_then(|package| cpu_ns.get_mut(package)) {
                for (sum, ns) in sums.iter_mut().zip(&row) {
                    *sum = sum.wrapping_add(*ns);
                }
            }
        }
        self.row = row;
        now
    }

    fn read_cpu(&self, cpu: usize, slots: usize, now: u64, row: &mut Vec<u64>) {
        let seq = self.seq(cpu);
        for _ in 0..ATTEMPTS {
            let stable = || Some(seq.load(Ordering::Acquire)).filter(|seq| seq & 1 == 0);
            let before = (0..SPINS).find_map(|_| {
                stable().or_else(|| {
                    std::hint::spin_loop();
                    None
                })
            });
            row.clear();
            row.extend(self.row(cpu, slots).iter().map(|ns| ns.load(Ordering::Relaxed)));
            let state = self.state(cpu);
            fence(Ordering::Acquire);
            if before == Some(seq.load(Ordering::Relaxed)) {
                add(row, state.cached_slot, state.cached_ns);
                add(row, SLOT_IDLE, state.idle_ns);
                // A CPU that never switched since the probe was attached runs nobody we know.
                if state.task != 0 {
                    add_running(&state, state.seq, now, row);
                }
                return;
            }
        }
    }

    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals { switches: 0, dropped: 0, lost_events: 0 };
        for cpu in 0..self.nr_cpus() {
            let state = self.state(cpu);
            totals.switches += state.seq / 2;
            totals.dropped += state.dropped;
            totals.lost_events += state.lost_events;
        }
        totals
    }

    /// Tells every CPU that slots must be looked up again.
    pub(super) fn set_selection(&self, selection: u32) {
        for cpu in 0..self.nr_cpus() {
            let state = self.state_ptr(cpu);
            // SAFETY: this field is written by us alone.
            unsafe { ptr::write_volatile(&raw mut (*state).news.selection, selection) };
        }
    }

    /// Valid for as long as `self`; the kernel writes there at any time.
    fn state_ptr(&self, cpu: usize) -> *mut CpuState {
        assert!(cpu < self.nr_cpus());
        // SAFETY: the mapping holds `nr_cpus` states, page-aligned.
        unsafe { self.cpus.as_mut_ptr().cast::<CpuState>().add(cpu) }
    }

    fn state(&self, cpu: usize) -> CpuState {
        // SAFETY: every bit pattern is a valid state.
        unsafe { ptr::read_volatile(self.state_ptr(cpu)) }
    }

    fn seq(&self, cpu: usize) -> &AtomicU64 {
        // SAFETY: `seq` is the first field and aligned to 8.
        unsafe { AtomicU64::from_ptr(self.state_ptr(cpu).cast()) }
    }

    fn row(&self, cpu: usize, slots: usize) -> &[AtomicU64] {
        assert!(cpu < self.nr_cpus() && slots <= self.nr_slots);
        // SAFETY: the mapping holds `nr_cpus` rows of `nr_slots` and lives as long as `self`.
        unsafe {
            let row = self.counters.as_mut_ptr().cast::<AtomicU64>().add(cpu * self.nr_slots);
            std::slice::from_raw_parts(row, slots)
        }
    }
}

/// Adds what the running task has run so far, by the clock. It is an estimate, good to the IRQ and
/// stolen time of the last milliseconds; the next switch puts the exact figure in its place.
fn add_running(state: &CpuState, seq: u64, now: u64, row: &mut [u64]) {
    let start = state.clock_start.wrapping_add(state.clock_offset);
    let ran = now.saturating_sub(start);
    let mut slot = state.slot;
    let mut billed = 0;
    if state.cut_seq == seq {
        let cuts = state.cut_mono_ns.iter().zip(state.cut_slot);
        for (mono_ns, cut_slot) in cuts.take(state.cut_count as usize) {
            let until = mono_ns.saturating_sub(start).clamp(billed, ran.max(billed));
            add(row, slot, until - billed);
            billed = until;
            slot = cut_slot;
        }
    }
    add(row, slot, ran.saturating_sub(billed));
}

fn add(row: &mut [u64], slot: u32, ns: u64) {
    if let Some(sum) = row.get_mut(slot as usize) {
        *sum = sum.wrapping_add(ns);
    }
}

/// A ring buffer item as what the probe put there; `None` if it is too short.
pub(super) fn cgroup_event(item: &[u8]) -> Option<CgroupEvent> {
    if item.len() < size_of::<CgroupEvent>() {
        return None;
    }
    // SAFETY: long enough; integers only, so every bit pattern is valid.
    Some(unsafe { ptr::read_unaligned(item.as_ptr().cast()) })
}

fn map(data: &MapData, len: usize) -> io::Result<MmapRaw> {
    MmapOptions::new().len(len).map_raw(data.fd().as_fd().as_raw_fd())
}

#[cfg(test)]
mod tests {
    use ecoprobe_ebpf::SLOT_OTHER;

    use super::*;

    fn running(slot: u32, cuts: &[(u64, u32)]) -> CpuState {
        // SAFETY: integers only.
        let mut state: CpuState = unsafe { std::mem::zeroed() };
        state.seq = 8;
        state.slot = slot;
        state.clock_start = 1_000;
        state.clock_offset = 500;
        state.cut_seq = 8;
        state.cut_count = cuts.len() as u32;
        for (i, &(mono_ns, slot)) in cuts.iter().enumerate() {
            state.cut_mono_ns[i] = mono_ns;
            state.cut_slot[i] = slot;
        }
        state
    }

    #[test]
    fn the_running_part_goes_to_whoever_runs() {
        let mut row = [0; 4];
        add_running(&running(2, &[]), 8, 1_900, &mut row);
        assert_eq!(row, [0, 0, 400, 0]);
        // The clock offset may be a little ahead of the truth.
        add_running(&running(2, &[]), 8, 1_400, &mut row);
        assert_eq!(row, [0, 0, 400, 0]);
        add_running(&running(SLOT_IDLE, &[]), 8, 1_501, &mut row);
        assert_eq!(row, [0, 1, 400, 0]);
    }

    #[test]
    fn a_moved_task_is_billed_to_both() {
        let mut row = [0; 4];
        add_running(&running(2, &[(1_600, 3), (1_700, SLOT_OTHER)]), 8, 1_900, &mut row);
        assert_eq!(row, [200, 0, 100, 100]);
        // Cuts of another slice are stale.
        let mut row = [0; 4];
        add_running(&running(2, &[(1_600, 3)]), 10, 1_900, &mut row);
        assert_eq!(row, [0, 0, 400, 0]);
        // Cuts out of order or in the future bill no nanosecond twice.
        let mut row = [0; 4];
        add_running(&running(2, &[(1_800, 3), (1_700, 2), (9_000, 3)]), 8, 1_900, &mut row);
        assert_eq!(row.iter().sum::<u64>(), 400);
    }

    #[test]
    fn a_slot_beyond_the_row_is_ignored() {
        let mut row = [0; 2];
        add_running(&running(77, &[]), 8, 1_900, &mut row);
        assert_eq!(row, [0, 0]);
    }

    #[test]
    fn short_items_are_no_events() {
        assert!(cgroup_event(&[0; 15]).is_none());
        assert!(cgroup_event(&[0; 16]).is_some());
    }
}
