//! The model on machines whose every joule is known.

use super::*;
use crate::base::{Component, WorkloadId};
use crate::energy::model::{Doubt, Figure, StaticPower};
use crate::energy::usage::Ran;

fn ran(id: u64, seconds: f64) -> Ran {
    Ran { user: User::Workload(WorkloadId(id)), ns: seconds * 1e9, paired_ns: 0.0 }
}

const TRAITS: fn() -> Traits = || Traits::of(Component::Cpu, Some(8.0), None, 6.1e-5);

/// A machine of 20 W asleep, 20 W more awake and 10 J a CPU-second, and what it was seen to draw.
struct Seen {
    bank: Bank,
    measured: f64,
    out: Vec<(User, f64)>,
    /// What the windows billed to the first workload.
    counted: f64,
}

impl Seen {
    fn new(given: Option<f64>) -> Self {
        let bank = Bank::new(given.map(Watts), TRAITS());
        Self { bank, measured: 0.0, out: Vec::new(), counted: 0.0 }
    }

    fn window(&mut self, time: f64, joules: f64, users: &[Ran]) {
        let window = Window { energy: Joules(joules), time: Seconds(time) };
        let awake = if users.is_empty() { 0.0 } else { time };
        let running = Running { users, paired: true, awake: Some(Seconds(awake)) };
        let idle = self.bank.enter(&Observation { window, running }, &mut self.out);
        assert!(idle.0 >= 0.0 && self.out.iter().all(|(_, bill)| *bill >= 0.0), "{:?}", self.out);
        self.measured += joules;
        if let Some((_, bill)) = self.out.iter().find(|(one, _)| *one == user(1)) {
            let sum: f64 = self.out.iter().map(|(_, bill)| bill).sum();
            let dynamic = joules - (idle.0 * time).min(joules);
            self.counted += dynamic * bill / sum;
        }
    }

    /// A window as the machine's power is, and a little noise.
    fn run(&mut self, time: f64, loads: &[(u64, f64)]) {
        let users: Vec<_> = loads.iter().map(|(id, load)| ran(*id, load * time)).collect();
        let busy: f64 = loads.iter().map(|(_, load)| load).sum();
        let noise = 1.0 + 0.002 * (self.measured * 1e3).sin();
        let watts = 20.0 + if busy > 0.0 { 20.0 } else { 0.0 } + 10.0 * busy;
        self.window(time, watts * time * noise, &users);
    }

    /// What everybody is to have: it adds up to what was measured, and nothing is for sure.
    fn settle(&mut self) -> FxHashMap<User, Figure> {
        self.bank.finish();
        let due = self.bank.settle_up();
        let users: f64 = due.users.iter().map(|(_, figure)| figure.value).sum();
        let sum = due.idle.0 + due.nobody.0 + users;
        let off = (sum - self.measured).abs();
        assert!(off <= 1e-9 * self.measured.abs().max(1.0), "{sum} {}", self.measured);
        for (user, figure) in &due.users {
            assert!(figure.value.is_finite() && figure.stderr.is_finite(), "{user:?} {figure:?}");
            assert!(figure.stderr > 0.0 || figure.value == 0.0, "{user:?} {figure:?}");
        }
        let Figure { value, stderr } = self.bank.asleep();
        assert!(value.is_finite() && stderr.is_finite());
        due.users.into_iter().collect()
    }
}

fn user(id: u64) -> User {
    User::Workload(WorkloadId(id))
}

/// Sleeps, then one, then the other, then both, over and over.
fn turns(seen: &mut Seen, rounds: u64, apart: bool) {
    for _ in 0..rounds {
        seen.run(1.0, &[]);
        if apart {
            seen.run(1.0, &[(1, 2.0)]);
            seen.run(1.0, &[(2, 3.0)]);
        }
        seen.run(1.0, &[(1, 2.0), (2, 3.0)]);
    }
}

#[test]
fn like_jobs_that_were_seen_alone_have_a_small_bar() {
    let mut seen = Seen::new(None);
    turns(&mut seen, 40, true);
    let figures = seen.settle();
    // Alone 20 W of step and 10 J a CPU-second; together by what each adds.
    for (id, truth) in [(1, 40.0 * (40.0 + 28.0)), (2, 40.0 * (50.0 + 42.0))] {
        let Figure { value, stderr } = figures[&user(id)];
        assert!((value - truth).abs() < 0.02 * truth, "{id}: {value} for {truth}");
        assert!(1.96 * stderr < 0.06 * truth, "{id}: ± {}", 1.96 * stderr / truth);
    }
    assert!(matches!(seen.bank.static_power(), StaticPower::Calibrated { .. }));
    let summary = seen.bank.summary().unwrap();
    assert!((summary.asleep.value - 20.0).abs() < 0.5, "{summary:?}");
    assert!((summary.awake.value - 20.0).abs() < 2.0, "{summary:?}");
    assert!((summary.price.value - 10.0).abs() < 0.5, "{summary:?}");
    assert!(summary.residual < 0.01, "{summary:?}");
}

#[test]
fn jobs_that_always_run_together_have_a_wide_bar() {
    let mut seen = Seen::new(None);
    turns(&mut seen, 60, false);
    let figures = seen.settle();
    for (id, truth) in [(1, 60.0 * 28.0), (2, 60.0 * 42.0)] {
        let Figure { value, stderr } = figures[&user(id)];
        assert!((value - truth).abs() < 0.02 * truth, "{id}: {value} for {truth}");
        assert!(1.96 * stderr > 0.2 * truth, "{id}: ± {}", 1.96 * stderr / truth);
    }
}

#[test]
fn the_spread_of_prices_can_be_given() {
    let bars = [0.0, 0.1, 0.4, 0.8].map(|spread| {
        let mut seen = Seen::new(None);
        seen.bank.traits.spread = spread;
        turns(&mut seen, 60, false);
        let Figure { value, stderr } = seen.settle()[&user(1)];
        assert!((value - 60.0 * 28.0).abs() < 0.02 * value, "{spread}: {value}");
        stderr / value
    });
    assert!(bars.is_sorted() && bars[3] > 3.0 * bars[1], "{bars:?}");
}

#[test]
fn what_windows_bill_comes_to_what_is_due() {
    for given in [None, Some(20.0)] {
        let mut seen = Seen::new(given);
        // Together from the start: everything is learned late.
        turns(&mut seen, 10, false);
        turns(&mut seen, 20, true);
        let counted = seen.counted;
        let due = seen.settle()[&user(1)].value;
        eprintln!(
            "{:?} idle {:?} counted {counted} due {due}",
            seen.bank.members.iter().map(|m| m.account).collect::<Vec<_>>(),
            seen.bank.idle
        );
        assert!((counted / due - 1.0).abs() < 1e-3, "{given:?}: {counted} {due}");
    }
}

#[test]
fn arrears_are_paid_within_the_bill_and_add_up() {
    for (mut bills, expected) in [
        (vec![(10.0, 2.0), (10.0, -2.0)], vec![12.0, 8.0]),
        (vec![(10.0, 20.0), (10.0, 0.0)], vec![15.0, 5.0]),
        (vec![(10.0, 20.0), (10.0, 20.0)], vec![10.0, 10.0]),
        (vec![(10.0, -20.0), (5.0, 0.0), (5.0, 0.0)], vec![5.0, 7.5, 7.5]),
        (vec![(4.0, 1.0), (4.0, 1.0), (4.0, -0.5)], vec![4.5, 4.5, 3.0]),
        (vec![(7.0, 3.0)], vec![7.0]),
        (vec![(0.0, 3.0), (4.0, 0.0)], vec![0.0, 4.0]),
        (vec![], vec![]),
    ] {
        pay(&mut bills);
        assert_eq!(bills.len(), expected.len());
        for ((bill, _), expected) in bills.iter().zip(&expected) {
            assert!((bill - expected).abs() < 1e-12, "{bills:?} {expected:?}");
        }
    }
}

#[test]
fn bad_input_leaves_the_books_closed() {
    for given in [None, Some(20.0), Some(40.0), Some(10.0), Some(0.0)] {
        let mut seen = Seen::new(given);
        turns(&mut seen, 5, true);
        // A counter that stands still, and then owes; one that jumps.
        (0..8).for_each(|_| seen.window(0.1, 0.0, &[ran(1, 0.2)]));
        seen.window(0.1, 70.0, &[ran(1, 0.2)]);
        seen.window(1.0, 1e7, &[ran(1, 2.0)]);
        // CPU time that no window can hold; a clock that stands still; one that ends at once.
        seen.window(1.0, 60.0, &[ran(1, 1e6), ran(2, 1.0)]);
        seen.window(0.0, 0.0, &[ran(1, 1.0)]);
        seen.window(0.0, 1.0, &[]);
        seen.window(1e-9, 1e-3, &[ran(3, 1e-9)]);
        // Paired time that is more than all; a sibling that is gone.
        seen.window(1.0, 60.0, &[Ran { paired_ns: 1e12, ..ran(1, 2.0) }]);
        turns(&mut seen, 5, true);
        seen.settle();
    }
}

#[test]
fn ten_thousand_that_each_run_once() {
    let mut seen = Seen::new(None);
    for id in 1..=10_000 {
        seen.run(0.1, &[(id, 1.0)]);
    }
    let figures = seen.settle();
    assert_eq!(figures.len(), 10_000);
    // 1 s of each ten has 40 W asleep or awake, 10 for the one who ran.
    let mean = figures.values().map(|figure| figure.value).sum::<f64>() / 10_000.0;
    assert!((0.5..5.0).contains(&mean), "{mean}");
}

#[test]
fn who_is_folded_takes_its_joules_along() {
    let mut seen = Seen::new(None);
    turns(&mut seen, 5, true);
    seen.bank.fold(user(2), user(9));
    seen.bank.fold(user(77), user(9));
    turns(&mut seen, 5, true);
    seen.bank.fold(user(1), user(9));
    let figures = seen.settle();
    // Each round has 68 J of the first and 92 J of the second: all of it but the second's last five.
    for (id, truth) in [(9, 10.0 * 68.0 + 5.0 * 92.0), (2, 5.0 * 92.0)] {
        let value = figures[&user(id)].value;
        assert!((value - truth).abs() < 0.03 * truth, "{id}: {value} for {truth}");
    }
}

#[test]
fn it_forgets_what_is_no_longer_true() {
    let mut seen = Seen::new(None);
    turns(&mut seen, 20, true);
    // A price of its own that goes away again.
    for round in 0..120 {
        let load = 1.0 + f64::from(round % 3);
        seen.run(1.0, &[(1, load), (2, 3.0)]);
    }
    let figures = seen.settle();
    let [one, two] = [1, 2].map(|id| figures[&user(id)].value);
    // In CPU-seconds: 2:3 for 60 s, and 2:3 on average after that.
    assert!((one / two / (2.0 / 3.0) - 1.0).abs() < 0.1, "{one} {two}");
}

#[test]
fn one_low_row_is_not_what_is_drawn_asleep() {
    let mut seen = Seen::new(None);
    turns(&mut seen, 20, true);
    // A counter that shows a second's joules with the next one's.
    seen.window(1.0, 0.0, &[]);
    seen.window(1.0, 40.0, &[]);
    turns(&mut seen, 20, true);
    seen.settle();
    let idle = seen.bank.settle_up().idle.0;
    let asleep = seen.bank.asleep().value;
    assert!((asleep - 20.0).abs() < 0.5, "{asleep}");
    assert!((idle / (asleep * 162.0) - 1.0).abs() < 0.01, "{idle} {asleep}");
}

#[test]
fn many_folded_into_one_are_no_surer_than_each() {
    let mut seen = Seen::new(None);
    for round in 0..300 {
        seen.run(0.2, &[(round % 150 + 1, 2.0)]);
    }
    let mut apart = Seen { bank: seen.bank.clone(), out: Vec::new(), ..seen };
    let relative = |figure: &Figure| figure.stderr / figure.value;
    let figures = apart.settle();
    let least = figures.values().map(relative).fold(f64::INFINITY, f64::min);
    for id in 1..=150 {
        seen.bank.fold(user(id), user(1000));
    }
    let folded = seen.settle()[&user(1000)];
    assert!(relative(&folded) > 0.5 * least, "{folded:?} {least}");
}

#[test]
fn where_others_keep_the_machine_awake_the_step_is_nobodys() {
    let mut seen = Seen::new(None);
    turns(&mut seen, 20, true);
    for _ in 0..50 {
        let window = Window { energy: Joules(40.0), time: Seconds(1.0) };
        let running = Running { users: &[], paired: true, awake: Some(Seconds(1.0)) };
        let idle = seen.bank.enter(&Observation { window, running }, &mut seen.out);
        assert!((idle.0 - 20.0).abs() < 1.0, "{idle:?}");
        seen.measured += 40.0;
    }
    seen.settle();
    let nobody = seen.bank.settle_up().nobody.0;
    assert!((nobody - 1000.0).abs() < 50.0, "{nobody}");
    assert!(seen.bank.summary().unwrap().residual < 0.02);
}

#[test]
fn a_package_at_its_limit_is_said() {
    let mut seen = Seen::new(None);
    for round in 0..200 {
        let load = 2.0 + f64::from(round * 7 % 6);
        seen.window(1.0, 60.0 + 0.1 * f64::from(round % 3), &[ran(1, load)]);
    }
    seen.settle();
    let doubts = seen.bank.summary().unwrap().doubts;
    assert!(doubts.contains(&Doubt::Capped), "{doubts:?}");
    assert!(!matches!(seen.bank.static_power(), StaticPower::Calibrated { .. }));
    let mut seen = Seen::new(None);
    turns(&mut seen, 50, true);
    seen.settle();
    assert_eq!(seen.bank.summary().unwrap().doubts, []);
}

/// Microseconds of a row at this quantile, `active` of `known` workloads running in each.
fn cost(known: u64, active: u64, quantile: f64) -> f64 {
    let mut bank = Bank::new(None, Traits::of(Component::Cpu, Some(64.0), None, 6.1e-5));
    let mut took = Vec::new();
    let mut out = Vec::new();
    for row in 0..2000_u64 {
        // Half of them stay, the others change.
        let ids = (0..active).map(|place| match place < active / 2 {
            true => place,
            false => active + (row / 7 * 13 + place) % (known - active),
        });
        let load = |id: u64| 0.1 + ((row * 31 + id * 17) % 97) as f64 / 97.0;
        let users: Vec<_> = ids.map(|id| ran(id + 1, 0.05 * load(id))).collect();
        let busy: f64 = users.iter().map(|ran| ran.ns * 1e-9).sum();
        let energy = Joules(2.0 + 10.0 * busy);
        let window = Window { energy, time: Seconds(0.1) };
        let running = Running { users: &users, paired: false, awake: Some(Seconds(0.1)) };
        let seen = Observation { window, running };
        let start = std::time::Instant::now();
        bank.enter(&seen, &mut out);
        took.push(start.elapsed().as_secs_f64() * 1e6);
    }
    took.drain(..100);
    took.sort_unstable_by(f64::total_cmp);
    took[(took.len() as f64 * quantile) as usize]
}

/// `cargo test --release -p ecoprobe --lib -- --ignored --nocapture cost_of_a_row`
#[test]
#[ignore = "a measurement, of a release build"]
fn cost_of_a_row() {
    for (known, active) in [(1_000, 50), (10_000, 500)] {
        let [median, most] = [0.5, 0.99].map(|quantile| cost(known, active, quantile));
        println!("{active} of {known} active: {median:.0} µs, p99 {most:.0} µs");
    }
}
