//! `ecoprobe --cgroup NAME`: what is already running.

use std::process::ExitCode;

use nix::sys::signal::Signal;

use super::measure::{Measurement, Wake, runtime};
use super::signals::Signals;
use crate::base::error::EXIT_FAILED;
use crate::collector::{CgroupChanges, Collector, Newcomers};
use crate::config::Watch;
use crate::output;
use crate::workload::hierarchy::Hierarchies;
use crate::workload::names::{Selection, resolve};
use crate::workload::scope;

pub(super) fn watch(config: &Watch) -> anyhow::Result<ExitCode> {
    let roots = &config.measure.collect.roots;
    let selection = resolve(&config.names, roots)?;
    scope::clean_up_stale(&Hierarchies::find(roots)?);
    let output = output::open(&config.measure.output)?;
    runtime()?.block_on(measure(config, selection, output))
}

async fn measure(
    config: &Watch,
    mut selection: Selection,
    output: Box<dyn output::Output>,
) -> anyhow::Result<ExitCode> {
    let signals = Signals::listen()?;
    let workloads = selection.start();
    let rows = workloads.len();
    let options = &config.measure.collect;
    let opened = Collector::open(options, &selection.hierarchy, workloads, Newcomers::Welcome)?;
    let warnings = std::mem::take(&mut selection.warnings);
    let mut run = Measurement::start(&config.measure, opened, rows, output, signals)?;
    for warning in warnings {
        run.warn(warning);
    }
    // What was made or removed before the probe could tell.
    let changes = run.cgroup_changes();
    follow(&mut run, &mut selection, &CgroupChanges { lost: true, ..changes })?;

    while !selection.is_over() {
        run.wake_at(selection.wake_at());
        match run.next().await? {
            Wake::Tick(due) => {
                run.tick(due);
                let changes = run.cgroup_changes();
                follow(&mut run, &mut selection, &changes)?;
                if run.output_failed() {
                    break;
                }
            }
            Wake::Cgroups(changes) => follow(&mut run, &mut selection, &changes)?,
            Wake::Deadline => break,
            Wake::Asked => follow(&mut run, &mut selection, &CgroupChanges::default())?,
            Wake::Signal(Signal::SIGUSR1 | Signal::SIGUSR2) => {}
            Wake::Signal(_) => break,
        }
    }
    let gone = selection.is_over().then(|| "every watched cgroup is gone".to_owned());
    // What has come and gone just now is billed as well.
    let changes = run.cgroup_changes();
    run.apply(selection.update(&changes.made, &changes.removed, changes.lost))?;
    run.last_tick();
    let complete = run.finish(gone.into_iter().collect());
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
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
