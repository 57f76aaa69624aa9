//! Two CPUs of one core and what is made of their paired time, where every clock is right and where none
//! is.

#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::collections::HashMap;

use ecoprobe_ebpf::paired;
use ecoprobe_ebpf::protocol::{self, Half, Memory, Reader, Word};
use ecoprobe_ebpf::{SLOT_IDLE, SLOT_OTHER};

const SLOTS: usize = 6;

#[derive(Default)]
struct Machine {
    words: RefCell<HashMap<Word, u64>>,
    halves: RefCell<HashMap<Half, u32>>,
    row: RefCell<[u64; SLOTS]>,
    paired: RefCell<[u64; SLOTS]>,
}

/// A CPU and its sibling, if it has one now.
#[derive(Clone, Copy)]
struct Cpu<'a>(&'a Machine, Option<&'a Machine>);

impl Memory for Cpu<'_> {
    const PATIENCE: u32 = 1;

    fn load(self, at: Word) -> u64 {
        self.0.words.borrow().get(&at).copied().unwrap_or(0)
    }
    fn store(self, at: Word, value: u64) {
        self.0.words.borrow_mut().insert(at, value);
    }
    fn load_half(self, at: Half) -> u32 {
        self.0.halves.borrow().get(&at).copied().unwrap_or(0)
    }
    fn store_half(self, at: Half, value: u32) {
        self.0.halves.borrow_mut().insert(at, value);
    }
    fn counter(self, slot: u32) -> u64 {
        self.0.row.borrow()[slot as usize]
    }
    fn set_counter(self, slot: u32, ns: u64) {
        self.0.row.borrow_mut()[slot as usize] = ns;
    }
    fn has_siblings(self) -> bool {
        true
    }
    fn sibling_account(self) -> u64 {
        self.1.map_or(0, |sibling| Cpu(sibling, None).load(Word::IdleAccount))
    }
    fn paired(self, slot: u32) -> u64 {
        self.0.paired.borrow()[slot as usize]
    }
    fn set_paired(self, slot: u32, ns: u64) {
        self.0.paired.borrow_mut()[slot as usize] = ns;
    }
    fn fence(self) {}
}

impl Cpu<'_> {
    /// Goes on to a task of that slot at `clock` of its own, which is `mono_ns` by the probe's clock if
    /// that is looked at.
    fn switch(self, clock: u64, mono_ns: Option<u64>, slot: u32) {
        self.switch_after(0, clock, mono_ns, slot);
    }

    /// The same, after somebody unseen has run for `rest` ns.
    fn switch_after(self, rest: u64, clock: u64, mono_ns: Option<u64>, slot: u32) {
        protocol::open(self);
        let ran = clock - self.load(Word::ClockStart);
        match mono_ns {
            None => protocol::add_to_running(self, ran),
            Some(mono_ns) => {
                let mut lost = 0;
                if self.load(Word::Task) != 0 {
                    let reckoned = clock.wrapping_add(self.load(Word::ClockOffset));
                    lost = mono_ns.saturating_sub(reckoned);
                    protocol::bill_slice(self, ran - rest, mono_ns);
                    protocol::add(self, SLOT_OTHER, rest);
                }
                self.store(Word::ClockOffset, mono_ns.wrapping_sub(clock));
                paired::settle_anew(self, rest, lost, mono_ns);
            }
        }
        self.store(Word::ClockStart, clock);
        self.store(Word::Task, 8);
        self.store_half(Half::Tgid, u32::from(slot != SLOT_IDLE));
        paired::turn(self, slot == SLOT_IDLE, protocol::start(self));
        if slot != SLOT_IDLE && slot != self.load_half(Half::Slot) {
            protocol::hold(self, slot);
        }
        protocol::close(self);
    }

    /// CPU time and the paired part of it, by slot, for whoever has never looked before.
    fn read(self, now: u64) -> [(u64, u64); SLOTS] {
        let mut totals = [(0, 0); SLOTS];
        Reader::default().read(self, 1, now, SLOTS as u32, |slot, ns, paired| {
            let total = &mut totals[slot as usize];
            *total = (total.0.max(ns), total.1.max(paired));
        });
        totals
    }
}

/// Numbers that look like chance (Marsaglia's xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What really happens on one CPU: from when on which slot runs.
type History = Vec<(u64, u32)>;

fn slot_at(history: &History, at: u64) -> u32 {
    let next = history.partition_point(|(from, _)| *from <= at);
    next.checked_sub(1).map_or(SLOT_IDLE, |last| history[last].1)
}

/// Nanosecond by nanosecond.
fn truth(own: &History, sibling: &History, from: u64, to: u64) -> [(u64, u64); SLOTS] {
    let mut totals = [(0, 0); SLOTS];
    for at in from..to {
        let slot = slot_at(own, at);
        totals[slot as usize].0 += 1;
        let paired = slot != SLOT_IDLE && slot_at(sibling, at) != SLOT_IDLE;
        totals[slot as usize].1 += u64::from(paired);
    }
    totals
}

/// Each CPU's clock has an origin of its own.
const CLOCKS: [u64; 2] = [7_000, 900_000];
const START: u64 = 1_000_000;

#[test]
fn with_right_clocks_it_is_exact_to_the_nanosecond() {
    for seed in 1..=200 {
        let mut chance = Chance(seed * 0x9e37_79b9);
        let machines = [Machine::default(), Machine::default()];
        let [first, second] = &machines;
        let cpus = [Cpu(first, Some(second)), Cpu(second, Some(first))];
        let mut histories = [vec![], vec![]];
        // Twice: at first nothing is known of the sibling.
        for (number, cpu) in [0, 1, 0, 1].map(|number| (number, cpus[number])) {
            cpu.switch(START - CLOCKS[number], Some(START), SLOT_OTHER);
            histories[number] = vec![(START, SLOT_OTHER)];
        }
        let mut now = START;
        for _ in 0..40 {
            now += 1 + chance.below(50);
            let number = chance.below(2) as usize;
            let (cpu, history) = (cpus[number], &mut histories[number]);
            let runs = slot_at(history, now);
            match chance.below(4) {
                // Somebody moves the task that runs.
                0 if runs != SLOT_IDLE => {
                    let slot = 2 + chance.below(3) as u32;
                    if protocol::cut(cpu, cpu.load(Word::Seq), now, slot) {
                        history.push((now, slot));
                        continue;
                    }
                    // It has had three moves: it is not read before its switch, which is a rare one.
                    now += 1;
                    cpu.switch(now - CLOCKS[number], Some(now), SLOT_IDLE);
                    let last = history.last_mut().unwrap();
                    last.1 = slot;
                    history.push((now, SLOT_IDLE));
                }
                // Idle never follows idle.
                1 if runs != SLOT_IDLE => {
                    cpu.switch(now - CLOCKS[number], Some(now), SLOT_IDLE);
                    history.push((now, SLOT_IDLE));
                }
                // Cuts are looked at where there is news.
                what => {
                    let slot = chance.below(4) as u32;
                    let slot = if slot == SLOT_IDLE { SLOT_OTHER } else { slot };
                    let cut = cpu.load(Word::Cuts) >> 2 == cpu.load(Word::Seq) >> 1;
                    let mono = (what == 3 || cut).then_some(now);
                    cpu.switch(now - CLOCKS[number], mono, slot);
                    history.push((now, slot));
                }
            }
            let later = now + chance.below(30);
            for (number, cpu) in cpus.into_iter().enumerate() {
                let expected = truth(&histories[number], &histories[1 - number], START, later);
                assert_eq!(cpu.read(later), expected, "seed {seed}, CPU {number}, {later}");
            }
        }
    }
}

fn sum(totals: [(u64, u64); SLOTS]) -> (u64, u64) {
    totals.iter().fold((0, 0), |sum, more| (sum.0 + more.0, sum.1 + more.1))
}

/// A clock offset is read late now and then, when the CPU is stopped between two instructions.
#[test]
fn clocks_that_are_off_make_no_error_that_grows() {
    const OFF: u64 = 50;
    let mut chance = Chance(77);
    let machines = [Machine::default(), Machine::default()];
    let cpus = [Cpu(&machines[0], Some(&machines[1])), Cpu(&machines[1], Some(&machines[0]))];
    for (cpu, clock) in cpus.into_iter().zip(CLOCKS) {
        cpu.switch(START - clock, Some(START), 2);
    }
    // The first never sleeps; the second sleeps for two thirds of the time, and knows it.
    let mut slept = 0;
    let mut at = START;
    for turn in 0..3_000_u32 {
        let late = chance.below(OFF);
        let rare = turn.is_multiple_of(7);
        cpus[0].switch(at - CLOCKS[0], rare.then_some(at + late), 2 + turn % 2);
        cpus[1].switch(at + 1 - CLOCKS[1], rare.then_some(at + 1 + OFF - late), SLOT_IDLE);
        let sleeps = 150 + chance.below(100);
        slept += sleeps;
        cpus[1].switch(at + 1 + sleeps - CLOCKS[1], None, 2);
        at += 1 + sleeps + 100;
    }
    let now = at;
    let [(ran, paired), (other_ran, other_paired)] = cpus.map(|cpu| sum(cpu.read(now)));
    let truth = ran - slept;
    // Each reading is off by so much at most, and not by more after thousands of them.
    assert!(paired.abs_diff(truth) <= truth / 100, "{paired} {truth}");
    assert_eq!(other_paired, other_ran - slept, "beside one that never sleeps");
}

/// What interrupts or the hypervisor take of a CPU is nobody's: it is paired no less and no more than
/// what ran.
#[test]
fn time_that_nobody_had_takes_no_part() {
    const MS: u64 = 1_000_000;
    let machines = [Machine::default(), Machine::default()];
    let cpus = [Cpu(&machines[0], Some(&machines[1])), Cpu(&machines[1], Some(&machines[0]))];
    for cpu in [cpus[0], cpus[1], cpus[0]] {
        cpu.switch(1_000 * MS, Some(1_000 * MS), 2);
    }
    // The first runs for 9 ms out of 10, the second for 3 out of 10.
    for turn in 0..100 {
        let (clock, mono) = (1_000 * MS + turn * 9 * MS, 1_000 * MS + turn * 10 * MS);
        cpus[1].switch(mono + 3 * MS, Some(mono + 3 * MS), SLOT_IDLE);
        cpus[1].switch(mono + 10 * MS, Some(mono + 10 * MS), 2);
        cpus[0].switch(clock + 9 * MS, Some(mono + 10 * MS), 2);
    }
    let (ran, paired) = cpus[0].read(2_000 * MS)[2];
    assert_eq!(ran, 900 * MS);
    assert!(paired.abs_diff(270 * MS) <= MS / 10, "{paired}");
}

#[test]
fn what_ran_unseen_is_paired_as_often_as_what_did_not() {
    const MS: u64 = 1_000_000;
    for held in [2, SLOT_OTHER] {
        let machines = [Machine::default(), Machine::default()];
        let cpus = [Cpu(&machines[0], Some(&machines[1])), Cpu(&machines[1], Some(&machines[0]))];
        for cpu in [cpus[0], cpus[1], cpus[0]] {
            cpu.switch(1_000 * MS, Some(1_000 * MS), held);
        }
        cpus[1].switch(1_004 * MS, None, SLOT_IDLE);
        cpus[0].switch_after(2 * MS, 1_010 * MS, Some(1_010 * MS), 3);
        let totals = cpus[0].read(1_010 * MS);
        let (ran, rest) = (totals[held as usize], totals[SLOT_OTHER as usize]);
        let expected = if held == SLOT_OTHER { [(10, 4_000); 2] } else { [(8, 3_200), (2, 800)] };
        let found = [ran, rest].map(|(ns, paired)| (ns / MS, paired.div_ceil(1_000)));
        assert_eq!(found, expected);
    }
}

#[test]
fn a_sibling_that_goes_or_comes_is_followed() {
    let machines = [Machine::default(), Machine::default()];
    let [first, second] = &machines;
    let cpu = |sibling| Cpu(first, sibling);
    cpu(Some(second)).switch(1_000, Some(1_000), 2);
    assert_eq!(cpu(Some(second)).read(1_500)[2], (500, 0), "nothing is known of the sibling yet");
    Cpu(second, Some(first)).switch(1_500, Some(1_500), 3);
    assert_eq!(cpu(Some(second)).read(1_600)[2], (600, 0), "nor of it at the beginning");
    cpu(Some(second)).switch(2_000, None, 3);
    assert_eq!(cpu(Some(second)).read(2_400)[3], (400, 400));
    assert_eq!(cpu(None).read(2_400)[3], (400, 0), "it is gone");
    cpu(None).switch(2_500, None, 2);
    cpu(None).switch(3_000, None, 3);
    assert_eq!(cpu(Some(second)).read(3_300)[3], (800, 0), "it is back, but was not at the start");
    cpu(Some(second)).switch(3_500, None, 2);
    assert_eq!(cpu(Some(second)).read(3_600)[2], (1_600, 100));
}
