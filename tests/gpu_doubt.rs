//! What a GPU's driver says and what is believed of it, against a simulated driver
//! (`tests/fake-nvml`) whose every joule is known: readings that cannot be, counters that do not
//! count, what is not told, lists of another layout, and for each of them its neighbours that are
//! right and must not be doubted.

#![allow(clippy::unwrap_used)]

#[path = "sim/gpu.rs"]
mod gpu;
#[path = "sim/gpu_meter.rs"]
mod gpu_meter;

use std::time::{Duration, Instant};

use ecoprobe::base::id::User;
use ecoprobe::door::{GpuMeter, GpuOptions, PidOwner, Whose};
use ecoprobe::event::sources::GpuReadMethod;
use ecoprobe::event::{Event, GpuMethod, GpuWindow};
use fake_nvml::{Device, Fault, Process, Scenario, Utilisation};

use crate::gpu::{DRIVER_NOT_LOADED, GPU_IS_LOST, Machine, NOT_FOUND, always, device, process};
use crate::gpu_meter::{Run, near, pid_is_user, user};

/// Holds what was measured to what was drawn.
#[track_caller]
fn check_measured(run: &Run, machine: &Machine, tolerance: f64) {
    let (from_s, to_s) = run.span(0);
    let truth = machine.scenario.devices[0].joules(from_s, to_s);
    near("measured", run.books(0, 50.0).measured, truth, tolerance);
}

// ---- power ---------------------------------------------------------------------------------------

/// No counter and no samples: our own readings of power, the average of which the driver gives only.
fn only_power() -> Device {
    Device {
        refresh_ms: None,
        power_samples: false,
        instant_power: false,
        ..device(vec![always(2, 40.0)])
    }
}

fn power_is(value: u64, from_s: f64, to_s: f64) -> Fault {
    let call = "nvmlDeviceGetPowerUsage".into();
    Fault { call, value: Some(value), from_s, to_s, ..Fault::default() }
}

#[test]
fn first_powers_that_cannot_be_are_no_base() {
    // Far beyond, a little beyond any GPU, within, and nothing at all.
    for garbage in [4_294_967_294, 3_700_000, 2_000_000, 900_000, 0] {
        let machine = Machine::with_faults(vec![only_power()], vec![power_is(garbage, 0.0, 0.05)]);
        let run = machine.run(1.5);
        check_measured(&run, &machine, 0.01);
        assert_eq!(run.source.devices[0].method, GpuReadMethod::Power);
        assert!(run.span(0).0 < 0.3, "{garbage}: begins at {} s", run.span(0).0);
        assert_eq!(run.warned("cannot be true"), usize::from(garbage > 3_000_000), "{garbage}");
    }
}

#[test]
fn a_power_that_cannot_be_is_no_base_for_the_next() {
    for (limit_watts, garbage) in [(None, 4_294_967_295), (None, 3_700_000), (Some(300.0), 700_000)]
    {
        let machine = Machine::with_faults(
            vec![Device { limit_watts, ..only_power() }],
            vec![power_is(garbage, 0.8, 0.9)],
        );
        let run = machine.run(1.5);
        check_measured(&run, &machine, 0.01);
        run.check_tiles(0);
        assert_eq!(run.warned("cannot be true"), 1, "{:?}", run.warnings);
    }
}

/// What a large device draws is not refused, nor a jump to its limit.
#[test]
fn a_power_that_can_be_is_believed() {
    let large = Device {
        full_watts: 2300.0,
        limit_watts: Some(2300.0),
        instant_power: true,
        processes: vec![always(2, 10.0), process(3, 0.7, 1.1, 90.0)],
        ..only_power()
    };
    let machine = Machine::of(vec![large]);
    let run = machine.run(1.5);
    check_measured(&run, &machine, 0.02);
    assert_eq!(run.warned("cannot be true"), 0, "{:?}", run.warnings);
}

#[test]
fn samples_that_stop_coming_give_way_to_readings() {
    let call = "nvmlDeviceGetSamples".into();
    let none = Fault { call, code: NOT_FOUND, from_s: 0.8, ..Fault::default() };
    let sampled = Device { refresh_ms: None, ..device(vec![always(2, 40.0)]) };
    let machine = Machine::with_faults(vec![sampled], vec![none]);
    let run = machine.run(5.5);
    assert_eq!(run.warned("no new samples"), 1, "{:?}", run.warnings);
    let stop_s = (run.stop_ns - run.start_ns) as f64 * 1e-9;
    assert!(run.span(0).1 >= stop_s - 0.1, "{:?}", run.span(0));
    // What lies in between is not known, and not made up.
    let measured_s: f64 =
        run.of(0).iter().map(|window| (window.to_ns - window.from_ns) as f64 * 1e-9).sum();
    assert!((1.8..3.0).contains(&measured_s), "{measured_s}");
    near("measured", run.books(0, 50.0).measured, 150.0 * measured_s, 0.01);
}

// ---- the energy counter --------------------------------------------------------------------------

fn counter_is(value: u64, from_s: f64, to_s: f64) -> Fault {
    let call = "nvmlDeviceGetTotalEnergyConsumption".into();
    Fault { call, value: Some(value), from_s, to_s, ..Fault::default() }
}

#[test]
fn a_counter_that_steps_aside_and_returns_loses_no_joule() {
    // It stands at 123,456,789 mJ when it begins. Back by a little, by all; ahead by a little more than
    // can be drawn, and by far; all ones, which is no value.
    for value in [123_400_000, 0, 133_456_789, 1 << 60, u64::MAX] {
        for to_s in [0.811, 1.1] {
            let machine = Machine::with_faults(
                vec![device(vec![always(2, 70.0)])],
                vec![counter_is(value, 0.8, to_s)],
            );
            let run = machine.run(2.0);
            println!("{value} until {to_s} s");
            // That the windows tile says that no moment is left out.
            run.check(0, &machine, 0.03);
            assert_eq!(
                run.warned("were refused") + run.warned("was refused") + run.warned("are refused"),
                1,
                "{value}: {:?}",
                run.warnings
            );
            assert_eq!(run.warned("stopped answering"), 0, "{:?}", run.warnings);
        }
    }
}

#[test]
fn a_first_value_that_is_wrong_is_no_base_for_the_counter() {
    for value in [0, 1_000_000, 1 << 60, u64::MAX] {
        let machine = Machine::with_faults(
            vec![device(vec![always(2, 70.0)])],
            vec![counter_is(value, 0.0, 0.03)],
        );
        let run = machine.run(1.5);
        run.check(0, &machine, 0.03);
        assert_eq!(run.source.devices[0].method, GpuReadMethod::Counter, "{value}");
    }
}

#[test]
fn a_counter_that_stands_still_gives_way_to_power() {
    // At 0, as that of a vGPU; and elsewhere, without power of the moment.
    for (counter_start_mj, instant_power) in [(0, true), (123_456_789, true), (0, false)] {
        let dead = Device {
            counter_start_mj,
            instant_power,
            power_samples: false,
            stops_s: Some(0.0),
            ..device(vec![always(2, 70.0)])
        };
        let machine = Machine::of(vec![dead, device(vec![always(3, 70.0)])]);
        let run = machine.run(3.0);
        let methods: Vec<_> = run.source.devices.iter().map(|device| device.method).collect();
        assert_eq!(methods, [GpuReadMethod::Power, GpuReadMethod::Counter]);
        assert_eq!(run.warned("stands still while power is drawn"), 1, "{:?}", run.warnings);
        check_measured(&run, &machine, 0.02);
        let stop_s = (run.stop_ns - run.start_ns) as f64 * 1e-9;
        let (from_s, to_s) = run.span(0);
        assert!(from_s < 1.6 && to_s >= stop_s - 0.1, "{from_s}..{to_s} of {stop_s}");
    }
}

#[test]
fn a_counter_that_stops_later_gives_way_too() {
    let stops = Device { stops_s: Some(1.0), ..device(vec![always(2, 70.0)]) };
    let machine = Machine::of(vec![stops]);
    let run = machine.run(5.5);
    assert_eq!(run.source.devices[0].method, GpuReadMethod::Counter);
    assert_eq!(run.warned("stands still while it draws power"), 1, "{:?}", run.warnings);
    check_measured(&run, &machine, 0.02);
}

/// Slow counters, an idle device, one that is off, one whose power is not told: all of them count.
#[test]
fn a_counter_that_counts_is_not_misjudged() {
    let idle = |static_watts, refresh_ms| Device {
        static_watts,
        refresh_ms: Some(refresh_ms),
        ..device(vec![])
    };
    let machine = Machine::of(vec![
        idle(5.0, 100.0),
        idle(1.5, 100.0),
        idle(20.0, 700.0),
        idle(0.0, 100.0),
        Device { instant_power: false, ..idle(8.0, 1000.0) },
        Device { counter_start_mj: 0, ..idle(30.0, 100.0) },
    ]);
    let run = machine.run(5.0);
    for source in &run.source.devices {
        assert_eq!(source.method, GpuReadMethod::Counter, "{source:?}");
    }
    assert!(run.warnings.is_empty(), "{:?}", run.warnings);
}

// ---- a module ------------------------------------------------------------------------------------

#[test]
fn a_counter_of_a_whole_module_is_not_the_gpus() {
    for name in ["NVIDIA GH200 480GB", "NVIDIA X1"] {
        let shared = Device {
            name: name.into(),
            cpu_watts: Some(150.0),
            processes: vec![always(2, 70.0)],
            ..Device::default()
        };
        let machine = Machine::of(vec![shared]);
        let run = machine.run(1.5);
        assert_eq!(run.source.devices[0].method, GpuReadMethod::Power, "{name}");
        assert_eq!(run.warned("shares a module with a CPU"), 1, "{:?}", run.warnings);
        check_measured(&run, &machine, 0.01);
    }
}

#[test]
fn a_gpu_of_its_own_keeps_its_counter() {
    for name in ["NVIDIA H200", "NVIDIA B200", "NVIDIA GeForce RTX 5090"] {
        let machine =
            Machine::of(vec![Device { name: name.into(), ..device(vec![always(2, 70.0)]) }]);
        let run = machine.run(1.0);
        assert_eq!(run.source.devices[0].method, GpuReadMethod::Counter, "{name}");
        run.check(0, &machine, 0.015);
    }
}

// ---- who is on it --------------------------------------------------------------------------------

/// Shares go by memory: there is no utilisation.
fn by_memory(memory_mib: &[(u32, Option<u64>)], entry_bytes: usize) -> Device {
    let processes = memory_mib
        .iter()
        .map(|&(pid, memory_mib)| Process { memory_mib, ..always(pid, 50.0) })
        .collect();
    Device { utilisation: Utilisation::None, entry_bytes, processes, ..Device::default() }
}

#[test]
fn memory_that_is_not_told_is_not_none() {
    for memory in [[None, Some(1024)], [Some(1024), None], [None, None]] {
        let machine = Machine::of(vec![by_memory(&[(2, memory[0]), (3, memory[1])], 24)]);
        let run = machine.run(1.0);
        let books = run.books(0, 50.0);
        near("alike", books.by_user[&user(2)], books.by_user[&user(3)], 1e-9);
        assert_eq!(run.warned("how much memory"), 1, "{:?}", run.warnings);
    }
    // Told of all, or of no consequence.
    let untold = |pid, sm| Process { memory_mib: None, ..always(pid, sm) };
    let machine = Machine::of(vec![
        by_memory(&[(2, Some(3000)), (3, Some(1000))], 24),
        device(vec![untold(2, 70.0), untold(3, 30.0)]),
        by_memory(&[(2, None)], 24),
    ]);
    let run = machine.run(1.0);
    let books = run.books(0, 50.0);
    near("3:1", books.by_user[&user(2)], 3.0 * books.by_user[&user(3)], 1e-9);
    run.check(1, &machine, 0.015);
    assert!(run.of(2).iter().all(|window| window.method == GpuMethod::Sole));
    assert!(run.warnings.is_empty(), "{:?}", run.warnings);
}

#[test]
fn tenants_of_an_instance_share_alike_where_memory_is_not_told() {
    let on = |pid, memory_mib| Process { memory_mib, ..always(pid, 20.0) };
    let machine = Machine::of(vec![Device {
        mig: vec![4, 3],
        processes: vec![on(2, None), on(3, Some(1024))],
        ..Device::default()
    }]);
    let run = machine.run(0.8);
    let books = run.books(0, 50.0);
    near("alike", books.by_user[&user(2)], books.by_user[&user(3)], 1e-9);
    assert_eq!(run.warned("how much memory"), 1, "{:?}", run.warnings);
}

#[test]
fn process_lists_of_either_layout_are_read() {
    for entry_bytes in [24, 32] {
        for count in [1, 2, 3, 40] {
            let memory: Vec<_> = (0..count).map(|i| (2 + i, Some(1000 + u64::from(i)))).collect();
            let machine = Machine::of(vec![by_memory(&memory, entry_bytes)]);
            let run = machine.run(0.5);
            let window = &run.of(0)[0];
            let weights: Vec<(User, f64)> =
                window.usage.iter().map(|usage| (usage.user, usage.weight)).collect();
            assert_eq!(weights.len(), count as usize, "{entry_bytes} {count}: {window:?}");
            for (i, (found, weight)) in weights.iter().enumerate().filter(|_| count > 1) {
                assert_eq!(*found, user(2 + i as u64));
                let relative = weight / weights[0].1;
                assert!((relative - (1000.0 + i as f64) / 1000.0).abs() < 1e-9, "{weights:?}");
            }
            assert!(run.warnings.is_empty(), "{:?}", run.warnings);
        }
    }
}

#[test]
fn a_list_that_makes_no_sense_is_nobodys_share() {
    let machine = Machine::of(vec![by_memory(&[(2, Some(1000)), (0, Some(1000))], 24)]);
    let run = machine.run(0.8);
    assert_eq!(run.warned("no pid can be right"), 1, "{:?}", run.warnings);
    assert!(run.of(0).iter().all(|window| window.unknown_users && window.usage.is_empty()));
}

struct HalfBlind;

impl PidOwner for HalfBlind {
    fn living(&self, pid: u32) -> Whose {
        match pid {
            2 => Whose::User(user(2)),
            _ => Whose::Unknown("its cgroup is hidden".into()),
        }
    }
}

#[test]
fn one_whose_owner_cannot_be_told_is_nobody_and_not_other() {
    for pids in [vec![2, 3, 4], vec![3]] {
        let on = pids.iter().map(|pid| always(*pid, 25.0)).collect();
        let machine = Machine::of(vec![device(on)]);
        let run = machine.run_with(1.0, &machine.options(), HalfBlind);
        assert_eq!(run.warned("its cgroup is hidden"), 1, "{:?}", run.warnings);
        let books = run.books(0, 50.0);
        assert!(!books.by_user.contains_key(&User::Other), "{books:?}");
        let known = books.by_user.get(&user(2)).copied().unwrap_or(0.0);
        let rest = pids.iter().filter(|pid| **pid != 2).count() as f64;
        near("nobody", books.nobody, if rest > 1.0 { rest * known } else { books.nobody }, 0.01);
        assert!(books.nobody > 0.0);
    }
}

// ---- away and back -------------------------------------------------------------------------------

fn gone(from_s: f64, to_s: f64, code: u32) -> Fault {
    Fault { device: Some(0), from_s, to_s, code, ..Fault::default() }
}

#[test]
fn what_was_drawn_while_a_device_did_not_answer_is_in_the_books() {
    for code in [GPU_IS_LOST, DRIVER_NOT_LOADED] {
        let users = vec![process(2, 0.0, 1.0, 70.0), process(3, 1.0, 1e9, 40.0)];
        let machine = Machine::with_faults(vec![device(users)], vec![gone(0.8, 1.3, code)]);
        let run = machine.run(2.2);
        run.check_tiles(0);
        check_measured(&run, &machine, 0.02);
        let away: Vec<&GpuWindow> = run.of(0).iter().filter(|w| w.unknown_users).collect();
        assert_eq!(away.len(), 1, "{away:?}");
        assert!(away[0].usage.is_empty() && away[0].millijoules > 0.0);
    }
}

#[test]
fn what_a_counter_that_began_anew_does_not_tell_is_not_made_up() {
    let reset = Device { reset_s: Some(1.0), ..device(vec![always(2, 70.0)]) };
    let machine = Machine::with_faults(vec![reset], vec![gone(0.8, 1.3, GPU_IS_LOST)]);
    let run = machine.run(2.2);
    assert_eq!(run.warned("began anew while it did not answer"), 1, "{:?}", run.warnings);
    assert!(run.of(0).iter().all(|window| !window.unknown_users));
    let away = run.of(0).windows(2).filter(|pair| pair[0].to_ns != pair[1].from_ns).count();
    assert_eq!(away, 1, "{:?}", run.of(0));
}

// ---- a driver that takes its time ----------------------------------------------------------------

#[test]
fn a_driver_that_takes_long_to_shut_down_has_told_all_there_is() {
    let devices = vec![device(vec![always(2, 70.0)])];
    let machine = Machine::new(Scenario { shutdown_ms: 60_000.0, devices, ..Scenario::default() });
    let (meter, ..) = GpuMeter::start(machine.options(), pid_is_user).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let before = Instant::now();
    let end = meter.finish(Duration::from_secs(10));
    assert!(before.elapsed() < Duration::from_secs(3), "{:?}", before.elapsed());
    assert!(end.events.iter().all(|event| matches!(event, Event::Gpu(_))), "{:?}", end.events);
}

#[test]
fn that_a_driver_hangs_is_said_while_it_does() {
    let hang = Fault { delay_ms: 60_000.0, from_s: 0.5, ..gone(0.5, 1e9, 0) };
    let machine = Machine::with_faults(vec![device(vec![always(2, 50.0)])], vec![hang]);
    let options = GpuOptions { required: false, ..machine.options() };
    let (meter, ..) = GpuMeter::start(options, pid_is_user).unwrap();
    let mut events = Vec::new();
    let mut longest = Duration::ZERO;
    for _ in 0..130 {
        std::thread::sleep(Duration::from_millis(100));
        let before = Instant::now();
        meter.drain(&mut events);
        longest = longest.max(before.elapsed());
    }
    let said = |event: &&Event| matches!(event, Event::Warning { message } if message.contains("has not answered for 10 s"));
    assert_eq!(events.iter().filter(said).count(), 1, "{events:?}");
    assert!(longest < Duration::from_millis(50), "{longest:?}");
    let before = Instant::now();
    meter.finish(Duration::from_millis(300));
    assert!(before.elapsed() < Duration::from_secs(1));
}
