//! How much longer work takes with ecoprobe beside it.
//!
//! A machine is slow and fast again within seconds. So each turn is compared with the two just before
//! and just after it, which have nothing beside them, and turns are as short as the work allows. In each
//! round ecoprobe takes a turn at each of three intervals, and so do the tools that people use instead,
//! and nothing itself, which gives the noise floor. All do the same work in the same cgroup.
//!
//! What is compared is what all turns took together: a median would not see what happens in few of them.
//! All turns but those of tools warm up alike, for a CPU that has idled is faster than one that has not.

mod command;
mod training;

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use fastrand::Rng;

use self::command::Work;
use self::training::{TOOLS, Training};
use crate::agent::Agent;
use crate::harness::{Bench, Metric, ModelSize, Outcome, Target};
use crate::simulators::cgroup::TestCgroup;
use crate::statistics::interval_of;

/// How long a turn is, about, where its work does not say, seconds.
const TURN: f64 = 0.15;

/// How long work warms up: whatever was started or ended before it left cold caches.
const WARM_UP: f64 = 0.05;

/// How long the agent's own CPU time is looked at, seconds.
const ACCOUNT: f64 = 2.0;

/// What runs beside the work.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Beside {
    Nothing,
    /// With this `--interval`, and its milliseconds.
    Ecoprobe(&'static str, u32),
    /// A tool inside of the training process, which samples every second, if it does.
    Tool(String),
}

impl Beside {
    const ECOPROBE: [Self; 3] =
        [Self::Ecoprobe("1s", 1_000), Self::Ecoprobe("100ms", 100), Self::Ecoprobe("10ms", 10)];

    fn name(&self) -> String {
        match self {
            Self::Nothing => "nothing".to_owned(),
            Self::Ecoprobe(interval, _) => format!("ecoprobe every {interval}"),
            Self::Tool(tool) => tool.clone(),
        }
    }

    /// What it may add to training.
    fn target(&self) -> Option<Target> {
        match self {
            Self::Ecoprobe(_, 100..) => {
                Some(Target { below: 0.1, asked: Some(5.0), or_noise: true })
            }
            // A hundred times a second is for a closer look, not for all day.
            _ => None,
        }
    }
}

/// What is compared with nothing, and what each round found.
#[derive(Debug)]
struct Variant {
    beside: Beside,
    /// Seconds with nothing before, with this, with nothing after.
    turns: Vec<[f64; 3]>,
    /// Why a tool takes no more turns.
    failure: Option<String>,
}

impl Variant {
    fn new(beside: Beside) -> Self {
        Self { beside, turns: Vec::new(), failure: None }
    }
}

pub(crate) fn bench(bench: &Bench, outcome: &mut Outcome) -> Result<()> {
    if let Err(why) = bench.probe_works() {
        outcome.skip("overhead", why);
        return Ok(());
    }
    let mut failures = Vec::new();
    for work in Work::ALL {
        let cgroup = TestCgroup::v2("bench");
        match work.prepare(&cgroup) {
            Ok(mut turn) => {
                let comparison = Comparison {
                    bench,
                    work: work.name().to_owned(),
                    cgroup: &cgroup,
                    rounds: 3 * bench.settings.turns,
                    tools_every: 1,
                    has_targets: false,
                };
                let result =
                    comparison.compare(Vec::new(), outcome, |_, warm_up| turn.take_turn(warm_up));
                failures.extend(result.err());
            }
            Err(why) => outcome.skip(work.name(), format!("{why:#}")),
        }
    }
    failures.extend(train(bench, outcome).err());
    let failures: Vec<String> = failures.iter().map(|failure| format!("{failure:#}")).collect();
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

fn train(bench: &Bench, outcome: &mut Outcome) -> Result<()> {
    let cgroup = TestCgroup::v2("bench");
    let size = bench.settings.model_size;
    let mut training = match Training::start(bench, &cgroup) {
        Ok(training) => training,
        Err(why) => {
            outcome.skip(format!("training, {} model", size.name()), format!("{why:#}"));
            return Ok(());
        }
    };
    let mut tools = Vec::new();
    for tool in TOOLS {
        match training.try_tool(tool)? {
            Ok(()) => tools.push(tool.to_owned()),
            Err(why) => outcome.skip(format!("training beside {tool}"), why),
        }
    }
    let turns = bench.settings.turns;
    let (rounds, tools_every) = match size {
        // So many that the noise is below what was asked for. Tools take seconds to start.
        ModelSize::Tiny => (15 * turns, 4),
        // Their turns are as long as their steps take.
        ModelSize::Small | ModelSize::Large => (turns, 1),
    };
    let comparison = Comparison {
        bench,
        work: format!("training, {} model on {}", size.name(), training.device()),
        cgroup: &cgroup,
        rounds,
        tools_every,
        has_targets: true,
    };
    comparison.compare(tools, outcome, |tool, warm_up| training.take_turn(tool, warm_up))
}

/// One kind of work, to be done again and again.
struct Comparison<'a> {
    bench: &'a Bench,
    work: String,
    cgroup: &'a TestCgroup,
    rounds: usize,
    /// Tools take a turn in every so many rounds.
    tools_every: usize,
    has_targets: bool,
}

impl Comparison<'_> {
    /// `turn` does the work once, under a tool or under none, after it has warmed up for so many
    /// seconds, and returns its seconds.
    fn compare(
        &self,
        tools: Vec<String>,
        outcome: &mut Outcome,
        mut turn: impl FnMut(Option<&str>, f64) -> Result<f64>,
    ) -> Result<()> {
        let all = [Beside::Nothing].into_iter().chain(Beside::ECOPROBE);
        let all = all.chain(tools.into_iter().map(Beside::Tool));
        let mut variants: Vec<Variant> = all.map(Variant::new).collect();
        let mut result = self.take_turns(&mut variants, &mut turn);
        for Variant { beside, failure, .. } in &variants {
            if let Some(why) = failure {
                outcome.skip(format!("{} beside {}", self.work, beside.name()), why);
            }
        }
        self.report(&variants, outcome);
        if self.has_targets && result.is_ok() {
            result = self.account(outcome, &mut turn);
        }
        result.with_context(|| self.work.clone())
    }

    fn take_turns(
        &self,
        variants: &mut [Variant],
        turn: &mut impl FnMut(Option<&str>, f64) -> Result<f64>,
    ) -> Result<()> {
        let mut random = Rng::with_seed(self.bench.settings.seed);
        let mut before = turn(None, WARM_UP)?;
        for round in 1..=self.rounds {
            let mut order: Vec<&mut Variant> =
                variants.iter_mut().filter(|variant| self.is_due(variant, round)).collect();
            random.shuffle(&mut order);
            for variant in order {
                let name = variant.beside.name();
                self.bench.progress(format_args!(
                    "overhead: {}: {name}, round {round} of {}",
                    self.work, self.rounds
                ));
                let taken = match &variant.beside {
                    Beside::Nothing => {
                        // What starting and ending it leaves behind is there as well.
                        self.start_agent("1s")?.stop()?;
                        let taken = turn(None, WARM_UP);
                        self.start_agent("1s")?.stop()?;
                        taken
                    }
                    Beside::Ecoprobe(interval, _) => {
                        let agent = self.start_agent(interval)?;
                        let taken = turn(None, WARM_UP);
                        agent.stop()?;
                        taken
                    }
                    // Starting one leaves the CPUs idle for a second.
                    Beside::Tool(tool) => turn(Some(tool), 1.0),
                };
                let taken = match (taken, &variant.beside) {
                    // The rest goes on without a tool that fails.
                    (Err(why), Beside::Tool(_)) => {
                        variant.failure = Some(format!("{why:#}"));
                        None
                    }
                    (taken, _) => Some(taken?),
                };
                let after = turn(None, WARM_UP)?;
                variant.turns.extend(taken.map(|taken| [before, taken, after]));
                before = after;
            }
        }
        Ok(())
    }

    /// What the clock cannot tell from noise, the scheduler's account of the agent can; the probe is not
    /// in it.
    fn account(
        &self,
        outcome: &mut Outcome,
        turn: &mut impl FnMut(Option<&str>, f64) -> Result<f64>,
    ) -> Result<()> {
        for beside in Beside::ECOPROBE {
            let Beside::Ecoprobe(interval, ms) = beside else { continue };
            let mut percent = Vec::new();
            for _ in 0..self.bench.settings.turns {
                self.bench.progress(format_args!(
                    "overhead: {}: CPU time of {}",
                    self.work,
                    beside.name()
                ));
                let agent = self.start_agent(interval)?;
                let (before, start) = (agent.cpu_ns()?, Instant::now());
                turn(None, ACCOUNT)?;
                let used_ns = agent.cpu_ns()?.saturating_sub(before);
                // It sampled when it had started, and after each interval that is over.
                let every = f64::from(ms) / 1e3;
                let passed = (start.elapsed().as_secs_f64() / every).floor() * every;
                agent.stop()?;
                percent.push(used_ns as f64 * 1e-7 / passed);
            }
            let name = format!("{}, the agent's own CPU time, {}", self.work, beside.name());
            outcome.metrics.push(Metric::of_turns(name, "% of a CPU", percent));
        }
        Ok(())
    }

    fn is_due(&self, variant: &Variant, round: usize) -> bool {
        let is_tool = matches!(variant.beside, Beside::Tool(_));
        !is_tool || variant.failure.is_none() && round.is_multiple_of(self.tools_every)
    }

    fn start_agent(&self, interval: &str) -> Result<Agent> {
        let path = self.cgroup.path().display().to_string();
        Agent::start(self.bench, &path, &[format!("--interval={interval}")])
    }

    fn report(&self, variants: &[Variant], outcome: &mut Outcome) {
        // What chance can do, or did.
        let nothing = variants.iter().find(|variant| variant.beside == Beside::Nothing);
        let floor = nothing.map_or(f64::NAN, |Variant { turns, .. }| {
            let (low, high) = interval_of(turns, added);
            added(turns).abs().max((high - low) / 2.0)
        });
        for Variant { beside, turns, .. } in variants {
            if *beside == Beside::Nothing || turns.is_empty() {
                continue;
            }
            let several = turns.chunks(turns.len().div_ceil(self.bench.settings.turns));
            let name = format!("{}, {}", self.work, beside.name());
            let metric = Metric {
                value: added(turns),
                interval: Some(interval_of(turns, added)),
                noise: Some(floor),
                ..Metric::of_turns(name, "%", several.map(added).collect())
            };
            let metric = metric.against_nothing();
            outcome.metrics.push(match beside.target() {
                Some(target) if self.has_targets => metric.with_target(target),
                _ => metric,
            });
        }
        let kept: serde_json::Map<_, _> = variants
            .iter()
            .map(|Variant { beside, turns, .. }| (beside.name(), serde_json::json!(turns)))
            .collect();
        let name = format!("{}, seconds with nothing before, with it, and after", self.work);
        outcome.data.insert(name, kept.into());
    }
}

/// How much longer all turns took than those around them, percent.
fn added(turns: &[[f64; 3]]) -> f64 {
    let (mut taken, mut around) = (0.0, 0.0);
    for [before, during, after] in turns {
        taken += during;
        around += f64::midpoint(*before, *after);
    }
    100.0 * (taken / around - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_in_few_turns_is_seen() {
        let mut turns = [[1.0, 1.0, 1.0]; 10];
        assert_eq!(added(&turns), 0.0);
        turns[3] = [1.0, 1.5, 1.0];
        assert!((added(&turns) - 5.0).abs() < 1e-9);
        // A machine that is slow for a while adds nothing.
        turns[3] = [2.0, 2.0, 2.0];
        assert!(added(&turns).abs() < 1e-9);
    }
}
