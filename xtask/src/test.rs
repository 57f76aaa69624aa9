//! `cargo xtask test`: every test binary, one after the other, and what becomes of a test that fails.
//!
//! Some tests measure the live kernel against time on a machine that others may share, so a test that
//! fails runs once more, by itself. One that passes then is flaky: it is named and counted. One that
//! found an invariant broken (`invariant:` in what it says: time that went back, books that are open)
//! gets no second try: there is no machine on which that may happen.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{cargo, imports, is_root, run};

/// What a test says that found something which no machine's load can explain.
const INVARIANT: &str = "invariant:";

struct Binary {
    name: String,
    executable: PathBuf,
    /// Where cargo would run it.
    directory: PathBuf,
}

/// What one binary's tests did.
#[derive(Default)]
struct Outcome {
    passed: usize,
    /// Failed tests, and what each of them said.
    failed: BTreeMap<String, String>,
    /// It ended in another way than by the word of its harness.
    crashed: bool,
}

pub(crate) fn test(arguments: &[String]) -> Result<()> {
    imports::run(true)?;
    let split = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let (for_cargo, for_tests) = arguments.split_at(split);
    let mut for_tests: Vec<OsString> = for_tests.iter().skip(1).map(Into::into).collect();
    if is_root()? {
        // Those that are marked `ignore` need root and the real kernel, and nothing else.
        for_tests.push("--include-ignored".into());
    } else {
        eprintln!("not root: the tests of the real kernel are left out (run with sudo for them)");
    }
    let (mut passed, mut flaky, mut failed) = (0, Vec::new(), Vec::new());
    for binary in build(for_cargo)? {
        println!("\n{}", binary.name);
        let outcome = execute(&binary, &for_tests)?;
        passed += outcome.passed;
        if outcome.crashed {
            failed.push(format!("{} (it crashed)", binary.name));
        }
        for (test, said) in outcome.failed {
            let name = format!("{}: {test}", binary.name);
            if said.contains(INVARIANT) {
                failed.push(format!("{name} (an invariant is broken: no second try)"));
                continue;
            }
            eprintln!("\nonce more, by itself: {name}");
            let by_itself = [&test, "--exact", "--include-ignored"].map(OsString::from);
            let again = execute(&binary, &by_itself)?;
            let passes = again.passed == 1 && again.failed.is_empty() && !again.crashed;
            if passes { &mut flaky } else { &mut failed }.push(name);
        }
    }
    println!("\ndocumentation");
    run(cargo().args(["test", "--quiet", "--workspace", "--doc"]).args(for_cargo))?;
    for name in &flaky {
        println!("flaky (passed at the second try): {name}");
    }
    for name in &failed {
        println!("failed: {name}");
    }
    let passed = passed + flaky.len();
    println!("\n{} flaky\n{passed} passed, {} failed", flaky.len(), failed.len());
    ensure!(failed.is_empty(), "{} tests failed", failed.len());
    ensure!(passed > 0, "no test was run");
    Ok(())
}

/// Builds the test binaries, and says where they are.
fn build(arguments: &[String]) -> Result<Vec<Binary>> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    let mut child =
        command.args(arguments).stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let mut binaries = Vec::new();
    for line in BufReader::new(child.stdout.take().context("no standard output")?).lines() {
        let message: Value = serde_json::from_str(&line?).context("cargo's messages")?;
        let text = |path: &str| message.pointer(path).and_then(Value::as_str);
        let is_test = message.pointer("/profile/test").and_then(Value::as_bool) == Some(true);
        let (Some(executable), Some(manifest)) = (text("/executable"), text("/manifest_path"))
        else {
            continue;
        };
        if is_test {
            let directory = Path::new(manifest).parent().context("a manifest without a folder")?;
            let package = directory.file_name().unwrap_or_default().to_string_lossy();
            binaries.push(Binary {
                name: format!("{package}/{}", text("/target/name").unwrap_or_default()),
                executable: executable.into(),
                directory: directory.to_owned(),
            });
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "cargo test --no-run: {status}");
    binaries.sort_by(|a, b| a.name.cmp(&b.name));
    if binaries.is_empty() {
        bail!("cargo built no test");
    }
    Ok(binaries)
}

/// Runs a binary, shows what it prints, and keeps what failed.
fn execute(binary: &Binary, arguments: &[OsString]) -> Result<Outcome> {
    let mut command = Command::new(&binary.executable);
    command.args(arguments).current_dir(&binary.directory).stdout(Stdio::piped());
    // As cargo sets it for whoever asks at run time.
    command.env("CARGO_MANIFEST_DIR", &binary.directory);
    let mut child = command.spawn().with_context(|| format!("cannot run {}", binary.name))?;
    let mut outcome = Outcome::default();
    let mut section = None;
    let mut concluded = false;
    for line in BufReader::new(child.stdout.take().context("no standard output")?).lines() {
        let line = line?;
        writeln!(std::io::stdout(), "{line}")?;
        // "test NAME ... ok", "---- NAME stdout ----", "test result: ok. 3 passed; ..."
        if let Some(test) = line.strip_prefix("test ") {
            if let Some((name, "FAILED")) = test.rsplit_once(" ... ") {
                outcome.failed.entry(name.to_owned()).or_default();
            }
            if let Some(result) = test.strip_prefix("result: ") {
                concluded = true;
                let passed = result.split_whitespace().nth(1).and_then(|word| word.parse().ok());
                outcome.passed = passed.unwrap_or(0);
            }
        }
        if let Some(name) = line.strip_prefix("---- ").and_then(|l| l.strip_suffix(" stdout ----"))
        {
            section = Some(name.to_owned());
        }
        if let Some(name) = &section {
            let said = outcome.failed.entry(name.clone()).or_default();
            said.push_str(&line);
            said.push('\n');
        }
        if line == "failures:" {
            section = None;
        }
    }
    let status = child.wait()?;
    outcome.crashed = !concluded || (!status.success() && outcome.failed.is_empty());
    Ok(outcome)
}
