//! RAPL through powercap.
