//! From joules to grams and money.
//!
//! Both figures are for the energy at the building's meter: the joules measured here, times the
//! building's power usage effectiveness (PUE, ISO/IEC 30134-2), which is at least 1.

use crate::base::units::Joules;

/// Emissions in grams of CO2e: `kWh × PUE × intensity`.
///
/// `intensity` is in grams of CO2e per kWh.
pub(crate) fn emissions_grams(energy: Joules, intensity: f64, pue: f64) -> f64 {
    energy.kilowatt_hours() * pue * intensity
}

/// Cost in the currency of `price`, which is per kWh: `kWh × PUE × price`.
pub(crate) fn cost(energy: Joules, price: f64, pue: f64) -> f64 {
    energy.kilowatt_hours() * pue * price
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kilowatt_hour() {
        let kwh = Joules(3.6e6);
        assert_eq!(emissions_grams(kwh, 380.0, 1.0), 380.0);
        assert_eq!(emissions_grams(kwh, 380.0, 1.5), 570.0);
        assert_eq!(cost(kwh, 0.25, 1.2), 0.3);
    }
}
