//! What the reader makes of a CPU that stands still, wherever it stands.

use std::cell::RefCell;
use std::collections::HashMap;

use ecoprobe_ebpf::protocol::{self, Half, Memory, Picture, Reader, Word};
use ecoprobe_ebpf::{SLOT_IDLE, SLOT_OTHER};

const SLOTS: u32 = 5;

/// One CPU, and what happens to it while it is read.
#[derive(Default)]
struct Machine {
    words: RefCell<HashMap<Word, u64>>,
    halves: RefCell<HashMap<Half, u32>>,
    row: RefCell<HashMap<u32, u64>>,
    /// Switches forth and back each time the row is looked at.
    restless: RefCell<bool>,
}

#[derive(Clone, Copy)]
struct Cpu<'a>(&'a Machine);

impl Memory for Cpu<'_> {
    const PATIENCE: u32 = 10;

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
        if self.0.restless.replace(false) {
            let at = self.load(Word::ClockStart);
            let (other, back) = (3 + self.load_half(Half::Slot) % 2, self.load_half(Half::Slot));
            self.0.switch(at + 2, other);
            self.0.switch(at + 5, back);
            self.0.restless.replace(true);
        }
        self.0.row.borrow().get(&slot).copied().unwrap_or(0)
    }
    fn set_counter(self, slot: u32, ns: u64) {
        self.0.row.borrow_mut().insert(slot, ns);
    }
    fn has_siblings(self) -> bool {
        false
    }
    fn sibling_account(self) -> u64 {
        unreachable!("nobody asks without need");
    }
    fn paired(self, _: u32) -> u64 {
        unreachable!("nobody asks without need");
    }
    fn set_paired(self, _: u32, _: u64) {
        unreachable!("nobody asks without need");
    }
    fn fence(self) {}
}

impl Machine {
    fn switch(&self, at: u64, slot: u32) {
        let cpu = Cpu(self);
        protocol::open(cpu);
        self.go_to(at, slot);
        protocol::close(cpu);
    }

    fn go_to(&self, at: u64, slot: u32) {
        let cpu = Cpu(self);
        let mono = at + cpu.load(Word::ClockOffset);
        protocol::bill_slice(cpu, at - cpu.load(Word::ClockStart), mono);
        cpu.store(Word::ClockStart, at);
        cpu.store(Word::Task, 8);
        cpu.store_half(Half::Tgid, u32::from(slot != SLOT_IDLE));
        if slot != SLOT_IDLE && slot != cpu.load_half(Half::Slot) {
            let restless = self.restless.replace(false);
            protocol::hold(cpu, slot);
            self.restless.replace(restless);
        }
    }

    /// Since 1,000 on a clock that is 500 behind, a task of slot 2 has run.
    fn running() -> Self {
        let machine = Self::default();
        Cpu(&machine).store(Word::ClockStart, 1_000);
        machine.switch(1_000, 2);
        Cpu(&machine).store(Word::ClockOffset, 500);
        machine
    }

    fn cut(&self, mono_ns: u64, slot: u32) -> bool {
        protocol::cut(Cpu(self), Cpu(self).load(Word::Seq), mono_ns, slot)
    }

    /// The largest of what is told of each slot.
    fn read(&self, reader: &mut Reader, generation: u32, now: u64) -> ([u64; 5], Picture) {
        let mut totals = [0; SLOTS as usize];
        let picture = reader.read(Cpu(self), generation, now, SLOTS, |slot, ns, _| {
            if let Some(total) = totals.get_mut(slot as usize) {
                *total = ns.max(*total);
            }
        });
        (totals, picture)
    }

    fn totals(&self, generation: u32, now: u64) -> [u64; 5] {
        self.read(&mut Reader::default(), generation, now).0
    }
}

#[test]
fn the_running_part_goes_to_whoever_runs() {
    let machine = Machine::running();
    assert_eq!(machine.totals(0, 1_900), [0, 0, 400, 0, 0]);
    // The clock offset may be a little ahead of the truth.
    assert_eq!(machine.totals(0, 1_400), [0; 5]);
    machine.switch(1_200, SLOT_IDLE);
    assert_eq!(machine.totals(0, 1_701), [0, 1, 200, 0, 0]);
}

#[test]
fn a_cpu_that_never_switched_runs_nobody_we_know() {
    let machine = Machine::default();
    let (totals, picture) = machine.read(&mut Reader::default(), 0, 1_900);
    assert_eq!(totals, [0; 5]);
    assert!(matches!(picture, Picture::Unknown));
}

#[test]
fn a_moved_task_is_billed_to_both() {
    let machine = Machine::running();
    assert!(machine.cut(1_600, 3));
    assert!(machine.cut(1_700, SLOT_OTHER));
    assert_eq!(machine.totals(1, 1_900), [200, 0, 100, 100, 0]);
    assert_eq!(machine.totals(0, 1_900), [0, 0, 400, 0, 0], "nobody has told the CPU yet");
    // Back to where it came from.
    assert!(machine.cut(1_800, 2));
    assert_eq!(machine.totals(1, 1_900), [100, 0, 200, 100, 0]);
    // No room: the last cut takes on the new owner.
    assert!(!machine.cut(1_850, 4));
    assert_eq!(machine.totals(1, 1_900), [100, 0, 100, 100, 100]);
    machine.switch(1_400, 3);
    assert_eq!(machine.totals(1, 1_900), [100, 0, 100, 100, 100], "the same once it is billed");
    // Cuts of another slice are stale.
    assert_eq!(machine.totals(1, 2_000), [100, 0, 100, 200, 100]);
}

#[test]
fn cuts_out_of_order_or_in_the_future_bill_no_nanosecond_twice() {
    let machine = Machine::running();
    for (mono_ns, slot) in [(1_800, 3), (1_700, 2), (9_000, 3)] {
        machine.cut(mono_ns, slot);
    }
    assert_eq!(machine.totals(1, 1_900).iter().sum::<u64>(), 400);
    assert_eq!(machine.totals(1, 1_000).iter().sum::<u64>(), 0);
    machine.switch(1_400, 4);
    assert_eq!(machine.totals(1, 1_900).iter().sum::<u64>(), 400);
    let machine = Machine::running();
    machine.cut(3, u32::MAX);
    assert_eq!(machine.totals(1, 1_900), [0; 5], "nobody's slot is no panic");
}

/// A hypervisor stops the CPU between `open` and `close`.
#[test]
fn a_cpu_stopped_in_the_middle_of_a_switch_goes_on_by_the_clock() {
    let machine = Machine::running();
    let mut reader = Reader::default();
    assert_eq!(machine.read(&mut reader, 0, 1_900).0, [0, 0, 400, 0, 0]);
    protocol::open(Cpu(&machine));
    for (now, expected) in [(2_000, 500), (3_000, 1_500)] {
        let (totals, picture) = machine.read(&mut reader, 0, now);
        assert_eq!(totals, [0, 0, expected, 0, 0]);
        assert!(matches!(picture, Picture::Continued));
    }
    machine.go_to(2_000, 3);
    let (totals, _) = machine.read(&mut reader, 0, 3_500);
    assert_eq!(totals, [0, 0, 2_000, 0, 0], "half of the switch is written");
    protocol::close(Cpu(&machine));
    assert_eq!(machine.read(&mut reader, 0, 3_600).0, [0, 0, 1_000, 1_100, 0]);

    // From the start: nothing is known, nothing is told.
    protocol::open(Cpu(&machine));
    assert_eq!(machine.totals(0, 9_000), [0; 5]);
}

/// Each counter that is read finds the row changed: all the same it counts nothing twice.
#[test]
fn a_row_that_never_stands_still_is_read_all_the_same() {
    let machine = Machine::running();
    machine.restless.replace(true);
    let mut reader = Reader::default();
    for _ in 0..100 {
        let before = Cpu(&machine).load(Word::ClockStart);
        let (totals, picture) = machine.read(&mut reader, 0, before + 500);
        let after = Cpu(&machine).load(Word::ClockStart);
        assert!(matches!(picture, Picture::Whole(_)));
        let sum: u64 = totals.iter().sum();
        assert!((before - 1_000..=after - 1_000).contains(&sum), "{before} {sum} {after}");
    }
}
