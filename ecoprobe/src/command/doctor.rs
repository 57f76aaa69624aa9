//! `ecoprobe doctor`: what this host can measure, what it cannot, and how to mend it.

mod checks;

use std::process::ExitCode;

use serde::Serialize;

use crate::base::error::EXIT_CANNOT;
use crate::config::Doctor;
use crate::event::sources::CpuEnergyKind;
use crate::output::{self, printable};

pub(crate) const DOCTOR_SCHEMA: &str = "ecoprobe.doctor/1";

/// What was looked for, what was found, and what follows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Diagnosis {
    pub schema: &'static str,
    pub groups: Vec<Group>,
    pub can: Abilities,
    /// The same in one sentence.
    pub summary: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    pub name: &'static str,
    pub checks: Vec<Check>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub found: bool,
    pub level: Level,
    pub detail: String,
    /// One line that mends what is missing; absent where nothing is, or nothing can.
    pub mend: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Worth knowing; nothing depends on it.
    Info,
    /// Something works less well.
    Warning,
    /// Something cannot be measured.
    Missing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Abilities {
    pub cpu_time: bool,
    /// What `--cpu-energy auto` takes.
    pub cpu_energy: CpuEnergyKind,
    pub dram_energy: bool,
    pub gpu_energy: bool,
}

impl Abilities {
    fn summary(self) -> String {
        let time = if self.cpu_time {
            "This host can measure CPU time per cgroup"
        } else {
            "This host cannot measure CPU time per cgroup"
        };
        let cpu = match self.cpu_energy {
            CpuEnergyKind::Perf => "CPU energy is measured (perf)",
            CpuEnergyKind::Powercap => "CPU energy is measured (powercap)",
            CpuEnergyKind::Estimate => "CPU energy can only be estimated",
            CpuEnergyKind::None => "there is no figure for CPU energy",
        };
        let measured = |yes| if yes { "is measured" } else { "is not available" };
        let (dram, gpu) = (measured(self.dram_energy), measured(self.gpu_energy));
        format!("{time}; {cpu}, DRAM energy {dram}, GPU energy {gpu}.")
    }
}

/// Looks, and says. Exits with 0 if CPU time can be measured, else with 4.
///
/// # Errors
///
/// Only if the result cannot be written: whatever is missing is a finding.
pub fn doctor(config: &Doctor) -> anyhow::Result<ExitCode> {
    let diagnosis = diagnose(config);
    let text = if config.json {
        let mut text = serde_json::to_vec_pretty(&diagnosis)?;
        text.push(b'\n');
        output::printable_json(text)
    } else {
        table(&diagnosis).into_bytes()
    };
    output::to_stdout(&text)?;
    Ok(if diagnosis.can.cpu_time { ExitCode::SUCCESS } else { ExitCode::from(EXIT_CANNOT) })
}

/// Looks at everything.
pub fn diagnose(config: &Doctor) -> Diagnosis {
    let (groups, can) = checks::run(config);
    Diagnosis { schema: DOCTOR_SCHEMA, groups, can, summary: can.summary() }
}

fn table(diagnosis: &Diagnosis) -> String {
    let checks = diagnosis.groups.iter().flat_map(|group| &group.checks);
    let width = checks.map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for group in &diagnosis.groups {
        text += &format!("{}\n", group.name);
        for Check { name, level, detail, mend, .. } in &group.checks {
            let mark = match level {
                Level::Ok => "ok",
                Level::Info => "-",
                Level::Warning => "!",
                Level::Missing => "no",
            };
            text += &format!("  {mark:2}  {name:width$}  {}\n", printable(detail));
            if let Some(mend) = mend {
                text += &format!("      {:width$}  → {}\n", "", printable(mend));
            }
        }
        text.push('\n');
    }
    text + &diagnosis.summary + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_what_can_be_had() {
        let mut can = Abilities {
            cpu_time: true,
            cpu_energy: CpuEnergyKind::Powercap,
            dram_energy: true,
            gpu_energy: false,
        };
        assert_eq!(
            can.summary(),
            "This host can measure CPU time per cgroup; CPU energy is measured (powercap), DRAM \
             energy is measured, GPU energy is not available."
        );
        can.cpu_time = false;
        assert!(can.summary().starts_with("This host cannot measure"));
    }

    #[test]
    fn a_mend_stands_below_its_check() {
        let check = Check {
            name: "BTF",
            found: false,
            level: Level::Missing,
            detail: "no \u{1b}[31mfile\u{202e}".into(),
            mend: Some("boot another kernel".into()),
        };
        let can = Abilities {
            cpu_time: false,
            cpu_energy: CpuEnergyKind::Estimate,
            dram_energy: false,
            gpu_energy: false,
        };
        let groups = vec![Group { name: "CPU time", checks: vec![check] }];
        let diagnosis = Diagnosis { schema: DOCTOR_SCHEMA, groups, can, summary: "So.".into() };
        let expected = "CPU time\n  no  BTF  no \\x1b[31mfile\\u{202e}\n           → boot another kernel\n\nSo.\n";
        assert_eq!(table(&diagnosis), expected);
    }
}
