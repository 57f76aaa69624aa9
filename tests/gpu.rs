//! GPU energy through the command line: real cgroups, real processes, and a simulated driver
//! (`tests/fake-nvml`) that names those processes and whose every joule is known.

#![allow(clippy::unwrap_used)]

#[path = "sim/cgroup.rs"]
mod cgroup;
#[path = "sim/gpu.rs"]
mod gpu;
#[path = "sim/gpu_run.rs"]
mod gpu_run;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fake_nvml::{Device, Fault, Process, Utilisation};
use serde_json::Value;

use crate::gpu::{GPU_IS_LOST, Machine, always, device, process, uuid};
use crate::gpu_run::{Job, Run, Sleeper, ecoprobe, near, number, static_power, stderr, watch};

// ---- who pays ------------------------------------------------------------------------------------

#[test]
#[ignore = "needs root: it loads the probe"]
fn one_user_gets_all_that_it_caused() {
    let job = Job::new("one", 1);
    let machine = Machine::of(vec![device(vec![always(job.pid(), 80.0)])]);
    let watts = static_power(1, 50.0);
    let run = watch(&machine, &[&job], &["--static-power", &watts, "--duration", "3s"]);
    run.check_jobs(&machine, &[&job], 0.01);
    assert_eq!(run.methods(0), ["sole"]);
    assert_eq!(run.report["sources"]["gpu_energy"]["kind"], "nvml");
    let device = &run.report["sources"]["gpu_energy"]["devices"][0];
    assert_eq!((&device["method"], &device["uuid"]), (&"counter".into(), &uuid(0).into()));
    assert_eq!(run.report["sources"]["static_power"]["watts"][uuid(0)], 50.0);
    // It computes on 80 % of the multiprocessors all the time.
    let seconds = number(&run.report["window"]["seconds"]);
    let busy = number(&run.job(0)["gpu_seconds"]);
    assert!((busy / seconds - 0.8).abs() < 0.02, "{busy} of {seconds}");
    near("idle", run.gpu("idle_j"), 50.0 * seconds, 0.01);
    assert!(run.gpu("other_j") == 0.0 && run.gpu("unattributed_j") < 1e-9);
    assert_eq!(run.warned("GPU"), 0, "{}", run.report["warnings"]);
    assert!(number(&run.report["self"]["nvml_us"]["p99"]) > 0.0);
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn two_users_share_by_what_they_computed() {
    let (a, b) = (Job::new("a", 1), Job::new("b", 2));
    let on = vec![always(a.pid(), 70.0), always(b.pids()[0], 20.0), always(b.pids()[1], 10.0)];
    let machine = Machine::of(vec![device(on)]);
    let watts = static_power(1, 50.0);
    let run = watch(&machine, &[&a, &b], &["--static-power", &watts, "--duration", "3s"]);
    run.check_jobs(&machine, &[&a, &b], 0.01);
    near("70 to 30", run.job_j(0) / run.job_j(1), 7.0 / 3.0, 0.002);
    assert_eq!((run.methods(0), run.methods(1)), (vec!["utilisation"], vec!["utilisation"]));
}

/// Each is there for less than a second, and ends as a process in the middle of its last window.
#[test]
#[ignore = "needs root: it loads the probe"]
fn users_that_come_and_go_within_a_second() {
    let mut jobs = [Job::new("a", 3), Job::new("b", 2)];
    let (a, b) = (jobs[0].pids(), jobs[1].pids());
    let on = vec![
        process(a[0], 3.00, 3.90, 80.0),
        process(b[0], 3.35, 4.15, 20.0),
        process(a[1], 4.20, 4.85, 40.0),
        process(b[1], 4.50, 5.25, 60.0),
        process(a[2], 5.40, 6.00, 90.0),
    ];
    let ends: Vec<(u32, f64)> = on.iter().map(|process| (process.pid, process.to_s)).collect();
    let machine = Machine::of(vec![device(on)]);
    let start = Instant::now();
    let sleepers = jobs.iter_mut().flat_map(|job| job.sleepers.drain(..));
    let mut sleepers: BTreeMap<u32, Sleeper> =
        sleepers.map(|sleeper| (sleeper.pid(), sleeper)).collect();
    // They are still to be there while ecoprobe is set up: one more in each.
    let keep: Vec<Sleeper> = jobs.iter().map(|job| Sleeper::within(&job.cgroup)).collect();
    let killer = std::thread::spawn(move || {
        for (pid, to_s) in ends {
            let wait = Duration::from_secs_f64(to_s).saturating_sub(start.elapsed());
            std::thread::sleep(wait);
            sleepers.remove(&pid);
        }
    });
    let watts = static_power(1, 50.0);
    let [first, second] = &jobs;
    // At the usual intervals.
    let options = ["--gpu-process-interval", "1s", "--static-power", &watts, "--duration", "6s"];
    let run = watch(&machine, &[first, second], &options);
    killer.join().unwrap();
    drop(keep);
    let device = &machine.scenario.devices[0];
    for (index, pids) in [a, b].into_iter().enumerate() {
        let joules = |pid: u32| device.dynamic_joules(pid, run.from_s, run.to_s);
        let truth = pids.into_iter().map(joules).sum();
        near(&format!("job {index}"), run.job_j(index), truth, 0.01);
    }
    let (lost, all) = (run.gpu("unattributed_j"), run.gpu("workloads_j"));
    println!("unattributed: {lost:.3} J of {all:.3} J");
    assert!(lost < 0.01 * all);
}

/// Processes that came and ended between two looks: the probe saw them exit.
#[test]
#[ignore = "needs root: it loads the probe"]
fn users_that_were_never_looked_at_alive_are_billed_all_the_same() {
    let (a, b) = (Job::new("a", 1), Job::new("b", 1));
    let (fleeting, stranger) = (Sleeper::within(&b.cgroup), Sleeper::outside());
    let (pid, strange) = (fleeting.pid(), stranger.pid());
    let on =
        vec![always(a.pid(), 40.0), process(pid, 2.2, 2.6, 45.0), process(strange, 2.3, 2.6, 15.0)];
    // So that the driver's buffer reaches back to the first look.
    let machine = Machine::of(vec![Device { sample_ms: 50.0, ..device(on) }]);
    let killer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(2600));
        drop((fleeting, stranger));
    });
    let watts = static_power(1, 50.0);
    let options = ["--static-power", &watts, "--duration", "3s", "--gpu-process-interval", "10s"];
    let run = watch(&machine, &[&a, &b], &options);
    killer.join().unwrap();
    let device = &machine.scenario.devices[0];
    let truth = |pid| device.dynamic_joules(pid, run.from_s, run.to_s);
    near("the fleeting job", run.job_j(1), truth(pid), 0.02);
    near("other", run.gpu("other_j"), truth(strange), 0.02);
    near("the job that stayed", run.job_j(0), truth(a.pid()), 0.02);
    near("unattributed", run.gpu("unattributed_j"), 0.0, 1e-6);
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn eight_devices_do_not_mix() {
    let (a, b) = (Job::new("a", 8), Job::new("b", 1));
    let devices = (0..8_u32)
        .map(|i| Device {
            full_watts: 300.0 + 50.0 * f64::from(i),
            refresh_ms: Some(20.0 + 10.0 * f64::from(i)),
            processes: vec![
                always(a.pids()[i as usize], 10.0 + 10.0 * f64::from(i)),
                always(b.pid(), 10.0),
            ],
            ..Device::default()
        })
        .collect();
    let machine = Machine::of(devices);
    let watts = static_power(8, 50.0);
    let run = watch(&machine, &[&a, &b], &["--static-power", &watts, "--duration", "5s"]);
    run.check_jobs(&machine, &[&a, &b], 0.01);
    for (index, device) in machine.scenario.devices.iter().enumerate() {
        let entry = &run.job(0)["gpus"][index];
        assert_eq!(entry["uuid"], uuid(index));
        let truth = device.dynamic_joules(a.pids()[index], run.from_s, run.to_s);
        near(&uuid(index), number(&entry["energy_j"]), truth, 0.015);
    }
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn a_process_of_no_workload_is_other_and_one_that_is_gone_is_nobody() {
    let job = Job::new("job", 1);
    let (stranger, gone) = (Sleeper::outside(), Sleeper::outside());
    let gone_pid = gone.pid();
    drop(gone);
    let on = vec![always(job.pid(), 50.0), always(stranger.pid(), 30.0), always(gone_pid, 20.0)];
    let machine = Machine::of(vec![device(on)]);
    let watts = static_power(1, 50.0);
    let run = watch(&machine, &[&job], &["--static-power", &watts, "--duration", "3s"]);
    run.check_jobs(&machine, &[&job], 0.01);
    let device = &machine.scenario.devices[0];
    let truth = |pid| device.dynamic_joules(pid, run.from_s, run.to_s);
    near("other", run.gpu("other_j"), truth(stranger.pid()), 0.01);
    near("unattributed", run.gpu("unattributed_j"), truth(gone_pid), 0.01);
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn a_device_lost_and_returned_costs_no_other_a_joule() {
    let (a, b) = (Job::new("a", 1), Job::new("b", 1));
    let devices = vec![device(vec![always(a.pid(), 70.0)]), device(vec![always(b.pid(), 40.0)])];
    let gone =
        Fault { device: Some(0), from_s: 2.5, to_s: 3.5, code: GPU_IS_LOST, ..Fault::default() };
    let machine = Machine::with_faults(devices, vec![gone]);
    let watts = static_power(2, 50.0);
    let run = watch(&machine, &[&a, &b], &["--static-power", &watts, "--duration", "5s"]);
    let joules = |index: usize, pid| {
        machine.scenario.devices[index].dynamic_joules(pid, run.from_s, run.to_s)
    };
    near("the other device", run.job_j(1), joules(1, b.pid()), 0.01);
    // The lost one is not measured for at least the second that it was away, and for little more.
    let missing_s = (joules(0, a.pid()) - run.job_j(0)) / (0.7 * 250.0);
    println!("the lost device: {missing_s:.3} s missing");
    assert!((0.95..1.8).contains(&missing_s), "{missing_s}");
    assert_eq!((run.warned("stopped answering"), run.warned("answers again")), (1, 1));
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn slices_decide_under_mig_and_memory_where_there_is_no_utilisation() {
    let (a, b) = (Job::new("a", 1), Job::new("b", 1));
    let on = |pid, instance, sm| Process { instance, ..always(pid, sm) };
    let memory = |pid, mib| Process { memory_mib: Some(mib), ..always(pid, 50.0) };
    let machine = Machine::of(vec![
        Device {
            mig: vec![4, 2, 1],
            processes: vec![on(a.pid(), 0, 40.0), on(b.pid(), 1, 20.0)],
            ..Device::default()
        },
        Device {
            utilisation: Utilisation::None,
            processes: vec![memory(a.pid(), 3000), memory(b.pid(), 1000)],
            ..Device::default()
        },
        Device { refresh_ms: None, processes: vec![always(a.pid(), 60.0)], ..Device::default() },
    ]);
    let watts = static_power(3, 50.0);
    let run = watch(&machine, &[&a, &b], &["--static-power", &watts, "--duration", "3s"]);
    assert_eq!(run.methods(0), ["mig", "memory", "sole"]);
    assert_eq!(run.methods(1), ["mig", "memory"]);
    let energy = |job: usize, device: usize| number(&run.job(job)["gpus"][device]["energy_j"]);
    near("4 slices to 2", energy(0, 0), 2.0 * energy(1, 0), 1e-9);
    near("3 GB to 1", energy(0, 1), 3.0 * energy(1, 1), 1e-9);
    let truth = |index: usize, pid| {
        machine.scenario.devices[index].dynamic_joules(pid, run.from_s, run.to_s)
    };
    near("4 slices", energy(0, 0), truth(0, a.pid()), 0.01);
    near("from power samples", energy(0, 2), truth(2, a.pid()), 0.01);
    let devices = run.report["sources"]["gpu_energy"]["devices"].as_array().unwrap();
    let methods: Vec<_> = devices.iter().map(|device| device["method"].as_str().unwrap()).collect();
    assert_eq!(methods, ["counter", "counter", "power"]);
    assert_eq!(run.warned("is the integral of the driver's power samples"), 1);
    // Whoever has only a share of the memory has no known seconds.
    assert_eq!(run.job(0)["gpu_seconds"], Value::Null);
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn a_device_that_fell_off_before_does_not_hold_up_the_others() {
    let job = Job::new("job", 1);
    let on = || device(vec![always(job.pid(), 50.0)]);
    let gone = Fault { device: Some(0), code: GPU_IS_LOST, ..Fault::default() };
    let machine = Machine::with_faults(vec![on(), on()], vec![gone]);
    let watts = format!("{}=50", uuid(1));
    let run = watch(&machine, &[&job], &["--static-power", &watts, "--duration", "2s"]);
    assert_eq!(run.warned("GPU 0 cannot be opened"), 1, "{}", run.report["warnings"]);
    let truth = machine.scenario.devices[1].dynamic_joules(job.pid(), run.from_s, run.to_s);
    near("the other device", run.job_j(0), truth, 0.01);
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn a_driver_that_hangs_is_left_behind() {
    let job = Job::new("job", 1);
    let hang = Fault { delay_ms: 30_000.0, from_s: 2.5, device: Some(0), ..Fault::default() };
    let machine = Machine::with_faults(vec![device(vec![always(job.pid(), 50.0)])], vec![hang]);
    let watts = static_power(1, 50.0);
    let start = Instant::now();
    let run = watch(&machine, &[&job], &["--static-power", &watts, "--duration", "3s"]);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert_eq!(run.warned("the last GPU readings are missing"), 1, "{}", run.report["warnings"]);
    assert!(run.gpu("measured_j") > 0.0);
}

// ---- idle energy ---------------------------------------------------------------------------------

#[test]
#[ignore = "needs root: it loads the probe"]
fn idle_power_is_learned_while_nobody_is_there() {
    let job = Job::new("job", 1);
    let machine = Machine::of(vec![device(vec![process(job.pid(), 5.5, 8.5, 90.0)])]);
    let run = watch(&machine, &[&job], &["--duration", "9s"]);
    let source = &run.report["sources"]["static_power"];
    assert_eq!(source["kind"], "calibrated", "{source}");
    near("static power", number(&source["watts"][uuid(0)]), 50.0, 0.01);
    run.check_jobs(&machine, &[&job], 0.02);
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn without_idle_time_everything_goes_by_use_and_the_report_says_so() {
    let (a, b) = (Job::new("a", 1), Job::new("b", 1));
    let machine = Machine::of(vec![
        device(vec![always(a.pid(), 100.0)]),
        device(vec![always(a.pid(), 75.0), always(b.pid(), 25.0)]),
    ]);
    let run = watch(&machine, &[&a, &b], &["--duration", "6s"]);
    for index in 0..2 {
        assert_eq!(run.report["sources"]["static_power"]["watts"][uuid(index)], Value::Null);
    }
    let warning = format!("the static power of {}, {} could not be told", uuid(0), uuid(1));
    assert_eq!(run.warned(&warning), 1, "{}", run.report["warnings"]);
    // The books close by what rounding leaves.
    assert!(run.gpu("idle_j") < 1e-9);
    let all = |index: usize| machine.scenario.devices[index].joules(run.from_s, run.to_s);
    let on = |job: usize, device: usize| number(&run.job(job)["gpus"][device]["energy_j"]);
    near("the sole user", on(0, 0), all(0), 0.01);
    near("75 %", on(0, 1), 0.75 * all(1), 0.01);
    near("25 %", on(1, 0), 0.25 * all(1), 0.01);
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn idle_energy_goes_to_holders_if_asked() {
    let (a, b) = (Job::new("a", 1), Job::new("b", 1));
    let holder = Process { memory_mib: Some(40_000), ..always(b.pid(), 0.0) };
    let machine = Machine::of(vec![device(vec![always(a.pid(), 60.0), holder]), device(vec![])]);
    let watts = static_power(2, 50.0);
    let options = ["--static-power", &watts, "--duration", "3s", "--gpu-idle-to-holders"];
    let run = watch(&machine, &[&a, &b], &options);
    run.check_jobs(&machine, &[&a, &b], 0.01);
    let idle = 50.0 * number(&run.report["window"]["seconds"]);
    for index in 0..2 {
        near("half", number(&run.job(index)["energy_j"]["idle_share"]), idle / 2.0, 0.01);
    }
    near("with no holder", run.gpu("idle_j"), idle, 0.01);
}

// ---- `run` ---------------------------------------------------------------------------------------

#[test]
#[ignore = "needs root: it loads the probe"]
fn a_command_is_billed_for_its_gpu_and_inherits_nothing() {
    let sleeper = Sleeper::outside();
    let machine = Machine::of(vec![device(vec![process(sleeper.pid(), 1.5, 3.0, 80.0)])]);
    let path = |name: &str| machine.directory.path().join(name);
    // The scenario must know the pid beforehand: the process joins the command's cgroup.
    let script = format!(
        "path=$(sed -n 's/^0:://p' /proc/self/cgroup)\n\
         echo {pid} > {mount}$path/cgroup.procs\n\
         ls -l /proc/self/fd >&2\n\
         sleep 3\n\
         echo {pid} > {mount}/cgroup.procs; exit 7",
        pid = sleeper.pid(),
        mount = cgroup::v2_mount().display(),
    );
    let mut command = ecoprobe();
    command.args(["run", "--cpu-energy", "none", "--nvml-lib"]).arg(machine.library());
    command.args(["--static-power", &static_power(1, 50.0), "--interval", "250ms"]);
    command.args(["--gpu-process-interval", "500ms", "--gpu-interval", "10ms"]);
    command.args(["--format", "jsonl", "--record"]).arg(path("recording"));
    command.arg("--output").arg(path("report"));
    let output = command.args(["--", "sh", "-c", &script]).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    let report = std::fs::read_to_string(path("report")).unwrap();
    let run = Run::new(&machine, &path("recording"), &report);
    let truth = machine.scenario.devices[0].dynamic_joules(sleeper.pid(), run.from_s, run.to_s);
    near("the command", run.job_j(0), truth, 0.01);
    // What ecoprobe and the driver have open stays theirs.
    let listed = Command::new("ls").args(["-l", "/proc/self/fd"]).stdin(Stdio::null()).output();
    let fds = |text: &str| text.lines().filter(|line| line.contains(" -> ")).count();
    let ours = fds(&String::from_utf8(listed.unwrap().stdout).unwrap());
    assert_eq!(fds(&stderr(&output)), ours, "{}", stderr(&output));
}
