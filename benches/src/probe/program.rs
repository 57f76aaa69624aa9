//! Programs at `sched_switch`, loaded and attached for one turn.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{BtfTracePoint, loaded_programs};
use aya::{Btf, EbpfLoader};
use ecoprobe::base::WorkloadId;
use ecoprobe::door::{Hook, LoadOptions, Probe, RunTime};
use serde::Serialize;

const REFERENCE: &[u8] = aya::include_bytes_aligned!("../../bpf/reference.o");
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// What the kernel says of a program that it has loaded. It does not say all to everybody.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Size {
    /// The kernel keeps 15 characters.
    pub program: String,
    /// After the verifier has rewritten it.
    pub instructions: Option<u32>,
    pub jited_bytes: u32,
    /// How many the verifier looked at, on every path.
    pub verified: Option<u32>,
}

/// Runs at every switch until it is dropped.
pub(super) struct Attached {
    run_time: Box<dyn Fn() -> Option<RunTime>>,
    /// Of all programs that were loaded with it.
    pub sizes: Vec<Size>,
}

impl Attached {
    pub(super) fn reference(name: &'static str, btf: &Btf) -> Result<Self> {
        let mut object =
            EbpfLoader::new().btf(None).load(REFERENCE).context("cannot load programs")?;
        let program = object.program_mut(name).context("the reference object lacks a program")?;
        let program: &mut BtfTracePoint = program.try_into()?;
        program.load("sched_switch", btf)?;
        program.attach()?;
        let run_time = move || {
            let info = object.program(name)?.info().ok()?;
            Some(RunTime { runs: info.run_count(), time: info.run_time() })
        };
        Ok(Self { run_time: Box::new(run_time), sizes: sizes()? })
    }

    /// The probe, with these cgroups selected; as if two neighbours were one core, if `paired`.
    pub(super) fn ours(hook: Hook, selected: &[u64], paired: bool) -> Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let sibling = |cpu: usize| Some(cpu ^ 1).filter(|sibling| paired && *sibling < cpus);
        let mut probe = Probe::load(LoadOptions {
            btf: Path::new(BTF),
            package_of_cpu: vec![Some(0); cpus],
            packages: 1,
            sibling_of_cpu: (0..cpus).map(sibling).collect(),
            v1_controller: None,
            hierarchy_id: 0,
            max_workloads: selected.len() as u32,
            newcomers: false,
            exits: false,
            hook: Some(hook),
        })?;
        for (number, cgroup_id) in (0..).zip(selected) {
            ensure!(probe.begin(WorkloadId(number), *cgroup_id)?, "no room for a workload");
        }
        probe.attach()?;
        Ok(Self { run_time: Box::new(move || probe.run_time()), sizes: sizes()? })
    }

    /// Since it was attached, by the kernel's account.
    pub(super) fn run_time(&self) -> Result<RunTime> {
        (self.run_time)().context("the kernel keeps no statistics of the program")
    }
}

/// Of the programs that this process has loaded.
fn sizes() -> Result<Vec<Size>> {
    let mut ids = BTreeSet::new();
    for entry in std::fs::read_dir("/proc/self/fdinfo")? {
        // The directory's own is gone by now.
        let info = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        let id = info.lines().find_map(|line| line.strip_prefix("prog_id:"));
        ids.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
    }
    // Those of others come and go meanwhile.
    let own = loaded_programs().flatten().filter(|program| ids.contains(&program.id()));
    let sizes = own.map(|program| Size {
        program: program.name_as_str().unwrap_or_default().to_owned(),
        instructions: program.size_translated().map(|bytes| bytes / 8),
        jited_bytes: program.size_jitted(),
        verified: program.verified_instruction_count(),
    });
    Ok(sizes.collect())
}
