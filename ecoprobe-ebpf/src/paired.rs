//! How long each slot ran while the other thread of the same core, the sibling, was busy.
//!
//! - A CPU's idle account says how long it has idled by now, or by any instant since it last fell asleep
//!   or woke up. It is one word, so whoever reads it gets it whole whatever its CPU is doing, and never
//!   has to try again. Its CPU alone writes it, when it falls asleep or wakes up.
//! - What ran between two readings of the sibling's account was paired but for what the account has
//!   gained. It is read when this CPU falls asleep or wakes up, when another slot's tasks come, and
//!   where a slice is cut: in between, this CPU is busy with one slot.
//! - Instants are CLOCK_MONOTONIC as each CPU reckons it, by its run-queue clock: two of them are
//!   apart by what interrupts and the hypervisor took of either in the last milliseconds. What is
//!   reckoned too high at one reading is too low by as much at the next one, because each stretch begins
//!   with the account that the one before has ended with.
//! - What interrupts take of the sibling's idling counts as idling, what they take of ours as nothing.

use crate::SLOT_OTHER;
use crate::protocol::{Half, Memory, Word, start};

/// In an idle account: the rest is the instant at which its CPU would have fallen asleep if it had idled
/// without pause, CLOCK_MONOTONIC, ns. Else the rest is how long it has idled, ns.
const IDLES: u64 = 1;

/// How long a CPU had idled by then; 0: nobody knows. It has an origin of its own: only differences
/// mean anything.
#[inline(always)]
pub fn idle_by(account: u64, mono_ns: u64) -> u64 {
    let rest = account >> 1;
    if account & IDLES != 0 { mono_ns.wrapping_sub(rest) } else { rest }
}

/// The same of the sibling.
#[inline(always)]
pub fn sibling_idle_by<M: Memory>(cpu: M, mono_ns: u64) -> u64 {
    idle_by(cpu.sibling_account(), mono_ns)
}

/// For how much of `ran` ns the sibling idled, whose account went `from` one reading `to` another; all of
/// it where nobody knows. `lost` ns went by meanwhile in which nothing ran here: there it idled as often
/// as in the rest.
#[inline(always)]
fn idle_within(ran: u64, lost: u64, from: u64, to: u64) -> u64 {
    if from == 0 || to == 0 {
        return ran;
    }
    let idle = to.wrapping_sub(from);
    if idle as i64 <= 0 {
        return 0;
    }
    let idle = match lost {
        0 => idle,
        // There are no wider products: the share is in parts of 2^16, of whole microseconds.
        _ => {
            let share = (lost.min(u64::MAX >> 17) << 16) / (ran + lost).max(1);
            idle - (((idle >> 10) * share) >> 6)
        }
    };
    if idle < ran { idle } else { ran }
}

/// A time that is made known piece by piece: what of each piece was paired.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    sibling_idle_ns: u64,
}

impl Stretch {
    #[inline(always)]
    pub fn from(sibling_idle_ns: u64) -> Self {
        Self { sibling_idle_ns }
    }

    /// What of the next `ran` ns was paired, at the end of which the sibling had idled for `by` ns.
    #[inline(always)]
    pub fn paired(&mut self, ran: u64, lost: u64, by: u64) -> u64 {
        let from = self.sibling_idle_ns;
        let idle = idle_within(ran, lost, from, by);
        let known = from != 0 && by != 0;
        self.sibling_idle_ns = if known { from.wrapping_add(idle) } else { by };
        ran - idle
    }
}

/// Settles what of the held slot's time so far was paired.
#[inline(always)]
fn settle<M: Memory>(cpu: M, lost: u64, sibling_idle_ns: u64) {
    let slot_ns = cpu.load(Word::SlotNs);
    let paired_ns = settled(cpu, slot_ns, lost, sibling_idle_ns);
    cpu.store(Word::PairedNs, paired_ns);
    cpu.store(Word::SettledNs, slot_ns);
}

/// What of the held slot's time of `slot_ns` was paired.
#[inline(always)]
fn settled<M: Memory>(cpu: M, slot_ns: u64, lost: u64, sibling_idle_ns: u64) -> u64 {
    let ran = slot_ns.wrapping_sub(cpu.load(Word::SettledNs));
    let mut stretch = Stretch::from(cpu.load(Word::SiblingIdleNs));
    let paired = stretch.paired(ran, lost, sibling_idle_ns);
    cpu.store(Word::SiblingIdleNs, stretch.sibling_idle_ns);
    cpu.load(Word::PairedNs).wrapping_add(paired)
}

/// The held slot makes room for another.
#[inline(always)]
pub(crate) fn hold<M: Memory>(cpu: M, slot: u32) {
    let ns = cpu.load(Word::SlotNs);
    let paired = settled(cpu, ns, 0, sibling_idle_by(cpu, start(cpu)));
    let before = cpu.load_half(Half::Slot);
    // The counter first: it is never less.
    cpu.set_counter(before, ns);
    cpu.set_paired(before, paired);
    let ns = cpu.counter(slot);
    cpu.store(Word::SlotNs, ns);
    cpu.store(Word::SettledNs, ns);
    cpu.store(Word::PairedNs, cpu.paired(slot));
}

/// Settles a piece of a slice that has been billed to `slot`.
#[inline(always)]
pub(crate) fn settle_piece<M: Memory>(cpu: M, slot: u32, ran: u64, sibling_idle_ns: u64) {
    if slot == cpu.load_half(Half::Slot) {
        settle(cpu, 0, sibling_idle_ns);
        return;
    }
    let mut stretch = Stretch::from(cpu.load(Word::SiblingIdleNs));
    let paired = stretch.paired(ran, 0, sibling_idle_ns);
    cpu.set_paired(slot, cpu.paired(slot).wrapping_add(paired));
    cpu.store(Word::SiblingIdleNs, stretch.sibling_idle_ns);
}

/// Settles all that has run by `mono_ns`, to which the clock has been set anew: what the held slot's
/// tasks ran, and the `rest`, which was billed to `other` and ran nobody knows when. `lost` ns more went
/// by in which nothing ran. From here on the two CPUs' clocks are compared afresh.
#[inline(always)]
pub fn settle_anew<M: Memory>(cpu: M, rest: u64, lost: u64, mono_ns: u64) {
    let sibling_idle_ns = sibling_idle_by(cpu, mono_ns);
    if cpu.load(Word::IdleAccount) & IDLES == 0 {
        // Else it is in the held slot's time already.
        let apart = if cpu.load_half(Half::Slot) == SLOT_OTHER { 0 } else { rest };
        if apart > 0 {
            let ran = cpu.load(Word::SlotNs).wrapping_sub(cpu.load(Word::SettledNs));
            let mut stretch = Stretch::from(cpu.load(Word::SiblingIdleNs));
            let paired = stretch.paired(apart, ran + lost, sibling_idle_ns);
            cpu.set_paired(SLOT_OTHER, cpu.paired(SLOT_OTHER).wrapping_add(paired));
        }
        settle(cpu, apart + lost, sibling_idle_ns);
    }
    cpu.store(Word::SiblingIdleNs, sibling_idle_ns);
}

/// The CPU falls asleep, or wakes up, at `mono_ns`; or it goes on as it did.
#[inline(always)]
pub fn turn<M: Memory>(cpu: M, idles: bool, mono_ns: u64) {
    let account = cpu.load(Word::IdleAccount);
    if account == 0 {
        // From now on it is known. Not as 0, lest it be taken for unknown.
        cpu.store(Word::IdleAccount, 1 << 1);
        cpu.store(Word::SettledNs, cpu.load(Word::SlotNs));
        cpu.store(Word::SiblingIdleNs, sibling_idle_by(cpu, mono_ns));
    }
    let idled = account & IDLES != 0;
    if idles && !idled {
        fall_asleep(cpu, mono_ns);
    } else if !idles && idled {
        wake_up(cpu, mono_ns);
    }
}

/// A CPU that is awake falls asleep.
#[inline(always)]
pub fn fall_asleep<M: Memory>(cpu: M, mono_ns: u64) {
    settle(cpu, 0, sibling_idle_by(cpu, mono_ns));
    let idled = cpu.load(Word::IdleAccount) >> 1;
    cpu.store(Word::IdleAccount, (mono_ns.wrapping_sub(idled) << 1) | IDLES);
}

/// A CPU that is asleep wakes up.
#[inline(always)]
pub fn wake_up<M: Memory>(cpu: M, mono_ns: u64) {
    cpu.store(Word::SiblingIdleNs, sibling_idle_by(cpu, mono_ns));
    cpu.store(Word::SettledNs, cpu.load(Word::SlotNs));
    let idled = mono_ns.saturating_sub(cpu.load(Word::IdleAccount) >> 1).max(1);
    cpu.store(Word::IdleAccount, idled << 1);
}
