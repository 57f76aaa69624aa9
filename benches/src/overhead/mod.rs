//! How much longer work takes with ecoprobe beside it.
//!
//! The same work, in the same cgroup, is done with nothing (twice), with ecoprobe at three intervals,
//! and under the tools that people use instead, in an order that is shuffled in each round. Each
//! turn is compared with the two of the same round that had nothing; those two with each other give
//! the noise floor.

mod command;
mod training;

use anyhow::Result;
use fastrand::Rng;

use self::command::Work;
use self::training::Training;
use crate::agent::Agent;
use crate::harness::{Bench, Metric, ModelSize, Outcome, Target};
use crate::simulators::cgroup::TestCgroup;
use crate::statistics::interval;

/// What runs beside the work.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Beside {
    Nothing,
    /// With this `--interval`.
    Ecoprobe(&'static str),
    /// A tool inside of the training process.
    Tool(String),
}

impl Beside {
    const ECOPROBE: [Self; 3] =
        [Self::Ecoprobe("1s"), Self::Ecoprobe("100ms"), Self::Ecoprobe("10ms")];

    fn name(&self) -> String {
        match self {
            Self::Nothing => "nothing".to_owned(),
            Self::Ecoprobe(interval) => format!("ecoprobe every {interval}"),
            Self::Tool(tool) => tool.clone(),
        }
    }
}

pub(crate) fn bench(bench: &Bench, outcome: &mut Outcome) -> Result<()> {
    if let Err(why) = bench.probe_works() {
        outcome.skip("overhead", why);
        return Ok(());
    }
    for work in Work::ALL {
        let cgroup = TestCgroup::v2("bench");
        match work.prepare(bench, &cgroup) {
            Ok(mut turn) => {
                compare(bench, work.name(), &cgroup, &[], None, outcome, |_| turn.seconds())?;
            }
            Err(why) => outcome.skip(work.name(), format!("{why:#}")),
        }
    }
    let cgroup = TestCgroup::v2("bench");
    let size = bench.settings.model_size.name();
    match Training::start(bench, &cgroup) {
        Ok(mut training) => {
            for (tool, why) in training.missing() {
                outcome.skip(format!("training beside {tool}"), why);
            }
            let target = Target { below: 0.1, asked: Some(5.0), or_noise: true };
            let name = format!("training, {size} model on {}", training.device());
            let tools = training.tools();
            compare(bench, &name, &cgroup, &tools, Some(target), outcome, |tool| {
                training.seconds(tool)
            })?;
        }
        Err(why) => outcome.skip(format!("training, {size} model"), format!("{why:#}")),
    }
    Ok(())
}

/// Runs all rounds of one kind of work. `turn` does it once and returns its seconds; it is told which
/// tool to use.
fn compare(
    bench: &Bench,
    work: &str,
    cgroup: &TestCgroup,
    tools: &[String],
    target: Option<Target>,
    outcome: &mut Outcome,
    mut turn: impl FnMut(Option<&str>) -> Result<f64>,
) -> Result<()> {
    let mut all = vec![Beside::Nothing, Beside::Nothing];
    all.extend(Beside::ECOPROBE);
    all.extend(tools.iter().cloned().map(Beside::Tool));
    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); all.len()];
    let mut agent_percent = seconds.clone();
    let mut random = Rng::with_seed(bench.settings.seed);
    let mut order: Vec<usize> = (0..all.len()).collect();
    let rounds = match bench.settings.model_size {
        // Its turns are short, and differences drown in what such a turn varies by.
        ModelSize::Tiny => 2 * bench.settings.turns,
        _ => bench.settings.turns,
    };
    // The first round warms up.
    for round in 0..=rounds {
        random.shuffle(&mut order);
        for &place in &order {
            let (Some(beside), Some(found)) = (all.get(place), seconds.get_mut(place)) else {
                continue;
            };
            let mut agent_ns = None;
            let name = beside.name();
            bench.progress(format_args!("overhead: {work}: {name}, round {round} of {rounds}"));
            let taken = match beside {
                Beside::Nothing => turn(None)?,
                Beside::Tool(tool) => turn(Some(tool))?,
                Beside::Ecoprobe(interval) => {
                    let path = cgroup.path().display().to_string();
                    let agent = Agent::start(bench, &path, &[format!("--interval={interval}")])?;
                    let before = agent.cpu_ns()?;
                    let taken = turn(None)?;
                    agent_ns = Some(agent.cpu_ns()?.saturating_sub(before));
                    agent.stop()?;
                    taken
                }
            };
            if round > 0 {
                found.push(taken);
                if let (Some(ns), Some(percent)) = (agent_ns, agent_percent.get_mut(place)) {
                    percent.push(ns as f64 * 1e-7 / taken);
                }
            }
        }
    }
    let [one, other, rest @ ..] = &seconds[..] else { return Ok(()) };
    let percent = |after: f64, before: f64| 100.0 * (after / before - 1.0);
    let same: Vec<f64> = one.iter().zip(other).map(|(one, other)| percent(*other, *one)).collect();
    let (low, high) = interval(&same);
    let floor = low.abs().max(high.abs());
    for (beside, taken) in all.iter().skip(2).zip(rest) {
        let nothing = one.iter().zip(other).map(|(one, other)| f64::midpoint(*one, *other));
        let added = taken.iter().zip(nothing).map(|(taken, nothing)| percent(*taken, nothing));
        let name = format!("{work}, {}", beside.name());
        let metric = Metric::of_turns(name, "%", added.collect());
        let metric = metric.with_noise(floor).against_nothing();
        outcome.metrics.push(match (target, beside) {
            (Some(target), Beside::Ecoprobe(_)) => metric.with_target(target),
            _ => metric,
        });
    }
    // What the clock cannot tell from noise, the scheduler's account can; the probe is not in it.
    for (beside, percent) in all.iter().zip(agent_percent) {
        if !percent.is_empty() {
            let name = format!("{work}, the agent's own CPU time, {}", beside.name());
            outcome.metrics.push(Metric::of_turns(name, "% of a CPU", percent));
        }
    }
    let kept: serde_json::Map<_, _> = all
        .iter()
        .zip(&seconds)
        .enumerate()
        .map(|(place, (beside, seconds))| {
            let again = if place == 1 { ", again" } else { "" };
            (format!("{}{again}", beside.name()), seconds.clone().into())
        })
        .collect();
    outcome.data.insert(format!("{work}, seconds"), kept.into());
    Ok(())
}
