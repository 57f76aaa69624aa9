//! One energy counter over time: which of its readings are believed.
//!
//! No reading is believed by itself. One that does not follow from the last believed reading, the
//! base, is kept apart as the suspect, and the base stays; the reading after it tells which of the
//! two was wrong. A counter that stepped aside once thus loses nothing, and one that was reset goes
//! on from where it was reset to. What is billed are spans of time that never overlap, none of them
//! with more than the hardware can draw.

use std::collections::BTreeMap;

use super::delta::{Delta, Doubt, SLACK, delta, in_range};
use crate::base::{Joules, Seconds, Watts};
use crate::event::{BRIDGED, Domain, Reading};

/// A power is steep if it is so many times the highest seen before, and more than this part of the
/// most that the hardware can draw; of the first power of all, which has nothing to be compared with,
/// it is more than a larger part. Load may do that, so it is billed, but not before another reading
/// agrees.
const STEEP_TIMES: f64 = 4.0;
const STEEP_PART: f64 = 1.0 / 8.0;
const STEEP_FIRST: f64 = 1.0 / 4.0;

/// What one reading tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    /// Counting starts here: the first reading of the first sample.
    First,
    /// What was drawn between two instants. They are more than a window apart where readings before
    /// this one were not believed.
    Energy { from_ns: u64, to_ns: u64, joules: Joules },
    /// Of the newest window nothing is known, for now: a later span may cover it.
    Missing(Reason),
}

/// Why a window has no energy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    Unread,
    MoreWraps,
    WentBack,
    Disorder,
    TooMuch,
    OutOfRange,
    /// It rose far faster than in other readings, and none has confirmed that.
    Unconfirmed,
}

/// Readings without energy, and the time since the ones before them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Missing {
    pub(crate) readings: u64,
    pub(crate) seconds: f64,
    /// Of [`Reason::TooMuch`].
    pub(crate) worst: Watts,
}

#[derive(Debug, Clone, Default)]
struct Tally(BTreeMap<Reason, Missing>);

impl Tally {
    fn add(&mut self, reason: Reason, more: Missing) {
        let missing = self.0.entry(reason).or_default();
        missing.readings += more.readings;
        missing.seconds += more.seconds;
        if more.worst > missing.worst {
            missing.worst = more.worst;
        }
    }

    fn take(&mut self, other: &mut Self) {
        for (reason, missing) in std::mem::take(&mut other.0) {
            self.add(reason, missing);
        }
    }
}

/// The readings of one counter, and what of them is billed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counter {
    /// The last reading that is believed: everything up to it is billed, or missing for good.
    base: Option<Reading>,
    /// Power of the newest energy, and the highest of all; `None` before the first.
    power: Option<Watts>,
    highest: Option<Watts>,
    suspect: Option<Suspect>,
    former: Option<Former>,
    previous_ns: Option<u64>,
    /// Windows since the base, up to the suspect and after it: a span that is believed later covers
    /// them.
    before: Tally,
    after: Tally,
    /// Windows whose energy will not come any more.
    missing: Tally,
    /// How often in a row it could not be read.
    unread: u32,
    /// Readings since the base that were not believed, and all that turned out to be wrong.
    refused: u64,
    passed_over: u64,
}

/// A reading that does not follow from the base.
#[derive(Debug, Clone, Copy)]
struct Suspect {
    reading: Reading,
    /// Its distance from the base, where it would follow but for being so steep.
    steep: Option<u64>,
}

/// What the counter showed before it went back, and where it began again.
#[derive(Debug, Clone, Copy)]
struct Former {
    last: Reading,
    start: Reading,
}

impl Counter {
    /// Takes in the sample of `at_ns`, with the counter's own reading if it could be had.
    pub(crate) fn advance(
        &mut self,
        domain: &Domain,
        at_ns: u64,
        reading: Option<Reading>,
    ) -> Outcome {
        let previous_ns = self.previous_ns.replace(at_ns);
        let length = previous_ns.map_or(0, |previous| at_ns.saturating_sub(previous));
        let window = Missing {
            readings: u64::from(length > 0),
            seconds: Seconds::from_ns(length).0,
            worst: Watts(0.0),
        };
        let Some(now) = reading else {
            self.unread += 1;
            if self.unread > BRIDGED {
                // It may come back as another counter.
                self.begin_at(None);
            }
            return self.unknown(Reason::Unread, window);
        };
        self.unread = 0;
        if !in_range(domain, now) {
            self.refused += 1;
            return self.unknown(Reason::OutOfRange, window);
        }
        let Some(base) = self.base else {
            // What was drawn before its first reading nobody knows.
            self.after.add(Reason::Unread, window);
            self.begin_at(Some(now));
            let first = window.readings == 0;
            return if first { Outcome::First } else { Outcome::Missing(Reason::Unread) };
        };
        match self.suspect {
            None => self.after_belief(domain, base, now, window),
            Some(suspect) => self.after_doubt(domain, base, suspect, now, window),
        }
    }

    /// When the readings were taken that the next energy may begin with, nanoseconds: the last one that
    /// is believed, and the suspect.
    pub(crate) fn starts(&self) -> (Option<u64>, Option<u64>) {
        let suspect = self.suspect.map(|suspect| suspect.reading.mono_ns);
        (self.base.map(|base| base.mono_ns), suspect)
    }

    /// The end of the readings: what still waited for another reading is believed now.
    pub(crate) fn finish(&mut self, domain: &Domain) -> Option<Outcome> {
        let (base, suspect) = (self.base?, self.suspect?);
        let counts = suspect.steep?;
        self.refused = self.refused.saturating_sub(1);
        Some(self.believe(domain, base, suspect.reading, counts))
    }

    /// Windows whose energy is not billed, so far as is known now.
    pub(crate) fn missing(&self) -> BTreeMap<Reason, Missing> {
        let mut all = self.missing.clone();
        all.take(&mut self.before.clone());
        all.take(&mut self.after.clone());
        all.0.retain(|_, missing| missing.readings > 0);
        all.0
    }

    fn after_belief(
        &mut self,
        domain: &Domain,
        base: Reading,
        now: Reading,
        window: Missing,
    ) -> Outcome {
        let step = delta(domain, Some(base), now);
        match step {
            Delta::Advance(_) if self.is_back_on_the_former_line(domain, base, now) => {
                self.after.add(Reason::WentBack, window);
                self.begin_at(Some(now));
                Outcome::Missing(Reason::WentBack)
            }
            Delta::Advance(counts) | Delta::Wrapped(counts) => {
                let power = power(domain, counts, base, now);
                let steep = match self.highest {
                    Some(highest) => {
                        power > highest * STEEP_TIMES && power.0 > domain.max_watts * STEEP_PART
                    }
                    None => power.0 > domain.max_watts * STEEP_FIRST,
                };
                if steep {
                    let suspect = Suspect { reading: now, steep: Some(counts) };
                    return self.doubt(suspect, Reason::Unconfirmed, window);
                }
                self.believe(domain, base, now, counts)
            }
            refused => self.refuse(refused, now, window),
        }
    }

    fn after_doubt(
        &mut self,
        domain: &Domain,
        base: Reading,
        suspect: Suspect,
        now: Reading,
        window: Missing,
    ) -> Outcome {
        let from_base = delta(domain, Some(base), now);
        let from_suspect = delta(domain, Some(suspect.reading), now);
        match (from_base.counts(), from_suspect.counts(), suspect.steep) {
            // Steep before anything else was seen, and not so again: as well as load that ended it
            // may be the first reading that was wrong.
            (_, Some(counts), Some(steep))
                if self.power.is_none()
                    && power(domain, steep, base, suspect.reading)
                        > power(domain, counts, suspect.reading, now) * STEEP_TIMES =>
            {
                self.begin_anew(domain, base, suspect, now, counts)
            }
            (_, Some(counts), Some(steep)) => {
                self.refused = self.refused.saturating_sub(1);
                self.believe(domain, base, now, steep.saturating_add(counts))
            }
            (Some(counts), None, _) => self.believe(domain, base, now, counts),
            (None, Some(counts), _) => self.begin_anew(domain, base, suspect, now, counts),
            (Some(old), Some(new), None) => {
                let from = |from: Reading, counts| power(domain, counts, from, now);
                if self.is_likelier(domain, from(base, old), from(suspect.reading, new)) {
                    self.believe(domain, base, now, old)
                } else {
                    self.begin_anew(domain, base, suspect, now, new)
                }
            }
            (None, None, _) => self.refuse(from_base, now, window),
        }
    }

    /// Of two powers that would explain the same reading, whether the first is nearer to what was
    /// drawn before; if nothing is known of that, whether it is the lower one.
    fn is_likelier(&self, domain: &Domain, first: Watts, second: Watts) -> bool {
        let Some(known) = self.power else { return first <= second };
        // Near zero, ratios mean nothing.
        let floor = Watts(domain.max_watts * 1e-3);
        let distance = |power: Watts| ((power + floor).0 / (known + floor).0).ln().abs();
        distance(first) <= distance(second)
    }

    /// A counter that went back, and then in one step to where it would be if it never had: what it
    /// showed meanwhile was wrong, and that step is no energy.
    fn is_back_on_the_former_line(&self, domain: &Domain, base: Reading, now: Reading) -> bool {
        let Some(Former { last, start }) = self.former else { return false };
        let crosses = (base.count + 1..=now.count).contains(&last.count);
        let power = |from: Reading, to: Reading| {
            power(domain, to.count.saturating_sub(from.count), from, to)
        };
        // A counter that was really reset passes its old value at the pace it had since.
        crosses
            && delta(domain, Some(last), now).counts().is_some()
            && power(base, now) > power(start, base) * 2.0
    }

    fn refuse(&mut self, why: Delta, now: Reading, mut window: Missing) -> Outcome {
        let reason = match why {
            Delta::Ambiguous(Doubt::TimeWentBack) => {
                return self.unknown(Reason::Disorder, window);
            }
            Delta::Ambiguous(Doubt::MoreWraps) => {
                // Nothing is wrong with the reading: too much time went by.
                self.after.add(Reason::MoreWraps, window);
                self.begin_at(Some(now));
                return Outcome::Missing(Reason::MoreWraps);
            }
            // A counter that could not be read meanwhile may well have begun again.
            _ if self.after.0.contains_key(&Reason::Unread) => Reason::Unread,
            Delta::Refused { watts, .. } => {
                window.worst = watts;
                Reason::TooMuch
            }
            Delta::OutOfRange => Reason::OutOfRange,
            _ => Reason::WentBack,
        };
        self.doubt(Suspect { reading: now, steep: None }, reason, window)
    }

    fn unknown(&mut self, reason: Reason, window: Missing) -> Outcome {
        self.after.add(reason, window);
        Outcome::Missing(reason)
    }

    fn doubt(&mut self, suspect: Suspect, reason: Reason, window: Missing) -> Outcome {
        self.refused += 1;
        self.suspect = Some(suspect);
        self.before.take(&mut self.after);
        self.before.add(reason, window);
        Outcome::Missing(reason)
    }

    /// Nothing before `now` will be billed any more.
    fn begin_at(&mut self, now: Option<Reading>) {
        self.missing.take(&mut self.before);
        self.missing.take(&mut self.after);
        (self.base, self.suspect, self.former) = (now, None, None);
        self.refused = 0;
    }

    /// The suspect was right: the counter went on from there.
    fn begin_anew(
        &mut self,
        domain: &Domain,
        base: Reading,
        suspect: Suspect,
        now: Reading,
        counts: u64,
    ) -> Outcome {
        let start = suspect.reading;
        self.missing.take(&mut self.before);
        self.refused = 0;
        self.former = (start.count < base.count).then_some(Former { last: base, start });
        self.believe(domain, start, now, counts)
    }

    fn believe(&mut self, domain: &Domain, from: Reading, now: Reading, counts: u64) -> Outcome {
        let energy = joules(domain, counts);
        let power = power(domain, counts, from, now);
        self.power = Some(power);
        self.highest = self.highest.filter(|highest| *highest >= power).or(Some(power));
        self.former = self.former.filter(|former| now.count < former.last.count);
        (self.base, self.suspect) = (Some(now), None);
        (self.before, self.after) = (Tally::default(), Tally::default());
        self.passed_over += std::mem::take(&mut self.refused);
        Outcome::Energy { from_ns: from.mono_ns, to_ns: now.mono_ns, joules: energy }
    }

    /// A sentence for each reason why energy of `domain` is missing, and one for what was not
    /// believed without loss.
    pub(crate) fn sentences(&self, domain: &Domain) -> Vec<String> {
        let name = &domain.name;
        let missing = self.missing();
        let mut sentences: Vec<_> = missing
            .iter()
            .map(|(reason, Missing { readings, seconds, worst })| {
                let why = match reason {
                    Reason::Unread => "the counter could not be read".to_owned(),
                    Reason::MoreWraps => "the counter may have wrapped more than once before a \
                         reading that came too late"
                        .to_owned(),
                    Reason::WentBack => "the counter was reset".to_owned(),
                    Reason::Disorder => "its readings are not in the order of time".to_owned(),
                    Reason::TooMuch => format!(
                        "the counter jumped by more than the hardware can draw ({:.0} W; at most \
                         {:.0} W)",
                        worst.0, domain.max_watts
                    ),
                    Reason::OutOfRange => "the counter showed a value beyond its range".to_owned(),
                    Reason::Unconfirmed => "the counter rose far faster than in the other \
                         readings, and none confirmed it"
                        .to_owned(),
                };
                let plural = if *readings == 1 { "" } else { "s" };
                format!(
                    "{name}: {readings} reading{plural}, {seconds:.3} s in all, left out of every \
                     energy figure (mean power, which is over the whole run, is too low for it): \
                     {why}"
                )
            })
            .collect();
        match self.passed_over {
            0 => {}
            1 => sentences.push(format!(
                "{name}: one reading of the counter was wrong and was passed over; its energy is \
                 in the readings around it"
            )),
            count => sentences.push(format!(
                "{name}: {count} readings of the counter were wrong and were passed over; their \
                 energy is in the readings around them"
            )),
        }
        sentences
    }
}

/// Never of no time at all: the counter may have been refreshed just before or after.
fn power(domain: &Domain, counts: u64, from: Reading, to: Reading) -> Watts {
    let time = Seconds::from_ns(to.mono_ns.saturating_sub(from.mono_ns));
    joules(domain, counts) / (time + SLACK)
}

fn joules(domain: &Domain, counts: u64) -> Joules {
    Joules(counts as f64 * domain.joules_per_count)
}

#[cfg(test)]
mod tests;
