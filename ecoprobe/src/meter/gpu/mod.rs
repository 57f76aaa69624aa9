//! GPU energy through NVML.
