//! How a CPU's state is written by that CPU and read by the agent at the same time.
//!
//! - Every figure is absolute and only ever grows. A slot's CPU time is its counter in the row, but
//!   for the slot that ran last, whose time is in the state, and idle, whose time is only there.
//!   The counter is brought up to date by one store when another slot takes the place. So a counter
//!   that is read later than the state counts nothing twice and lacks nothing.
//! - The state is small and written between two stores to `seq`, which is odd meanwhile. A reader
//!   that finds the same even number before and after has a whole picture. It takes some ten
//!   nanoseconds and is tried again; the long row lies outside of it.
//! - The running slice is reckoned by the clock. A slice that was cut is billed to slots whose
//!   time is in the row, so such a picture counts only if the CPU has not switched since.
//! - A CPU that a hypervisor stops in the middle of a switch shows no whole picture. Then the last
//!   one goes on: whoever ran goes on running.
//! - The reader reports totals; whoever takes them keeps the largest (see [`Reader::read`]), which
//!   makes what is read monotonic however rough the reckoning was.
//!
//! It is generic over how memory is reached, so that a model checker can stand in for it.

use crate::{CpuState, MAX_CUTS, SLOT_IDLE};

/// The 64-bit words of [`CpuState`] that the protocol is about, by their offset in bytes.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Word {
    Seq = core::mem::offset_of!(CpuState, seq),
    Task = core::mem::offset_of!(CpuState, task),
    ClockStart = core::mem::offset_of!(CpuState, clock_start),
    SlotNs = core::mem::offset_of!(CpuState, slot_ns),
    IdleNs = core::mem::offset_of!(CpuState, idle_ns),
    Flushes = core::mem::offset_of!(CpuState, flushes),
    ClockOffset = core::mem::offset_of!(CpuState, clock_offset),
    Cuts = core::mem::offset_of!(CpuState, cuts),
    CutTime0 = core::mem::offset_of!(CpuState, cut_mono_ns),
    CutTime1 = core::mem::offset_of!(CpuState, cut_mono_ns) + 8,
    CutTime2 = core::mem::offset_of!(CpuState, cut_mono_ns) + 16,
}

/// Its 32-bit words.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    Tgid = core::mem::offset_of!(CpuState, tgid),
    Slot = core::mem::offset_of!(CpuState, slot),
    Seen = core::mem::offset_of!(CpuState, seen),
    CutSlot0 = core::mem::offset_of!(CpuState, cut_slot),
    CutSlot1 = core::mem::offset_of!(CpuState, cut_slot) + 4,
    CutSlot2 = core::mem::offset_of!(CpuState, cut_slot) + 8,
}

/// Where a cut is kept. By number rather than in a table, which a BPF program would have to load from.
#[inline(always)]
const fn place_of_cut(number: usize) -> (Word, Half) {
    match number {
        0 => (Word::CutTime0, Half::CutSlot0),
        1 => (Word::CutTime1, Half::CutSlot1),
        _ => (Word::CutTime2, Half::CutSlot2),
    }
}

/// One CPU's state and its row of counters. Every access is one that the hardware makes whole.
pub trait Memory: Copy {
    /// How often a reader looks at a state that is being written before it lets it be.
    const PATIENCE: u32;

    fn load(self, at: Word) -> u64;
    fn store(self, at: Word, value: u64);
    fn load_half(self, at: Half) -> u32;
    fn store_half(self, at: Half, value: u32);
    fn counter(self, slot: u32) -> u64;
    fn set_counter(self, slot: u32, ns: u64);
    /// What stands before it in the program comes before what stands after it, for whoever looks:
    /// stores for a writer, loads for a reader.
    fn fence(self);
    /// A moment passes.
    fn pause(self) {}
}

// What the CPU does at a switch: `open`, one or more of the others, `close`.

#[inline(always)]
pub fn open<M: Memory>(cpu: M) {
    cpu.store(Word::Seq, cpu.load(Word::Seq) + 1);
    cpu.fence();
}

#[inline(always)]
pub fn close<M: Memory>(cpu: M) {
    cpu.fence();
    cpu.store(Word::Seq, cpu.load(Word::Seq) + 1);
}

/// Adds to whoever runs.
#[inline(always)]
pub fn add_to_running<M: Memory>(cpu: M, ns: u64) {
    let at = if cpu.load_half(Half::Tgid) == 0 { Word::IdleNs } else { Word::SlotNs };
    cpu.store(at, cpu.load(at).wrapping_add(ns));
}

/// Whoever runs.
#[inline(always)]
pub fn running_slot<M: Memory>(cpu: M) -> u32 {
    if cpu.load_half(Half::Tgid) == 0 { SLOT_IDLE } else { cpu.load_half(Half::Slot) }
}

/// Adds to any slot.
#[inline(always)]
pub fn add<M: Memory>(cpu: M, slot: u32, ns: u64) {
    if slot == SLOT_IDLE {
        cpu.store(Word::IdleNs, cpu.load(Word::IdleNs).wrapping_add(ns));
    } else if slot == cpu.load_half(Half::Slot) {
        cpu.store(Word::SlotNs, cpu.load(Word::SlotNs).wrapping_add(ns));
    } else {
        cpu.set_counter(slot, cpu.counter(slot).wrapping_add(ns));
        cpu.store(Word::Flushes, cpu.load(Word::Flushes) + 1);
    }
}

/// Another slot's tasks run from now on.
#[inline(always)]
pub fn hold<M: Memory>(cpu: M, slot: u32) {
    cpu.set_counter(cpu.load_half(Half::Slot), cpu.load(Word::SlotNs));
    cpu.store(Word::Flushes, cpu.load(Word::Flushes) + 1);
    cpu.store(Word::SlotNs, cpu.counter(slot));
    cpu.store_half(Half::Slot, slot);
}

/// Bills a slice that ran for `ran` ns, piece by piece if it was cut. Between `open` and `close`.
#[inline(always)]
pub fn bill_slice<M: Memory>(cpu: M, ran: u64) {
    let count = cut_count(cpu.load(Word::Cuts), cpu.load(Word::Seq) - 1);
    let start = cpu.load(Word::ClockStart).wrapping_add(cpu.load(Word::ClockOffset));
    let mut slot = running_slot(cpu);
    let mut billed = 0;
    if count > 0 {
        cpu.fence();
        for i in 0..MAX_CUTS {
            if i as u64 >= count {
                break;
            }
            let (time, cut_slot) = place_of_cut(i);
            let until = cpu.load(time).saturating_sub(start).clamp(billed, ran);
            add(cpu, slot, until - billed);
            billed = until;
            slot = cpu.load_half(cut_slot);
        }
    }
    add(cpu, slot, ran - billed);
}

/// What whoever moves a running task does to the CPU that it runs on: the slice that began with
/// this `seq` belongs to `slot` from `mono_ns` on. One at a time; [`crate::Shared::generation`] is
/// counted up afterwards. `false`: there was no room, and the last cut took on the new owner.
///
/// `cuts` is the `seq` of the slice times two, whose last two bits are 0, plus the number of cuts:
/// one store makes a cut known whole, and those of another slice are nobody's.
#[inline(always)]
pub fn cut<M: Memory>(cpu: M, seq: u64, mono_ns: u64, slot: u32) -> bool {
    let count = cut_count(cpu.load(Word::Cuts), seq);
    for i in 0..MAX_CUTS {
        if count == i as u64 {
            let (time, cut_slot) = place_of_cut(i);
            cpu.store(time, mono_ns);
            cpu.store_half(cut_slot, slot);
            cpu.fence();
            cpu.store(Word::Cuts, (seq << 1) | (count + 1));
            return true;
        }
    }
    cpu.store_half(place_of_cut(MAX_CUTS - 1).1, slot);
    false
}

/// How many cuts there are of the slice that began with `seq`.
#[inline(always)]
fn cut_count(cuts: u64, seq: u64) -> u64 {
    if cuts & !3 == seq << 1 { cuts & 3 } else { 0 }
}

/// How often a CPU is looked at again because it switched meanwhile, where that matters.
const ATTEMPTS: u32 = 8;

/// One CPU's state between two switches.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    pub seq: u64,
    pub task: u64,
    pub clock_start: u64,
    pub slot_ns: u64,
    pub idle_ns: u64,
    pub flushes: u64,
    pub clock_offset: u64,
    pub tgid: u32,
    pub slot: u32,
    pub seen: u32,
    /// As it stands, whichever slice it speaks of.
    pub cuts: u64,
    /// Of the slice that runs.
    pub cut_count: u64,
    pub cut_mono_ns: [u64; MAX_CUTS],
    pub cut_slot: [u32; MAX_CUTS],
}

impl Snapshot {
    /// `None`: the CPU was in the middle of a switch each time we looked.
    pub fn take<M: Memory>(cpu: M) -> Option<Self> {
        for _ in 0..M::PATIENCE {
            let seq = cpu.load(Word::Seq);
            if seq & 1 != 0 {
                cpu.pause();
                continue;
            }
            cpu.fence();
            let mut snapshot = Self {
                seq,
                task: cpu.load(Word::Task),
                clock_start: cpu.load(Word::ClockStart),
                slot_ns: cpu.load(Word::SlotNs),
                idle_ns: cpu.load(Word::IdleNs),
                flushes: cpu.load(Word::Flushes),
                clock_offset: cpu.load(Word::ClockOffset),
                tgid: cpu.load_half(Half::Tgid),
                slot: cpu.load_half(Half::Slot),
                seen: cpu.load_half(Half::Seen),
                cuts: cpu.load(Word::Cuts),
                cut_count: 0,
                cut_mono_ns: [0; MAX_CUTS],
                cut_slot: [0; MAX_CUTS],
            };
            snapshot.cut_count = cut_count(snapshot.cuts, seq);
            if snapshot.cut_count > 0 {
                cpu.fence();
                for i in 0..MAX_CUTS {
                    let (time, cut_slot) = place_of_cut(i);
                    snapshot.cut_mono_ns[i] = cpu.load(time);
                    snapshot.cut_slot[i] = cpu.load_half(cut_slot);
                }
            }
            cpu.fence();
            if cpu.load(Word::Seq) == seq {
                return Some(snapshot);
            }
        }
        None
    }

    /// Slot that the running task was billed to when it came.
    pub fn running_slot(&self) -> u32 {
        if self.tgid == 0 { SLOT_IDLE } else { self.slot }
    }

    /// How long each slot has had of the running slice, in order; by the clock, so an estimate,
    /// good to the IRQ and stolen time of the last milliseconds.
    fn pieces(&self, now: u64) -> [(u32, u64); MAX_CUTS + 1] {
        let start = self.clock_start.wrapping_add(self.clock_offset);
        let ran = now.saturating_sub(start);
        let mut pieces = [(self.running_slot(), 0); MAX_CUTS + 1];
        let mut billed = 0;
        let mut last = 0;
        for i in 0..MAX_CUTS.min(self.cut_count as usize) {
            let until = self.cut_mono_ns[i].saturating_sub(start).clamp(billed, ran);
            pieces[i].1 = until - billed;
            billed = until;
            last = i + 1;
            pieces[last].0 = self.cut_slot[i];
        }
        pieces[last].1 = ran - billed;
        pieces
    }
}

/// What is known of one CPU from the readings before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reader {
    /// The row holds nothing new while this is the state's.
    flushes: Option<u64>,
    /// Who ran at the last whole picture: slot, its CPU time then, and when that was.
    running: Option<(u32, u64, u64)>,
}

/// What a reading of one CPU has come to.
#[derive(Clone, Copy, Debug)]
pub enum Picture {
    /// It has not switched since the probe was attached: nothing is known.
    Unknown,
    Whole(Snapshot),
    /// It is stopped in the middle of a switch: the last picture goes on.
    Continued,
}

impl Reader {
    /// Tells `total` the CPU time so far of every slot that may have had some since the reading
    /// before, below `slots`: some of them more than once, some less than before. The largest counts.
    ///
    /// `now` is CLOCK_MONOTONIC, read just before, and `generation` is [`crate::Shared`]'s.
    pub fn read<M: Memory>(
        &mut self,
        cpu: M,
        generation: u32,
        now: u64,
        slots: u32,
        mut total: impl FnMut(u32, u64),
    ) -> Picture {
        for _ in 0..ATTEMPTS {
            let Some(state) = Snapshot::take(cpu) else { break };
            if state.task == 0 {
                return Picture::Unknown;
            }
            let scan = self.flushes != Some(state.flushes);
            if scan {
                for slot in 0..slots {
                    total(slot, cpu.counter(slot));
                }
                self.flushes = Some(state.flushes);
            }
            // The CPU takes no notice of cuts before `generation` tells it of them.
            let cut = state.cut_count > 0;
            let told = state.seen != generation;
            let state = if told { state } else { Snapshot { cut_count: 0, ..state } };
            let pieces = state.pieces(now);
            let mut totals = [(0, 0); MAX_CUTS + 1];
            let count = state.cut_count as usize + 1;
            for (i, &(slot, _)) in pieces.iter().enumerate().take(count) {
                let before = match slot {
                    SLOT_IDLE => state.idle_ns,
                    _ if slot == state.slot => state.slot_ns,
                    _ => cpu.counter(slot),
                };
                let of_slot = pieces.iter().take(count).filter(|(of, _)| *of == slot);
                totals[i] = (slot, before.wrapping_add(of_slot.map(|(_, ns)| ns).sum()));
            }
            // Else the row may have a piece of a slice that was reckoned to run on uncut.
            cpu.fence();
            if (cut && cpu.load(Word::Seq) != state.seq)
                || (scan && cpu.load(Word::Cuts) != state.cuts)
            {
                continue;
            }
            total(state.slot, state.slot_ns);
            total(SLOT_IDLE, state.idle_ns);
            for &(slot, ns) in totals.iter().take(count) {
                total(slot, ns);
            }
            let (slot, ns) = totals[count - 1];
            self.running = Some((slot, ns, now));
            return Picture::Whole(state);
        }
        if let Some((slot, ns, at)) = self.running {
            total(slot, ns.wrapping_add(now.saturating_sub(at)));
        }
        Picture::Continued
    }
}
