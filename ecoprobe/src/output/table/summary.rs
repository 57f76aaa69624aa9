//! The report on one page: who used how much, beside what was measured, and what that rests on.

use super::grid::{BOLD, Cell, Column, DIM, Grid, LOUD, PLAIN, Paint, Row};
use super::live::share;
use crate::base::own::Own;
use crate::event::GpuMethod;
use crate::event::sources::{CpuEnergyKind, GpuEnergyKind, GpuReadMethod, StaticPowerKind};
use crate::output::printable;
use crate::output::units::{self, MISSING, Quantity};
use crate::view::report::{ComponentBooks, Report, Sources, WorkloadReport};

/// How a report is shown.
#[derive(Debug)]
pub(super) struct View {
    /// Columns of the screen; `None`: as many as it takes.
    pub(super) width: Option<usize>,
    /// How many workloads get a line of their own.
    pub(super) workloads: usize,
    pub(super) paint: Paint,
}

pub(super) fn lines(report: &Report, view: &View) -> Vec<String> {
    let paint = view.paint;
    let mut lines = vec![title(report, paint)];
    if is_estimate(report) {
        let basis = report.sources.cpu_energy.basis.as_deref();
        let basis = basis.map_or(String::new(), |basis| format!(" ({})", printable(basis)));
        let label = paint.apply(LOUD, "ESTIMATE, not measured");
        lines.push(format!("{label}: CPU energy here is a model's figure{basis}"));
    }
    lines.push(String::new());
    lines.extend(table(report, view.workloads).render(view.width, paint));
    lines.push(String::new());
    let mut fact = |label: &str, text: String| {
        lines.push(format!("{}  {}", paint.apply(DIM, &format!("{label:<12}")), printable(&text)));
    };
    for text in gpus(report) {
        fact("GPU", text);
    }
    fact("sources", sources(&report.sources));
    fact("static power", static_power(&report.sources));
    fact("ecoprobe", own(&report.own));
    for warning in &report.warnings {
        lines.push(format!("{}       {}", paint.apply(LOUD, "warning"), printable(warning)));
    }
    lines
}

fn is_estimate(report: &Report) -> bool {
    report.sources.cpu_energy.kind == CpuEnergyKind::Estimate
}

fn title(report: &Report, paint: Paint) -> String {
    let (host, window) = (&report.host, &report.window);
    let plural = |count: usize, noun: &str| match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    };
    let elapsed = paint.apply(BOLD, &units::elapsed(window.seconds));
    let machine = format!(
        "{} (kernel {}, {}, {})",
        host.name,
        host.kernel,
        plural(host.cpus, "CPU"),
        plural(host.packages, "package")
    );
    let start = &window.start;
    let samples = units::count(window.samples);
    format!("{elapsed} on {} from {}, {samples} samples", printable(&machine), printable(start))
}

/// Standard errors to either side that hold 95 % of a normal distribution.
const BAR: f64 = 1.96;

type OfBooks = fn(&ComponentBooks) -> Option<f64>;
type OfWorkload = fn(&WorkloadReport) -> Option<f64>;
type OfNode = fn(&Report, OfBooks) -> Option<f64>;

/// One column of figures.
struct Figures {
    column: Column,
    /// Shown even if no workload has it.
    always: bool,
    unit: fn(f64) -> Quantity,
    workload: OfWorkload,
    /// How a single workload's is written, where its error bar says how many digits there are.
    within: Option<fn(&WorkloadReport) -> Option<Quantity>>,
    /// The same for a line of the node's books; `None` where that has no meaning.
    node: Option<OfNode>,
}

impl Figures {
    /// The sum over workloads; `None` if none has the figure.
    fn of(&self, workloads: &[&WorkloadReport]) -> Option<f64> {
        workloads.iter().filter_map(|workload| (self.workload)(workload)).reduce(|a, b| a + b)
    }

    fn cell(&self, workloads: &[&WorkloadReport]) -> Cell {
        let within = match (self.within, workloads) {
            (Some(within), [workload]) => within(workload),
            // Bars do not add up like figures.
            (Some(_), _) if self.node.is_none() => return Cell::Blank,
            _ => None,
        };
        within.map_or_else(|| Cell::of(self.of(workloads), self.unit), Cell::Number)
    }
}

fn table(report: &Report, limit: usize) -> Grid {
    let mut workloads: Vec<&WorkloadReport> = report.workloads.iter().collect();
    workloads.sort_by(|a, b| {
        let joules = |workload: &WorkloadReport| workload.energy_j.total.unwrap_or(0.0);
        joules(b).total_cmp(&joules(a)).then_with(|| b.cpu_seconds.total_cmp(&a.cpu_seconds))
    });
    let measured = report.node.sum(|books| books.measured_j);
    let figures: Vec<Figures> = figures(report)
        .into_iter()
        .filter(|figures| figures.always || figures.of(&workloads).is_some())
        .collect();

    let mut rows = Vec::new();
    let mut workload_row = |style, name: &str, workloads: &[&WorkloadReport]| {
        let total = workloads.iter().filter_map(|w| w.energy_j.total).reduce(|a, b| a + b);
        let cells = figures.iter().map(|figures| figures.cell(workloads));
        rows.push(full_row(style, name, cells, share(total, measured)));
    };
    let (shown, hidden) = workloads.split_at(workloads.len().min(limit));
    for workload in shown {
        workload_row(PLAIN, &workload.name, &[workload]);
    }
    if !hidden.is_empty() {
        let name = format!("… {} more", units::count(hidden.len() as u64));
        workload_row(DIM, &name, hidden);
    }
    let mut book_row = |style, name: &str, figure: OfBooks| {
        let cells = figures.iter().map(|figures| match &figures.node {
            Some(node) => Cell::of(node(report, figure), figures.unit),
            None => Cell::Blank,
        });
        let total = report.node.sum(figure);
        rows.push(full_row(style, name, cells, share(total, measured)));
    };
    book_row(DIM, "other", |books| books.other_j);
    book_row(DIM, "idle", |books| books.idle_j);
    if report.node.sum(|books| books.unattributed_j).is_some_and(|joules| joules != 0.0) {
        book_row(DIM, "unattributed", |books| books.unattributed_j);
    }
    let whole = if is_estimate(report) { "total (ESTIMATE)" } else { "measured" };
    book_row(BOLD, whole, |books| books.measured_j);
    rows.insert(rows.len() - 1, Row::Rule);

    let columns = std::iter::once(Column { header: "WORKLOAD".into(), dispensable: 0 })
        .chain(figures.into_iter().map(|figures| figures.column))
        .chain([
            Column { header: "SHARE".into(), dispensable: 2 },
            Column { header: String::new(), dispensable: 9 },
        ]);
    Grid { columns: columns.collect(), rows }
}

fn full_row(
    style: anstyle::Style,
    name: &str,
    figures: impl Iterator<Item = Cell>,
    share: Option<f64>,
) -> Row {
    let name = std::iter::once(Cell::Text(name.to_owned()));
    let share = [Cell::of(share, units::percent), Cell::Bar(share.unwrap_or(0.0))];
    Row::Cells(style, name.chain(figures).chain(share).collect())
}

/// The columns between the name and the share, in their order.
fn figures(report: &Report) -> Vec<Figures> {
    let estimate = if is_estimate(report) { " (est.)" } else { "" };
    let column = |header: &str, mark: &str, dispensable| Column {
        header: format!("{header}{mark}"),
        dispensable,
    };
    let of_workloads = |column, unit, workload| Figures {
        column,
        always: false,
        unit,
        workload,
        within: None,
        node: None,
    };
    let of_all = |column, unit, workload, node| Figures {
        column,
        always: true,
        unit,
        workload,
        within: None,
        node: Some(node),
    };
    let measured: OfBooks = |books| books.measured_j;
    let whole: OfNode = |report, figure| report.node.sum(figure);

    let mut all = vec![
        of_workloads(column("CPU TIME", "", 3), units::seconds, |w| Some(w.cpu_seconds)),
        of_workloads(column("GPU TIME", "", 5), units::seconds, |w| w.gpu_seconds),
    ];
    // NVML's figures are measured even where the CPU's are not.
    let components: [(&str, &str, OfWorkload, OfNode); 3] = [
        ("CPU", estimate, |w| w.energy_j.cpu, |report, figure| figure(&report.node.cpu)),
        ("DRAM", estimate, |w| w.energy_j.dram, |report, figure| figure(&report.node.dram)),
        ("GPU", "", |w| w.energy_j.gpu, |report, figure| figure(&report.node.gpu)),
    ];
    let present = components.into_iter().filter(|(_, _, workload, node)| {
        node(report, measured).is_some() || report.workloads.iter().any(|w| workload(w).is_some())
    });
    let mut pieces: Vec<Figures> = present
        .map(|(name, mark, workload, node)| {
            of_all(column(name, mark, 6), units::joules, workload, node)
        })
        .collect();
    if report.workloads.iter().any(|workload| workload.energy_j.idle_share.is_some()) {
        let share = column("IDLE SHARE", estimate, 6);
        pieces.push(of_workloads(share, units::joules, |w| w.energy_j.idle_share));
    }
    // A lone piece would only say again what the ENERGY column says.
    if pieces.len() > 1 {
        all.extend(pieces);
    }
    let energy = |column, unit| of_all(column, unit, |w| w.energy_j.total, whole);
    all.push(Figures {
        within: Some(|w| within(w).map(|(joules, _)| joules)),
        ..energy(column("ENERGY", estimate, 0), units::joules)
    });
    let bar: OfWorkload = |w| Some(BAR * w.stderr_j.total?);
    all.push(Figures {
        within: Some(|w| within(w).map(|(_, bar)| bar)),
        ..of_workloads(column("±", "", 0), units::joules, bar)
    });
    // From one watt-hour on, people think in the unit that is on their bill.
    if report.node.sum(measured).is_some_and(|joules| joules >= 3600.0) {
        all.push(energy(column("IN Wh", estimate, 8), units::watt_hours));
    }
    all.push(of_all(
        column("POWER", estimate, 1),
        units::watts,
        |w| w.mean_power_w,
        |report, figure| {
            let seconds = Some(report.window.seconds).filter(|seconds| *seconds > 0.0)?;
            Some(report.node.sum(figure)? / seconds)
        },
    ));
    all.push(of_workloads(column("CO2e", estimate, 4), units::grams, |w| w.emissions_g));
    all.push(of_workloads(column("COST", estimate, 4), units::money, |w| w.cost));
    all
}

/// A workload's energy and its error bar at 95 %.
fn within(workload: &WorkloadReport) -> Option<(Quantity, Quantity)> {
    Some(units::joules_within(workload.energy_j.total?, BAR * workload.stderr_j.total?))
}

/// What each workload had of each GPU, and how that was found; a line a device in use.
fn gpus(report: &Report) -> Vec<String> {
    let devices = report.sources.gpu_energy.devices.iter();
    devices
        .filter_map(|device| {
            let users: Vec<String> = report
                .workloads
                .iter()
                .flat_map(|workload| workload.gpus.iter().map(move |gpu| (workload, gpu)))
                .filter(|(_, gpu)| gpu.uuid == device.uuid)
                .map(|(workload, gpu)| {
                    let method = match gpu.method {
                        GpuMethod::Sole => "sole user",
                        GpuMethod::Utilisation => "by utilisation",
                        GpuMethod::Memory => "by memory held",
                        GpuMethod::Mig => "by MIG slice: a model",
                    };
                    format!("{} {} ({method})", workload.name, units::joules(gpu.energy_j))
                })
                .collect();
            let users = users.join(", ");
            (!users.is_empty()).then(|| format!("{} {}: {users}", device.index, device.name))
        })
        .collect()
}

fn sources(sources: &Sources) -> String {
    let time = &sources.cpu_time;
    let domains = sources.cpu_energy.domains.join(", ");
    let cpu = match sources.cpu_energy.kind {
        CpuEnergyKind::Perf => format!("RAPL through perf ({domains})"),
        CpuEnergyKind::Powercap => format!("RAPL through powercap ({domains})"),
        CpuEnergyKind::Estimate => format!("ESTIMATE, not measured ({domains})"),
        CpuEnergyKind::None => "none".to_owned(),
    };
    let gpu = match sources.gpu_energy.kind {
        GpuEnergyKind::None => "none".to_owned(),
        GpuEnergyKind::Nvml => {
            let devices = &sources.gpu_energy.devices;
            let integrated =
                devices.iter().filter(|device| device.method == GpuReadMethod::Power).count();
            match integrated {
                0 => format!("NVML ({} by energy counter)", devices.len()),
                _ => format!(
                    "NVML ({} by energy counter, {integrated} by power integrated)",
                    devices.len() - integrated
                ),
            }
        }
    };
    format!(
        "CPU energy: {cpu}; GPU energy: {gpu}; CPU time: {} at {}, cgroup {}",
        time.kind, time.hook, time.hierarchy
    )
}

fn static_power(sources: &Sources) -> String {
    let power = &sources.static_power;
    let how = match power.kind {
        _ if power.watts.is_empty() => return "none: no energy was measured".into(),
        StaticPowerKind::Given => "given",
        StaticPowerKind::Calibrated => "calibrated in this run",
        StaticPowerKind::Estimate => "the estimate's idle figure",
        StaticPowerKind::None => return "not known from this run; see the warning".into(),
    };
    let domains = power.watts.iter().map(|(domain, watts)| {
        let watts = watts.map_or(MISSING.to_owned(), |watts| units::watts(watts).to_string());
        let error = power.stderr_watts.get(domain);
        let error =
            error.map_or(String::new(), |error| format!(" ± {}", units::watts(BAR * error)));
        format!("{domain} {watts}{error}")
    });
    format!("{} ({how})", domains.collect::<Vec<_>>().join(", "))
}

fn own(own: &Own) -> String {
    let quantiles = |name: &str, quantiles: &crate::base::own::Quantiles| {
        let p50 = units::microseconds(quantiles.p50?);
        let p99 = quantiles.p99.map(|p99| format!(" (p99 {})", units::microseconds(p99)));
        Some(format!("{name} {p50}{}", p99.unwrap_or_default()))
    };
    let probe = &own.probe;
    let parts = [
        own.cpu_seconds.map(|seconds| format!("{} CPU", units::seconds(seconds))),
        own.rss_peak_bytes.map(|bytes| format!("{} peak", units::bytes(bytes))),
        quantiles("tick", &own.collect_us),
        quantiles("NVML call", &own.nvml_us),
        probe.events.map(|events| format!("{} switches seen", units::count(events))),
        probe.dropped.map(|dropped| format!("{} not seen", units::count(dropped))),
        probe.ns_per_event.map(|ns| format!("{} a switch", units::microseconds(ns * 1e-3))),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() { MISSING.to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{books, report};
    use super::*;
    use crate::event::sources::{CpuEnergyKind, GpuEnergyKind, GpuReadMethod, StaticPowerKind};
    use crate::view::report::*;

    fn text(report: &Report, width: Option<usize>, workloads: usize) -> String {
        lines(report, &View { width, workloads, paint: Paint(false) }).join("\n") + "\n"
    }

    #[test]
    fn a_report_on_one_page() {
        let expected = "\
60.0 s on node01 (kernel 6.1.0, 8 CPUs, 1 package) from 2026-01-02T03:04:05Z, 61 samples

WORKLOAD  CPU TIME      CPU    DRAM   ENERGY     IN Wh   POWER   SHARE
job123    4.00 min  3.00 kJ   200 J  3.20 kJ   889 mWh  53.3 W  59.3 %  █████████▌
small     12.0 s     500 J   50.0 J   550 J    153 mWh  9.17 W  10.2 %  █▋
other                300 J   50.0 J   350 J   97.2 mWh  5.83 W   6.5 %  █
idle                1.20 kJ   100 J  1.30 kJ   361 mWh  21.7 W  24.1 %  ███▉
────────────────────────────────────────────────────────────────────────────────────────
measured            5.00 kJ   400 J  5.40 kJ  1.50 Wh   90.0 W   100 %  ████████████████

sources       CPU energy: RAPL through perf (package-0, dram-0); GPU energy: none; CPU time: ebpf \
at tp_btf/sched_switch, cgroup v2
static power  package-0 20.0 W ± 588 mW (calibrated in this run)
ecoprobe      12.3 ms CPU, 9.80 MB peak, tick 45.0 µs (p99 80.0 µs), 123,456 switches seen, 0 not seen
warning       dram-0 was unreadable\\x0a\\x1b[31mfor 1 s
";
        let text = text(&report(), None, usize::MAX);
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn gpus_emissions_and_cost_appear_where_known() {
        let mut report = report();
        report.sources.gpu_energy = GpuEnergySource {
            kind: GpuEnergyKind::Nvml,
            devices: vec![GpuDevice {
                uuid: "GPU-1".into(),
                name: "H100".into(),
                index: 0,
                method: GpuReadMethod::Counter,
            }],
        };
        report.node.gpu = books(100.0, 20.0, 70.0, 5.0);
        let job = &mut report.workloads[1];
        job.gpu_seconds = Some(1.5);
        job.energy_j.gpu = Some(70.0);
        job.emissions_g = Some(0.5);
        job.cost = Some(0.000123);
        let gpu =
            WorkloadGpu { uuid: "GPU-1".into(), energy_j: 70.0, method: GpuMethod::Utilisation };
        job.gpus.push(gpu);
        let text = text(&report, None, usize::MAX);
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
        let words = |start: &str| line(start).split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            words("WORKLOAD"),
            "WORKLOAD CPU TIME GPU TIME CPU DRAM GPU ENERGY IN Wh POWER CO2e COST SHARE"
        );
        assert!(words("job123").contains("1.50 s 3.00 kJ 200 J 70.0 J"), "{text}");
        assert!(words("job123").contains("500 mg 0.000123"), "{text}");
        assert!(words("small").contains("12.0 s — 500 J 50.0 J — 550 J"), "{text}");
        assert!(words("unattributed").contains("5.00 J"), "{text}");
        assert!(line("GPU ").ends_with("0 H100: job123 70.0 J (by utilisation)"), "{text}");
    }

    #[test]
    fn what_could_not_be_had_is_never_a_zero() {
        let mut report = report();
        report.sources.cpu_energy.kind = CpuEnergyKind::None;
        report.sources.static_power.kind = StaticPowerKind::None;
        report.node = Node { cpu: ComponentBooks::default(), ..report.node };
        report.node.dram = ComponentBooks::default();
        for workload in &mut report.workloads {
            workload.energy_j = WorkloadEnergy::default();
            workload.mean_power_w = None;
        }
        let text = text(&report, None, usize::MAX);
        let job = text.lines().find(|line| line.starts_with("job123")).unwrap();
        let words: Vec<_> = job.split_whitespace().collect();
        assert_eq!(words, ["job123", "4.00", "min", "—", "—", "—"], "{text}");
        assert!(text.contains("static power  not known"), "{text}");
    }

    #[test]
    fn an_estimate_says_so_on_every_figure() {
        let mut report = report();
        report.sources.cpu_energy.kind = CpuEnergyKind::Estimate;
        report.sources.cpu_energy.basis = Some("TDP of a guess".into());
        report.workloads[0].emissions_g = Some(1.0);
        let text = text(&report, None, usize::MAX);
        assert!(
            text.contains("\nESTIMATE, not measured: CPU energy here is a model's figure (TDP of"),
            "{text}"
        );
        let header = text.lines().find(|line| line.starts_with("WORKLOAD")).unwrap();
        for name in ["CPU", "DRAM", "ENERGY", "IN Wh", "POWER", "CO2e"] {
            assert!(header.contains(&format!("{name} (est.)")), "{header}");
        }
        assert!(!text.contains("\nmeasured"), "{text}");
    }

    #[test]
    fn workloads_beyond_the_limit_are_one_row_that_still_adds_up() {
        let text = text(&report(), Some(80), 1);
        let more = text.lines().find(|line| line.starts_with("… 1 more")).unwrap();
        assert!(more.contains("550 J"), "{text}");
        assert!(!text.contains("small"), "{text}");
    }
}
