//! From the command line to [`Settings`], for live runs and for `replay`.

use crate::base::Component;
use crate::base::error::Error;
use crate::cli::{SettingsArgs, StaticPower};
use crate::event::sources::GpuEnergySource;
use crate::event::{Domain, Settings};

/// `base` with everything replaced that was given on the command line.
pub fn settings(
    args: &SettingsArgs,
    base: Settings,
    domains: &[Domain],
    gpus: &GpuEnergySource,
) -> Result<Settings, Error> {
    let mut settings = base;
    match &args.static_power {
        None => {}
        Some(StaticPower::Total(watts)) => {
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
        Some(StaticPower::ByDomain(watts)) => {
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
    settings.idle = args.idle.unwrap_or(settings.idle);
    settings.gpu_idle_to_holders |= args.gpu_idle_to_holders;
    settings.carbon_intensity = args.carbon_intensity.or(settings.carbon_intensity);
    settings.pue = args.pue.or(settings.pue);
    settings.price = args.price.or(settings.price);
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;
    use crate::event::IdlePolicy;
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

    fn parse(options: &[&str], domains: &[Domain]) -> Result<Settings, Error> {
        let cli = Cli::parse_from(["ecoprobe", "--cgroup", "a"].iter().chain(options));
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
        settings(&cli.watch.measure.settings, base, domains, &gpus)
    }

    fn two_packages() -> Vec<Domain> {
        vec![
            domain("package-0", Component::Cpu),
            domain("package-1", Component::Cpu),
            domain("dram-0", Component::Dram),
        ]
    }

    #[test]
    fn what_is_not_given_stays() {
        let settings = parse(&["--pue", "1.5"], &two_packages()).unwrap();
        assert_eq!(settings.static_watts.len(), 2);
        assert_eq!(settings.idle, IdlePolicy::Share);
        assert_eq!((settings.pue, settings.price), (Some(1.5), Some(0.5)));
        let settings = parse(&["--idle", "separate", "--price", "0"], &two_packages()).unwrap();
        assert_eq!((settings.idle, settings.price), (IdlePolicy::Separate, Some(0.0)));
    }

    #[test]
    fn a_total_is_divided_over_the_packages() {
        let watts = parse(&["--static-power", "40"], &two_packages()).unwrap().static_watts;
        assert_eq!(watts["package-0"], 20.0);
        assert_eq!(watts["package-1"], 20.0);
        assert_eq!(watts["dram-0"], 3.0);
        assert!(parse(&["--static-power", "40"], &[]).is_err());
    }

    #[test]
    fn domains_are_named_as_they_are() {
        let watts = parse(&["--static-power", "package-1=9"], &two_packages());
        assert_eq!(watts.unwrap().static_watts["package-1"], 9.0);
        let error = parse(&["--static-power", "package-2=9"], &two_packages()).unwrap_err();
        let known = "there is: package-0, package-1, dram-0, GPU-0, GPU-1";
        assert!(error.to_string().ends_with(known), "{error}");
        let watts = parse(&["--static-power", "GPU-1=55,package-0=9"], &two_packages());
        assert_eq!(watts.unwrap().static_watts["GPU-1"], 55.0);
    }
}
