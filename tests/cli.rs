//! The command line from outside: what a shell sees of it. Nothing here needs root or hardware.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/hand-made.jsonl")
}

fn ecoprobe(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecoprobe"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn replay(options: &[&str]) -> Command {
    let mut command = ecoprobe(&["replay"]);
    command.arg(fixture()).args(options);
    command
}

fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert_eq!(stderr, "");
    String::from_utf8(stdout).unwrap()
}

/// The one sentence of a command that must fail with `code` and print no result.
fn fail(command: &mut Command, code: i32) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(code), "{command:?}: {stderr}");
    assert_eq!(stdout, b"", "{command:?}");
    assert!(!stderr.contains("panicked"), "{command:?}: {stderr}");
    stderr
}

#[test]
fn wrong_usage_is_2() {
    for arguments in [
        &[][..],
        &["--no-such-option"],
        &["no-such-command"],
        &["--interval", "1s"],
        &["--cgroup"],
        &["--cgroup", "a", "--interval", "0"],
        &["--cgroup", "a", "--format", "xml"],
        &["--cgroup", "a", "replay", "x"],
        &["run"],
        &["replay"],
        &["doctor", "--format", "csv"],
    ] {
        assert_ne!(fail(&mut ecoprobe(arguments), 2), "", "{arguments:?}");
    }
}

#[test]
fn help_and_version_are_0() {
    assert!(succeed(&mut ecoprobe(&["--help"])).contains("Exit codes"));
    assert!(succeed(&mut ecoprobe(&["--version"])).starts_with("ecoprobe "));
}

#[test]
fn a_recording_becomes_the_report() {
    let text = succeed(&mut replay(&["--format", "json"]));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["schema"], "ecoprobe.report/1");
    assert_eq!(report["window"]["seconds"], 10.0);
    assert_eq!(report["window"]["samples"], 11);
    for (at, (name, cpu_seconds)) in [("job-a", 10.0), ("job-b", 5.0)].into_iter().enumerate() {
        let workload = &report["workloads"][at];
        assert_eq!(workload["name"], name);
        let found = workload["cpu_seconds"].as_f64().unwrap();
        assert!((found - cpu_seconds).abs() < 1e-9, "{workload}");
    }
    for (component, joules) in [("cpu", 440.0), ("dram", 20.0)] {
        let measured = report["node"][component]["measured_j"].as_f64().unwrap();
        assert!((measured - joules).abs() < 1e-6, "{component}: {measured}");
    }
    assert!(report["node"]["gpu"]["measured_j"].is_null());
    assert!(report["self"]["rss_peak_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn the_same_recording_is_the_same_report() {
    let report = || {
        let text = succeed(&mut replay(&["--format", "json"]));
        let (before, own) = text.split_once("\n  \"self\": {").unwrap();
        let (_, after) = own.split_once("\n  },").unwrap();
        (before.to_owned(), after.to_owned())
    };
    assert_eq!(report(), report());
}

#[test]
fn lines_and_rows_are_as_many_as_windows() {
    let text = succeed(&mut replay(&["--format", "jsonl"]));
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 11);
    assert!(lines[..10].iter().all(|line| line["type"] == "window"));
    assert!(lines[..10].iter().all(|line| line["cpu_energy"] == "powercap"));
    assert_eq!(lines[10]["type"], "report");
    assert_eq!(lines[10]["schema"], "ecoprobe.report/1");

    let text = succeed(&mut replay(&["--format", "csv"]));
    assert_eq!(text.lines().count(), 1 + 10 * 2);
    assert!(text.starts_with("start_s,seconds,workload,"));
}

#[test]
fn a_table_that_is_piped_is_plain() {
    let text = succeed(replay(&[]).env("TERM", "xterm-256color").env_remove("NO_COLOR"));
    assert!(text.contains("job-a") && text.contains("package-0"), "{text}");
    assert!(!text.contains('\x1b'), "{text:?}");
}

#[test]
fn the_result_goes_to_the_file_and_nowhere_else() {
    let directory = tempfile::tempdir().unwrap();
    for format in ["table", "json", "jsonl", "csv"] {
        let path = directory.path().join(format);
        let path = path.to_str().unwrap();
        assert_eq!(succeed(&mut replay(&["--format", format, "--output", path])), "");
        assert!(fs::read_to_string(path).unwrap().contains("job-a"), "{format}");
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 4);
    let nowhere = directory.path().join("no/such/dir");
    let nowhere = nowhere.to_str().unwrap();
    for format in ["table", "json", "jsonl", "csv"] {
        let message = fail(&mut replay(&["--format", format, "--output", nowhere]), 1);
        assert!(message.contains(nowhere), "{message}");
    }
}

#[test]
fn files_that_are_no_recordings_say_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("recording");
    let name = path.to_str().unwrap();

    let message = fail(&mut ecoprobe(&["replay", name]), 1);
    assert!(message.starts_with("ecoprobe: cannot open the recording "), "{message}");
    assert!(message.ends_with("(os error 2)\n"), "{message}");
    fail(&mut ecoprobe(&["replay", directory.path().to_str().unwrap()]), 1);

    let whole = fs::read_to_string(fixture()).unwrap();
    for (contents, reason) in [
        (String::new(), "it is empty"),
        ("\0\u{7f}ELF".into(), "not a recording"),
        (whole.replace("recording/1", "recording/9"), "ecoprobe.recording/9"),
        (whole.replacen("{\"type\":\"sample\"", "{\"type\":", 1), "line 4"),
        (whole.replace("[[0,0,0,0]]", "[[0],[0]]"), "CPU time of 2 packages"),
    ] {
        fs::write(&path, contents).unwrap();
        let message = fail(&mut ecoprobe(&["replay", name]), 2);
        assert!(message.contains(reason) && message.contains(name), "{reason}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn a_recording_that_was_cut_off_is_still_worth_a_report() {
    let whole = fs::read(fixture()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &whole[..whole.len() - 20]).unwrap();
    let name = file.path().to_str().unwrap();
    let output = ecoprobe(&["replay", name, "--format", "json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["window"]["samples"], 10);
    assert!(report["warnings"].to_string().contains("cut off in line 14"), "{report}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("cut off"));
}

#[test]
fn settings_that_make_no_sense_here_are_usage_errors() {
    let message = fail(&mut replay(&["--static-power", "package-7=20"]), 2);
    assert!(message.contains("package-7") && message.contains("package-0, dram-0"), "{message}");
}

#[test]
fn a_closed_pipe_ends_quietly() {
    for format in ["table", "json", "jsonl", "csv"] {
        let mut command = replay(&["--format", format]);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{format}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{format}");
    }
}

#[test]
fn a_full_disk_is_a_sentence() {
    for format in ["table", "json", "jsonl", "csv"] {
        let full = || File::options().write(true).open("/dev/full").unwrap();
        let mut command = replay(&["--format", format]);
        let output = command.stdout(full()).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{format}");
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            "ecoprobe: cannot write to standard output: No space left on device (os error 28)\n"
        );
        let message = fail(&mut replay(&["--format", format, "--output", "/dev/full"]), 1);
        assert!(message.starts_with("ecoprobe: cannot write to /dev/full: No space"), "{message}");
        // Nowhere left to complain: the exit code still tells.
        let status = replay(&["--format", format]).stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(1), "{format}");
    }
}

#[test]
fn a_link_to_standard_output_is_written_to_and_not_replaced() {
    // A link of our own, as /dev/stdout is one: a mistake here must not replace the machine's.
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("stdout");
    std::os::unix::fs::symlink("/proc/self/fd/1", &link).unwrap();
    for format in ["table", "json", "jsonl", "csv"] {
        let options = ["--format", format, "--output", link.to_str().unwrap()];
        assert!(succeed(&mut replay(&options)).contains("job-a"), "{format}");
        assert!(fs::read_link(&link).is_ok(), "{format}");
    }
}

#[test]
fn every_recording_that_is_kept_replays_with_closed_books() {
    let directory = fixture().parent().unwrap().to_owned();
    let mut count = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jsonl") {
            continue;
        }
        count += 1;
        let path = path.to_str().unwrap();
        // The warnings of the recording are on standard error, as they were when it was made.
        let output = ecoprobe(&["replay", path, "--format", "json"]).output().unwrap();
        assert!(output.status.success(), "{path}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let books = |figure: &str| report["node"]["cpu"][figure].as_f64().unwrap();
        let parts = ["idle_j", "workloads_j", "other_j", "unattributed_j"].map(books);
        let measured = books("measured_j");
        assert!(measured > 1.0, "{path}");
        assert!((parts.iter().sum::<f64>() - measured).abs() < 1e-9 * measured, "{path}");
        assert!(parts.iter().all(|joules| *joules >= 0.0), "{path}");
    }
    assert!(count >= 3);
}

#[test]
fn a_recording_is_not_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("copy.jsonl");
    std::fs::copy(fixture(), &copy).unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&copy, &link).unwrap();
    for output in [&copy, &link] {
        for format in ["table", "json", "jsonl", "csv"] {
            let (file, output) = (copy.to_str().unwrap(), output.to_str().unwrap());
            let arguments = ["replay", file, "--format", format, "--output", output];
            let message = fail(&mut ecoprobe(&arguments), 2);
            assert!(message.contains("cannot be the recording and the --output"), "{message}");
        }
    }
    assert_eq!(std::fs::read(&copy).unwrap(), std::fs::read(fixture()).unwrap());
    let both = directory.path().join("both");
    let both = both.to_str().unwrap();
    fail(&mut ecoprobe(&["run", "--record", both, "--output", both, "--", "true"]), 2);
}

/// The reports that the fixtures gave when they were made, kept beside them. What has been added since
/// is left out; what was there must be there to the last digit.
#[test]
fn fixtures_replay_to_the_reports_that_are_kept() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    for name in ["hand-made", "estimate-live", "powercap-simulated"] {
        let kept = fs::read_to_string(directory.join(format!("{name}.report.json"))).unwrap();
        let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
        let mut command = ecoprobe(&["replay", "--format", "json"]);
        let output = command.arg(directory.join(format!("{name}.jsonl"))).output().unwrap();
        let mut report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        report.as_object_mut().unwrap().remove("self").unwrap();
        for workload in report["workloads"].as_array_mut().unwrap() {
            assert!(workload.as_object_mut().unwrap().remove("partial").unwrap().is_null());
        }
        assert_eq!(report, kept, "{name}");
    }
}
