//! Loading and attaching the probe.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::Path;

use aya::maps::{HashMap, Map, MapData, Queue, RingBuf};
use aya::programs::{BtfTracePoint, ProgramError, RawTracePoint};
use aya::{Btf, Ebpf, EbpfLoader, Endianness};
use aya_log::EbpfLogger;
use nix::sys::signal::{SigSet, SigmaskHow};

use super::events::ProbeLog;
use super::exits::{Exits, History};
use super::layout::Constants;
use super::read::{Arrays, Counters};
use super::slots::{RESERVE, Slots};
use super::{Probe, object, verifier};
use crate::base::Error;
use crate::host::btf::{BtfError, KernelLayout};
use crate::host::priority::Undisturbed;

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
    /// Package of each possible CPU, `None` where it is not known, and how many packages there are.
    pub package_of_cpu: Vec<Option<usize>>,
    pub packages: usize,
    /// The other thread of each CPU's core, as far as there is one now. If no CPU has one, paired time is
    /// not known, and costs nothing.
    pub sibling_of_cpu: Vec<Option<usize>>,
    /// Controller of the v1 hierarchy to follow; `None` for cgroup2.
    pub v1_controller: Option<&'a str>,
    /// That hierarchy's id in `/proc/self/cgroup`; 0 for cgroup2.
    pub hierarchy_id: u32,
    /// At the same time; a workload that has ended makes room.
    pub max_workloads: u32,
    /// Whether cgroups that are made later may be begun: they are counted apart from the first, until
    /// [`Probe::settle_newcomers`] or [`Probe::begin`]. If not, it costs no memory.
    pub newcomers: bool,
    /// Whether [`Probe::watch_exits`] may be asked for; if not, it costs no memory either.
    pub exits: bool,
    /// `None`: whatever this kernel can do best.
    pub hook: Option<Hook>,
}

pub(super) fn load(options: &LoadOptions<'_>) -> Result<Probe, Error> {
    let layout = KernelLayout::read(options.btf).map_err(|error| match error {
        BtfError::Open { .. } => Error::Cannot(error.to_string()),
        _ => Error::Cannot(format!("{error}; this kernel is not supported")),
    })?;
    let hooks = match options.hook {
        Some(hook) => vec![hook],
        None if layout.has_typed_tracepoints() => vec![Hook::TpBtf, Hook::RawTp],
        None => vec![Hook::RawTp],
    };
    let mut outcome = Err(Failure::Other(Error::Cannot("no way to attach the probe".into())));
    for hook in hooks {
        outcome = undisturbed(|| load_object(&layout, options, hook, object::NATIVE));
        if outcome.is_ok() {
            break;
        }
    }
    outcome.map_err(Failure::into_error)
}

/// Loads with signals held back, because the verifier gives up with EAGAIN where one is pending
/// (`bpf_check` in the kernel's `verifier.c`): that is no refusal, and no reason to take another hook. A
/// process that is stopped and goes on is disturbed all the same, so it is tried again then.
fn undisturbed(mut load: impl FnMut() -> Result<Probe, Failure>) -> Result<Probe, Failure> {
    const TRIES: u32 = 100;
    let mut before = SigSet::empty();
    let blocked = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
    if let Ok(mask) = &blocked {
        before = *mask;
    }
    let mut outcome = load();
    for _ in 1..TRIES {
        if !outcome.as_ref().is_err_and(Failure::is_disturbance) {
            break;
        }
        outcome = load();
    }
    if blocked.is_ok() {
        // It was in force before, so it can be again.
        let _ = before.thread_set_mask();
    }
    outcome
}

/// Why the probe is not loaded. What the verifier says is made into a message only for the last way
/// that was tried.
#[derive(Debug)]
pub(super) enum Failure {
    Program(String, ProgramError),
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl Failure {
    /// A signal came while the kernel was at it.
    fn is_disturbance(&self) -> bool {
        let Self::Program(_, ProgramError::LoadError { io_error, .. }) = self else { return false };
        io_error.raw_os_error() == Some(libc::EAGAIN)
    }

    pub(super) fn into_error(self) -> Error {
        if self.is_disturbance() {
            let why = "cannot load the probe: this process was interrupted each time the kernel \
                       checked it; start it again";
            return Error::Cannot(why.to_owned());
        }
        match self {
            Self::Program(what, error) => verifier::refused(&what, &error),
            Self::Other(error) => error,
        }
    }
}

pub(super) fn load_object(
    layout: &KernelLayout,
    options: &LoadOptions<'_>,
    hook: Hook,
    object: &[u8],
) -> Result<Probe, Failure> {
    let constants = Constants::new(layout, options)?;
    let most_exited = if options.exits { MOST_EXITED } else { 1 };
    let mut loader = loader_without_kernel_btf();
    loader
        .map_max_entries("CPUS", constants.nr_cpus)
        .map_max_entries("COUNTERS", constants.nr_counters)
        .map_max_entries("PAIRED", if constants.siblings { constants.nr_counters } else { 1 })
        .map_max_entries("SELECTED", constants.nr_slots)
        .map_max_entries("SPARES", RESERVE)
        // Children of the selected cgroups and everybody else's cgroups share this cache.
        .map_max_entries("RESOLVED", options.max_workloads.saturating_mul(2).max(8192))
        .map_max_entries("EXITED", most_exited)
        .map_max_entries("EXITED_OTHERS", most_exited);
    loader.override_global("LAYOUT", &constants.fields[..], true);
    let mut ebpf = loader.load(object).map_err(|error| cannot("load the probe", &error))?;
    let btf = Btf::parse(&layout.tracepoint_btf(), Endianness::default())
        .map_err(|error| cannot("use this kernel's BTF", &error))?;
    for tracepoint in TRACEPOINTS {
        load_program(&mut ebpf, tracepoint, hook, &btf)?;
    }
    if options.exits {
        load_program(&mut ebpf, EXIT, hook, &btf)?;
    }
    drop(btf);

    let arrays = Arrays {
        cpus: map_data(&mut ebpf, "CPUS")?,
        counters: map_data(&mut ebpf, "COUNTERS")?,
        paired: map_data(&mut ebpf, "PAIRED")?,
        shared: map_data(&mut ebpf, "SHARED")?,
    };
    let mut counters = Counters::map(
        arrays,
        constants.nr_slots as usize,
        constants.siblings,
        options.package_of_cpu.clone(),
        options.packages,
    )
    .map_err(|error| cannot("map the probe's counters", &error))?;
    counters.set_siblings(&options.sibling_of_cpu);
    let internal = |error| cannot("use the probe's maps", &error);
    let selected = HashMap::try_from(take_map(&mut ebpf, "SELECTED")?).map_err(internal)?;
    let events = RingBuf::try_from(take_map(&mut ebpf, "EVENTS")?).map_err(internal)?;
    let spares = Queue::try_from(take_map(&mut ebpf, "SPARES")?).map_err(internal)?;
    let mut exited = |name| HashMap::try_from(take_map(&mut ebpf, name)?).map_err(internal);
    let history = History::default();
    let exits =
        Exits { noted: [exited("EXITED")?, exited("EXITED_OTHERS")?], history: history.clone() };
    let log = ProbeLog::default();
    let logger = EbpfLogger::init_with_logger(&mut ebpf, log.clone())
        .map_err(|error| cannot("read the probe's log", &error))?;
    Ok(Probe {
        ebpf,
        hook,
        counters,
        slots: Slots::new(constants.nr_slots, constants.reserve, options.packages),
        selected,
        spares,
        events,
        news: VecDeque::new(),
        forgotten_news: 0,
        slotless: HashSet::new(),
        begun_late: 0,
        ended: Vec::new(),
        settled_ns: 0,
        exits: options.exits.then_some(exits),
        history: options.exits.then_some(history),
        logger,
        log,
    })
}

const TRACEPOINTS: [&str; 4] =
    ["cgroup_attach_task", "cgroup_mkdir", "cgroup_rmdir", "sched_switch"];

/// Attached only where somebody asks who has exited.
const EXIT: &str = "sched_process_exit";

/// How many exited processes are remembered, of workloads and of others each: two looks' worth where
/// two thousand exit in each second.
const MOST_EXITED: u32 = 4 * 1024;

pub(super) fn program_name(tracepoint: &str, hook: Hook) -> String {
    match hook {
        Hook::TpBtf => tracepoint.to_owned(),
        Hook::RawTp => format!("{tracepoint}_raw"),
    }
}

fn load_program(ebpf: &mut Ebpf, tracepoint: &str, hook: Hook, btf: &Btf) -> Result<(), Failure> {
    let program = ebpf.program_mut(&program_name(tracepoint, hook));
    let program = program.ok_or_else(|| damaged(tracepoint))?;
    let outcome = match hook {
        Hook::TpBtf => <&mut BtfTracePoint>::try_from(program)
            .and_then(|program| program.load(tracepoint, btf)),
        Hook::RawTp => <&mut RawTracePoint>::try_from(program).and_then(RawTracePoint::load),
    };
    outcome.map_err(|error| Failure::Program(format!("load the probe ({tracepoint})"), error))
}

pub(super) fn attach(ebpf: &mut Ebpf, hook: Hook) -> Result<(), Error> {
    // Moves first: a slice that begins before its cuts can be seen would be billed whole.
    for tracepoint in TRACEPOINTS {
        attach_program(ebpf, tracepoint, hook)?;
    }
    Ok(())
}

pub(super) fn attach_exit(ebpf: &mut Ebpf, hook: Hook) -> Result<(), Error> {
    attach_program(ebpf, EXIT, hook)
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
pub(super) fn cannot(what: &str, error: &(dyn std::error::Error + 'static)) -> Error {
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
    let sentence = format!("cannot {what}: {}", causes.join(": "));
    if denied {
        Error::Denied(format!(
            "{sentence}; run it with sudo, or with CAP_BPF and CAP_PERFMON (CAP_SYS_ADMIN before \
             Linux 5.8)"
        ))
    } else {
        Error::Cannot(sentence)
    }
}

/// aya parses the kernel's whole BTF in the loader's constructor: 20 MB and tens of milliseconds for
/// relocations that the probe does not have. It goes on without where the file cannot be opened, so
/// the constructor runs on a thread of its own that can open none.
fn loader_without_kernel_btf() -> EbpfLoader<'static> {
    let constructor = || {
        // Without it, the memory is what it costs.
        let _ = open_no_files();
        EbpfLoader::new()
    };
    let thread = std::thread::Builder::new().spawn(constructor);
    let loader = thread.ok().and_then(|thread| thread.join().ok());
    let mut loader = loader.unwrap_or_default();
    loader.btf(None);
    loader
}

/// From now on the calling thread, and no other, is refused to open files. It takes no privilege.
fn open_no_files() -> io::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let filter = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let number = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    let mut filters = [
        filter(LOAD, 0, 0, number),
        // `openat`, by which every library opens files, and nothing else.
        filter(EQUAL, 0, 1, libc::SYS_openat as u32),
        filter(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EACCES as u32),
        filter(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filters.len() as u16, filter: filters.as_mut_ptr() };
    // SAFETY: both concern the calling thread alone; the filter outlives the call, which copies it.
    let outcome = unsafe {
        match libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) {
            0 => libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program),
            failed => failed,
        }
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes every CPU switch tasks once. A task that computes without pause would else stay unseen until
/// it pauses, which can take hours.
///
/// Of cores with two threads, one is not known yet when the other is visited: they are visited twice.
pub(super) fn switch_every_cpu(nr_cpus: usize, siblings: bool) {
    // On a thread of its own, whose affinity ends with it.
    let visit = move || {
        // Without the permission, a busy CPU is visited a few milliseconds later.
        let _undisturbed = Undisturbed::begin();
        // Not `cpu_set_t`, which ends at 1,024.
        let bits = std::ffi::c_ulong::BITS as usize;
        let mut only: Vec<std::ffi::c_ulong> = vec![0; nr_cpus.div_ceil(bits)];
        let round = 0..nr_cpus;
        for cpu in round.clone().chain(round.filter(|_| siblings)) {
            only.fill(0);
            only[cpu / bits] = 1 << (cpu % bits);
            // A CPU that is offline or outside our cpuset cannot be visited: it is seen at its next
            // switch.
            // SAFETY: reads that many bytes of the mask.
            unsafe { libc::sched_setaffinity(0, size_of_val(&only[..]), only.as_ptr().cast()) };
        }
    };
    if let Ok(thread) = std::thread::Builder::new().stack_size(64 * 1024).spawn(visit) {
        let _ = thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_opens_no_files_and_the_others_do() {
        let refused = std::thread::spawn(|| {
            open_no_files().unwrap();
            std::fs::read("/proc/self/stat").map(drop).map_err(|error| error.kind())
        });
        assert_eq!(refused.join().unwrap(), Err(io::ErrorKind::PermissionDenied));
        std::fs::read("/proc/self/stat").unwrap();
    }

    #[test]
    fn loading_leaves_the_limits_of_the_process_alone() {
        let limits = || std::fs::read_to_string("/proc/self/limits").unwrap();
        let before = limits();
        let opening = std::thread::spawn(|| {
            (0..2_000).filter(|_| std::fs::File::open("/proc/self/stat").is_err()).count()
        });
        for _ in 0..50 {
            drop(loader_without_kernel_btf());
        }
        assert_eq!(opening.join().unwrap(), 0, "another thread could not open a file meanwhile");
        assert_eq!(limits(), before);
    }
}
