//! The perf meter on real kernel counters: the `software` PMU described as if it were `power`.

#![allow(clippy::unwrap_used)]

mod sim;

use std::time::Duration;

use ecoprobe::base::monotonic_ns;
use ecoprobe::event::Reading;
use ecoprobe::host::topology::Topology;
use ecoprobe::meter::EnergyMeter;
use ecoprobe::meter::rapl::Unavailable;
use ecoprobe::meter::rapl::perf::PerfMeter;
use sim::Sysfs;

fn names(meter: &PerfMeter) -> Vec<&str> {
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
    PerfMeter::open(sysfs.path(), &Topology::read(sysfs.path(), 2))
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
        let mut readings: Vec<Option<Reading>> = Vec::new();
        let mut problems = Vec::new();
        let before = monotonic_ns();
        meter.read(0, &[], &mut readings, &mut problems);
        let after = monotonic_ns();
        assert_eq!(problems, [""; 0]);
        (before, readings.into_iter().map(Option::unwrap).collect::<Vec<_>>(), after)
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
    let sysfs = perf_machine("0", &[("energy-pkg", NEVER, "1e-9")]);
    assert_eq!(open_perf(&sysfs).unwrap_err(), Unavailable::Empty);

    let events = [("energy-pkg", CPU_CLOCK, "1e-9"), ("energy-ram", NEVER, "1e-9")];
    let (mut meter, notes) = open_perf(&perf_machine("0-1", &events)).unwrap();
    assert_eq!(names(&meter), ["package-0", "package-1"]);
    assert!(notes[0].contains("dram-0 is left out"), "{notes:?}");
    let (mut readings, mut problems) = (Vec::new(), Vec::new());
    meter.read(0, &[], &mut readings, &mut problems);
    assert_eq!(readings.len(), 2);
    assert!(readings.iter().all(|r| r.is_some_and(|r| r.count > 0)), "{readings:?}");
    assert_eq!(problems, [""; 0]);
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
