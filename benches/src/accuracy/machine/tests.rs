use super::super::family;
use super::super::scenario::{Job, Load};
use super::*;

fn job(joules_per_cpu_second: f64, packages: Vec<usize>, cpus: f64) -> Job {
    let load = Load::Constant { cpus };
    Job { joules_per_cpu_second, packages, load, moves: None, stream: None, phases: None }
}

/// Six cores, and a job on each of so many of their threads.
fn desktop(threads: usize, threads_per_core: usize) -> Scenario {
    Scenario {
        cpus: Some(6.0 * threads_per_core as f64),
        threads_per_core,
        paired_weight: 0.57,
        static_watts: 13.6,
        awake_watts: 12.9,
        jobs: (0..threads).map(|_| job(8.5, vec![0], 1.0)).collect(),
        ..Scenario::quiet()
    }
}

fn watts(scenario: &Scenario) -> f64 {
    let mut machine = Machine::new(scenario, 1);
    machine.advance(2.0);
    machine.joules() / 2.0
}

#[test]
fn what_is_measured_is_static_or_somebody_caused_it() {
    for (name, family) in family::tests::all() {
        for seed in 0..2 {
            let scenario = Scenario { seconds: 10.0, ..family.scenario(seed) };
            let mut machine = Machine::new(&scenario, seed);
            machine.advance(15.0);
            let dynamic =
                machine.joules() - 15.0 * scenario.static_watts * scenario.packages as f64;
            let caused = machine.caused.iter().sum::<f64>() + machine.nobodys;
            assert!((caused / dynamic - 1.0).abs() < 1e-9, "{name}: {caused} {dynamic}");
            assert!(machine.nobodys < 0.05 * dynamic, "{name}: {}", machine.nobodys);
        }
    }
}

#[test]
fn nobody_runs_longer_than_there_are_cpus_and_nothing_goes_back() {
    for (name, family) in family::tests::all() {
        let scenario = family.scenario(3);
        let mut machine = Machine::new(&scenario, 3);
        let mut last = machine.sample(0);
        for index in 1..30 {
            let sample = machine.sample(index);
            assert!(sample.mono_ns > last.mono_ns, "{name}");
            let length = (sample.mono_ns - last.mono_ns) as f64;
            let awake = sample.awake_ns.unwrap() - last.awake_ns.unwrap();
            assert!(awake as f64 <= length + 2.0, "{name}: {awake} {length}");
            for (time, before) in sample.cpu.packages.iter().zip(&last.cpu.packages) {
                assert!(time.other >= before.other, "{name}");
                assert_eq!(time.features.is_empty(), scenario.threads_per_core == 1, "{name}");
                if let Some(paired) = time.features.get(&PAIRED) {
                    let both = time.workloads.iter().zip(&paired.workloads);
                    assert!(both.clone().all(|(all, one)| one.1 <= all.1 && all.0 == one.0));
                }
            }
            let readings = sample.energy.iter().zip(&last.energy);
            assert!(
                readings.clone().all(|(now, then)| now.unwrap().mono_ns > then.unwrap().mono_ns)
            );
            last = sample;
        }
        for package in &machine.packages {
            let used: f64 = package.cpu.iter().sum();
            assert!(used <= machine.cpus() * machine.now * (1.0 + 1e-9), "{name}: {used}");
            let paired: f64 = package.paired.iter().sum();
            assert!(paired <= used * (1.0 + 1e-9), "{name}: {paired} {used}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_samples() {
    for (name, family) in family::tests::all() {
        let scenario = family.scenario(5);
        let samples = |seed| {
            let mut machine = Machine::new(&scenario, seed);
            (0..5).map(|index| machine.sample(index)).collect::<Vec<_>>()
        };
        assert_eq!(samples(1), samples(1), "{name}");
        assert_ne!(samples(1), samples(2), "{name}");
    }
}

/// A 6-core desktop was measured at 34.8, 43.8, 59.7, 77.4, 81.2 and 84.4 W with 1 to 12 threads.
#[test]
fn the_knee_is_where_the_cores_are_full() {
    for (threads, measured) in [(1, 34.8), (2, 43.8), (4, 59.7), (6, 77.4), (9, 81.2), (12, 84.4)] {
        let watts = watts(&desktop(threads, 2));
        assert!((watts - measured).abs() < 1.8, "{threads}: {watts} {measured}");
    }
    let added = |threads| watts(&desktop(threads + 1, 2)) - watts(&desktop(threads, 2));
    assert!((added(5) - 8.5).abs() < 1e-6, "{}", added(5));
    assert!((added(6) - 8.5 * (2.0 * 0.57 - 1.0)).abs() < 1e-6, "{}", added(6));
    let scenario = desktop(9, 2);
    let mut machine = Machine::new(&scenario, 1);
    machine.advance(1.0);
    // Six of the nine share their cores.
    assert!((machine.packages[0].paired.iter().sum::<f64>() - 6.0).abs() < 1e-6);
}

#[test]
fn a_capped_package_draws_what_it_may() {
    let capped = |threads| watts(&Scenario { cap_watts: Some(50.0), ..desktop(threads, 1) });
    assert!((capped(2) - 43.5).abs() < 1e-6, "{}", capped(2));
    assert!((capped(4) - 50.0).abs() < 1e-6 && (capped(6) - 50.0).abs() < 1e-6);
}

#[test]
fn a_package_wakes_with_the_machine_and_whoever_runs_owns_that() {
    let mut scenario =
        Scenario { packages: 2, jobs: vec![job(8.5, vec![0], 1.0)], ..desktop(0, 1) };
    let mut machine = Machine::new(&scenario, 1);
    machine.advance(1.0);
    assert!((machine.packages[1].joules - 26.5).abs() < 1e-6);
    assert!((machine.caused[1] - 8.5 - 2.0 * 12.9).abs() < 1e-6, "{:?}", machine.caused);
    assert!((machine.awake_seconds - 1.0).abs() < 1e-9);
    // Half awake on either, they are awake together for a quarter of the time.
    scenario.jobs = vec![job(8.5, vec![0], 0.5), job(8.5, vec![1], 0.5)];
    let mut machine = Machine::new(&scenario, 1);
    machine.advance(1.0);
    assert!((machine.awake_seconds - 0.75).abs() < 1e-9);
    assert!((machine.caused[1] - machine.caused[2]).abs() < 1e-9);
}

#[test]
fn one_group_runs_together_and_another_never() {
    let load = |turn| Load::Turns { cpus: 1.0, turn, of: 3, mean: 0.1 };
    let onoff = Load::OnOff { cpus: 1.0, mean_busy: 0.1, mean_idle: 0.1 };
    let with = |load, stream| Job { load, stream: Some(stream), ..job(5.0, vec![0], 1.0) };
    let jobs = vec![with(load(0), 1), with(load(1), 1), with(onoff, 2), with(onoff, 2)];
    let scenario = Scenario { jobs, ..Scenario::quiet() };
    let mut machine = Machine::new(&scenario, 1);
    let mut seen = [0; 4];
    for step in 0..1000 {
        machine.advance(f64::from(step) * 0.01);
        let cpus = &machine.packages[0].cpus;
        assert!(cpus[1] * cpus[2] == 0.0 && cpus[3] == cpus[4], "{cpus:?}");
        for (seen, cpus) in seen.iter_mut().zip(&cpus[1..]) {
            *seen += i32::from(*cpus > 0.0);
        }
    }
    assert!((200..450).contains(&seen[0]) && (350..650).contains(&seen[2]), "{seen:?}");
}
