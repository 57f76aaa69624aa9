//! Work without Python: what switches context as fast as it can, and a compiler.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

use super::TURN;
use crate::simulators::cgroup::TestCgroup;

/// Into the cgroup first: nothing of the work is done outside of it.
const IN_CGROUP: &str = r#"echo $$ >"$0/cgroup.procs" && exec "$@""#;

/// So many files, one after the other, and from the first again.
const COMPILE: &str = r#"n=0; while [ $n -lt $0 ]; do cc -O1 -c file$((n % 10)).c -o file.o || exit; n=$((n + 1)); done"#;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Two tasks on one CPU that wake each other.
    Pipe,
    /// Groups of senders and receivers, as hackbench.
    Messaging,
    /// A compiler, process after process.
    Compile,
}

impl Work {
    pub(super) const ALL: [Self; 3] = [Self::Pipe, Self::Messaging, Self::Compile];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pipe => "perf bench sched pipe",
            Self::Messaging => "perf bench sched messaging",
            Self::Compile => "cc",
        }
    }

    /// Finds how much of it fills a turn.
    pub(super) fn prepare(self, cgroup: &TestCgroup) -> Result<Turn> {
        let mut turn = Turn {
            work: self,
            cgroup: cgroup.path().to_owned(),
            amount: match self {
                Self::Pipe => 2_000,
                Self::Messaging => 10,
                Self::Compile => 1,
            },
            seconds: 0.0,
            sources: None,
        };
        if self == Self::Compile {
            turn.sources = Some(sources()?);
        }
        // The first reads it all from the disk.
        turn.take(turn.amount)?;
        loop {
            turn.seconds = turn.take(turn.amount)?;
            if turn.seconds >= TURN {
                return Ok(turn);
            }
            turn.amount *= 2;
        }
    }
}

/// One kind of work, ready to be done.
#[derive(Debug)]
pub(super) struct Turn {
    work: Work,
    cgroup: PathBuf,
    /// Loops, or files.
    amount: u32,
    /// What it took last.
    seconds: f64,
    sources: Option<TempDir>,
}

impl Turn {
    /// Does it for about so long to warm up, then once; its seconds.
    pub(super) fn take_turn(&mut self, warm_up: f64) -> Result<f64> {
        let amount = warm_up / self.seconds * f64::from(self.amount);
        self.take((amount.round() as u32).max(1))?;
        self.seconds = self.take(self.amount)?;
        Ok(self.seconds)
    }

    fn take(&self, amount: u32) -> Result<f64> {
        let number = amount.to_string();
        let perf = ["perf", "bench", "-f", "simple", "sched"];
        match self.work {
            // Pinned: or what is measured is where the scheduler puts them.
            Work::Pipe => {
                let command = [&["taskset", "-c", "0"], &perf[..], &["pipe", "-l", &number]];
                last_number(&self.run(&command.concat())?)
            }
            Work::Messaging => {
                let command = [&perf[..], &["messaging", "-g", "4", "-l", &number]];
                last_number(&self.run(&command.concat())?)
            }
            Work::Compile => {
                let start = Instant::now();
                self.run(&["sh", "-c", COMPILE, &number])?;
                Ok(start.elapsed().as_secs_f64())
            }
        }
    }

    fn run(&self, command: &[&str]) -> Result<String> {
        let output = Command::new("sh")
            .args(["-c", IN_CGROUP])
            .arg(&self.cgroup)
            .args(command)
            .current_dir(self.sources.as_ref().map_or("/".as_ref(), TempDir::path))
            .stdin(Stdio::null())
            .output()
            .context("cannot run `sh`")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().last().unwrap_or("it does not say why");
            bail!("{last} (on Debian: apt-get install linux-perf util-linux gcc)");
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn last_number(text: &str) -> Result<f64> {
    let number = text.split_whitespace().rev().find_map(|word| word.parse::<f64>().ok());
    let seconds = number.context("`perf bench` printed no time")?;
    ensure!(seconds > 0.0, "`perf bench` took no time");
    Ok(seconds)
}

/// C files that are dull but not trivial.
fn sources() -> Result<TempDir> {
    let directory = tempfile::tempdir()?;
    for file in 0..10 {
        let mut text = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n".to_owned();
        for function in 0..20 {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "int f{file}_{function}(int n, char *s) {{\n  int sum = {function};\n  for (int i = 0; \
                 i < n; i++) {{\n    if (s[i] > {file}) sum += s[i] * i; else sum ^= n << (i & 7);\n  \
                 }}\n  if (sum < 0) printf(\"%d\\n\", sum);\n  return sum + (int)strlen(s);\n}}"
            );
        }
        std::fs::write(directory.path().join(format!("file{file}.c")), text)?;
    }
    Ok(directory)
}
