//! `ecoprobe --cgroup NAME`: what is already running.

use std::process::ExitCode;

use super::measure::{Measurement, Results, Wake, runtime};
use super::signals::{Signals, asks_for_the_end};
use crate::base::error::EXIT_FAILED;
use crate::collector::{CgroupChanges, Collector, Newcomers};
use crate::config::Watch;
use crate::output;
use crate::recording::Recorder;
use crate::workload::hierarchy::Hierarchies;
use crate::workload::names::{Selection, resolve};
use crate::workload::scope;

pub(super) fn watch(config: &Watch) -> anyhow::Result<ExitCode> {
    let roots = &config.measure.collect.roots;
    let mut selection = resolve(&config.names, roots)?;
    scope::clean_up_stale(&Hierarchies::find(roots)?);
    let output = output::open(&config.measure.output)?;
    let recorder = config.measure.record.as_deref().map(Recorder::create).transpose()?;
    let runtime = runtime()?;
    let measured = runtime.block_on(measure(config, &mut selection, (output, recorder)));
    let (mut run, complete) = measured?;
    run.leave_loop(runtime);
    let gone = selection.is_over().then(|| "every watched cgroup is gone".to_owned());
    run.last_tick();
    let complete = run.finish(gone.into_iter().collect()) && complete;
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}

/// Until it is over, and whether nothing went wrong.
async fn measure(
    config: &Watch,
    selection: &mut Selection,
    results: Results,
) -> anyhow::Result<(Measurement, bool)> {
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
    let failed = until_it_is_over(&mut run, selection).await.err();
    if let Some(error) = &failed {
        run.warn(format!("the measurement ended early: {error:#}"));
    }
    Ok((run, failed.is_none()))
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
            Wake::Signal(signal) if asks_for_the_end(signal) => break,
            Wake::Signal(_) => {}
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
