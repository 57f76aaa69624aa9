//! How the readings are to be interpreted, and how a user changes that.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Domain;
use super::sources::GpuEnergySource;
use crate::base::{Component, Error};

/// How the readings are to be interpreted; `replay` may override each.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Watts with nothing running, by domain name, where the user knows them.
    pub static_watts: BTreeMap<String, f64>,
    pub idle: IdlePolicy,
    /// Idle energy of a GPU goes to whoever holds memory on it.
    pub gpu_idle_to_holders: bool,
    /// How unlike the workloads' joules of a CPU-second are: their standard deviation, as a part of the
    /// mean; 0: all alike. `None`: as `docs/model.md` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price_spread: Option<f64>,
    /// Grams of CO2e per kWh.
    pub carbon_intensity: Option<f64>,
    /// Power usage effectiveness: watts at the meter of the building per watt here; at least 1.
    pub pue: Option<f64>,
    /// Money per kWh, in whatever currency the user thinks in.
    pub price: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IdlePolicy {
    /// Idle energy is a line of its own.
    #[default]
    Separate,
    /// Idle energy is shared out by CPU time.
    Share,
}

/// The packages' power with nothing running, watts: one figure for all together, or one a domain.
#[derive(Debug, Clone, PartialEq)]
pub enum GivenStaticPower {
    Total(f64),
    ByDomain(BTreeMap<String, f64>),
}

/// What a user asks for; what is not given stays as it is.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    pub static_power: Option<GivenStaticPower>,
    pub idle: Option<IdlePolicy>,
    pub gpu_idle_to_holders: bool,
    pub price_spread: Option<f64>,
    pub carbon_intensity: Option<f64>,
    pub pue: Option<f64>,
    pub price: Option<f64>,
}

impl Wishes {
    /// `base` with everything replaced that was asked for.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if a static power is given for what is not measured.
    pub fn apply(
        &self,
        base: Settings,
        domains: &[Domain],
        gpus: &GpuEnergySource,
    ) -> Result<Settings, Error> {
        let mut settings = base;
        match &self.static_power {
            None => {}
            Some(GivenStaticPower::Total(watts)) => {
                let packages = domains.iter().filter(|domain| domain.component == Component::Cpu);
                let count = packages.clone().count();
                if count == 0 {
                    return Err(Error::Usage(
                        "--static-power is for packages with an energy counter, and there is none \
                     here; leave it out"
                            .into(),
                    ));
                }
                let each = packages.map(|package| (package.name.clone(), watts / count as f64));
                settings.static_watts.extend(each);
            }
            Some(GivenStaticPower::ByDomain(watts)) => {
                let gpus = gpus.devices.iter().map(|device| device.uuid.as_str());
                let known: Vec<&str> =
                    domains.iter().map(|domain| domain.name.as_str()).chain(gpus).collect();
                if let Some(name) = watts.keys().find(|name| !known.contains(&name.as_str())) {
                    return Err(Error::Usage(format!(
                        "--static-power names `{name}`, which is not measured here; there is: {}",
                        if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                    )));
                }
                settings.static_watts.extend(watts.clone());
            }
        }
        settings.idle = self.idle.unwrap_or(settings.idle);
        settings.gpu_idle_to_holders |= self.gpu_idle_to_holders;
        settings.price_spread = self.price_spread.or(settings.price_spread);
        settings.carbon_intensity = self.carbon_intensity.or(settings.carbon_intensity);
        settings.pue = self.pue.or(settings.pue);
        settings.price = self.price.or(settings.price);
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::sources::{GpuDevice, GpuEnergyKind, GpuReadMethod};

    fn domain(name: &str, component: Component) -> Domain {
        Domain {
            name: name.into(),
            component,
            package: 0,
            joules_per_count: 1e-6,
            range: None,
            max_watts: 500.0,
        }
    }

    fn apply(wishes: &Wishes, domains: &[Domain]) -> Result<Settings, Error> {
        let base = Settings {
            static_watts: [("package-1".to_owned(), 7.0), ("dram-0".to_owned(), 3.0)].into(),
            idle: IdlePolicy::Share,
            price: Some(0.5),
            ..Settings::default()
        };
        let device = |index| GpuDevice {
            uuid: format!("GPU-{index}"),
            name: "A100".into(),
            index,
            method: GpuReadMethod::Counter,
        };
        let devices = if domains.is_empty() { vec![] } else { vec![device(0), device(1)] };
        let gpus = GpuEnergySource { kind: GpuEnergyKind::Nvml, devices };
        wishes.apply(base, domains, &gpus)
    }

    fn two_packages() -> Vec<Domain> {
        vec![
            domain("package-0", Component::Cpu),
            domain("package-1", Component::Cpu),
            domain("dram-0", Component::Dram),
        ]
    }

    fn by_domain(watts: &[(&str, f64)]) -> Wishes {
        let watts = watts.iter().map(|(name, watts)| ((*name).to_owned(), *watts)).collect();
        Wishes { static_power: Some(GivenStaticPower::ByDomain(watts)), ..Wishes::default() }
    }

    #[test]
    fn what_is_not_given_stays() {
        let wishes = Wishes { pue: Some(1.5), ..Wishes::default() };
        let settings = apply(&wishes, &two_packages()).unwrap();
        assert_eq!(settings.static_watts.len(), 2);
        assert_eq!(settings.idle, IdlePolicy::Share);
        assert_eq!((settings.pue, settings.price), (Some(1.5), Some(0.5)));
        let wishes =
            Wishes { idle: Some(IdlePolicy::Separate), price: Some(0.0), ..Wishes::default() };
        let settings = apply(&wishes, &two_packages()).unwrap();
        assert_eq!((settings.idle, settings.price), (IdlePolicy::Separate, Some(0.0)));
    }

    #[test]
    fn a_total_is_divided_over_the_packages() {
        let wishes =
            Wishes { static_power: Some(GivenStaticPower::Total(40.0)), ..Wishes::default() };
        let watts = apply(&wishes, &two_packages()).unwrap().static_watts;
        assert_eq!(watts["package-0"], 20.0);
        assert_eq!(watts["package-1"], 20.0);
        assert_eq!(watts["dram-0"], 3.0);
        assert!(apply(&wishes, &[]).is_err());
    }

    #[test]
    fn domains_are_named_as_they_are() {
        let watts = apply(&by_domain(&[("package-1", 9.0)]), &two_packages());
        assert_eq!(watts.unwrap().static_watts["package-1"], 9.0);
        let error = apply(&by_domain(&[("package-2", 9.0)]), &two_packages()).unwrap_err();
        let known = "there is: package-0, package-1, dram-0, GPU-0, GPU-1";
        assert!(error.to_string().ends_with(known), "{error}");
        let watts = apply(&by_domain(&[("GPU-1", 55.0), ("package-0", 9.0)]), &two_packages());
        assert_eq!(watts.unwrap().static_watts["GPU-1"], 55.0);
    }
}
