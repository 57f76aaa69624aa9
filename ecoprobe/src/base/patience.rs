//! How long to wait for others.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How often it is looked whether there is a hurry.
const LOOK: Duration = Duration::from_millis(10);

/// Longer than anybody waits.
const LONG: Duration = Duration::from_secs(365 * 24 * 3600);

/// As long as they take, until somebody is in a hurry: then all of it has an end. Clones share that.
#[derive(Debug, Clone, Default)]
pub struct Patience {
    hurried_end: Arc<OnceLock<Instant>>,
    /// What is kept of a hurry's time for those who wait later.
    kept: Duration,
    /// The end without any hurry.
    own_end: Option<Instant>,
}

impl Patience {
    /// All that waits has so long from now on. The first hurry counts.
    pub fn hurry(&self, time: Duration) {
        let _ = self.hurried_end.set(Instant::now() + time);
    }

    /// The same, which in a hurry ends so much earlier.
    pub fn keeping(&self, time: Duration) -> Self {
        Self { kept: time, ..self.clone() }
    }

    /// The same, which ends so long from now at the latest.
    pub fn at_most(&self, time: Duration) -> Self {
        let end = Instant::now() + time;
        let own_end = Some(self.own_end.map_or(end, |before| before.min(end)));
        Self { own_end, ..self.clone() }
    }

    /// What is left of it; where there is no end, a very long time.
    pub fn left(&self) -> Duration {
        let left = |end: Instant| end.saturating_duration_since(Instant::now());
        let hurried = self.hurried_end.get().map(|end| left(*end).saturating_sub(self.kept));
        let own = self.own_end.map(left);
        hurried.into_iter().chain(own).min().unwrap_or(LONG)
    }

    pub fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    /// Waits for what is sent.
    ///
    /// # Errors
    ///
    /// It did not come in time, or never will.
    pub fn receive<T>(&self, from: &Receiver<T>) -> Result<T, RecvTimeoutError> {
        loop {
            match from.recv_timeout(self.left().min(LOOK)) {
                Err(RecvTimeoutError::Timeout) if !self.is_over() => {}
                answer => return answer,
            }
        }
    }
}

impl From<Duration> for Patience {
    fn from(time: Duration) -> Self {
        Self::default().at_most(time)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn there_is_no_end_until_somebody_is_in_a_hurry() {
        let patience = Patience::default();
        let (early, late) = (patience.keeping(Duration::from_secs(8)), patience.clone());
        assert!(!late.is_over() && early.left() > Duration::from_secs(3600));
        patience.hurry(Duration::from_secs(10));
        patience.hurry(Duration::from_secs(1000));
        assert!(late.left() <= Duration::from_secs(10), "the first one counts");
        assert!(early.left() <= Duration::from_secs(2) && !early.is_over());
        assert!(patience.at_most(Duration::ZERO).is_over());
    }

    #[test]
    fn whoever_waits_already_hears_of_a_hurry() {
        let patience = Patience::default();
        let (_sender, receiver) = channel::<()>();
        let waits = patience.clone();
        let waiting = thread::spawn(move || waits.receive(&receiver));
        thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished());
        patience.hurry(Duration::from_millis(1));
        assert_eq!(waiting.join().unwrap(), Err(RecvTimeoutError::Timeout));
    }
}
