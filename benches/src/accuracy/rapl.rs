//! On a machine with RAPL: what the agent reports against the counters themselves.

use std::time::Duration;

use anyhow::{Context as _, Result};
use ecoprobe::door::{Last, Live, package_counters};

use crate::harness::{Bench, Metric, Outcome, Target};
use crate::simulators::cgroup::TestCgroup;
use crate::simulators::load::{Load, Shape};

/// A job of a known load on one CPU, the package counters read before and after the agent's ticks.
pub(super) fn counter(bench: &Bench, outcome: &mut Outcome) -> Result<()> {
    const WHAT: &str = "joules against the RAPL counter";
    let counters = package_counters("/sys".as_ref());
    if counters.is_empty() {
        outcome.skip(WHAT, "no RAPL counter on this machine");
        return Ok(());
    }
    if let Err(why) = bench.probe_works() {
        outcome.skip(WHAT, why);
        return Ok(());
    }
    let read = || -> Result<f64> {
        let counts = counters.iter().map(|path| {
            let text = std::fs::read_to_string(path).context(path.display().to_string())?;
            Ok(text.trim().parse::<f64>()? * 1e-6)
        });
        counts.sum()
    };
    let cgroup = TestCgroup::v2("bench");
    let _load = Load::start(Shape::Hog, cgroup.path(), Some(0));
    let mut errors = Vec::new();
    for turn in 1..=bench.settings.turns {
        bench.progress(format_args!("accuracy: {WHAT}, turn {turn}"));
        let before = read()?;
        let mut live = Live::watch(["--cgroup", &cgroup.path().to_string_lossy()])?;
        let opened = read()?;
        std::thread::sleep(bench.duration().max(Duration::from_secs(1)));
        let last = read()?;
        live.tick(Last::Yes);
        let after = read()?;
        let measured = live.finish().node.cpu.measured_j.context("nothing was measured")?;
        let (least, most) = (last - opened, after - before);
        // A counter that wrapped meanwhile brackets nothing.
        if least > 0.0 && most >= least {
            errors.push(100.0 * (measured / f64::midpoint(least, most) - 1.0).abs());
        }
    }
    let metric = Metric::of_turns(WHAT, "%", errors);
    outcome.metrics.push(metric.with_target(Target::below(3.0).asked(10.0)));
    Ok(())
}
