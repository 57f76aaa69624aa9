//! `cgroup_mkdir` and `cgroup_rmdir`, and whose a cgroup is.

use aya_ebpf::helpers::bpf_get_smp_processor_id;
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use ecoprobe_ebpf::{CgroupEvent, Field, Resolved, SLOT_OTHER};

use crate::cpu::{Cpu, count_up, tell_all};
use crate::kernel::{Kernel, LAYOUT, Typed, Untyped, cgroup_id};
use crate::maps::{CPUS, EVENTS, RESOLVED, SELECTED, SHARED};

/// cgroups nest no deeper than this on any host we know; beyond it the walk gives up and the time
/// goes to `other`.
const MAX_DEPTH: u32 = 32;

#[btf_tracepoint(function = "cgroup_mkdir")]
fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    on_cgroup::<Typed>(ctx.arg(0), true);
    0
}

#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
fn cgroup_mkdir_raw(ctx: RawTracePointContext) -> i32 {
    on_cgroup::<Untyped>(ctx.arg(0), true);
    0
}

#[btf_tracepoint(function = "cgroup_rmdir")]
fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    on_cgroup::<Typed>(ctx.arg(0), false);
    0
}

#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
fn cgroup_rmdir_raw(ctx: RawTracePointContext) -> i32 {
    on_cgroup::<Untyped>(ctx.arg(0), false);
    0
}

#[inline(always)]
fn on_cgroup<K: Kernel>(cgroup: *const u8, made: bool) {
    // SAFETY: the tracepoint's own argument and BTF's offsets.
    unsafe {
        let root: *const u8 = K::read(cgroup, Field::CgroupRoot);
        if K::read::<u32>(root, Field::RootHierarchyId) != LAYOUT.get(Field::HierarchyId) as u32 {
            return;
        }
        let Some(this) = CPUS.get_ptr_mut(bpf_get_smp_processor_id()) else { return };
        if made && let Some(shared) = SHARED.get_ptr_mut(0) {
            // No task is in a new cgroup yet. Makers hold `cgroup_mutex`: one at a time.
            count_up(&raw mut (*shared).cgroups_made);
            tell_all(Cpu(this));
        }
        let event = CgroupEvent { cgroup_id: cgroup_id::<K>(cgroup), made: made.into(), _pad: 0 };
        if EVENTS.output::<CgroupEvent>(&event, 0).is_err() {
            (*this).lost_events += 1;
        }
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
