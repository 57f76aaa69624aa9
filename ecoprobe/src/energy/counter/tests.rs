use proptest::prelude::*;

use super::*;
use crate::base::Component;

const SECOND: u64 = 1_000_000_000;
/// 65.5 kJ in microjoules: AMD's powercap zone.
const RANGE: u64 = 65_532_610_988;

fn domain(range: Option<u64>) -> Domain {
    Domain {
        name: "package-0".into(),
        component: Component::Cpu,
        package: 0,
        joules_per_count: 1e-6,
        range,
        max_watts: 2_000.0,
    }
}

/// Readings at whole seconds, in joules.
fn run(range: Option<u64>, joules: &[Option<f64>]) -> (Counter, Vec<Outcome>) {
    let (domain, mut counter) = (domain(range), Counter::default());
    let outcomes = (5..).zip(joules).map(|(second, joules)| {
        let mono_ns = second * SECOND;
        let reading = joules.map(|joules| Reading { mono_ns, count: (joules * 1e6) as u64 });
        counter.advance(&domain, mono_ns, reading)
    });
    let outcomes = outcomes.collect();
    (counter, outcomes)
}

fn billed(outcomes: &[Outcome]) -> f64 {
    let joules = |outcome: &Outcome| match outcome {
        Outcome::Energy { joules, .. } => joules.0,
        _ => 0.0,
    };
    outcomes.iter().map(joules).sum()
}

/// Joules billed of these readings, and how many windows are missing by reason.
fn sum(joules: &[f64]) -> (f64, Vec<(Reason, u64)>) {
    let readings: Vec<_> = joules.iter().copied().map(Some).collect();
    let (counter, outcomes) = run(Some(RANGE), &readings);
    let missing = counter.missing().into_iter();
    let missing = missing.map(|(reason, missing)| (reason, missing.readings)).collect();
    ((billed(&outcomes) * 1e6).round() * 1e-6, missing)
}

/// Eight watts for ten seconds, with some readings off by so many joules.
fn off(errors: &[(usize, f64)]) -> Vec<f64> {
    let mut readings: Vec<f64> = (0..=10).map(|second| 1_000.0 + 8.0 * second as f64).collect();
    for (at, error) in errors {
        readings[*at] += error;
    }
    readings
}

#[test]
fn what_was_right_is_billed_as_it_comes() {
    assert_eq!(sum(&off(&[])), (80.0, vec![]));
    let (counter, outcomes) = run(None, &[Some(1.0), Some(9.0)]);
    assert_eq!(outcomes[0], Outcome::First);
    let Outcome::Energy { from_ns, to_ns, joules } = outcomes[1] else { panic!("{outcomes:?}") };
    assert_eq!((from_ns, to_ns, joules), (5 * SECOND, 6 * SECOND, Joules(8.0)));
    assert_eq!(counter.base.unwrap().mono_ns, 6 * SECOND);
    assert_eq!(counter.sentences(&domain(None)), [""; 0]);
}

#[test]
fn a_counter_that_steps_aside_once_loses_nothing() {
    for error in [-600.0, -990.0, -1.5e3, 5_000.0, 60_000.0] {
        for at in 1..10 {
            assert_eq!(sum(&off(&[(at, error)])), (80.0, vec![]), "{error} J at {at}");
        }
    }
    // Twice, and both ways.
    assert_eq!(sum(&off(&[(3, -600.0), (6, -700.0)])), (80.0, vec![]));
    assert_eq!(sum(&off(&[(3, -600.0), (4, 9_000.0)])), (80.0, vec![]));
    // The delta covers both windows.
    let (counter, outcomes) =
        run(None, &off(&[(4, -600.0)]).into_iter().map(Some).collect::<Vec<_>>());
    assert_eq!(outcomes[4], Outcome::Missing(Reason::WentBack));
    let Outcome::Energy { from_ns, to_ns, joules } = outcomes[5] else { panic!("{outcomes:?}") };
    assert_eq!((from_ns, to_ns, joules), (8 * SECOND, 10 * SECOND, Joules(16.0)));
    let said = counter.sentences(&domain(None));
    assert!(said.len() == 1 && said[0].contains("one reading"), "{said:?}");
}

#[test]
fn at_the_end_what_was_not_believed_is_missing() {
    let (joules, missing) = sum(&off(&[(10, -600.0)]));
    assert_eq!((joules, missing), (72.0, vec![(Reason::TooMuch, 1)]));
}

#[test]
fn the_first_reading_is_not_believed_by_itself_either() {
    // Wrong, and too far from the second: the third decides for the second.
    for error in [-800.0 - 5_000.0, 30_000.0] {
        let mut readings = off(&[(0, error)]);
        readings.iter_mut().for_each(|joules| *joules += 7_000.0);
        assert_eq!(sum(&readings), (72.0, vec![(Reason::TooMuch, 1)]), "{error}");
    }
    // Near enough to be load, but no other window was like it.
    assert_eq!(sum(&off(&[(0, -600.0)])), (72.0, vec![(Reason::Unconfirmed, 1)]));
    assert_eq!(sum(&off(&[(0, 600.0)])).0, 72.0);
    // The second was wrong: nothing is lost.
    assert_eq!(sum(&off(&[(1, 5_000.0)])), (80.0, vec![]));
    // Beyond the range it is no reading at all.
    let beyond = [Some(70_000.0), Some(1_000.0), Some(1_008.0)];
    let (counter, outcomes) = run(Some(RANGE), &beyond);
    let unknown = [Reason::OutOfRange, Reason::Unread].map(Outcome::Missing);
    assert_eq!(outcomes[..2], unknown);
    assert_eq!(billed(&outcomes), 8.0);
    assert_eq!(counter.missing()[&Reason::Unread].readings, 1);
}

#[test]
fn a_reset_goes_on_from_where_it_began_again() {
    // 50 W; reset to 3 J in the third second.
    let readings = [800.0, 850.0, 900.0, 3.0, 53.0, 103.0];
    assert_eq!(sum(&readings), (200.0, vec![(Reason::TooMuch, 1)]));
    let (counter, outcomes) = run(None, &readings.map(Some));
    assert_eq!(billed(&outcomes), 200.0);
    assert_eq!(
        counter.missing()[&Reason::WentBack],
        Missing { readings: 1, seconds: 1.0, ..Missing::default() }
    );
    assert!(counter.sentences(&domain(None))[0].contains("was reset"));
    // It passes what it showed before the reset, at its own pace: nothing is missing for that.
    let after = (0..9).map(|second| 1.0 + 50.0 * f64::from(second));
    let long: Vec<_> = [100.0, 150.0].into_iter().chain(after).map(Some).collect();
    let (counter, outcomes) = run(None, &long);
    assert_eq!(billed(&outcomes), 50.0 + 400.0);
    assert_eq!(counter.missing().len(), 1);
}

#[test]
fn a_jump_that_stays_is_missing_and_nothing_else() {
    let readings = [0.0, 50.0, 9_050.0, 9_100.0, 9_150.0];
    let (joules, missing) = sum(&readings);
    assert_eq!((joules, missing), (150.0, vec![(Reason::TooMuch, 1)]));
    let (counter, _) = run(None, &readings.map(Some));
    let said = &counter.sentences(&domain(None))[0];
    assert!(said.contains("jumped") && said.contains("8911 W; at most 2000 W"), "{said}");
}

#[test]
fn wrong_for_longer_is_never_billed_twice() {
    for (first, last) in [(4, 5), (3, 7), (2, 8)] {
        let errors: Vec<_> = (first..=last).map(|at| (at, -600.0)).collect();
        let (joules, missing) = sum(&off(&errors));
        // The way down and the way back up are missing.
        assert_eq!(joules, 64.0, "{first}..={last}");
        assert_eq!(missing.iter().map(|(_, windows)| windows).sum::<u64>(), 2);
        let errors: Vec<_> = (first..=last).map(|at| (at, 9_000.0)).collect();
        assert_eq!(sum(&off(&errors)).0, 64.0);
    }
}

#[test]
fn a_steep_rise_waits_for_a_second_reading() {
    // It returns: it was no energy.
    assert_eq!(sum(&off(&[(4, 600.0)])), (80.0, vec![]));
    // It was load: billed, one window later.
    let load = [0.0, 8.0, 16.0, 616.0, 1_216.0, 1_224.0];
    let (_, outcomes) = run(None, &load.map(Some));
    assert_eq!(outcomes[3], Outcome::Missing(Reason::Unconfirmed));
    assert_eq!((billed(&outcomes), sum(&load)), (1_224.0, (1_224.0, vec![])));
    // The run ends meanwhile.
    let (mut counter, outcomes) =
        run(None, &load[..4].iter().copied().map(Some).collect::<Vec<_>>());
    assert_eq!(billed(&outcomes), 16.0);
    let last = counter.finish(&domain(None)).unwrap();
    assert_eq!(billed(&[last]), 600.0);
    assert_eq!((counter.finish(&domain(None)), counter.missing().len()), (None, 0));
    assert_eq!(counter.sentences(&domain(None)), [""; 0]);
    // So does the first window of a machine that draws much: there is nothing to compare it with.
    let busy = [0.0, 900.0, 1_700.0, 2_600.0];
    let (_, outcomes) = run(None, &busy.map(Some));
    assert_eq!(outcomes[1], Outcome::Missing(Reason::Unconfirmed));
    assert_eq!((billed(&outcomes), sum(&busy)), (2_600.0, (2_600.0, vec![])));
    let (mut counter, _) = run(None, &[Some(0.0), Some(900.0)]);
    assert_eq!(billed(&[counter.finish(&domain(None)).unwrap()]), 900.0);
    // Neither one at a usual power does, nor the first one at less.
    assert_eq!(billed(&run(None, &[Some(0.0), Some(490.0)]).1), 490.0);
    assert_eq!(billed(&run(None, &[Some(0.0), Some(10.0), Some(210.0)]).1), 210.0);
}

#[test]
fn what_could_not_be_read_for_a_moment_is_in_the_next_reading() {
    let unread = Outcome::Missing(Reason::Unread);
    let (counter, outcomes) = run(None, &[Some(0.0), Some(50.0), None, None, Some(200.0)]);
    assert_eq!(outcomes[2..4], [unread; 2]);
    let Outcome::Energy { from_ns, to_ns, joules } = outcomes[4] else { panic!("{outcomes:?}") };
    assert_eq!((from_ns, to_ns, joules), (6 * SECOND, 9 * SECOND, Joules(150.0)));
    assert!(counter.missing().is_empty());
    // Away, and back as a new counter.
    let returned = [Some(0.0), Some(50.0), None, None, Some(7.0), Some(57.0)];
    let (counter, outcomes) = run(None, &returned);
    assert_eq!(billed(&outcomes), 100.0);
    let unread = counter.missing();
    assert_eq!((unread.len(), unread[&Reason::Unread].readings), (1, 3));
}

#[test]
fn what_is_drawn_while_it_cannot_be_read_for_long_is_missing() {
    let mut readings = vec![Some(0.0), Some(50.0)];
    readings.extend([None; 4]);
    readings.extend([Some(300.0), Some(350.0)]);
    let (counter, outcomes) = run(None, &readings);
    assert_eq!(outcomes[2..7], [Outcome::Missing(Reason::Unread); 5]);
    assert_eq!(billed(&outcomes), 100.0);
    let missing = Missing { readings: 5, seconds: 5.0, ..Missing::default() };
    assert_eq!(counter.missing(), BTreeMap::from([(Reason::Unread, missing)]));
    // Gone for good.
    let (counter, _) = run(None, &[Some(0.0), None, None]);
    assert_eq!(counter.missing()[&Reason::Unread].seconds, 2.0);
    // Never there before.
    let (counter, outcomes) = run(None, &[None, None, Some(5.0), Some(6.0)]);
    assert_eq!(billed(&outcomes), 1.0);
    assert_eq!(counter.missing()[&Reason::Unread].readings, 2);
}

#[test]
fn wraps_are_counted_and_too_many_are_named() {
    let last = RANGE as f64 * 1e-6;
    let (_, outcomes) = run(Some(RANGE), &[Some(last - 30.0), Some(20.0), Some(70.0)]);
    assert!((billed(&outcomes) - 100.0).abs() < 1e-5, "{outcomes:?}");

    let (domain, mut counter) = (domain(Some(RANGE)), Counter::default());
    let mut at = |second: u64, joules: u64| {
        let mono_ns = second * SECOND;
        counter.advance(&domain, mono_ns, Some(Reading { mono_ns, count: joules * 1_000_000 }))
    };
    at(0, 1_000);
    assert_eq!(at(40, 3_400), Outcome::Missing(Reason::MoreWraps));
    let Outcome::Energy { joules, .. } = at(41, 3_460) else { panic!() };
    assert_eq!(joules, Joules(60.0));
    assert_eq!(counter.missing()[&Reason::MoreWraps].seconds, 40.0);
}

#[test]
fn readings_out_of_order_are_passed_over() {
    let (domain, mut counter) = (domain(None), Counter::default());
    let mut at = |second: u64, joules: u64| {
        let mono_ns = second * SECOND;
        counter.advance(&domain, mono_ns, Some(Reading { mono_ns, count: joules * 1_000_000 }))
    };
    at(5, 100);
    assert_eq!(at(4, 108), Outcome::Missing(Reason::Disorder));
    let Outcome::Energy { joules, .. } = at(6, 108) else { panic!() };
    assert_eq!(joules, Joules(8.0));
}

/// A counter's true course at steady load, with wrong readings strewn in, none next to another.
fn course() -> impl Strategy<Value = (u64, Vec<(u64, u64, Option<i64>)>)> {
    let wrong = prop_oneof![
        6 => Just(None),
        1 => (-30_000_000_000i64..-4_000_000_000).prop_map(Some),
        1 => (6_000_000_000i64..30_000_000_000).prop_map(Some),
    ];
    // Milliseconds and milliwatts.
    let step = (20u64..1_500, 20_000u64..200_000, wrong);
    (31_000_000_000u64..33_000_000_000, proptest::collection::vec(step, 2..60))
}

proptest! {
    #[test]
    fn single_wrong_readings_cost_nothing((start, steps) in course()) {
        let (domain, mut counter) = (domain(None), Counter::default());
        let (mut ns, mut count, mut wrong_before) = (SECOND, start, true);
        let mut outcomes = vec![counter.advance(&domain, ns, Some(Reading { mono_ns: ns, count }))];
        let last = steps.len() - 1;
        for (index, (ms, milliwatts, wrong)) in steps.into_iter().enumerate() {
            ns += ms * 1_000_000;
            count += ms * milliwatts / 1_000;
            let error = wrong.filter(|_| !wrong_before && index != last).unwrap_or(0);
            wrong_before = error != 0;
            let shown = count.saturating_add_signed(error);
            outcomes.push(counter.advance(&domain, ns, Some(Reading { mono_ns: ns, count: shown })));
        }
        let drawn = (count - start) as f64 * 1e-6;
        prop_assert!((billed(&outcomes) - drawn).abs() < 1e-6, "{} of {drawn}", billed(&outcomes));
        prop_assert!(counter.missing().is_empty());
    }

    #[test]
    fn resets_never_make_energy(
        start in 10_000_000_000u64..20_000_000_000,
        steps in proptest::collection::vec((20u64..1_500, 20_000u64..200_000, 0u8..12), 2..80),
    ) {
        let (domain, mut counter) = (domain(None), Counter::default());
        let (mut ns, mut count, mut drawn) = (SECOND, start, 0);
        let mut outcomes = vec![counter.advance(&domain, ns, Some(Reading { mono_ns: ns, count }))];
        for (ms, milliwatts, reset) in steps {
            ns += ms * 1_000_000;
            let energy = ms * milliwatts / 1_000;
            drawn += energy;
            count = if reset == 0 { energy / 2 } else { count + energy };
            outcomes.push(counter.advance(&domain, ns, Some(Reading { mono_ns: ns, count })));
        }
        prop_assert!(billed(&outcomes) <= drawn as f64 * 1e-6 + 1e-6);
    }

    #[test]
    fn whatever_is_read_no_time_is_billed_twice_nor_beyond_the_hardware(
        range in prop_oneof![Just(None), Just(Some(RANGE)), (1u64..1 << 40).prop_map(Some)],
        readings in proptest::collection::vec(
            (
                0u64..3_000_000_000,
                proptest::option::weighted(0.9, prop_oneof![
                    4 => (0u64..1_000_000_000).prop_map(|step| (true, step)),
                    2 => any::<u64>().prop_map(|count| (false, count)),
                    1 => (0u64..100).prop_map(|count| (false, count)),
                ]),
                -5_000_000i64..5_000_000,
            ),
            0..60,
        ),
    ) {
        let (domain, mut counter) = (domain(range), Counter::default());
        let (mut ns, mut count, mut known_to) = (SECOND, 0u64, 0);
        for (step_ns, reading, jitter) in readings {
            ns += step_ns;
            let reading = reading.map(|(relative, value)| {
                count = if relative { count.wrapping_add(value) } else { value };
                Reading { mono_ns: ns.saturating_add_signed(jitter), count }
            });
            if let Outcome::Energy { from_ns, to_ns, joules } = counter.advance(&domain, ns, reading) {
                prop_assert!(from_ns >= known_to && to_ns >= from_ns);
                known_to = to_ns;
                // Two spans that a steep rise joins have a slack each.
                let most = 2_000.0 * ((to_ns - from_ns) as f64 * 1e-9 + 2.0 * SLACK.0);
                prop_assert!((0.0..=most * (1.0 + 1e-12)).contains(&joules.0), "{joules:?} {most}");
            }
        }
        counter.finish(&domain);
        let _ = counter.sentences(&domain);
    }
}
