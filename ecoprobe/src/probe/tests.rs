//! What the kernel makes of the objects.

use std::path::Path;

use super::load::load_object;
use super::*;
use crate::host::btf::KernelLayout;

const BTF: &str = "/sys/kernel/btf/vmlinux";

fn options(cpus: usize) -> LoadOptions<'static> {
    LoadOptions {
        btf: Path::new(BTF),
        package_of_cpu: vec![None; cpus],
        packages: 1,
        sibling_of_cpu: Vec::new(),
        v1_controller: None,
        hierarchy_id: 0,
        max_workloads: 8,
        newcomers: true,
        exits: true,
        hook: None,
    }
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn machines_of_any_size_load() {
    for cpus in [1, 63, 64, 65, 2_048, 8_192] {
        for hook in [Hook::TpBtf, Hook::RawTp] {
            let options = LoadOptions { hook: Some(hook), ..options(cpus) };
            if let Err(error) = Probe::load(options) {
                panic!("{cpus} CPUs, {hook:?}: {error}");
            }
        }
    }
}

/// What other machines run.
#[test]
#[ignore = "needs root: it loads the probe"]
fn the_object_with_barriers_counts_as_well() {
    let layout = KernelLayout::read(Path::new(BTF)).unwrap();
    let cpus = aya::util::nr_cpus().unwrap();
    for object in [object::PLAIN, object::WITH_BARRIERS] {
        for hook in [Hook::TpBtf, Hook::RawTp] {
            let loaded = load_object(&layout, &options(cpus), hook, object);
            let mut probe = loaded.unwrap_or_else(|failure| panic!("{}", failure.into_error()));
            probe.attach().unwrap();
            let (mut times, mut ended) = (CpuTimes::default(), Vec::new());
            let busy = |times: &CpuTimes| times.unplaced.other + times.unplaced.idle;
            let start = probe.read(&mut times, &mut ended);
            let before = busy(&times);
            std::thread::sleep(Duration::from_millis(200));
            let wall = (probe.read(&mut times, &mut ended) - start) as f64 * cpus as f64;
            let counted = (busy(&times) - before) as f64;
            assert!((0.8..1.05).contains(&(counted / wall)), "{hook:?}: {counted} of {wall}");
            assert!(times.packages[0].idle == 0 && times.packages[0].other == 0);
            assert!(probe.stats().events > Some(10));

            // A CPU that came online late, say: from here on its time is the package's.
            let unplaced = probe.unplaced_cpus().to_vec();
            assert_eq!(unplaced.len(), cpus, "all CPUs of this machine run something");
            unplaced.iter().for_each(|cpu| probe.place(*cpu, 0));
            assert!(probe.unplaced_cpus().is_empty());
            let so_far = busy(&times);
            std::thread::sleep(Duration::from_millis(50));
            probe.read(&mut times, &mut ended);
            assert_eq!(busy(&times), so_far);
            assert!(times.packages[0].idle + times.packages[0].other > 0);
        }
    }
}

#[test]
fn too_many_counters_are_an_error() {
    let options = LoadOptions { max_workloads: u32::MAX / 4, ..options(64) };
    let error = Probe::load(options).unwrap_err();
    assert!(error.to_string().contains("--max-workloads"), "{error}");
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn what_the_verifier_refuses_is_said_shortly() {
    let mut layout = KernelLayout::read(Path::new(BTF)).unwrap();
    // A pointer taken for a number, and the other way round.
    layout.set_offset("task_struct", "cgroups", 1);
    let failure = load_object(&layout, &options(2), Hook::TpBtf, object::PLAIN).unwrap_err();
    let text = failure.into_error().to_string();
    assert!(text.lines().count() <= 41 && text.lines().count() > 5, "{text}");
    let path = text.split(' ').find(|word| word.contains("ecoprobe-verifier-")).unwrap();
    let path = path.trim_end_matches(';');
    let log = std::fs::read_to_string(path).unwrap();
    std::fs::remove_file(path).unwrap();
    assert!(log.lines().count() > 40, "{log}");
}
