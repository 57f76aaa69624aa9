//! One curve as an SVG: measured points, the fitted law, axes in decades.

use std::fmt::Write as _;

use crate::statistics::{Growth, least};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 400.0;
const MARGIN: f64 = 64.0;

/// A logarithmic axis over whole decades, from `start` to `end` pixels.
struct Axis {
    from: i32,
    to: i32,
    start: f64,
    end: f64,
}

impl Axis {
    fn over(values: &[f64], start: f64, end: f64) -> Self {
        let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let from = least(values).log10().floor() as i32;
        // Up to the next decade, and over one at least.
        let to = (most.log10().ceil() as i32).max(from + 1);
        Self { from, to, start, end }
    }

    fn at(&self, value: f64) -> f64 {
        let part = (value.log10() - f64::from(self.from)) / f64::from(self.to - self.from);
        self.start + part * (self.end - self.start)
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        (self.from..=self.to).map(|decade| 10_f64.powi(decade))
    }
}

/// What is plotted. All values are positive.
#[derive(Debug)]
pub(crate) struct Plot<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    pub points: &'a [(f64, f64)],
    pub growth: Option<Growth>,
}

impl Plot<'_> {
    pub(crate) fn svg(&self) -> String {
        let (xs, ys): (Vec<f64>, Vec<f64>) = self.points.iter().copied().unzip();
        let x = Axis::over(&xs, MARGIN, WIDTH - 24.0);
        let y = Axis::over(&ys, HEIGHT - MARGIN, 40.0);
        let mut svg = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut svg, &x, &y);
        svg
    }

    fn write(&self, svg: &mut String, x: &Axis, y: &Axis) -> std::fmt::Result {
        writeln!(
            svg,
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
<text x="{MARGIN}" y="24" font-size="15">{}</text>"##,
            escape(self.title)
        )?;
        for value in x.decades() {
            let (at, bottom, below) = (x.at(value), y.start, y.start + 16.0);
            writeln!(
                svg,
                r##"<line x1="{at:.1}" x2="{at:.1}" y1="{bottom}" y2="{}" stroke="#ddd"/>
<text x="{at:.1}" y="{below}" text-anchor="middle">{value}</text>"##,
                y.end
            )?;
        }
        for value in y.decades() {
            let (at, left, right) = (y.at(value), x.start, x.end);
            writeln!(
                svg,
                r##"<line x1="{left}" x2="{right}" y1="{at:.1}" y2="{at:.1}" stroke="#ddd"/>
<text x="{}" y="{:.1}" text-anchor="end">{value}</text>"##,
                left - 6.0,
                at + 4.0
            )?;
        }
        writeln!(
            svg,
            r##"<text x="{}" y="{}" text-anchor="middle">{}</text>
<text transform="translate(16 {}) rotate(-90)" text-anchor="middle">{}</text>"##,
            f64::midpoint(x.start, x.end),
            HEIGHT - 16.0,
            escape(self.x),
            f64::midpoint(y.start, y.end),
            escape(self.y)
        )?;
        if let Some(growth) = self.growth {
            let line = (0..=100).map(|step| {
                let exponent =
                    f64::from(x.from) + f64::from(x.to - x.from) * f64::from(step) / 100.0;
                let n = 10_f64.powf(exponent);
                (x.at(n), y.at(growth.at(n)))
            });
            // A fit that leaves the frame ends there.
            let line: Vec<String> = line
                .filter(|(_, height)| (y.end..=y.start).contains(height))
                .map(|(across, height)| format!("{across:.1},{height:.1}"))
                .collect();
            writeln!(
                svg,
                r##"<polyline points="{}" fill="none" stroke="#d95f02" stroke-width="1.5"/>"##,
                line.join(" ")
            )?;
        }
        for &(across, height) in self.points {
            writeln!(
                svg,
                r##"<circle cx="{:.1}" cy="{:.1}" r="4" fill="#1b9e77"/>"##,
                x.at(across),
                y.at(height)
            )?;
        }
        writeln!(svg, "</svg>")
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_and_law_lie_in_the_frame() {
        let points = [(10.0, 2.05), (100.0, 2.5), (1000.0, 7.0), (3000.0, 17.0), (10_000.0, 52.0)];
        let growth = Growth::fit(&points);
        let plot = Plot { title: "a < b", x: "cgroups", y: "µs", points: &points, growth };
        let svg = plot.svg();
        assert_eq!(svg.matches("<circle").count(), 5);
        assert_eq!(svg.matches("<polyline").count(), 1);
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"));
        let x = Axis::over(&[10.0, 10_000.0], 0.0, 300.0);
        assert_eq!((x.at(10.0), x.at(100.0), x.at(10_000.0)), (0.0, 100.0, 300.0));
    }
}
