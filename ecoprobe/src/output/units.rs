//! Numbers as people read them: three significant digits and a unit of the right size.

use std::fmt;

/// What stands in the place of a value that could not be had.
pub(crate) const MISSING: &str = "—";

/// A number and its unit, apart so that a table can align both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Quantity {
    pub number: String,
    pub unit: &'static str,
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.number)?;
        if self.unit.is_empty() { Ok(()) } else { write!(f, " {}", self.unit) }
    }
}

type Scale = &'static [(f64, &'static str)];

const JOULES: Scale =
    &[(1e-6, "µJ"), (1e-3, "mJ"), (1.0, "J"), (1e3, "kJ"), (1e6, "MJ"), (1e9, "GJ")];

/// µJ to GJ.
pub(crate) fn joules(value: f64) -> Quantity {
    scaled(value, JOULES)
}

/// Joules that are known within `bar` to either side, and the bar: in one unit, with no digit beyond the
/// first that is unknown; or beyond the second where that first one is a 1.
pub(crate) fn joules_within(value: f64, bar: f64) -> (Quantity, Quantity) {
    let plain = joules(value);
    let factor = JOULES.iter().find(|(_, unit)| *unit == plain.unit).map_or(1.0, |scale| scale.0);
    let off = bar / factor;
    if !(off > 0.0 && off.is_finite() && value.is_finite()) {
        return (plain, joules(bar));
    }
    let place = off.log10().floor();
    let place = if off / 10_f64.powf(place) < 1.95 { place - 1.0 } else { place };
    let decimals = (-place).clamp(0.0, 6.0) as usize;
    let step = 10_f64.powf(place);
    let rounded = |number: f64| Quantity {
        number: format!("{:.decimals$}", (number / step).round() * step),
        unit: plain.unit,
    };
    let number = rounded(value / factor);
    // Less than its bar's last digit, and still not nothing.
    let vanishes = value != 0.0 && number.number.parse() == Ok(0.0);
    (if vanishes { plain.clone() } else { number }, rounded(off))
}

/// Joules, shown as mWh to MWh.
pub(crate) fn watt_hours(joules: f64) -> Quantity {
    const SCALE: Scale = &[(1e-3, "mWh"), (1.0, "Wh"), (1e3, "kWh"), (1e6, "MWh")];
    scaled(joules / 3600.0, SCALE)
}

/// µW to MW.
pub(crate) fn watts(value: f64) -> Quantity {
    const SCALE: Scale = &[(1e-6, "µW"), (1e-3, "mW"), (1.0, "W"), (1e3, "kW"), (1e6, "MW")];
    scaled(value, SCALE)
}

/// µg to tonnes.
pub(crate) fn grams(value: f64) -> Quantity {
    const SCALE: Scale = &[(1e-6, "µg"), (1e-3, "mg"), (1.0, "g"), (1e3, "kg"), (1e6, "t")];
    scaled(value, SCALE)
}

/// Decimal: 1 MB is 10⁶ bytes.
pub(crate) fn bytes(value: u64) -> Quantity {
    const SCALE: Scale = &[(1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB")];
    scaled(value as f64, SCALE)
}

/// Microseconds, shown as ns to s.
pub(crate) fn microseconds(value: f64) -> Quantity {
    const SCALE: Scale = &[(1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms"), (1.0, "s")];
    scaled(value * 1e-6, SCALE)
}

/// µs to hours; minutes begin at two, so that "90.0 s" stays what people say.
pub(crate) fn seconds(value: f64) -> Quantity {
    const SMALL: Scale = &[(1e-6, "µs"), (1e-3, "ms"), (1.0, "s")];
    if value.abs() >= 7200.0 {
        scaled(value, &[(3600.0, "h")])
    } else if value.abs() >= 120.0 {
        scaled(value, &[(60.0, "min")])
    } else {
        scaled(value, SMALL)
    }
}

/// Money in the user's own currency: no unit, three significant digits however small.
pub(crate) fn money(value: f64) -> Quantity {
    let number = match value.abs() {
        _ if !value.is_finite() => MISSING.to_owned(),
        0.0 => "0".to_owned(),
        small if small < 1e-6 => format!("{value:.2e}"),
        small if small < 1.0 => {
            let decimals = 2 - small.log10().floor() as i32;
            format!("{value:.*}", decimals.unsigned_abs() as usize)
        }
        _ => format!("{value:.2}"),
    };
    Quantity { number, unit: "" }
}

/// A share of 1, as a percentage.
pub(crate) fn percent(share: f64) -> Quantity {
    let number = match share * 100.0 {
        value if !value.is_finite() => MISSING.to_owned(),
        0.0 => "0".to_owned(),
        value if (0.0..0.05).contains(&value) => "<0.1".to_owned(),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    };
    Quantity { number, unit: "%" }
}

/// 1234567 → "1,234,567".
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// How long something took, to the second once that is fine enough: "12.0 s", "3 min 20 s".
pub(crate) fn elapsed(value: f64) -> String {
    if !value.is_finite() || value < 120.0 {
        return seconds(value).to_string();
    }
    let whole = value.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

/// A horizontal bar of `width` columns, filled to `share` of 1 in eighths of a column.
pub(crate) fn bar(share: f64, width: usize) -> String {
    const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let filled = (share * width as f64 * 8.0).round() as usize;
    let mut bar = "█".repeat(filled / 8);
    if let Some(part) = (filled % 8).checked_sub(1) {
        bar.push(EIGHTHS[part]);
    }
    bar
}

/// The first unit of `scale` (ascending) in which the rounded number has at most three digits
/// before the point, or the last. Zero is shown in the unit of factor 1.
fn scaled(value: f64, scale: Scale) -> Quantity {
    let unit_of = |wanted: &dyn Fn(f64) -> bool| {
        let found = scale.iter().find(|(factor, _)| wanted(*factor)).or(scale.last());
        found.copied().unwrap_or((1.0, ""))
    };
    if !value.is_finite() {
        return Quantity { number: MISSING.to_owned(), unit: "" };
    }
    if value == 0.0 {
        return Quantity { number: "0".to_owned(), unit: unit_of(&|factor| factor == 1.0).1 };
    }
    let (factor, unit) = unit_of(&|factor| value.abs() / factor < 999.5);
    let number = value / factor;
    let number = match number.abs() {
        magnitude if magnitude < 0.005 => "<0.01".to_owned(),
        magnitude if magnitude < 9.995 => format!("{number:.2}"),
        magnitude if magnitude < 99.95 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    };
    Quantity { number, unit }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(format: impl Fn(f64) -> Quantity, expected: &[(f64, &str)]) {
        for (value, text) in expected {
            assert_eq!(format(*value).to_string(), *text, "{value}");
        }
    }

    #[test]
    fn no_digit_is_shown_that_is_not_known() {
        for (value, bar, expected, off) in [
            (12_345.0, 432.0, "12.3 kJ", "0.4 kJ"),
            (12_345.0, 123.0, "12.35 kJ", "0.12 kJ"),
            (812.0, 230.0, "800 J", "200 J"),
            (8.126, 0.0432, "8.13 J", "0.04 J"),
            (45.0, 45.0, "50 J", "50 J"),
            (0.0, 0.0, "0 J", "0 J"),
            (3.0, f64::NAN, "3.00 J", MISSING),
        ] {
            let (number, bar) = joules_within(value, bar);
            assert_eq!((&*number.to_string(), &*bar.to_string()), (expected, off), "{value}");
        }
    }

    #[test]
    fn energy_has_three_digits_and_the_unit_that_fits() {
        check(
            joules,
            &[
                (0.0, "0 J"),
                (1e-12, "<0.01 µJ"),
                (4.2e-7, "0.42 µJ"),
                (0.0123, "12.3 mJ"),
                (1.0, "1.00 J"),
                (9.994, "9.99 J"),
                (9.996, "10.0 J"),
                (178.46, "178 J"),
                (999.4, "999 J"),
                (999.6, "1.00 kJ"),
                (3.6e6, "3.60 MJ"),
                (7.2e13, "72000 GJ"),
                (-1.5, "-1.50 J"),
                (f64::NAN, "—"),
                (f64::INFINITY, "—"),
            ],
        );
        check(watt_hours, &[(3600.0, "1.00 Wh"), (3.6e6, "1.00 kWh"), (36.0, "10.0 mWh")]);
        check(watts, &[(0.0004, "400 µW"), (34.56, "34.6 W"), (1234.0, "1.23 kW")]);
        check(grams, &[(0.5, "500 mg"), (12.0, "12.0 g"), (2500.0, "2.50 kg")]);
    }

    #[test]
    fn time_changes_unit_where_people_do() {
        check(
            seconds,
            &[
                (0.0, "0 s"),
                (0.0123, "12.3 ms"),
                (90.0, "90.0 s"),
                (119.96, "120 s"),
                (120.0, "2.00 min"),
                (7199.0, "120 min"),
                (7200.0, "2.00 h"),
            ],
        );
        check(microseconds, &[(0.062, "62.0 ns"), (45.0, "45.0 µs"), (12_300.0, "12.3 ms")]);
        assert_eq!(elapsed(12.04), "12.0 s");
        assert_eq!(elapsed(200.4), "3 min 20 s");
        assert_eq!(elapsed(7_530.0), "2 h 05 min");
    }

    #[test]
    fn the_rest() {
        check(
            money,
            &[
                (0.0, "0"),
                (1e-7, "1.00e-7"),
                (0.000123, "0.000123"),
                (0.5, "0.500"),
                (12.0, "12.00"),
            ],
        );
        check(percent, &[(0.0, "0 %"), (1e-5, "<0.1 %"), (0.4532, "45.3 %"), (0.9999, "100 %")]);
        assert_eq!(bytes(9_800_000).to_string(), "9.80 MB");
        assert_eq!(count(7), "7");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn a_bar_never_leaves_its_columns() {
        assert_eq!(bar(0.0, 4), "");
        assert_eq!(bar(0.5, 4), "██");
        assert_eq!(bar(0.53, 4), "██▏");
        assert_eq!(bar(1.0, 4), "████");
        assert_eq!(bar(7.0, 4), "████");
        assert_eq!(bar(f64::NAN, 4), "");
    }
}
