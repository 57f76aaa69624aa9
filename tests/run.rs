//! `ecoprobe run` from outside: the command behaves as if ecoprobe were not there, and nothing is
//! left of it afterwards, not even when ecoprobe is killed.

#![allow(clippy::unwrap_used)]

mod sim;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sim::cgroup::{TestCgroup, v2_mount};
use sim::cli::{Ended, Report, Running, assert_closed, ecoprobe, until};

/// `run` with a report on `file`, so that standard output is the command's alone.
fn start(file: &Path, command: &[impl AsRef<OsStr>]) -> Running {
    let mut run = ecoprobe(["run", "--cpu-energy=estimate", "--format=json", "--interval=100ms"]);
    run.arg("--output").arg(file).arg("--").args(command);
    Running::spawn(run)
}

fn shell(script: &str) -> [&str; 3] {
    ["sh", "-c", script]
}

/// Runs it to its end; what it printed, and its report.
#[track_caller]
fn run(command: &[impl AsRef<OsStr>], code: i32) -> (Ended, Report) {
    let file = tempfile::NamedTempFile::new().unwrap();
    let running = start(file.path(), command);
    let cgroup = cgroup_of(running.pid());
    let ended = running.wait().exited(code);
    assert!(!cgroup.exists(), "{}", cgroup.display());
    let report = Report(serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap());
    assert_closed(&report.0);
    (ended, report)
}

/// The cgroup that the ecoprobe with that pid makes: below its own.
fn cgroup_of(pid: u32) -> PathBuf {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    v2_mount().join(own).join(format!("ecoprobe-run-{pid}"))
}

fn processes_in(cgroup: &Path) -> Vec<i32> {
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    processes.lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn cpu_time_is_all_of_the_commands() {
    // Its cgroup's own account just before its end; children that come and go included.
    let script = "timeout 1.5 sh -c 'while :; do :; done'; \
                  for i in 1 2 3 4 5 6 7 8 9 10; do (:); done; \
                  cat $0/$(sed -n 's|^0::/||p' /proc/self/cgroup)/cpu.stat";
    let mount = v2_mount();
    let command = ["sh", "-c", script, mount.to_str().unwrap()];
    let (ended, report) = run(&command, 0);
    let usage = ended.stdout.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap();
    let kernel = usage.parse::<f64>().unwrap() * 1e-6;
    let found = report.cpu_seconds("sh");
    assert!(kernel > 0.1, "{kernel}");
    // The end of `cat` and of the shell came after; the kernel may not have counted the last tick.
    assert!((kernel * 0.995..kernel * 1.005 + 0.01).contains(&found), "{found} {kernel}");
    assert_eq!(report.workload("sh")["kind"], "run");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn it_exits_as_the_command_does() {
    let (ended, report) = run(&shell("echo out; echo err >&2; exit 7"), 7);
    assert_eq!(ended.stdout, "out\n");
    assert!(ended.stderr.lines().any(|line| line == "err"), "{}", ended.stderr);
    assert!(report.cpu_seconds("sh") > 0.0);
    run(&["true"], 0);
    run(&shell("kill -9 $$"), 128 + 9);
    run(&shell("kill -SEGV $$"), 128 + 11);
    // Options after the command are the command's.
    let (ended, _) = run(&["echo", "--interval", "0", "--", "x"], 0);
    assert_eq!(ended.stdout, "--interval 0 -- x\n");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_command_that_cannot_be_executed_is_told_as_by_a_shell() {
    let files = tempfile::tempdir().unwrap();
    let plain = files.path().join("plain");
    fs::write(&plain, "text").unwrap();
    let script = files.path().join("script");
    fs::write(&script, "#!/nonexistent/interpreter\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let cases = [
        ("no-such-command".into(), 127, "was not found"),
        ("/no/such/command".into(), 127, "was not found"),
        (plain.to_str().unwrap().to_owned(), 126, "cannot be executed"),
        (files.path().to_str().unwrap().to_owned(), 126, "cannot be executed"),
        (script.to_str().unwrap().to_owned(), 126, "interpreter"),
    ];
    for (command, code, why) in cases {
        let running = Running::start(["run", "--cpu-energy=none", "--", &command]);
        let cgroup = cgroup_of(running.pid());
        let ended = running.wait().exited(code);
        assert_eq!(ended.stdout, "");
        let sentence = ended.stderr.lines().last().unwrap();
        assert!(sentence.contains(why) && sentence.contains(&command), "{sentence}");
        assert!(!cgroup.exists());
    }
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn signals_are_the_commands_to_handle() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let script = "trap 'echo USR1' USR1; trap 'echo TERM; exit 9' TERM; echo ready; \
                  while :; do sleep 0.01; done";
    let mut running = start(file.path(), &shell(script));
    running.wait_for_lines(1);
    running.signal(Signal::SIGUSR1);
    running.wait_for_lines(2);
    running.signal(Signal::SIGTERM);
    let ended = running.wait().exited(9);
    assert_eq!(ended.stdout, "ready\nUSR1\nTERM\n");
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
    assert_eq!(report["workloads"][0]["name"], "sh");

    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut running = start(file.path(), &shell("echo ready; exec sleep 60"));
        running.wait_for_lines(1);
        running.signal(signal);
        running.wait().exited(128 + signal as i32);
    }
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_command_that_is_stopped_ends_when_it_is_told_to() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut running = start(file.path(), &shell("echo ready; kill -STOP $$; exec sleep 60"));
    running.wait_for_lines(1);
    let cgroup = cgroup_of(running.pid());
    let stopped = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
    };
    until("the command stops", || processes_in(&cgroup).iter().all(|pid| stopped(*pid)));
    running.signal(Signal::SIGTERM);
    running.wait().exited(128 + 15);
}

/// Field 41 of a process's `stat`: how it is scheduled.
fn policy(pid: &str) -> i32 {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap();
    let (_, after_name) = stat.rsplit_once(')').unwrap();
    after_name.split_whitespace().nth(38).unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn ecoprobe_is_woken_first_and_the_command_runs_as_it_would() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut running = start(file.path(), &shell("echo $$; (sleep 60; :)"));
    running.wait_for_lines(1);
    let agent = running.pid().to_string();
    until("a wait for a tick", || policy(&agent) == libc::SCHED_FIFO);
    let cgroup = cgroup_of(running.pid());
    until("the shell's child and its own", || processes_in(&cgroup).len() == 3);
    for pid in processes_in(&cgroup) {
        assert_eq!(policy(&pid.to_string()), policy("self"));
    }
    running.signal(Signal::SIGTERM);
    running.wait().exited(128 + 15);
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_duration_ends_the_command_too() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut command = ecoprobe(["run", "--cpu-energy=none", "--format=json", "--output"]);
    command.arg(file.path()).args(["--duration=300ms", "--", "sleep", "60"]);
    Running::spawn(command).wait().exited(128 + 15);
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
    let seconds = report["window"]["seconds"].as_f64().unwrap();
    assert!((0.29..2.0).contains(&seconds), "{seconds}");
}

/// `run` for 300 ms; what there is besides, in its report, and how many samples were taken.
#[track_caller]
fn run_for_a_moment(
    mut run: Command,
    script: &str,
    code: i32,
    after_ready: Option<Signal>,
) -> (Ended, f64) {
    let file = tempfile::NamedTempFile::new().unwrap();
    run.args(["run", "--cpu-energy=none", "--gpu-energy=none", "--format=json", "--interval=50ms"]);
    run.args(["--duration=300ms", "--output"]).arg(file.path()).args(["--", "sh", "-c", script]);
    let mut running = Running::spawn(run);
    if let Some(signal) = after_ready {
        running.wait_for_lines(1);
        std::thread::sleep(std::time::Duration::from_millis(1500));
        running.signal(signal);
    }
    let ended = running.wait().exited(code);
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
    (ended, report["window"]["samples"].as_f64().unwrap())
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_command_that_takes_its_time_to_end_is_measured_and_signalled_until_then() {
    let script = "trap '' TERM; trap 'exit 4' USR1; echo ready; while :; do sleep 0.02; done";
    let (_, samples) = run_for_a_moment(ecoprobe([""; 0]), script, 4, Some(Signal::SIGUSR1));
    assert!(samples > 15.0, "{samples}");
    // Some ten seconds are all the time there is.
    let (_, samples) = run_for_a_moment(ecoprobe([""; 0]), script, 128 + 9, None);
    assert!(samples > 100.0, "{samples}");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_command_that_may_not_be_killed_ends_by_itself_and_is_reported() {
    // Root that has no right to signal others.
    let mut run = Command::new("setpriv");
    run.args(["--inh-caps=-kill", "--bounding-set=-kill", env!("CARGO_BIN_EXE_ecoprobe")]);
    let script = "exec setpriv --reuid=65534 sh -c 'sleep 11.5; exit 6'";
    let (ended, _) = run_for_a_moment(run, script, 6, None);
    for signal in ["SIGTERM", "SIGKILL"] {
        assert!(ended.stderr.contains(&format!("ended with {signal}")), "{}", ended.stderr);
    }
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn what_the_command_leaves_running_is_said_and_lives_on() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let running = start(file.path(), &shell("sleep 60 >/dev/null 2>&1 & exit 3"));
    let cgroup = cgroup_of(running.pid());
    let ended = running.wait().exited(3);
    let left = processes_in(&cgroup);
    assert_eq!(left.len(), 1, "{left:?}");
    let report = Report(serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap());
    for said in [&ended.stderr, &report.warnings()] {
        assert!(said.contains("still run in it") && said.contains("ecoprobe-run-"), "{said}");
    }
    // Nobody may be killed for having been measured; with its end the next start cleans up.
    run(&["true"], 0);
    assert!(cgroup.exists());
    kill(Pid::from_raw(left[0]), Signal::SIGKILL).unwrap();
    until("its end", || processes_in(&cgroup).is_empty());
    run(&["true"], 0);
    assert!(!cgroup.exists());
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_kill_leaves_nothing_that_the_next_start_does_not_clean_up() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut running = start(file.path(), &shell("echo ready; exec sleep 60"));
    running.wait_for_lines(1);
    let cgroup = cgroup_of(running.pid());
    let [command] = processes_in(&cgroup)[..] else { panic!("one process") };
    let (programs, maps) = held_by(running.pid());
    assert!(programs.len() >= 4 && maps.len() >= 4, "{programs:?} {maps:?}");
    assert!(programs.is_subset(&loaded_programs()) && maps.is_subset(&loaded_maps()));

    running.signal(Signal::SIGKILL);
    drop(running);
    until("the kernel to let go of the probe", || {
        programs.is_disjoint(&loaded_programs()) && maps.is_disjoint(&loaded_maps())
    });
    // What was measured lives on, as it would without ecoprobe; so its cgroup has to stay.
    assert_eq!(processes_in(&cgroup), [command]);
    kill(Pid::from_raw(command), Signal::SIGKILL).unwrap();
    until("its end", || processes_in(&cgroup).is_empty());

    // Watching cleans up as well as running does.
    let watched = TestCgroup::v2("next");
    let mut next = Running::start([
        "--cgroup",
        &watched.cgroup(),
        "--cpu-energy=none",
        "--interval=50ms",
        "--format=jsonl",
    ]);
    next.wait_for_lines(1);
    assert!(!cgroup.exists());
    next.signal(Signal::SIGINT);
    next.wait().succeeded();
}

/// Ids of the BPF programs and maps that a process holds by file descriptor, links included.
fn held_by(pid: u32) -> (BTreeSet<u32>, BTreeSet<u32>) {
    let (mut programs, mut maps) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap() {
        let info = fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        let id = |key| {
            let value = info.lines().find_map(|line| line.strip_prefix(key))?;
            value.trim().parse::<u32>().ok()
        };
        programs.extend(id("prog_id:"));
        maps.extend(id("map_id:"));
    }
    (programs, maps)
}

fn loaded_programs() -> BTreeSet<u32> {
    // One may go between its listing and its description.
    aya::programs::loaded_programs().flatten().map(|program| program.id()).collect()
}

fn loaded_maps() -> BTreeSet<u32> {
    aya::maps::loaded_maps().flatten().map(|map| map.id()).collect()
}

/// `run` with its result on standard output, in `directory`.
fn mixed(directory: &Path, format: &str, script: &str) -> Ended {
    let mut run =
        ecoprobe(["run", "--cpu-energy=estimate", "--gpu-energy=none", "--interval=100ms"]);
    run.current_dir(directory).args(["--format", format, "--", "sh", "-c", script]);
    Running::spawn(run).wait().exited(0)
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_result_for_programs_does_not_stand_among_what_the_command_prints() {
    for format in ["json", "jsonl", "csv"] {
        let directory = tempfile::tempdir().unwrap();
        let ended = mixed(directory.path(), format, "sleep 0.25; echo hello; echo err >&2");
        let mut files: Vec<PathBuf> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{format}: {files:?} {}", ended.stderr);
        let file = files.remove(0);
        assert!(ended.stderr.contains(file.to_str().unwrap()), "{}", ended.stderr);
        let text = fs::read_to_string(&file).unwrap();
        // All of it in one place.
        assert_eq!(ended.stdout, "hello\n", "{format}");
        match format {
            "json" => assert_closed(&serde_json::from_str(&text).unwrap()),
            "jsonl" => {
                assert!(text.starts_with(r#"{"type":"window""#), "{text}");
                let last = text.lines().last().unwrap();
                assert!(last.starts_with(r#"{"type":"report""#), "{last}");
            }
            _ => assert!(text.starts_with("start_s,") && text.lines().count() > 2, "{text}"),
        }
    }
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_silent_commands_result_is_on_standard_output() {
    let directory = tempfile::tempdir().unwrap();
    let ended = mixed(directory.path(), "json", "sleep 0.25; echo err >&2");
    assert_closed(&serde_json::from_str(&ended.stdout).unwrap());
    // And a table is for people.
    let ended = mixed(directory.path(), "table", "echo hello");
    assert!(ended.stdout.starts_with("hello\n") && ended.stdout.contains("WORKLOAD"));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn what_the_command_leaves_behind_goes_on_writing() {
    let directory = tempfile::tempdir().unwrap();
    let script = "echo first; (sleep 1; echo last) 2>/dev/null &";
    let mut run = ecoprobe(["run", "--cpu-energy=none", "--gpu-energy=none", "--format=json"]);
    run.current_dir(directory.path()).args(["--", "sh", "-c", script]);
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    run.stdout(writer).stderr(std::process::Stdio::null());
    let status = run.spawn().unwrap().wait().unwrap();
    assert_eq!(status.code(), Some(0));
    drop(run);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut fs::File::from(reader), &mut text).unwrap();
    assert_eq!(text, "first\nlast\n");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn what_is_left_behind_and_silent_until_the_end_spoils_no_document() {
    let directory = tempfile::tempdir().unwrap();
    let script = "(sleep 1; echo GARBAGE) 2>/dev/null &";
    let mut run = ecoprobe(["run", "--cpu-energy=none", "--gpu-energy=none", "--format=json"]);
    run.current_dir(directory.path()).args(["--", "sh", "-c", script]);
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    run.stdout(writer).stderr(std::process::Stdio::null());
    assert_eq!(run.spawn().unwrap().wait().unwrap().code(), Some(0));
    drop(run);
    let mut text = String::new();
    std::io::Read::read_to_string(&mut fs::File::from(reader), &mut text).unwrap();
    assert_eq!(text, "GARBAGE\n");
    let file = fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
    assert_closed(&serde_json::from_slice(&fs::read(file).unwrap()).unwrap());
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn output_of_the_command_that_cannot_be_written_is_said() {
    let directory = tempfile::tempdir().unwrap();
    for (script, code) in [("echo hi", 1), ("echo hi; exit 7", 7)] {
        let mut run = ecoprobe(["run", "--cpu-energy=none", "--gpu-energy=none", "--format=json"]);
        run.current_dir(directory.path()).args(["--", "sh", "-c", script]);
        run.stdout(fs::File::options().write(true).open("/dev/full").unwrap());
        let output = run.stderr(std::process::Stdio::piped()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains("not all there: No space left on device"), "{stderr}");
    }
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_reader_that_is_slow_gets_all_that_the_command_wrote() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = ecoprobe(["run", "--cpu-energy=none", "--gpu-energy=none", "--format=json"]);
    run.current_dir(directory.path()).args(["--", "head", "-c", "120000", "/dev/zero"]);
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    run.stdout(writer).stderr(std::process::Stdio::null());
    let mut child = run.spawn().unwrap();
    drop(run);
    // Once it is told to end it does not wait for the reader.
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(child.try_wait().unwrap(), None);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut fs::File::from(reader), &mut bytes).unwrap();
    assert_eq!(bytes.len(), 120_000);
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn what_copies_for_those_left_behind_holds_nothing_and_can_be_ended() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = ecoprobe(["run", "--cpu-energy=none", "--gpu-energy=none", "--format=json"]);
    run.current_dir(directory.path()).args(["--", "sh", "-c", "sleep 5 2>/dev/null &"]);
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    run.stdout(writer).stderr(std::process::Stdio::null());
    let status = run.spawn().unwrap().wait().unwrap();
    assert_eq!(status.code(), Some(0));
    drop(run);
    let reader = fs::File::from(reader);
    let pipe =
        format!("pipe:[{}]", std::os::unix::fs::MetadataExt::ino(&reader.metadata().unwrap()));
    let descriptors = |pid: i32| -> Vec<PathBuf> {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
    };
    let copies = |pid: &i32| {
        *pid != std::process::id() as i32 && descriptors(*pid).contains(&PathBuf::from(&pipe))
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let copier = pids.find(copies).unwrap();
    until("it to let go of the rest", || descriptors(copier).len() == 2);
    let start = std::time::Instant::now();
    kill(Pid::from_raw(copier), Signal::SIGTERM).unwrap();
    until("its end", || !copies(&copier));
    // Long before there is nobody left to copy for.
    assert!(start.elapsed().as_secs() < 2, "{:?}", start.elapsed());
}
