//! The maps.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, Queue, RingBuf};
use ecoprobe_ebpf::{CgroupEventBuffer, CpuState, Exited, Known, NR_KNOWN, Resolved, Shared};

const BPF_F_MMAPABLE: u32 = 1 << 10;

// What each CPU does now; one entry a possible CPU. Mapped by the agent.
#[map]
pub(crate) static CPUS: Array<CpuState> = Array::with_max_entries(1, BPF_F_MMAPABLE);

// CPU time in ns: a row of NR_SLOTS for each CPU, written by that CPU only. Mapped by the agent.
#[map]
pub(crate) static COUNTERS: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

// The part of it in which the core's other thread was busy, in the same rows; where cores have two
// threads. Mapped by the agent.
#[map]
pub(crate) static PAIRED: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);

// One entry. Mapped by the agent.
#[map]
pub(crate) static SHARED: Array<Shared> = Array::with_max_entries(1, BPF_F_MMAPABLE);

// The cgroups that ran on each CPU of late, by a hash of their address: on a CPU that many jobs share
// each switch goes to another one.
#[map]
pub(crate) static KNOWN: PerCpuArray<[Known; NR_KNOWN]> = PerCpuArray::with_max_entries(1, 0);

// The selected cgroups and their slots. Written by the agent, and where a cgroup is made.
#[map]
pub(crate) static SELECTED: HashMap<u64, u32> = HashMap::with_max_entries(1, 0);

// Which slot each cgroup seen so far belongs to. A cache: an entry that is evicted, or that found no
// room, is worked out again from SELECTED.
#[map]
pub(crate) static RESOLVED: LruHashMap<u64, Resolved> = LruHashMap::with_max_entries(1, 0);

// Whose the processes were that exited lately, by thread group: those of workloads, and all others,
// apart, so that the many who exit elsewhere do not make a workload's be forgotten. The oldest make room.
#[map]
pub(crate) static EXITED: LruHashMap<u32, Exited> = LruHashMap::with_max_entries(1, 0);
#[map]
pub(crate) static EXITED_OTHERS: LruHashMap<u32, Exited> = LruHashMap::with_max_entries(1, 0);

// Slots for cgroups that are made from now on. Filled by the agent.
#[map]
pub(crate) static SPARES: Queue<u32> = Queue::with_max_entries(1, 0);

#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

// Where an event is put together: it is too large for the stack.
#[map]
pub(crate) static EVENT: PerCpuArray<CgroupEventBuffer> = PerCpuArray::with_max_entries(1, 0);
