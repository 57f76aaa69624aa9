//! How the energy counters answer: which fail, and what that means for windows.

use super::Last;
use crate::event::{BRIDGED, Domain, Reading};

/// How the energy counters answer.
#[derive(Debug)]
pub(super) struct Counters {
    names: Vec<String>,
    /// How often in a row each has failed.
    failures: Vec<u32>,
    /// A window would have ended with a tick at which one failed for a moment.
    end_owed: bool,
}

impl Counters {
    pub(super) fn new<'a>(domains: impl Iterator<Item = &'a Domain>) -> Self {
        let names: Vec<String> = domains.map(|domain| domain.name.clone()).collect();
        Self { failures: vec![0; names.len()], names, end_owed: false }
    }

    /// Whether a window ends with these readings. The window that covers a counter's short failure has
    /// its energy, too: one that is due ends with the first readings that are whole.
    pub(super) fn let_end(
        &mut self,
        due: bool,
        readings: &[Result<Reading, String>],
        last: Last,
    ) -> bool {
        let due = due || self.end_owed;
        self.end_owed = due && last == Last::No && self.fails_for_a_moment(readings);
        due && !self.end_owed
    }

    /// Whether a counter cannot be read that could just before.
    fn fails_for_a_moment(&self, readings: &[Result<Reading, String>]) -> bool {
        let mut counters = readings.iter().zip(&self.failures);
        counters.any(|(reading, failures)| reading.is_err() && *failures < BRIDGED)
    }

    /// What there is to say about counters that cannot be read, or can again.
    pub(super) fn judge(
        &mut self,
        readings: &[Result<Reading, String>],
        last: Last,
    ) -> Vec<String> {
        let mut news = Vec::new();
        for ((name, failures), reading) in self.names.iter().zip(&mut self.failures).zip(readings) {
            let known = *failures > BRIDGED;
            match reading {
                Ok(_) => {
                    *failures = 0;
                    if known {
                        news.push(format!("{name}: the energy counter can be read again"));
                    }
                }
                Err(why) => {
                    *failures = failures.saturating_add(1);
                    if last == Last::Yes {
                        *failures = (*failures).max(BRIDGED + 1);
                    }
                    if !known && *failures > BRIDGED {
                        news.push(format!(
                            "{name}: the energy counter cannot be read: {why}; what was counted \
                             before stays in the report, what it counts from here on is missing"
                        ));
                    }
                }
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Component;

    fn counters() -> Counters {
        let domain = Domain {
            name: "package-0".into(),
            component: Component::Cpu,
            package: 0,
            joules_per_count: 1.0,
            range: None,
            max_watts: 100.0,
        };
        Counters::new([domain].iter())
    }

    /// Which of these ticks end a window, of which every third is due to.
    fn ends(counters: &mut Counters, fails: &[bool]) -> Vec<bool> {
        let tick = |(number, fails): (usize, &bool)| {
            let reading = match fails {
                true => Err("away".to_owned()),
                false => Ok(Reading { mono_ns: 0, count: 0 }),
            };
            let ends = counters.let_end(number % 3 == 2, std::slice::from_ref(&reading), Last::No);
            counters.judge(&[reading], Last::No);
            ends
        };
        fails.iter().enumerate().map(tick).collect()
    }

    #[test]
    fn a_window_that_is_due_ends_once_the_counters_can_be_read_again() {
        let (yes, no) = (true, false);
        assert_eq!(ends(&mut counters(), &[no; 6]), [no, no, yes, no, no, yes]);
        let failing = [no, no, yes, yes, no, no, no];
        assert_eq!(ends(&mut counters(), &failing), [no, no, no, no, yes, yes, no]);
        // One that is away for good is not waited for.
        let away = [no, yes, yes, yes, yes, yes, yes];
        assert_eq!(ends(&mut counters(), &away), [no, no, no, no, yes, yes, no]);
    }

    #[test]
    fn the_last_window_ends_whatever_fails() {
        assert!(counters().let_end(true, &[Err("away".into())], Last::Yes));
    }
}
