//! Who is who in the books: workloads that move, end and come back, and time that no counter covers.

use std::collections::BTreeMap;

use super::*;
use crate::event::PackageTime;

const SECOND: u64 = 1_000_000_000;

fn named(id: u64, name: &str, cgroup_id: u64) -> Event {
    Event::Workload(Workload { id: WorkloadId(id), cgroup_id, ..workload(name) })
}

/// CPU seconds of workloads by package; those of others are 0.
fn times(packages: &[&[(u64, f64)]], unplaced: &[(u64, f64)]) -> CpuTimes {
    let time = |workloads: &[(u64, f64)]| PackageTime {
        workloads: workloads
            .iter()
            .map(|(id, seconds)| (WorkloadId(*id), (seconds * 1e9) as u64))
            .collect(),
        ..PackageTime::default()
    };
    CpuTimes {
        packages: packages.iter().map(|time_of| time(time_of)).collect(),
        unplaced: time(unplaced),
    }
}

/// A sample at `second`; the joules of each counter.
fn at(second: u64, cpu: CpuTimes, joules: &[f64]) -> Sample {
    let mono_ns = second * SECOND;
    let energy =
        joules.iter().map(|joules| Some(Reading { mono_ns, count: (joules / UNIT) as u64 }));
    Sample { mono_ns, ends_window: true, cpu, energy: energy.collect(), awake_ns: None }
}

/// The packages that have a counter of 20 W static power, and those with one for their memory.
fn with_counters(packages: usize, cpu: &[usize], dram: &[usize]) -> RunBooks {
    let domains = |kind: &str, component, packages: &[usize]| -> Vec<Domain> {
        let domain = |package: &usize| domain(&format!("{kind}-{package}"), component, *package);
        packages.iter().map(domain).collect()
    };
    let mut all = domains("package", Component::Cpu, cpu);
    all.extend(domains("dram", Component::Dram, dram));
    let watts = all.iter().map(|domain| (domain.name.clone(), 0.0)).collect();
    let mut header = header(packages, all);
    header.settings.static_watts = watts;
    RunBooks::new(header)
}

#[test]
fn a_workload_that_moves_is_one_row_with_all_of_its_time() {
    let mut books = with_counters(1, &[0], &[]);
    books.apply(&named(1, "a.service", 10));
    books.sample(&at(0, times(&[&[]], &[]), &[0.0]));
    books.sample(&at(1, times(&[&[(1, 1.0)]], &[]), &[10.0]));
    for restart in 1..=10 {
        books.apply(&named(1, "a.service", 10 + restart));
        let seconds = 1.0 + restart as f64;
        books.sample(&at(1 + restart, times(&[&[(1, seconds)]], &[]), &[10.0 * seconds]));
    }
    let report = report(&mut books);
    assert_adds_up(&report);
    let [row] = &report.workloads[..] else { panic!("{:?}", report.workloads) };
    assert_eq!((row.cgroup_id, row.cpu_seconds, row.energy_j.cpu), (20, 11.0, Some(110.0)));
}

#[test]
fn an_end_keeps_the_row_and_a_return_goes_on_with_it() {
    let mut books = with_counters(1, &[0], &[]);
    books.apply(&named(1, "a", 10));
    books.sample(&at(0, times(&[&[]], &[]), &[0.0]));
    books.sample(&at(1, times(&[&[(1, 1.0)]], &[]), &[10.0]));
    books.apply(&Event::Ended { id: WorkloadId(1) });
    books.sample(&at(2, times(&[&[]], &[]), &[20.0]));
    assert_eq!(report(&mut books).workloads[0].cpu_seconds, 1.0);
    books.apply(&named(1, "a", 11));
    // It comes back, and its time begins again.
    books.sample(&at(3, times(&[&[(1, 0.5)]], &[]), &[30.0]));
    let report = report(&mut books);
    assert_adds_up(&report);
    assert_eq!(report.workloads.len(), 1);
    assert_eq!(report.workloads[0].cpu_seconds, 1.5);
    assert_eq!(report.workloads[0].energy_j.cpu, Some(20.0));
    assert_eq!(report.node.cpu.unattributed_j, Some(10.0));
}

#[test]
fn of_very_many_that_ended_the_oldest_become_one_and_nothing_is_lost() {
    const ENDED: u64 = 10_000;
    let mut books = with_counters(1, &[0], &[]);
    books.apply(&named(ENDED + 1, "lives", 1));
    books.sample(&at(0, times(&[&[]], &[]), &[0.0]));
    let mut windows = 0.0;
    for id in 1..=ENDED {
        books.apply(&named(id, "job", id));
        let cpu = times(&[&[(id, 0.5), (ENDED + 1, 0.5 * id as f64)]], &[]);
        books.sample(&at(id, cpu, &[4.0 * id as f64]));
        books.apply(&Event::Ended { id: WorkloadId(id) });
        if id % 1000 == 0 {
            let window = books.window().unwrap();
            assert_closed(&window.node);
            windows += window.node.cpu.measured_j.unwrap();
        }
    }
    assert_eq!(windows, 40.0);
    let report = report(&mut books);
    assert_adds_up(&report);
    assert!(report.workloads.len() < 5000, "{}", report.workloads.len());
    let seconds: f64 = report.workloads.iter().map(|workload| workload.cpu_seconds).sum();
    assert_eq!(seconds, ENDED as f64);
    let folded = report.workloads.last().unwrap();
    assert_eq!(folded.kind, WorkloadKind::Ended);
    assert_eq!(folded.name, format!("{} that ended before", ENDED - 4096));
    assert_eq!(folded.cpu_seconds, (ENDED - 4096) as f64 * 0.5);
    let joules = folded.energy_j.cpu.unwrap();
    assert!((joules - (ENDED - 4096) as f64 * 2.0).abs() < 1e-6, "{joules}");
}

#[test]
fn a_package_without_a_counter_makes_a_figure_partial_or_unknown() {
    let mut books = with_counters(2, &[0], &[]);
    for (id, name) in [(1, "here"), (2, "there"), (3, "both"), (4, "never")] {
        books.apply(&named(id, name, id));
    }
    books.sample(&at(0, times(&[&[], &[]], &[]), &[0.0]));
    let cpu = times(&[&[(1, 1.0), (3, 0.5)], &[(2, 1.0), (3, 0.5)]], &[]);
    books.sample(&at(1, cpu, &[30.0]));
    let window = books.window().unwrap();
    let report = report(&mut books);
    assert_adds_up(&report);
    let [here, there, both, never] = &report.workloads[..] else { panic!() };
    near(here.energy_j.cpu, 20.0);
    assert_eq!(here.partial, None);
    // Not 0: not known.
    assert_eq!((there.energy_j.cpu, there.energy_j.total, there.mean_power_w), (None, None, None));
    assert_eq!(window.workloads[1].energy_j.total, None);
    let partial = there.partial.as_deref().unwrap();
    assert!(partial.contains("1.000 of 1.000 CPU-seconds were on package-1"), "{partial}");
    near(both.energy_j.cpu, 10.0);
    let partial = both.partial.as_deref().unwrap();
    assert!(partial.contains("0.500 of 1.000 CPU-seconds were on package-1"), "{partial}");
    // Who did not run drew nothing, and that is known.
    assert_eq!((never.energy_j.cpu, &never.partial), (Some(0.0), &None));
    let [warning] = &report.warnings[..] else { panic!("{:?}", report.warnings) };
    assert!(warning.contains("1.500 CPU-seconds on package-1"), "{warning}");
}

#[test]
fn a_counter_that_never_worked_covers_nothing() {
    // Never read, and read but always the same.
    for joules in [None, Some(7.0)] {
        let mut books = with_counters(2, &[0, 1], &[]);
        books.apply(&named(1, "there", 1));
        books.apply(&named(2, "here", 2));
        for second in 0..=10 {
            let seconds = second as f64;
            let cpu = times(&[&[(2, seconds)], &[(1, seconds)]], &[]);
            let mut sample = at(second, cpu, &[20.0 * seconds]);
            let count = |joules: f64| (joules / UNIT) as u64;
            let reading = |joules| Reading { mono_ns: second * SECOND, count: count(joules) };
            sample.energy.push(joules.map(reading));
            books.sample(&sample);
        }
        let window = books.window().unwrap();
        assert_eq!(window.workloads[0].energy_j.total, None);
        assert_eq!(window.workloads[1].energy_j.total, Some(20.0));
        let report = report(&mut books);
        assert_adds_up(&report);
        let [there, here] = &report.workloads[..] else { panic!() };
        let energy = there.energy_j;
        assert_eq!((energy.cpu, energy.total, there.mean_power_w), (None, None, None));
        let partial = there.partial.as_deref().unwrap();
        let silent = "10.000 of 10.000 CPU-seconds were on package-1, whose energy counter";
        assert!(partial.contains(silent), "{partial}");
        assert_eq!((here.energy_j.cpu, &here.partial), (Some(200.0), &None));
        let said = "10.000 CPU-seconds on package-1, whose energy counter measured nothing";
        assert!(report.warnings.iter().any(|w| w.contains(said)), "{:?}", report.warnings);
    }
}

#[test]
fn a_window_in_which_a_package_was_not_read_has_no_figure_for_who_ran_there() {
    let mut books = with_counters(2, &[0, 1], &[]);
    books.apply(&named(1, "there", 1));
    books.apply(&named(2, "never", 2));
    for second in 0..=3 {
        let seconds = second as f64;
        let mut sample =
            at(second, times(&[&[], &[(1, seconds.min(2.0))]], &[]), &[seconds, 20.0 * seconds]);
        if second == 2 {
            sample.energy[1] = None;
        }
        books.sample(&sample);
        let Some(window) = books.window() else { continue };
        assert_closed(&window.node);
        let expected = [Some(20.0), None, Some(40.0)][second as usize - 1];
        assert_eq!(window.workloads[0].energy_j.cpu, expected);
        assert_eq!(window.workloads[1].energy_j.cpu, Some(0.0));
    }
    assert_eq!(report(&mut books).workloads[0].energy_j.cpu, Some(60.0));
}

#[test]
fn memory_without_a_counter_is_partial_too() {
    let mut books = with_counters(2, &[0, 1], &[0]);
    books.apply(&named(1, "there", 1));
    books.apply(&named(2, "both", 2));
    books.sample(&at(0, times(&[&[], &[]], &[]), &[0.0, 0.0, 0.0]));
    let cpu = times(&[&[(2, 0.5)], &[(1, 1.0), (2, 0.5)]], &[]);
    books.sample(&at(1, cpu, &[30.0, 30.0, 3.0]));
    let report = report(&mut books);
    assert_adds_up(&report);
    let [there, both] = &report.workloads[..] else { panic!() };
    near(there.energy_j.cpu, 20.0);
    near(both.energy_j.cpu, 40.0);
    assert_eq!((there.energy_j.dram, both.energy_j.dram), (None, Some(3.0)));
    assert!(there.partial.as_deref().unwrap().contains("memory"), "{:?}", there.partial);
    let [warning] = &report.warnings[..] else { panic!("{:?}", report.warnings) };
    assert!(warning.contains("memory has no energy counter"), "{warning}");
}

#[test]
fn a_machine_whose_memory_has_no_counter_at_all_is_not_partial() {
    let mut books = with_counters(1, &[0], &[]);
    books.apply(&named(1, "a", 1));
    books.sample(&at(0, times(&[&[]], &[]), &[0.0]));
    books.sample(&at(1, times(&[&[(1, 1.0)]], &[]), &[30.0]));
    let report = report(&mut books);
    assert_eq!((report.workloads[0].energy_j.dram, &report.workloads[0].partial), (None, &None));
    assert_eq!(report.warnings, [""; 0]);
}

#[test]
fn time_on_cpus_whose_package_is_not_known_is_said() {
    let mut books = with_counters(2, &[0, 1], &[]);
    books.apply(&named(1, "a", 1));
    books.sample(&at(0, times(&[&[], &[]], &[]), &[0.0, 0.0]));
    books.sample(&at(1, times(&[&[], &[]], &[(1, 1.0)]), &[5.0, 100.0]));
    let report = report(&mut books);
    assert_adds_up(&report);
    let job = &report.workloads[0];
    assert_eq!((job.cpu_seconds, job.energy_j.cpu), (1.0, None));
    assert!(job.partial.as_deref().unwrap().contains("package is not known"), "{:?}", job.partial);
    assert_eq!(report.node.cpu.unattributed_j, Some(105.0));
    let [warning] = &report.warnings[..] else { panic!("{:?}", report.warnings) };
    assert!(warning.contains("package is not known"), "{warning}");
}

#[test]
fn a_window_may_hold_many_readings() {
    let mut books = with_counters(1, &[0], &[]);
    books.apply(&named(1, "a", 1));
    books.sample(&at(0, times(&[&[]], &[]), &[0.0]));
    for second in 1..=8 {
        let cpu = times(&[&[(1, second as f64)]], &[]);
        let sample = at(second, cpu, &[10.0 * second as f64]);
        books.sample(&Sample { ends_window: second % 4 == 0, ..sample });
        let windows = second / 4;
        assert_eq!(books.window().is_some(), windows > 0);
        if let Some(window) = books.window() {
            assert_eq!((window.start_s, window.seconds), (4.0 * (windows - 1) as f64, 4.0));
            assert_eq!(window.node.cpu.measured_j, Some(40.0));
            assert_eq!(window.workloads[0].cpu_seconds, 4.0);
        }
    }
    assert_eq!(report(&mut books).node.cpu.measured_j, Some(80.0));
}

/// Ends so many others that the workloads which ended before them are folded.
fn end_many(books: &mut RunBooks, from: u64) {
    for id in from..from + 4096 {
        books.apply(&named(id, "job", id));
        books.apply(&Event::Ended { id: WorkloadId(id) });
    }
}

#[test]
fn what_a_folded_workload_did_before_its_energy_came_is_in_the_folded_row() {
    let mut books = with_counters(1, &[0], &[]);
    books.apply(&named(1, "early", 1));
    books.apply(&named(2, "late", 2));
    books.sample(&at(0, times(&[&[]], &[]), &[0.0]));
    let unread = at(1, times(&[&[(1, 1.0)]], &[]), &[]);
    books.sample(&Sample { energy: vec![None], ..unread });
    books.apply(&Event::Ended { id: WorkloadId(1) });
    end_many(&mut books, 3);
    books.sample(&at(2, times(&[&[(2, 1.0)]], &[]), &[80.0]));
    let window = books.window().unwrap();
    assert_closed(&window.node);
    assert_eq!(window.node.cpu.workloads_j, Some(80.0));
    let report = report(&mut books);
    assert_adds_up(&report);
    assert_eq!(report.node.cpu.measured_j, Some(80.0));
    assert_eq!(report.workloads[0].energy_j.cpu, Some(40.0));
    let folded = report.workloads.last().unwrap();
    assert_eq!((folded.kind, folded.energy_j.cpu), (WorkloadKind::Ended, Some(40.0)));
}

#[test]
fn a_workload_that_is_folded_while_its_counter_is_doubted_is_billed_at_the_end() {
    let mut books = with_counters(1, &[0], &[]);
    books.apply(&named(1, "early", 1));
    books.sample(&at(0, times(&[&[]], &[]), &[0.0]));
    // Steep, and nothing confirms it before the end.
    books.sample(&at(1, times(&[&[(1, 1.0)]], &[]), &[200.0]));
    books.apply(&Event::Ended { id: WorkloadId(1) });
    end_many(&mut books, 2);
    let report = report(&mut books);
    assert_adds_up(&report);
    assert_eq!(report.workloads.last().unwrap().energy_j.cpu, Some(200.0));
}

#[test]
fn cpu_time_beyond_any_clock_does_not_overflow() {
    let mut books = with_counters(2, &[0, 1], &[]);
    books.apply(&named(1, "a", 1));
    let most = |ns: u64| {
        let time = PackageTime {
            workloads: vec![(WorkloadId(1), ns)],
            other: ns,
            idle: ns,
            features: BTreeMap::new(),
        };
        CpuTimes { packages: vec![time.clone(), time.clone()], unplaced: time }
    };
    books.sample(&at(0, most(0), &[0.0, 0.0]));
    for second in 1..4 {
        books.sample(&at(second, most(u64::MAX), &[second as f64, second as f64]));
        assert_closed(&books.window().unwrap().node);
        books.apply(&Event::Ended { id: WorkloadId(1) });
        books.apply(&named(1, "a", 1));
    }
    end_many(&mut books, 2);
    books.apply(&Event::Ended { id: WorkloadId(1) });
    end_many(&mut books, 5000);
    assert_adds_up(&report(&mut books));
}

#[test]
fn a_window_leaves_out_who_ended_before_it() {
    let mut books = with_counters(1, &[0], &[]);
    books.apply(&named(1, "gone", 1));
    books.apply(&named(2, "sleeps", 2));
    books.sample(&at(0, times(&[&[]], &[]), &[0.0]));
    end_many(&mut books, 3);
    books.apply(&Event::Ended { id: WorkloadId(1) });
    let names = |books: &RunBooks| -> Vec<String> {
        books.window().unwrap().workloads.into_iter().map(|row| row.name).collect()
    };
    books.apply(&named(1, "gone", 1));
    books.sample(&at(1, times(&[&[(1, 1.0)]], &[]), &[20.0]));
    books.apply(&Event::Ended { id: WorkloadId(1) });
    assert_eq!(names(&books), ["gone", "sleeps"]);
    books.sample(&at(2, times(&[&[]], &[]), &[40.0]));
    assert_eq!(names(&books), ["sleeps"]);
    // The report keeps them.
    assert_eq!(report(&mut books).workloads.len(), 4096 + 2);
}
