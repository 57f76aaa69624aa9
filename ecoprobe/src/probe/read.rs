//! Reading the probe's counters out of memory shared with the kernel.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use aya::maps::MapData;
use ecoprobe_ebpf::protocol::{Half, Memory, Picture, Reader, Snapshot, Word};
use ecoprobe_ebpf::{CpuState, INIT, MAX_CUTS, NO_CPU, SLOT_IDLE, SLOT_OTHER, Shared};
use memmap2::{MmapOptions, MmapRaw};

use super::awake::Awake;
use super::slots::{Slots, Time, View};
use crate::base::monotonic_ns;
use crate::event::{CpuTimes, PAIRED, PackageTime};

/// A reading is of one instant but for how long it takes. One that was interrupted is worth another.
const ATTEMPTS: u32 = 3;
/// What it may take, ns: for anything, and for each counter.
const USUAL: u64 = 50_000;
const USUAL_FOR_A_COUNTER: u64 = 5;

/// The probe's arrays: what each CPU does now, a row of counters for each, and what all share.
pub(super) struct Counters {
    maps: Maps,
    package_of_cpu: Vec<Option<usize>>,
    packages: usize,
    readers: Vec<Reader>,
    views: Vec<View>,
    /// What was read of each counter, a row a CPU; no counter goes back. The second is empty where no
    /// core has two threads.
    read: Vec<u64>,
    read_paired: Vec<u64>,
    /// Active, of no known package.
    unplaced: Vec<usize>,
    /// Cumulative, by package, those of no known one last: idle and other.
    idle: Vec<u64>,
    other: Vec<Time>,
    selection: u32,
    awake: Awake,
}

/// Of the probe's maps those that are mapped.
pub(super) struct Arrays {
    pub(super) cpus: MapData,
    pub(super) counters: MapData,
    pub(super) paired: MapData,
    pub(super) shared: MapData,
}

/// Sums over all CPUs.
pub(super) struct Totals {
    pub(super) switches: u64,
    pub(super) dropped: u64,
    pub(super) lost_events: u64,
}

impl Counters {
    pub(super) fn map(
        arrays: Arrays,
        nr_slots: usize,
        siblings: bool,
        package_of_cpu: Vec<Option<usize>>,
        packages: usize,
    ) -> io::Result<Self> {
        let nr_cpus = package_of_cpu.len();
        // The mappings keep the maps alive; the descriptors are not needed any more.
        let row = nr_slots * size_of::<u64>();
        let maps = Maps {
            cpus: map(&arrays.cpus, nr_cpus * size_of::<CpuState>())?,
            counters: map(&arrays.counters, nr_cpus * row)?,
            paired: siblings.then(|| map(&arrays.paired, nr_cpus * row)).transpose()?,
            shared: map(&arrays.shared, size_of::<Shared>())?,
            nr_cpus,
            nr_slots,
        };
        for cpu in 0..nr_cpus {
            let state = maps.state(cpu);
            // SAFETY: the probe is not attached yet, so these are ours.
            unsafe { ptr::write_volatile(&raw mut (*state).row, (cpu * nr_slots) as u32) };
            maps.sibling(cpu).store(NO_CPU, Ordering::SeqCst);
        }
        maps.hidden_tgid().store(INIT, Ordering::SeqCst);
        Ok(Self {
            maps,
            packages,
            readers: vec![Reader::default(); nr_cpus],
            views: vec![View::Nothing; nr_cpus],
            // Zeroed pages, which cost nothing for CPUs that are never there.
            read: vec![0; nr_cpus * nr_slots],
            read_paired: vec![0; if siblings { nr_cpus * nr_slots } else { 0 }],
            unplaced: Vec::new(),
            idle: vec![0; packages + 1],
            other: vec![Time::default(); packages + 1],
            package_of_cpu,
            selection: 0,
            awake: Awake::new(nr_cpus),
        })
    }

    pub(super) fn nr_cpus(&self) -> usize {
        self.maps.nr_cpus
    }

    pub(super) fn has_siblings(&self) -> bool {
        self.maps.paired.is_some()
    }

    pub(super) fn set_siblings(&mut self, sibling_of_cpu: &[Option<usize>]) {
        let nr_cpus = self.maps.nr_cpus;
        for cpu in 0..nr_cpus {
            let sibling = sibling_of_cpu.get(cpu).copied().flatten();
            let sibling = sibling.filter(|sibling| *sibling < nr_cpus && *sibling != cpu);
            let sibling = sibling.map_or(NO_CPU, |sibling| sibling as u32);
            self.maps.sibling(cpu).store(sibling, Ordering::SeqCst);
        }
    }

    /// The CPU time so far, running tasks included, and when that was.
    pub(super) fn read(&mut self, slots: &mut Slots, out: &mut CpuTimes) -> u64 {
        let mut now = 0;
        for _ in 0..ATTEMPTS {
            now = monotonic_ns();
            let counters = self.read_cpus(now, slots);
            let limit = USUAL + USUAL_FOR_A_COUNTER * counters;
            if monotonic_ns().saturating_sub(now) <= limit {
                break;
            }
        }
        out.packages.resize_with(self.packages, PackageTime::default);
        for (other, more) in self.other.iter_mut().zip(slots.for_other()) {
            *other += more;
        }
        let places = out.packages.iter_mut().chain([&mut out.unplaced]);
        for (number, ((place, idle), other)) in places.zip(&self.idle).zip(&self.other).enumerate()
        {
            place.idle = *idle;
            place.other = other.ns;
            // A machine whose packages are all known has nothing to say of the rest.
            if self.maps.paired.is_some() && (number < self.packages || *idle + other.ns > 0) {
                place.features.entry(PAIRED).or_default().other = other.paired;
            }
        }
        slots.list(out);
        self.awake.end_window(now);
        now
    }

    /// How long any CPU ran, as of the last reading. See [`Awake`].
    pub(super) fn awake_ns(&self) -> Option<u64> {
        self.awake.ns()
    }

    /// Takes in what was counted so far, and which slots each CPU may bill to, for the next reading to
    /// tell.
    pub(super) fn look(&mut self, slots: &mut Slots) -> u64 {
        let now = monotonic_ns();
        self.read_cpus(now, slots);
        now
    }

    /// How many counters it has looked at, at most.
    fn read_cpus(&mut self, now: u64, slots: &mut Slots) -> u64 {
        let generation = self.maps.generation().load(Ordering::SeqCst);
        let used = slots.used();
        let rows = 1 + u64::from(self.maps.paired.is_some());
        let mut counters = 0;
        let mut at = now;
        for cpu in 0..self.maps.nr_cpus {
            let package = self.package_of_cpu[cpu].unwrap_or(self.packages);
            let row = &mut self.read[cpu * self.maps.nr_slots..][..self.maps.nr_slots];
            let paired_row =
                self.read_paired.get_mut(cpu * self.maps.nr_slots..).unwrap_or_default();
            let (idle, other) = (&mut self.idle[package], &mut self.other[package]);
            let total = |slot: u32, ns: u64, paired: u64| {
                let Some(before) = row.get_mut(slot as usize) else { return };
                // Compared by their difference, lest nonsense add up to an overflow.
                let mut more = Time::from(ns.saturating_sub(*before));
                *before += more.ns;
                if let Some(paired_before) = paired_row.get_mut(slot as usize) {
                    more.paired = paired.min(*before).saturating_sub(*paired_before);
                    *paired_before += more.paired;
                }
                if more == Time::default() {
                    return;
                }
                match slot {
                    SLOT_IDLE => *idle += more.ns,
                    SLOT_OTHER => *other += more,
                    _ if slots.bill(package, slot, more) => {}
                    _ => *other += more,
                }
            };
            let picture = self.readers[cpu].read(self.maps.cpu(cpu), generation, at, used, total);
            self.views[cpu] = match picture {
                Picture::Unknown => {
                    self.views[cpu] = View::Nothing;
                    continue;
                }
                Picture::Whole(state) => view(&state),
                Picture::Continued => View::Unknown,
            };
            self.awake.note(cpu, at, row[SLOT_IDLE as usize]);
            if self.package_of_cpu[cpu].is_none() && !self.unplaced.contains(&cpu) {
                self.unplaced.push(cpu);
            }
            counters += u64::from(used) * rows;
            // Each CPU as of its own instant: with hundreds of them the last comes much later.
            at = monotonic_ns();
        }
        counters
    }

    /// Which slots each CPU may bill to, as of the last reading.
    pub(super) fn views(&self) -> &[View] {
        &self.views
    }

    pub(super) fn unplaced_cpus(&self) -> &[usize] {
        &self.unplaced
    }

    pub(super) fn place(&mut self, cpu: usize, package: usize) {
        if package < self.packages
            && let Some(place) = self.package_of_cpu.get_mut(cpu)
        {
            *place = Some(package);
            self.unplaced.retain(|unplaced| *unplaced != cpu);
        }
    }

    pub(super) fn totals(&self) -> Totals {
        let mut totals = Totals { switches: 0, dropped: 0, lost_events: 0 };
        for cpu in 0..self.maps.nr_cpus {
            let state = self.maps.state(cpu);
            // SAFETY: within the mapping; integers that the kernel writes at any time.
            unsafe {
                totals.switches += ptr::read_volatile(&raw const (*state).seq) / 2;
                totals.dropped += ptr::read_volatile(&raw const (*state).dropped);
                totals.lost_events += ptr::read_volatile(&raw const (*state).lost_events);
            }
        }
        totals
    }

    /// Tells every CPU that slots must be looked up again.
    pub(super) fn selection_changed(&mut self) {
        self.selection = self.selection.wrapping_add(1);
        self.maps.selection().store(self.selection, Ordering::SeqCst);
        self.maps.generation().fetch_add(1, Ordering::SeqCst);
    }
}

fn view(state: &Snapshot) -> View {
    let mut cuts = [None; MAX_CUTS];
    for (i, cut) in cuts.iter_mut().enumerate().take(state.cut_count as usize) {
        *cut = Some(state.cut_slot[i]);
    }
    let running = (state.tgid != 0).then_some(state.slot);
    View::Slots { held: state.slot, running, cuts }
}

/// Written by the kernel at any time.
struct Maps {
    cpus: MmapRaw,
    counters: MmapRaw,
    /// Where cores have two threads.
    paired: Option<MmapRaw>,
    shared: MmapRaw,
    nr_cpus: usize,
    nr_slots: usize,
}

impl Maps {
    /// Valid for as long as `self`.
    fn state(&self, cpu: usize) -> *mut CpuState {
        assert!(cpu < self.nr_cpus);
        // SAFETY: the mapping holds `nr_cpus` states, page-aligned.
        unsafe { self.cpus.as_mut_ptr().cast::<CpuState>().add(cpu) }
    }

    fn cpu(&self, cpu: usize) -> Cpu<'_> {
        let state = self.state(cpu);
        // SAFETY: the mappings hold `nr_cpus` states, and rows of `nr_slots`; they live as long as
        // `self`, and whoever writes there does so by whole words.
        unsafe {
            let words = size_of::<CpuState>() / size_of::<u64>();
            let row = |rows: &MmapRaw| {
                let row = rows.as_mut_ptr().cast::<AtomicU64>().add(cpu * self.nr_slots);
                std::slice::from_raw_parts(row, self.nr_slots)
            };
            let sibling = self.sibling(cpu).load(Ordering::Relaxed) as usize;
            let sibling = (sibling < self.nr_cpus).then(|| self.idle_account(sibling));
            Cpu {
                words: std::slice::from_raw_parts(state.cast(), words),
                halves: std::slice::from_raw_parts(state.cast(), words * 2),
                row: row(&self.counters),
                paired: self.paired.as_ref().map(row),
                sibling,
            }
        }
    }

    fn sibling(&self, cpu: usize) -> &AtomicU32 {
        // SAFETY: within the mapping, which lives as long as `self`; aligned by its type.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.state(cpu)).sibling) }
    }

    fn idle_account(&self, cpu: usize) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.state(cpu)).idle_account) }
    }

    fn shared(&self) -> *mut Shared {
        self.shared.as_mut_ptr().cast()
    }

    fn generation(&self) -> &AtomicU32 {
        // SAFETY: within the mapping, which lives as long as `self`; aligned by its type.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.shared()).generation) }
    }

    fn selection(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.shared()).selection) }
    }

    fn hidden_tgid(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.shared()).hidden_tgid) }
    }
}

/// One CPU's state and row, as the protocol reaches them from here.
#[derive(Clone, Copy)]
struct Cpu<'a> {
    words: &'a [AtomicU64],
    halves: &'a [AtomicU32],
    row: &'a [AtomicU64],
    paired: Option<&'a [AtomicU64]>,
    /// Its idle account.
    sibling: Option<&'a AtomicU64>,
}

impl Memory for Cpu<'_> {
    /// A switch takes some 50 ns unless its hypervisor stops it right there.
    const PATIENCE: u32 = 1_000;

    fn load(self, at: Word) -> u64 {
        self.words[at as usize / 8].load(Ordering::Relaxed)
    }

    fn store(self, _: Word, _: u64) {
        unreachable!("a reader writes nothing");
    }

    fn load_half(self, at: Half) -> u32 {
        self.halves[at as usize / 4].load(Ordering::Relaxed)
    }

    fn store_half(self, _: Half, _: u32) {
        unreachable!("a reader writes nothing");
    }

    fn counter(self, slot: u32) -> u64 {
        self.row.get(slot as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    fn set_counter(self, _: u32, _: u64) {
        unreachable!("a reader writes nothing");
    }

    fn has_siblings(self) -> bool {
        self.paired.is_some()
    }

    fn sibling_account(self) -> u64 {
        self.sibling.map_or(0, |account| account.load(Ordering::Relaxed))
    }

    fn paired(self, slot: u32) -> u64 {
        let row = self.paired.unwrap_or_default();
        row.get(slot as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    fn set_paired(self, _: u32, _: u64) {
        unreachable!("a reader writes nothing");
    }

    fn fence(self) {
        fence(Ordering::Acquire);
    }

    fn pause(self) {
        std::hint::spin_loop();
    }
}

fn map(data: &MapData, len: usize) -> io::Result<MmapRaw> {
    MmapOptions::new().len(len).map_raw(data.fd().as_fd().as_raw_fd())
}
