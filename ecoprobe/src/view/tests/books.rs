//! What must hold whatever is read.

use proptest::prelude::*;

use super::*;
use crate::event::settings::IdlePolicy;
use crate::event::{Event, Reading, Sample};
use crate::view::report::{Doubt, Figure, Method};

const SECOND: u64 = 1_000_000_000;

fn reading(second: u64, joules: f64) -> Option<Reading> {
    Some(Reading { mono_ns: second * SECOND, count: (joules / UNIT) as u64 })
}

/// A sample at `second` of one package: CPU seconds by user (others, idle, the workloads), and the counter's joules.
fn sample(second: u64, cpu_seconds: &[f64], joules: Option<f64>) -> Sample {
    let rows = vec![cpu_seconds.iter().map(|seconds| (seconds * 1e9) as u64).collect()];
    let energy = vec![joules.and_then(|joules| reading(second, joules))];
    sample_of(second * SECOND, &rows, energy)
}

fn one_package(static_watts: Option<f64>) -> RunBooks {
    let mut header = header(1, vec![domain("package-0", Component::Cpu, 0)]);
    let watts = static_watts.map(|watts| ("package-0".to_owned(), watts));
    header.settings.static_watts = watts.into_iter().collect();
    RunBooks::new(header)
}

#[test]
fn one_run_by_hand() {
    let mut books = one_package(Some(20.0));
    books.workload(workload("a"));
    books.workload(workload("b"));
    books.sample(&sample(10, &[1.0, 5.0, 2.0], Some(1000.0)));
    assert_eq!(books.window(), None);
    books.sample(&sample(11, &[1.0, 5.5, 3.0, 1.0], Some(1050.0)));
    books.sample(&sample(13, &[2.0, 6.0, 4.0, 1.0], Some(1120.0)));

    let report = report(&mut books);
    assert_adds_up(&report);
    assert_eq!((report.window.seconds, report.window.samples), (3.0, 3));
    let node = report.node.cpu;
    assert_eq!(node.measured_j, Some(120.0));
    near(node.idle_j, 60.0);
    near(node.workloads_j, 45.0);
    near(node.other_j, 15.0);
    assert_eq!(node.unattributed_j, Some(0.0));
    assert_eq!(report.node.dram, ComponentBooks::default());
    let [a, b] = &report.workloads[..] else { panic!() };
    assert_eq!((a.cpu_seconds, b.cpu_seconds), (2.0, 1.0));
    near(a.energy_j.cpu, 30.0);
    near(a.energy_j.total, 30.0);
    near(b.energy_j.cpu, 15.0);
    near(b.mean_power_w, 5.0);
    assert_eq!((a.method, b.method), (Some(Method::Shared), Some(Method::Shared)));
    // Two windows tell nothing of who draws more.
    assert!(a.stderr_j.total.unwrap() > 3.0 && b.stderr_j.total.unwrap() > 1.5, "{:?}", a.stderr_j);
    near(a.watts_per_cpu.map(|figure| figure.value), 15.0);
    let [model] = &report.model[..] else { panic!() };
    assert_eq!((&*model.domain, model.windows), ("package-0", 2));
    assert_eq!(model.asleep_w, Figure { value: 20.0, stderr: 0.0 });
    assert_eq!(model.doubts, [Doubt::TooShort]);
    assert_eq!((a.energy_j.dram, a.energy_j.gpu, a.energy_j.idle_share), (None, None, None));
    assert_eq!((a.gpu_seconds, a.emissions_g, a.cost), (None, None, None));

    let window = books.window().unwrap();
    assert_closed(&window.node);
    let NodeLines { measured, idle, other, unattributed } = window.lines;
    assert_eq!(measured, NodeLine { power_w: Some(35.0), so_far_j: Some(120.0) });
    near(idle.power_w, 20.0);
    near(idle.so_far_j, 60.0);
    near(other.power_w, 7.5);
    near(other.so_far_j, 15.0);
    assert_eq!(unattributed, NodeLine { power_w: Some(0.0), so_far_j: Some(0.0) });
    near(window.workloads[0].so_far_j, 30.0);
    near(window.workloads[1].so_far_j, 15.0);
    assert_eq!((window.start_s, window.seconds), (1.0, 2.0));
    near(window.node.cpu.idle_j, 40.0);
    near(window.workloads[0].energy_j.cpu, 15.0);
    assert_eq!(
        (window.workloads[1].cpu_seconds, window.workloads[1].energy_j.cpu),
        (0.0, Some(0.0))
    );
    assert_eq!(window.static_power_w["package-0"], Some(20.0));
}

#[test]
fn idle_energy_is_shared_out_when_asked() {
    let mut header = one_package(Some(20.0)).header();
    header.settings.idle = IdlePolicy::Share;
    let mut books = RunBooks::new(header);
    books.workload(workload("a"));
    books.sample(&sample(0, &[], Some(0.0)));
    books.sample(&sample(1, &[1.0, 0.0, 3.0], Some(60.0)));
    books.sample(&sample(2, &[1.0, 0.0, 3.0], Some(90.0)));
    let report = report(&mut books);
    assert_adds_up(&report);
    let energy = report.workloads[0].energy_j;
    near(energy.cpu, 30.0);
    near(energy.total, 45.0);
    // By time alone.
    assert_eq!(energy.idle_share, Some(15.0));
    // Nobody ran in the second window: its idle energy stays idle.
    assert_eq!(report.node.cpu.idle_j, Some(20.0));
    near(report.node.cpu.other_j, 15.0);
    assert_eq!(report.node.cpu.unattributed_j, Some(10.0));
}

#[test]
fn dram_has_books_of_its_own() {
    let domains =
        vec![domain("package-0", Component::Cpu, 0), domain("dram-0", Component::Dram, 0)];
    let mut header = header(1, domains);
    header.settings.static_watts = [("package-0".into(), 20.0), ("dram-0".into(), 2.0)].into();
    header.settings.carbon_intensity = Some(360.0);
    header.settings.price = Some(0.36);
    header.settings.pue = Some(1.5);
    let mut books = RunBooks::new(header);
    books.workload(workload("a"));
    for second in 0..3 {
        let mut sample = sample(second, &[0.0, 0.0, second as f64], Some(50.0 * second as f64));
        sample.energy.push(reading(second, 5.0 * second as f64));
        books.sample(&sample);
    }
    let report = report(&mut books);
    assert_adds_up(&report);
    let job = &report.workloads[0];
    let energy = job.energy_j;
    assert_eq!((energy.cpu, energy.dram, energy.total), (Some(60.0), Some(6.0), Some(66.0)));
    assert_eq!(report.node.dram.idle_j, Some(4.0));
    assert!((job.emissions_g.unwrap() - 66.0 / 3.6e6 * 1.5 * 360.0).abs() < 1e-15);
    assert!((job.cost.unwrap() - 66.0 / 3.6e6 * 1.5 * 0.36).abs() < 1e-18);
    assert_eq!(report.sources.static_power.kind, StaticPowerKind::Given);
}

#[test]
fn an_estimate_brings_its_own_static_power() {
    let mut header = one_package(None).header();
    header.sources.static_power = StaticPowerSource {
        kind: StaticPowerKind::Estimate,
        watts: [("package-0".to_owned(), Some(20.0))].into(),
        stderr_watts: BTreeMap::new(),
    };
    let mut books = RunBooks::new(header);
    books.workload(workload("a"));
    books.sample(&sample(0, &[], Some(0.0)));
    books.sample(&sample(1, &[0.0, 0.0, 1.0], Some(35.0)));
    let report = report(&mut books);
    assert_eq!(report.sources.static_power.kind, StaticPowerKind::Estimate);
    assert_eq!(report.workloads[0].energy_j.cpu, Some(15.0));
}

#[test]
fn what_could_not_be_read_is_missing_and_not_zero() {
    let mut books = one_package(Some(20.0));
    books.workload(workload("a"));
    for second in 0..4 {
        books.sample(&sample(second, &[0.0, 0.0, second as f64], None));
    }
    let report = report(&mut books);
    assert_adds_up(&report);
    assert_eq!(report.node.cpu, ComponentBooks::default());
    assert_eq!(report.workloads[0].energy_j.total, None);
    assert_eq!(report.workloads[0].mean_power_w, None);
    assert_eq!(report.workloads[0].cpu_seconds, 3.0);
    assert_eq!(books.window().unwrap().node.cpu, ComponentBooks::default());
    let [warning] = &report.warnings[..] else { panic!("{:?}", report.warnings) };
    assert!(warning.contains("package-0: 3 readings, 3.000 s in all"), "{warning}");
}

#[test]
fn a_counter_that_vanishes_and_returns_keeps_what_it_had_counted() {
    let mut books = one_package(Some(20.0));
    books.workload(workload("a"));
    let joules = [Some(0.0), Some(50.0), None, None, Some(7.0), Some(57.0)];
    for (second, joules) in joules.into_iter().enumerate() {
        books.sample(&sample(second as u64, &[0.0, 0.0, second as f64], joules));
    }
    let report = report(&mut books);
    assert_adds_up(&report);
    assert_eq!(report.node.cpu.measured_j, Some(100.0));
    assert_eq!(report.workloads[0].energy_j.cpu, Some(60.0));
    let [warning] = &report.warnings[..] else { panic!("{:?}", report.warnings) };
    assert!(warning.contains("3 readings, 3.000 s") && warning.contains("could not be read"));
}

#[test]
fn jumps_resets_and_long_windows_are_left_out_and_said() {
    let run = |range, readings: [(u64, f64); 4]| {
        let mut header = one_package(Some(20.0)).header();
        header.domains[0].range = range;
        let mut books = RunBooks::new(header);
        for (second, joules) in readings {
            books.sample(&sample(second, &[], Some(joules)));
        }
        let report = report(&mut books);
        assert_adds_up(&report);
        let [warning] = &report.warnings[..] else { panic!("{:?}", report.warnings) };
        (report.node.cpu.measured_j.unwrap(), warning.clone())
    };
    let (joules, warning) = run(None, [(0, 0.0), (1, 50.0), (2, 9050.0), (3, 9100.0)]);
    assert_eq!(joules, 100.0);
    assert!(warning.contains("jumped") && warning.contains("8911 W; at most 500 W"), "{warning}");
    let (joules, warning) = run(None, [(0, 800.0), (1, 850.0), (2, 3.0), (3, 53.0)]);
    assert_eq!(joules, 100.0);
    assert!(warning.contains("was reset"), "{warning}");
    let wrap = Some((1000.0 / UNIT) as u64);
    let (joules, warning) = run(wrap, [(0, 800.0), (1, 850.0), (100, 900.0), (101, 950.0)]);
    assert_eq!(joules, 100.0);
    assert!(warning.contains("came too late") && warning.contains("99.000 s"), "{warning}");
    let (joules, warning) = run(wrap, [(0, 800.0), (1, 850.0), (2, 1000.0), (3, 0.0)]);
    // The reading beyond the range costs nothing: the next one has it all.
    assert_eq!(joules, 200.0);
    assert!(warning.contains("one reading of the counter was wrong"), "{warning}");
}

#[test]
fn who_ran_before_a_reset_is_not_billed_for_what_came_after_it() {
    let mut books = one_package(Some(0.0));
    books.workload(workload("a"));
    books.workload(workload("b"));
    let a = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0];
    let b = [0.0, 1.0, 2.0, 2.0, 3.0, 4.0];
    // Reset in the third second, and not read in the fourth.
    let joules = [Some(800.0), Some(820.0), Some(840.0), Some(3.0), None, Some(43.0)];
    for second in 0..6 {
        let cpu = [0.0, 0.0, a[second], b[second]];
        books.sample(&sample(second as u64, &cpu, joules[second]));
    }
    let report = report(&mut books);
    assert_adds_up(&report);
    assert_eq!(report.node.cpu.measured_j, Some(80.0));
    let billed = [0, 1].map(|index| report.workloads[index].energy_j.cpu);
    assert_eq!(billed, [Some(0.0), Some(80.0)]);
}

#[test]
fn cpu_time_that_falls_is_not_counted_twice() {
    let mut books = one_package(Some(0.0));
    books.workload(workload("a"));
    for (second, cpu) in [1.0, 2.0, 1.7, 1.9, 2.5].into_iter().enumerate() {
        books.sample(&sample(second as u64, &[0.0, 0.0, cpu], Some(10.0 * second as f64)));
    }
    let report = report(&mut books);
    assert_eq!(report.workloads[0].cpu_seconds, 1.5);
    // In two windows nobody is known to have run.
    assert_eq!(report.node.cpu.unattributed_j, Some(20.0));
}

#[test]
fn a_workload_that_appears_later_starts_then() {
    let mut books = one_package(Some(0.0));
    books.sample(&sample(0, &[0.0], Some(0.0)));
    books.sample(&sample(1, &[1.0], Some(10.0)));
    books.workload(workload("late"));
    books.sample(&sample(2, &[1.0, 0.0, 0.5], Some(20.0)));
    let report = report(&mut books);
    assert_adds_up(&report);
    assert_eq!(report.workloads[0].cpu_seconds, 0.5);
    assert_eq!(report.workloads[0].energy_j.cpu, Some(10.0));
    assert_eq!(report.node.cpu.other_j, Some(10.0));
}

#[test]
fn static_power_above_what_is_measured_is_said() {
    let mut books = one_package(Some(100.0));
    books.workload(workload("a"));
    for second in 0..3 {
        let cpu = [0.0, 0.0, second as f64];
        books.sample(&sample(second, &cpu, Some(50.0 * second as f64)));
        if let Some(window) = books.window() {
            assert_closed(&window.node);
        }
    }
    let report = report(&mut books);
    assert_adds_up(&report);
    assert_eq!(report.node.cpu.idle_j, Some(100.0));
    assert_eq!(report.workloads[0].energy_j.cpu, Some(0.0));
    assert!(report.warnings[0].contains("set too high"), "{:?}", report.warnings);
}

#[test]
fn no_sample_no_figures() {
    let mut books = one_package(None);
    let report = report(&mut books);
    assert_adds_up(&report);
    assert_eq!((report.window.seconds, report.window.samples), (0.0, 0));
    assert!(report.warnings[0].contains("fewer than two samples"));
}

#[test]
fn warnings_are_said_once_and_bounded() {
    let mut books = one_package(None);
    for number in 0..1000 {
        books.apply(&Event::Warning { message: "the same".into() });
        books.apply(&Event::Warning { message: format!("number {number}") });
    }
    let warnings = report(&mut books).warnings;
    assert_eq!(warnings.iter().filter(|warning| *warning == "the same").count(), 1);
    assert_eq!(warnings.len(), 64 + 2);
    assert!(warnings[64].starts_with("937 further"), "{}", warnings[64]);
}

#[test]
fn warnings_beyond_what_can_be_remembered_are_not_news() {
    let mut books = one_package(None);
    let message = |number: usize| format!("number {number}");
    for number in 0..64 + 4096 {
        assert!(!books.inner.knows_warning(&message(number)), "{number}");
        books.apply(&Event::Warning { message: message(number) });
    }
    assert!(books.inner.knows_warning(&message(0)));
    assert!(books.inner.knows_warning(&message(5000)));
    let warnings = report(&mut books).warnings;
    assert!(warnings[64].starts_with("at least 4096 further"), "{}", warnings[64]);
}

#[test]
fn nonsense_does_not_panic() {
    let domains = vec![domain("package-0", Component::Cpu, 9), domain("gpu", Component::Gpu, 0)];
    let mut books = RunBooks::new(header(1, domains));
    let cell = |value| {
        let energy = vec![Some(Reading { mono_ns: 7, count: value }); 7];
        sample_of(value, &vec![vec![value; 5], vec![value; 9]], energy)
    };
    for value in [5, 0, u64::MAX, 3, u64::MAX] {
        books.sample(&cell(value));
        books.window();
    }
    assert_closed(&report(&mut books).node);
}

/// Random samples of two packages with a DRAM domain each: steps of time, CPU time (which may fall)
/// and energy (which may wrap, jump or be missing).
fn samples() -> impl Strategy<Value = Vec<Sample>> {
    let cell = prop_oneof![2 => Just(0i64), 5 => 0i64..2_000_000_000, 1 => -1_000_000i64..0];
    let step = (
        1u64..3_000_000_000,
        proptest::collection::vec(proptest::collection::vec(cell, 0..6), 2),
        proptest::collection::vec(
            prop_oneof![
                8 => (0u64..2_000_000).prop_map(Some),
                1 => Just(None),
                1 => any::<u64>().prop_map(Some),
            ],
            4,
        ),
    );
    proptest::collection::vec(step, 0..30).prop_map(|steps| {
        let (mut mono_ns, mut rows) = (0, vec![vec![1_u64 << 40; 6]; 2]);
        let mut counts = [4_294_000_000u64; 4];
        let samples = steps.into_iter().map(|(ns, cpu, energy)| {
            mono_ns += ns;
            for (row, steps) in rows.iter_mut().zip(cpu) {
                for (cell, step) in row.iter_mut().zip(steps) {
                    *cell = u64::saturating_add_signed(*cell, step);
                }
            }
            let energy = counts.iter_mut().zip(energy).map(|(count, step)| {
                *count = count.wrapping_add(step?) % (1 << 32);
                Some(Reading { mono_ns: mono_ns + 1000, count: *count })
            });
            let energy = energy.collect();
            sample_of(mono_ns, &rows, energy)
        });
        samples.collect()
    })
}

fn two_packages(settings: Settings, samples: &[Sample], check_windows: bool) -> RunBooks {
    let domains = (0..2).flat_map(|package| {
        [("package", Component::Cpu), ("dram", Component::Dram)]
            .map(|(name, component)| domain(&format!("{name}-{package}"), component, package))
    });
    let mut header = header(2, domains.collect());
    header.settings = settings;
    let mut books = RunBooks::new(header);
    for name in ["a", "b", "c"] {
        books.workload(workload(name));
    }
    for sample in samples {
        books.sample(sample);
        if let Some(window) = books.window().filter(|_| check_windows) {
            assert_closed(&window.node);
        }
    }
    books
}

fn settings() -> impl Strategy<Value = Settings> {
    let watts = proptest::collection::btree_map("(package|dram)-[01]", 0.0..150.0, 0..4);
    (watts, any::<bool>()).prop_map(|(static_watts, share)| Settings {
        static_watts,
        idle: if share { IdlePolicy::Share } else { IdlePolicy::Separate },
        ..Settings::default()
    })
}

proptest! {
    #[test]
    fn books_close(settings in settings(), samples in samples()) {
        let mut books = two_packages(settings, &samples, true);
        assert_adds_up(&report(&mut books));
    }

    #[test]
    fn the_order_of_workloads_does_not_matter(settings in settings(), samples in samples()) {
        let swapped: Vec<Sample> = samples.iter().cloned().map(|mut sample| {
            for time in &mut sample.cpu.packages {
                let ids: Vec<_> = time.workloads.iter().map(|(id, _)| *id).collect();
                time.workloads[..3].reverse();
                time.workloads.iter_mut().zip(ids).for_each(|(one, id)| one.0 = id);
            }
            sample
        }).collect();
        let here = report(&mut two_packages(settings.clone(), &samples, false));
        let there = report(&mut two_packages(settings, &swapped, false));
        for (a, b) in here.workloads.iter().zip(there.workloads.iter().rev()) {
            prop_assert_eq!(a.cpu_seconds, b.cpu_seconds);
            let (a, b) = (a.energy_j.total.unwrap_or(-1.0), b.energy_j.total.unwrap_or(-1.0));
            prop_assert!((a - b).abs() <= 1e-9 * a.abs().max(1e-3), "{a} {b}");
        }
    }

    #[test]
    fn counters_never_go_back(settings in settings(), samples in samples()) {
        let mut before = (0.0, vec![0.0; 3]);
        for end in 0..=samples.len() {
            // While it goes on: the end of a run believes what still waits for another reading.
            let mut books = two_packages(settings.clone(), &samples[..end], false);
            let report = crate::view::report(&mut books.inner, Own::default());
            let now = (
                report.node.cpu.measured_j.unwrap_or(0.0),
                report.workloads.iter().map(|workload| workload.cpu_seconds).collect::<Vec<_>>(),
            );
            prop_assert!(now.0 >= before.0);
            prop_assert!(now.1.iter().zip(&before.1).all(|(now, before)| now >= before));
            before = now;
        }
    }

    #[test]
    fn a_replay_gives_the_same_report_to_the_byte(settings in settings(), samples in samples()) {
        let mut books = two_packages(settings, &samples, false);
        let mut replay = RunBooks::new(books.header().clone());
        for name in ["a", "b", "c"] {
            replay.workload(workload(name));
        }
        for sample in samples {
            let line = serde_json::to_string(&Event::Sample(sample)).unwrap();
            replay.apply(&serde_json::from_str(&line).unwrap());
        }
        let text = |books: &mut RunBooks| serde_json::to_string(&report(books)).unwrap();
        prop_assert_eq!(text(&mut books), text(&mut replay));
    }
}
