//! Names, cgroups, workloads.
