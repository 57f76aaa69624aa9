//! Maps and programs.

use core::hint::cold_path;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_probe_read_kernel as probe_read_kernel,
    },
    macros::{btf_tracepoint, map, raw_tracepoint},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use aya_log_ebpf::warn;
use ecoprobe_ebpf::{
    CgroupEvent, CpuState, Exited, Field, Known, LAYOUT_LEN, MAX_CUTS, NOBODY, NOT_KTHREADS,
    NR_KNOWN, OFFSET_AGE, Resolved, SLOT_IDLE, SLOT_OTHER, VISITED,
};

const BPF_F_MMAPABLE: u32 = 1 << 10;

/// cgroups nest no deeper than this on any host we know; beyond it the walk gives up and the time
/// goes to `other`.
const MAX_DEPTH: u32 = 32;

/// The root of every hierarchy has this id.
const ROOT_CGROUP_ID: u64 = 1;

/// `PF_KTHREAD` of `task_struct.flags`, unchanged since 2.6.
const PF_KTHREAD: u32 = 0x0020_0000;

/// 2^64 divided by the golden ratio.
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

// What each CPU does now; one entry a possible CPU. Mapped by the agent.
#[map]
static CPUS: Array<CpuState> = Array::with_max_entries(1, BPF_F_MMAPABLE);

// CPU time in ns: a row of NR_SLOTS for each CPU, written by that CPU only. Mapped by the agent.
#[map]
static COUNTERS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

// The cgroups that ran on each CPU of late, by a hash of their address: on a CPU that many jobs share
// each switch goes to another one.
#[map]
static KNOWN: PerCpuArray<[Known; NR_KNOWN]> = PerCpuArray::with_max_entries(1, 0);

// The selected cgroups and their slots. Written by the agent only.
#[map]
static SELECTED: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);

// Which slot each cgroup seen so far belongs to. A cache: an entry that is evicted, or that found no
// room, is worked out again from SELECTED.
#[map]
static RESOLVED: LruHashMap<u64, Resolved> = LruHashMap::with_max_entries(1, 0);

// Whose the processes were that exited lately, by thread group: those of workloads, and all others,
// apart, so that the many who exit elsewhere do not make a workload's be forgotten. The oldest make room.
#[map]
static EXITED: LruHashMap<u32, Exited> = LruHashMap::with_max_entries(1, 0);
#[map]
static EXITED_OTHERS: LruHashMap<u32, Exited> = LruHashMap::with_max_entries(1, 0);

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// Filled in by the agent before the program is loaded. One symbol, so that its address is loaded
/// once.
#[unsafe(no_mangle)]
static LAYOUT: Layout = Layout([0; LAYOUT_LEN]);

#[repr(transparent)]
struct Layout([u64; LAYOUT_LEN]);

impl Layout {
    #[inline(always)]
    fn get(&self, field: Field) -> u64 {
        // SAFETY: a field of ours. Volatile, or the compiler would take it for the 0 that it is at
        // compile time; the verifier knows the real value.
        unsafe { read_volatile(&raw const self.0[field as usize]) }
    }
}

/// A kernel pointer, and how a program of this kind may follow it.
trait Kernel: Copy {
    /// # Safety
    /// By the kernel's BTF, `field` of `*base` is a `T`.
    unsafe fn read<T>(base: *const u8, field: Field) -> T;
}

/// `tp_btf`: the verifier knows the type, plain loads do.
#[derive(Clone, Copy)]
struct Typed;

impl Kernel for Typed {
    #[inline(always)]
    unsafe fn read<T>(base: *const u8, field: Field) -> T {
        // SAFETY: by the caller; the verifier checks the load against BTF.
        unsafe { read_volatile(base.add(LAYOUT.get(field) as usize).cast()) }
    }
}

/// `raw_tp`: arguments are plain numbers, every load goes through a helper.
#[derive(Clone, Copy)]
struct Untyped;

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

#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    on_switch::<Typed>(&ctx, ctx.arg(1), ctx.arg(2));
    0
}

#[raw_tracepoint(tracepoint = "sched_switch")]
fn sched_switch_raw(ctx: RawTracePointContext) -> i32 {
    on_switch::<Untyped>(&ctx, ctx.arg(1), ctx.arg(2));
    0
}

#[btf_tracepoint(function = "cgroup_attach_task")]
fn cgroup_attach_task(ctx: BtfTracePointContext) -> i32 {
    let whole_group: u64 = ctx.arg(3);
    on_move::<Typed>(ctx.arg(2), whole_group & 0xff != 0);
    0
}

#[raw_tracepoint(tracepoint = "cgroup_attach_task")]
fn cgroup_attach_task_raw(ctx: RawTracePointContext) -> i32 {
    let whole_group: u64 = ctx.arg(3);
    on_move::<Untyped>(ctx.arg(2), whole_group & 0xff != 0);
    0
}

#[btf_tracepoint(function = "cgroup_mkdir")]
fn cgroup_mkdir(ctx: BtfTracePointContext) -> i32 {
    on_cgroup::<Typed>(ctx.arg(0), 1);
    0
}

#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
fn cgroup_mkdir_raw(ctx: RawTracePointContext) -> i32 {
    on_cgroup::<Untyped>(ctx.arg(0), 1);
    0
}

#[btf_tracepoint(function = "cgroup_rmdir")]
fn cgroup_rmdir(ctx: BtfTracePointContext) -> i32 {
    on_cgroup::<Typed>(ctx.arg(0), 0);
    0
}

#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
fn cgroup_rmdir_raw(ctx: RawTracePointContext) -> i32 {
    on_cgroup::<Untyped>(ctx.arg(0), 0);
    0
}

// Newer kernels have more arguments; the first is the same in all.
#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    on_exit::<Typed>(ctx.arg(0));
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn sched_process_exit_raw(ctx: RawTracePointContext) -> i32 {
    on_exit::<Untyped>(ctx.arg(0));
    0
}

/// The common switch is one path without calls or spills; all else is in functions of its own. Its
/// cost is that of the cache lines that it touches, its own instructions' included.
#[inline(always)]
fn on_switch<K: Kernel>(ctx: &impl EbpfContext, prev: *const u8, next: *const u8) {
    // SAFETY: sched_switch's own arguments and BTF's offsets. `cpu` is this CPU's entry: the fields
    // written here are written by nobody else, and tracing programs are not preempted by themselves.
    unsafe {
        let Some(cpu) = CPUS.get_ptr_mut(bpf_get_smp_processor_id()) else { return };
        let seq = (*cpu).seq;
        write_volatile(&raw mut (*cpu).seq, seq + 1);

        // The scheduler has just brought the account of `prev` up to date, and `exec_start` is where
        // it stands. The idle task has an account on recent kernels only; idle never follows idle.
        let tgid: u32 = K::read(next, Field::TaskTgid);
        let end: u64 = K::read(prev, Field::TaskExecStart);
        let start = if tgid == 0 { end } else { K::read(next, Field::TaskExecStart) };
        let idle = (*cpu).slot == SLOT_IDLE;
        if (*cpu).task != prev as u64
            || (*cpu).cut_seq == seq
            || (*cpu).vanishing_tgid == tgid
            || (start != end && !idle)
        {
            cold_path();
            rare_switch::<K>(ctx, cpu, prev, next);
        } else {
            let ran = start.wrapping_sub((*cpu).clock_start);
            if idle {
                (*cpu).idle_ns += ran;
            } else {
                (*cpu).cached_ns += ran;
            }
            (*cpu).clock_start = start;
            (*cpu).task = next as u64;
            (*cpu).tgid = tgid;
            (*cpu).slot = if tgid == 0 { SLOT_IDLE } else { slot_of::<K>(cpu, next) };
            if start > (*cpu).offset_until {
                cold_path();
                read_offset(cpu, start);
            }
        }
        write_volatile(&raw mut (*cpu).seq, (*cpu).seq + 1);
    }
}

// The functions of the rare cases must not be `#[cold]`: that puts them into a section of their own,
// and aya tells functions apart by their offset in the section alone.

#[inline(never)]
unsafe fn read_offset(cpu: *mut CpuState, clock: u64) {
    // SAFETY: as in on_switch.
    unsafe {
        (*cpu).offset_until = clock.wrapping_add(OFFSET_AGE);
        (*cpu).clock_offset = bpf_ktime_get_ns().wrapping_sub(clock);
    }
}

/// A slice that is not the common one: the CPU's first, one that was cut, one that a gap follows, one
/// whose beginning was not seen, or one that a task ends whose own end will not be seen.
#[inline(never)]
unsafe fn rare_switch<K: Kernel>(
    ctx: &impl EbpfContext,
    cpu: *mut CpuState,
    prev: *const u8,
    next: *const u8,
) {
    // SAFETY: as in on_switch.
    unsafe {
        let tgid: u32 = K::read(next, Field::TaskTgid);
        let clocked = if tgid == 0 { prev } else { next };
        let now: u64 = K::read(clocked, Field::TaskExecStart);
        if (*cpu).task != 0 {
            settle::<K>(ctx, cpu, prev, now);
        }
        (*cpu).clock_start = now;
        if (*cpu).vanishing_tgid == tgid {
            visit::<K>(cpu, prev);
        } else {
            (*cpu).task = next as u64;
            (*cpu).tgid = tgid;
            (*cpu).slot = if tgid == 0 { SLOT_IDLE } else { slot_of::<K>(cpu, next) };
        }
        read_offset(cpu, now);
    }
}

/// Bills what `prev` ran, and who else may have.
#[inline(always)]
unsafe fn settle<K: Kernel>(ctx: &impl EbpfContext, cpu: *mut CpuState, prev: *const u8, now: u64) {
    // SAFETY: as in on_switch.
    unsafe {
        let started = (*cpu).clock_start;
        let task = (*cpu).task;
        let elapsed = now.saturating_sub(started);
        let ran = if task & !VISITED != prev as u64 {
            unseen_start::<K>(ctx, cpu, prev, elapsed)
        } else if task & VISITED != 0 {
            hidden_switch(ctx, cpu, (*cpu).vanishing_tgid);
            if (*cpu).slot == SLOT_IDLE {
                elapsed
            } else {
                // Its own account leaves out what the visitor ran.
                K::read::<u64>(prev, Field::TaskSumExecRuntime).wrapping_sub((*cpu).runtime_start)
            }
        } else if (*cpu).slot == SLOT_IDLE {
            elapsed
        } else {
            K::read::<u64>(prev, Field::TaskExecStart).wrapping_sub(started)
        };
        if (*cpu).cut_seq.wrapping_add(1) == (*cpu).seq {
            add_cut_slice(cpu, started, ran);
        } else {
            add(cpu, (*cpu).slot, ran);
        }
        // Slices of one CPU tile. What is left is the scheduler's own search for work, or a task
        // that came and went unseen.
        if elapsed > ran {
            add(cpu, SLOT_OTHER, elapsed - ran);
        }
    }
}

/// A task comes that will leave unseen, and most likely soon: reckon that `prev` goes on.
#[inline(never)]
unsafe fn visit<K: Kernel>(cpu: *mut CpuState, prev: *const u8) {
    // SAFETY: as in on_switch.
    unsafe {
        (*cpu).task |= VISITED;
        (*cpu).runtime_start = K::read(prev, Field::TaskSumExecRuntime);
    }
}

/// A switch away from a task of `tgid` must have happened, and was not seen.
#[inline(never)]
unsafe fn hidden_switch<C: EbpfContext>(ctx: &C, cpu: *mut CpuState, tgid: u32) {
    // SAFETY: as in on_switch.
    unsafe {
        if (*cpu).dropped == 0 {
            warn!(
                ctx,
                "switches of process {} are hidden from tracers; its CPU time may be off", tgid
            );
        }
        (*cpu).dropped += 1;
    }
}

/// The task that leaves is not the one that we saw coming: some kernels keep the switches of some
/// tasks from tracers. Says how long the leaving task ran, by the fair scheduler's own note of its
/// account when it was picked, and makes it the CPU's running task.
#[inline(never)]
unsafe fn unseen_start<K: Kernel>(
    ctx: &impl EbpfContext,
    cpu: *mut CpuState,
    prev: *const u8,
    elapsed: u64,
) -> u64 {
    // SAFETY: as in on_switch.
    unsafe {
        let tgid: u32 = K::read(prev, Field::TaskTgid);
        if tgid == (*cpu).vanishing_tgid {
            // It does leave in plain sight.
            (*cpu).vanishing_tgid = NOBODY;
        } else if (*cpu).task & VISITED != 0 {
            hidden_switch(ctx, cpu, (*cpu).vanishing_tgid);
        } else if (*cpu).tgid != tgid {
            hidden_switch(ctx, cpu, (*cpu).tgid);
            if (*cpu).vanishing_tgid == NOBODY && (*cpu).tgid != 0 {
                (*cpu).vanishing_tgid = (*cpu).tgid;
            }
        }
        (*cpu).task = prev as u64;
        (*cpu).tgid = tgid;
        // Cuts were meant for the task that we took to be running.
        (*cpu).cut_seq = u64::MAX;
        if tgid == 0 {
            (*cpu).slot = SLOT_IDLE;
            return 0;
        }
        (*cpu).slot = slot_of::<K>(cpu, prev);
        if LAYOUT.get(Field::TaskPrevSumExecRuntime) == 0 {
            return 0;
        }
        let runtime: u64 = K::read(prev, Field::TaskSumExecRuntime);
        let picked: u64 = K::read(prev, Field::TaskPrevSumExecRuntime);
        let ran = runtime.wrapping_sub(picked);
        // Real-time tasks have no such note, or an old one.
        if ran <= elapsed { ran } else { 0 }
    }
}

/// The slot of a task that is not the idle task, which is `cached_slot` from now on.
///
/// The address of a cgroup says which one it is until another is made: no loads to find its id.
#[inline(always)]
unsafe fn slot_of<K: Kernel>(cpu: *mut CpuState, task: *const u8) -> u32 {
    // SAFETY: as in on_switch.
    unsafe {
        let cgroup = cgroup_of::<K>(task);
        let seen: u64 = read_volatile((&raw const (*cpu).seen).cast());
        let news: u64 = read_volatile((&raw const (*cpu).news).cast());
        if (*cpu).cgroup != cgroup as u64 || seen != news {
            cold_path();
            look_up::<K>(cpu, task);
        }
        (*cpu).cached_slot
    }
}

/// The cache of one does not know, or is not all there is to know.
#[inline(never)]
unsafe fn look_up<K: Kernel>(cpu: *mut CpuState, task: *const u8) {
    // SAFETY: as in on_switch; the news are read before what they could put out of date.
    unsafe {
        let news = read_volatile(&raw const (*cpu).news);
        let Some(known) = KNOWN.get_ptr_mut(0) else { return };
        if (*cpu).seen.selection != news.selection || (*cpu).seen.made != news.made {
            for i in 0..NR_KNOWN {
                (*known)[i].cgroup = 0;
            }
            (*cpu).seen = news;
        }
        let cgroup = cgroup_of::<K>(task);
        // By way of memory, where the verifier takes a pointer for a number.
        write_volatile(&raw mut (*cpu).cgroup, cgroup as u64);
        let address = read_volatile(&raw const (*cpu).cgroup);
        // The high bits of a product are a good hash (Knuth, volume 3, 6.4).
        let hash = address.wrapping_mul(GOLDEN_RATIO) >> (u64::BITS - NR_KNOWN.ilog2());
        let known = (&raw mut *known).cast::<Known>().add(hash as usize);
        if (*known).cgroup & !NOT_KTHREADS != address {
            let id = cgroup_id::<K>(cgroup);
            let slot = resolve::<K>(cgroup, id, news.selection);
            let hidden = id == ROOT_CGROUP_ID && slot != SLOT_OTHER;
            (*known).cgroup = if hidden { address | NOT_KTHREADS } else { address };
            (*known).slot = slot;
        }
        (*cpu).cgroup = (*known).cgroup;
        let mut slot = (*known).slot;
        if (*cpu).cgroup & NOT_KTHREADS != 0 {
            let flags: u32 = K::read(task, Field::TaskFlags);
            if flags & PF_KTHREAD != 0 {
                slot = SLOT_OTHER;
            }
        }
        if slot != (*cpu).cached_slot {
            add(cpu, (*cpu).cached_slot, (*cpu).cached_ns);
            (*cpu).cached_ns = 0;
            (*cpu).cached_slot = slot;
        }
    }
}

#[inline(always)]
unsafe fn cgroup_of<K: Kernel>(task: *const u8) -> *const u8 {
    // SAFETY: BTF's offsets; a running task has a css_set.
    unsafe {
        let css_set: *const u8 = K::read(task, Field::TaskCgroups);
        let cgroup: *const u8 = K::read(css_set, Field::CssSetCgroup);
        if LAYOUT.get(Field::ViaCss) == 0 { cgroup } else { K::read(cgroup, Field::CssCgroup) }
    }
}

#[inline(always)]
unsafe fn cgroup_id<K: Kernel>(cgroup: *const u8) -> u64 {
    // SAFETY: BTF's offsets.
    unsafe { K::read(K::read(cgroup, Field::CgroupKn), Field::KnId) }
}

/// The slot of the nearest selected ancestor: a child that lives for 10 ms needs no attention from
/// the agent to be billed to its parent.
#[inline(never)]
unsafe fn resolve<K: Kernel>(cgroup: *const u8, id: u64, selection: u32) -> u32 {
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

#[inline(always)]
unsafe fn add(cpu: *mut CpuState, slot: u32, ns: u64) {
    // SAFETY: this CPU's own entry and row.
    unsafe {
        if let Some(counter) = COUNTERS.get_ptr_mut((*cpu).row + slot) {
            *counter += ns;
        }
    }
}

/// Bills a slice whose task was moved while it ran, piece by piece.
#[inline(never)]
unsafe fn add_cut_slice(cpu: *mut CpuState, started: u64, ran: u64) {
    // SAFETY: as in on_switch; the cuts are complete before `cut_seq` says so.
    unsafe {
        let start = started.wrapping_add((*cpu).clock_offset);
        let mut slot = (*cpu).slot;
        let mut billed = 0;
        for i in 0..MAX_CUTS {
            if i as u32 >= (*cpu).cut_count {
                break;
            }
            let until = (*cpu).cut_mono_ns[i].saturating_sub(start).clamp(billed, ran);
            add(cpu, slot, until - billed);
            billed = until;
            slot = (*cpu).cut_slot[i];
        }
        add(cpu, slot, ran - billed);
    }
}

/// A task was moved to another cgroup. Where it is running at this moment, its slice is cut. Movers
/// hold `cgroup_mutex`, so there is one at a time: cuts are written here only.
#[inline(always)]
fn on_move<K: Kernel>(task: *const u8, whole_group: bool) {
    // SAFETY: the tracepoint's own argument and BTF's offsets; one mover at a time.
    unsafe {
        let now = bpf_ktime_get_ns();
        let tgid: u32 = K::read(task, Field::TaskTgid);
        // The task already points at its new cgroup, whichever hierarchy it was moved in.
        let cgroup = cgroup_of::<K>(task);
        let id = cgroup_id::<K>(cgroup);
        let Some(this) = CPUS.get_ptr_mut(bpf_get_smp_processor_id()) else { return };
        let selection = read_volatile(&raw const (*this).news.selection);
        let slot = resolve::<K>(cgroup, id, selection);
        for i in 0..LAYOUT.get(Field::NrCpus) as u32 {
            let Some(cpu) = CPUS.get_ptr_mut(i) else { return };
            let seq = read_volatile(&raw const (*cpu).seq);
            let running = if whole_group {
                (*cpu).tgid == tgid
            } else {
                (*cpu).task & !VISITED == task as u64
            };
            // Odd: that CPU is switching right now and reads the new cgroup by itself.
            if seq & 1 != 0 || (*cpu).tgid == 0 || !running {
                continue;
            }
            let count = if (*cpu).cut_seq == seq { (*cpu).cut_count as usize } else { 0 };
            if count >= MAX_CUTS {
                (*cpu).merged_cuts += 1;
            }
            let last = if count < MAX_CUTS { count } else { MAX_CUTS - 1 };
            (*cpu).cut_mono_ns[last] = now;
            (*cpu).cut_slot[last] = slot;
            write_volatile(&raw mut (*cpu).cut_count, last as u32 + 1);
            write_volatile(&raw mut (*cpu).cut_seq, seq);
        }
    }
}

#[inline(always)]
fn on_cgroup<K: Kernel>(cgroup: *const u8, made: u32) {
    // SAFETY: the tracepoint's own argument and BTF's offsets.
    unsafe {
        let root: *const u8 = K::read(cgroup, Field::CgroupRoot);
        if K::read::<u32>(root, Field::RootHierarchyId) != LAYOUT.get(Field::HierarchyId) as u32 {
            return;
        }
        for i in 0..LAYOUT.get(Field::NrCpus) as u32 {
            // No task is in a new cgroup yet. Makers hold `cgroup_mutex`: one at a time.
            let Some(cpu) = CPUS.get_ptr_mut(i) else { break };
            let made = &raw mut (*cpu).news.made;
            write_volatile(made, read_volatile(made).wrapping_add(1));
        }
        let event = CgroupEvent { cgroup_id: cgroup_id::<K>(cgroup), made, _pad: 0 };
        if EVENTS.output::<CgroupEvent>(&event, 0).is_err()
            && let Some(cpu) = CPUS.get_ptr_mut(bpf_get_smp_processor_id())
        {
            (*cpu).lost_events += 1;
        }
    }
}

/// A thread exits. Its leader may be gone already or go on, so each of them is noted, and the last
/// one's word stands.
#[inline(always)]
fn on_exit<K: Kernel>(task: *const u8) {
    // SAFETY: the tracepoint's own argument and BTF's offsets; it has not left its cgroup yet.
    unsafe {
        let Some(this) = CPUS.get_ptr_mut(bpf_get_smp_processor_id()) else { return };
        let selection = read_volatile(&raw const (*this).news.selection);
        let cgroup = cgroup_of::<K>(task);
        let slot = resolve::<K>(cgroup, cgroup_id::<K>(cgroup), selection);
        let tgid: u32 = K::read(task, Field::TaskTgid);
        let exited = Exited { mono_ns: bpf_ktime_get_ns(), slot, _pad: 0 };
        // One that finds no room is a process whose GPU time is billed to nobody, if it had any.
        let _ = match slot {
            SLOT_OTHER => EXITED_OTHERS.insert(tgid, exited, 0),
            _ => EXITED.insert(tgid, exited, 0),
        };
    }
}
