//! Every interleaving of a CPU that switches, a mover that cuts its slice and a reader, on memory that
//! may show stores late and out of order as far as C11's model allows: more than Arm does, and far more
//! than x86. It is the very code that runs in the kernel and in the agent; only the memory is loom's.
//!
//! The clock moves on before each switch. What a reading says of a slot must then lie between its CPU
//! time in the picture that it has got hold of and its CPU time when the reading was over.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use ecoprobe_ebpf::paired;
use ecoprobe_ebpf::protocol::{self, Half, Memory, Picture, Reader, Word};
use ecoprobe_ebpf::{SLOT_FIRST, SLOT_IDLE, SLOT_OTHER};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::thread;

const A: u32 = SLOT_FIRST;
const B: u32 = SLOT_FIRST + 1;
const SLOTS: u32 = SLOT_FIRST + 2;

const WORDS: [Word; 18] = [
    Word::Seq,
    Word::Task,
    Word::ClockStart,
    Word::SlotNs,
    Word::IdleNs,
    Word::Flushes,
    Word::ClockOffset,
    Word::IdleAccount,
    Word::PairedNs,
    Word::SettledNs,
    Word::SiblingIdleNs,
    Word::Cuts,
    Word::CutTime0,
    Word::CutTime1,
    Word::CutTime2,
    Word::CutSiblingIdle0,
    Word::CutSiblingIdle1,
    Word::CutSiblingIdle2,
];
const HALVES: [Half; 6] =
    [Half::Tgid, Half::Slot, Half::Seen, Half::CutSlot0, Half::CutSlot1, Half::CutSlot2];

/// One CPU's state and row, and what all share.
struct Machine {
    words: HashMap<Word, AtomicU64>,
    halves: HashMap<Half, AtomicU32>,
    row: Vec<AtomicU64>,
    paired: Vec<AtomicU64>,
    /// The idle account of the core's other thread, if it has one.
    sibling: Option<AtomicU64>,
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
            paired: Vec::new(),
            sibling: None,
            generation: AtomicU32::new(0),
            clock: std::sync::atomic::AtomicU64::new(0),
            tick: AtomicU64::new(0),
        }
    }

    /// Of a core with two threads.
    fn with_sibling() -> Self {
        Self {
            paired: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
            sibling: Some(AtomicU64::new(0)),
            ..Self::new()
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
            fn has_siblings(self) -> bool {
                self.0.sibling.is_some()
            }
            fn sibling_account(self) -> u64 {
                self.0.sibling.as_ref().unwrap().load(Ordering::Relaxed)
            }
            fn paired(self, slot: u32) -> u64 {
                self.0.paired[slot as usize].load(Ordering::Relaxed)
            }
            fn set_paired(self, slot: u32, ns: u64) {
                self.0.paired[slot as usize].store(ns, Ordering::Relaxed);
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
        protocol::bill_slice(cpu, ran, at);
    }
    cpu.store(Word::ClockStart, at);
    cpu.store(Word::Task, 8);
    cpu.store_half(Half::Tgid, u32::from(slot != SLOT_IDLE));
    if cpu.has_siblings() {
        paired::turn(cpu, slot == SLOT_IDLE, at);
    }
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
    seen_paired: [u64; SLOTS as usize],
}

impl Agency {
    fn read(&mut self, machine: &Machine, now: u64) -> Picture {
        let generation = machine.generation.load(Ordering::Acquire);
        let (seen, seen_paired) = (&mut self.seen, &mut self.seen_paired);
        self.reader.read(Agent(machine), generation, now, SLOTS, |slot, ns, paired| {
            let seen = &mut seen[slot as usize];
            *seen = ns.max(*seen);
            let seen_paired = &mut seen_paired[slot as usize];
            *seen_paired = paired.min(*seen).max(*seen_paired);
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

/// The other thread of the core falls asleep and wakes up: when, and whether it idles from then on.
type Sleeps = &'static [(u64, bool)];

/// For how long of `from..to` it is busy.
fn busy_within(sleeps: Sleeps, from: u64, to: u64) -> u64 {
    let ends = sleeps.iter().skip(1).map(|(at, _)| *at).chain([u64::MAX]);
    let spans = sleeps.iter().zip(ends).filter(|((_, idles), _)| !idles);
    spans.map(|((at, _), end)| end.min(to).saturating_sub((*at).max(from))).sum()
}

fn turn(machine: &Machine, other: &Machine, (at, idles): (u64, bool)) {
    paired::turn(Writer(other), idles, at);
    let account = Writer(other).load(Word::IdleAccount);
    machine.sibling.as_ref().unwrap().store(account, Ordering::Relaxed);
}

fn paired_is_part_of_all(agency: &Agency) {
    for (slot, (paired, ns)) in agency.seen_paired.iter().zip(&agency.seen).enumerate() {
        assert!(paired <= ns, "slot {slot}: {paired} of {ns}");
    }
    assert_eq!(agency.seen_paired[SLOT_IDLE as usize], 0);
}

/// Every order in which the two CPUs of a core come to do what they do, or to see what the other has
/// done; even to see what has not happened yet.
#[test]
fn paired_time_adds_up_whoever_sees_a_sleep_when() {
    // The last stretch has room for what the others may have had too much or too little of.
    const SCRIPT: Script = &[(100, A), (400, B), (450, A)];
    const SLEEPS: Sleeps = &[(50, false), (200, true), (600, false)];
    const BY: u64 = 1_500;
    explore(3, || {
        let machine = Arc::new(Machine::with_sibling());
        let asleep = Machine::with_sibling();
        turn(&machine, &asleep, SLEEPS[0]);
        switch(&machine, SCRIPT[0].0, SCRIPT[0].1);
        let cpu = thread::spawn({
            let machine = machine.clone();
            move || SCRIPT[1..].iter().for_each(|&(at, slot)| switch(&machine, at, slot))
        });
        SLEEPS[1..].iter().for_each(|&sleep| turn(&machine, &asleep, sleep));
        cpu.join().unwrap();
        let mut agency = Agency::default();
        assert!(matches!(agency.read(&machine, BY), Picture::Whole(_)));
        paired_is_part_of_all(&agency);
        assert_eq!(agency.seen_paired.iter().sum::<u64>(), busy_within(SLEEPS, 100, BY));
    });
}

/// Every order in which a CPU and a reader come to do what they do, while its sibling falls asleep.
fn read_paired(script: Script, preemptions: usize) {
    explore(preemptions, move || {
        const SLEEPS: Sleeps = &[(50, false), (300, true)];
        let machine = Arc::new(Machine::with_sibling());
        let asleep = Machine::with_sibling();
        turn(&machine, &asleep, SLEEPS[0]);
        switch(&machine, script[0].0, script[0].1);
        let cpu = thread::spawn({
            let machine = machine.clone();
            move || script[1..].iter().for_each(|&(at, slot)| switch(&machine, at, slot))
        });
        let mut agency = Agency::default();
        agency.read(&machine, machine.now());
        paired_is_part_of_all(&agency);
        turn(&machine, &asleep, SLEEPS[1]);
        let now = machine.now().max(300);
        let before = agency.seen_paired;
        if let Picture::Whole(state) = agency.read(&machine, now) {
            paired_is_part_of_all(&agency);
            // Whatever of this it knows: what ran before the sleep is paired, and what runs at last
            // is not, unless the CPU had gone on before it could know.
            let known = &script[..state.seq as usize / 2];
            for slot in [SLOT_OTHER, A, B] {
                let place = slot as usize;
                let least = truth(known, slot, 300.min(now));
                let most = truth(script, slot, machine.now().max(now));
                let most = most.max(truth(known, slot, now)).max(before[place]);
                let seen = agency.seen_paired[place];
                assert!((least..=most).contains(&seen), "slot {slot}: {seen}, {least}..={most}");
            }
        }
        cpu.join().unwrap();
        let now = machine.now().max(300);
        let mut end = Agency::default();
        end.read(&machine, now);
        agency.read(&machine, now);
        paired_is_part_of_all(&end);
        let last = script.iter().find(|(_, slot)| *slot == SLOT_IDLE).map_or(now, |(at, _)| *at);
        assert_eq!(end.seen_paired.iter().sum::<u64>(), busy_within(SLEEPS, 100, last));
        paired_is_part_of_all(&agency);
        for (all, new) in agency.seen_paired.iter().zip(&end.seen_paired) {
            assert!(all >= new, "one who has looked before knows no less");
        }
    });
}

#[test]
fn paired_time_is_read_whole_when_slots_change() {
    read_paired(&[(100, A), (200, B)], 2);
}

#[test]
fn paired_time_is_read_whole_when_the_cpu_falls_asleep() {
    read_paired(&[(100, A), (200, SLOT_IDLE)], 2);
}
