//! GPU windows of a timing of their own, and who is billed for them.

use proptest::prelude::*;

use super::*;
use crate::base::User;
use crate::event::sources::{GpuDevice, GpuReadMethod};
use crate::event::{Event, GpuMethod, GpuUsage, GpuWindow, Sample};

const MS: u64 = 1_000_000;

fn with_device(settings: Settings) -> RunBooks {
    let mut header = header(1, Vec::new());
    header.settings = settings;
    header.sources.gpu_energy.kind = GpuEnergyKind::Nvml;
    header.sources.gpu_energy.devices.push(GpuDevice {
        uuid: "GPU-1".into(),
        name: "A100".into(),
        index: 0,
        method: GpuReadMethod::Counter,
    });
    let mut books = RunBooks::new(header);
    books.workload(workload("a"));
    books.workload(workload("b"));
    books
}

fn static_watts(watts: f64) -> Settings {
    Settings { static_watts: [("GPU-1".to_owned(), watts)].into(), ..Settings::default() }
}

fn sample(ms: u64) -> Sample {
    sample_of(ms * MS, &vec![vec![]], vec![])
}

fn user(id: u64, weight: f64, busy_seconds: f64) -> GpuUsage {
    GpuUsage {
        user: User::Workload(WorkloadId(id)),
        weight,
        busy_seconds: Some(busy_seconds),
        holds: true,
    }
}

fn window(from_ms: u64, to_ms: u64, joules: f64, usage: &[GpuUsage]) -> GpuWindow {
    GpuWindow {
        uuid: "GPU-1".into(),
        from_ns: from_ms * MS,
        to_ns: to_ms * MS,
        millijoules: joules * 1e3,
        busy: Some(if usage.is_empty() { 0.0 } else { 0.9 }),
        method: if usage.len() == 1 { GpuMethod::Sole } else { GpuMethod::Utilisation },
        usage: usage.to_vec(),
        unknown_users: false,
        lost_weight: 0.0,
        resolution_ms: None,
        mean_power_w: None,
    }
}

#[track_caller]
fn close(a: Option<f64>, b: f64) {
    assert!((a.unwrap() - b).abs() < 1e-9, "{a:?} {b}");
}

#[test]
fn windows_are_cut_at_the_first_and_the_last_sample() {
    let mut books = with_device(static_watts(50.0));
    let both = [user(1, 70.0, 0.7), user(2, 30.0, 0.3)];
    books.gpu(&window(0, 500, 1e6, &both));
    // 100 W before the first sample, half of it outside.
    books.gpu(&window(500, 1500, 100.0, &both));
    books.sample(&sample(1000));
    books.sample(&sample(2000));
    let before = books.window().unwrap();
    close(before.node.gpu.measured_j, 50.0);
    // Late news of the window before, and news of the time after the last sample.
    books.gpu(&window(1500, 2500, 300.0, &[user(1, 1.0, 0.8)]));
    close(report(&mut books).node.gpu.measured_j, 200.0);
    books.sample(&sample(2250));
    let window = books.window().unwrap();
    assert_closed(&window.node);
    close(window.node.gpu.measured_j, 225.0);

    let report = report(&mut books);
    assert_adds_up(&report);
    close(report.node.gpu.measured_j, 50.0 + 225.0);
    close(report.node.gpu.idle_j, 50.0 * 1.25);
    let [a, b] = &report.workloads[..] else { panic!() };
    close(a.energy_j.gpu, 0.7 * 25.0 + 225.0 - 37.5);
    close(b.energy_j.gpu, 0.3 * 25.0);
    close(a.gpu_seconds, 0.35 + 0.8 * 0.75);
    close(b.gpu_seconds, 0.15);
    assert_eq!(a.gpus[0].method, GpuMethod::Sole);
    assert_eq!(b.gpus[0].method, GpuMethod::Utilisation);
}

#[test]
fn energy_with_nobody_on_the_device_is_unattributed() {
    let mut books = with_device(static_watts(50.0));
    books.sample(&sample(0));
    books.gpu(&window(0, 1000, 80.0, &[]));
    books.gpu(&GpuWindow { unknown_users: true, ..window(1000, 2000, 90.0, &[user(1, 1.0, 1.0)]) });
    books.sample(&sample(2000));
    let report = report(&mut books);
    assert_adds_up(&report);
    close(report.node.gpu.unattributed_j, 70.0);
    close(report.node.gpu.idle_j, 100.0);
    assert_eq!(report.workloads[0].energy_j.gpu, Some(0.0));
    assert_eq!(report.workloads[0].gpu_seconds, Some(0.0));
    let partial = report.workloads[0].partial.as_deref().unwrap();
    assert_eq!(partial, "who used GPU-1 is not known for 1.000 of 2.000 s");
}

#[test]
fn a_counter_that_never_moved_measured_nothing() {
    let mut books = with_device(Settings::default());
    books.sample(&sample(0));
    books.gpu(&window(0, 2000, 0.0, &[user(1, 1.0, 1.0)]));
    books.sample(&sample(2000));
    let report = report(&mut books);
    assert_eq!(report.node.gpu.measured_j, None);
    assert_eq!(report.workloads[0].energy_j.gpu, None);
    assert!(report.warnings.iter().any(|w| w.contains("never moved")), "{:?}", report.warnings);
}

#[test]
fn users_that_cannot_be_told_are_said() {
    for (lost_weight, said) in [(0.5, true), (0.005, false)] {
        let mut books = with_device(static_watts(50.0));
        books.sample(&sample(0));
        books.gpu(&GpuWindow { lost_weight, ..window(0, 1000, 90.0, &[user(1, 1.0, 1.0)]) });
        books.sample(&sample(1000));
        let report = report(&mut books);
        let warnings = &report.warnings;
        assert_eq!(warnings.iter().any(|w| w.contains("GPU-1: 30.0 J")), said, "{warnings:?}");
    }
}

#[test]
fn users_that_were_never_known_have_no_figure() {
    let mut books = with_device(static_watts(50.0));
    books.sample(&sample(0));
    books.gpu(&GpuWindow { unknown_users: true, ..window(0, 1000, 80.0, &[]) });
    books.sample(&sample(1000));
    let report = report(&mut books);
    assert_adds_up(&report);
    assert_eq!((report.workloads[0].energy_j.gpu, report.workloads[0].gpu_seconds), (None, None));
    close(report.node.gpu.unattributed_j, 30.0);
}

#[test]
fn idle_energy_goes_to_who_holds_the_device_if_asked() {
    let mut settings = static_watts(50.0);
    settings.gpu_idle_to_holders = true;
    let mut books = with_device(settings);
    books.sample(&sample(0));
    let idle_holder = GpuUsage { weight: 0.0, ..user(2, 0.0, 0.0) };
    books.gpu(&window(0, 1000, 150.0, &[user(1, 1.0, 1.0), idle_holder]));
    books.gpu(&window(1000, 2000, 50.0, &[]));
    books.sample(&sample(2000));
    let report = report(&mut books);
    assert_adds_up(&report);
    let [a, b] = [0, 1].map(|index| report.workloads[index].energy_j);
    assert_eq!((a.gpu, a.idle_share, a.total), (Some(100.0), Some(25.0), Some(125.0)));
    assert_eq!((b.gpu, b.idle_share, b.total), (Some(0.0), Some(25.0), Some(25.0)));
    assert_eq!(report.node.gpu.idle_j, Some(50.0));
}

/// Windows of a tenth of a second, of a device that draws 300 W, 100 of them idle, and whose driver
/// tells once a second; package-0 draws 40 W, 20 of them idle.
fn windows_shorter_than_the_drivers(settings: Settings, gpu: bool) -> Vec<WindowReport> {
    let mut header = header(1, vec![domain("package-0", Component::Cpu, 0)]);
    header.settings = settings;
    header.settings.static_watts =
        [("GPU-1", 100.0), ("package-0", 20.0)].map(|(name, w)| (name.to_owned(), w)).into();
    let mut books = RunBooks::new(header);
    books.workload(workload("a"));
    books.workload(workload("b"));
    let mut windows = Vec::new();
    for tenth in 0..=20 {
        if gpu && tenth > 0 && tenth % 10 == 0 {
            let users = [user(1, 1.0, 1.0), GpuUsage { weight: 0.0, ..user(2, 0.0, 0.0) }];
            books.gpu(&window((tenth - 10) * 100, tenth * 100, 300.0, &users));
        }
        let mono_ns = tenth * 100 * MS;
        // Half of what was used is the first workload's.
        let busy = tenth * 50 * MS;
        let count = (tenth as f64 * 4.0 / UNIT) as u64;
        let energy = vec![Some(Reading { mono_ns, count })];
        books.sample(&sample_of(mono_ns, &vec![vec![busy, 0, busy]], energy));
        windows.extend(books.window());
    }
    windows
}

#[test]
fn power_is_set_against_the_time_that_it_is_about() {
    use crate::event::settings::IdlePolicy;

    let holders = Settings { gpu_idle_to_holders: true, ..Settings::default() };
    let share = Settings { idle: IdlePolicy::Share, ..Settings::default() };
    // Of the two workloads; of what was measured, of idle, and of others.
    let cases = [
        (Settings::default(), [210.0, 0.0], [340.0, 120.0, 10.0]),
        (holders, [260.0, 50.0], [340.0, 20.0, 10.0]),
        (share, [320.0, 0.0], [340.0, 0.0, 20.0]),
    ];
    for (settings, workloads, [measured, idle, other]) in cases {
        let windows = windows_shorter_than_the_drivers(settings.clone(), true);
        assert_eq!(windows.len(), 20);
        for told in [&windows[9], &windows[19]] {
            for (row, watts) in told.workloads.iter().zip(workloads) {
                close(row.mean_power_w, watts);
            }
            close(told.lines.measured.power_w, measured);
            close(told.lines.idle.power_w, idle);
            close(told.lines.other.power_w, other);
            close(told.lines.unattributed.power_w, 0.0);
        }
        // In between there is no word of the device. Without one, nothing is different.
        let without = windows_shorter_than_the_drivers(settings, false);
        for (window, without) in windows.iter().zip(&without).take(9) {
            let text = |window: &WindowReport| serde_json::to_string(window).unwrap();
            let text = |window| text(window).replace(r#","GPU-1":100.0"#, "");
            assert_eq!(text(window), text(without));
            close(window.lines.measured.power_w, 40.0);
            let watts = without.workloads.iter().map(|row| row.mean_power_w.unwrap()).sum::<f64>();
            close(Some(watts), without.workloads[0].energy_j.total.unwrap() / 0.1);
        }
    }
}

#[test]
fn what_was_used_so_far_is_in_every_window() {
    let windows = windows_shorter_than_the_drivers(
        Settings { gpu_idle_to_holders: true, ..Settings::default() },
        true,
    );
    let mut sums = [0.0; 6];
    for window in &windows {
        let lines = window.lines;
        let rows = [0, 1].map(|row: usize| &window.workloads[row]);
        let node = |figure: fn(&ComponentBooks) -> Option<f64>| window.node.sum(figure);
        let pieces = [
            (rows[0].energy_j.total, rows[0].so_far_j),
            (rows[1].energy_j.total, rows[1].so_far_j),
            (node(|books| books.measured_j), lines.measured.so_far_j),
            (node(|books| books.idle_j), lines.idle.so_far_j),
            (node(|books| books.other_j), lines.other.so_far_j),
            (node(|books| books.unattributed_j), lines.unattributed.so_far_j),
        ];
        for (sum, (in_window, so_far)) in sums.iter_mut().zip(pieces) {
            *sum += in_window.unwrap_or(0.0);
            close(so_far, *sum);
        }
        let text = serde_json::to_string(window).unwrap();
        for no in ["so_far", "lines", "-0.0"] {
            assert!(!text.contains(no), "{no}: {text}");
        }
    }
    for (sum, expected) in sums.into_iter().zip([520.0, 100.0, 680.0, 40.0, 20.0, 0.0]) {
        close(Some(sum), expected);
    }
}

#[test]
fn a_device_that_idles_now_and_then_is_calibrated() {
    let mut books = with_device(Settings::default());
    books.sample(&sample(0));
    for second in 0..20 {
        let busy = second % 4 > 1;
        let usage = [user(1, 1.0, 0.1)];
        for tenth in 0..10 {
            let from = second * 1000 + tenth * 100;
            let joules = if busy { 30.0 } else { 6.0 };
            books.gpu(&window(from, from + 100, joules, if busy { &usage } else { &[] }));
        }
    }
    books.sample(&sample(20_000));
    let report = report(&mut books);
    assert_adds_up(&report);
    assert_eq!(report.sources.static_power.kind, StaticPowerKind::Calibrated);
    close(report.sources.static_power.watts["GPU-1"], 60.0);
    close(report.workloads[0].energy_j.gpu, 10.0 * 240.0);
    assert_eq!(report.warnings, [""; 0]);
}

#[test]
fn a_device_that_does_not_say_how_busy_it_is_shows_its_idle_power_only_while_nobody_is_there() {
    let user = [user(1, 1.0, 0.1)];
    let run = |idle_from: u64| {
        let mut books = with_device(Settings::default());
        books.sample(&sample(0));
        for second in 0..20 {
            let (joules, usage) =
                if second < idle_from { (300.0, &user[..]) } else { (60.0, &[][..]) };
            let (from, to) = (second * 1000, second * 1000 + 1000);
            books.gpu(&GpuWindow { busy: None, ..window(from, to, joules, usage) });
        }
        books.sample(&sample(20_000));
        report(&mut books)
    };
    let busy = run(20);
    assert_eq!(busy.sources.static_power.watts["GPU-1"], None);
    assert!(busy.warnings[0].contains("how busy it was is not known"), "{:?}", busy.warnings);
    close(busy.workloads[0].energy_j.gpu, 6000.0);
    let idle = run(10);
    close(idle.sources.static_power.watts["GPU-1"], 60.0);
    close(idle.workloads[0].energy_j.gpu, 2400.0);
}

#[test]
fn nonsense_windows_are_refused_and_said() {
    let mut books = with_device(static_watts(50.0));
    books.sample(&sample(0));
    let users = [user(u64::MAX, 1.0, 1.0), user(1, f64::NAN, -1.0), user(1, -3.0, f64::NAN)];
    books.gpu(&window(0, 1000, 100.0, &users));
    books.gpu(&window(500, 1500, 100.0, &[]));
    books.gpu(&window(2000, 1500, 100.0, &[]));
    books.gpu(&window(2000, 3000, -1.0, &[]));
    books.gpu(&window(2000, 3000, f64::NAN, &[]));
    books.sample(&sample(3000));
    let report = report(&mut books);
    assert_adds_up(&report);
    close(report.node.gpu.measured_j, 100.0);
    close(report.node.gpu.other_j, 50.0);
    assert!(report.warnings[0].contains("GPU-1: 4 readings"), "{:?}", report.warnings);
}

#[test]
fn a_device_that_the_header_does_not_name_is_kept_apart() {
    let mut books = with_device(static_watts(0.0));
    books.sample(&sample(0));
    books.gpu(&window(0, 1000, 100.0, &[user(1, 1.0, 1.0)]));
    let other = GpuWindow { uuid: "GPU-2".into(), ..window(0, 1000, 60.0, &[user(1, 1.0, 0.5)]) };
    books.apply(&Event::Gpu(other));
    books.sample(&sample(1000));
    let report = report(&mut books);
    assert_adds_up(&report);
    let job = &report.workloads[0];
    let devices: Vec<_> = job.gpus.iter().map(|gpu| (&*gpu.uuid, gpu.energy_j)).collect();
    assert_eq!(devices, [("GPU-1", 100.0), ("GPU-2", 60.0)]);
    assert_eq!(job.gpu_seconds, Some(1.5));
}

fn gpu_windows() -> impl Strategy<Value = Vec<GpuWindow>> {
    let usage = proptest::collection::vec(
        (0u64..5, 0.0..100.0, proptest::option::of(0.0..1.0), any::<bool>()).prop_map(
            |(id, weight, busy_seconds, holds)| GpuUsage {
                user: if id == 0 { User::Other } else { User::Workload(WorkloadId(id)) },
                weight,
                busy_seconds,
                holds,
            },
        ),
        0..4,
    );
    let step = (0u64..50, 1u64..700, 0.0..300.0, usage, any::<bool>(), 0u8..4);
    proptest::collection::vec(step, 0..30).prop_map(|steps| {
        let mut ms = 0;
        let windows = steps.into_iter().map(|(gap, length, joules, usage, unknown_users, busy)| {
            let from = ms + gap;
            ms = from + length;
            let busy = (busy > 0).then_some(f64::from(busy) / 3.0);
            GpuWindow { busy, unknown_users, ..window(from, ms, joules, &usage) }
        });
        windows.collect()
    })
}

proptest! {
    #[test]
    fn books_close_whenever_the_news_arrives(
        windows in gpu_windows(),
        mut times in proptest::collection::btree_set(0u64..9000, 2..12),
        lag in 0usize..5,
        holders: bool,
        share: bool,
        watts in proptest::option::of(0.0..300.0),
    ) {
        let mut settings = watts.map_or_else(Settings::default, static_watts);
        settings.gpu_idle_to_holders = holders;
        settings.idle = if share { crate::event::settings::IdlePolicy::Share } else { Default::default() };
        let (first, last) = (*times.first().unwrap(), *times.last().unwrap());
        let inside = |window: &GpuWindow| {
            let (from, to) = (window.from_ns.max(first * MS), window.to_ns.min(last * MS));
            let part = to.saturating_sub(from) as f64 / (window.to_ns - window.from_ns) as f64;
            window.millijoules * 1e-3 * part
        };
        let expected: f64 = windows.iter().map(inside).sum();

        // Each window arrives `lag` windows late among the samples.
        let mut books = with_device(settings);
        for (index, next) in windows.iter().enumerate() {
            let known = windows.get(index.wrapping_sub(lag)).map_or(0, |window| window.to_ns);
            while let Some(ms) = times.first().copied().filter(|ms| ms * MS <= known) {
                times.pop_first();
                books.sample(&sample(ms));
            }
            books.gpu(next);
        }
        for ms in times {
            books.sample(&sample(ms));
            if let Some(window) = books.window() {
                assert_closed(&window.node);
            }
        }
        let report = report(&mut books);
        assert_adds_up(&report);
        let measured = report.node.gpu.measured_j.unwrap_or(0.0);
        prop_assert!((measured - expected).abs() <= 1e-9 * expected.max(1e-9));
        prop_assert!(report.workloads.iter().all(|job| job.gpu_seconds.is_none_or(|s| s >= 0.0)));
    }
}

#[test]
fn users_that_were_lost_are_billed_to_nobody() {
    let mut books = with_device(static_watts(10.0));
    books.sample(&sample(0));
    books.gpu(&GpuWindow { lost_weight: 1.0, ..window(0, 1000, 90.0, &[user(1, 1.0, 1.0)]) });
    books.sample(&sample(1000));
    let node = report(&mut books).node.gpu;
    close(node.unattributed_j, 40.0);
    close(node.workloads_j, 40.0);
    close(node.idle_j, 10.0);
    assert_eq!(books.window().unwrap().resolution_ms, Some(1000.0));
}

#[test]
fn windows_add_up_to_the_report_where_a_counter_is_late() {
    let mut books = with_device(static_watts(50.0));
    books.sample(&sample(0));
    let mut sum = 0.0;
    // Every other reading comes a little before the counter has moved.
    for (index, joules) in [49.0, 81.0, 48.5, 80.0, 90.0].into_iter().enumerate() {
        let from = index as u64 * 1000;
        books.gpu(&window(from, from + 1000, joules, &[user(1, 1.0, 0.5)]));
        books.sample(&sample(from + 1000));
        let window = books.window().unwrap();
        sum += window.workloads[0].energy_j.gpu.unwrap();
    }
    close(report(&mut books).workloads[0].energy_j.gpu, sum);
}

#[test]
fn a_folded_workloads_gpu_time_goes_to_the_folded_row() {
    let mut books = with_device(static_watts(50.0));
    books.sample(&sample(0));
    // Half of it lies ahead of the samples.
    books.gpu(&window(0, 2000, 300.0, &[user(1, 1.0, 1.0)]));
    books.sample(&sample(1000));
    books.apply(&Event::Ended { id: WorkloadId(1) });
    for id in 3..3 + 4096 {
        books.apply(&Event::Workload(Workload { id: WorkloadId(id), ..workload("job") }));
        books.apply(&Event::Ended { id: WorkloadId(id) });
    }
    books.sample(&sample(2000));
    // And news of it that is late.
    books.gpu(&window(2000, 3000, 150.0, &[user(1, 1.0, 0.5), user(9999, 1.0, 0.5)]));
    books.sample(&sample(3000));
    assert_closed(&books.window().unwrap().node);
    let report = report(&mut books);
    assert_adds_up(&report);
    let folded = report.workloads.last().unwrap();
    assert_eq!(folded.kind, WorkloadKind::Ended);
    close(folded.energy_j.gpu, 200.0 + 50.0);
    close(folded.gpu_seconds, 1.5);
    // Of that one nobody ever spoke.
    close(report.node.gpu.other_j, 50.0);
}

#[test]
fn idle_energy_of_a_device_whose_users_are_unknown_is_nobodys() {
    let mut settings = static_watts(50.0);
    settings.idle = crate::event::settings::IdlePolicy::Share;
    let mut books = with_device(settings);
    books.sample(&sample(0));
    books.gpu(&GpuWindow { unknown_users: true, ..window(0, 1000, 80.0, &[]) });
    books.sample(&sample(1000));
    let in_window = books.window().unwrap().workloads[0].energy_j;
    let report = report(&mut books);
    assert_adds_up(&report);
    for energy in [in_window, report.workloads[0].energy_j] {
        assert_eq!((energy.gpu, energy.idle_share, energy.total), (None, None, None));
    }
    assert_eq!(report.workloads[0].mean_power_w, None);
}

#[test]
fn a_device_whose_users_are_unknown_is_named_beside_one_whose_users_are_known() {
    let mut books = with_device(static_watts(50.0));
    books.sample(&sample(0));
    books.gpu(&window(0, 1000, 80.0, &[user(1, 1.0, 1.0)]));
    let other = GpuWindow { uuid: "GPU-2".into(), ..window(0, 1000, 60.0, &[]) };
    books.gpu(&GpuWindow { unknown_users: true, ..other });
    books.sample(&sample(1000));
    let window = books.window().unwrap();
    let report = report(&mut books);
    assert_adds_up(&report);
    let [a, b] = &report.workloads[..] else { panic!() };
    assert_eq!((a.energy_j.gpu, a.gpu_seconds), (Some(30.0), None));
    assert_eq!((b.energy_j.gpu, b.energy_j.total, b.gpu_seconds), (None, None, None));
    for workload in [a, b] {
        let partial = workload.partial.as_deref().unwrap();
        assert_eq!(partial, "who used GPU-2 is not known for 1.000 of 1.000 s");
    }
    let figures = [0, 1].map(|index| window.workloads[index].energy_j.gpu);
    assert_eq!(figures, [Some(30.0), None]);
}
