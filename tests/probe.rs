//! The probe against the kernel's own account, on real cgroups with real load.
//!
//! `cpu.stat` and `/proc/PID/schedstat` lag behind by up to a tick for a task that runs at the moment,
//! so [`Load::account`] makes the scheduler bring its books up to date first. What is read while it
//! changes is bracketed: ours between two readings of theirs.

#![allow(clippy::unwrap_used)]

#[path = "sim/cgroup.rs"]
mod cgroup;
#[path = "sim/load.rs"]
mod load;

use std::fs;
use std::io::Write as _;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use ecoprobe::base::id::User;
use ecoprobe::base::{WorkloadId, monotonic_ns};
use ecoprobe::door::{Hook, LoadOptions, Probe};
use ecoprobe::event::CpuTimes;

use crate::cgroup::{TestCgroup, v2_mount};
use crate::load::{Load, Shape};

const MS: u64 = 1_000_000;
/// A tick of the slowest kernel there is, `CONFIG_HZ=100`.
const TICK: u64 = 10 * MS;

/// Each test loads whole CPUs: one at a time.
fn quiet() -> MutexGuard<'static, ()> {
    static QUIET: Mutex<()> = Mutex::new(());
    QUIET.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The probe, and what it has told so far.
struct Watch {
    probe: Probe,
    cpus: usize,
    times: CpuTimes,
    ended: Vec<WorkloadId>,
    /// Cumulative nanoseconds: other, idle, then workloads by id.
    totals: Vec<u64>,
}

const OTHER: usize = 0;
const IDLE: usize = 1;
const FIRST: usize = 2;

/// Cumulative nanoseconds, as `Watch` has them.
struct Reading {
    at_ns: u64,
    totals: Vec<u64>,
}

impl Reading {
    fn since(&self, start: &Self, of: usize) -> u64 {
        let before = start.totals.get(of).copied().unwrap_or(0);
        self.totals[of].checked_sub(before).expect("counters never go back")
    }
}

impl Watch {
    fn v2(hook: Option<Hook>) -> Self {
        Self::load(hook, None, 0, 64, false)
    }

    fn load(
        hook: Option<Hook>,
        v1_controller: Option<&str>,
        hierarchy_id: u32,
        max_workloads: u32,
        exits: bool,
    ) -> Self {
        let cpus = aya::util::nr_cpus().expect("the number of possible CPUs");
        let probe = Probe::load(LoadOptions {
            btf: Path::new("/sys/kernel/btf/vmlinux"),
            package_of_cpu: vec![Some(0); cpus],
            packages: 1,
            sibling_of_cpu: Vec::new(),
            v1_controller,
            hierarchy_id,
            max_workloads,
            newcomers: false,
            exits,
            hook,
        })
        .unwrap_or_else(|error| panic!("{error}"));
        Self { probe, cpus, times: CpuTimes::default(), ended: Vec::new(), totals: vec![0; FIRST] }
    }

    fn attach(mut self) -> Self {
        self.probe.attach().unwrap_or_else(|error| panic!("{error}"));
        self
    }

    /// Where its time stands.
    fn select(&mut self, cgroup: &TestCgroup) -> usize {
        self.select_id(cgroup.id())
    }

    fn select_id(&mut self, cgroup_id: u64) -> usize {
        let place = self.totals.len();
        let id = WorkloadId((place - FIRST) as u64);
        assert!(self.probe.begin(id, cgroup_id).unwrap(), "room for a workload");
        self.totals.push(0);
        place
    }

    fn read(&mut self) -> Reading {
        let at_ns = self.probe.read(&mut self.times, &mut self.ended);
        let package = &self.times.packages[0];
        for (place, now) in [(OTHER, package.other), (IDLE, package.idle)] {
            assert!(now >= self.totals[place], "{place} went back");
            self.totals[place] = now;
        }
        assert!(package.workloads.is_sorted_by_key(|(id, _)| *id));
        for &(id, now) in &package.workloads {
            let total = &mut self.totals[FIRST + id.0 as usize];
            assert!(now > *total, "{id:?} did not change, or went back");
            *total = now;
        }
        Reading { at_ns, totals: self.totals.clone() }
    }

    /// That there was one comes out at the next switch of its CPU.
    fn sees_a_hidden_switch(&self) -> bool {
        let hidden = || self.probe.stats().dropped;
        let before = hidden();
        (0..50).any(|_| {
            sleep(Duration::from_millis(2));
            hidden() > before
        })
    }

    /// A reading, and another account read before and after.
    fn read_within<T>(&mut self, theirs: impl Fn() -> T) -> (T, Reading, T) {
        let before = theirs();
        let ours = self.read();
        (before, ours, theirs())
    }
}

impl Load {
    /// The CPU time of this single-threaded process so far, exact.
    fn account(&self) -> u64 {
        self.update_account();
        let path = format!("/proc/{}/schedstat", self.pid());
        let text = fs::read_to_string(path).expect("schedstat");
        text.split(' ').next().unwrap().parse().unwrap()
    }

    /// A change of priority makes the scheduler charge what its task has run so far.
    fn update_account(&self) {
        let (process, pid) = (libc::PRIO_PROCESS, self.pid());
        // SAFETY: plain system calls.
        unsafe {
            let now = libc::getpriority(process, pid);
            assert_eq!(libc::setpriority(process, pid, if now == 1 { 2 } else { 1 }), 0);
        }
    }
}

/// `ours` between what another account gained at least and at most, but for a share of it and `slack`.
#[track_caller]
fn assert_within(what: &str, ours: u64, theirs: RangeInclusive<u64>, share: f64, slack: u64) {
    let margin = (*theirs.end() as f64 * share) as u64 + slack;
    let (least, most) = (theirs.start().saturating_sub(margin), theirs.end() + margin);
    println!("{what}: {ours} ns, theirs {theirs:?}");
    assert!((least..=most).contains(&ours), "{what}: {ours} ns, but theirs {theirs:?} ± {margin}");
}

fn accuracy(hook: Hook) {
    let _quiet = quiet();
    let jobs = ["hog", "quarter", "forks"].map(TestCgroup::v2);
    let shapes = [Shape::Hog, Shape::QUARTER, Shape::MILLISECOND_CHILDREN];
    let mut probe = Watch::v2(Some(hook)).attach();
    assert_eq!(probe.probe.hook(), hook);
    let slots = jobs.each_ref().map(|job| probe.select(job));
    let loads: Vec<Load> = jobs
        .iter()
        .zip(shapes)
        .zip([0, 1, 1])
        .map(|((job, shape), cpu)| Load::start(shape, job.path(), Some(cpu)))
        .collect();
    let theirs = || {
        loads.iter().for_each(Load::update_account);
        jobs.each_ref().map(TestCgroup::usage_ns)
    };
    sleep(Duration::from_millis(100));
    let (before, start, after) = probe.read_within(theirs);
    sleep(Duration::from_secs(4));
    let (until, end, latest) = probe.read_within(theirs);
    for (i, slot) in slots.into_iter().enumerate() {
        // The account of a forked child that runs right now cannot be brought up to date: one at each
        // end, which runs for a millisecond.
        let running = if i == 2 { 2 * MS } else { 0 };
        let range = until[i] - after[i]..=latest[i] - before[i];
        assert_within(&format!("{:?}", shapes[i]), end.since(&start, slot), range, 0.005, running);
    }
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn cpu_time_agrees_with_cpu_stat() {
    accuracy(Hook::TpBtf);
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn the_raw_tracepoint_twin_agrees_as_well() {
    accuracy(Hook::RawTp);
}

/// Of different sizes, so that whose time is whose shows; and more than the probe remembers of a CPU.
#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn many_jobs_that_take_turns_on_a_cpu_are_told_apart() {
    let _quiet = quiet();
    let jobs: Vec<TestCgroup> = (0..24).map(|job| TestCgroup::v2(&format!("turn-{job}"))).collect();
    let mut probe = Watch::v2(None).attach();
    let slots: Vec<usize> = jobs.iter().map(|job| probe.select(job)).collect();
    let loads: Vec<Load> = jobs
        .iter()
        .zip(1..)
        .map(|(job, part)| {
            let busy = Duration::from_micros(20 * part);
            let shape = Shape::Duty { busy, period: Duration::from_millis(20) };
            Load::start(shape, job.path(), Some(0))
        })
        .collect();
    let theirs = || {
        loads.iter().for_each(Load::update_account);
        jobs.iter().map(TestCgroup::usage_ns).collect::<Vec<_>>()
    };
    sleep(Duration::from_millis(100));
    let (before, start, after) = probe.read_within(theirs);
    sleep(Duration::from_secs(2));
    let (until, end, latest) = probe.read_within(theirs);
    for (i, slot) in slots.into_iter().enumerate() {
        let range = until[i] - after[i]..=latest[i] - before[i];
        // `cpu.stat` has whole microseconds.
        assert_within(&format!("job {i}"), end.since(&start, slot), range, 0.005, MS / 20);
    }
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn every_window_of_a_job_that_never_yields_is_right() {
    const WINDOW: Duration = Duration::from_millis(100);
    let _quiet = quiet();
    let job = TestCgroup::v2("windows");
    let mut probe = Watch::v2(None).attach();
    let slot = probe.select(&job);
    let hog = Load::hog(job.path(), 0);
    sleep(WINDOW);
    let (mut before, mut start, mut after) = probe.read_within(|| hog.account());
    let mut stolen = stolen_ns();
    // What the host steals is told in hundredths of a second, so some of it is told a window late.
    let mut late_by_theft = 0;
    // Where the kernel hides switches, who runs is not known until the next one that it shows.
    let mut hidden = 0;
    // By how much we are ahead of them, for the same reason: the next switch takes it back.
    let mut ahead = 0;
    for window in 0..40 {
        sleep(WINDOW);
        let (until, end, latest) = probe.read_within(|| hog.account());
        let ours = end.since(&start, slot);
        // The running part is reckoned by the clock, which goes on while the host runs somebody else.
        let stolen_until = stolen_ns();
        let share_of_wall = (end.at_ns - start.at_ns) / 50 + (stolen_until - stolen);
        stolen = stolen_until;
        let most = latest - before + share_of_wall;
        let theirs = until - after..=latest - before;
        let fits = (theirs.start().saturating_sub(ahead + share_of_wall)..=most).contains(&ours);
        if ours > most && ours - most < TICK && late_by_theft < 2 {
            late_by_theft += 1;
            println!("window {window}: {ours} ns, at most {most}");
        } else if !fits && hidden < 2 && probe.sees_a_hidden_switch() {
            hidden += 1;
            println!("window {window}: {ours} ns, theirs {theirs:?}, but a switch was hidden");
            (before, start, after) = probe.read_within(|| hog.account());
            stolen = stolen_ns();
            ahead = 0;
            continue;
        } else {
            let least = theirs.start().saturating_sub(ahead);
            assert_within(
                &format!("window {window}"),
                ours,
                least..=*theirs.end(),
                0.0,
                share_of_wall,
            );
        }
        ahead = (ahead + ours).saturating_sub(*theirs.start());
        (before, start, after) = (until, end, latest);
    }
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn a_running_job_that_is_moved_is_billed_to_both() {
    let _quiet = quiet();
    let (from, to) = (TestCgroup::v2("from"), TestCgroup::v2("to"));
    let mut probe = Watch::v2(None).attach();
    let (from_slot, to_slot) = (probe.select(&from), probe.select(&to));
    let hog = Load::hog(from.path(), 1);
    let elsewhere = ["elsewhere", "nowhere"].map(TestCgroup::v2);
    let first = Load::start(Shape::QUARTER, elsewhere[0].path(), Some(0));
    let unstolen = stolen_ns();
    let mut hidden = 0;
    for (source, target, cgroup) in
        [(from_slot, to_slot, &to), (to_slot, from_slot, &from), (from_slot, to_slot, &to)]
    {
        sleep(Duration::from_millis(50));
        let (before, start, after) = probe.read_within(|| hog.account());
        sleep(Duration::from_millis(300));
        // The first of two moves waits for all CPUs, the second does not.
        first.move_to(elsewhere[1].path());
        let leaves = hog.account();
        hog.move_to(cgroup.path());
        let left = hog.account();
        first.move_to(elsewhere[0].path());
        sleep(Duration::from_millis(200));
        let (until, end, latest) = probe.read_within(|| hog.account());
        let [was, is] = [source, target].map(|slot| end.since(&start, slot));
        // A running part is reckoned by the clock, theft included, until a switch puts it right.
        let slack = 5 * MS + (stolen_ns() - unstolen);
        let (first_part, second_part) =
            (leaves - after..=left - before, until - left..=latest - leaves);
        let fits = |ours: u64, theirs: &RangeInclusive<u64>| {
            (theirs.start().saturating_sub(slack)..=theirs.end() + slack).contains(&ours)
        };
        // Where the kernel hides a switch, who ran is not known until the next one that it shows.
        let all_fit = fits(was, &first_part) && fits(is, &second_part);
        if !all_fit && hidden == 0 && probe.sees_a_hidden_switch() {
            hidden += 1;
            println!("{was} ns, theirs {first_part:?}, but a switch was hidden");
            continue;
        }
        assert_within("before the move", was, first_part, 0.0, slack);
        assert_within("after the move", is, second_part, 0.0, slack);
    }
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn short_lived_cgroups_count_for_their_ancestors_only() {
    let _quiet = quiet();
    let parent = TestCgroup::v2("parent");
    let outside = TestCgroup::v2("outside");
    let mut probe = Watch::v2(None).attach();
    let slot = probe.select(&parent);
    let start = probe.read();
    // One may take the other's place in the kernel's memory.
    for _ in 0..40 {
        for cgroup in [&parent, &outside] {
            let child = cgroup.child("child");
            let load = Load::hog(child.path(), 1);
            sleep(Duration::from_millis(10));
            drop(load);
        }
    }
    let end = probe.read();
    let theirs = parent.usage_ns();
    assert!(theirs > 100 * MS, "the children hardly ran: {theirs} ns");
    // The kernel charges all that a task ran since its last account to the cgroup that it is moved to;
    // we cut where it moved.
    let moves = 40 * MS / 5;
    assert_within("the parent", end.since(&start, slot), theirs..=theirs, 0.005, moves);
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn slots_add_up_to_all_cpus() {
    let _quiet = quiet();
    let jobs = ["one", "two"].map(TestCgroup::v2);
    let mut probe = Watch::v2(None).attach();
    for job in &jobs {
        probe.select(job);
    }
    let _loads = [
        Load::start(Shape::QUARTER, jobs[0].path(), None),
        Load::start(Shape::MILLISECOND_CHILDREN, jobs[1].path(), None),
    ];
    sleep(Duration::from_millis(100));
    let stolen_before = stolen_ns();
    let start = probe.read();
    sleep(Duration::from_secs(4));
    let end = probe.read();
    let stolen = stolen_ns() - stolen_before;
    let sum: u64 = (0..end.totals.len()).map(|slot| end.since(&start, slot)).sum();
    let elapsed = (end.at_ns - start.at_ns) * online_cpus();
    assert!(probe.cpus as u64 >= online_cpus());
    // What interrupts and the hypervisor took is nobody's, by the scheduler's own account.
    assert_within("all slots", sum, elapsed.saturating_sub(stolen)..=elapsed, 0.001, 0);
}

/// What the CPUs' run-queue clocks may leave out.
fn stolen_ns() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .skip(1)
        .map(|ticks| ticks.parse().unwrap())
        .collect();
    // irq, softirq, steal; in hundredths of a second.
    (ticks[5] + ticks[6] + ticks[7]) * TICK
}

fn online_cpus() -> u64 {
    // SAFETY: a plain library call.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) as u64 }
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn beyond_the_capacity_time_goes_to_other() {
    let _quiet = quiet();
    let jobs = ["first", "second"].map(TestCgroup::v2);
    let mut probe = Watch::load(None, None, 0, 1, false).attach();
    probe.select(&jobs[0]);
    assert!(!probe.probe.begin(WorkloadId(1), jobs[1].id()).unwrap());
    let hog = Load::hog(jobs[1].path(), 0);
    let (before, start, after) = probe.read_within(|| hog.account());
    sleep(Duration::from_millis(500));
    let (until, end, latest) = probe.read_within(|| hog.account());
    assert_eq!(end.since(&start, FIRST), 0);
    let other = end.since(&start, OTHER);
    assert!(other + 5 * MS >= until - after, "{other} {before} {latest}");
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn a_cgroup_selected_while_its_job_runs_is_seen_at_the_next_switch() {
    let _quiet = quiet();
    let job = TestCgroup::v2("late");
    let mut probe = Watch::v2(None).attach();
    let load = Load::start(Shape::QUARTER, job.path(), Some(1));
    sleep(Duration::from_millis(100));
    let slot = probe.select(&job);
    // One period, so that it was switched in since.
    sleep(Duration::from_millis(50));
    let (before, start, after) = probe.read_within(|| load.account());
    sleep(Duration::from_millis(500));
    let (until, end, latest) = probe.read_within(|| load.account());
    let ours = end.since(&start, slot);
    assert_within("selected late", ours, until - after..=latest - before, 0.005, MS);
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn kernel_threads_are_not_the_root_cgroup() {
    let _quiet = quiet();
    let mut probe = Watch::v2(None).attach();
    let root = fs::metadata(v2_mount()).unwrap();
    let id = std::os::unix::fs::MetadataExt::ino(&root);
    let slot = probe.select_id(id);
    let job = TestCgroup::v2("below-the-root");
    let load = Load::start(Shape::QUARTER, job.path(), Some(1));
    sleep(Duration::from_millis(50));
    let (before, start, after) = probe.read_within(kernel_threads_ns);
    let job_before = load.account();
    // Kernel threads write this out.
    let mut file = tempfile::tempfile().unwrap();
    for _ in 0..200 {
        file.write_all(&[1; 64 * 1024]).unwrap();
        file.sync_all().unwrap();
    }
    let job_after = load.account();
    let (until, end, latest) = probe.read_within(kernel_threads_ns);
    let threads = until.saturating_sub(after);
    assert!(threads > 5 * MS, "the kernel's threads hardly ran: {threads} ns");
    let other = end.since(&start, OTHER);
    let root = end.since(&start, slot);
    println!("other {other}, kernel threads {threads} ({before} to {latest}), root {root}");
    // `other` also has what the scheduler itself took.
    assert!(other + MS >= threads - threads / 20, "{other} ns in other, threads ran {threads} ns");
    assert!(root >= job_after - job_before, "{root} ns in the root");
}

/// CPU time of all kernel threads.
fn kernel_threads_ns() -> u64 {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let flags = stat.rsplit_once(')')?.1.split(' ').nth(7)?;
            let is_kernel = flags.parse::<u64>().ok()? & 0x0020_0000 != 0;
            let schedstat = fs::read_to_string(entry.path().join("schedstat")).ok()?;
            is_kernel.then(|| schedstat.split(' ').next()?.parse::<u64>().ok())?
        })
        .sum()
}

/// Lives for a millisecond or so, and ends in that cgroup, if one is given. Its pid.
fn short_process(cgroup: Option<&TestCgroup>) -> u32 {
    let join = cgroup.map_or(String::new(), |cgroup| {
        format!("echo $$ > {}", cgroup.path().join("cgroup.procs").display())
    });
    let mut child = Command::new("sh").args(["-c", &join]).spawn().unwrap();
    assert!(child.wait().unwrap().success());
    child.id()
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn who_has_exited_is_known() {
    let _quiet = quiet();
    let job = TestCgroup::v2("exits");
    let child = job.child("child");
    assert!(Watch::v2(None).probe.take_exits().is_none());
    for hook in [Hook::TpBtf, Hook::RawTp] {
        let mut probe = Watch::load(Some(hook), None, 0, 8, true);
        let exits = probe.probe.take_exits().unwrap();
        let slot = probe.select(&job);
        let mut probe = probe.attach();
        let unseen = short_process(Some(&job));
        probe.probe.watch_exits().unwrap();
        assert_eq!(exits.find(unseen), None, "nobody asked for exits yet");

        let start = monotonic_ns();
        let of = |cgroup| (0..100).map(|_| short_process(cgroup)).collect::<Vec<_>>();
        let inside = [of(Some(&job)), of(Some(&child))].concat();
        let outside = of(None);
        let lived = start..monotonic_ns();
        let id = WorkloadId((slot - FIRST) as u64);
        for (pids, user) in [(inside, User::Workload(id)), (outside, User::Other)] {
            for pid in pids {
                let (found, exit_ns) = exits.find(pid).expect("it has exited");
                assert_eq!(found, user, "{pid}");
                assert!(lived.contains(&exit_ns), "{exit_ns} {lived:?}");
            }
        }
    }
}

#[test]
#[ignore = "needs root and a cgroup v1 mount"]
fn v1_cpu_time_agrees_with_cpuacct() {
    let _quiet = quiet();
    let job = TestCgroup::v1("cpuacct", "probe");
    let mine = fs::read_to_string("/proc/self/cgroup").unwrap();
    let hierarchy = mine
        .lines()
        .find_map(|line| {
            let (id, rest) = line.split_once(':')?;
            let controllers = rest.split(':').next()?;
            controllers.split(',').any(|one| one == "cpuacct").then(|| id.parse().unwrap())
        })
        .expect("the hierarchy's number");
    let mut probe = Watch::load(None, Some("cpuacct"), hierarchy, 8, false).attach();
    let slot = probe.select(&job);
    let hog = Load::hog(job.path(), 0);
    let child = job.child("child");
    let quarter = Load::start(Shape::QUARTER, child.path(), Some(1));
    let loads = [&hog, &quarter];
    let theirs = || {
        loads.iter().for_each(|load| load.update_account());
        job.usage_ns()
    };
    sleep(Duration::from_millis(100));
    let (before, start, after) = probe.read_within(theirs);
    sleep(Duration::from_secs(1));
    let (until, end, latest) = probe.read_within(theirs);
    let ours = end.since(&start, slot);
    assert_within("cpuacct", ours, until - after..=latest - before, 0.005, 0);
}
