//! How much longer work takes with ecoprobe beside it.
//!
//! A machine is slow and fast again within seconds, so turns are short, and each is compared with the
//! two with nothing just before and just after it. Of ecoprobe at three intervals, of the tools that
//! people use instead, and of nothing itself, which gives the noise floor; shuffled in each round. All
//! do the same work in the same cgroup.
//!
//! A turn is shorter than some intervals. It begins at a random moment of one, so that on average it
//! holds its share of samples; until then the work warms up.

mod command;
mod training;

use std::time::Instant;

use anyhow::Result;
use fastrand::Rng;

use self::command::Work;
use self::training::Training;
use crate::agent::Agent;
use crate::harness::{Bench, Metric, ModelSize, Outcome, Target};
use crate::simulators::cgroup::TestCgroup;

/// How long a turn is, about, seconds.
const TURN: f64 = 0.15;

/// What runs beside the work.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Beside {
    Nothing,
    /// With this `--interval`, and its milliseconds.
    Ecoprobe(&'static str, u32),
    /// A tool inside of the training process, which samples every second.
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

    /// Whether it takes a turn in this round. Tools need seconds to start, and have no target.
    fn is_due(&self, round: usize) -> bool {
        !matches!(self, Self::Tool(_)) || round.is_multiple_of(4)
    }

    /// What it may add to training.
    fn target(&self) -> Option<Target> {
        match self {
            Self::Ecoprobe(_, 100..) => {
                Some(Target { below: 0.1, asked: Some(5.0), or_noise: true })
            }
            // For a closer look, not for all day: what was asked for has to do.
            Self::Ecoprobe(..) => Some(Target::below(5.0).asked(5.0)),
            Self::Nothing | Self::Tool(_) => None,
        }
    }

    /// How often it samples, seconds.
    fn interval(&self) -> f64 {
        match self {
            Self::Nothing => 0.0,
            Self::Ecoprobe(_, ms) => f64::from(*ms) / 1e3,
            Self::Tool(_) => 1.0,
        }
    }
}

/// What is compared with nothing, and what each round found.
#[derive(Debug)]
struct Variant {
    beside: Beside,
    /// Seconds with nothing before, with this, with nothing after.
    turns: Vec<[f64; 3]>,
    /// CPU seconds of the agent, and the seconds whose samples they are.
    agent: Vec<(f64, f64)>,
}

pub(crate) fn bench(bench: &Bench, outcome: &mut Outcome) -> Result<()> {
    if let Err(why) = bench.probe_works() {
        outcome.skip("overhead", why);
        return Ok(());
    }
    let settings = &bench.settings;
    for work in Work::ALL {
        let cgroup = TestCgroup::v2("bench");
        match work.prepare(&cgroup) {
            Ok(turn) => {
                let name = work.name().to_owned();
                let rounds = 4 * settings.turns;
                let compared =
                    Compared { bench, name, cgroup: &cgroup, rounds, has_targets: false };
                compared.with(Vec::new(), outcome, |_, warm_up| turn.seconds(warm_up))?;
            }
            Err(why) => outcome.skip(work.name(), format!("{why:#}")),
        }
    }
    let cgroup = TestCgroup::v2("bench");
    let size = settings.model_size;
    match Training::start(bench, &cgroup) {
        Ok(mut training) => {
            for (tool, why) in training.missing() {
                outcome.skip(format!("training beside {tool}"), why);
            }
            let compared = Compared {
                bench,
                name: format!("training, {} model on {}", size.name(), training.device()),
                cgroup: &cgroup,
                rounds: match size {
                    // So many that the noise is below what was asked for.
                    ModelSize::Tiny => 20 * settings.turns,
                    // Their turns are as long as their steps take.
                    ModelSize::Small | ModelSize::Large => settings.turns,
                },
                has_targets: true,
            };
            compared
                .with(training.tools(), outcome, |tool, warm_up| training.seconds(tool, warm_up))?;
        }
        Err(why) => outcome.skip(format!("training, {} model", size.name()), format!("{why:#}")),
    }
    Ok(())
}

/// One kind of work, to be done again and again.
struct Compared<'a> {
    bench: &'a Bench,
    name: String,
    cgroup: &'a TestCgroup,
    rounds: usize,
    has_targets: bool,
}

impl Compared<'_> {
    /// `turn` does the work once, under a tool or under none, after it has warmed up for so many
    /// seconds, and returns its seconds.
    fn with(
        &self,
        tools: Vec<String>,
        outcome: &mut Outcome,
        mut turn: impl FnMut(Option<&str>, f64) -> Result<f64>,
    ) -> Result<()> {
        let all = [Beside::Nothing].into_iter().chain(Beside::ECOPROBE);
        let all = all.chain(tools.into_iter().map(Beside::Tool));
        let mut variants: Vec<Variant> =
            all.map(|beside| Variant { beside, turns: Vec::new(), agent: Vec::new() }).collect();
        let mut random = Rng::with_seed(self.bench.settings.seed);
        let mut before = turn(None, 0.0)?;
        for round in 1..=self.rounds {
            let due = |variant: &&mut Variant| variant.beside.is_due(round);
            let mut order: Vec<&mut Variant> = variants.iter_mut().filter(due).collect();
            random.shuffle(&mut order);
            for variant in order {
                let name = variant.beside.name();
                self.bench.progress(format_args!(
                    "overhead: {}: {name}, round {round} of {}",
                    self.name, self.rounds
                ));
                let warm_up = variant.beside.interval() * random.f64();
                let seconds = match &variant.beside {
                    Beside::Nothing => turn(None, warm_up)?,
                    Beside::Tool(tool) => turn(Some(tool), warm_up)?,
                    Beside::Ecoprobe(interval, _) => {
                        let path = self.cgroup.path().display().to_string();
                        let options = [format!("--interval={interval}")];
                        let agent = Agent::start(self.bench, &path, &options)?;
                        let (cpu_ns, start) = (agent.cpu_ns()?, Instant::now());
                        let seconds = turn(None, warm_up)?;
                        let cpu_ns = agent.cpu_ns()?.saturating_sub(cpu_ns);
                        // The first sample of all was before this time, and the next is an interval
                        // later: as if the warm-up had none.
                        let sampled = start.elapsed().as_secs_f64() - warm_up;
                        variant.agent.push((cpu_ns as f64 / 1e9, sampled));
                        agent.stop()?;
                        seconds
                    }
                };
                let after = turn(None, 0.0)?;
                variant.turns.push([before, seconds, after]);
                before = after;
            }
        }
        self.report(&variants, outcome);
        Ok(())
    }

    fn report(&self, variants: &[Variant], outcome: &mut Outcome) {
        let mut floor = f64::NAN;
        for Variant { beside, turns, .. } in variants {
            let added = turns.iter().map(|[before, seconds, after]| {
                100.0 * (seconds / f64::midpoint(*before, *after) - 1.0)
            });
            let name = format!("{}, {}", self.name, beside.name());
            let metric = Metric::of_turns(name, "%", added.collect()).against_nothing();
            if *beside == Beside::Nothing {
                // It is the first.
                let (low, high) = metric.interval.unwrap_or((f64::NAN, f64::NAN));
                floor = low.abs().max(high.abs());
                continue;
            }
            let metric = metric.with_noise(floor);
            outcome.metrics.push(match beside.target() {
                Some(target) if self.has_targets => metric.with_target(target),
                _ => metric,
            });
        }
        // What the clock cannot tell from noise, the scheduler's account can; the probe is not in it.
        for Variant { beside, agent, .. } in variants {
            if agent.is_empty() || !self.has_targets {
                continue;
            }
            // Most turns have no sample every second: many are one figure.
            let several = agent.chunks(agent.len().div_ceil(self.bench.settings.turns));
            let percent = several.map(|turns| {
                let (cpu, time) = turns
                    .iter()
                    .fold((0.0, 0.0), |(cpu, time), turn| (cpu + turn.0, time + turn.1));
                100.0 * cpu / time
            });
            let name = format!("{}, the agent's own CPU time, {}", self.name, beside.name());
            outcome.metrics.push(Metric::of_turns(name, "% of a CPU", percent.collect()));
        }
        let kept: serde_json::Map<_, _> = variants
            .iter()
            .map(|Variant { beside, turns, .. }| (beside.name(), serde_json::json!(turns)))
            .collect();
        let name = format!("{}, seconds with nothing before, with it, and after", self.name);
        outcome.data.insert(name, kept.into());
    }
}
