//! `cgroup_mkdir` and `cgroup_rmdir`, and whose a cgroup is.

use core::ptr::{read_volatile, write_volatile};
use core::slice::from_raw_parts;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_probe_read_kernel};
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use ecoprobe_ebpf::protocol::Memory as _;
use ecoprobe_ebpf::{CgroupEvent, Field, MAX_PATH, Resolved, SLOT_OTHER};

use crate::cpu::{Cpu, count_up, selection, tell_all};
use crate::kernel::{Kernel, LAYOUT, Typed, Untyped, cgroup_id};
use crate::maps::{CPUS, EVENT, EVENTS, RESOLVED, SELECTED, SHARED, SPARES};

/// cgroups nest no deeper than this on any host we know; beyond it the walk gives up and the time
/// goes to `other`.
const MAX_DEPTH: u32 = 32;

#[btf_tracepoint(function = "cgroup_mkdir")]
fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    on_made::<Typed>(&ctx, ctx.arg(0));
    0
}

#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
fn cgroup_mkdir_raw(ctx: RawTracePointContext) -> i32 {
    on_made::<Untyped>(&ctx, ctx.arg(0));
    0
}

#[btf_tracepoint(function = "cgroup_rmdir")]
fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    on_removed::<Typed>(ctx.arg(0));
    0
}

#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
fn cgroup_rmdir_raw(ctx: RawTracePointContext) -> i32 {
    on_removed::<Untyped>(ctx.arg(0));
    0
}

/// A new cgroup is counted apart from the first, and the agent decides later whose it is: it may be
/// gone again by then. No task is in it yet. Makers hold `cgroup_mutex`: one at a time.
#[inline(always)]
fn on_made<K: Kernel>(ctx: &impl EbpfContext, cgroup: *const u8) {
    // SAFETY: the tracepoint's own arguments and BTF's offsets; `buffer` is this CPU's.
    unsafe {
        if !is_followed::<K>(cgroup) {
            return;
        }
        let Some(this) = CPUS.get_ptr_mut(bpf_get_smp_processor_id()) else { return };
        let Some(shared) = SHARED.get_ptr_mut(0) else { return };
        let Some(buffer) = EVENT.get_ptr_mut(0) else { return };
        let id = cgroup_id::<K>(cgroup);
        let mut event = CgroupEvent {
            cgroup_id: id,
            mono_ns: bpf_ktime_get_ns(),
            made: 1,
            slot: SLOT_OTHER,
            heir: SLOT_OTHER,
            path_len: 0,
        };
        if let Ok(Some(spare)) = SPARES.pop() {
            let selection = selection(shared);
            Cpu(this).fence();
            let parent: *const u8 = K::read(cgroup, Field::CgroupParent);
            if !parent.is_null() {
                let parent: *const u8 = K::read(parent, Field::CssCgroup);
                event.heir = resolve::<K>(parent, cgroup_id::<K>(parent), selection);
            }
            if SELECTED.insert(id, spare, BPF_NOEXIST.into()).is_ok() {
                event.slot = spare;
            } else {
                let _ = SPARES.push(spare, 0);
            }
        }
        // Perhaps at the address of one that is gone.
        count_up(&raw mut (*shared).cgroups_made);
        tell_all(Cpu(this));

        (*buffer).event = event;
        let path = &raw mut (*buffer).path;
        let len = read_path(ctx, path.cast());
        // By way of memory, or the compiler would drop what bounds it for the verifier.
        write_volatile(&raw mut (*buffer).event.path_len, len);
        let len = read_volatile(&raw const (*buffer).event.path_len) as usize & (MAX_PATH - 1);
        let told = from_raw_parts(buffer.cast::<u8>(), size_of::<CgroupEvent>() + len);
        if EVENTS.output::<[u8]>(told, 0).is_err() {
            (*this).lost_events += 1;
            if event.slot != SLOT_OTHER {
                // The agent would never know.
                let _ = SELECTED.remove(id);
                let _ = SPARES.push(event.slot, 0);
            }
        }
    }
}

#[inline(always)]
fn on_removed<K: Kernel>(cgroup: *const u8) {
    // SAFETY: the tracepoint's own argument and BTF's offsets.
    unsafe {
        if !is_followed::<K>(cgroup) {
            return;
        }
        let Some(this) = CPUS.get_ptr_mut(bpf_get_smp_processor_id()) else { return };
        let event = CgroupEvent {
            cgroup_id: cgroup_id::<K>(cgroup),
            mono_ns: bpf_ktime_get_ns(),
            made: 0,
            slot: SLOT_OTHER,
            heir: SLOT_OTHER,
            path_len: 0,
        };
        if EVENTS.output::<CgroupEvent>(&event, 0).is_err() {
            (*this).lost_events += 1;
        }
    }
}

/// Whether it is of the hierarchy that is followed.
#[inline(always)]
unsafe fn is_followed<K: Kernel>(cgroup: *const u8) -> bool {
    // SAFETY: BTF's offsets.
    unsafe {
        let root: *const u8 = K::read(cgroup, Field::CgroupRoot);
        K::read::<u32>(root, Field::RootHierarchyId) == LAYOUT.get(Field::HierarchyId) as u32
    }
}

/// Copies the tracepoint's second argument, the path; its length, or 0 if it is too long.
///
/// Before 5.17 the verifier lets no typed program load an argument that points to characters, so it
/// is fetched by a helper.
#[inline(always)]
unsafe fn read_path(ctx: &impl EbpfContext, to: *mut u8) -> u32 {
    // SAFETY: the helpers cope with any address; `to` has room for MAX_PATH bytes.
    unsafe {
        let arguments: *const *const u8 = ctx.as_ptr().cast();
        let Ok(path) = bpf_probe_read_kernel(arguments.add(1)) else { return 0 };
        // With the 0 at the end.
        let len = bpf_probe_read_kernel_str(to.cast(), MAX_PATH as u32, path.cast());
        if len > 0 && len < MAX_PATH as i64 { len as u32 - 1 } else { 0 }
    }
}

/// The slot of the nearest selected ancestor: a child that lives for 10 ms needs no attention from
/// the agent to be billed to its parent.
#[inline(never)]
pub(crate) unsafe fn resolve<K: Kernel>(cgroup: *const u8, id: u64, selection: u32) -> u32 {
    // SAFETY: BTF's offsets; map values are plain integers.
    unsafe {
        if let Some(known) = RESOLVED.get(id)
            && known.selection == selection
        {
            return known.slot;
        }
        let mut slot = SLOT_OTHER;
        let mut at = cgroup;
        let mut at_id = id;
        for _ in 0..MAX_DEPTH {
            if let Some(selected) = SELECTED.get(at_id) {
                slot = *selected;
                break;
            }
            let parent: *const u8 = K::read(at, Field::CgroupParent);
            if parent.is_null() {
                break;
            }
            at = K::read(parent, Field::CssCgroup);
            at_id = cgroup_id::<K>(at);
        }
        // A failed insert costs time at the next switch, never correctness.
        let _ = RESOLVED.insert(id, Resolved { slot, selection }, 0);
        slot
    }
}
