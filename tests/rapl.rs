//! The RAPL meters on simulated machines, through the library. Counts are compared exactly.

#![allow(clippy::unwrap_used)]

mod sim;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ecoprobe::base::error::Error;
use ecoprobe::base::{Component, monotonic_ns};
use ecoprobe::door::{
    CpuEnergy, CpuEnergyChoice, EnergyMeter, Grain, Opened, PowercapMeter, Roots, Topology,
    Unavailable,
};
use ecoprobe::event::Domain;
use ecoprobe::event::sources::CpuEnergyKind;
use sim::cgroup::TestCgroup;
use sim::{Feed, Feeder, Layout, Machine, Power, Sysfs};

fn open(sysfs: &Sysfs) -> (PowercapMeter, Vec<String>) {
    let (meter, _, notes) = PowercapMeter::open(sysfs.path(), 2).unwrap();
    (meter, notes)
}

fn names(meter: &impl EnergyMeter) -> Vec<&str> {
    meter.domains().iter().map(|domain| domain.name.as_str()).collect()
}

/// Reads once: counts and problems.
fn read(meter: &mut impl EnergyMeter) -> (Vec<Option<u64>>, Vec<String>) {
    let mut readings = vec![Err("of the read before".to_owned()); 99];
    let before = monotonic_ns();
    meter.read(&mut readings);
    let after = monotonic_ns();
    assert_eq!(readings.len(), meter.domains().len());
    for reading in readings.iter().flatten() {
        assert!((before..=after).contains(&reading.mono_ns), "a reading carries its own time");
    }
    let problems = readings.iter().filter_map(|reading| reading.clone().err()).collect();
    (
        readings.into_iter().map(|reading| reading.ok().map(|reading| reading.count)).collect(),
        problems,
    )
}

#[test]
fn only_packages_and_dram_are_read_in_every_layout() {
    for layout in [Layout::Kernel, Layout::Flat, Layout::Nested] {
        let machine = Machine::new(2).with("core").with("uncore").with("dram").with_psys();
        let sysfs = machine.layout(layout).build();
        for (key, count) in [("package-0", 11), ("dram-0", 12), ("package-1", 21), ("dram-1", 22)] {
            sysfs.zone(key).set(count);
        }
        for key in ["core-0", "uncore-1", "psys"] {
            sysfs.zone(key).set(1_000_000);
        }
        let (mut meter, notes) = open(&sysfs);
        assert_eq!(names(&meter), ["package-0", "dram-0", "package-1", "dram-1"], "{layout:?}");
        assert_eq!(notes, [""; 0]);
        assert_eq!(read(&mut meter), (vec![Some(11), Some(12), Some(21), Some(22)], vec![]));
        let place = |domain: &Domain| (domain.component, domain.package);
        assert_eq!(
            meter.domains().iter().map(place).collect::<Vec<_>>(),
            [(Component::Cpu, 0), (Component::Dram, 0), (Component::Cpu, 1), (Component::Dram, 1)]
        );
    }
}

#[test]
fn mmio_zones_count_only_where_they_are_alone() {
    let sysfs = Machine::new(1).with_mmio().build();
    sysfs.zone("package-0").set(5);
    sysfs.zone("mmio-package-0").set(7);
    let (mut meter, _) = open(&sysfs);
    assert_eq!(read(&mut meter).0, [Some(5)]);

    let sysfs = Machine::new(1).with_mmio().layout(Layout::Flat).build();
    sysfs.zone("mmio-package-0").set(7);
    fs::remove_dir_all(sysfs.zone("package-0").directory).unwrap();
    let (mut meter, _) = open(&sysfs);
    assert_eq!((names(&meter), read(&mut open(&sysfs).0).0), (vec!["package-0"], vec![Some(7)]));
    assert_eq!(read(&mut meter).0, [Some(7)]);
}

#[test]
fn eight_packages_on_a_small_machine() {
    let sysfs = Machine::new(8).build();
    sysfs.add_cpu(0, 0, 0);
    sysfs.add_cpu(1, 3, 0);
    let topology = Topology::read(sysfs.path(), 2, Grain::default());
    assert_eq!((topology.packages.len(), topology.package_of_cpu), (8, vec![Some(0), Some(3)]));
    let (mut meter, _) = open(&sysfs);
    for package in 0..8 {
        sysfs.zone(&format!("package-{package}")).set(package);
    }
    assert_eq!(read(&mut meter).0, (0..8).map(Some).collect::<Vec<_>>());
    assert_eq!(meter.domains()[5].package, 5);
}

#[test]
fn dies_are_packages_where_the_zones_say_so() {
    let sysfs = Machine::new(2).dies(2).with("dram").build();
    for cpu in 0..4 {
        sysfs.add_cpu(cpu, cpu as u32 / 2, cpu as u32 % 2);
    }
    let (meter, topology, _) = PowercapMeter::open(sysfs.path(), 4).unwrap();
    assert_eq!(topology.package_of_cpu, [0, 1, 2, 3].map(Some));
    assert_eq!(
        names(&meter)[..4],
        ["package-0-die-0", "dram-0-die-0", "package-0-die-1", "dram-0-die-1"]
    );
    assert_eq!(meter.domains()[7].package, 3);
}

#[test]
fn every_domain_wraps_by_its_own_range() {
    let sysfs = Machine::new(1).with("dram").range(999).build();
    let (package, dram) = (sysfs.zone("package-0"), sysfs.zone("dram-0"));
    fs::write(dram.directory.join("max_energy_range_uj"), "65535\n").unwrap();
    let (mut meter, _) = open(&sysfs);
    let ranges: Vec<_> = meter.domains().iter().map(|domain| domain.range).collect();
    assert_eq!(ranges, [Some(1_000), Some(65_536)]);
    package.set(999);
    assert_eq!(read(&mut meter).0[0], Some(999));
    package.set(1_000);
    assert_eq!(read(&mut meter).0[0], Some(0));
    // Beyond its range: not a count, whatever it is.
    package.set_text("1000\n");
    let (counts, problems) = read(&mut meter);
    assert_eq!(counts, [None, Some(0)]);
    assert!(problems[0].contains("beyond its max_energy_range_uj of 999"), "{problems:?}");
}

#[test]
fn a_range_that_makes_no_sense_is_unknown_and_said() {
    for nonsense in ["", "0\n", "-5\n", "many\n", "99999999999999999999999\n"] {
        let sysfs = Machine::new(1).build();
        let zone = sysfs.zone("package-0");
        fs::write(zone.directory.join("max_energy_range_uj"), nonsense).unwrap();
        let (meter, notes) = open(&sysfs);
        assert_eq!(meter.domains()[0].range, None, "{nonsense:?}");
        assert!(notes[0].contains("where the counter wraps"), "{notes:?}");
    }
    let sysfs = Machine::new(1).range(u64::MAX).build();
    assert_eq!(open(&sysfs).0.domains()[0].range, None);
}

#[test]
fn nonsense_is_a_problem_never_a_zero() {
    let sysfs = Machine::new(1).with("dram").build();
    let (package, dram) = (sysfs.zone("package-0"), sysfs.zone("dram-0"));
    let (mut meter, _) = open(&sysfs);
    for nonsense in [
        "",
        "\n",
        "abc\n",
        "-1\n",
        "+1\n",
        "1.5\n",
        "1e9\n",
        "1 2\n",
        "0x10\n",
        "\0\0\0\0",
        "99999999999999999999\n",
        "00000000000000000000000000000000000000000000001\n",
        "\u{fffd}1",
    ] {
        dram.set(42);
        package.set_text(nonsense);
        let (counts, problems) = read(&mut meter);
        assert_eq!(counts, [None, Some(42)], "{nonsense:?}");
        assert_eq!(problems.len(), 1, "{nonsense:?}: {problems:?}");
        // Which domain it is about, its place says.
        assert!(problems[0].contains("/energy_uj "), "{problems:?}");
        package.set(7);
        assert_eq!(read(&mut meter), (vec![Some(7), Some(42)], vec![]), "after {nonsense:?}");
    }
}

#[test]
fn files_vanish_and_return() {
    let sysfs = Machine::new(2).build();
    let zone = sysfs.zone("package-1");
    let (mut meter, _) = open(&sysfs);
    zone.set(10);
    assert_eq!(read(&mut meter).0, [Some(0), Some(10)]);

    // The kept-open file would go on saying 10 for ever.
    zone.remove();
    let (counts, problems) = read(&mut meter);
    assert_eq!(counts, [Some(0), None]);
    assert!(problems[0].contains("No such file"), "{problems:?}");
    zone.set(20);
    assert_eq!(read(&mut meter), (vec![Some(0), Some(20)], vec![]));

    // Replaced by rename, as careful writers do.
    let other = zone.directory.join("new");
    fs::write(&other, "30\n").unwrap();
    fs::rename(&other, zone.energy()).unwrap();
    assert_eq!(read(&mut meter).0[1], Some(30));

    // Unreadable, for root too: a directory, a link to nowhere.
    zone.remove();
    fs::create_dir(zone.energy()).unwrap();
    assert_eq!(read(&mut meter).0, [Some(0), None]);
    fs::remove_dir(zone.energy()).unwrap();
    symlink("/nowhere", zone.energy()).unwrap();
    assert_eq!(read(&mut meter).0, [Some(0), None]);
    zone.remove();

    fs::remove_dir_all(&zone.directory).unwrap();
    assert_eq!(read(&mut meter).0, [Some(0), None]);
    fs::create_dir_all(&zone.directory).unwrap();
    zone.set(40);
    assert_eq!(read(&mut meter).0[1], Some(40));
}

#[test]
fn what_cannot_be_read_at_the_start_is_left_out_and_said() {
    let sysfs = Machine::new(2).with("dram").build();
    let zone = sysfs.zone("package-1");
    zone.remove();
    symlink("/nowhere", zone.energy()).unwrap();
    let (meter, notes) = open(&sysfs);
    assert_eq!(names(&meter), ["package-0", "dram-0", "dram-1"]);
    assert!(notes[0].starts_with("package-1 is left out: "), "{notes:?}");

    sysfs.zone("package-0").set_text("no\n");
    let error = PowercapMeter::open(sysfs.path(), 2).unwrap_err();
    assert!(matches!(&error, Unavailable::Broken(why) if why.contains("holds `no`")), "{error}");
}

#[test]
fn what_is_for_root_only_is_not_called_missing() {
    let sysfs = Machine::new(1).build();
    let energy = sysfs.zone("package-0").energy();
    fs::set_permissions(sysfs.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&energy, fs::Permissions::from_mode(0o400)).unwrap();
    let path = sysfs.path().to_owned();
    // Of one thread only: somebody who is not root, as far as files go.
    let nobody = std::thread::spawn(move || {
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
        let by_name = choose(&path, CpuEnergyChoice::Powercap);
        (PowercapMeter::open(&path, 2).map(|_| ()), by_name.map(|_| ()))
    });
    let (opened, by_name) = nobody.join().unwrap();
    let known_as = sysfs.path().join("class/powercap/intel-rapl:0/energy_uj");
    assert_eq!(opened, Err(Unavailable::Denied(known_as)));
    let Err(Error::Cannot(message)) = by_name else { panic!("{by_name:?}") };
    assert!(message.contains("permission denied; run as root"), "{message}");
}

#[test]
fn a_writer_that_truncates_first_never_makes_a_zero() {
    let sysfs = Machine::new(1).build();
    let zone = sysfs.zone("package-0");
    zone.set(1_000_000);
    let (mut meter, _) = open(&sysfs);
    let writer = std::thread::spawn(move || (0..3_000).for_each(|n| zone.set(1_000_000 + n)));
    let mut last = 1_000_000;
    while !writer.is_finished() {
        match read(&mut meter) {
            (counts, problems) if problems.is_empty() => {
                assert!(counts[0] >= Some(last), "{counts:?} after {last}");
                last = counts[0].unwrap();
            }
            (counts, problems) => {
                assert_eq!(counts, [None]);
                assert!(problems[0].ends_with("is empty"), "{problems:?}");
            }
        }
    }
    writer.join().unwrap();
    assert_eq!(read(&mut meter), (vec![Some(1_002_999)], vec![]));
}

#[test]
fn no_zones_are_absent_whatever_else_is_there() {
    let sysfs = Sysfs::new();
    let absent = |sysfs: &Sysfs| PowercapMeter::open(sysfs.path(), 2).unwrap_err();
    assert_eq!(absent(&sysfs), Unavailable::Absent);
    // powercap present without zones, and things that only look like zones.
    for odd in ["intel-rapl", "intel-rapl:x", "dtpm:0", "intel-rapl:0:0:0"] {
        sysfs.write(&format!("class/powercap/{odd}/name"), "package-0\n");
        sysfs.write(&format!("class/powercap/{odd}/energy_uj"), "1\n");
    }
    sysfs.write("class/powercap/intel-rapl:5", "a file");
    sysfs.write("class/powercap/intel-rapl:6/energy_uj", "1\n");
    sysfs.write("class/powercap/intel-rapl:6:0/name", "dram\n");
    assert_eq!(absent(&sysfs), Unavailable::Absent);
}

#[test]
fn two_zones_of_one_name_are_one_counter() {
    let sysfs = Machine::new(1).layout(Layout::Flat).build();
    sysfs.write("class/powercap/intel-rapl:7/name", "package-0\n");
    sysfs.write("class/powercap/intel-rapl:7/energy_uj", "9\n");
    let (meter, notes) = open(&sysfs);
    assert_eq!(names(&meter), ["package-0"]);
    assert!(notes[0].contains("intel-rapl:7 shows intel-rapl:0 again"), "{notes:?}");
}

#[test]
fn power_bounds_follow_the_limits_that_make_sense() {
    let sysfs = Machine::new(1).with("dram").build();
    let limit = sysfs.zone("package-0").directory.join("constraint_0_max_power_uw");
    let bounds = || {
        let (meter, _) = open(&sysfs);
        meter.domains().iter().map(|domain| domain.max_watts).collect::<Vec<_>>()
    };
    assert_eq!(bounds(), [2_000.0, 1_000.0]);
    fs::write(&limit, "1500000000\n").unwrap();
    assert_eq!(bounds(), [3_000.0, 1_000.0]);
    fs::write(&limit, "18446744073709551615\n").unwrap();
    assert_eq!(bounds(), [2_000.0, 1_000.0]);
}

#[test]
fn a_fed_counter_is_its_truth_through_wraps() {
    let sysfs = Machine::new(1).with("dram").range(999_999).build();
    let feed = |key, watts, start_uj| Feed {
        zone: sysfs.zone(key),
        start_uj,
        power: Power::constant(watts),
    };
    let period = Duration::from_millis(1);
    let feeder =
        Feeder::start(period, vec![feed("package-0", 40.0, 990_000), feed("dram-0", 5.0, 0)]);
    let (mut meter, _) = open(&sysfs);
    let mut readings = Vec::new();
    let mut last = [990_000_u64, 0];
    let mut total = [0_u64; 2];
    let mut wraps = 0;
    for _ in 0..25 {
        std::thread::sleep(Duration::from_millis(8));
        let before = feeder.truth();
        meter.read(&mut readings);
        let after = feeder.truth();
        for domain in 0..2 {
            let count = readings[domain].as_ref().unwrap().count;
            wraps += usize::from(count < last[domain]);
            total[domain] += (count + 1_000_000 - last[domain]) % 1_000_000;
            last[domain] = count;
            let truth = |truth: &[sim::Truth]| (truth[domain].total_j() * 1e6) as u64;
            let bracket = truth(&before)..=truth(&after);
            assert!(bracket.contains(&total[domain]), "{} not in {bracket:?}", total[domain]);
        }
    }
    assert!(wraps >= 5, "{wraps} wraps");
    let now = monotonic_ns();
    let past = feeder.truth_at(now - 50_000_000);
    let exact = feeder.truth()[0].total_j() - 40.0 * (monotonic_ns() - now) as f64 * 1e-9 - 2.0;
    assert!((past[0].total_j() - exact).abs() < 0.1, "{past:?} {exact}");
}

/// Perf events that are there; see `Sysfs::add_power_pmu`.
const CPU_CLOCK: &str = "event=0x00";
const NEVER: &str = "event=0x08";

fn choose(sysfs: &Path, choice: CpuEnergyChoice) -> Result<CpuEnergy, Error> {
    let procfs = PathBuf::from("/proc");
    let roots = Roots { sysfs: sysfs.to_owned(), procfs, cgroupfs: None, hostfs: None };
    Opened::open(choice, &roots, 2)?.confirm()
}

#[test]
fn sources_are_chosen_by_what_the_machine_has() {
    let auto = |sysfs: &Sysfs| choose(sysfs.path(), CpuEnergyChoice::Auto).unwrap();

    let bare = Sysfs::new();
    let estimate = auto(&bare);
    assert_eq!(estimate.source.kind, CpuEnergyKind::Estimate);
    assert_eq!(estimate.source.domains, ["package-0"]);
    assert!(estimate.meter.is_none() && !estimate.notes.is_empty());
    assert_eq!(estimate.cpu.online_cpus.len(), 1);
    for choice in [CpuEnergyChoice::Perf, CpuEnergyChoice::Powercap] {
        assert!(matches!(choose(bare.path(), choice), Err(Error::Cannot(_))));
    }
    let none = choose(bare.path(), CpuEnergyChoice::None).unwrap();
    assert!(none.meter.is_none() && none.source.kind == CpuEnergyKind::None);

    let sysfs = Machine::new(2).with("dram").build();
    for key in ["package-0", "dram-0", "package-1", "dram-1"] {
        sysfs.zone(key).set(1_000_000);
    }
    let powercap = auto(&sysfs);
    assert_eq!(powercap.source.kind, CpuEnergyKind::Powercap);
    assert_eq!(powercap.source.domains.len(), 4);
    assert_eq!(powercap.notes, [""; 0]);

    sysfs.add_power_pmu(1, "0", &[("energy-pkg", NEVER, "1e-9")]);
    let empty = auto(&sysfs);
    assert_eq!(empty.source.kind, CpuEnergyKind::Powercap);
    assert!(empty.notes[0].contains("stay at zero"), "{:?}", empty.notes);
    assert!(matches!(choose(sysfs.path(), CpuEnergyChoice::Perf), Err(Error::Cannot(_))));

    sysfs.add_power_pmu(1, "0", &[("energy-pkg", CPU_CLOCK, "1e-9")]);
    assert_eq!(auto(&sysfs).source.kind, CpuEnergyKind::Perf);
    let by_name = choose(sysfs.path(), CpuEnergyChoice::Powercap).unwrap();
    assert_eq!(by_name.source.kind, CpuEnergyKind::Powercap);
    let estimate = choose(sysfs.path(), CpuEnergyChoice::Estimate).unwrap();
    assert_eq!(estimate.source.kind, CpuEnergyKind::Estimate);
}

#[test]
#[ignore = "needs root: it makes cgroups"]
fn a_load_draws_by_the_cpu_time_of_its_cgroup() {
    let (busy, idle) = (TestCgroup::v2("busy"), TestCgroup::v2("idle"));
    let sysfs = Machine::new(1).build();
    let jobs = vec![busy.path().to_owned(), idle.path().to_owned()];
    let power = Power::load(20.0, 15.0, None, jobs);
    let zone = sysfs.zone("package-0");
    let feeder = Feeder::start(Duration::from_millis(5), vec![Feed { zone, start_uj: 0, power }]);
    let enter =
        "echo $$ > \"$0/cgroup.procs\" && i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
    let status = Command::new("sh").args(["-c", enter]).arg(busy.path()).status().unwrap();
    assert!(status.success());
    let truth = &feeder.truth()[0];
    let (mut meter, _) = open(&sysfs);
    assert!(truth.jobs_j[0] > 0.1 && truth.jobs_j[1] == 0.0, "{truth:?}");
    assert_eq!(truth.dynamic_j, truth.jobs_j[0]);
    assert!(read(&mut meter).0[0] >= Some((truth.total_j() * 1e6) as u64));
}

/// Two dies with a zone each; the second one's counter is `second`'s business.
fn two_dies(second: impl FnOnce(&Sysfs)) -> Sysfs {
    let sysfs = Machine::new(1).dies(2).build();
    for cpu in 0..4 {
        sysfs.add_cpu(cpu, 0, cpu as u32 / 2);
    }
    second(&sysfs);
    sysfs
}

fn feed(sysfs: &Sysfs, die: u32, watts: f64) -> Feed {
    let zone = sysfs.zone(&format!("package-0-die-{die}"));
    Feed { zone, start_uj: 5_000_000, power: Power::constant(watts) }
}

#[test]
fn dies_that_show_one_counter_are_one_package() {
    let sysfs = two_dies(|sysfs| {
        let [first, second] = [0, 1].map(|die| sysfs.zone(&format!("package-0-die-{die}")));
        second.remove();
        fs::hard_link(first.energy(), second.energy()).unwrap();
    });
    let _feeder = Feeder::start(Duration::from_millis(3), vec![feed(&sysfs, 0, 40.0)]);
    let (meter, topology, notes) = PowercapMeter::open(sysfs.path(), 4).unwrap();
    assert_eq!(names(&meter), ["package-0"]);
    // The CPUs of both dies draw what it counts.
    assert_eq!(topology.packages.len(), 1);
    assert_eq!(topology.package_of_cpu, [Some(0); 4]);
    assert_eq!(notes, ["intel-rapl:1 shows intel-rapl:0 again: left out"]);
}

#[test]
fn dies_with_counters_of_their_own_stay_two_however_alike_they_are() {
    let both = ["package-0-die-0", "package-0-die-1"];
    let stay_two = |sysfs: &Sysfs| {
        let (meter, topology, notes) = PowercapMeter::open(sysfs.path(), 4).unwrap();
        assert_eq!((names(&meter), notes.len()), (both.to_vec(), 0), "{notes:?}");
        assert_eq!(topology.package_of_cpu, [0, 0, 1, 1].map(Some));
    };
    // Nothing runs: equal, once and for all that can be seen.
    stay_two(&two_dies(|sysfs| both.iter().for_each(|die| sysfs.zone(die).set(7_000_000))));
    // Different from the first look on.
    let sysfs = two_dies(|sysfs| sysfs.zone(both[1]).set(9_000_000));
    let _feeder = Feeder::start(Duration::from_millis(3), vec![feed(&sysfs, 0, 40.0)]);
    stay_two(&sysfs);
    // Equal when first looked at, and never again.
    let sysfs = two_dies(|_| {});
    let feeds = vec![feed(&sysfs, 0, 40.0), feed(&sysfs, 1, 60.0)];
    let _feeder = Feeder::start(Duration::from_millis(20), feeds);
    stay_two(&sysfs);
}

#[test]
fn sockets_are_never_one_counter() {
    // The same power from the same start: equal for ever.
    let sysfs = Machine::new(2).build();
    let [first, second] = [0, 1].map(|socket| sysfs.zone(&format!("package-{socket}")));
    second.remove();
    fs::hard_link(first.energy(), second.energy()).unwrap();
    let feed = Feed { zone: first, start_uj: 5, power: Power::constant(40.0) };
    let _feeder = Feeder::start(Duration::from_millis(3), vec![feed]);
    assert_eq!(names(&open(&sysfs).0), ["package-0", "package-1"]);
}

#[test]
fn counters_that_stand_at_zero_give_way() {
    let auto = |sysfs: &Sysfs| choose(sysfs.path(), CpuEnergyChoice::Auto).unwrap();
    let sysfs = Machine::new(2).with("dram").build();
    let dead = auto(&sysfs);
    assert_eq!((dead.source.kind, dead.meter.is_none()), (CpuEnergyKind::Estimate, true));
    assert!(dead.notes[0].contains("powercap: the counters stay at zero"), "{:?}", dead.notes);
    let Err(Error::Cannot(why)) = choose(sysfs.path(), CpuEnergyChoice::Powercap) else { panic!() };
    assert!(why.contains("stay at zero"), "{why}");

    // One of them lives, if only by having counted once: it is measured, the others are not 0.
    sysfs.zone("package-1").set(1);
    let some = auto(&sysfs);
    assert_eq!(some.source.kind, CpuEnergyKind::Powercap);
    assert_eq!(some.source.domains, ["package-1"]);
    assert_eq!((some.topology.packages.len(), some.notes.len()), (2, 3), "{:?}", some.notes);
    assert!(some.notes[0].starts_with("package-0 is left out: "), "{:?}", some.notes);
    let mut meter = some.meter.unwrap();
    let mut readings = Vec::new();
    meter.read(&mut readings);
    assert_eq!(readings.len(), 1);
    assert_eq!(readings[0].as_ref().unwrap().count, 1);

    // One that needs a while for its first step.
    let sysfs = Machine::new(1).build();
    let zone = sysfs.zone("package-0");
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(25));
        zone.set(61);
    });
    assert_eq!(auto(&sysfs).source.kind, CpuEnergyKind::Powercap);
    writer.join().unwrap();

    // A counter that has only just begun, and DRAM that nobody has switched on.
    let sysfs = Machine::new(1).with("dram").build();
    let zone = sysfs.zone("package-0");
    let power = Power::constant(40.0);
    let _feeder = Feeder::start(Duration::from_millis(20), vec![Feed { zone, start_uj: 0, power }]);
    assert_eq!(auto(&sysfs).source.domains, ["package-0"]);
}

#[test]
fn a_dead_pmu_gives_way_to_zones_that_live() {
    let sysfs = two_dies(|sysfs| sysfs.zone("package-0-die-1").set(2_000_000));
    sysfs.zone("package-0-die-0").set(1_000_000);
    sysfs.add_power_pmu(1, "0", &[("energy-pkg", NEVER, "1e-9")]);
    let roots = Roots { sysfs: sysfs.path().into(), ..Roots::default() };
    let opened = Opened::open(CpuEnergyChoice::Auto, &roots, 4).unwrap();
    assert_eq!(opened.topology().packages.len(), 1);
    let energy = opened.confirm().unwrap();
    assert_eq!(energy.source.kind, CpuEnergyKind::Powercap);
    // And with the source goes what a package is.
    assert_eq!(energy.topology.package_of_cpu, [0, 0, 1, 1].map(Some));
}

#[test]
fn zones_that_lead_nowhere_are_masked_not_absent() {
    let masked = |sysfs: &Sysfs| PowercapMeter::open(sysfs.path(), 2).unwrap_err();
    let class = |sysfs: &Sysfs, zone: &str| sysfs.path().join("class/powercap").join(zone);
    // An empty file system lies over all that the links of the class lead to.
    let sysfs = Machine::new(2).build();
    let hidden = sysfs.path().join("devices/virtual/powercap");
    fs::remove_dir_all(&hidden).unwrap();
    fs::create_dir(&hidden).unwrap();
    assert_eq!(masked(&sysfs), Unavailable::Masked(class(&sysfs, "intel-rapl:0")));
    let Err(Error::Cannot(why)) = choose(sysfs.path(), CpuEnergyChoice::Powercap) else { panic!() };
    assert!(why.contains("privileged") && why.contains("--sysfs"), "{why}");
    assert!(!why.contains("modprobe"), "{why}");
    // Or over a zone.
    let sysfs = Machine::new(1).layout(Layout::Flat).build();
    let zone = class(&sysfs, "intel-rapl:0");
    fs::remove_dir_all(&zone).unwrap();
    fs::create_dir(&zone).unwrap();
    assert_eq!(masked(&sysfs), Unavailable::Masked(zone));
    // One that can be read is read.
    let sysfs = Machine::new(2).layout(Layout::Flat).build();
    let zone = class(&sysfs, "intel-rapl:1");
    fs::remove_dir_all(&zone).unwrap();
    symlink("/nowhere", &zone).unwrap();
    let (meter, notes) = open(&sysfs);
    assert_eq!(names(&meter), ["package-0"]);
    assert!(notes[0].contains("lead nowhere"), "{notes:?}");
}
