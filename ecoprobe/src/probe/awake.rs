//! For how long any CPU ran, from what each of them has idled.

/// The time awake so far, as far as the CPUs' own accounts tell.
///
/// # An estimate, with bounds
///
/// Between two readings each CPU was busy for a known part `b` of the time, but not known is when: for how
/// long any of them was lies between the largest `b` (they ran at the same time) and the sum of them, or
/// all the time (they took turns). It is reckoned as if they ran independently of each other:
/// `1 − Π(1 − b)`, which lies within these bounds. That is exact if no CPU or only one ran, or if one ran
/// throughout, and right on average for those that run independently, whatever the windows. CPUs that run in
/// step seem to take turns now and then, and the other way round: eight of them, busy together for 50 of
/// every 100 ms, seem awake for 99.6 % of the time in windows of 100 ms, and for 50.4 % in windows of 10 ms.
/// So the more readings, the nearer it is to the truth.
///
/// A CPU is idle that is offline, or that has not switched since the probe was attached: of those nothing
/// is known. Interrupts that come while a CPU idles, and time that a hypervisor took, are no idling.
#[derive(Debug)]
pub(super) struct Awake {
    cpus: Vec<Account>,
    /// CLOCK_MONOTONIC of the newest window's end; `None` as long as no CPU was ever seen.
    until: Option<u64>,
    awake_ns: u64,
}

/// One CPU's, nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    /// CLOCK_MONOTONIC of its reading; 0: never seen.
    at: u64,
    idle: u64,
    /// The same at the window's beginning.
    at_before: u64,
    idle_before: u64,
    /// What it seems to have idled beyond the time there was.
    ahead: u64,
}

/// No reckoning is off by more than this, ns. Who idles at the moment of the reading has idled until then
/// by the run queue's clock, which wanders by less than a millisecond.
const MOST_AHEAD: u64 = 5_000_000;

impl Awake {
    pub(super) fn new(cpus: usize) -> Self {
        Self { cpus: vec![Account::default(); cpus], until: None, awake_ns: 0 }
    }

    /// Nanoseconds since the first reading; it never goes back. `None`: no CPU has been seen yet.
    pub(super) fn ns(&self) -> Option<u64> {
        self.until.map(|_| self.awake_ns)
    }

    /// What a CPU has idled so far, at that time. The last one before a window ends counts.
    #[inline]
    pub(super) fn note(&mut self, cpu: usize, at: u64, idle: u64) {
        if let Some(account) = self.cpus.get_mut(cpu) {
            account.at = at;
            account.idle = idle;
        }
    }

    /// A window ends.
    pub(super) fn end_window(&mut self, now: u64) {
        let (mut seen, mut all_idle) = (false, 1.0);
        for account in &mut self.cpus {
            seen |= account.at != 0;
            all_idle *= account.end_window();
        }
        if let Some(until) = self.until {
            let time = now.saturating_sub(until);
            let awake = ((1.0 - all_idle) * time as f64) as u64;
            self.awake_ns = self.awake_ns.saturating_add(awake);
        }
        if seen {
            self.until = self.until.max(Some(now));
        }
    }
}

impl Account {
    /// Which part of the window it has idled, 0 to 1; 1 where nothing is known.
    #[inline]
    fn end_window(&mut self) -> f64 {
        let Self { at, idle, at_before, idle_before, ahead } = *self;
        self.at_before = at;
        self.idle_before = idle;
        if at_before == 0 || at <= at_before || idle < idle_before {
            return 1.0;
        }
        let time = at - at_before;
        // An account that is ahead of the clock in this window is behind in one that follows. Cut off,
        // it would make an idle CPU seem busy for half of what its account wanders by in each window;
        // and of a hundred idle CPUs one would always seem to run.
        let idled = idle - idle_before + ahead;
        self.ahead = idled.saturating_sub(time).min(MOST_AHEAD);
        idled.min(time) as f64 / time as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    /// The time awake of windows of 10 ms, in which the CPUs idled for so many ms each; `None`: not seen.
    fn awake_ms(windows: &[&[Option<u64>]]) -> Vec<f64> {
        let cpus = windows[0].len();
        let mut awake = Awake::new(cpus);
        let mut idle = vec![1_000 * MS; cpus];
        let mut now = 5_000 * MS;
        for (cpu, window) in windows[0].iter().enumerate() {
            if window.is_some() {
                awake.note(cpu, now, idle[cpu]);
            }
        }
        awake.end_window(now);
        let mut before = 0;
        let mut of_each = Vec::new();
        for window in windows {
            now += 10 * MS;
            for (cpu, idled) in window.iter().enumerate() {
                if let Some(idled) = idled {
                    idle[cpu] += idled * MS;
                    awake.note(cpu, now, idle[cpu]);
                }
            }
            awake.end_window(now);
            let ns = awake.ns().unwrap_or(0);
            of_each.push((ns - before) as f64 / MS as f64);
            before = ns;
        }
        of_each
    }

    fn one(window: &[Option<u64>]) -> f64 {
        awake_ms(&[window])[0]
    }

    fn near(left: f64, right: f64) -> bool {
        (left - right).abs() < 1e-5
    }

    #[test]
    fn what_is_certain_is_exact() {
        assert_eq!(one(&[Some(10); 4]), 0.0, "all idle");
        assert_eq!(one(&[Some(0); 4]), 10.0, "all busy");
        assert!(near(one(&[Some(10), Some(7), Some(10)]), 3.0), "one ran");
        assert_eq!(one(&[Some(0), Some(7), Some(10)]), 10.0, "one ran throughout");
        assert!(near(one(&[Some(3)]), 7.0), "there is only one");
        assert_eq!(one(&[None, None]), 0.0, "nobody knows");
        assert_eq!(awake_ms(&[&[]]), [0.0], "no CPU at all");
    }

    #[test]
    fn what_is_not_lies_between_overlap_and_turns() {
        // 30 % and 50 %: 50 % at least, 80 % at most.
        assert!(near(one(&[Some(7), Some(5)]), 6.5));
    }

    #[test]
    fn a_cpu_that_appears_later_counts_from_its_second_reading() {
        let busy = Some(0);
        let windows: [&[_]; 4] =
            [&[Some(10), None], &[Some(10), busy], &[Some(10), busy], &[Some(10), Some(5)]];
        let found = awake_ms(&windows);
        assert_eq!(found[..3], [0.0, 0.0, 10.0]);
        assert!(near(found[3], 5.0));
    }

    #[test]
    fn one_that_is_not_seen_any_more_is_idle() {
        let windows: [&[_]; 3] = [&[Some(8), Some(0)], &[Some(8), None], &[Some(8), None]];
        let found = awake_ms(&windows);
        assert_eq!(found[0], 10.0);
        assert!(near(found[1], 2.0) && near(found[2], 2.0), "{found:?}");
    }

    #[test]
    fn nothing_is_known_before_the_first_reading() {
        let mut awake = Awake::new(2);
        assert_eq!(awake.ns(), None);
        awake.end_window(MS);
        assert_eq!(awake.ns(), None);
        awake.note(1, 2 * MS, 0);
        awake.end_window(2 * MS);
        assert_eq!(awake.ns(), Some(0));
        // A CPU that there is not.
        awake.note(2, 3 * MS, 0);
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_adds_nothing() {
        let mut awake = Awake::new(1);
        for (now, idle) in [(10, 1), (20, 1), (20, 1), (20, 5), (15, 5), (15, 6)] {
            awake.note(0, now * MS, idle * MS);
            awake.end_window(now * MS);
            let expected = if now == 10 { 0 } else { 10 * MS };
            assert_eq!(awake.ns(), Some(expected));
        }
    }

    #[test]
    fn an_account_that_falls_says_nothing_in_that_window() {
        let mut awake = Awake::new(1);
        for (now, idle, expected) in [(10, 100, 0), (20, 105, 5), (30, 3, 5), (40, 9, 9)] {
            awake.note(0, now * MS, idle * MS);
            awake.end_window(now * MS);
            assert_eq!(awake.ns(), Some(expected * MS), "at {now}");
        }
    }

    #[test]
    fn an_account_that_wanders_makes_nobody_busy() {
        // Always idle, but its account is off by up to half a millisecond either way.
        let mut awake = Awake::new(64);
        let wander = |cpu: u64, tick: u64| (cpu * 7_919 + tick * 104_729) % MS;
        let ticks = 1_000;
        for tick in 1..=ticks {
            for cpu in 0..64 {
                awake.note(cpu as usize, tick * 10 * MS, tick * 10 * MS - wander(cpu, tick));
            }
            awake.end_window(tick * 10 * MS);
        }
        let share = awake.ns().unwrap() as f64 / (ticks * 10 * MS) as f64;
        assert!(share < 0.02, "{share}");
        // One that jumps ahead for good is not believed for good.
        let mut awake = Awake::new(1);
        awake.note(0, MS, 0);
        awake.end_window(MS);
        awake.note(0, 11 * MS, 1_000_000 * MS);
        awake.end_window(11 * MS);
        awake.note(0, 31 * MS, 1_000_000 * MS);
        awake.end_window(31 * MS);
        assert_eq!(awake.ns(), Some(15 * MS));
    }

    proptest! {
        #[test]
        fn it_stays_within_the_bounds_and_never_goes_back(
            windows in prop::collection::vec(prop::collection::vec(0u64..=10, 5), 1..20),
        ) {
            let windows: Vec<Vec<_>> =
                windows.iter().map(|idle| idle.iter().map(|idle| Some(*idle)).collect()).collect();
            let windows: Vec<&[_]> = windows.iter().map(Vec::as_slice).collect();
            for (window, awake) in windows.iter().zip(awake_ms(&windows)) {
                let busy = || window.iter().flatten().map(|idle| 10 - idle);
                let (least, most) = (busy().max().unwrap(), busy().sum::<u64>().min(10));
                prop_assert!(awake >= least as f64 - 1e-5 && awake <= most as f64 + 1e-5);
            }
        }

        #[test]
        fn whatever_is_noted_it_neither_falls_nor_outruns_the_clock(
            notes in prop::collection::vec((0usize..4, any::<u64>(), any::<u64>(), any::<u64>()), 1..50),
        ) {
            let mut awake = Awake::new(3);
            let (mut before, mut first, mut last) = (0, None, 0);
            for (cpu, at, idle, now) in notes {
                awake.note(cpu, at, idle);
                awake.end_window(now);
                if let Some(ns) = awake.ns() {
                    prop_assert!(ns >= before);
                    let first = *first.get_or_insert(now);
                    last = now.max(last);
                    // What exceeds 2^53 ns, a hundred days, is not exact.
                    prop_assert!(ns as f64 <= (last.saturating_sub(first)) as f64 * (1.0 + 1e-9));
                    before = ns;
                }
            }
        }
    }
}
