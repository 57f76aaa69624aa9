//! Rows and columns: numbers aligned with their units, names shortened in the middle, the least
//! important columns left out where the terminal is narrow.

use anstyle::{AnsiColor, Style};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::output::printable;
use crate::output::units::{self, MISSING, Quantity};

/// Columns between two columns.
const GAP: usize = 2;
const BAR_WIDTH: usize = 16;
/// Names are shortened to this before a column is given up.
const SHORT_NAME: usize = 16;

pub(super) const PLAIN: Style = Style::new();
pub(super) const BOLD: Style = Style::new().bold();
pub(super) const DIM: Style = Style::new().dimmed();
pub(super) const LOUD: Style = AnsiColor::Yellow.on_default().bold();
const BAR: Style = AnsiColor::Green.on_default();

/// Whether escape codes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Paint(pub(super) bool);

impl Paint {
    pub(super) fn apply(self, style: Style, text: &str) -> String {
        if self.0 && style != PLAIN && !text.trim_ascii().is_empty() {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }
}

#[derive(Debug)]
pub(super) enum Cell {
    /// Has no meaning in this row.
    Blank,
    /// Has a meaning, and could not be had.
    Missing,
    Text(String),
    Number(Quantity),
    /// A share of 1, drawn as a bar.
    Bar(f64),
}

impl Cell {
    /// A value in its unit, or the mark of a missing one.
    pub(super) fn of(value: Option<f64>, unit: fn(f64) -> Quantity) -> Self {
        value.map_or(Self::Missing, |value| Self::Number(unit(value)))
    }
}

#[derive(Debug)]
pub(super) struct Column {
    pub(super) header: String,
    /// Where there is too little room, the column with the highest figure goes first; those of 0
    /// stay.
    pub(super) dispensable: u8,
}

#[derive(Debug)]
pub(super) enum Row {
    Cells(Style, Vec<Cell>),
    /// A line across the table.
    Rule,
}

/// The first column holds names, the others numbers and bars.
#[derive(Debug)]
pub(super) struct Grid {
    pub(super) columns: Vec<Column>,
    pub(super) rows: Vec<Row>,
}

/// Columns that a column's parts need.
#[derive(Debug, Clone, Copy, Default)]
struct Extent {
    header: usize,
    text: usize,
    number: usize,
    unit: usize,
    bar: bool,
}

impl Extent {
    fn width(self) -> usize {
        let numbers = self.number + if self.unit > 0 { 1 + self.unit } else { 0 };
        let bar = if self.bar { BAR_WIDTH } else { 0 };
        self.header.max(self.text).max(numbers).max(bar)
    }
}

impl Grid {
    /// The lines, none wider than `width` (which may be too small for anything but the names).
    pub(super) fn render(&self, width: Option<usize>, paint: Paint) -> Vec<String> {
        let extents: Vec<Extent> = (0..self.columns.len()).map(|at| self.extent(at)).collect();
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let Some(names) = extents.first().map(|extent| extent.width()) else { return Vec::new() };
        let beside_names = |shown: &[usize]| -> usize {
            shown.iter().skip(1).filter_map(|at| extents.get(*at)).map(|e| GAP + e.width()).sum()
        };
        let mut name_width = names;
        if let Some(width) = width {
            while names.min(SHORT_NAME) + beside_names(&shown) > width {
                let candidates = shown.iter().filter(|at| self.columns[**at].dispensable > 0);
                let Some(&least) = candidates.max_by_key(|at| self.columns[**at].dispensable)
                else {
                    break;
                };
                shown.retain(|at| *at != least);
            }
            name_width = names.min(width.saturating_sub(beside_names(&shown)).max(1));
        }
        let total = name_width + beside_names(&shown);

        let mut lines = Vec::with_capacity(self.rows.len() + 1);
        let headers = shown.iter().map(|at| {
            let (header, extent) = (&self.columns[*at].header, extents[*at]);
            let width = if *at == 0 { name_width } else { extent.width() };
            // Names and bars begin on the left, numbers end on the right.
            if *at == 0 || extent.bar {
                pad_right(&shorten(header, width), width)
            } else {
                pad_left(header, width)
            }
        });
        let headers: Vec<String> = headers.collect();
        lines.push(paint.apply(BOLD, headers.join(&" ".repeat(GAP)).trim_end()));
        for row in &self.rows {
            lines.push(match row {
                Row::Rule => paint.apply(DIM, &"─".repeat(total)),
                Row::Cells(style, cells) => {
                    let mut line = String::new();
                    for at in &shown {
                        let extent = extents[*at];
                        let width = if *at == 0 { name_width } else { extent.width() };
                        let cell = cells.get(*at).unwrap_or(&Cell::Blank);
                        if *at > 0 {
                            line.push_str(&" ".repeat(GAP));
                        }
                        line.push_str(&draw(cell, width, extent, *style, paint));
                    }
                    line.truncate(line.trim_end().len());
                    line
                }
            });
        }
        lines
    }

    fn extent(&self, at: usize) -> Extent {
        let header = self.columns.get(at).map_or(0, |column| column.header.width());
        let mut extent = Extent { header, ..Extent::default() };
        for row in &self.rows {
            let Row::Cells(_, cells) = row else { continue };
            match cells.get(at) {
                None | Some(Cell::Blank) => {}
                Some(Cell::Missing) => extent.number = extent.number.max(MISSING.width()),
                Some(Cell::Text(text)) => extent.text = extent.text.max(printable(text).width()),
                Some(Cell::Number(quantity)) => {
                    extent.number = extent.number.max(quantity.number.width());
                    extent.unit = extent.unit.max(quantity.unit.width());
                }
                Some(Cell::Bar(_)) => extent.bar = true,
            }
        }
        extent
    }
}

fn draw(cell: &Cell, width: usize, extent: Extent, style: Style, paint: Paint) -> String {
    let text = match cell {
        Cell::Blank => " ".repeat(width),
        Cell::Text(text) => pad_right(&shorten(&printable(text), width), width),
        Cell::Missing | Cell::Number(_) => {
            let (number, unit) = match cell {
                Cell::Number(quantity) => (quantity.number.as_str(), quantity.unit),
                _ => (MISSING, ""),
            };
            let unit_width = if extent.unit > 0 { 1 + extent.unit } else { 0 };
            let number = pad_left(number, width.saturating_sub(unit_width));
            let space = if extent.unit > 0 { " " } else { "" };
            format!("{number}{space}{}", pad_right(unit, extent.unit))
        }
        Cell::Bar(share) => {
            let bar = units::bar(*share, BAR_WIDTH);
            let rest = " ".repeat(width.saturating_sub(bar.width()));
            return paint.apply(BAR, &bar) + &rest;
        }
    };
    paint.apply(style, &text)
}

fn pad_left(text: &str, width: usize) -> String {
    " ".repeat(width.saturating_sub(text.width())) + text
}

fn pad_right(text: &str, width: usize) -> String {
    text.to_owned() + &" ".repeat(width.saturating_sub(text.width()))
}

/// At most `width` columns of `text`, with `…` where its middle was: both ends of a cgroup's name
/// tell it from its siblings.
pub(super) fn shorten(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(1);
    let head = take(text.chars(), room.div_ceil(2));
    let tail: String = take(text.chars().rev(), room / 2).chars().rev().collect();
    if width == 0 { String::new() } else { format!("{head}…{tail}") }
}

/// As many characters as fit `width` columns.
fn take(characters: impl Iterator<Item = char>, width: usize) -> String {
    let mut used = 0;
    let fits = |character: &char| {
        used += character.width().unwrap_or(0);
        used <= width
    };
    characters.take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        let column = |header: &str, dispensable| Column { header: header.into(), dispensable };
        let row = |name: &str, joules: Option<f64>, share| {
            let joules = Cell::of(joules, units::joules);
            Row::Cells(PLAIN, vec![Cell::Text(name.into()), joules, Cell::Bar(share)])
        };
        Grid {
            columns: vec![column("NAME", 0), column("ENERGY", 0), column("", 9)],
            rows: vec![
                row("système/ジョブ-0123456789", Some(1234.0), 0.5),
                Row::Rule,
                row("b\x1b[2J", Some(0.0421), 0.25),
                row("c", None, 0.0),
            ],
        }
    }

    #[test]
    fn numbers_and_units_line_up() {
        let lines = grid().render(None, Paint(false));
        let expected = [
            "NAME                        ENERGY",
            "système/ジョブ-0123456789  1.23 kJ  ████████",
            "────────────────────────────────────────────────────",
            "b\\x1b[2J                   42.1 mJ  ████",
            "c                             —",
        ];
        assert_eq!(lines, expected, "\n{}", lines.join("\n"));
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in 20..60 {
            for line in grid().render(Some(width), Paint(false)) {
                assert!(line.width() <= width, "{width}: {line}");
            }
        }
        let narrow = grid().render(Some(26), Paint(false));
        assert_eq!(narrow[1], "système/…23456789  1.23 kJ");
    }

    #[test]
    fn long_names_keep_both_ends() {
        assert_eq!(shorten("short", 5), "short");
        assert_eq!(shorten("kubepods-burstable-pod1234", 11), "kubep…d1234");
        assert_eq!(shorten("ジョブ-ジョブ", 6), "ジ…ブ", "wide characters are never cut in half");
        assert_eq!(shorten("abc", 1), "…");
        assert_eq!(shorten("abc", 0), "");
    }

    #[test]
    fn escape_codes_only_where_wanted() {
        assert!(!grid().render(None, Paint(false)).concat().contains('\x1b'));
        assert!(grid().render(None, Paint(true)).concat().contains('\x1b'));
    }
}
