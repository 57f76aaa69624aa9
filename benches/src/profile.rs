//! A flame graph of ecoprobe under one kind of load.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use inferno::collapse::Collapse as _;
use inferno::collapse::perf::Folder;
use inferno::flamegraph;

use crate::agent::{Agent, Cgroups, Driver, Energy, gpu_driver};
use crate::harness::Bench;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// A tick a millisecond over 1,000 cgroups.
    Ticks,
    /// A tick a millisecond over 8 simulated GPUs.
    Gpus,
}

impl Profile {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ticks => "ticks",
            Self::Gpus => "gpus",
        }
    }
}

/// Records the agent for a turn and draws it; the SVG's path.
pub(crate) fn record(profile: Profile, bench: &Bench) -> Result<PathBuf> {
    bench.probe_works().map_err(anyhow::Error::msg)?;
    run(Command::new("perf").arg("version").stdout(Stdio::null()))
        .context("a flame graph needs `perf`; on Debian it is in linux-perf")?;
    let (energy, cgroups, _work, driver);
    let name = profile.name();
    let (glob, mut options) = match profile {
        Profile::Ticks => {
            (energy, cgroups) = (Energy::find(), Cgroups::new(1_000)?);
            _work = cgroups.work();
            (cgroups.glob(), energy.options())
        }
        Profile::Gpus => {
            let count = bench.settings.gpu_count;
            driver = gpu_driver(bench, count, 0.0).map_err(anyhow::Error::msg)?;
            ("/".to_owned(), Driver::options(&driver))
        }
    };
    options.push("--interval=1ms".to_owned());
    let directory = tempfile::tempdir()?;
    let data = directory.path().join("perf.data");
    let agent = Agent::start(bench, &glob, &options)?;
    bench.progress(format_args!("profile: recording {name}"));
    // Frame pointers are not kept; the tables for unwinding are.
    run(Command::new("perf")
        .args(["record", "--quiet", "--call-graph", "dwarf,16384", "-F", "997", "-p"])
        .args([&agent.pid().to_string(), "-o"])
        .arg(&data)
        .args(["--", "sleep", &bench.settings.duration.to_string()]))?;
    agent.stop()?;
    bench.progress(format_args!("profile: drawing {name}"));
    let script = directory.path().join("script");
    // Without its period each sample counts as one.
    run(Command::new("perf")
        .args(["script", "-F", "comm,tid,time,event,ip,sym,dso", "-i"])
        .arg(&data)
        .stdout(File::create(&script)?))?;
    std::fs::create_dir_all(&bench.results)?;
    let svg = bench.results.join(format!("profile-{name}.svg"));
    draw(&script, &format!("ecoprobe, {name}"), &svg)?;
    Ok(svg)
}

/// Folds the stacks of `perf script` and draws them.
fn draw(script: &Path, title: &str, svg: &Path) -> Result<()> {
    let mut folded = Vec::new();
    Folder::default().collapse_file(Some(script), &mut folded)?;
    ensure!(!folded.is_empty(), "perf saw the agent do nothing");
    let mut options = flamegraph::Options::default();
    options.title = title.to_owned();
    let file = File::create(svg).with_context(|| svg.display().to_string())?;
    flamegraph::from_reader(&mut options, &folded[..], file)?;
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .with_context(|| format!("cannot run `{program}`"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}", said.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_drawn() {
        let directory = tempfile::tempdir().unwrap();
        let [script, svg] = ["script", "svg"].map(|name| directory.path().join(name));
        let stack = "ecoprobe  7 1.5: cpu-clock: \n\t 1 tick (ecoprobe)\n\t 2 main (ecoprobe)\n\n";
        std::fs::write(&script, stack.repeat(3)).unwrap();
        draw(&script, "a title", &svg).unwrap();
        let text = std::fs::read_to_string(&svg).unwrap();
        assert!(text.contains("tick (3 samples, 100.00%)") && text.contains("a title"), "{text}");
        std::fs::write(&script, "").unwrap();
        assert!(draw(&script, "a title", &svg).is_err());
    }
}
