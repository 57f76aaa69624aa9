//! CPU time per cgroup, from the probe.
