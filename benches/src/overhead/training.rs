//! Real training: `benches/train.py` as a process that stays, so that nothing but training is timed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow};
use tempfile::TempDir;

use super::TURN;
use crate::harness::Bench;
use crate::simulators::cgroup::TestCgroup;

/// What people use instead, by the name of its Python module.
pub(super) const TOOLS: [&str; 3] = ["codecarbon", "eco2ai", "zeus"];

#[derive(Debug)]
pub(super) struct Training {
    child: Child,
    /// What it and the tools leave behind, for it is killed in the end.
    _temporary: TempDir,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Comes to an end with the last line of its standard error.
    said: Option<JoinHandle<String>>,
    /// "cpu" or "cuda".
    device: String,
}

impl Training {
    pub(super) fn start(bench: &Bench, cgroup: &TestCgroup) -> Result<Self> {
        bench.progress("overhead: starting to train");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("train.py");
        let temporary = tempfile::tempdir()?;
        let mut child = Command::new(python(bench))
            .env("TMPDIR", temporary.path())
            .arg(script)
            .args([bench.settings.model_size.name(), &TURN.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("no `python3` here")?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let stderr = child.stderr.take().context("a pipe")?;
        // Read on to the end, or the process would wait for us to.
        let said = std::thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).last().unwrap_or_default()
        });
        let mut training = Self {
            child,
            _temporary: temporary,
            orders: orders.context("a pipe")?,
            answers: BufReader::new(answers.context("a pipe")?),
            said: Some(said),
            device: String::new(),
        };
        // It has done nothing yet; threads that it already has move with it.
        cgroup.add(training.child.id());
        let ready = training
            .answer()
            .map_err(|why| anyhow!("{why}; benches/README.md says how to install what it needs"))?;
        training.device = ready.trim_start_matches("ready ").to_owned();
        Ok(training)
    }

    /// Where it computes.
    pub(super) fn device(&self) -> &str {
        &self.device
    }

    /// Whether a tool can be used here; else why not.
    pub(super) fn try_tool(&mut self, tool: &str) -> Result<Result<(), String>> {
        let answer = self.order(&format!("try {tool}")).with_context(|| tool.to_owned())?;
        Ok(if answer == "ok" { Ok(()) } else { Err(answer) })
    }

    /// Trains once, under a tool or under none; its seconds, after it has warmed up for so many.
    pub(super) fn take_turn(&mut self, tool: Option<&str>, warm_up: f64) -> Result<f64> {
        let answer = self.order(&format!("train {} {warm_up}", tool.unwrap_or("nothing")))?;
        answer.parse().with_context(|| format!("train.py: {answer}"))
    }

    fn order(&mut self, order: &str) -> Result<String> {
        // Where nobody reads any more there is no answer either.
        let _ = writeln!(self.orders, "{order}");
        self.answer()
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if !line.is_empty() {
            return Ok(line.trim().to_owned());
        }
        let status = self.child.wait()?;
        let said = self.said.take().and_then(|said| said.join().ok()).unwrap_or_default();
        Err(anyhow!("train.py ended, {status}: {said}"))
    }
}

impl Drop for Training {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The virtual environment that benches/README.md describes, else the system's.
fn python(bench: &Bench) -> PathBuf {
    let target = bench.agent.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    let ours = target.join("bench-python/bin/python");
    if ours.exists() { ours } else { PathBuf::from("python3") }
}
