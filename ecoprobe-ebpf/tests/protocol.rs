//! Every interleaving of a CPU that switches, a mover that cuts its slice and a reader, on memory that
//! may show stores late and out of order as far as C11's model allows: more than Arm does, and far more
//! than x86. It is the very code that runs in the kernel and in the agent; only the memory is loom's.
//!
//! The clock moves on before each switch. What a reading says of a slot must then lie between its CPU
//! time in the picture that it has got hold of and its CPU time when the reading was over.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use ecoprobe_ebpf::protocol::{self, Half, Memory, Picture, Reader, Word};
use ecoprobe_ebpf::{SLOT_FIRST, SLOT_IDLE, SLOT_OTHER};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::thread;

const A: u32 = SLOT_FIRST;
const B: u32 = SLOT_FIRST + 1;
const SLOTS: u32 = SLOT_FIRST + 2;

const WORDS: [Word; 11] = [
    Word::Seq,
    Word::Task,
    Word::ClockStart,
    Word::SlotNs,
    Word::IdleNs,
    Word::Flushes,
    Word::ClockOffset,
    Word::Cuts,
    Word::CutTime0,
    Word::CutTime1,
    Word::CutTime2,
];
const HALVES: [Half; 6] =
    [Half::Tgid, Half::Slot, Half::Seen, Half::CutSlot0, Half::CutSlot1, Half::CutSlot2];

/// One CPU's state and row, and what all share.
struct Machine {
    words: HashMap<Word, AtomicU64>,
    halves: HashMap<Half, AtomicU32>,
    row: Vec<AtomicU64>,
    generation: AtomicU32,
    /// Not loom's: everybody has the same time. `tick` is what lets others run before it moves on.
    clock: std::sync::atomic::AtomicU64,
    tick: AtomicU64,
}

impl Machine {
    fn new() -> Self {
        Self {
            words: WORDS.map(|word| (word, AtomicU64::new(0))).into(),
            halves: HALVES.map(|half| (half, AtomicU32::new(0))).into(),
            row: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            generation: AtomicU32::new(0),
            clock: std::sync::atomic::AtomicU64::new(0),
            tick: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }
}

/// Writers: theirs are barriers both ways, or a machine that needs none.
#[derive(Clone, Copy)]
struct Writer<'a>(&'a Machine);

/// The agent.
#[derive(Clone, Copy)]
struct Agent<'a>(&'a Machine);

macro_rules! memory {
    ($name:ident, $fence:expr) => {
        impl Memory for $name<'_> {
            const PATIENCE: u32 = 2;

            fn load(self, at: Word) -> u64 {
                self.0.words[&at].load(Ordering::Relaxed)
            }
            fn store(self, at: Word, value: u64) {
                self.0.words[&at].store(value, Ordering::Relaxed);
            }
            fn load_half(self, at: Half) -> u32 {
                self.0.halves[&at].load(Ordering::Relaxed)
            }
            fn store_half(self, at: Half, value: u32) {
                self.0.halves[&at].store(value, Ordering::Relaxed);
            }
            fn counter(self, slot: u32) -> u64 {
                self.0.row[slot as usize].load(Ordering::Relaxed)
            }
            fn set_counter(self, slot: u32, ns: u64) {
                self.0.row[slot as usize].store(ns, Ordering::Relaxed);
            }
            fn fence(self) {
                fence($fence);
            }
            fn pause(self) {
                thread::yield_now();
            }
        }
    };
}

memory!(Writer, Ordering::AcqRel);
memory!(Agent, Ordering::Acquire);

/// One switch: as `on_switch` has it, at `at`, to a task of `slot` or to idle.
fn switch(machine: &Machine, at: u64, slot: u32) {
    machine.tick.fetch_add(1, Ordering::Relaxed);
    machine.clock.store(at, Ordering::SeqCst);
    let cpu = Writer(machine);
    protocol::open(cpu);
    let ran = at - cpu.load(Word::ClockStart);
    let generation = machine.generation.load(Ordering::Relaxed);
    if cpu.load_half(Half::Seen) == generation {
        protocol::add_to_running(cpu, ran);
    } else {
        cpu.fence();
        cpu.store_half(Half::Seen, generation);
        protocol::bill_slice(cpu, ran);
    }
    cpu.store(Word::ClockStart, at);
    cpu.store(Word::Task, 8);
    cpu.store_half(Half::Tgid, u32::from(slot != SLOT_IDLE));
    if slot != SLOT_IDLE && slot != cpu.load_half(Half::Slot) {
        protocol::hold(cpu, slot);
    }
    protocol::close(cpu);
}

/// Who has run from when on, in order of time.
type Script = &'static [(u64, u32)];

/// CPU time of a slot by then.
fn truth(script: &[(u64, u32)], slot: u32, by: u64) -> u64 {
    let ends = script.iter().skip(1).map(|(at, _)| *at).chain([u64::MAX]);
    let slices = script.iter().zip(ends).filter(|((_, of), _)| *of == slot);
    slices.map(|((from, _), to)| to.min(by).saturating_sub(*from)).sum()
}

/// What a reader has seen, as the agent keeps it.
#[derive(Default)]
struct Agency {
    reader: Reader,
    seen: [u64; SLOTS as usize],
}

impl Agency {
    fn read(&mut self, machine: &Machine, now: u64) -> Picture {
        let generation = machine.generation.load(Ordering::Acquire);
        let seen = &mut self.seen;
        self.reader.read(Agent(machine), generation, now, SLOTS, |slot, ns| {
            let seen = &mut seen[slot as usize];
            *seen = ns.max(*seen);
        })
    }
}

fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(model);
}

fn switches(script: Script, readings: u32, preemptions: usize) {
    explore(preemptions, move || {
        let machine = Arc::new(Machine::new());
        let (first_at, first) = script[0];
        switch(&machine, first_at, first);
        let cpu = thread::spawn({
            let machine = machine.clone();
            move || script[1..].iter().for_each(|&(at, slot)| switch(&machine, at, slot))
        });
        let mut agency = Agency::default();
        let mut least = 1;
        for _ in 0..readings {
            let before = agency.seen;
            let now = machine.now();
            let picture = agency.read(&machine, now);
            let end = machine.now();
            let sum = |seen: [u64; SLOTS as usize]| seen.iter().sum::<u64>();
            match picture {
                Picture::Whole(state) => {
                    // The slices that it knows of. Memory may be late: whoever ran then is taken to
                    // run still.
                    let known = &script[..state.seq as usize / 2];
                    assert!(known.len() >= least, "it knew more before");
                    least = known.len();
                    for slot in 0..SLOTS {
                        let place = slot as usize;
                        let reckoned = truth(known, slot, now);
                        let most = truth(script, slot, end).max(reckoned).max(before[place]);
                        let range = reckoned..=most;
                        let seen = agency.seen[place];
                        assert!(range.contains(&seen), "slot {slot}: {seen}, not in {range:?}");
                    }
                }
                // Nothing but time has passed.
                Picture::Continued => assert!(sum(agency.seen) <= sum(before) + now),
                Picture::Unknown => panic!("it has switched"),
            }
        }
        cpu.join().unwrap();
        // At rest there is one picture, and it is exact but for what was reckoned too high.
        let now = machine.now();
        let before = agency.seen;
        assert!(matches!(agency.read(&machine, now), Picture::Whole(_)));
        for slot in 0..SLOTS {
            let most = truth(script, slot, now).max(before[slot as usize]);
            assert_eq!(agency.seen[slot as usize], most, "slot {slot}");
        }
    });
}

/// Two workloads and the idle task in turns: every switch writes the row.
#[test]
fn a_reading_is_whole_at_any_instant() {
    switches(&[(0, A), (110, B), (1_110, A)], 1, 2);
}

#[test]
fn nothing_goes_back_from_one_reading_to_the_next() {
    switches(&[(0, A), (110, B), (1_110, SLOT_IDLE)], 2, 2);
}

#[test]
fn without_flushes_the_row_is_not_read_again() {
    switches(&[(0, A), (110, SLOT_IDLE), (1_110, A)], 2, 2);
}

#[test]
fn a_cut_is_seen_whole_or_not_at_all() {
    cut(false);
}

/// The CPU looks for cuts at its next switch, whether or not it has been told of this one.
#[test]
fn a_cut_is_seen_whole_where_there_is_other_news_as_well() {
    cut(true);
}

/// A task of A is moved to B at 500 while it runs; at 1,000 it leaves the CPU.
fn cut(other_news: bool) {
    const MOVED: u64 = 500;
    const LEFT: u64 = 1_000;
    explore(3, move || {
        let machine = Arc::new(Machine::new());
        switch(&machine, 100, A);
        if other_news {
            machine.generation.store(7, Ordering::Relaxed);
        }
        let mover = thread::spawn({
            let machine = machine.clone();
            move || {
                let cpu = Writer(&machine);
                let seq = cpu.load(Word::Seq);
                cpu.fence();
                if seq & 1 == 0 && cpu.load(Word::ClockStart) == 100 {
                    assert!(protocol::cut(cpu, seq, MOVED, B));
                    cpu.fence();
                    machine.generation.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let cpu = thread::spawn({
            let machine = machine.clone();
            move || {
                switch(&machine, LEFT, SLOT_IDLE);
                Writer(&machine).load_half(Half::Seen)
            }
        });
        let mut agency = Agency::default();
        let now = machine.now().max(700);
        let picture = agency.read(&machine, now);
        mover.join().unwrap();
        let honoured = cpu.join().unwrap() == 1;
        let [of_a, of_b] = [A, B].map(|slot| agency.seen[slot as usize]);
        // Half a cut would be a time or a slot of nobody.
        assert_eq!(agency.seen[SLOT_OTHER as usize], 0);
        if matches!(picture, Picture::Whole(_)) {
            assert!(of_a + of_b >= now.min(LEFT) - 100, "{of_a} {of_b}");
            assert!(of_a + of_b <= LEFT - 100, "{of_a} {of_b}");
        }
        assert!(of_b <= LEFT - MOVED, "{of_b}");
        // In the end it is exact.
        let now = machine.now();
        agency.seen = [0; SLOTS as usize];
        agency.reader = Reader::default();
        agency.read(&machine, now);
        let [of_a, of_b] = [A, B].map(|slot| agency.seen[slot as usize]);
        let (cut, whole) = ((400, 500), (900, 0));
        if other_news {
            assert!([cut, whole].contains(&(of_a, of_b)), "{of_a} {of_b}");
        } else {
            assert_eq!((of_a, of_b), if honoured { cut } else { whole });
        }
    });
}
