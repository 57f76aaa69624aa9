//! The probe: at every context switch it adds what the outgoing task ran to the slot of its cgroup.
//!
//! Time comes from the scheduler, not from a clock. At `sched_switch` the scheduler has just charged
//! `prev` for what it ran and noted in `prev->se.exec_start` up to when; `next->se.exec_start` is where
//! the next slice begins. The difference is the exact run time, the figure behind `cpu.stat`. It is
//! also several times cheaper than a clock read.
//!
//! rustc emits no CO-RE relocations, so the agent looks the struct offsets up in the kernel's BTF and
//! writes them into the read-only globals. The verifier knows such a global as a constant, so
//! `pointer + global` stays a typed pointer whose loads it checks.
//!
//! Functions of rare cases must not be `#[cold]`: that puts them into a section of their own, and aya
//! tells functions apart by their offset in the section alone.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

/// The program is BPF only; `cargo build --workspace` on the host needs something to link.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod cgroups;
#[cfg(target_arch = "bpf")]
mod cpu;
#[cfg(target_arch = "bpf")]
mod exits;
#[cfg(target_arch = "bpf")]
mod hidden;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod moves;
#[cfg(target_arch = "bpf")]
mod switch;

/// `bpf_ktime_get_ns` and its like may be used by GPL-compatible programs only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}
