//! The calls into the driver: how long they took, and since when one has not come back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hdrhistogram::Histogram;

use crate::base::monotonic_ns;
use crate::base::own::Quantiles;

/// Shared by the thread that calls and the one that asks about the calls.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    latencies: Mutex<Latencies>,
    /// CLOCK_MONOTONIC when the call under way began; 0: none is.
    began_ns: AtomicU64,
}

impl Calls {
    /// Makes a call, and times it.
    pub(super) fn time<T>(&self, name: &'static str, call: impl FnOnce() -> T) -> T {
        let began_ns = monotonic_ns();
        self.0.began_ns.store(began_ns, Ordering::Relaxed);
        let answer = call();
        self.0.began_ns.store(0, Ordering::Relaxed);
        let ns = monotonic_ns().saturating_sub(began_ns);
        self.0.latencies.lock().unwrap_or_else(PoisonError::into_inner).record(name, ns);
        answer
    }

    /// When the call under way began, CLOCK_MONOTONIC.
    pub(super) fn under_way_ns(&self) -> Option<u64> {
        Some(self.0.began_ns.load(Ordering::Relaxed)).filter(|ns| *ns != 0)
    }

    pub(super) fn by_call(&self) -> Vec<(&'static str, Quantiles)> {
        let latencies = self.0.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        latencies.0.iter().map(|(call, histogram)| (*call, quantiles(histogram))).collect()
    }

    pub(super) fn overall(&self) -> Quantiles {
        self.0.latencies.lock().unwrap_or_else(PoisonError::into_inner).overall()
    }
}

/// How long the driver's calls took, by function; nanoseconds.
#[derive(Debug, Default)]
struct Latencies(BTreeMap<&'static str, Histogram<u32>>);

impl Latencies {
    fn record(&mut self, call: &'static str, ns: u64) {
        const LONGEST_NS: u64 = 60_000_000_000;
        if !self.0.contains_key(call)
            && let Ok(empty) = Histogram::new_with_bounds(1, LONGEST_NS, 2)
        {
            self.0.insert(call, empty);
        }
        let Some(histogram) = self.0.get_mut(call) else { return };
        histogram.saturating_record(ns.max(1));
    }

    fn overall(&self) -> Quantiles {
        let mut histograms = self.0.values();
        let Some(first) = histograms.next() else { return Quantiles::default() };
        let mut all = first.clone();
        for histogram in histograms {
            // Same bounds everywhere, so nothing can fall outside.
            let _ = all.add(histogram);
        }
        quantiles(&all)
    }
}

fn quantiles(histogram: &Histogram<u32>) -> Quantiles {
    if histogram.is_empty() {
        return Quantiles::default();
    }
    let us = |ns: u64| Some(ns as f64 / 1000.0);
    Quantiles {
        p50: us(histogram.value_at_quantile(0.5)),
        p99: us(histogram.value_at_quantile(0.99)),
        max: us(histogram.max()),
    }
}
