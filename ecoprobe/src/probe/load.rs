//! Loading and attaching the probe, and telling it which cgroups are selected.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData, RingBuf};
use aya::programs::{BtfTracePoint, RawTracePoint};
use aya::{Btf, Ebpf, EbpfLoader, Endianness};
use aya_log::EbpfLogger;
use ecoprobe_ebpf::{CgroupEvent, Exited, Field, LAYOUT_LEN};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use super::read::Counters;
use crate::base::error::Error;
use crate::base::own::ProbeStats;
use crate::event::SLOT_FIRST;
use crate::host::btf::{BtfError, KernelLayout};
use crate::host::priority::Undisturbed;

static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/probe.o");

/// How the probe is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Typed arguments: plain loads.
    TpBtf,
    /// The twin for kernels without BPF trampolines: every load through a helper.
    RawTp,
}

impl Hook {
    pub fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf/sched_switch",
            Self::RawTp => "raw_tp/sched_switch",
        }
    }
}

#[derive(Debug)]
pub struct LoadOptions<'a> {
    /// The kernel's BTF, `/sys/kernel/btf/vmlinux`.
    pub btf: &'a Path,
    /// Package of each possible CPU, and how many packages there are.
    pub package_of_cpu: Vec<Option<usize>>,
    pub packages: usize,
    /// Controller of the v1 hierarchy to follow; `None` for cgroup2.
    pub v1_controller: Option<&'a str>,
    /// That hierarchy's id in `/proc/self/cgroup`; 0 for cgroup2.
    pub hierarchy_id: u32,
    pub max_workloads: u32,
    /// Whether [`CpuTime::watch_exits`] may be asked for; if not, it costs no memory either.
    pub exits: bool,
    /// `None`: whatever this kernel can do best.
    pub hook: Option<Hook>,
}

/// The loaded probe. Dropping it detaches it; nothing is pinned, so the kernel does the same if we
/// are killed.
pub struct CpuTime {
    ebpf: Ebpf,
    hook: Hook,
    counters: Counters,
    selected: HashMap<MapData, u64, u32>,
    events: RingBuf<MapData>,
    /// Until somebody takes them.
    exits: Option<Exits>,
    logger: EbpfLogger<ProbeLog>,
    log: ProbeLog,
    max_workloads: usize,
    workloads: usize,
    selection: u32,
}

impl std::fmt::Debug for CpuTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuTime").field("hook", &self.hook).finish_non_exhaustive()
    }
}

impl CpuTime {
    /// Loads the probe with nothing selected; it counts only after [`CpuTime::attach`].
    pub fn load(options: LoadOptions<'_>) -> Result<Self, Error> {
        let layout = KernelLayout::read(options.btf).map_err(|error| match error {
            BtfError::Open { .. } => Error::Cannot(error.to_string()),
            _ => Error::Cannot(format!("{error}; this kernel is not supported")),
        })?;
        let typed = layout.has_typed_tracepoints();
        let hooks = match options.hook {
            Some(hook) => vec![hook],
            None if typed => vec![Hook::TpBtf, Hook::RawTp],
            None => vec![Hook::RawTp],
        };
        let mut outcome = Err(Error::Cannot("no way to attach the probe".into()));
        for hook in hooks {
            outcome = Self::load_with(&layout, &options, hook);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    fn load_with(
        layout: &KernelLayout,
        options: &LoadOptions<'_>,
        hook: Hook,
    ) -> Result<Self, Error> {
        let constants = Constants::new(layout, options)?;
        let most_exited = if options.exits { MOST_EXITED } else { 1 };
        let mut loader = loader_without_kernel_btf();
        loader
            .map_max_entries("CPUS", constants.nr_cpus)
            .map_max_entries("COUNTERS", constants.nr_cpus.saturating_mul(constants.nr_slots))
            .map_max_entries("SELECTED", options.max_workloads)
            // Children of the selected cgroups and everybody else's cgroups share this cache.
            .map_max_entries("RESOLVED", options.max_workloads.saturating_mul(2).max(8192))
            .map_max_entries("EXITED", most_exited)
            .map_max_entries("EXITED_OTHERS", most_exited);
        loader.override_global("LAYOUT", &constants.fields[..], true);
        let mut ebpf = loader.load(OBJECT).map_err(|error| cannot("load the probe", &error))?;
        let btf = Btf::parse(&layout.tracepoint_btf(), Endianness::default())
            .map_err(|error| cannot("use this kernel's BTF", &error))?;
        for tracepoint in TRACEPOINTS {
            load_program(&mut ebpf, tracepoint, hook, &btf)?;
        }
        if options.exits {
            load_program(&mut ebpf, EXIT, hook, &btf)?;
        }
        drop(btf);

        let counters = Counters::map(
            map_data(&mut ebpf, "CPUS")?,
            map_data(&mut ebpf, "COUNTERS")?,
            constants.nr_slots as usize,
            options.package_of_cpu.clone(),
            options.packages,
        )
        .map_err(|error| cannot("map the probe's counters", &error))?;
        let internal = |error| cannot("use the probe's maps", &error);
        let selected = HashMap::try_from(take_map(&mut ebpf, "SELECTED")?).map_err(internal)?;
        let events = RingBuf::try_from(take_map(&mut ebpf, "EVENTS")?).map_err(internal)?;
        let mut exited = |name| HashMap::try_from(take_map(&mut ebpf, name)?).map_err(internal);
        let exits = Exits([exited("EXITED")?, exited("EXITED_OTHERS")?]);
        let log = ProbeLog::default();
        let logger = EbpfLogger::init_with_logger(&mut ebpf, log.clone())
            .map_err(|error| cannot("read the probe's log", &error))?;
        Ok(Self {
            ebpf,
            hook,
            counters,
            selected,
            events,
            exits: options.exits.then_some(exits),
            logger,
            log,
            max_workloads: options.max_workloads as usize,
            workloads: 0,
            selection: 0,
        })
    }

    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// Starts counting. On return every CPU that we may run on has switched once, so that its
    /// running task is known.
    pub fn attach(&mut self) -> Result<(), Error> {
        // Moves first: a slice that begins before its cuts can be seen would be billed whole.
        for tracepoint in TRACEPOINTS {
            attach_program(&mut self.ebpf, tracepoint, self.hook)?;
        }
        switch_every_cpu(self.counters.nr_cpus());
        Ok(())
    }

    /// Whose processes were that have exited; `None` if not loaded for it, or taken before. There is
    /// nothing in it until [`CpuTime::watch_exits`].
    pub fn take_exits(&mut self) -> Option<Exits> {
        self.exits.take()
    }

    /// From now on, notes whose each process was that exits.
    pub fn watch_exits(&mut self) -> Result<(), Error> {
        attach_program(&mut self.ebpf, EXIT, self.hook)
    }

    /// Selects a cgroup; its subtree's time goes to the returned slot from now on. `None`: there is
    /// room for no more, its time stays in `other`.
    pub fn add_workload(&mut self, cgroup_id: u64) -> Result<Option<usize>, Error> {
        if self.workloads >= self.max_workloads {
            return Ok(None);
        }
        let slot = SLOT_FIRST + self.workloads;
        self.selected
            .insert(cgroup_id, slot as u32, 0)
            .map_err(|error| cannot("select a cgroup", &error))?;
        self.workloads += 1;
        self.selection = self.selection.wrapping_add(1);
        self.counters.set_selection(self.selection);
        Ok(Some(slot))
    }

    /// Cumulative nanoseconds by package and slot, running tasks included, and the CLOCK_MONOTONIC
    /// time of the reading.
    pub fn read(&mut self, cpu_ns: &mut Vec<Vec<u64>>) -> u64 {
        self.counters.read(SLOT_FIRST + self.workloads, cpu_ns)
    }

    /// Cgroups made or removed in the followed hierarchy since the last call.
    pub fn cgroup_events(&mut self, mut each: impl FnMut(CgroupEvent)) {
        while let Some(item) = self.events.next() {
            if let Some(event) = super::read::cgroup_event(&item) {
                each(event);
            }
        }
    }

    /// Becomes readable when there are cgroup events.
    pub fn cgroup_events_fd(&self) -> io::Result<OwnedFd> {
        self.events.as_fd().try_clone_to_owned()
    }

    /// What the probe found worth saying since the last call.
    pub fn warnings(&mut self) -> Vec<String> {
        self.logger.flush();
        let mut messages = self.log.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::take(&mut *messages)
    }

    /// Events that did not fit into the ring: cgroups may have been made that we were not told of.
    pub fn lost_events(&self) -> u64 {
        self.counters.totals().lost_events
    }

    pub fn stats(&self) -> ProbeStats {
        let totals = self.counters.totals();
        ProbeStats {
            events: Some(totals.switches),
            dropped: Some(totals.dropped),
            ns_per_event: self
                .run_time()
                .map(|total| total.time.as_nanos() as f64 / total.runs as f64),
        }
    }

    /// Of the `sched_switch` program. `None` unless `kernel.bpf_stats_enabled` is 1: the statistics
    /// themselves cost time, so we do not turn them on.
    pub fn run_time(&self) -> Option<RunTime> {
        let info = self.ebpf.program(&program_name("sched_switch", self.hook))?.info().ok()?;
        let (runs, time) = (info.run_count(), info.run_time());
        (runs > 0).then_some(RunTime { runs, time })
    }
}

/// The processes that exited lately, as the probe noted them.
#[derive(Debug)]
pub struct Exits([HashMap<MapData, u32, Value>; 2]);

/// As the map has it.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
struct Value(Exited);

// SAFETY: integers without implicit padding.
unsafe impl aya::Pod for Value {}

impl Exits {
    /// The slot that a process of the initial pid namespace was billed to when a thread of it exited
    /// last, and the CLOCK_MONOTONIC time of that in nanoseconds. Two system calls.
    pub fn find(&self, pid: u32) -> Option<(usize, u64)> {
        // An error is that there is no such process.
        let found = self.0.iter().filter_map(|exited| exited.get(&pid, 0).ok());
        let Value(last) = found.max_by_key(|Value(exited)| exited.mono_ns)?;
        Some((last.slot as usize, last.mono_ns))
    }
}

/// What a BPF program cost since it was loaded, by the kernel's own account.
#[derive(Debug, Clone, Copy)]
pub struct RunTime {
    pub runs: u64,
    pub time: Duration,
}

const TRACEPOINTS: [&str; 4] =
    ["cgroup_attach_task", "cgroup_mkdir", "cgroup_rmdir", "sched_switch"];

/// Attached only where somebody asks who has exited.
const EXIT: &str = "sched_process_exit";

/// How many exited processes are remembered, of workloads and of others each: two looks' worth where
/// two thousand exit in each second.
const MOST_EXITED: u32 = 4 * 1024;

fn program_name(tracepoint: &str, hook: Hook) -> String {
    match hook {
        Hook::TpBtf => tracepoint.to_owned(),
        Hook::RawTp => format!("{tracepoint}_raw"),
    }
}

fn load_program(ebpf: &mut Ebpf, tracepoint: &str, hook: Hook, btf: &Btf) -> Result<(), Error> {
    let program = ebpf.program_mut(&program_name(tracepoint, hook));
    let program = program.ok_or_else(|| damaged(tracepoint))?;
    let outcome = match hook {
        Hook::TpBtf => <&mut BtfTracePoint>::try_from(program)
            .and_then(|program| program.load(tracepoint, btf)),
        Hook::RawTp => <&mut RawTracePoint>::try_from(program).and_then(RawTracePoint::load),
    };
    outcome.map_err(|error| cannot(&format!("load the probe ({tracepoint})"), &error))
}

fn attach_program(ebpf: &mut Ebpf, tracepoint: &str, hook: Hook) -> Result<(), Error> {
    let program = ebpf.program_mut(&program_name(tracepoint, hook));
    let program = program.ok_or_else(|| damaged(tracepoint))?;
    let outcome = match hook {
        Hook::TpBtf => {
            <&mut BtfTracePoint>::try_from(program).and_then(|program| program.attach().map(drop))
        }
        Hook::RawTp => <&mut RawTracePoint>::try_from(program)
            .and_then(|program| program.attach(tracepoint).map(drop)),
    };
    outcome.map_err(|error| cannot(&format!("attach the probe to {tracepoint}"), &error))
}

fn take_map(ebpf: &mut Ebpf, name: &str) -> Result<Map, Error> {
    ebpf.take_map(name).ok_or_else(|| damaged(name))
}

fn map_data(ebpf: &mut Ebpf, name: &str) -> Result<MapData, Error> {
    match take_map(ebpf, name)? {
        Map::Array(data) => Ok(data),
        _ => Err(damaged(name)),
    }
}

fn damaged(what: &str) -> Error {
    Error::Cannot(format!("the embedded BPF object is damaged: it has no {what}"))
}

/// A sentence with the innermost cause; where that is a lack of permission, what to do.
fn cannot(what: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    let mut causes = Vec::new();
    let mut cause = Some(error);
    let mut denied = false;
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            denied |= matches!(io.kind(), io::ErrorKind::PermissionDenied);
        }
        let text = error.to_string();
        if causes.last() != Some(&text) {
            causes.push(text);
        }
        cause = error.source();
    }
    let advice = if denied {
        "; run it with sudo, or with CAP_BPF and CAP_PERFMON (CAP_SYS_ADMIN before Linux 5.8)"
    } else {
        ""
    };
    Error::Cannot(format!("cannot {what}: {}{advice}", causes.join(": ")))
}

/// The probe's read-only globals.
struct Constants {
    nr_cpus: u32,
    nr_slots: u32,
    fields: [u64; LAYOUT_LEN],
}

impl Constants {
    fn new(layout: &KernelLayout, options: &LoadOptions<'_>) -> Result<Self, Error> {
        Self::from_layout(layout, options)
            .map_err(|error| Error::Cannot(format!("{error}; this kernel is not supported")))
    }

    fn from_layout(layout: &KernelLayout, options: &LoadOptions<'_>) -> Result<Self, BtfError> {
        let nr_cpus = options.package_of_cpu.len() as u32;
        let nr_slots = options.max_workloads + SLOT_FIRST as u32;
        let se = layout.offset("task_struct", "se")?;
        let css_set_cgroup = match options.v1_controller {
            None => layout.offset("css_set", "dfl_cgrp")?,
            Some(controller) => {
                let index = layout.subsystem(controller).ok_or_else(|| {
                    BtfError::Missing(format!("cgroup controller `{controller}`"))
                })?;
                let pointer = size_of::<u64>() as u64;
                layout.offset("css_set", "subsys")? + u64::from(index) * pointer
            }
        };
        let css_parent = layout.offset("cgroup_subsys_state", "parent")?;
        // Not every kernel has it; the probe then does without.
        let prev_sum = layout.offset("sched_entity", "prev_sum_exec_runtime");
        let mut fields = [0; LAYOUT_LEN];
        for (field, value) in [
            (Field::NrCpus, nr_cpus.into()),
            (Field::HierarchyId, options.hierarchy_id.into()),
            (Field::ViaCss, options.v1_controller.is_some().into()),
            (Field::TaskTgid, layout.offset("task_struct", "tgid")?),
            (Field::TaskFlags, layout.offset("task_struct", "flags")?),
            (Field::TaskSumExecRuntime, se + layout.offset("sched_entity", "sum_exec_runtime")?),
            (Field::TaskPrevSumExecRuntime, prev_sum.map_or(0, |offset| se + offset)),
            (Field::TaskExecStart, se + layout.offset("sched_entity", "exec_start")?),
            (Field::TaskCgroups, layout.offset("task_struct", "cgroups")?),
            (Field::CssSetCgroup, css_set_cgroup),
            (Field::CssCgroup, layout.offset("cgroup_subsys_state", "cgroup")?),
            (Field::CgroupKn, layout.offset("cgroup", "kn")?),
            (Field::CgroupParent, layout.offset("cgroup", "self")? + css_parent),
            (Field::CgroupRoot, layout.offset("cgroup", "root")?),
            (Field::RootHierarchyId, layout.offset("cgroup_root", "hierarchy_id")?),
            (Field::KnId, layout.offset("kernfs_node", "id")?),
        ] {
            fields[field as usize] = value;
        }
        Ok(Self { nr_cpus, nr_slots, fields })
    }
}

/// aya parses the kernel's whole BTF in the loader's constructor: 20 MB and tens of milliseconds for
/// relocations that the probe does not have. It goes on without where the file cannot be opened, so
/// for that moment no file can.
fn loader_without_kernel_btf<'a>() -> EbpfLoader<'a> {
    let limit = getrlimit(Resource::RLIMIT_NOFILE);
    if let Ok((_, hard)) = limit {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, 0, hard);
    }
    let mut loader = EbpfLoader::new();
    if let Ok((soft, hard)) = limit {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
    }
    loader.btf(None);
    loader
}

/// Makes every CPU switch tasks once. A task that computes without pause would else stay unseen until
/// it pauses, which can take hours.
fn switch_every_cpu(nr_cpus: usize) {
    // On a thread of its own, whose affinity ends with it.
    let visit = move || {
        // Without the permission, a busy CPU is visited a few milliseconds later.
        let _undisturbed = Undisturbed::begin();
        for cpu in 0..nr_cpus {
            let mut only = CpuSet::new();
            if only.set(cpu).is_ok() {
                // A CPU that is offline or outside our cpuset cannot be visited: it is seen at its
                // next switch.
                let _ = sched_setaffinity(Pid::from_raw(0), &only);
            }
        }
    };
    if let Ok(thread) = std::thread::Builder::new().stack_size(64 * 1024).spawn(visit) {
        let _ = thread.join();
    }
}

/// Keeps what the probe logs until somebody asks.
#[derive(Debug, Clone, Default)]
struct ProbeLog(Arc<Mutex<Vec<String>>>);

impl log::Log for ProbeLog {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut messages = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let message = format!("probe: {}", record.args());
        // Every CPU says it once.
        if !messages.contains(&message) {
            messages.push(message);
        }
    }

    fn flush(&self) {}
}
