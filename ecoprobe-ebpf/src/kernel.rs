//! The kernel's structs: where their fields are, and the two ways to read them.

use core::ptr::read_volatile;

use aya_ebpf::helpers::bpf_probe_read_kernel as probe_read_kernel;
use ecoprobe_ebpf::{Field, LAYOUT_LEN};

/// Filled in by the agent before the program is loaded. One symbol, so that its address is loaded
/// once.
#[unsafe(no_mangle)]
pub(crate) static LAYOUT: Layout = Layout([0; LAYOUT_LEN]);

#[repr(transparent)]
pub(crate) struct Layout([u64; LAYOUT_LEN]);

impl Layout {
    #[inline(always)]
    pub(crate) fn get(&self, field: Field) -> u64 {
        // SAFETY: a field of ours. Volatile, or the compiler would take it for the 0 that it is at
        // compile time; the verifier knows the real value.
        unsafe { read_volatile(&raw const self.0[field as usize]) }
    }
}

/// A kernel pointer, and how a program of this kind may follow it.
pub(crate) trait Kernel: Copy {
    /// # Safety
    /// By the kernel's BTF, `field` of `*base` is a `T`.
    unsafe fn read<T>(base: *const u8, field: Field) -> T;
}

/// `tp_btf`: the verifier knows the type, plain loads do.
#[derive(Clone, Copy)]
pub(crate) struct Typed;

impl Kernel for Typed {
    #[inline(always)]
    unsafe fn read<T>(base: *const u8, field: Field) -> T {
        // SAFETY: by the caller; the verifier checks the load against BTF.
        unsafe { read_volatile(base.add(LAYOUT.get(field) as usize).cast()) }
    }
}

/// `raw_tp`: arguments are plain numbers, every load goes through a helper.
#[derive(Clone, Copy)]
pub(crate) struct Untyped;

impl Kernel for Untyped {
    #[inline(always)]
    unsafe fn read<T>(base: *const u8, field: Field) -> T {
        // SAFETY: the helper copes with any address; all types read here may be zero.
        unsafe {
            probe_read_kernel(base.add(LAYOUT.get(field) as usize).cast())
                .unwrap_or_else(|_| core::mem::zeroed())
        }
    }
}

#[inline(always)]
pub(crate) unsafe fn cgroup_of<K: Kernel>(task: *const u8) -> *const u8 {
    // SAFETY: BTF's offsets; a running task has a css_set.
    unsafe {
        let css_set: *const u8 = K::read(task, Field::TaskCgroups);
        let cgroup: *const u8 = K::read(css_set, Field::CssSetCgroup);
        if LAYOUT.get(Field::ViaCss) == 0 { cgroup } else { K::read(cgroup, Field::CssCgroup) }
    }
}

#[inline(always)]
pub(crate) unsafe fn cgroup_id<K: Kernel>(cgroup: *const u8) -> u64 {
    // SAFETY: BTF's offsets.
    unsafe { K::read(K::read(cgroup, Field::CgroupKn), Field::KnId) }
}
