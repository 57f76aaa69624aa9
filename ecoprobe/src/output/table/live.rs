//! The view that redraws in place: what each workload draws now, and what it has used so far.

use std::collections::{HashMap, HashSet};

use super::grid::{BOLD, Cell, Column, DIM, Grid, LOUD, PLAIN, Paint, Row, shorten};
use crate::base::WorkloadId;
use crate::output::units;
use crate::view::report::{ComponentBooks, WindowReport};

/// Lines of a frame that are not workloads: the title, the headers, "more", other, idle,
/// unattributed, a rule and the total; and the line that the cursor stands on.
const OTHER_LINES: usize = 9;

/// How many that are not shown any more are remembered: a GPU's driver may tell late of them.
const MOST_GONE: usize = 4096;

/// Joules so far; `None` until a window had any.
#[derive(Debug, Clone, Copy, Default)]
struct SoFar(Option<f64>);

impl SoFar {
    fn add(&mut self, joules: Option<f64>) {
        if let Some(joules) = joules {
            self.0 = Some(self.0.unwrap_or(0.0) + joules);
        }
    }
}

/// Windows say what happened in them; the sums are kept here.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// The CPU's energy is a model's figure.
    pub(super) estimate: bool,
    workloads: HashMap<WorkloadId, SoFar>,
    idle: SoFar,
    other: SoFar,
    unattributed: SoFar,
    measured: SoFar,
}

impl Live {
    pub(super) fn add(&mut self, window: &WindowReport) {
        for workload in &window.workloads {
            let so_far = self.workloads.entry(workload.id).or_default();
            so_far.add(workload.energy_j.total);
        }
        if self.workloads.len() > window.workloads.len() + MOST_GONE {
            let shown: HashSet<_> = window.workloads.iter().map(|workload| workload.id).collect();
            self.workloads.retain(|id, _| shown.contains(id));
        }
        self.idle.add(window.node.sum(|books| books.idle_j));
        self.other.add(window.node.sum(|books| books.other_j));
        self.unattributed.add(window.node.sum(|books| books.unattributed_j));
        self.measured.add(window.node.sum(|books| books.measured_j));
    }

    /// The lines of the newest window, at most `height` and none wider than `width`.
    pub(super) fn frame(
        &self,
        window: &WindowReport,
        width: usize,
        height: usize,
        paint: Paint,
    ) -> Vec<String> {
        let seconds = window.seconds;
        let measured = window.node.sum(|books| books.measured_j);
        let row = |style, name: String, cpus: Cell, joules: Option<f64>, so_far: SoFar| {
            let share = share(joules, measured);
            let cells = vec![
                Cell::Text(name),
                cpus,
                Cell::of(joules.map(|joules| joules / seconds), units::watts),
                Cell::of(share, units::percent),
                Cell::Bar(share.unwrap_or(0.0)),
                Cell::of(so_far.0, units::joules),
            ];
            Row::Cells(style, cells)
        };
        let so_far = |id: WorkloadId| self.workloads.get(&id).copied().unwrap_or_default();

        let mut workloads: Vec<_> = window.workloads.iter().collect();
        workloads.sort_by(|a, b| {
            let joules = |id| so_far(id).0.unwrap_or(0.0);
            joules(b.id).total_cmp(&joules(a.id)).then_with(|| a.name.cmp(&b.name))
        });
        let (shown, hidden) =
            workloads.split_at(workloads.len().min(height.saturating_sub(OTHER_LINES).max(1)));
        let mut rows = Vec::with_capacity(shown.len() + OTHER_LINES);
        for workload in shown {
            let cpus = Cell::of(Some(workload.cpu_seconds / seconds), plain);
            let name = workload.name.clone();
            rows.push(row(PLAIN, name, cpus, workload.energy_j.total, so_far(workload.id)));
        }
        if !hidden.is_empty() {
            let (mut joules, mut sum, mut cpus) = (SoFar::default(), SoFar::default(), 0.0);
            for workload in hidden {
                joules.add(workload.energy_j.total);
                sum.add(so_far(workload.id).0);
                cpus += workload.cpu_seconds / seconds;
            }
            let name = format!("… {} more", units::count(hidden.len() as u64));
            rows.push(row(DIM, name, Cell::of(Some(cpus), plain), joules.0, sum));
        }
        let node = &window.node;
        let mut book = |style, name: &str, figure: fn(&ComponentBooks) -> Option<f64>, so_far| {
            rows.push(row(style, name.into(), Cell::Blank, node.sum(figure), so_far));
        };
        book(DIM, "other", |books| books.other_j, self.other);
        book(DIM, "idle", |books| books.idle_j, self.idle);
        if self.unattributed.0.is_some_and(|joules| joules != 0.0) {
            book(DIM, "unattributed", |books| books.unattributed_j, self.unattributed);
        }
        rows.push(Row::Rule);
        let total = if self.estimate { "total (ESTIMATE)" } else { "measured" };
        rows.push(row(
            BOLD,
            total.into(),
            Cell::Blank,
            node.sum(|books| books.measured_j),
            self.measured,
        ));

        let mark = if self.estimate { " (est.)" } else { "" };
        let column = |header: String, dispensable| Column { header, dispensable };
        let columns = vec![
            column("WORKLOAD".into(), 0),
            column("CPUS".into(), 4),
            column(format!("POWER{mark}"), 0),
            column("SHARE".into(), 2),
            column(String::new(), 3),
            column(format!("SO FAR{mark}"), 1),
        ];
        let mut lines = vec![self.title(window, width, paint)];
        lines.extend(Grid { columns, rows }.render(Some(width), paint));
        lines
    }

    fn title(&self, window: &WindowReport, width: usize, paint: Paint) -> String {
        let elapsed = units::elapsed(window.start_s + window.seconds);
        let title = format!("ecoprobe  {elapsed}");
        match self.estimate {
            true => {
                let estimate = "  ESTIMATE, not measured";
                let title = shorten(&title, width.saturating_sub(estimate.len()));
                paint.apply(BOLD, &title) + &paint.apply(LOUD, &shorten(estimate, width))
            }
            false => paint.apply(BOLD, &shorten(&title, width)),
        }
    }
}

/// Part of a whole; `None` if either is missing or there is nothing to share.
pub(super) fn share(part: Option<f64>, whole: Option<f64>) -> Option<f64> {
    Some(part? / whole.filter(|whole| *whole > 0.0)?)
}

fn plain(value: f64) -> units::Quantity {
    units::Quantity { number: format!("{value:.2}"), unit: "" }
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr;

    use super::super::fixtures::window;
    use super::*;

    #[test]
    fn sums_grow_and_the_frame_fits_the_screen() {
        let mut live = Live::default();
        let window = window(500);
        live.add(&window);
        live.add(&window);
        for (width, height) in [(80, 24), (20, 8), (200, 60)] {
            let lines = live.frame(&window, width, height, Paint(false));
            assert!(lines.len() < height.max(10), "{} lines of {height}", lines.len());
            for line in &lines {
                assert!(line.width() <= width, "{width}: {line}");
            }
        }
        let frame = live.frame(&window, 80, 24, Paint(false)).join("\n");
        assert!(frame.contains("… 485 more"), "{frame}");
        assert!(frame.contains("job-499"), "the one that used most comes first: {frame}");
        let total = frame.lines().last().unwrap();
        assert!(total.starts_with("measured") && total.ends_with("J"), "{frame}");
    }

    #[test]
    fn two_of_the_same_name_are_two_rows_and_those_gone_are_forgotten() {
        let mut live = Live::default();
        let mut window = window(2);
        window.workloads[1].name = window.workloads[0].name.clone();
        live.add(&window);
        let frame = live.frame(&window, 120, 24, Paint(false));
        let rows: Vec<_> = frame.iter().filter(|line| line.contains("job-0")).collect();
        let [first, second] = rows[..] else { panic!("{frame:?}") };
        assert!(first.contains("2.00 J") && second.contains("1.00 J"), "{rows:?}");
        for id in 0..20_000 {
            window.workloads[0].id = WorkloadId(1_000 + id);
            live.add(&window);
            assert!(live.workloads.len() <= MOST_GONE + 2);
        }
    }

    #[test]
    fn an_estimate_says_so_on_every_figure() {
        let mut live = Live { estimate: true, ..Live::default() };
        let window = window(1);
        live.add(&window);
        let frame = live.frame(&window, 80, 24, Paint(false)).join("\n");
        for label in ["ESTIMATE, not measured", "POWER (est.)", "SO FAR (est.)", "total (ESTIMATE)"]
        {
            assert!(frame.contains(label), "{label}: {frame}");
        }
        assert!(!frame.contains("measured "), "{frame}");
    }
}
