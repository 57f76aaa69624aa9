//! The probe where everything happens at once: CPUs that switch as fast as they can while they are read,
//! cgroups that come and go by the thousand, processes of many threads that are moved while they run.

#![allow(clippy::unwrap_used)]

#[path = "sim/cgroup.rs"]
mod cgroup;
#[path = "sim/load.rs"]
mod load;

use std::collections::HashMap;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use ecoprobe::base::{WorkloadId, monotonic_ns};
use ecoprobe::door::{LoadOptions, Probe};
use ecoprobe::event::CpuTimes;

use crate::cgroup::TestCgroup;
use crate::load::{Load, Shape};

const MS: u64 = 1_000_000;

/// Each test loads whole CPUs: one at a time.
fn quiet() -> MutexGuard<'static, ()> {
    static QUIET: Mutex<()> = Mutex::new(());
    QUIET.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A package for each CPU.
fn attached(max_workloads: u32) -> Probe {
    let cpus = aya::util::nr_cpus().unwrap();
    let mut probe = Probe::load(LoadOptions {
        btf: Path::new("/sys/kernel/btf/vmlinux"),
        package_of_cpu: (0..cpus).map(Some).collect(),
        packages: cpus,
        sibling_of_cpu: Vec::new(),
        v1_controller: None,
        hierarchy_id: 0,
        max_workloads,
        exits: false,
        newcomers: false,
        hook: None,
    })
    .unwrap_or_else(|error| panic!("{error}"));
    probe.attach().unwrap();
    probe
}

/// CPU time of every workload so far, by package.
#[derive(Default)]
struct Totals {
    times: CpuTimes,
    ended: Vec<WorkloadId>,
    workloads: HashMap<(usize, u64), u64>,
    idle: Vec<u64>,
    other: Vec<u64>,
}

impl Totals {
    /// Nothing may go back.
    fn read(&mut self, probe: &mut Probe) -> u64 {
        let at = probe.read(&mut self.times, &mut self.ended);
        self.idle.resize(self.times.packages.len(), 0);
        self.other.resize(self.times.packages.len(), 0);
        for (package, times) in self.times.packages.iter().enumerate() {
            for (before, now) in
                [(&mut self.idle[package], times.idle), (&mut self.other[package], times.other)]
            {
                assert!(now >= *before, "went back");
                *before = now;
            }
            for &(id, now) in &times.workloads {
                let before = self.workloads.entry((package, id.0)).or_default();
                assert!(now > *before, "{id:?} went back, or has not changed");
                *before = now;
            }
        }
        at
    }

    /// Everything that a CPU has done.
    fn of_cpu(&self, cpu: usize) -> u64 {
        let of_workloads = self.workloads.iter().filter(|((package, _), _)| *package == cpu);
        self.idle[cpu] + self.other[cpu] + of_workloads.map(|(_, ns)| ns).sum::<u64>()
    }

    fn of(&self, id: u64) -> u64 {
        self.workloads.iter().filter(|((_, of), _)| *of == id).map(|(_, ns)| ns).sum()
    }
}

/// What the run-queue clock of one CPU may leave out: irq, softirq, steal.
fn stolen_ns(cpu: usize) -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let line = stat.lines().nth(cpu + 1).unwrap();
    let ticks: Vec<u64> =
        line.split_whitespace().skip(1).map(|ticks| ticks.parse().unwrap()).collect();
    (ticks[5] + ticks[6] + ticks[7]) * 10 * MS
}

/// A change of priority makes the scheduler charge what a task has run so far.
fn update_account(task: u32) {
    // SAFETY: plain system calls.
    unsafe {
        let now = libc::getpriority(libc::PRIO_PROCESS, task);
        libc::setpriority(libc::PRIO_PROCESS, task, if now == 1 { 2 } else { 1 });
    }
}

/// A byte goes round between two tasks, of a cgroup each: a switch a microsecond or two.
struct Pair {
    cgroups: [TestCgroup; 2],
    loads: Vec<Load>,
    /// Held open: a pipe that ends is the end of the storm.
    _pipes: Vec<Box<dyn Send>>,
}

impl Pair {
    fn start(cpu: usize) -> Self {
        let cgroups = ["storm-a", "storm-b"].map(TestCgroup::v2);
        let (first_from, first_to) = std::io::pipe().unwrap();
        let (second_from, mut second_to) = std::io::pipe().unwrap();
        let loads = vec![
            Load::start(
                Shape::Relay { from: first_from.as_raw_fd(), to: second_to.as_raw_fd() },
                cgroups[0].path(),
                Some(cpu),
            ),
            Load::start(
                Shape::Relay { from: second_from.as_raw_fd(), to: first_to.as_raw_fd() },
                cgroups[1].path(),
                Some(cpu),
            ),
        ];
        std::io::Write::write_all(&mut second_to, b"!").unwrap();
        let pipes: Vec<Box<dyn Send>> = vec![
            Box::new(first_from),
            Box::new(first_to),
            Box::new(second_from),
            Box::new(second_to),
        ];
        Self { cgroups, loads, _pipes: pipes }
    }

    fn usage_ns(&self) -> u64 {
        self.loads.iter().for_each(|load| update_account(load.pid()));
        self.cgroups.iter().map(TestCgroup::usage_ns).sum()
    }
}

/// The calling thread stays off the CPU that it watches.
fn stay_on(cpu: usize) {
    let mut only = nix::sched::CpuSet::new();
    only.set(cpu).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &only).unwrap();
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn every_window_of_a_storm_holds_its_time() {
    const WINDOWS: u32 = 250;
    let _quiet = quiet();
    let mut probe = attached(10_000);
    let pair = Pair::start(0);
    for (id, cgroup) in (0..).zip(&pair.cgroups) {
        assert!(probe.begin(WorkloadId(id), cgroup.id()).unwrap());
    }
    // Nobody is in these, so they need not be there.
    for id in 2..10_000 {
        assert!(probe.begin(WorkloadId(id), u64::MAX - id).unwrap());
    }
    let watch = thread::spawn(move || {
        stay_on(1);
        let mut totals = Totals::default();
        thread::sleep(Duration::from_millis(100));
        let before = pair.usage_ns();
        let mut at = totals.read(&mut probe);
        let after = pair.usage_ns();
        let of_pair = |totals: &Totals| totals.of(0) + totals.of(1);
        let (switches, first) = (probe.stats().events.unwrap(), of_pair(&totals));
        let mut cpu = totals.of_cpu(0);
        let mut stolen = stolen_ns(0);
        let (mut wrong, mut worst) = (Vec::new(), 0.0_f64);
        for window in 0..WINDOWS {
            thread::sleep(Duration::from_millis(20));
            let until = totals.read(&mut probe);
            let held = totals.of_cpu(0) - cpu;
            // Theft is told in hundredths of a second, and some of it late.
            let stolen_until = stolen_ns(0);
            let theft = stolen_until - stolen;
            let wall = until - at;
            let off = held as f64 / wall as f64 - 1.0;
            if theft == 0 {
                worst = worst.max(off.abs());
            }
            let margin = wall * 3 / 100;
            if held + margin + theft < wall || held > wall + margin {
                wrong.push(format!("window {window}: {held} of {wall} ns, {theft} stolen"));
            }
            (at, cpu, stolen) = (until, cpu + held, stolen_until);
        }
        let until = pair.usage_ns();
        totals.read(&mut probe);
        let latest = pair.usage_ns();
        let ours = of_pair(&totals) - first;
        let (least, most) = (until - after, latest - before);
        let switches = probe.stats().events.unwrap() - switches;
        println!(
            "{switches} switches; worst window off by {:.2} %; pair: {ours} ns, theirs \
             {least}..={most}",
            worst * 100.0
        );
        assert!(switches > 100_000, "no storm: {switches} switches");
        // The host may have stolen what it has not told yet.
        assert!(wrong.len() <= 2, "{wrong:#?}");
        let slack = most / 1_000;
        assert!((least - slack..=most + slack).contains(&ours), "{ours} {least}..={most}");
    });
    watch.join().unwrap();
}

/// The whole process moves to and fro while its threads run on every CPU. Each of them is found: else
/// what it ran until its next switch would be the wrong cgroup's.
#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn a_process_of_many_threads_is_moved_whole() {
    let _quiet = quiet();
    let cgroups = ["threads-a", "threads-b"].map(TestCgroup::v2);
    let mut probe = attached(8);
    for (id, cgroup) in (0..).zip(&cgroups) {
        assert!(probe.begin(WorkloadId(id), cgroup.id()).unwrap());
    }
    let home = fs::read_to_string("/proc/self/cgroup").unwrap();
    let home = home.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned();
    let home = cgroup::v2_mount().join(home.trim_start_matches('/')).join("cgroup.procs");
    let over = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let over = over.clone();
            thread::spawn(move || while !over.load(Ordering::Relaxed) {})
        })
        .collect();
    let mut totals = Totals::default();
    let me = std::process::id();
    let elsewhere = ["elsewhere", "nowhere"].map(TestCgroup::v2);
    // Every CPU switches now and then: a slice has room for three cuts.
    let others = [0, 1].map(|cpu| Load::start(Shape::QUARTER, elsewhere[0].path(), Some(cpu)));
    for turn in 0..60 {
        // The first of two moves waits for all CPUs, the second does not.
        others[0].move_to(elsewhere[(turn + 1) % 2].path());
        // Else the kernel charges what they ran since their last tick to where they go.
        for task in fs::read_dir("/proc/self/task").unwrap() {
            let task = task.unwrap().file_name().into_string().unwrap();
            update_account(task.parse().unwrap());
        }
        cgroups[turn % 2].add(me);
        thread::sleep(Duration::from_millis(15));
    }
    over.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    fs::write(home, me.to_string()).unwrap();
    // What was moved away is accounted for, on both sides.
    totals.read(&mut probe);
    for (id, cgroup) in (0..).zip(&cgroups) {
        let (ours, theirs) = (totals.of(id), cgroup.usage_ns());
        println!("{id}: {ours} ns, theirs {theirs}");
        assert!(theirs > 200 * MS, "the threads hardly ran");
        // Where we are held up between bringing the account up to date and the move, the kernel charges
        // what they ran meanwhile to where they go. A thread that was not found would be off by 15 ms in
        // each of sixty turns.
        assert!(ours.abs_diff(theirs) <= theirs / 500 + 10 * MS, "{ours} {theirs}");
    }
}

/// Of `linux/sched.h`; libc's own does not hold it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// A child that is born in the cgroup, computes for so long and ends there.
fn run_in(cgroup: &TestCgroup, busy: Duration) {
    let directory = fs::File::open(cgroup.path()).unwrap();
    // SAFETY: all zero is what every option has by default.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = directory.as_raw_fd() as u64;
    // SAFETY: like a fork; the child calls nothing but what is async-signal-safe.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>())
    };
    assert!(pid >= 0, "clone3: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let end = monotonic_ns() + busy.as_nanos() as u64;
        while monotonic_ns() < end {}
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(pid as i32, &raw mut status, 0) }, pid as i32);
}

fn rss_kb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

/// Many more jobs than slots. `ECOPROBE_TEST_JOBS` makes it more.
#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn jobs_by_the_thousand_go_through_few_slots() {
    let _quiet = quiet();
    let jobs = std::env::var("ECOPROBE_TEST_JOBS").ok().and_then(|jobs| jobs.parse().ok());
    let jobs: u64 = jobs.unwrap_or(1_500);
    let slots = if jobs > 10_000 { 4_096 } else { 128 };
    let top = TestCgroup::v2("churn");
    let mut probe = attached(slots);
    let (mut times, mut ended) = (CpuTimes::default(), Vec::new());
    let mut of: HashMap<u64, (Vec<u64>, u64)> = HashMap::new();
    let (mut sum, mut closed, mut far_off) = (0, 0, 0);
    let mut rss = 0;
    let mut read = |probe: &mut Probe, of: &mut HashMap<u64, (Vec<u64>, u64)>| {
        probe.read(&mut times, &mut ended);
        for (package, times) in times.packages.iter().enumerate() {
            for &(id, ns) in &times.workloads {
                let ours = &mut of.get_mut(&id.0).expect("nothing comes after the end").0;
                ours.resize(ours.len().max(package + 1), 0);
                ours[package] = ns;
            }
        }
        for id in ended.drain(..) {
            let (ours, theirs) = of.remove(&id.0).expect("a workload ends once");
            let ours: u64 = ours.iter().sum();
            sum += ours;
            closed += 1;
            if ours.abs_diff(theirs) > theirs / 10 + MS / 10 {
                println!("job {}: {ours} ns, theirs {theirs}", id.0);
                far_off += 1;
            }
            probe.forget(id);
        }
        (sum, closed, far_off)
    };
    let mut last_read = 0;
    for id in 0..jobs {
        let job = top.child(&format!("job-{id}"));
        let cgroup_id = job.id();
        while !probe.begin(WorkloadId(id), cgroup_id).unwrap() {
            thread::sleep(Duration::from_millis(10));
            read(&mut probe, &mut of);
        }
        of.insert(id, (Vec::new(), 0));
        run_in(&job, Duration::from_micros(500));
        of.get_mut(&id).unwrap().1 = job.usage_ns();
        drop(job);
        probe.end(cgroup_id);
        probe.cgroup_news().for_each(drop);
        if monotonic_ns() - last_read > 50 * MS {
            last_read = monotonic_ns();
            read(&mut probe, &mut of);
        }
        if id == jobs / 10 {
            rss = rss_kb();
        }
    }
    let grown = rss_kb().saturating_sub(rss);
    let deadline = monotonic_ns() + 5_000 * MS;
    let (mut sum, mut closed, mut far_off) = (0, 0, 0);
    while closed < jobs && monotonic_ns() < deadline {
        thread::sleep(Duration::from_millis(20));
        (sum, closed, far_off) = read(&mut probe, &mut of);
    }
    let theirs = top.usage_ns();
    println!(
        "{} switches hidden; {closed} of {jobs} jobs, {far_off} off by more than 10 % and 0.1 ms; {sum} ns, theirs \
         {theirs} ({:+.3} %); memory +{grown} kB",
        probe.stats().dropped.unwrap(),
        (sum as f64 / theirs as f64 - 1.0) * 100.0
    );
    assert_eq!(closed, jobs, "some have not ended");
    // A switch that the kernel hides may cost a job or two what they ran.
    assert!(sum.abs_diff(theirs) <= theirs / 1_000 + MS, "{sum} {theirs}");
    assert!(far_off <= jobs / 100, "{far_off} jobs are far off");
    assert!(grown < 1_000, "{grown} kB more than after a tenth");
}
