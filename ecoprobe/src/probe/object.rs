//! The BPF objects that we carry: `cargo xtask build-ebpf` makes them from `ecoprobe-ebpf/`.

/// Relies on a machine that keeps stores in order and loads in order.
#[cfg(any(test, target_arch = "x86_64"))]
pub(super) static PLAIN: &[u8] = aya::include_bytes_aligned!("../../bpf/probe.o");

/// With barriers, by instructions that Linux has since 5.12, and on Arm since 5.18.
#[cfg(any(test, not(target_arch = "x86_64")))]
pub(super) static WITH_BARRIERS: &[u8] = aya::include_bytes_aligned!("../../bpf/probe-barriers.o");

/// The one for this machine.
#[cfg(target_arch = "x86_64")]
pub(super) static NATIVE: &[u8] = PLAIN;
#[cfg(not(target_arch = "x86_64"))]
pub(super) static NATIVE: &[u8] = WITH_BARRIERS;
