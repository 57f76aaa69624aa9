//! The GPU meter against a simulated driver (`tests/fake-nvml`) whose every joule is known.
//!
//! Each test has a machine of its own: a copy of the library beside its scenario. Intervals are
//! shortened so that a second shows what a minute would.

#![allow(clippy::unwrap_used)]

#[path = "sim/gpu.rs"]
mod gpu;
#[path = "sim/gpu_meter.rs"]
mod gpu_meter;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ecoprobe::base::WorkloadId;
use ecoprobe::base::error::Error;
use ecoprobe::base::id::User;
use ecoprobe::base::monotonic_ns;
use ecoprobe::door::{
    GpuMeter, GpuOptions, Hierarchies, Owner, Owners, PidOwner, Place, Roots, Watched, Whose,
};
use ecoprobe::event::sources::{GpuEnergyKind, GpuReadMethod};
use ecoprobe::event::{Event, GpuMethod, GpuWindow};
use fake_nvml::{Device, Fault, Process, Scenario, Utilisation};

use crate::gpu::{DRIVER_NOT_LOADED, GPU_IS_LOST, Machine, NO_PERMISSION, always, device, process};
use crate::gpu_meter::{near, pid_is_user, user};

// ---- who pays ------------------------------------------------------------------------------------

#[test]
fn one_user_gets_all_that_it_caused() {
    let machine = Machine::of(vec![device(vec![always(2, 80.0)])]);
    let run = machine.run(1.2);
    run.check(0, &machine, 0.01);
    assert!(run.of(0).iter().all(|window| window.method == GpuMethod::Sole), "{:?}", run.of(0));
    let window = &run.of(0)[1];
    assert!(window.usage[0].holds && !window.unknown_users);
    let power = window.mean_power_w.unwrap();
    assert!((power - 250.0).abs() < 1.0, "{power}");
    assert_eq!(run.source.kind, GpuEnergyKind::Nvml);
    assert_eq!(run.source.devices[0].method, GpuReadMethod::Counter);
    assert_eq!(run.source.devices[0].name, "Simulated GPU");
    assert!(run.warnings.is_empty(), "{:?}", run.warnings);
    assert!(run.end.nvml_us.p99.is_some());
    assert!(run.end.calls.iter().any(|(call, _)| *call == "nvmlDeviceGetTotalEnergyConsumption"));
}

#[test]
fn two_users_share_by_what_they_computed() {
    let machine = Machine::of(vec![device(vec![always(2, 70.0), always(3, 30.0)])]);
    let run = machine.run(1.2);
    run.check(0, &machine, 0.01);
    assert!(run.of(0).iter().all(|window| window.method == GpuMethod::Utilisation));
    let window = &run.of(0)[1];
    let seconds = (window.to_ns - window.from_ns) as f64 * 1e-9;
    let busy = window.usage[0].busy_seconds.unwrap();
    assert!((busy / seconds - 0.7).abs() < 0.07, "{busy} of {seconds}");
    assert!(window.busy.unwrap() > 0.95, "{:?}", window.busy);
}

#[test]
fn a_holder_that_does_not_compute_pays_nothing() {
    let idle = Process { sm: 0.0, memory_mib: Some(40_000), ..always(100, 0.0) };
    let machine = Machine::of(vec![device(vec![always(2, 60.0), idle])]);
    let run = machine.run(1.0);
    run.check(0, &machine, 0.01);
}

fn fleeting() -> Device {
    device(vec![
        process(2, 0.40, 0.75, 80.0),
        process(3, 0.60, 1.10, 20.0),
        process(4, 1.15, 1.35, 40.0),
        // Not at the time of a power sample: who pays for the slope before it would depend on where
        // windows end.
        process(100, 1.29, 1.66, 60.0),
    ])
}

#[test]
fn users_that_come_and_go_within_a_window_pay_their_part() {
    let machine = Machine::of(vec![fleeting()]);
    let mut options = machine.options();
    options.process_interval = Duration::from_millis(500);
    let run = machine.run_with(1.8, &options, pid_is_user);
    // Within 0.5 % on a quiet machine; on a busy one the poller is late by milliseconds.
    run.check(0, &machine, 0.025);
}

#[test]
fn a_driver_that_gives_means_is_understood_too() {
    let device = Device { utilisation: Utilisation::Query, ..fleeting() };
    let machine = Machine::of(vec![device]);
    let run = machine.run(1.8);
    // Within a window only the mean is known, in whole percent, while power changes.
    run.check(0, &machine, 0.1);
}

#[test]
fn eight_devices_do_not_mix() {
    let devices = (0..8u32)
        .map(|i| Device {
            static_watts: 40.0 + f64::from(i),
            full_watts: 300.0 + 50.0 * f64::from(i),
            refresh_ms: Some(20.0 + 10.0 * f64::from(i)),
            processes: vec![always(2 + i, 10.0 + 10.0 * f64::from(i)), always(20, 10.0)],
            ..Device::default()
        })
        .collect();
    let machine = Machine::of(devices);
    let run = machine.run(1.8);
    for index in 0..8 {
        run.check(index, &machine, 0.01);
    }
}

#[test]
fn sixty_four_devices_are_no_trouble() {
    let machine = Machine::of((0..64).map(|i| device(vec![always(2 + i, 50.0)])).collect());
    let run = machine.run(1.5);
    assert_eq!(run.source.devices.len(), 64);
    for index in 0..64 {
        run.check(index, &machine, 0.02);
    }
}

/// The counter moves once a second; the second user is seen in some of the surveys in between.
#[test]
fn whoever_was_seen_between_two_edges_was_there() {
    let memory =
        |pid, from_s, to_s| Process { memory_mib: Some(1000), ..process(pid, from_s, to_s, 50.0) };
    let machine = Machine::of(vec![Device {
        refresh_ms: Some(1000.0),
        utilisation: Utilisation::None,
        processes: vec![memory(2, 0.0, 1e9), memory(3, 1.3, 1.7)],
        ..Device::default()
    }]);
    let run = machine.run(2.6);
    let users =
        run.of(0).iter().flat_map(|window| &window.usage).filter(|usage| usage.user == user(3));
    assert!(users.map(|usage| usage.weight).sum::<f64>() > 0.0, "{:?}", run.of(0));
}

#[test]
fn a_poller_that_fails_is_no_quiet_end() {
    let machine = Machine::of(vec![device(vec![always(2, 50.0)])]);
    let calls = std::sync::atomic::AtomicU32::new(0);
    let owner = move |_: u32| match calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
        3.. => panic!("on purpose"),
        _ => Some(user(2)),
    };
    let run = machine.run_with(1.5, &machine.options(), owner);
    assert_eq!(run.warned("the NVML thread failed"), 1, "{:?}", run.warnings);
}

#[test]
fn without_utilisation_memory_decides() {
    let memory = |pid, mib| Process { memory_mib: Some(mib), ..always(pid, 50.0) };
    let machine = Machine::of(vec![Device {
        utilisation: Utilisation::None,
        processes: vec![memory(2, 3000), memory(3, 1000)],
        ..Device::default()
    }]);
    let run = machine.run(1.0);
    assert!(run.of(0).iter().all(|window| window.method == GpuMethod::Memory));
    let books = run.books(0, 50.0);
    near("3:1", books.by_user[&user(2)], 3.0 * books.by_user[&user(3)], 1e-9);
    assert_eq!(run.of(0)[0].usage[0].busy_seconds, None);
}

#[test]
fn slices_decide_under_mig() {
    let on = |pid, instance, sm| Process { instance, ..always(pid, sm) };
    let machine = Machine::of(vec![Device {
        mig: vec![4, 2, 1],
        processes: vec![on(2, 0, 40.0), on(3, 1, 20.0), on(3, 1, 0.0)],
        ..Device::default()
    }]);
    let run = machine.run(1.0);
    assert!(run.of(0).iter().all(|window| window.method == GpuMethod::Mig));
    let books = run.books(0, 50.0);
    near("4:2", books.by_user[&user(2)], 2.0 * books.by_user[&user(3)], 1e-9);
    run.check(0, &machine, 0.01);
    assert!(run.warnings.is_empty(), "{:?}", run.warnings);
}

#[test]
fn utilisation_of_instances_decides_where_it_is_known() {
    let on = |pid, instance, sm| Process { instance, ..always(pid, sm) };
    let leaving = Process { to_s: 0.75, ..on(4, 2, 10.0) };
    let machine = Machine::of(vec![Device {
        mig: vec![4, 2, 1],
        gpm: true,
        processes: vec![on(2, 0, 10.0), on(3, 1, 25.0), leaving],
        ..Device::default()
    }]);
    let run = machine.run(1.4);
    assert!(run.of(0)[1..].iter().all(|window| window.method == GpuMethod::Mig));
    run.check(0, &machine, 0.15);
    let (from_s, to_s) = run.span(0);
    let truth = machine.scenario.devices[0].dynamic_joules(3, from_s, to_s);
    near("user 3", run.books(0, 50.0).by_user[&user(3)], truth, 0.05);
}

#[test]
fn a_process_that_vanished_unseen_takes_its_share_to_nobody() {
    let machine = Machine::of(vec![device(vec![always(2, 50.0), always(7, 50.0)])]);
    let owner = |pid: u32| (pid == 2).then_some(user(2));
    let run = machine.run_with(1.0, &machine.options(), owner);
    let books = run.books(0, 50.0);
    near("half", books.nobody, books.by_user[&user(2)], 0.01);
}

#[test]
fn a_process_that_vanished_is_remembered() {
    let machine = Machine::of(vec![device(vec![process(2, 0.0, 0.55, 50.0), always(3, 50.0)])]);
    let start = Instant::now();
    // Only while it lives can it be asked whose it is.
    let owner = move |pid: u32| {
        (pid != 2 || start.elapsed() < Duration::from_millis(500)).then(|| user(pid.into()))
    };
    let run = machine.run_with(1.0, &machine.options(), owner);
    run.check(0, &machine, 0.02);
    assert!(run.books(0, 50.0).nobody < 1e-9);
}

struct Reused {
    exit_ns: u64,
}

impl PidOwner for Reused {
    fn living(&self, _: u32) -> Whose {
        Whose::User(user(3))
    }

    fn exited(&self, _: u32) -> Option<(User, u64)> {
        (self.exit_ns <= monotonic_ns()).then_some((user(2), self.exit_ns))
    }
}

#[test]
fn a_pid_that_changed_hands_between_two_looks_is_two_users() {
    let device = device(vec![process(7, 0.4, 0.8, 60.0), process(7, 0.85, 1.6, 60.0)]);
    let machine = Machine::of(vec![device]);
    let options = GpuOptions { process_interval: Duration::from_secs(1), ..machine.options() };
    let owner = Reused { exit_ns: machine.start_ns + 800_000_000 };
    let run = machine.run_with(1.8, &options, owner);
    let books = run.books(0, 50.0);
    near("the first", books.by_user[&user(2)], 150.0 * 0.4, 0.05);
    near("the second", books.by_user[&user(3)], 150.0 * 0.75, 0.05);
}

#[test]
fn real_processes_are_found_in_their_cgroups() {
    let machine = Machine::of(vec![device(vec![always(std::process::id(), 50.0)])]);
    let hierarchies = Hierarchies::find(&Roots::default()).unwrap();
    let hierarchy = hierarchies.iter().next().unwrap();
    let Place::Below(path) = hierarchy.own_place() else { panic!("{hierarchy} does not show us") };
    let watched = Watched::default();
    watched.insert(std::fs::metadata(hierarchy.mount.join(path)).unwrap().ino(), WorkloadId(5));
    let owners = Owners::new("/proc".as_ref(), hierarchy, watched);
    let owners = move |pid: u32| match owners.living(pid) {
        Owner::User(user) => Some(user),
        other => panic!("{other:?}"),
    };
    let run = machine.run_with(0.8, &machine.options(), owners);
    assert!(run.of(0).iter().all(|window| window.usage[0].user == user(5)), "{:?}", run.of(0));
}

// ---- where the energy comes from -----------------------------------------------------------------

#[test]
fn power_samples_stand_in_for_a_counter() {
    let machine = Machine::of(vec![Device { refresh_ms: None, ..fleeting() }]);
    let run = machine.run(1.8);
    assert_eq!(run.source.devices[0].method, GpuReadMethod::Power);
    // Where power jumps, the straight line between two samples is off by half their distance.
    run.check(0, &machine, 0.05);
}

#[test]
fn power_readings_stand_in_for_samples() {
    let machine = Machine::of(vec![Device {
        refresh_ms: None,
        power_samples: false,
        processes: vec![always(2, 70.0), always(3, 30.0)],
        ..Device::default()
    }]);
    let run = machine.run(1.0);
    assert_eq!(run.source.devices[0].method, GpuReadMethod::Power);
    run.check(0, &machine, 0.01);
}

#[test]
fn a_slow_counter_is_not_made_finer_than_it_is() {
    let slow = Device { refresh_ms: Some(100.0), ..device(vec![always(2, 70.0)]) };
    let machine = Machine::of(vec![slow]);
    let run = machine.run(1.5);
    run.check(0, &machine, 0.015);
    for window in run.of(0) {
        let resolution = window.resolution_ms.unwrap_or(100.0);
        assert!((80.0..130.0).contains(&resolution), "{window:?}");
    }
}

#[test]
fn a_counter_that_never_moves_during_a_close_look_still_gives_windows() {
    let slow = Device { refresh_ms: Some(600.0), ..device(vec![always(2, 70.0)]) };
    let machine = Machine::of(vec![slow]);
    let options = GpuOptions {
        interval: Duration::from_millis(50),
        // As often as the counter moves, and 250 ms after it.
        process_interval: Duration::from_millis(600),
        ..machine.options()
    };
    let run = machine.run_with(2.6, &options, pid_is_user);
    run.check_tiles(0);
    let longest = run.of(0).iter().map(|window| window.to_ns - window.from_ns).max().unwrap();
    assert!(longest < 1_000_000_000, "{longest} ns");
}

#[test]
fn time_stamps_from_the_future_do_not_end_the_samples() {
    let ahead = Fault { ahead_s: 3600.0, from_s: 0.3, to_s: 0.6, ..Fault::default() };
    let memory = |pid, sm, mib| Process { memory_mib: Some(mib), ..always(pid, sm) };
    let counter = device(vec![memory(2, 70.0, 100), memory(3, 30.0, 900)]);
    let power = Device { refresh_ms: None, ..counter.clone() };
    let machine = Machine::with_faults(vec![counter, power], vec![ahead]);
    let run = machine.run(1.6);
    for index in [0, 1] {
        run.check_tiles(index);
        let late = |window: &&GpuWindow| window.from_ns > run.start_ns + 1_000_000_000;
        let methods: Vec<_> = run.of(index).iter().filter(late).map(|w| w.method).collect();
        assert!(methods.len() > 1, "{:?}", run.of(index));
        assert!(methods.iter().all(|method| *method == GpuMethod::Utilisation), "{methods:?}");
    }
}

#[test]
fn who_ran_before_a_counter_went_back_is_asked_first() {
    let users = vec![process(2, 0.0, 0.4, 60.0), process(3, 0.4, 1e9, 60.0)];
    let machine = Machine::of(vec![Device { reset_s: Some(1.0), ..device(users) }]);
    // The last survey before that is at about 0.2 s.
    let options = GpuOptions { process_interval: Duration::from_millis(1500), ..machine.options() };
    let run = machine.run_with(1.2, &options, pid_is_user);
    assert_eq!(run.warned("jumped"), 1, "{:?}", run.warnings);
    let device = &machine.scenario.devices[0];
    let (from_s, to_s) = run.span(0);
    let truth = device.dynamic_joules(2, from_s, to_s);
    near("who left", run.books(0, 50.0).by_user[&user(2)], truth, 0.1);
}

#[test]
fn a_counter_that_goes_back_costs_only_that_moment() {
    let reset = Device { reset_s: Some(0.9), ..device(vec![always(2, 70.0)]) };
    let machine = Machine::of(vec![reset, device(vec![always(2, 70.0)])]);
    let run = machine.run(1.8);
    assert_eq!(run.warned("jumped"), 1, "{:?}", run.warnings);
    let device = &machine.scenario.devices[0];
    let (from_s, to_s) = run.span(0);
    let missing = device.joules(from_s, to_s) - run.books(0, 50.0).measured;
    assert!((0.0..device.watts(1.0) * 0.1).contains(&missing), "{missing} J");
    assert!(run.of(0).iter().all(|window| window.millijoules >= 0.0));
    run.check(1, &machine, 0.01);
}

#[test]
fn a_device_lost_and_returned_costs_no_other_a_joule() {
    let devices = vec![device(vec![always(2, 70.0)]), device(vec![always(2, 40.0)])];
    let gone =
        Fault { device: Some(0), from_s: 0.8, to_s: 1.3, code: GPU_IS_LOST, ..Fault::default() };
    let machine = Machine::with_faults(devices, vec![gone]);
    let run = machine.run(2.2);
    assert_eq!(run.warned("stopped answering"), 1, "{:?}", run.warnings);
    assert_eq!(run.warned("answers again"), 1, "{:?}", run.warnings);
    run.check(1, &machine, 0.01);

    let seconds = |ns: u64| (ns - run.start_ns) as f64 * 1e-9;
    let device = &machine.scenario.devices[0];
    // Its counter went on: what it counted meanwhile is in the books, and nobody's.
    run.check_tiles(0);
    let unattended: Vec<&GpuWindow> = run.of(0).iter().filter(|w| w.unknown_users).collect();
    let [gap] = unattended[..] else { panic!("{unattended:?}") };
    let (from_s, to_s) = (seconds(gap.from_ns), seconds(gap.to_ns));
    assert!((0.6..=0.85).contains(&from_s) && (1.3..1.75).contains(&to_s), "{from_s}..{to_s}");
    near("meanwhile", gap.millijoules / 1e3, device.joules(from_s, to_s), 0.05);
    for window in run.of(0).iter().filter(|window| !window.unknown_users) {
        let (from_s, to_s) = (seconds(window.from_ns), seconds(window.to_ns));
        assert!(to_s <= 0.85 || from_s >= 1.25, "{from_s}..{to_s}");
    }
    let truth: f64 = run
        .of(0)
        .iter()
        .map(|window| device.joules(seconds(window.from_ns), seconds(window.to_ns)))
        .sum();
    near("the lost device", run.books(0, 50.0).measured, truth, 0.02);
}

// ---- a slow driver -------------------------------------------------------------------------------

#[test]
fn a_slow_driver_never_holds_up_the_tick() {
    let devices = (0..8).map(|i| device(vec![always(2 + i, 50.0)])).collect();
    let machine = Machine::new(Scenario { delay_ms: 10.0, devices, ..Scenario::default() });
    let mut options = machine.options();
    options.interval = Duration::from_millis(100);
    let (meter, ..) = GpuMeter::start(options, pid_is_user).unwrap();
    let mut events = Vec::new();
    let mut ticks = Vec::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(2500) {
        std::thread::sleep(Duration::from_millis(2));
        let before = Instant::now();
        meter.drain(&mut events);
        ticks.push(before.elapsed());
    }
    let stop_ns = monotonic_ns();
    let before = Instant::now();
    let end = meter.finish(Duration::from_secs(3));
    assert!(before.elapsed() < Duration::from_millis(3100), "{:?}", before.elapsed());
    events.extend(end.events);
    ticks.sort_unstable();
    let p99 = ticks[ticks.len() * 99 / 100];
    assert!(p99 < Duration::from_millis(1), "{p99:?}");
    assert!(end.nvml_us.p50.unwrap() >= 10_000.0, "{:?}", end.nvml_us);

    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for event in events {
        let Event::Gpu(window) = event else { panic!("{event:?}") };
        let before = last.insert(window.uuid.clone(), window.to_ns);
        assert!(before.is_none_or(|to_ns| to_ns == window.from_ns));
    }
    assert_eq!(last.len(), 8);
    assert!(last.values().all(|to_ns| *to_ns >= stop_ns), "windows reach past the end of the run");
}

#[test]
fn many_devices_of_a_slow_driver_all_get_their_turn() {
    let devices = (0..16).map(|i| device(vec![always(2 + i, 50.0)])).collect();
    let machine = Machine::new(Scenario { delay_ms: 10.0, devices, ..Scenario::default() });
    // To read all takes far longer than the interval.
    let (meter, ..) = GpuMeter::start(machine.options(), pid_is_user).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    let mut events = Vec::new();
    meter.drain(&mut events);
    let stop_ns = monotonic_ns();
    let newest = |events: &[Event]| -> BTreeMap<String, u64> {
        let windows = events.iter().map(|event| match event {
            Event::Gpu(window) => (window.uuid.clone(), window.to_ns),
            event => panic!("{event:?}"),
        });
        windows.collect()
    };
    assert_eq!(newest(&events).len(), 16, "surveyed");
    // There is no time to survey all of them once more.
    let last = newest(&meter.finish(Duration::from_millis(1200)).events);
    assert_eq!(last.len(), 16);
    assert!(last.values().all(|to_ns| *to_ns >= stop_ns), "windows reach past the end of the run");
}

#[test]
fn a_driver_that_hangs_is_left_behind() {
    let hang = Fault { delay_ms: 4000.0, from_s: 0.6, device: Some(0), ..Fault::default() };
    let machine = Machine::with_faults(vec![device(vec![always(2, 50.0)])], vec![hang]);
    let (meter, ..) = GpuMeter::start(machine.options(), pid_is_user).unwrap();
    std::thread::sleep(Duration::from_millis(900));
    let before = Instant::now();
    let end = meter.finish(Duration::from_millis(200));
    assert!(before.elapsed() < Duration::from_millis(400), "{:?}", before.elapsed());
    let warned = end
        .events
        .iter()
        .any(|event| matches!(event, Event::Warning { message } if message.contains("in time")));
    assert!(warned, "{:?}", end.events);
}

// ---- bad input -----------------------------------------------------------------------------------

fn refused(options: GpuOptions) -> String {
    let error = GpuMeter::start(GpuOptions { required: true, ..options.clone() }, pid_is_user)
        .map(|(_, source, _)| source)
        .unwrap_err();
    let Error::Cannot(message) = error else { panic!("{error:?}") };
    // Not asked for by name: a warning, no GPU, and a meter that yields nothing.
    let (meter, source, warnings) =
        GpuMeter::start(GpuOptions { required: false, ..options }, pid_is_user).unwrap();
    assert_eq!((source.kind, source.devices.len()), (GpuEnergyKind::None, 0));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    let mut events = Vec::new();
    meter.drain(&mut events);
    events.extend(meter.finish(Duration::from_secs(1)).events);
    assert!(events.is_empty(), "{events:?}");
    message
}

#[test]
fn what_is_not_nvml_is_refused_in_a_sentence() {
    let machine = Machine::of(vec![]);
    let message = refused(machine.options());
    assert!(message.contains("no GPU") && message.contains("nvidia-smi"), "{message}");

    let with = |library: PathBuf| GpuOptions { library: Some(library), ..machine.options() };
    let text = machine.directory.path().join("scenario.json");
    assert!(refused(with(text)).contains("cannot load"));
    assert!(refused(with("/nonexistent/libnvidia-ml.so".into())).contains("cannot load"));
    assert!(refused(with("libc.so.6".into())).contains("it lacks nvmlInit_v2"));
}

#[test]
fn a_driver_that_is_not_loaded_is_refused_in_a_sentence() {
    let fault = Fault { call: "nvmlInit".into(), code: DRIVER_NOT_LOADED, ..Fault::default() };
    let machine = Machine::with_faults(vec![device(vec![])], vec![fault]);
    assert!(refused(machine.options()).contains("driver is not loaded"));
}

#[test]
fn no_library_and_no_driver_is_not_worth_a_word() {
    let empty = tempfile::tempdir().unwrap();
    let options = GpuOptions {
        required: false,
        library: None,
        procfs: empty.path().into(),
        interval: Duration::from_millis(10),
        process_interval: Duration::from_millis(100),
    };
    let (_, source, warnings) = GpuMeter::start(options, pid_is_user).unwrap();
    // On a machine with a GPU there is something to find; elsewhere there is nothing to say.
    if source.kind == GpuEnergyKind::None {
        assert!(warnings.is_empty(), "{warnings:?}");
    }
}

#[test]
fn a_library_without_the_newer_functions_does_what_it_can() {
    let processes = vec![always(2, 60.0), Process { memory_mib: Some(3072), ..always(3, 30.0) }];
    let machine = Machine::of(vec![device(processes)]).without(&[
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetProcessUtilization",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetHandleByUUID",
        "nvmlDeviceGetMigMode",
    ]);
    let run = machine.run(1.0);
    assert_eq!(run.warned("lacks nvmlDeviceGetTotalEnergyConsumption"), 1, "{:?}", run.warnings);
    assert_eq!(run.source.devices[0].method, GpuReadMethod::Power);
    let books = run.books(0, 50.0);
    near("1:3", 3.0 * books.by_user[&user(2)], books.by_user[&user(3)], 1e-9);
}

#[test]
fn a_library_without_what_is_needed_is_refused() {
    let machine = Machine::of(vec![device(vec![])]).without(&["nvmlDeviceGetUUID"]);
    assert!(refused(machine.options()).contains("it lacks nvmlDeviceGetUUID"));
}

#[test]
fn nonsense_from_the_driver_is_told_and_survived() {
    for (call, told) in [
        ("nvmlDeviceGetComputeRunningProcesses", "does not tell who is on it"),
        ("nvmlDeviceGetProcessUtilization", "does not tell who computes on it"),
        ("nvmlDeviceGetSamples", "does not tell how busy it is"),
        ("nvmlDeviceGetFieldValues", "does not tell its power"),
        ("nvmlDeviceGetName", ""),
        ("nvmlDeviceGetUUID", ""),
    ] {
        let fault = Fault { call: call.into(), nonsense: true, ..Fault::default() };
        let machine = Machine::with_faults(vec![device(vec![always(2, 60.0)])], vec![fault]);
        let run = machine.run(0.7);
        let windows: Vec<&GpuWindow> = run.windows.values().flatten().collect();
        assert!(!windows.is_empty(), "{call}");
        let expected = usize::from(!told.is_empty());
        assert_eq!(run.warnings.len(), expected, "{call}: {:?}", run.warnings);
        assert_eq!(run.warned(told), expected, "{call}: {:?}", run.warnings);
        if call == "nvmlDeviceGetName" {
            assert_eq!(run.source.devices[0].name, "x".repeat(96));
        }
    }
}

#[test]
fn a_nonsensical_number_of_devices_is_refused() {
    let fault = Fault { call: "nvmlDeviceGetCount".into(), nonsense: true, ..Fault::default() };
    let machine = Machine::with_faults(vec![device(vec![])], vec![fault]);
    assert!(refused(machine.options()).contains("4294967295 devices"));
}

#[test]
fn a_counter_gone_mad_is_not_energy() {
    let fault = Fault {
        call: "nvmlDeviceGetTotalEnergyConsumption".into(),
        nonsense: true,
        from_s: 0.6,
        to_s: 0.8,
        ..Fault::default()
    };
    let machine = Machine::with_faults(vec![device(vec![always(2, 60.0)])], vec![fault]);
    let run = machine.run(1.4);
    assert_eq!(run.warned("jumped"), 1, "{:?}", run.warnings);
    let most = machine.scenario.devices[0].joules(0.0, 1.6);
    assert!(run.books(0, 50.0).measured < most);
}

#[test]
fn nonsense_about_mig_is_told_and_survived() {
    for call in ["nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetAttributes"] {
        let fault = Fault { call: call.into(), nonsense: true, ..Fault::default() };
        let mig = Device { mig: vec![4, 3], ..device(vec![always(2, 60.0)]) };
        let machine = Machine::with_faults(vec![mig], vec![fault]);
        let run = machine.run(0.7);
        assert_eq!(run.warned("MIG instance"), 1, "{call}: {:?}", run.warnings);
        assert!(run.of(0).iter().all(|window| window.unknown_users), "{call}");
    }
}

#[test]
fn without_permission_nobody_is_billed_but_energy_is_measured() {
    let denied = |call: &str| Fault { call: call.into(), code: NO_PERMISSION, ..Fault::default() };
    let machine = Machine::with_faults(
        vec![device(vec![always(2, 60.0)])],
        vec![
            denied("nvmlDeviceGetComputeRunningProcesses"),
            denied("nvmlDeviceGetGraphicsRunningProcesses"),
            denied("nvmlDeviceGetProcessUtilization"),
        ],
    );
    let run = machine.run(0.8);
    assert_eq!(run.warned("permission"), 2, "{:?}", run.warnings);
    assert!(run.of(0).iter().all(|window| window.unknown_users && window.usage.is_empty()));
    let (from_s, to_s) = run.span(0);
    let truth = machine.scenario.devices[0].joules(from_s, to_s);
    near("device", run.books(0, 50.0).measured, truth, 0.02);
}

struct InContainer;

impl PidOwner for InContainer {
    fn living(&self, _: u32) -> Whose {
        panic!("a pid of another namespace must not be looked up here")
    }

    fn sees_host_pids(&self) -> bool {
        false
    }
}

#[test]
fn host_pids_are_not_looked_up_in_a_container() {
    let machine = Machine::of(vec![device(vec![always(2, 60.0)])]);
    let run = machine.run_with(0.8, &machine.options(), InContainer);
    assert_eq!(run.warned("pid namespace"), 1, "{:?}", run.warnings);
    assert!(!run.of(0).is_empty());
    assert!(run.of(0).iter().all(|window| window.unknown_users && window.usage.is_empty()));
}
