//! What is shown: the books laid out as the report and as windows. The outside schema lives in
//! [`report`]; nothing left of here knows it.

pub(crate) mod report;
#[cfg(test)]
mod tests;

use crate::base::own::Own;
use crate::base::{Component, Joules, Seconds, WorkloadId};
use crate::carbon;
use crate::energy::books::{
    Bill, Books, Coverage, Covered, Known, Member, Sums, Totals, WindowSums,
};
use crate::energy::model::{Doubt, Figure, Method, StaticPower, Summary};
use crate::event::settings::IdlePolicy;
use crate::event::sources::StaticPowerKind;
use report::{
    ComponentBooks, ModelReport, Node, NodeLine, NodeLines, REPORT_SCHEMA, Report, RunSpan,
    Sources, StaticPowerSource, WindowReport, WindowWorkload, WorkloadEnergy, WorkloadGpu,
    WorkloadReport, WorkloadStderr,
};

/// The report of the run so far, with everything posted as it is known now.
pub(crate) fn report(books: &mut Books, own: Own) -> Report {
    books.correct();
    let books = &*books;
    let header = books.header();
    let totals = books.totals();
    let run = books.length();
    let mut workloads_j = [Joules(0.0); Component::COUNT];
    let covered = books.covered();
    let members = books.roster().members();
    let workloads = members.iter().map(|(id, member)| {
        let bills = books.bills(*id);
        for (sum, bill) in workloads_j.iter_mut().zip(&bills) {
            *sum += bill.dynamic + bill.idle;
        }
        workload(books, *id, member, &covered, &totals, &bills, run)
    });
    let workloads: Vec<_> = workloads.collect();
    Report {
        schema: REPORT_SCHEMA,
        host: (&header.host).into(),
        window: RunSpan { start: header.start.clone(), seconds: run.0, samples: books.samples() },
        sources: Sources::new(&header.sources, books.basis(), static_power(books)),
        node: node(&totals, &workloads_j),
        workloads,
        model: books.models().map(|(domain, summary)| model(domain, &summary)).collect(),
        own,
        warnings: books.warnings(),
    }
}

fn workload(
    books: &Books,
    id: WorkloadId,
    member: &Member,
    covered: &Covered<'_>,
    totals: &Totals,
    bills: &[Bill; Component::COUNT],
    run: Seconds,
) -> WorkloadReport {
    let settings = &books.header().settings;
    let measured = measured(books, member, covered, totals, bills);
    let energy_j = energy(books, measured, bills);
    let mut stderr_j = stderr(measured, bills);
    if energy_j.idle_share.is_some() {
        // What is idle is what is not dynamic: their errors cancel, and nobody keeps how far.
        stderr_j.total = None;
    }
    let covered_s = Seconds::from_ns(covered.of(Component::Cpu, member.times()).covered_ns).0;
    let cpu_seconds = Seconds::from_ns(member.cpu_ns).0;
    let watts_per_cpu = energy_j.cpu.zip(stderr_j.cpu).filter(|_| covered_s > 0.0);
    let pue = settings.pue.unwrap_or(1.0);
    let billed = |rate: Option<f64>, figure: fn(Joules, f64, f64) -> f64| {
        Some(figure(energy_j.total.map(Joules)?, rate?, pue))
    };
    let gpus = books.devices(id).map(|device| WorkloadGpu {
        uuid: device.uuid.to_owned(),
        energy_j: device.joules.0,
        method: device.method,
    });
    WorkloadReport {
        name: member.workload.name.clone(),
        cgroup: member.workload.cgroup.clone(),
        cgroup_id: member.workload.cgroup_id,
        kind: member.workload.kind,
        labels: member.workload.labels.clone(),
        cpu_seconds,
        gpu_seconds: books.gpu_seconds(id),
        energy_j,
        stderr_j,
        watts_per_cpu: watts_per_cpu.map(|(value, stderr)| report::Figure {
            value: value / covered_s,
            stderr: stderr / covered_s,
        }),
        method: energy_j.cpu.and_then(|_| books.method(id)).map(|method| match method {
            Method::Alone => report::Method::Alone,
            Method::Shared => report::Method::Shared,
            Method::OwnPrice => report::Method::OwnPrice,
            Method::Estimate => report::Method::Estimate,
        }),
        partial: partial(books, covered, member),
        mean_power_w: mean_power(energy_j.total, run),
        emissions_g: billed(settings.carbon_intensity, carbon::emissions_grams),
        cost: billed(settings.price, carbon::cost),
        gpus: gpus.collect(),
    }
}

/// Of which components a workload's energy is known in the run so far.
fn measured(
    books: &Books,
    member: &Member,
    covered: &Covered<'_>,
    totals: &Totals,
    bills: &[Bill; Component::COUNT],
) -> [bool; Component::COUNT] {
    Component::ALL.map(|component| {
        let index = component as usize;
        let known = || match component {
            Component::Gpu => {
                let told = || books.gpus_told().map(|(_, told)| !told.is_none());
                gpu_is_known(&bills[index], told().any(|told| told), told().any(|told| !told))
            }
            _ => !covered.of(component, member.times()).is_none(),
        };
        totals[index].measured.is_some() && known()
    })
}

/// What a workload's energy leaves out, and why.
fn partial(books: &Books, covered: &Covered<'_>, member: &Member) -> Option<String> {
    let without = |ns| Coverage::without(ns, member.cpu_ns);
    let left_out = covered.left_out(member).map(|(place, ns)| (place, without(ns)));
    let left_out = left_out.filter(|(_, coverage)| coverage.is_partial());
    let mut left_out: Vec<String> = left_out
        .map(|(place, time)| {
            let (uncovered, total) = (time.uncovered().0, time.total().0);
            format!("{uncovered:.3} of {total:.3} CPU-seconds were on {place}")
        })
        .collect();
    let dram = covered.of(Component::Dram, member.times());
    if left_out.is_empty() && dram.is_partial() {
        left_out.push(format!(
            "{:.3} of {:.3} CPU-seconds were on packages whose memory has no energy counter",
            dram.uncovered().0,
            dram.total().0
        ));
    }
    let gpus = books.gpus_told().filter(|(_, told)| told.is_partial());
    left_out.extend(gpus.map(|(uuid, told)| {
        let (unknown, total) = (told.uncovered().0, told.total().0);
        format!("who used {uuid} is not known for {unknown:.3} of {total:.3} s")
    }));
    (!left_out.is_empty()).then(|| left_out.join("; "))
}

/// The pieces of what a workload is billed; their sum is its total.
fn energy(
    books: &Books,
    measured: [bool; Component::COUNT],
    bills: &[Bill; Component::COUNT],
) -> WorkloadEnergy {
    let figure = |component: Component, figure: fn(&Bill) -> Joules| {
        let index = component as usize;
        measured[index].then(|| figure(&bills[index]).0)
    };
    let dynamic = |component| figure(component, |bill| bill.dynamic);
    let idle = |component| figure(component, |bill| bill.idle);
    let settings = &books.header().settings;
    let idle_share = match settings.idle {
        IdlePolicy::Share => sum(Component::ALL.map(idle)),
        IdlePolicy::Separate if settings.gpu_idle_to_holders => idle(Component::Gpu),
        IdlePolicy::Separate => None,
    };
    let (cpu, dram) = (dynamic(Component::Cpu), dynamic(Component::Dram));
    let gpu = dynamic(Component::Gpu);
    let total = sum([cpu, dram, gpu, idle_share]);
    WorkloadEnergy { cpu, dram, gpu, idle_share, total }
}

/// How far off each figure may be. The errors of different components have nothing to do with one
/// another.
fn stderr(measured: [bool; Component::COUNT], bills: &[Bill; Component::COUNT]) -> WorkloadStderr {
    let known = Component::ALL.map(|component| {
        let index = component as usize;
        measured[index].then(|| bills[index].stderr.map(|stderr| stderr.0))
    });
    let [cpu, dram, gpu] = known.map(Option::flatten);
    let mut all = known.into_iter().flatten().peekable();
    let total = all.peek().is_some().then(|| {
        all.try_fold(0.0, |sum: f64, stderr| stderr.map(|stderr| libm::hypot(sum, stderr)))
    });
    WorkloadStderr { cpu, dram, gpu, total: total.flatten() }
}

fn model(domain: &str, summary: &Summary) -> ModelReport {
    let Summary { asleep, awake, price, paired_weight, residual, rows, doubts } = summary;
    let figure = |figure: &Figure| report::Figure { value: figure.value, stderr: figure.stderr };
    ModelReport {
        domain: domain.to_owned(),
        asleep_w: figure(asleep),
        awake_w: figure(awake),
        price_j_per_cpu_s: figure(price),
        paired_weight: paired_weight.as_ref().map(figure),
        residual: *residual,
        windows: *rows,
        doubts: doubts
            .iter()
            .map(|doubt| match doubt {
                Doubt::TooShort => report::Doubt::TooShort,
                Doubt::NeverAsleep => report::Doubt::NeverAsleep,
                Doubt::Capped => report::Doubt::Capped,
                Doubt::Misfit => report::Doubt::Misfit,
            })
            .collect(),
    }
}

fn node(totals: &Totals, workloads_j: &[Joules; Component::COUNT]) -> Node {
    let books = |component: Component| {
        let index = component as usize;
        let Sums { measured: Some(measured), idle, unattributed, other } = totals[index] else {
            return ComponentBooks::default();
        };
        ComponentBooks {
            measured_j: Some(measured.0),
            idle_j: Some(idle.0),
            workloads_j: Some(workloads_j[index].0),
            other_j: Some((other.dynamic + other.idle).0),
            unattributed_j: Some(unattributed.0),
        }
    };
    let [cpu, dram, gpu] = Component::ALL.map(books);
    Node { cpu, dram, gpu }
}

/// The newest window, split with the static power as it was known then; `None` before there is one.
pub(crate) fn window(books: &Books) -> Option<WindowReport> {
    let window = books.window()?;
    let totals = Component::ALL.map(|component| {
        let index = component as usize;
        Sums {
            measured: window.measured[index],
            idle: window.idle[index],
            unattributed: window.unattributed[index],
            other: window.other[index],
        }
    });
    let mut workloads_j = [Joules(0.0); Component::COUNT];
    let covered = books.covered_in(window);
    let (run_covered, run_totals) = (books.covered(), books.totals());
    let members = books.roster().members();
    // Those that have ended would be rows of zeros for good.
    let members = members.iter().filter(|(id, member)| !member.has_ended() || window.has(*id));
    let workloads = members.map(|(id, member)| {
        let bills = window.workloads.get(id).copied().unwrap_or_default();
        for (sum, bill) in workloads_j.iter_mut().zip(&bills) {
            *sum += bill.dynamic + bill.idle;
        }
        let measured = Component::ALL.map(|component| {
            let index = component as usize;
            let bill = &bills[index];
            let known = match component {
                Component::Gpu => gpu_is_known(bill, window.gpu_users, window.unknown_gpu_users),
                // What was billed may be of a window before this one.
                _ => bill.is_some() || !covered.of(component, window.times(*id)).is_none(),
            };
            totals[index].measured.is_some() && known
        });
        let energy_j = energy(books, measured, &bills);
        let gpu = Component::Gpu as usize;
        let of_gpus = measured[gpu].then(|| (bills[gpu].dynamic + bills[gpu].idle).0);
        WindowWorkload {
            name: member.workload.name.clone(),
            // From 0: the sum of no float is -0.
            cpu_seconds: window.times(*id).fold(0.0, |sum, (_, ns)| sum + ns as f64) * 1e-9,
            energy_j,
            mean_power_w: window_power(window, energy_j.total, of_gpus),
            so_far_j: so_far(books, *id, member, &run_covered, &run_totals),
        }
    });
    let workloads: Vec<_> = workloads.collect();
    let node = node(&totals, &workloads_j);
    Some(WindowReport {
        kind: "window",
        start_s: Seconds::from_ns(window.from_ns - window.first_ns).0,
        seconds: window.time().0,
        lines: lines(window, &node, &run_totals),
        node,
        workloads,
        static_power_w: static_power(books).watts,
        resolution_ms: window.resolution.map(|resolution| resolution.0 * 1e3),
    })
}

/// The mean power of these joules. Those `of_gpus` are over by the time that they are known: they are
/// set against the time that they are about.
fn window_power(window: &WindowSums, joules: Option<f64>, of_gpus: Option<f64>) -> Option<f64> {
    let gpu_time = window.gpu_time.0;
    let gpu = of_gpus.filter(|joules| *joules > 0.0 && gpu_time > 0.0).unwrap_or(0.0);
    let gpu_power = if gpu > 0.0 { gpu / gpu_time } else { 0.0 };
    let others = joules.map(|joules| joules - gpu);
    mean_power(others, window.time()).map(|power| power + gpu_power)
}

/// What was posted to a workload in the run so far. Windows may be missed, so nobody can add them up.
fn so_far(
    books: &Books,
    id: WorkloadId,
    member: &Member,
    covered: &Covered<'_>,
    totals: &Totals,
) -> Option<f64> {
    let bills = books.bills(id);
    let measured = measured(books, member, covered, totals, &bills);
    let bills = bills.map(|bill| (bill.dynamic + bill.idle).0);
    sum(Component::ALL.map(|component| {
        let index = component as usize;
        measured[index].then(|| bills[index])
    }))
}

/// The node's lines in a window, and what was posted to them in the run so far.
fn lines(window: &WindowSums, node: &Node, so_far: &Totals) -> NodeLines {
    let line = |figure: fn(&ComponentBooks) -> Option<f64>, posted: fn(&Sums) -> Joules| NodeLine {
        power_w: window_power(window, node.sum(figure), figure(&node.gpu)),
        so_far_j: sum(Component::ALL.map(|component| {
            let sums = &so_far[component as usize];
            sums.measured.map(|_| posted(sums).0)
        })),
    };
    NodeLines {
        measured: line(|books| books.measured_j, |sums| sums.measured.unwrap_or_default()),
        idle: line(|books| books.idle_j, |sums| sums.idle),
        other: line(|books| books.other_j, |sums| sums.other.dynamic + sums.other.idle),
        unattributed: line(|books| books.unattributed_j, |sums| sums.unattributed),
    }
}

fn static_power(books: &Books) -> StaticPowerSource {
    let mut source = StaticPowerSource::default();
    // Of packages, and of GPUs.
    let mut kinds = [const { Vec::new() }; 2];
    for (component, Known { domain, power, beforehand }) in books.static_power() {
        let watts = power.watts().map(|watts| watts.0);
        source.watts.insert(domain.to_owned(), watts);
        if let StaticPower::Calibrated { stderr, .. } = power {
            source.stderr_watts.insert(domain.to_owned(), stderr.0);
        }
        let learned = watts.map_or(StaticPowerKind::None, |_| StaticPowerKind::Calibrated);
        match component {
            Component::Cpu => kinds[0].push(beforehand.unwrap_or(learned)),
            Component::Gpu => kinds[1].push(beforehand.unwrap_or(learned)),
            Component::Dram => {}
        }
    }
    let least_sure = [
        StaticPowerKind::None,
        StaticPowerKind::Calibrated,
        StaticPowerKind::Estimate,
        StaticPowerKind::Given,
    ];
    if let Some(kinds) = kinds.iter().find(|kinds| !kinds.is_empty()) {
        let found = least_sure.into_iter().find(|kind| kinds.contains(kind));
        source.kind = found.unwrap_or(StaticPowerKind::None);
    }
    source
}

/// Whether a workload's GPU figures are known, where the users of some devices were told, and those of
/// others were not: who is billed for none may have used one of these.
fn gpu_is_known(bill: &Bill, told: bool, unknown: bool) -> bool {
    told && (bill.is_some() || !unknown)
}

/// The sum of what is there; `None` if nothing is.
fn sum<const N: usize>(pieces: [Option<f64>; N]) -> Option<f64> {
    pieces.into_iter().flatten().reduce(|sum, piece| sum + piece)
}

fn mean_power(joules: Option<f64>, time: Seconds) -> Option<f64> {
    joules.filter(|_| time.0 > 0.0).map(|joules| joules / time.0)
}
