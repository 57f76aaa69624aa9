//! RAPL through the perf `power` PMU.
