//! The benchmark suite where it is given nonsense, or a machine that lacks what it needs.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn suite(results: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecoprobe-bench"));
    command.args(["--model-size", "tiny", "--turns", "4", "--duration", "0.1", "--results"]);
    command.arg(results).args(["--ecoprobe", "/bin/false"]);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn settings_that_make_no_sense_are_wrong_usage() {
    let mut wrong = Vec::new();
    for value in ["0", "-1", "abc", "99999999999999999999", "", "NaN"] {
        for variable in ["BENCHMARK_GPU_COUNT", "BENCHMARK_MODEL_SIZE", "BENCHMARK_DURATION"] {
            wrong.push((variable, value));
        }
    }
    wrong.extend([("BENCHMARK_GPU_COUNT", "65"), ("BENCHMARK_DURATION", "inf")]);
    for (variable, value) in wrong {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ecoprobe-bench"));
        let output = command.arg("latency").env(variable, value).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{variable}={value}: {said}");
        let option = variable.trim_start_matches("BENCHMARK_").to_lowercase().replace('_', "-");
        assert!(said.starts_with("error: ") && said.contains(&option), "{variable}: {said}");
    }
}

#[test]
fn a_family_can_be_judged_alone_and_one_that_is_none_is_wrong_usage() {
    let directory = tempfile::tempdir().unwrap();
    let judge = |family: &str| {
        let mut command = suite(directory.path());
        command.args(["accuracy", "--format", "json", "--family", family]).output().unwrap()
    };
    let output = judge("../scenarios/constant");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("smt-knee"), "{}", text(&output.stderr));
    let outcome = &document(&judge("capped"))["outcomes"][0];
    let row = &outcome["data"]["families"]["capped"];
    assert!(row["jobs"].as_u64() > Some(8) && row["told"]["moved"].as_f64() < Some(5.0), "{row}");
    assert_eq!(outcome["data"]["families"].as_object().unwrap().len(), 1);
}

/// An `ecoprobe` that fails at once, as without root.
#[test]
fn what_cannot_be_measured_is_named_and_misses_no_target() {
    let directory = tempfile::tempdir().unwrap();
    for category in ["latency", "memory", "overhead", "probe", "scalability"] {
        let json = [category, "--format", "json"];
        let output = suite(directory.path()).args(json).output().unwrap();
        assert!(output.status.success(), "{category}: {}", text(&output.stderr));
        let outcome = &document(&output)["outcomes"][0];
        assert_eq!(outcome["category"], category);
        assert_eq!(outcome["metrics"], serde_json::json!([]), "{category}");
        assert!(outcome["skipped"][0]["why"].is_string(), "{category}: {outcome}");
        let output = suite(directory.path()).arg(category).output().unwrap();
        let table = text(&output.stdout);
        assert!(table.contains(&format!("skipped, {category}: ")), "{table}");
    }
    let output = suite(directory.path()).args(["--profile", "ticks"]).output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no profile of ticks"), "{said}");
}

#[test]
fn a_baseline_that_is_none_is_wrong_usage_and_another_one_is_not_compared() {
    let directory = tempfile::tempdir().unwrap();
    let baseline = directory.path().join("baseline");
    let run = |text: &str| {
        std::fs::write(&baseline, text).unwrap();
        let mut command = suite(&directory.path().join("results"));
        command.args(["memory", "--format", "json", "--compare"]).arg(&baseline).output().unwrap()
    };
    for none in ["", "not JSON", "{}"] {
        let output = run(none);
        assert_eq!(output.status.code(), Some(2), "{none}: {}", text(&output.stderr));
    }
    let other = run(r#"{"schema": "another/7"}"#);
    assert!(other.status.success());
    assert!(text(&other.stderr).contains("not compared"), "{}", text(&other.stderr));

    let mut results = document(&other);
    let same = run(&results.to_string());
    assert!(same.status.success());
    assert!(text(&same.stderr).contains("against the baseline"), "{}", text(&same.stderr));
    results["machine"]["cpus"] = 1000.into();
    let elsewhere = run(&results.to_string());
    assert!(elsewhere.status.success());
    let said = text(&elsewhere.stderr);
    assert!(said.contains("another machine") && !said.contains("against"), "{said}");
}

#[test]
fn a_directory_that_cannot_be_written_is_said_before_anything_is_measured() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = suite(&file).arg("memory").output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("bench: cannot write to"), "{said}");
}

#[test]
fn whoever_is_told_to_end_leaves_no_process_and_no_file_behind() {
    let directory = tempfile::tempdir().unwrap();
    let [agent, temporary] = ["agent", "tmp"].map(|name| directory.path().join(name));
    std::fs::create_dir(&temporary).unwrap();
    // One that watches the whole machine and would go on for ever.
    std::fs::write(&agent, "#!/bin/sh\necho $$ >\"$0.pid\"\nexec sleep 1000\n").unwrap();
    let runnable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&agent, runnable).unwrap();
    let mut command = suite(&directory.path().join("results"));
    command.env("TMPDIR", &temporary).args(["scalability", "--ecoprobe"]).arg(&agent);
    let mut suite = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let wait_for = |what: &dyn Fn() -> bool| {
        for _ in 0..1000 {
            if what() {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        false
    };
    let pid = || std::fs::read_to_string(directory.path().join("agent.pid")).unwrap_or_default();
    assert!(wait_for(&|| pid().ends_with('\n')));
    let terminate = Command::new("kill").arg(suite.id().to_string()).status().unwrap();
    assert!(terminate.success());
    assert_eq!(suite.wait().unwrap().code(), Some(128 + 15));
    let gone = wait_for(&|| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid().trim()));
        stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z "))
    });
    if !gone {
        Command::new("kill").arg(pid().trim()).status().unwrap();
    }
    assert!(gone, "{} goes on", pid().trim());
    assert_eq!(std::fs::read_dir(&temporary).unwrap().count(), 0);
}

/// An empty `PATH` but for a shell, and an `ecoprobe` beside which is no virtual environment.
fn nothing_installed(directory: &Path) -> (PathBuf, PathBuf) {
    let [path, bin] = ["path", "bin"].map(|name| directory.join(name));
    for directory in [&path, &bin] {
        std::fs::create_dir(directory).unwrap();
    }
    let ecoprobe = bin.join("ecoprobe");
    let built = Path::new(env!("CARGO_BIN_EXE_ecoprobe-bench")).with_file_name("ecoprobe");
    std::fs::copy(built, &ecoprobe).unwrap();
    std::os::unix::fs::symlink("/bin/sh", path.join("sh")).unwrap();
    (path, ecoprobe)
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn tools_that_are_not_installed_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let (path, ecoprobe) = nothing_installed(directory.path());
    let skipped = || {
        let mut command = suite(directory.path());
        command.env("PATH", &path).args(["--format", "json", "overhead", "--ecoprobe"]);
        let output = command.arg(&ecoprobe).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let skipped = document(&output)["outcomes"][0]["skipped"].as_array().unwrap().clone();
        let sentences = skipped.iter().map(|one| format!("{} {}", one["what"], one["why"]));
        sentences.collect::<Vec<_>>()
    };
    let names = skipped();
    for (place, (what, why)) in [
        ("pipe", "taskset"),
        ("messaging", "perf"),
        ("\"cc\"", "cc: not found"),
        ("training", "python3"),
    ]
    .into_iter()
    .enumerate()
    {
        assert!(names[place].contains(what) && names[place].contains(why), "{names:?}");
    }
    let python = "#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n";
    std::fs::write(path.join("python3"), python).unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(path.join("python3"), readable).unwrap();
    assert!(skipped()[3].contains("No module named 'torch'"));
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn what_fails_in_the_middle_is_said_and_takes_nothing_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let (path, ecoprobe) = nothing_installed(directory.path());
    // It speaks as train.py does; a tool fails, and in the third round all of it.
    let python = r#"#!/bin/sh
echo "ready cpu"
turns=0
while read -r order tool _; do
    [ "$order" = try ] && echo ok && continue
    turns=$((turns + 1))
    [ $turns = 30 ] && echo "out of memory" >&2 && exit 3
    [ "$tool" = eco2ai ] && echo "RuntimeError('gone')" && continue
    echo 0.5
done
"#;
    std::fs::write(path.join("python3"), python).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(path.join("python3"), executable).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecoprobe-bench"));
    command.env("PATH", &path).args(["overhead", "--model-size", "small", "--turns", "4"]);
    command.args(["--format", "json", "--results"]).arg(directory.path());
    let output = command.arg("--ecoprobe").arg(&ecoprobe).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let outcome = &document(&output)["outcomes"][0];
    let failure = outcome["failure"].as_str().unwrap();
    assert!(failure.contains("exit status: 3: out of memory"), "{failure}");
    let skipped = outcome["skipped"].to_string();
    assert!(skipped.contains("beside eco2ai") && skipped.contains("gone"), "{skipped}");
    let metrics = outcome["metrics"].as_array().unwrap();
    let named = |name: &str| metrics.iter().any(|one| one["name"].to_string().contains(name));
    assert!(named("ecoprobe every 1s") && named("codecarbon") && !named("eco2ai"), "{metrics:?}");
}
