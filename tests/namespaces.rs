//! Who is who where the kernel's paths are not the mount's: inside of cgroup namespaces, with a part
//! of the tree mounted, with mounts over mounts.

#![allow(clippy::unwrap_used)]

mod sim;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use ecoprobe::base::WorkloadId;
use ecoprobe::base::id::User;
use ecoprobe::door::{Change, Owner, Owners, Roots, Watched, resolve};
use ecoprobe::event::Workload;

use crate::sim::cgroup::TestCgroup;

struct Sleeper(Child);

impl Sleeper {
    fn in_cgroup(cgroup: &TestCgroup) -> Self {
        let sleeper = Self(Command::new("sleep").arg("60").spawn().unwrap());
        cgroup.add(sleeper.0.id());
        sleeper
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a test inside is about, and how it is known to be inside.
const INSIDE: &str = "ECOPROBE_TEST_INSIDE";

/// Runs a shell script that has moved itself into `cgroup`, with arguments from `$1` on.
fn inside(cgroup: &Path, script: &str, arguments: &[&str]) -> Output {
    let script = format!("echo $$ > {}/cgroup.procs && {script}", cgroup.display());
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).args(arguments).stdin(Stdio::null());
    command.output().unwrap()
}

/// Runs the same test again, from inside of `cgroup`, as `script` starts it (`"$@"`).
#[track_caller]
fn again(cgroup: &TestCgroup, script: &str, test: &str, facts: &[&str]) {
    let program = std::env::current_exe().unwrap();
    let script = format!("export {INSIDE}='{}'; {script}", facts.join(" "));
    let arguments =
        [program.to_str().unwrap(), "--exact", test, "--include-ignored", "--test-threads=1"];
    let output = inside(cgroup.path(), &script, &arguments);
    let text = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{text}{}", String::from_utf8_lossy(&output.stderr));
}

fn facts() -> Option<Vec<String>> {
    let facts = std::env::var(INSIDE).ok()?;
    Some(facts.split(' ').map(str::to_owned).collect())
}

/// Who the processes are, with a workload selected by name.
fn owners(name: &str, roots: &Roots) -> (Workload, Owners) {
    let mut selection = resolve(&[name.to_owned()], roots).unwrap();
    let watched = Watched::default();
    let news = selection.start();
    news.iter().for_each(|change| watched.apply(change));
    let workload = news.into_iter().find_map(Change::workload).unwrap();
    (workload, Owners::new(&roots.procfs, &selection.hierarchy, watched))
}

fn workload() -> Owner {
    Owner::User(User::Workload(WorkloadId(1)))
}

const OTHER: Owner = Owner::User(User::Other);

/// `job` is the workload's path below the mount, then come processes: in the job, deeper in it, beside
/// it, in the root, and we ourselves are none of the job's.
fn assert_told_apart(facts: &[String], roots: &Roots) {
    let (job, pids) = facts.split_first().unwrap();
    let (found, owners) = owners(job, roots);
    assert!(found.cgroup.ends_with(job.rsplit('/').next().unwrap()), "{}", found.cgroup);
    let pids = pids.iter().map(|pid| owners.living(pid.parse().unwrap()));
    assert_eq!(pids.collect::<Vec<_>>(), [workload(), workload(), OTHER, OTHER]);
    assert_eq!(owners.living(std::process::id()), OTHER);
    // Above all pids.
    assert_eq!(owners.living(2_000_000_001), Owner::Gone);
}

/// A tree of `hunt` with `agent`, `job` and `job2` in it, and processes.
struct Tree {
    top: TestCgroup,
    agent: TestCgroup,
    deep: TestCgroup,
    _cgroups: Vec<TestCgroup>,
    sleepers: [Sleeper; 4],
    job: String,
}

impl Tree {
    fn new(top: TestCgroup) -> Self {
        let (agent, job, beside) = (top.child("agent"), top.child("job"), top.child("job2"));
        let (deep, step) = (agent.child("deep"), job.child("step"));
        let asleep = [&job, &step, &beside, &top].map(Sleeper::in_cgroup);
        let path = job.cgroup();
        Self { top, agent, deep, _cgroups: vec![job, step, beside], sleepers: asleep, job: path }
    }

    fn facts(&self) -> Vec<String> {
        let pids = self.sleepers.iter().map(Sleeper::pid);
        std::iter::once(self.job.clone()).chain(pids).collect()
    }

    /// In the namespaces that people have: of a container, in one in the other, with our process not
    /// in the root.
    fn check_in_namespaces(&self, test: &str) {
        let facts = self.facts();
        let facts: Vec<&str> = facts.iter().map(String::as_str).collect();
        let deep = self.deep.path().display();
        // A control: where nothing is private.
        again(&self.agent, "exec \"$@\"", test, &facts);
        again(&self.agent, "exec unshare -C \"$@\"", test, &facts);
        again(&self.deep, "exec unshare -C \"$@\"", test, &facts);
        let nested = format!(
            "exec unshare -C sh -c 'echo $$ >{deep}/cgroup.procs; exec unshare -C \"$@\"' sh \"$@\""
        );
        again(&self.agent, &nested, test, &facts);
        let below =
            format!("exec unshare -C sh -c 'echo $$ >{deep}/cgroup.procs; exec \"$@\"' sh \"$@\"");
        again(&self.agent, &below, test, &facts);
    }
}

#[test]
#[ignore = "needs root: it makes cgroups and namespaces"]
fn processes_are_told_apart_in_any_namespace() {
    match facts() {
        Some(facts) => assert_told_apart(&facts, &Roots::default()),
        None => Tree::new(TestCgroup::v2("namespace"))
            .check_in_namespaces("processes_are_told_apart_in_any_namespace"),
    }
}

#[test]
#[ignore = "needs root and a cgroup v1 mount"]
fn v1_processes_are_told_apart_in_any_namespace() {
    match facts() {
        Some(facts) => assert_told_apart(&facts, &Roots::default()),
        None => Tree::new(TestCgroup::v1("cpuacct", "namespace"))
            .check_in_namespaces("v1_processes_are_told_apart_in_any_namespace"),
    }
}

#[test]
#[ignore = "needs root: it makes cgroups, namespaces and mounts"]
fn a_part_of_the_tree_may_be_mounted_anywhere() {
    const TEST: &str = "a_part_of_the_tree_may_be_mounted_anywhere";
    if let Some(facts) = facts() {
        let [mount, facts @ ..] = &facts[..] else { panic!() };
        let cgroupfs = Some(mount.into());
        assert_told_apart(facts, &Roots { cgroupfs, ..Roots::default() });
        return;
    }
    let tree = Tree::new(TestCgroup::v2("part"));
    let place = tempfile::tempdir().unwrap();
    let mount = place.path().to_str().unwrap();
    let pids = &tree.facts()[1..];
    // What is mounted, and what the job is called there.
    for (part, job) in [(&tree.top, "job"), (&tree._cgroups[0], "/")] {
        let mut facts = vec![mount, job];
        facts.extend(pids.iter().map(String::as_str));
        for namespaces in ["-m", "-m -C"] {
            let script = format!(
                "exec unshare {namespaces} sh -c 'mount --bind {} {mount} && exec \"$@\"' sh \"$@\"",
                part.path().display()
            );
            again(&tree.agent, &script, TEST, &facts);
        }
    }
}

#[test]
#[ignore = "needs root: it makes cgroups, namespaces and mounts"]
fn a_mount_over_the_others_is_the_one_that_is_there() {
    const TEST: &str = "a_mount_over_the_others_is_the_one_that_is_there";
    if let Some(facts) = facts() {
        let [place, pid] = &facts[..] else { panic!() };
        let (found, owners) = owners("job", &Roots::default());
        assert_eq!(found.cgroup, "/job");
        assert_eq!(owners.living(pid.parse().unwrap()), workload());
        let mut whole = resolve(&["/".to_owned()], &Roots::default()).unwrap();
        assert_eq!(whole.hierarchy.mount, Path::new(place));
        assert_eq!(whole.start().len(), 1);
        return;
    }
    let inner = TestCgroup::v2("hidden");
    let job = inner.child("job");
    let sleeper = Sleeper::in_cgroup(&job);
    let place = "/sys/fs/cgroup";
    for cover in ["", "mount -t tmpfs none /sys/fs/cgroup; "] {
        let script = format!(
            "exec unshare -C -m sh -c '{cover}mount -t cgroup2 none {place} && exec \"$@\"' sh \"$@\""
        );
        again(&inner, &script, TEST, &[place, &sleeper.pid()]);
    }
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_command_stays_in_its_callers_cgroup() {
    let top = TestCgroup::v2("run");
    let (agent, below) = (top.child("agent"), top.child("agent/below"));
    let ecoprobe = env!("CARGO_BIN_EXE_ecoprobe");
    let run = "\"$@\" run --cpu-energy none --gpu-energy none -- cat /proc/self/cgroup";
    let command = [ecoprobe];
    // As seen from the namespace, which our own root is.
    for (script, expected) in [
        (format!("exec {run}"), format!("0::{}/ecoprobe-run-", agent.cgroup())),
        (format!("exec unshare -C {run}"), "0::/ecoprobe-run-".to_owned()),
        (
            format!(
                "exec unshare -C sh -c 'echo $$ >{}/cgroup.procs; exec {run}' sh \"$@\"",
                below.path().display()
            ),
            "0::/below/ecoprobe-run-".to_owned(),
        ),
    ] {
        let output = inside(agent.path(), &script, &command);
        let text = String::from_utf8_lossy(&output.stdout);
        let found = text.lines().any(|line| line.starts_with(&expected));
        assert!(found, "{expected}: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    // Where ours takes no more, the nearest above does, but none above the namespace's.
    std::fs::write(agent.path().join("cgroup.max.descendants"), "1").unwrap();
    let output = inside(agent.path(), &format!("exec {run}"), &command);
    let text = String::from_utf8_lossy(&output.stdout);
    let expected = format!("0::{}/ecoprobe-run-", top.cgroup());
    assert!(text.lines().any(|line| line.starts_with(&expected)), "{text}");
    // Nor in another hierarchy, of which the namespace's root is the root.
    let script = format!(
        "exec unshare -C -m sh -c 'for m in $(grep \" cgroup \" /proc/mounts | cut -d\" \" -f2); \
         do umount $m; done; exec {run}' sh \"$@\""
    );
    let output = inside(agent.path(), &script, &command);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("cgroup.max.descendants"), "{text}");
    std::fs::write(agent.path().join("cgroup.max.descendants"), "max").unwrap();
    // A mount that shows another part of the tree alone: not there, without being told to.
    let beside = top.child("beside");
    let script = format!(
        "exec unshare -m sh -c 'for m in $(grep -E \" cgroup2? \" /proc/mounts | cut -d\" \" -f2); \
         do mount --bind {} $m; done; exec {run}' sh \"$@\"",
        beside.path().display()
    );
    let output = inside(agent.path(), &script, &command);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("--cgroupfs"), "{text}");
}
