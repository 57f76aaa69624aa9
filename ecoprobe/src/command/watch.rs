//! `ecoprobe --cgroup NAME`: what is already running.

use std::process::ExitCode;
use std::time::Instant;

use nix::sys::signal::Signal;

use super::measure::{Measurement, Results, Wake, runtime};
use super::signals::Signals;
use crate::base::error::EXIT_FAILED;
use crate::collector::{CgroupChanges, Collector, Newcomers};
use crate::config::Watch;
use crate::output;
use crate::pipeline;
use crate::recording::Recorder;
use crate::workload::hierarchy::Hierarchies;
use crate::workload::names::{Selection, resolve};
use crate::workload::scope;

pub(super) fn watch(config: &Watch) -> anyhow::Result<ExitCode> {
    let roots = &config.measure.collect.roots;
    let selection = resolve(&config.names, roots)?;
    scope::clean_up_stale(&Hierarchies::find(roots)?);
    let output = output::open(&config.measure.output)?;
    let recorder = config.measure.record.as_deref().map(Recorder::create).transpose()?;
    runtime()?.block_on(measure(config, selection, (output, recorder)))
}

async fn measure(
    config: &Watch,
    mut selection: Selection,
    results: Results,
) -> anyhow::Result<ExitCode> {
    let signals = Signals::listen()?;
    let workloads = selection.start();
    let options = &config.measure.collect;
    let opened = Collector::open(options, &selection.hierarchy, workloads, Newcomers::Welcome)?;
    let warnings = std::mem::take(&mut selection.warnings);
    let mut run = Measurement::start(&config.measure, opened, results, signals)?;
    for warning in warnings {
        run.warn(warning);
    }
    // What was measured until then cannot be measured again.
    let failed = until_it_is_over(&mut run, &mut selection).await.err();
    if let Some(error) = &failed {
        run.warn(format!("the measurement ended early: {error:#}"));
    }
    let gone = selection.is_over().then(|| "every watched cgroup is gone".to_owned());
    run.last_tick();
    let end = Instant::now() + pipeline::PATIENCE;
    let complete = run.finish(gone.into_iter().collect(), end) && failed.is_none();
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}

async fn until_it_is_over(run: &mut Measurement, selection: &mut Selection) -> anyhow::Result<()> {
    // What was made or removed before the probe could tell.
    let changes = run.cgroup_changes();
    follow(run, selection, &CgroupChanges { lost: true, ..changes })?;

    while !selection.is_over() {
        run.wake_at(selection.wake_at());
        match run.next().await? {
            Wake::Tick(due) => {
                run.tick(due);
                let changes = run.cgroup_changes();
                follow(run, selection, &changes)?;
                if run.output_failed() {
                    break;
                }
            }
            Wake::Cgroups(changes) => follow(run, selection, &changes)?,
            Wake::Deadline => break,
            Wake::Asked => follow(run, selection, &CgroupChanges::default())?,
            Wake::Signal(Signal::SIGUSR1 | Signal::SIGUSR2) => {}
            Wake::Signal(_) => break,
        }
    }
    // What has come and gone just now is billed as well.
    let changes = run.cgroup_changes();
    run.apply(selection.update(&changes.made, &changes.removed, changes.lost))
}

/// Takes in what became of cgroups, and whose they are.
fn follow(
    run: &mut Measurement,
    selection: &mut Selection,
    changes: &CgroupChanges,
) -> anyhow::Result<()> {
    run.apply(selection.update(&changes.made, &changes.removed, changes.lost))?;
    run.settle_newcomers(|cgroup_id| selection.is_undecided(cgroup_id));
    Ok(())
}
