//! One CPU's state and counters, as the protocol reaches them from here.

use core::arch::asm;
use core::ptr::{read_volatile, write_volatile};

use ecoprobe_ebpf::protocol::{Half, Memory, Word};
use ecoprobe_ebpf::{CpuState, Field, Shared};

use crate::kernel::LAYOUT;
use crate::maps::{COUNTERS, CPUS, PAIRED, SHARED};

/// Whether barriers must be real. x86 keeps stores in order and loads in order, which is all that
/// the protocol asks for; Arm does neither. BPF has no fences, but an atomic operation that returns
/// the old value is a full one. Linux before 5.12 refuses such an operation even where it is never
/// reached, so there are two objects.
const BARRIERS: bool = cfg!(feature = "barriers");

/// Points at an entry of CPUS.
#[derive(Clone, Copy)]
pub(crate) struct Cpu(pub(crate) *mut CpuState);

impl Memory for Cpu {
    const PATIENCE: u32 = 0;

    #[inline(always)]
    fn load(self, at: Word) -> u64 {
        // SAFETY: a field of the entry.
        unsafe { read_volatile(self.0.byte_add(at as usize).cast()) }
    }

    #[inline(always)]
    fn store(self, at: Word, value: u64) {
        // SAFETY: a field of the entry.
        unsafe { write_volatile(self.0.byte_add(at as usize).cast(), value) }
    }

    #[inline(always)]
    fn load_half(self, at: Half) -> u32 {
        // SAFETY: a field of the entry.
        unsafe { read_volatile(self.0.byte_add(at as usize).cast()) }
    }

    #[inline(always)]
    fn store_half(self, at: Half, value: u32) {
        // SAFETY: a field of the entry.
        unsafe { write_volatile(self.0.byte_add(at as usize).cast(), value) }
    }

    #[inline(always)]
    fn counter(self, slot: u32) -> u64 {
        // SAFETY: this CPU's own row.
        unsafe {
            let counter = COUNTERS.get_ptr_mut((*self.0).row + slot);
            counter.map_or(0, |counter| read_volatile(counter))
        }
    }

    #[inline(always)]
    fn set_counter(self, slot: u32, ns: u64) {
        // SAFETY: this CPU's own row.
        unsafe {
            if let Some(counter) = COUNTERS.get_ptr_mut((*self.0).row + slot) {
                write_volatile(counter, ns);
            }
        }
    }

    #[inline(always)]
    fn has_siblings(self) -> bool {
        LAYOUT.get(Field::Siblings) != 0
    }

    #[inline(always)]
    fn sibling_account(self) -> u64 {
        // SAFETY: fields of entries.
        unsafe {
            let sibling = CPUS.get_ptr_mut(read_volatile(&raw const (*self.0).sibling));
            sibling.map_or(0, |sibling| read_volatile(&raw const (*sibling).idle_account))
        }
    }

    #[inline(always)]
    fn paired(self, slot: u32) -> u64 {
        // SAFETY: this CPU's own row.
        unsafe {
            let counter = PAIRED.get_ptr_mut((*self.0).row + slot);
            counter.map_or(0, |counter| read_volatile(counter))
        }
    }

    #[inline(always)]
    fn set_paired(self, slot: u32, ns: u64) {
        // SAFETY: this CPU's own row.
        unsafe {
            if let Some(counter) = PAIRED.get_ptr_mut((*self.0).row + slot) {
                write_volatile(counter, ns);
            }
        }
    }

    #[inline(always)]
    fn fence(self) {
        if BARRIERS {
            // SAFETY: a field of the entry that nobody reads. To the compiler it is any memory at
            // all, so it is a barrier there as well.
            unsafe {
                asm!(
                    "{one} = atomic_fetch_add((u64 *)({barrier} + 0), {one})",
                    barrier = in(reg) &raw mut (*self.0).barrier,
                    one = inout(reg) 1_u64 => _,
                );
            }
        }
    }
}

/// Tells all CPUs that there is something new, of which they then find out by themselves.
#[inline(always)]
pub(crate) fn tell_all(cpu: Cpu) {
    cpu.fence();
    if let Some(shared) = SHARED.get_ptr_mut(0) {
        // The agent counts it up as well. This is the instruction that every kernel knows.
        // SAFETY: a field of the entry.
        unsafe {
            asm!(
                "lock *(u32 *)({generation} + 0) += {one}",
                generation = in(reg) &raw mut (*shared).generation,
                one = in(reg) 1_u64,
            );
        }
    }
}

/// The entry of SHARED that is written under `cgroup_mutex`, or by nobody else at all.
#[inline(always)]
pub(crate) fn count_up(field: *mut u32) {
    // SAFETY: by the callers, a field of a map's entry.
    unsafe { write_volatile(field, read_volatile(field).wrapping_add(1)) }
}

/// How often the selection has changed.
#[inline(always)]
pub(crate) fn selection(shared: *const Shared) -> u32 {
    // SAFETY: a field of the entry.
    unsafe { read_volatile(&raw const (*shared).selection) }
}
