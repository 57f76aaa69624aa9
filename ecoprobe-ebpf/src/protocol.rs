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
//! - Where cores have two threads, each slot has a second figure, kept in the same way: see [`paired`].
//!
//! It is generic over how memory is reached, so that a model checker can stand in for it.

use crate::paired::{self, Stretch, idle_by};
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
    IdleAccount = core::mem::offset_of!(CpuState, idle_account),
    PairedNs = core::mem::offset_of!(CpuState, paired_ns),
    SettledNs = core::mem::offset_of!(CpuState, settled_ns),
    SiblingIdleNs = core::mem::offset_of!(CpuState, sibling_idle_ns),
    Cuts = core::mem::offset_of!(CpuState, cuts),
    CutTime0 = core::mem::offset_of!(CpuState, cut_mono_ns),
    CutTime1 = core::mem::offset_of!(CpuState, cut_mono_ns) + 8,
    CutTime2 = core::mem::offset_of!(CpuState, cut_mono_ns) + 16,
    CutSiblingIdle0 = core::mem::offset_of!(CpuState, cut_sibling_idle_ns),
    CutSiblingIdle1 = core::mem::offset_of!(CpuState, cut_sibling_idle_ns) + 8,
    CutSiblingIdle2 = core::mem::offset_of!(CpuState, cut_sibling_idle_ns) + 16,
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
const fn place_of_cut(number: usize) -> (Word, Half, Word) {
    match number {
        0 => (Word::CutTime0, Half::CutSlot0, Word::CutSiblingIdle0),
        1 => (Word::CutTime1, Half::CutSlot1, Word::CutSiblingIdle1),
        _ => (Word::CutTime2, Half::CutSlot2, Word::CutSiblingIdle2),
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
    /// Whether any core has two threads. If not, there is no second row, and no account is kept.
    fn has_siblings(self) -> bool;
    /// The [`CpuState::idle_account`] of the other thread of this core; 0: there is none.
    fn sibling_account(self) -> u64;
    fn paired(self, slot: u32) -> u64;
    fn set_paired(self, slot: u32, ns: u64);
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

/// Another slot's tasks run from the beginning of the slice on.
#[inline(always)]
pub fn hold<M: Memory>(cpu: M, slot: u32) {
    if cpu.has_siblings() {
        paired::hold(cpu, slot);
    } else {
        cpu.set_counter(cpu.load_half(Half::Slot), cpu.load(Word::SlotNs));
        cpu.store(Word::SlotNs, cpu.counter(slot));
    }
    cpu.store(Word::Flushes, cpu.load(Word::Flushes) + 1);
    cpu.store_half(Half::Slot, slot);
}

/// When the slice began, CLOCK_MONOTONIC, ns.
#[inline(always)]
pub fn start<M: Memory>(cpu: M) -> u64 {
    cpu.load(Word::ClockStart).wrapping_add(cpu.load(Word::ClockOffset))
}

/// Bills a slice that ran for `ran` ns until `mono_ns`, piece by piece if it was cut. Between `open` and
/// `close`.
#[inline(always)]
pub fn bill_slice<M: Memory>(cpu: M, ran: u64, mono_ns: u64) {
    let count = cut_count(cpu.load(Word::Cuts), cpu.load(Word::Seq) - 1);
    let start = start(cpu);
    let is_settled = cpu.has_siblings() && cpu.load_half(Half::Tgid) != 0;
    let mut slot = running_slot(cpu);
    let mut billed = 0;
    if count > 0 {
        cpu.fence();
        for i in 0..MAX_CUTS {
            if i as u64 >= count {
                break;
            }
            let (time, cut_slot, sibling_idle) = place_of_cut(i);
            // Not `clamp`, whose panic the compiler leaves in.
            let until = cpu.load(time).saturating_sub(start).min(ran).max(billed);
            add(cpu, slot, until - billed);
            if is_settled {
                paired::settle_piece(cpu, slot, until - billed, cpu.load(sibling_idle));
            }
            billed = until;
            slot = cpu.load_half(cut_slot);
        }
    }
    add(cpu, slot, ran - billed);
    if is_settled && count > 0 {
        paired::settle_piece(cpu, slot, ran - billed, paired::sibling_idle_by(cpu, mono_ns));
    }
}

/// What whoever moves a running task does to the CPU that it runs on: the slice that began with
/// this `seq` belongs to `slot` from `mono_ns` on, which is now. One at a time;
/// [`crate::Shared::generation`] is counted up afterwards. `false`: there was no room, and the last cut
/// took on the new owner.
///
/// `cuts` is the `seq` of the slice times two, whose last two bits are 0, plus the number of cuts:
/// one store makes a cut known whole, and those of another slice are nobody's.
#[inline(always)]
pub fn cut<M: Memory>(cpu: M, seq: u64, mono_ns: u64, slot: u32) -> bool {
    let count = cut_count(cpu.load(Word::Cuts), seq);
    for i in 0..MAX_CUTS {
        if count == i as u64 {
            let (time, cut_slot, sibling_idle) = place_of_cut(i);
            cpu.store(time, mono_ns);
            cpu.store_half(cut_slot, slot);
            if cpu.has_siblings() {
                cpu.store(sibling_idle, paired::sibling_idle_by(cpu, mono_ns));
            }
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
    pub cut_sibling_idle_ns: [u64; MAX_CUTS],
    /// These are 0 where no core has two threads.
    pub sibling_account: u64,
    pub paired_ns: u64,
    pub settled_ns: u64,
    pub sibling_idle_ns: u64,
}

/// What a slot has had of a slice, ns.
#[derive(Clone, Copy, Debug)]
struct Piece {
    slot: u32,
    ran: u64,
    paired: u64,
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
                cut_sibling_idle_ns: [0; MAX_CUTS],
                sibling_account: 0,
                paired_ns: 0,
                settled_ns: 0,
                sibling_idle_ns: 0,
            };
            if cpu.has_siblings() {
                snapshot.sibling_account = cpu.sibling_account();
                snapshot.paired_ns = cpu.load(Word::PairedNs);
                snapshot.settled_ns = cpu.load(Word::SettledNs);
                snapshot.sibling_idle_ns = cpu.load(Word::SiblingIdleNs);
            }
            snapshot.cut_count = cut_count(snapshot.cuts, seq);
            if snapshot.cut_count > 0 {
                cpu.fence();
                for i in 0..MAX_CUTS {
                    let (time, cut_slot, sibling_idle) = place_of_cut(i);
                    snapshot.cut_mono_ns[i] = cpu.load(time);
                    snapshot.cut_slot[i] = cpu.load_half(cut_slot);
                    if cpu.has_siblings() {
                        snapshot.cut_sibling_idle_ns[i] = cpu.load(sibling_idle);
                    }
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

    /// What each slot has had of the running slice, in order; by the clock, so an estimate, good to the
    /// IRQ and stolen time of the last milliseconds. The first has what is not settled of the slices
    /// before, as far as it was paired.
    fn pieces(&self, now: u64) -> [Piece; MAX_CUTS + 1] {
        let start = self.clock_start.wrapping_add(self.clock_offset);
        let ran = now.saturating_sub(start);
        let mut pieces = [Piece { slot: self.running_slot(), ran: 0, paired: 0 }; MAX_CUTS + 1];
        let mut stretch = Stretch::from(self.sibling_idle_ns);
        let mut unsettled = self.slot_ns.saturating_sub(self.settled_ns);
        let mut paired = |ran: u64, by: u64| match self.tgid {
            0 => 0,
            _ => stretch.paired(ran + core::mem::take(&mut unsettled), 0, by),
        };
        let mut billed = 0;
        let mut last = 0;
        for i in 0..MAX_CUTS.min(self.cut_count as usize) {
            let until = self.cut_mono_ns[i].saturating_sub(start).clamp(billed, ran);
            pieces[i].ran = until - billed;
            pieces[i].paired = paired(until - billed, self.cut_sibling_idle_ns[i]);
            billed = until;
            last = i + 1;
            pieces[last].slot = self.cut_slot[i];
        }
        pieces[last].ran = ran - billed;
        pieces[last].paired = paired(ran - billed, idle_by(self.sibling_account, now));
        pieces
    }
}

/// What is known of one CPU from the readings before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reader {
    /// The row holds nothing new while this is the state's.
    flushes: Option<u64>,
    /// Who ran at the last whole picture, and when that was.
    running: Option<(Total, u64)>,
}

/// What a slot has had on one CPU so far, ns.
#[derive(Clone, Copy, Debug, Default)]
struct Total {
    slot: u32,
    ns: u64,
    paired: u64,
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
    /// before, below `slots`, and the paired part of it: some of them more than once, some less than
    /// before. The largest of each counts.
    ///
    /// `now` is CLOCK_MONOTONIC, read just before, and `generation` is [`crate::Shared`]'s.
    pub fn read<M: Memory>(
        &mut self,
        cpu: M,
        generation: u32,
        now: u64,
        slots: u32,
        mut total: impl FnMut(u32, u64, u64),
    ) -> Picture {
        for _ in 0..ATTEMPTS {
            let Some(state) = Snapshot::take(cpu) else { break };
            if state.task == 0 {
                return Picture::Unknown;
            }
            let scan = self.flushes != Some(state.flushes);
            if scan {
                for slot in 0..slots {
                    // What is read later is never less.
                    let paired = if cpu.has_siblings() { cpu.paired(slot) } else { 0 };
                    total(slot, cpu.counter(slot), paired);
                }
                self.flushes = Some(state.flushes);
            }
            // The CPU takes no notice of cuts before `generation` tells it of them.
            let cut = state.cut_count > 0;
            let told = state.seen != generation;
            let state = if told { state } else { Snapshot { cut_count: 0, ..state } };
            let pieces = state.pieces(now);
            let count = state.cut_count as usize + 1;
            let pieces = &pieces[..count];
            let mut totals = [Total::default(); MAX_CUTS + 1];
            for (piece, at) in pieces.iter().zip(&mut totals) {
                let slot = piece.slot;
                let (ns, paired) = match slot {
                    SLOT_IDLE => (state.idle_ns, 0),
                    _ if slot == state.slot => (state.slot_ns, state.paired_ns),
                    _ if cpu.has_siblings() => (cpu.counter(slot), cpu.paired(slot)),
                    _ => (cpu.counter(slot), 0),
                };
                *at = Total { slot, ns, paired };
                for more in pieces.iter().filter(|more| more.slot == slot) {
                    at.ns = at.ns.wrapping_add(more.ran);
                    at.paired = at.paired.wrapping_add(more.paired);
                }
            }
            // Else the row may have a piece of a slice that was reckoned to run on uncut.
            cpu.fence();
            if (cut && cpu.load(Word::Seq) != state.seq)
                || (scan && cpu.load(Word::Cuts) != state.cuts)
            {
                continue;
            }
            total(state.slot, state.slot_ns, state.paired_ns);
            total(SLOT_IDLE, state.idle_ns, 0);
            for &Total { slot, ns, paired } in totals.iter().take(count) {
                total(slot, ns, paired);
            }
            self.running = Some((totals[count - 1], now));
            return Picture::Whole(state);
        }
        if let Some((Total { slot, ns, paired }, at)) = self.running {
            // Nobody knows what its sibling has done meanwhile.
            total(slot, ns.wrapping_add(now.saturating_sub(at)), paired);
        }
        Picture::Continued
    }
}
