//! What the reader of the report should know.

use std::collections::BTreeMap;
use std::hash::{Hash as _, Hasher as _};

use super::coverage::{Coverage, Place};
use super::roster::add_ns;
use super::{Books, MOST_FURTHER, MOST_WARNINGS};
use crate::base::Component;
use crate::energy::model::{Doubt, StaticPower, Unknown};
use crate::event::sources::CpuEnergyKind;

/// A static power that exceeds what was measured for more than this part of the time is said to.
const OVERDRAWN: f64 = 0.01;

impl Books {
    /// Whether the report counts this warning already. Of more than can be remembered, each one counts
    /// as known: what cannot be told from news must not be said again and again.
    pub(crate) fn knows_warning(&self, message: &str) -> bool {
        self.warnings.iter().any(|known| known == message)
            || self.further_warnings.contains(&fingerprint(message))
            || self.further_warnings.len() >= MOST_FURTHER
    }

    /// Said once, however often it is found.
    pub(super) fn warning(&mut self, message: &str) {
        if self.knows_warning(message) {
            return;
        }
        if self.warnings.len() < MOST_WARNINGS {
            self.warnings.push(message.to_owned());
        } else {
            self.further_warnings.insert(fingerprint(message));
        }
    }

    /// All of them: a sentence each.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.clone();
        match self.further_warnings.len() {
            0 => {}
            MOST_FURTHER => {
                warnings.push(format!("at least {MOST_FURTHER} further warnings are not shown"));
            }
            further => warnings.push(format!("{further} further warnings are not shown")),
        }
        if self.samples < 2 {
            warnings.push(
                "fewer than two samples were taken, so nothing could be measured; run for longer \
                 than one --interval"
                    .to_owned(),
            );
        }
        if self.ignored_samples > 0 {
            warnings.push(format!(
                "{} samples passed over: not later than the sample before",
                self.ignored_samples
            ));
        }
        for domain in &self.cpu {
            warnings.extend(domain.warnings());
        }
        for gpu in &self.gpus {
            warnings.extend(gpu.warnings());
        }
        let ledgers = self.cpu.iter().map(|domain| (domain.name(), &domain.ledger));
        let ledgers = ledgers.chain(self.gpus.iter().map(|gpu| (gpu.uuid(), &gpu.ledger)));
        warnings.extend(ledgers.filter(|(_, ledger)| ledger.is_dead()).map(|(name, _)| {
            format!(
                "{name}: the energy counter never moved, so it measures nothing and its figures are \
                 left out; `ecoprobe doctor` says what else there is"
            )
        }));
        self.warn_of_static_power(&mut warnings);
        self.warn_of_doubts(&mut warnings);
        self.warn_of_uncovered_time(&mut warnings);
        warnings
    }

    /// Where the model does not hold.
    fn warn_of_doubts(&self, warnings: &mut Vec<String>) {
        for (name, summary) in self.models() {
            for doubt in &summary.doubts {
                let why = match doubt {
                    Doubt::Capped => "its power does not follow the load, as at a power limit",
                    Doubt::Misfit => "its power is not what the model makes of the load",
                    Doubt::TooShort | Doubt::NeverAsleep => continue,
                };
                warnings.push(format!("{name}: {why}; the error bars are wider for it"));
            }
        }
    }

    fn warn_of_static_power(&self, warnings: &mut Vec<String>) {
        let domains = self.cpu.iter();
        let domains = domains.map(|one| (one.name(), &one.ledger, one.static_power()));
        let devices = self.gpus.iter();
        let devices = devices.map(|gpu| (gpu.uuid(), &gpu.ledger, gpu.model.static_power()));
        let mut unknown: BTreeMap<Unknown, Vec<&str>> = BTreeMap::new();
        for (name, ledger, power) in domains.chain(devices) {
            if ledger.is_empty() {
                continue;
            }
            match power {
                StaticPower::Unknown(why) => unknown.entry(why).or_default().push(name),
                StaticPower::Assumed { watts, stderr } if ledger.has_figures() => {
                    warnings.push(format!(
                        "the static power of {name} could not be told from this run: {:.1} ± {:.1} W \
                         are taken, from what machines are like, and the error bars say so; give \
                         --static-power, or measure while the machine is asleep now and then",
                        watts.0,
                        1.96 * stderr.0
                    ));
                }
                StaticPower::Given(watts) if ledger.overdrawn() > OVERDRAWN => {
                    let found = match self.header.sources.cpu_energy.kind {
                        CpuEnergyKind::Estimate => "estimated",
                        _ => "measured",
                    };
                    warnings.push(format!(
                        "{name}: less was {found} than the static power of {} W for {:.0} % of \
                         the time; it is set too high",
                        watts.0,
                        ledger.overdrawn() * 100.0
                    ));
                }
                _ => {}
            }
        }
        for (why, names) in unknown {
            let why = match why {
                Unknown::TooShort => "the run was too short",
                Unknown::LoadUnknown => "how busy it was is not known",
                Unknown::LoadTooEven => "the load did not vary enough",
                Unknown::NotALine => "power does not follow the load in a straight line",
            };
            warnings.push(format!(
                "the static power of {} could not be told ({why}): nothing is set apart as idle, \
                 and everything is shared by use; give --static-power, or measure while the load \
                 varies",
                names.join(", ")
            ));
        }
    }

    /// CPU time where no counter is: a workload's figure is then less than what it drew.
    fn warn_of_uncovered_time(&self, warnings: &mut Vec<String>) {
        let covered = self.covered();
        let mut places: BTreeMap<Place<'_>, u64> = BTreeMap::new();
        let mut total_ns = 0;
        let mut dram = Coverage::default();
        for (_, member) in self.roster.members() {
            add_ns(&mut total_ns, member.cpu_ns);
            for (place, ns) in covered.left_out(member) {
                add_ns(places.entry(place).or_default(), ns);
            }
            let of_dram = covered.of(Component::Dram, member.times());
            dram.add(of_dram.covered_ns, true);
            dram.add(of_dram.uncovered_ns, false);
        }
        let places = places.into_iter();
        let places = places.map(|(place, ns)| (place, Coverage::without(ns, total_ns)));
        let places: Vec<_> = places.filter(|(_, coverage)| coverage.is_partial()).collect();
        for (place, coverage) in &places {
            let time = coverage.uncovered().0;
            warnings.push(match place {
                Place::Unknown => format!(
                    "workloads ran for {time:.3} CPU-seconds on {place} (offline when the run \
                     began, or without a topology): what they drew there is not billed to them"
                ),
                _ => format!(
                    "workloads ran for {time:.3} CPU-seconds on {place}: what they drew there is \
                     not known"
                ),
            });
        }
        if dram.is_partial() && places.is_empty() {
            warnings.push(
                "workloads ran on packages whose memory has no energy counter: their DRAM figures \
                 leave that out"
                    .to_owned(),
            );
        }
    }
}

fn fingerprint(message: &str) -> u64 {
    let mut hasher = rustc_hash::FxHasher::default();
    message.hash(&mut hasher);
    hasher.finish()
}
