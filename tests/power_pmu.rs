//! The perf meter on real kernel counters: the `software` PMU described as if it were `power`.

#![allow(clippy::unwrap_used)]

mod sim;

use std::time::Duration;

use ecoprobe::base::error::Error;
use ecoprobe::base::monotonic_ns;
use ecoprobe::door::{
    CpuEnergy, CpuEnergyChoice, EnergyMeter, Opened, PerfMeter, Roots, Unavailable,
};
use ecoprobe::event::Reading;
use ecoprobe::event::sources::CpuEnergyKind;
use sim::Sysfs;

fn names(meter: &(impl EnergyMeter + ?Sized)) -> Vec<&str> {
    meter.domains().iter().map(|domain| domain.name.as_str()).collect()
}

const CPU_CLOCK: &str = "event=0x00";
const NEVER: &str = "event=0x08";

/// The kernel's cpu-clock, described as energy: exactly a watt.
fn perf_machine(cpumask: &str, events: &[(&str, &str, &str)]) -> Sysfs {
    let sysfs = Sysfs::new();
    sysfs.add_cpu(0, 0, 0);
    sysfs.add_cpu(1, 1, 0);
    sysfs.add_power_pmu(1, cpumask, events);
    sysfs
}

fn open_perf(sysfs: &Sysfs) -> Result<(PerfMeter, Vec<String>), Unavailable> {
    PerfMeter::open(sysfs.path(), 2, false).map(|(meter, _, notes)| (meter, notes))
}

/// As a run does, on a machine whose cpuinfo is this.
fn choose(sysfs: &Sysfs, choice: CpuEnergyChoice, cpuinfo: &str) -> Result<CpuEnergy, Error> {
    let procfs = Sysfs::new();
    procfs.write("cpuinfo", cpuinfo);
    let roots = Roots {
        sysfs: sysfs.path().into(),
        procfs: procfs.path().into(),
        cgroupfs: None,
        hostfs: None,
    };
    Opened::open(choice, &roots, 4)?.confirm()
}

#[test]
fn perf_reads_a_group_for_each_package() {
    let sysfs = perf_machine(
        "0-1",
        &[
            ("energy-pkg", CPU_CLOCK, "1e-9"),
            ("energy-ram", CPU_CLOCK, "0.5e-9"),
            ("energy-cores", CPU_CLOCK, "1e-9"),
        ],
    );
    let (mut meter, notes) = open_perf(&sysfs).unwrap();
    assert_eq!(notes, [""; 0]);
    assert_eq!(names(&meter), ["package-0", "dram-0", "package-1", "dram-1"]);
    let shape: Vec<_> = meter.domains().iter().map(|d| (d.range, d.joules_per_count)).collect();
    assert_eq!(shape[..2], [(None, 1e-9), (None, 0.5e-9)]);
    assert_eq!(meter.domains()[3].package, 1);

    let mut sample = || {
        let mut readings: Vec<Result<Reading, String>> = Vec::new();
        let before = monotonic_ns();
        meter.read(&mut readings);
        let after = monotonic_ns();
        (before, readings.into_iter().map(Result::unwrap).collect::<Vec<_>>(), after)
    };
    let first = sample();
    std::thread::sleep(Duration::from_millis(100));
    let second = sample();
    // The counter is a clock: what it advanced lies between the shortest and the longest time that
    // can have passed between the two reads. The kernel's cpu-clock is not disciplined by NTP
    // (500 ppm at most).
    let (shortest, longest) = (second.0 - first.2, second.2 - first.0);
    let slack = longest / 2_000;
    for (from, to) in first.1.iter().zip(&second.1) {
        let advanced = to.count - from.count;
        assert!(
            (shortest - slack..=longest + slack).contains(&advanced),
            "{advanced} not in {shortest}..={longest}"
        );
        assert!((second.0..=second.2).contains(&to.mono_ns));
    }
}

#[test]
fn a_pmu_that_stays_at_zero_is_not_used() {
    let by_name = |sysfs: &Sysfs| choose(sysfs, CpuEnergyChoice::Perf, "");
    let sysfs = perf_machine("0", &[("energy-pkg", NEVER, "1e-9")]);
    let Err(Error::Cannot(why)) = by_name(&sysfs) else { panic!() };
    assert!(why.contains("stay at zero"), "{why}");
    assert_eq!(
        choose(&sysfs, CpuEnergyChoice::Auto, "").unwrap().source.kind,
        CpuEnergyKind::Estimate
    );

    let events = [("energy-pkg", CPU_CLOCK, "1e-9"), ("energy-ram", NEVER, "1e-9")];
    let energy = by_name(&perf_machine("0-1", &events)).unwrap();
    let (mut meter, notes) = (energy.meter.unwrap(), energy.notes);
    assert_eq!(names(meter.as_ref()), ["package-0", "package-1"]);
    assert!(notes[0].contains("dram-0 is left out"), "{notes:?}");
    let mut readings = Vec::new();
    meter.read(&mut readings);
    assert_eq!(readings.len(), 2);
    assert!(readings.iter().all(|r| r.as_ref().is_ok_and(|r| r.count > 0)), "{readings:?}");
}

#[test]
fn one_event_that_cannot_be_opened_does_not_take_the_others_along() {
    // A code that the kernel's software PMU does not have.
    const REFUSED: &str = "event=0xee";
    let cpus = |events: &[(&str, &str, &str)]| open_perf(&perf_machine("0-1", events));
    let events = [("energy-pkg", CPU_CLOCK, "1e-9"), ("energy-ram", REFUSED, "1e-9")];
    let (mut meter, notes) = cpus(&events).unwrap();
    assert_eq!(names(&meter), ["package-0", "package-1"]);
    assert_eq!(notes.len(), 2, "{notes:?}");
    for (note, name) in notes.iter().zip(["dram-0", "dram-1"]) {
        let begins = format!("{name} is left out: perf_event_open on CPU ");
        assert!(note.starts_with(&begins), "{note}");
    }
    let mut readings = Vec::new();
    meter.read(&mut readings);
    assert!(readings.iter().all(Result::is_ok) && readings.len() == 2, "{readings:?}");

    // DRAM alone is no measurement of the CPU's energy; the reason is the package's.
    let events = [("energy-pkg", REFUSED, "1e-9"), ("energy-ram", CPU_CLOCK, "1e-9")];
    let Err(Unavailable::Broken(why)) = cpus(&events) else { panic!() };
    assert!(why.starts_with("perf_event_open on it: "), "{why}");

    // Described, but not how to count it.
    let sysfs = perf_machine("0", &[("energy-pkg", CPU_CLOCK, "1e-9")]);
    std::fs::remove_file(
        sysfs.path().join("bus/event_source/devices/power/events/energy-pkg.unit"),
    )
    .unwrap();
    let Err(Unavailable::Broken(why)) = open_perf(&sysfs) else { panic!() };
    assert!(why.contains("energy-pkg.unit") && why.contains("No such file"), "{why}");
    let sysfs = perf_machine("0", &[("energy-ram", CPU_CLOCK, "1e-9")]);
    let Err(Unavailable::Broken(why)) = open_perf(&sysfs) else { panic!() };
    assert_eq!(why, "it describes no energy-pkg event");
}

#[test]
fn events_of_one_socket_are_one_where_the_maker_counts_by_socket() {
    let events = [("energy-pkg", CPU_CLOCK, "1e-9")];
    let dies = |cpumask| {
        let sysfs = Sysfs::new();
        for cpu in 0..4 {
            sysfs.add_cpu(cpu, cpu as u32 / 2, cpu as u32 % 2);
        }
        sysfs.add_power_pmu(1, cpumask, &events);
        sysfs
    };
    let open = |cpumask, vendor: &str| {
        let cpuinfo = format!("processor\t: 0\nvendor_id\t: {vendor}\n");
        choose(&dies(cpumask), CpuEnergyChoice::Auto, &cpuinfo).unwrap()
    };
    for vendor in ["AuthenticAMD", "HygonGenuine"] {
        let energy = open("0-1", vendor);
        assert_eq!(energy.source.domains, ["package-0"], "{vendor}");
        // Both CPUs of the socket are counted with it.
        assert_eq!(energy.topology.package_of_cpu, [0, 0, 1, 1].map(Some));
        assert_eq!(energy.notes, [""; 0]);
    }
    // A CPU that is not there is no loss where another one counts for its socket.
    let sysfs = dies("0-1");
    sysfs.add_cpu(4_000, 0, 0);
    sysfs.write("bus/event_source/devices/power/cpumask", "1,4000\n");
    let (meter, _, notes) = PerfMeter::open(sysfs.path(), 4_001, true).unwrap();
    assert_eq!((names(&meter), notes.len()), (vec!["package-0"], 0), "{notes:?}");
    sysfs.add_cpu(1, 1, 0);
    sysfs.add_cpu(0, 1, 0);
    sysfs.write("bus/event_source/devices/power/cpumask", "0,4000\n");
    let (meter, _, notes) = PerfMeter::open(sysfs.path(), 4_001, true).unwrap();
    assert_eq!(names(&meter), ["package-1"]);
    assert!(notes[0].starts_with("package-0 is left out"), "{notes:?}");

    // DRAM that is refused on one CPU does not have the package counted on the next one as well.
    let sysfs = dies("0-1");
    let events = [("energy-pkg", CPU_CLOCK, "1e-9"), ("energy-ram", "event=0xee", "1e-9")];
    sysfs.add_power_pmu(1, "0-1", &events);
    let (meter, _, notes) = PerfMeter::open(sysfs.path(), 4, true).unwrap();
    assert_eq!((names(&meter), notes.len()), (vec!["package-0"], 1), "{notes:?}");

    let energy = open("0-1", "GenuineIntel");
    assert_eq!(energy.source.domains, ["package-0-die-0", "package-0-die-1"]);
    assert_eq!(energy.topology.package_of_cpu, [0, 1, 2, 2].map(Some));
}

#[test]
fn perf_goes_on_with_the_packages_that_open() {
    // CPU 4000 does not exist.
    let sysfs = perf_machine("0,4000", &[("energy-pkg", CPU_CLOCK, "1e-9")]);
    let (meter, notes) = open_perf(&sysfs).unwrap();
    assert_eq!(names(&meter), ["package-0"]);
    assert!(notes[0].contains("CPU 4000"), "{notes:?}");
    let sysfs = perf_machine("4000", &[("energy-pkg", CPU_CLOCK, "1e-9")]);
    assert!(matches!(open_perf(&sysfs), Err(Unavailable::Broken(_))));
}

#[test]
fn a_pmu_that_makes_no_sense_is_refused_with_the_file() {
    let broken = |sysfs: &Sysfs| match open_perf(sysfs) {
        Err(Unavailable::Broken(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(open_perf(&Sysfs::new()).unwrap_err(), Unavailable::Absent);
    for (cpumask, event, scale, named) in [
        ("", CPU_CLOCK, "1e-9", "cpumask"),
        ("all", CPU_CLOCK, "1e-9", "cpumask"),
        ("0", "event=", "1e-9", "energy-pkg"),
        ("0", "mask=1", "1e-9", "energy-pkg"),
        ("0", CPU_CLOCK, "-1", "energy-pkg"),
        ("0", CPU_CLOCK, "nan", "energy-pkg"),
    ] {
        let why = broken(&perf_machine(cpumask, &[("energy-pkg", event, scale)]));
        assert!(why.contains(named), "{why}");
    }
    let sysfs = perf_machine("0", &[("energy-pkg", CPU_CLOCK, "1e-9")]);
    sysfs.write("bus/event_source/devices/power/type", "power\n");
    assert!(broken(&sysfs).contains("type"));
    sysfs.write("bus/event_source/devices/power/type", "123456\n");
    assert!(broken(&sysfs).contains("perf_event_open"));
}
