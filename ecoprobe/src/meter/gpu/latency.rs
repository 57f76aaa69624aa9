//! How long the driver takes to answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use hdrhistogram::Histogram;

use crate::base::own::Quantiles;

/// How long the driver's calls took, by function; nanoseconds.
#[derive(Debug, Default)]
pub(super) struct Latencies(BTreeMap<&'static str, Histogram<u32>>);

impl Latencies {
    pub(super) fn record(&mut self, call: &'static str, ns: u64) {
        const LONGEST_NS: u64 = 60_000_000_000;
        if !self.0.contains_key(call)
            && let Ok(empty) = Histogram::new_with_bounds(1, LONGEST_NS, 2)
        {
            self.0.insert(call, empty);
        }
        let Some(histogram) = self.0.get_mut(call) else { return };
        histogram.saturating_record(ns.max(1));
    }

    pub(super) fn by_call(&self) -> Vec<(&'static str, Quantiles)> {
        self.0.iter().map(|(call, histogram)| (*call, quantiles(histogram))).collect()
    }

    pub(super) fn overall(&self) -> Quantiles {
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

pub(super) type SharedLatencies = Arc<Mutex<Latencies>>;
