//! What the probe is measured against: a program that does nothing, and one that only reads the
//! clock. Used by `cargo xtask bench probe`, never by the agent.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::helpers::bpf_ktime_get_ns;
    use aya_ebpf::macros::{btf_tracepoint, map};
    use aya_ebpf::maps::Array;
    use aya_ebpf::programs::BtfTracePointContext;

    #[map]
    static CLOCK: Array<u64> = Array::with_max_entries(1, 0);

    #[btf_tracepoint(function = "sched_switch")]
    fn empty(_ctx: BtfTracePointContext) -> i32 {
        0
    }

    #[btf_tracepoint(function = "sched_switch")]
    fn clock(_ctx: BtfTracePointContext) -> i32 {
        if let Some(last) = CLOCK.get_ptr_mut(0) {
            // SAFETY: a map value; the helper has no preconditions.
            unsafe { *last = bpf_ktime_get_ns() };
        }
        0
    }

    /// `bpf_ktime_get_ns` may be used by GPL-compatible programs only.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo) -> ! {
        loop {}
    }
}
