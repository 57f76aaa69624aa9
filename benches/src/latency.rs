//! How long a tick takes: by the agent's own account, and by a clock outside of it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ecoprobe::door::{Last, Live, Undisturbed};

use crate::agent::{Agent, Cgroups, Energy, INTERVAL, gpu_driver, start_time};
use crate::harness::{Bench, Metric, Outcome, Target, thousands};
use crate::statistics::quantile;

const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];
/// Where an outside clock looks on, and starting is timed.
const USUAL: usize = 1_000;
/// Ticks of a turn where the p99 has a tight target: of fewer, less than ten decide it.
const TICKS: u32 = 1_000;

#[derive(Default)]
struct Turns {
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Turns {
    fn metrics(self, what: &str, size: usize) -> [Metric; 2] {
        let cgroups = thousands(size);
        [("p50", self.p50), ("p99", self.p99)].map(|(quantile, us)| {
            Metric::of_turns(format!("{what}, {quantile}, {cgroups} cgroups"), "µs", us)
        })
    }
}

pub(crate) fn bench(bench: &Bench, outcome: &mut Outcome) -> Result<()> {
    if let Err(why) = bench.probe_works() {
        outcome.skip("tick, start", why);
    } else {
        ticks(bench, outcome)?;
    }
    gpus(bench, outcome)
}

fn ticks(bench: &Bench, outcome: &mut Outcome) -> Result<()> {
    let energy = Energy::find();
    let mut sizes = Vec::new();
    for size in SIZES {
        bench.progress(format_args!("latency: making {} cgroups", thousands(size)));
        sizes.push((Cgroups::new(size)?, Turns::default()));
    }
    let (mut outside, mut machine, mut start) = (Turns::default(), Vec::new(), Vec::new());
    let turns = bench.settings.turns;
    // The first turn warms up.
    for turn in 0..=turns {
        for place in 0..sizes.len() {
            let place = (place + turn) % sizes.len();
            let Some((cgroups, found)) = sizes.get_mut(place) else { continue };
            let size = cgroups.count;
            let who = thousands(size);
            bench.progress(format_args!("latency: {who} cgroups, turn {turn} of {turns}"));
            let _work = cgroups.work();
            let (p50, p99) = inside(bench, cgroups, &energy)?;
            let by_outside = (size == USUAL).then(|| from_outside(bench, cgroups, &energy));
            let started =
                (size == USUAL).then(|| start_time(bench, &cgroups.glob(), &energy.options()));
            let (by_outside, started) = (by_outside.transpose()?, started.transpose()?);
            let nothing = (size == USUAL && turn > 0).then(|| nothing_for(p50));
            if turn == 0 {
                continue;
            }
            found.p50.push(p50);
            found.p99.push(p99);
            if let Some((p50, p99)) = by_outside {
                outside.p50.push(p50);
                outside.p99.push(p99);
            }
            machine.extend(nothing);
            start.extend(started.map(|time| time.as_secs_f64() * 1e3));
        }
    }
    for (cgroups, found) in sizes {
        let [p50, p99] = found.metrics("tick", cgroups.count);
        outcome.metrics.extend([
            p50,
            match cgroups.count {
                USUAL => p99.with_target(Target::below(100.0).asked(1_000.0)),
                10_000 => p99.with_target(Target::below(1_000.0)),
                _ => p99,
            },
        ]);
    }
    let name = format!("nothing for as long as a median tick, p99, {} cgroups", thousands(USUAL));
    outcome.metrics.push(Metric::of_turns(name, "µs", machine));
    outcome
        .metrics
        .extend(outside.metrics("tick and the probe's news, by an outside clock", USUAL));
    let name = format!("start to first sample, {} cgroups", thousands(USUAL));
    outcome.metrics.push(Metric::of_turns(name, "ms", start).with_target(Target::below(300.0)));
    if matches!(energy, Energy::Simulated { .. }) {
        outcome.skip("ticks that read RAPL", "no counter here; simulated powercap files are read");
    }
    Ok(())
}

/// Percentiles of one run by the report's `collect_us`.
fn inside(bench: &Bench, cgroups: &Cgroups, energy: &Energy) -> Result<(f64, f64)> {
    let mut options = energy.options();
    options.push(format!("--interval={}ms", INTERVAL.as_millis()));
    let least = if cgroups.count == USUAL { INTERVAL * TICKS } else { Duration::ZERO };
    let report = Agent::run(bench, &cgroups.glob(), &options, bench.duration().max(least))?;
    let found = report["workloads"].as_array().map_or(0, Vec::len);
    ensure!(found == cgroups.count, "{found} workloads of {}", cgroups.count);
    let at = |quantile| {
        report["self"]["collect_us"][quantile].as_f64().context("the report has no collect_us")
    };
    Ok((at("p50")?, at("p99")?))
}

/// The p99 of doing nothing for so many µs, undisturbed as a tick is: what is above that is the
/// machine's own, its interrupts and its hypervisor.
fn nothing_for(us: f64) -> f64 {
    let _undisturbed = Undisturbed::begin();
    let took = (0..TICKS).map(|_| {
        std::thread::sleep(INTERVAL / 5);
        let start = Instant::now();
        while start.elapsed().as_secs_f64() * 1e6 < us {
            std::hint::spin_loop();
        }
        start.elapsed().as_secs_f64() * 1e6
    });
    quantile(&took.collect::<Vec<_>>(), 0.99)
}

/// The same of ticks that are called, and timed, by us.
fn from_outside(bench: &Bench, cgroups: &Cgroups, energy: &Energy) -> Result<(f64, f64)> {
    let glob = cgroups.glob();
    let options = energy.options();
    let arguments = ["--cgroup", &glob].into_iter().chain(options.iter().map(String::as_str));
    let mut live = Live::watch(arguments)?;
    let mut us = Vec::new();
    let start = Instant::now();
    while start.elapsed() < bench.duration() {
        // As `ecoprobe` itself waits for its ticks.
        let _undisturbed = Undisturbed::begin();
        std::thread::sleep(INTERVAL);
        let before = Instant::now();
        live.tick(Last::No);
        us.push(before.elapsed().as_secs_f64() * 1e6);
    }
    Ok((quantile(&us, 0.5), quantile(&us, 0.99)))
}

/// Ticks with GPUs to collect, on a simulated driver as slow as a real one: the tick must not wait for
/// it. The driver's own time is not ours to answer for, and a simulation says nothing about it.
fn gpus(bench: &Bench, outcome: &mut Outcome) -> Result<()> {
    let count = bench.settings.gpu_count;
    let what = format!("tick, {count} GPUs, driver calls of 2 ms");
    let driver = match gpu_driver(bench, count, 2.0) {
        Ok(driver) => driver,
        Err(why) => {
            outcome.skip(what, why);
            return Ok(());
        }
    };
    let mut options = driver.options();
    options.push(format!("--interval={}ms", INTERVAL.as_millis()));
    let mut p99 = Vec::new();
    for turn in 0..=bench.settings.turns {
        bench.progress(format_args!("latency: {count} GPUs, turn {turn}"));
        let report = Agent::run(bench, "/", &options, bench.duration())?;
        let us = report["self"]["collect_us"]["p99"].as_f64();
        p99.push(us.context("the report has no collect_us")? / 1e3);
    }
    // The first turn warms up.
    p99.remove(0);
    let target = Target::below(1.0).asked(1.0);
    outcome.metrics.push(Metric::of_turns(format!("{what}, p99"), "ms", p99).with_target(target));
    if !std::path::Path::new("/dev/nvidiactl").exists() {
        outcome.skip("driver calls", "no NVIDIA driver here");
    }
    Ok(())
}
