//! The view that redraws in place: what each workload draws now, and what it has used so far.

use super::grid::{BOLD, Cell, Column, DIM, Grid, LOUD, PLAIN, Paint, Row, shorten};
use crate::output::units;
use crate::view::report::{NodeLine, NodeLines, WindowReport, WindowWorkload};

/// Lines of a frame that are not workloads: the title, the headers, "more", other, idle,
/// unattributed, a rule and the total; and the line that the cursor stands on.
const OTHER_LINES: usize = 9;

/// What every frame has in common.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// The CPU's energy is a model's figure.
    pub(super) estimate: bool,
}

impl Live {
    /// The lines of the newest window: fewer than `height`, since the cursor stands below them, and
    /// none wider than `width`.
    pub(super) fn frame(
        &self,
        window: &WindowReport,
        width: usize,
        height: usize,
        paint: Paint,
    ) -> Vec<String> {
        let seconds = window.seconds;
        let NodeLines { measured, idle, other, unattributed } = window.lines;
        let row = |style, name: &str, cpus: Cell, NodeLine { power_w, so_far_j }: NodeLine| {
            let share = share(power_w, measured.power_w);
            let cells = vec![
                Cell::Text(name.to_owned()),
                cpus,
                Cell::of(power_w, units::watts),
                Cell::of(share, units::percent),
                Cell::Bar(share.unwrap_or(0.0)),
                Cell::of(so_far_j, units::joules),
            ];
            Row::Cells(style, cells)
        };

        let mut workloads: Vec<_> = window.workloads.iter().collect();
        workloads.sort_by(|a, b| {
            let joules = |workload: &WindowWorkload| workload.so_far_j.unwrap_or(0.0);
            joules(b).total_cmp(&joules(a)).then_with(|| a.name.cmp(&b.name))
        });
        let (shown, hidden) =
            workloads.split_at(workloads.len().min(height.saturating_sub(OTHER_LINES).max(1)));
        let mut rows = Vec::with_capacity(shown.len() + OTHER_LINES);
        let line = |workload: &WindowWorkload| NodeLine {
            power_w: workload.mean_power_w,
            so_far_j: workload.so_far_j,
        };
        for workload in shown {
            let cpus = Cell::of(Some(workload.cpu_seconds / seconds), plain);
            rows.push(row(PLAIN, &workload.name, cpus, line(workload)));
        }
        if !hidden.is_empty() {
            let sum = |figure: fn(&NodeLine) -> Option<f64>| {
                let figures = hidden.iter().filter_map(|workload| figure(&line(workload)));
                figures.reduce(|sum, figure| sum + figure)
            };
            let together =
                NodeLine { power_w: sum(|line| line.power_w), so_far_j: sum(|line| line.so_far_j) };
            let cpus = hidden.iter().map(|workload| workload.cpu_seconds / seconds).sum();
            let name = format!("… {} more", units::count(hidden.len() as u64));
            rows.push(row(DIM, &name, Cell::of(Some(cpus), plain), together));
        }
        rows.push(row(DIM, "other", Cell::Blank, other));
        rows.push(row(DIM, "idle", Cell::Blank, idle));
        if unattributed.so_far_j.is_some_and(|joules| joules != 0.0) {
            rows.push(row(DIM, "unattributed", Cell::Blank, unattributed));
        }
        rows.push(Row::Rule);
        let total = if self.estimate { "total (ESTIMATE)" } else { "measured" };
        rows.push(row(BOLD, total, Cell::Blank, measured));

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
        // A screen that is too low goes without what stands above the total: what has scrolled away
        // cannot be drawn over.
        let total = lines.len() - 1;
        let too_many = (total + 2).saturating_sub(height).min(total);
        lines.drain(total - too_many..total);
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
    fn the_frame_fits_the_screen() {
        let live = Live::default();
        let mut window = window(500);
        window.lines.unattributed.so_far_j = Some(1.0);
        for (width, height) in [(80, 24), (200, 60)].into_iter().chain((2..13).map(|low| (20, low)))
        {
            let lines = live.frame(&window, width, height, Paint(false));
            assert!(lines.len() < height, "{} lines of {height}", lines.len());
            for line in &lines {
                assert!(line.width() <= width, "{width}: {line}");
            }
            assert!(lines.last().unwrap().starts_with("measured"), "{lines:?}");
        }
        let frame = live.frame(&window, 80, 24, Paint(false)).join("\n");
        assert!(frame.contains("… 485 more"), "{frame}");
        assert!(frame.contains("job-499"), "the one that used most comes first: {frame}");
        let total = frame.lines().last().unwrap();
        assert!(total.ends_with("J"), "{frame}");
        let lowest = live.frame(&window, 80, 6, Paint(false));
        assert!(lowest.len() == 5 && lowest[2].contains("job-499"), "{lowest:?}");
    }

    #[test]
    fn power_and_sums_are_those_of_the_window() {
        let mut window = window(3);
        // Tenths of a second, and a GPU whose driver tells once in a second.
        window.seconds = 0.1;
        for workload in &mut window.workloads {
            workload.name = "job".into();
            workload.mean_power_w = Some(50.0);
        }
        let (watts, joules) = (Some(200.0), Some(7000.0));
        window.lines.measured = NodeLine { power_w: watts, so_far_j: joules };
        window.lines.other = NodeLine { power_w: Some(1.5), so_far_j: None };
        let frame = Live::default().frame(&window, 120, 24, Paint(false));
        // Two of the same name are two rows.
        let rows: Vec<_> = frame.iter().filter(|line| line.starts_with("job")).collect();
        for (row, so_far) in rows.iter().zip(["30.0 J", "20.0 J", "10.0 J"]) {
            assert!(row.contains("50.0 W") && row.contains("25.0 %"), "{frame:?}");
            assert!(row.ends_with(so_far), "{frame:?}");
        }
        let row = |name: &str| frame.iter().find(|line| line.starts_with(name)).unwrap();
        assert!(row("measured").contains("200 W") && row("measured").ends_with("7.00 kJ"));
        assert!(row("other").contains("1.50 W") && !row("other").contains('J'), "{frame:?}");
        // Of many that are not shown, the sum.
        let frame = Live::default().frame(&window, 120, 8, Paint(false));
        let more = frame.iter().find(|line| line.contains("2 more")).unwrap();
        assert!(more.contains("100 W") && more.ends_with("30.0 J"), "{frame:?}");
    }

    #[test]
    fn an_estimate_says_so_on_every_figure() {
        let live = Live { estimate: true };
        let window = window(1);
        let frame = live.frame(&window, 80, 24, Paint(false)).join("\n");
        for label in ["ESTIMATE, not measured", "POWER (est.)", "SO FAR (est.)", "total (ESTIMATE)"]
        {
            assert!(frame.contains(label), "{label}: {frame}");
        }
        assert!(!frame.contains("measured "), "{frame}");
    }
}
