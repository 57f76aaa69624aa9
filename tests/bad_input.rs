//! What goes wrong on real hosts, each time: one clear sentence, the documented exit code, nothing
//! that was counted lost, and nothing made up.

#![allow(clippy::unwrap_used)]

mod sim;

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::FromRawFd as _;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use sim::cgroup::{TestCgroup, v1_mount, v2_mount};
use sim::cli::{Ended, Recording, Running, assert_closed, assert_near, ecoprobe, number, until};
use sim::load::{Load, Shape};
use sim::{Feed, Feeder, Machine, Power, Sysfs};

/// The one sentence of a run that must not have begun.
#[track_caller]
fn refused(ended: Ended, code: i32) -> String {
    let ended = ended.exited(code);
    assert_eq!(ended.stdout, "");
    assert!(ended.stderr.starts_with("ecoprobe: "), "{}", ended.stderr);
    ended.stderr
}

/// A busy cgroup on a simulated package that draws 40 W.
struct Bench {
    // Before the cgroup that it runs in: fields are dropped in this order.
    _load: Load,
    cgroup: TestCgroup,
    sysfs: Sysfs,
    feeder: Feeder,
}

impl Bench {
    fn new() -> Self {
        Self::drawing(Power::constant(40.0))
    }

    fn drawing(power: Power) -> Self {
        let cgroup = TestCgroup::v2("bad");
        let load = Load::start(Shape::QUARTER, cgroup.path(), Some(0));
        let sysfs = Machine::new(1).build();
        let feed = Feed { zone: sysfs.zone("package-0"), start_uj: 0, power };
        let feeder = Feeder::start(Duration::from_millis(5), vec![feed]);
        Self { _load: load, cgroup, sysfs, feeder }
    }

    fn command(&self, options: &[&str]) -> Command {
        let sysfs = self.sysfs.path().to_str().unwrap();
        let mut command = ecoprobe(["--cgroup", &self.cgroup.cgroup(), "--sysfs", sysfs]);
        command.arg("--cpu-energy=powercap").args(options);
        if !options.iter().any(|option| option.starts_with("--interval")) {
            command.arg("--interval=50ms");
        }
        command
    }

    fn start(&self, options: &[&str]) -> Running {
        Running::spawn(self.command(options))
    }

    /// Joules that the counter showed between two samples of a recording.
    fn drawn(&self, recording: &Recording) -> f64 {
        let (from, to) = recording.span();
        let [from, to] = [from, to].map(|at| self.feeder.truth_at(at)[0].total_j());
        to - from
    }
}

/// ecoprobe in a mount namespace of its own, where `script` has been run.
fn after(script: &str, arguments: &[&str]) -> Running {
    let mut command = Command::new("unshare");
    let script = format!("{script} && exec \"$0\" \"$@\"");
    command.args(["--mount", "sh", "-c", &script, env!("CARGO_BIN_EXE_ecoprobe")]).args(arguments);
    Running::spawn(command)
}

#[test]
#[ignore = "needs root: it hides the kernel's BTF in a mount namespace of its own"]
fn a_kernel_without_btf() {
    let empty = tempfile::tempdir().unwrap();
    let hide = format!("mount --bind {} /sys/kernel/btf", empty.path().display());
    let sentence = refused(after(&hide, &["--cgroup", "/", "--cpu-energy=none"]).wait(), 4);
    assert!(sentence.contains("/sys/kernel/btf/vmlinux"), "{sentence}");
    assert!(sentence.contains("CONFIG_DEBUG_INFO_BTF"), "{sentence}");
}

#[test]
#[ignore = "needs root: it unmounts cgroups in a mount namespace of its own"]
fn a_host_without_cgroup2_or_any_cgroups() {
    let none = "umount --recursive --lazy /sys/fs/cgroup";
    for arguments in [&["--cgroup", "/"][..], &["run", "--", "true"]] {
        let sentence = refused(after(none, arguments).wait(), 4);
        assert!(sentence.contains("no cgroup file system is mounted"), "{sentence}");
        assert!(sentence.contains("mount -t cgroup2"), "{sentence}");
    }

    let mount = v1_mount("cpuacct").expect("cgroup v1 cpuacct, to be left with");
    // Left with v1 it goes on with v1.
    let cgroup = TestCgroup::v1("cpuacct", "left");
    assert!(cgroup.path().starts_with(mount));
    let _load = Load::start(Shape::QUARTER, cgroup.path(), Some(0));
    let no_v2 = format!("umount --lazy {}", v2_mount().display());
    let options = ["--cpu-energy=none", "--duration=500ms", "--format=json"];
    let name = cgroup.cgroup();
    let arguments = ["--cgroup", &name].into_iter().chain(options).collect::<Vec<_>>();
    let before_ns = cgroup.usage_ns();
    let report = after(&no_v2, &arguments).wait().succeeded().report();
    assert_eq!(report.0["sources"]["cpu_time"]["hierarchy"], "v1");
    let kernel = (cgroup.usage_ns() - before_ns) as f64 * 1e-9;
    let found = report.cpu_seconds(&name);
    // Starting and ending are in the kernel's figure and not in ours.
    assert!(found + 0.02 > 0.3 * kernel, "{found} where the kernel says {kernel}: {}", report.0);
    let options = ["run", "--cpu-energy=none", "--format=json", "--"];
    let command = ["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exit 7"];
    let arguments = options.into_iter().chain(command).collect::<Vec<_>>();
    let report = after(&no_v2, &arguments).wait().exited(7).report();
    assert!(report.cpu_seconds("sh") > 0.001);
}

#[test]
#[ignore = "needs root: it gives its permissions up"]
fn no_permission() {
    let cgroup = TestCgroup::v2("denied");
    let name = cgroup.cgroup();
    for (arguments, what_to_do) in [
        (&["--cgroup", &name, "--cpu-energy=none"][..], "CAP_BPF"),
        (&["run", "--cpu-energy=none", "--", "echo", "must not run"], "run as root"),
    ] {
        let mut powerless = Command::new("setpriv");
        powerless.args(["--bounding-set=-all", "--inh-caps=-all"]);
        powerless.arg(env!("CARGO_BIN_EXE_ecoprobe")).args(arguments);
        let sentence = refused(Running::spawn(powerless).wait(), 4);
        assert!(sentence.contains(what_to_do), "{sentence}");
    }
}

#[test]
#[ignore = "needs root: it gives its permissions up"]
fn an_error_on_a_terminal_stands_on_a_line_of_its_own() {
    let cgroup = TestCgroup::v2("denied");
    let (mut terminal, end) = terminal();
    let mut powerless = Command::new("setpriv");
    powerless.args(["--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_ecoprobe")]);
    powerless.args(["--cgroup", &cgroup.cgroup(), "--cpu-energy=none", "--format=json"]);
    powerless.env("TERM", "xterm").stdout(Stdio::null()).stderr(end);
    assert_eq!(powerless.status().unwrap().code(), Some(4));
    drop(powerless);
    let mut bytes = Vec::new();
    // The last end of a terminal that is closed is an error here.
    let _ = terminal.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    let (_, after) = text.split_once("waiting for the first window …").unwrap();
    assert!(after.starts_with("\r\x1b[Kecoprobe: "), "{text:?}");
}

/// A terminal, and the end of it that programs have.
fn terminal() -> (File, File) {
    let (mut ours, mut theirs) = (0, 0);
    let (name, settings, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
    // SAFETY: fills in two descriptors, and takes defaults for the rest.
    let result = unsafe { libc::openpty(&mut ours, &mut theirs, name, settings, size) };
    assert_eq!(result, 0);
    // SAFETY: they were opened just now, and nobody else has them.
    unsafe { (File::from_raw_fd(ours), File::from_raw_fd(theirs)) }
}

#[test]
#[ignore = "needs root: it gives its permissions up"]
fn a_start_that_fails_leaves_the_files_of_the_run_before() {
    let cgroup = TestCgroup::v2("denied");
    let directory = tempfile::tempdir().unwrap();
    let [result, recording] = ["out.csv", "rec"].map(|name| directory.path().join(name));
    for file in [&result, &recording] {
        fs::write(file, "of the run before").unwrap();
    }
    let mut powerless = Command::new("setpriv");
    powerless.args(["--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_ecoprobe")]);
    powerless.args(["--cgroup", &cgroup.cgroup(), "--cpu-energy=none", "--format=csv"]);
    powerless.arg("--output").arg(&result).arg("--record").arg(&recording);
    refused(Running::spawn(powerless).wait(), 4);
    for file in [&result, &recording] {
        assert_eq!(fs::read_to_string(file).unwrap(), "of the run before");
    }
    // One that begins has them for itself.
    let mut run = ecoprobe(["--cgroup", &cgroup.cgroup(), "--cpu-energy=none", "--format=csv"]);
    run.args(["--duration=200ms", "--output"]).arg(&result).arg("--record").arg(&recording);
    Running::spawn(run).wait().succeeded();
    assert!(fs::read_to_string(&result).unwrap().starts_with("start_s,"));
    assert!(fs::read_to_string(&recording).unwrap().starts_with('{'));
}

#[test]
#[ignore = "needs root: it makes cgroups"]
fn names_that_mean_nothing_or_too_much() {
    let empty = tempfile::tempdir().unwrap();
    let none = ["--cgroup", "/", "--cgroupfs", empty.path().to_str().unwrap()];
    let sentence = refused(Running::start(none).wait(), 2);
    assert!(sentence.contains("--cgroupfs") && sentence.contains("no cgroup file"), "{sentence}");

    let (a, b) = (TestCgroup::v2("a"), TestCgroup::v2("b"));
    let _twins = [a.child("twin-of-this-test"), b.child("twin-of-this-test")];
    let sentence = refused(Running::start(["--cgroup", "twin-of-this-test"]).wait(), 3);
    assert!(sentence.contains(&a.cgroup()) && sentence.contains(&b.cgroup()), "{sentence}");

    let sentence = refused(Running::start(["--cgroup", "twin-of-this-tset"]).wait(), 3);
    assert!(sentence.contains("twin-of-this-test"), "the closest name: {sentence}");
    let nowhere = format!("{}/nowhere", a.cgroup());
    refused(Running::start(["--cgroup", &nowhere]).wait(), 3);
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn sources_asked_for_by_name_must_be_there() {
    let bench = Bench::new();
    let name = bench.cgroup.cgroup();
    let sysfs = Sysfs::new();
    let at = ["--sysfs", sysfs.path().to_str().unwrap()];
    for source in ["perf", "powercap"] {
        let arguments = ["--cgroup", &name, "--cpu-energy", source].into_iter().chain(at);
        let sentence = refused(Running::start(arguments).wait(), 4);
        assert!(sentence.contains(&format!("--cpu-energy {source}")), "{sentence}");
    }
    // Left to choose, it estimates, and says so everywhere.
    let arguments = ["--cgroup", &name, "--duration=200ms", "--interval=50ms", "--format=json"];
    let ended = Running::start(arguments.into_iter().chain(at)).wait().succeeded();
    let report = ended.report();
    assert_eq!(report.0["sources"]["cpu_energy"]["kind"], "estimate");
    assert!(report.warnings().contains("estimate"), "{}", report.warnings());
    assert!(ended.stderr.contains("estimate"), "{}", ended.stderr);

    // A domain that is not measured has no static power to give.
    let sentence = refused(bench.start(&["--static-power=package-7=20"]).wait(), 2);
    assert!(sentence.contains("package-7") && sentence.contains("package-0"), "{sentence}");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_counter_that_fails_for_a_moment_costs_no_joule() {
    let bench = Bench::new();
    let recording = Recording::new();
    let options = ["--format=jsonl", "--static-power=30", "--interval=200ms"];
    let mut run = bench.start(&[&options[..], &["--record", &recording.arg()]].concat());
    run.wait_for_lines(3);
    bench.feeder.set_broken(true);
    thread::sleep(Duration::from_millis(300));
    bench.feeder.set_broken(false);
    let lines = run.stdout().lines().count();
    run.wait_for_lines(lines + 3);
    run.signal(Signal::SIGINT);

    let (windows, report) = run.wait().succeeded().lines();
    assert_near(report.node("cpu", "measured_j"), bench.drawn(&recording), 0.005, "measured");
    let longest = windows.iter().map(|window| number(&window["seconds"])).fold(0.0, f64::max);
    assert!(longest > 0.35, "one window covers the gap: {longest}");
    assert!(windows.iter().all(|window| !window["node"]["cpu"]["measured_j"].is_null()));
    assert!(!report.warnings().contains("package-0"), "{}", report.warnings());
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_counter_that_fails_for_long_is_missing_and_said_to_be() {
    let bench = Bench::new();
    let recording = Recording::new();
    let options = ["--format=jsonl", "--static-power=30"];
    let mut run = bench.start(&[&options[..], &["--record", &recording.arg()]].concat());
    run.wait_for_lines(5);
    bench.feeder.set_broken(true);
    let missing = |run: &Running| run.stdout().matches("\"cpu\":{\"measured_j\":null").count();
    until("windows without energy", || missing(&run) > 3);
    bench.feeder.set_broken(false);
    let lines = run.stdout().lines().count();
    run.wait_for_lines(lines + 10);
    run.signal(Signal::SIGTERM);

    let ended = run.wait().succeeded();
    let (windows, report) = ended.lines();
    let energy = |window: &serde_json::Value| window["node"]["cpu"]["measured_j"].as_f64();
    let without: Vec<_> = windows.iter().filter(|window| energy(window).is_none()).collect();
    // Missing is null, in every figure that rests on it; time goes on.
    for window in &without {
        let workload = &window["workloads"][0];
        assert!(workload["energy_j"]["cpu"].is_null() && workload["mean_power_w"].is_null());
    }
    assert!(without.iter().any(|window| number(&window["workloads"][0]["cpu_seconds"]) > 0.0));
    // What was counted before and after is all there.
    let sum: f64 = windows.iter().filter_map(energy).sum();
    assert_near(report.node("cpu", "measured_j"), sum, 1e-6, "counted");
    let measured_s: f64 = windows
        .iter()
        .filter(|window| energy(window).is_some())
        .map(|window| number(&window["seconds"]))
        .sum();
    assert_near(sum, 40.0 * measured_s, 0.01, "40 W");
    for said in [&ended.stderr, &report.warnings()] {
        assert!(said.contains("package-0: the energy counter cannot be read"), "{said}");
        assert!(said.contains("can be read again"), "{said}");
    }
    assert!(report.warnings().contains("left out of every energy figure"), "{}", report.warnings());
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_counter_that_jumps_is_not_believed() {
    let jump = 10_000.0;
    let power = move |seconds: f64| 40.0 * seconds + if seconds > 1.0 { jump } else { 0.0 };
    let bench = Bench::drawing(Power::Function(Box::new(power)));
    let recording = Recording::new();
    let options = ["--duration=2s", "--format=jsonl", "--static-power=30"];
    let run = bench.start(&[&options[..], &["--record", &recording.arg()]].concat());
    let (windows, report) = run.wait().succeeded().lines();
    let window = 40.0 * 0.05;
    let measured = report.node("cpu", "measured_j");
    let truth = bench.drawn(&recording) - jump;
    // All but the window of the jump.
    assert!((measured - (truth - window)).abs() < window, "{measured} {truth}");
    let without = windows.iter().filter(|window| window["node"]["cpu"]["measured_j"].is_null());
    assert_eq!(without.count(), 1);
    assert!(
        report.warnings().contains("jumped by more than the hardware"),
        "{}",
        report.warnings()
    );
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn static_power_above_what_is_measured() {
    let bench = Bench::new();
    let options = ["--duration=700ms", "--format=json", "--static-power=70"];
    let report = bench.start(&options).wait().succeeded().report();
    assert_closed(&report.0);
    let measured = report.node("cpu", "measured_j");
    assert_near(report.node("cpu", "idle_j"), measured, 1e-9, "all of it is idle");
    assert!(report.joules(&bench.cgroup.cgroup(), "cpu") < 1e-9 * measured);
    assert!(report.warnings().contains("it is set too high"), "{}", report.warnings());
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn more_workloads_than_there_is_room_for() {
    let top = TestCgroup::v2("many");
    let children = ["a", "b", "c", "d"].map(|name| top.child(name));
    let _loads =
        children.each_ref().map(|child| Load::start(Shape::QUARTER, child.path(), Some(0)));
    let sysfs = Machine::new(1).build();
    let zone = sysfs.zone("package-0");
    let feed = Feed { zone, start_uj: 0, power: Power::constant(40.0) };
    let _feeder = Feeder::start(Duration::from_millis(5), vec![feed]);
    let glob = format!("{}/*", top.cgroup());
    let sysfs = format!("--sysfs={}", sysfs.path().display());
    let run = Running::start([
        "--cgroup",
        &glob,
        "--max-workloads=2",
        "--cpu-energy=powercap",
        &sysfs,
        "--interval=50ms",
        "--duration=1s",
        "--static-power=30",
        "--format=jsonl",
    ]);
    let ended = run.wait().succeeded();
    let (_, report) = ended.lines();
    assert_eq!(report.0["workloads"].as_array().unwrap().len(), 2);
    assert!(report.node("cpu", "workloads_j") > 0.0);
    assert!(report.node("cpu", "other_j") > 0.0);
    for said in [&ended.stderr, &report.warnings()] {
        assert!(said.contains("2 workloads found no room"), "{said}");
        assert!(said.contains("--max-workloads"), "{said}");
    }
}

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

/// Standard error of a run whose standard output goes to `stdout`.
fn with_stdout(mut command: Command, stdout: impl Into<Stdio>) -> Ended {
    let directory = tempfile::tempdir().unwrap();
    command.stdout(stdout).stderr(File::create(directory.path().join("stderr")).unwrap());
    Running::spawn_as_is(command, directory).wait()
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_full_disk_costs_the_file_and_not_the_figures() {
    let bench = Bench::new();
    let name = bench.cgroup.cgroup();
    for format in ["table", "json", "jsonl", "csv"] {
        let options = ["--duration=300ms", "--format", format];
        let ended = with_stdout(bench.command(&options), full()).exited(1);
        let sentence = "ecoprobe: cannot write to standard output: No space left on device";
        assert!(ended.stderr.contains(sentence), "{}", ended.stderr);
        assert!(ended.stderr.contains(&name) && ended.stderr.contains(" J"), "{}", ended.stderr);
        assert_eq!(ended.stderr.matches("cannot write").count(), 1, "{}", ended.stderr);

        let output = bench.start(&[&options[..], &["--output", "/dev/full"]].concat());
        let ended = output.wait().exited(1);
        assert!(ended.stderr.contains("cannot write to /dev/full: No space"), "{}", ended.stderr);
        assert!(ended.stderr.contains(&name), "{}", ended.stderr);
        // Nowhere left to complain: the exit code still tells.
        let mut command = bench.command(&options);
        command.stdout(full()).stderr(full());
        assert_eq!(command.status().unwrap().code(), Some(1));
    }
    // The recording is lost; the run and its report are not.
    for format in ["table", "json"] {
        let options = ["--duration=1300ms", "--format", format, "--record", "/dev/full"];
        let ended = bench.start(&options).wait().exited(1);
        assert!(ended.stdout.contains(&name), "{}", ended.stdout);
        let said = if format == "table" { &ended.stdout } else { &ended.stderr };
        assert!(said.contains("cannot write the recording /dev/full: No space"), "{said}");
        if format == "json" {
            let seconds = number(&ended.report().0["window"]["seconds"]);
            assert!(seconds > 1.29, "{seconds}");
        }
    }
    let nowhere = refused(bench.start(&["--record", "/no/such/directory/x"]).wait(), 1);
    assert!(nowhere.contains("cannot create the recording /no/such/directory/x"), "{nowhere}");
    let nowhere = refused(bench.start(&["--output", "/no/such/directory/x"]).wait(), 1);
    assert!(nowhere.contains("/no/such/directory/x"), "{nowhere}");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_file_that_may_not_grow_is_like_a_full_disk() {
    let bench = Bench::new();
    let limited = |arguments: &[&str]| {
        let mut command = Command::new("sh");
        // 8 KiB.
        command.args(["-c", "ulimit -f 16; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_ecoprobe")]);
        command.args(arguments);
        Running::spawn(command).wait()
    };
    let recording = Recording::new();
    let name = bench.cgroup.cgroup();
    let options = ["--cpu-energy=none", "--interval=5ms", "--duration=1300ms", "--format=json"];
    let watch = ["--cgroup", &name, "--record", &recording.arg()];
    let ended = limited(&[&watch[..], &options].concat()).exited(1);
    assert_eq!(ended.report().0["workloads"][0]["name"], *name);
    let said = "cannot write the recording";
    assert!(ended.stderr.contains(said) && ended.stderr.contains("too large"), "{}", ended.stderr);
    // The command has the limit as it was.
    let big = "head -c 100000 /dev/zero >\"$0\"; exec head -c 100000 /dev/zero >\"$0\"";
    let command = ["run", "--cpu-energy=none", "--", "sh", "-c", big, &recording.arg()];
    limited(&command).exited(128 + libc::SIGXFSZ as u8 as i32);
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_reader_that_goes_away_ends_the_run_quietly() {
    let bench = Bench::new();
    for format in ["table", "json", "jsonl", "csv"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let duration = if matches!(format, "table" | "json") { "300ms" } else { "60s" };
        let options = ["--duration", duration, "--format", format];
        let ended = with_stdout(bench.command(&options), writer).exited(1);
        let others: Vec<_> =
            ended.stderr.lines().filter(|line| !line.contains("hidden from tracers")).collect();
        assert_eq!(others, [""; 0], "{format}");
    }
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn the_command_of_run_is_not_abandoned_when_the_output_fails() {
    let directory = tempfile::tempdir().unwrap();
    let done = directory.path().join("done");
    let script = format!("sleep 0.5; echo > {}; exit $0", done.display());
    for (code, expected) in [("0", 1), ("7", 7)] {
        let options = ["run", "--cpu-energy=none", "--interval=50ms", "--format=jsonl"];
        let mut command = ecoprobe(options);
        command.args(["--output", "/dev/full", "--", "sh", "-c", &script, code]);
        let ended = Running::spawn(command).wait().exited(expected);
        assert!(done.exists(), "it was waited for");
        fs::remove_file(&done).unwrap();
        assert_eq!(
            ended.stderr.matches("cannot write to /dev/full").count(),
            1,
            "{}",
            ended.stderr
        );
        assert!(ended.stderr.contains("sh"), "{}", ended.stderr);
    }
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn recordings_cut_short_by_a_kill_can_be_replayed() {
    let bench = Bench::new();
    let recording = Recording::new();
    let run = bench.start(&["--record", &recording.arg()]);
    let size = || fs::metadata(recording.path()).map_or(0, |metadata| metadata.len());
    until("a flush", || size() > 0);
    run.signal(Signal::SIGKILL);
    drop(run);
    let report = recording.replay(&["--format", "json"]).report();
    assert_closed(&report.0);
    assert!(report.cpu_seconds(&bench.cgroup.cgroup()) > 0.0);

    // Any part of it is either a recording or refused with a sentence.
    let whole = fs::read(recording.path()).unwrap();
    let part = tempfile::NamedTempFile::new().unwrap();
    let name = part.path().to_str().unwrap();
    for cut in [0, 1, 40, whole.len() / 2, whole.len() - 1] {
        fs::write(part.path(), &whole[..cut]).unwrap();
        let ended = Running::start(["replay", name, "--format=json"]).wait();
        match ended.status.code() {
            Some(0) => assert_closed(&ended.report().0),
            _ => assert!(refused(ended, 2).contains(name)),
        }
    }
    for garbage in [Path::new("/proc/self/exe"), Path::new("/dev/zero"), Path::new("/dev/null")] {
        let garbage = garbage.to_str().unwrap();
        assert!(refused(Running::start(["replay", garbage]).wait(), 2).contains(garbage));
    }
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn closed_standard_streams() {
    let bench = Bench::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = ["--duration=200ms", "--format=json", "--output", file.path().to_str().unwrap()];
    let mut command = bench.command(&output);
    // SAFETY: close(2) is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            (0..3).for_each(|descriptor| {
                libc::close(descriptor);
            });
            Ok(())
        })
    };
    assert_eq!(command.status().unwrap().code(), Some(0));
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
    assert_closed(&report);
}
