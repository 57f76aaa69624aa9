//! Names to cgroups: on trees made for it, and on this machine's own hierarchies.

#![allow(clippy::unwrap_used)]

mod sim;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ecoprobe::base::error::Error;
use ecoprobe::door::{Change, Made, Roots, Selection, Version, resolve};
use ecoprobe::event::{Workload, WorkloadKind};

const ID: &str = "3fa0d7c1e6b24a598c0f1d2e3b4a5968776554433221100ffeeddccbbaa99887";
const UID: &str = "0b5c3a1e-7d42-4f6b-9a80-c1d2e3f40516";

/// Directories that stand for cgroups, and the kubelet's log directories.
struct Fixture {
    top: tempfile::TempDir,
}

impl Fixture {
    /// A v2 host.
    fn v2(cgroups: &[&str]) -> Self {
        let fixture = Self { top: tempfile::tempdir().unwrap() };
        fs::create_dir(fixture.path("cgroup")).unwrap();
        fs::write(fixture.path("cgroup/cgroup.controllers"), "").unwrap();
        fixture.add(cgroups);
        fixture
    }

    /// A hybrid host: paths begin with `unified`, `cpu,cpuacct` or `memory`.
    fn hybrid(cgroups: &[&str]) -> Self {
        let fixture = Self { top: tempfile::tempdir().unwrap() };
        fixture.add(&["unified", "cpu,cpuacct", "memory"]);
        fs::write(fixture.path("cgroup/unified/cgroup.controllers"), "").unwrap();
        fixture.add(cgroups);
        fixture
    }

    fn path(&self, path: &str) -> PathBuf {
        self.top.path().join(path)
    }

    fn add(&self, cgroups: &[&str]) {
        for cgroup in cgroups {
            let path = self.path("cgroup").join(cgroup);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("cgroup.procs"), "").unwrap();
        }
    }

    fn populate(&self, cgroup: &str) {
        fs::write(self.path("cgroup").join(cgroup).join("cgroup.procs"), "1\n").unwrap();
    }

    fn resolve(&self, names: &[&str]) -> Result<Selection, Error> {
        let roots = Roots {
            procfs: "/proc".into(),
            cgroupfs: Some(self.path("cgroup")),
            hostfs: Some(self.path("host")),
            ..Roots::default()
        };
        resolve(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), &roots)
    }

    /// What names mean.
    #[track_caller]
    fn workloads(&self, names: &[&str]) -> Vec<Workload> {
        workloads(&mut self.resolve(names).unwrap())
    }

    /// The cgroup that one name means.
    #[track_caller]
    fn one(&self, name: &str) -> String {
        let mut selection = self.resolve(&[name]).unwrap();
        let mut workloads = workloads(&mut selection);
        assert_eq!(workloads.len(), 1, "{name}");
        let cgroup = workloads.remove(0).cgroup;
        // A directory is never the root of a real hierarchy.
        let warnings = usize::from(cgroup == "/");
        assert_eq!(selection.warnings.len(), warnings, "{:?}", selection.warnings);
        cgroup
    }

    #[track_caller]
    fn refused(&self, names: &[&str]) -> String {
        match self.resolve(names) {
            Err(Error::NoWorkload(message)) => message,
            other => panic!("{other:?}"),
        }
    }
}

fn workloads(selection: &mut Selection) -> Vec<Workload> {
    began(selection.start())
}

/// Made, and the kernel does not say where.
fn made(ids: &[u64]) -> Vec<Made> {
    ids.iter().map(|id| Made { id: *id, path: None }).collect()
}

#[track_caller]
fn began(news: Vec<Change>) -> Vec<Workload> {
    let began = news.into_iter().map(|change| match change {
        Change::Began(workload) => workload,
        other => panic!("{other:?}"),
    });
    began.collect()
}

fn cgroups(workloads: &[Workload]) -> Vec<&str> {
    workloads.iter().map(|workload| &*workload.cgroup).collect()
}

#[test]
fn a_path_is_taken_from_the_mount_or_from_the_root() {
    let host = Fixture::v2(&["job123", "batch/job7", "batch/job8/step"]);
    for name in [
        "batch/job7",
        "/batch/job7",
        "//batch/./job7/",
        "job7",
        host.path("cgroup/batch/job7").to_str().unwrap(),
        host.path("cgroup/batch/job7/").to_str().unwrap(),
        host.path("cgroup/../cgroup/batch/job7").to_str().unwrap(),
    ] {
        assert_eq!(host.one(name), "/batch/job7", "{name}");
    }
    assert_eq!(host.one("/"), "/");
    assert_eq!(host.one(host.path("cgroup").to_str().unwrap()), "/");
    assert_eq!(host.one("step"), "/batch/job8/step");

    let selection = host.resolve(&["job7"]).unwrap();
    assert_eq!(host.workloads(&["job7"])[0].name, "job7");
    assert_eq!(selection.hierarchy.version, Version::V2);
    assert_eq!(selection.hierarchy.kind(), "v2");
}

#[test]
fn readings_are_tried_in_the_order_of_the_contract() {
    // A path from the root comes before a last component, and that before a unit.
    let host = Fixture::v2(&["a", "b/a", "nginx.service", "system.slice/web.service", "c/web"]);
    assert_eq!(host.one("a"), "/a");
    assert_eq!(host.one("nginx"), "/nginx.service");
    assert_eq!(host.one("web"), "/c/web");
    assert_eq!(host.one("web.service"), "/system.slice/web.service");

    // A cgroup's id comes before a job's; the user is told.
    let id = host.workloads(&["c/web"])[0].cgroup_id.to_string();
    assert_eq!(host.one(&id), "/c/web");
    host.add(&[&format!("slurm/uid_0/job_{id}")]);
    let selection = host.resolve(&[&id]).unwrap();
    assert_eq!(cgroups(&host.workloads(&[&id])), ["/c/web"]);
    assert!(selection.warnings[0].contains(&format!("/slurm/uid_0/job_{id}")));
}

#[test]
fn workloads_are_found_by_the_names_that_people_use() {
    let slice = format!("kubepods.slice/kubepods-pod{}.slice", UID.replace('-', "_"));
    let container = format!("{slice}/cri-containerd-{ID}.scope");
    let host = Fixture::v2(&[
        &container,
        &format!("{container}/init"),
        &format!("system.slice/crio-conmon-{ID}.scope"),
        "system.slice/slurmstepd.scope/job_4711/step_0",
        "system.slice/nginx.service",
    ]);
    fs::create_dir_all(host.path("host/var/log/pods").join(format!("ml_train-0_{UID}"))).unwrap();
    fs::create_dir_all(
        host.path("host/var/log/pods/ml_train-0_00000000-0000-0000-0000-000000000000"),
    )
    .unwrap();

    for name in [ID, &ID[..12]] {
        assert_eq!(host.one(name), format!("/{container}"));
    }
    assert_eq!(host.one("ml/train-0"), format!("/{slice}"));
    assert_eq!(host.one("4711"), "/system.slice/slurmstepd.scope/job_4711");
    assert_eq!(host.one("nginx"), "/system.slice/nginx.service");
    host.refused(&[&ID[..11]]);

    let workloads = host.workloads(&["ml/train-0", "4711"]);
    let [pod, job] = &workloads[..] else { panic!() };
    assert_eq!((pod.kind, job.kind), (WorkloadKind::Pod, WorkloadKind::Slurm));
    assert_eq!((&*pod.labels["namespace"], &*pod.labels["pod"]), ("ml", "train-0"));
    assert_eq!(job.labels["job"], "4711");
}

#[test]
fn a_glob_selects_every_match_now_and_later() {
    let host = Fixture::v2(&["batch/job1", "batch/job2/step", "other/job3"]);
    let mut selection = host.resolve(&["batch/*"]).unwrap();
    let first = workloads(&mut selection);
    assert_eq!(cgroups(&first), ["/batch/job1", "/batch/job2"]);
    assert_eq!((&*first[0].name, first[0].id.0, first[1].id.0), ("batch/job1", 1, 2));
    assert!(selection.has_globs() && selection.update(&[], &[], true).is_empty());

    host.add(&["batch/job4", "batch/job4/step", "other/job5"]);
    let new = began(selection.update(&[], &[], true));
    assert_eq!(cgroups(&new), ["/batch/job4"]);
    assert!(selection.update(&[], &[], true).is_empty());

    let under_mount = host.path("cgroup/batch/*");
    assert_eq!(host.workloads(&[under_mount.to_str().unwrap()]).len(), 3);
    assert_eq!(cgroups(&host.workloads(&["job[35]"])), ["/other/job3", "/other/job5"]);
    assert!(host.refused(&["batsh/job?"]).contains("/batch/job1"));
    assert!(matches!(host.resolve(&["job["]), Err(Error::Usage(_))));
    assert!(!host.resolve(&["batch"]).unwrap().has_globs());

    // A cgroup whose name looks like a pattern is that cgroup.
    host.add(&["odd[1]"]);
    assert_eq!(host.one("odd[1]"), "/odd[1]");
}

#[test]
fn what_is_called_exactly_so_comes_before_a_pattern() {
    let host = Fixture::v2(&[
        "pbs/77[2].srv",
        "pbs/772.srv",
        "a/b[1]/c",
        "a/b1/c",
        "x/what?",
        "x/whats",
        "y/all*",
        "y/allofit",
        "odd[",
        "s/foo\\x2dbar.service",
        "*",
    ]);
    for (name, cgroup) in [
        ("77[2].srv", "/pbs/77[2].srv"),
        ("/pbs/77[2].srv", "/pbs/77[2].srv"),
        ("pbs/77[2].srv", "/pbs/77[2].srv"),
        ("a/b[1]/c", "/a/b[1]/c"),
        ("/a/b[1]/c/", "/a/b[1]/c"),
        ("what?", "/x/what?"),
        ("all*", "/y/all*"),
        ("*", "/*"),
        ("/*", "/*"),
        // No pattern at all.
        ("odd[", "/odd["),
        ("s/foo\\x2dbar.service", "/s/foo\\x2dbar.service"),
        ("foo\\x2dbar.service", "/s/foo\\x2dbar.service"),
    ] {
        assert_eq!(host.one(name), cgroup, "{name}");
        let mut selection = host.resolve(&[name]).unwrap();
        assert!(!selection.has_globs(), "{name}");
        assert_eq!(workloads(&mut selection)[0].name, name);
    }
    for path in ["cgroup/pbs/77[2].srv", "cgroup/a/b[1]/c", "cgroup/*"] {
        let cgroup = path.strip_prefix("cgroup").unwrap();
        assert_eq!(host.one(host.path(path).to_str().unwrap()), cgroup);
    }

    // What is only a pattern stays one, beside its likes as well.
    let match_of = |name: &str| {
        let mut selection = host.resolve(&[name]).unwrap();
        assert!(selection.has_globs(), "{name}");
        workloads(&mut selection).into_iter().map(|it| it.cgroup).collect::<Vec<_>>()
    };
    assert_eq!(match_of("77[23].srv"), ["/pbs/772.srv"]);
    assert_eq!(match_of("77[[]2].srv"), ["/pbs/77[2].srv"]);
    assert_eq!(match_of("a/b[12]/c"), ["/a/b1/c"]);
    assert_eq!(match_of("what[?s]"), ["/x/what?", "/x/whats"]);
    assert_eq!(match_of("pbs/*"), ["/pbs/772.srv", "/pbs/77[2].srv"]);
    let under_mount = host.path("cgroup/a/b[!2]/c");
    assert_eq!(match_of(under_mount.to_str().unwrap()), ["/a/b1/c"]);
    // And when the literal is gone, too.
    fs::remove_dir_all(host.path("cgroup/pbs/77[2].srv")).unwrap();
    assert_eq!(match_of("77[2].srv"), ["/pbs/772.srv"]);
    assert!(matches!(host.resolve(&["even["]), Err(Error::Usage(_))));
}

#[test]
fn a_literal_in_one_hierarchy_comes_before_a_pattern_in_the_other() {
    let host = Fixture::hybrid(&["unified/j1", "cpu,cpuacct/q/j[1]"]);
    assert_eq!(cgroups(&host.workloads(&["j[1]"])), ["/q/j[1]"]);
    assert_eq!(cgroups(&host.workloads(&["j[12]"])), ["/j1"]);
}

#[test]
fn the_outermost_of_one_inside_the_other_is_meant() {
    let inner = format!("docker/{ID}/kubepods/docker/{ID}");
    let host = Fixture::v2(&[&inner]);
    for name in [ID, &ID[..12], &format!("docker://{ID}"), &format!("docker://{}", &ID[..13])] {
        assert_eq!(host.one(name), format!("/docker/{ID}"), "{name}");
    }
    // Another that lies beside leaves a doubt.
    host.add(&[&format!("podman/libpod-{ID}.scope")]);
    assert!(host.refused(&[&ID[..12]]).contains("any of 3 cgroups"));
    // Also one that begins alike.
    let host = Fixture::v2(&["x/a/x/a", "x/ab/a"]);
    assert!(host.refused(&["a"]).contains("any of 3"));
    host.refused(&[&format!("docker://{}", &ID[..11])]);
}

#[test]
fn workloads_of_every_runtime_are_found() {
    const TASK: &str = "0123456789abcdef0123456789abcdef";
    let id = |digit: &str| format!("{}{}", digit, &ID[1..]);
    let (docker, crio, podman, pod) = (id("1"), id("2"), id("3"), id("4"));
    let (in_pod, containerd) = (id("5"), id("6"));
    let unit = |name: &str| format!("machine.slice/{name}");
    let host = Fixture::v2(&[
        &format!("system.slice/docker-{docker}.scope"),
        &format!("kubepods.slice/crio-{crio}.scope"),
        &format!("kubepods.slice/crio-conmon-{crio}.scope"),
        &unit(&format!("libpod-{podman}.scope/container")),
        &unit(&format!("machine-libpod_pod_{pod}.slice/libpod-{in_pod}.scope")),
        &format!("k8s.io/{containerd}"),
        &unit("machine-qemu\\x2d1\\x2dweb\\x2dserver.scope/libvirt"),
        &unit("machine-qemu\\x2d2\\x2dapi.scope"),
        "lxc.payload.db/init.scope",
        "lxc.monitor.db",
        &format!("ecs/{TASK}/{TASK}-42"),
        "system.slice/foo\\x2dbar.service",
        "user.slice/user-1000.slice/user@1000.service/app.slice/app-note\\x2dbook@1.service",
        "system.slice/slurmstepd.scope/s5K1KKYAYG5D00/step_0",
        "system.slice/n1_slurmstepd.scope/job_7/step_0",
        "slurm_n2/uid_1000/job_8/step_batch",
    ]);
    let (docker_short, crio_url) = (&docker[..12], format!("cri-o://{crio}"));
    let containerd_url = format!("containerd://{containerd}");
    for (name, cgroup) in [
        (docker_short, format!("/system.slice/docker-{docker}.scope")),
        (&crio_url, format!("/kubepods.slice/crio-{crio}.scope")),
        (&containerd_url, format!("/k8s.io/{containerd}")),
        (&podman, format!("/machine.slice/libpod-{podman}.scope")),
        (&pod[..12], format!("/machine.slice/machine-libpod_pod_{pod}.slice")),
        ("web-server", "/machine.slice/machine-qemu\\x2d1\\x2dweb\\x2dserver.scope".into()),
        ("qemu-2-api", "/machine.slice/machine-qemu\\x2d2\\x2dapi.scope".into()),
        ("db", "/lxc.payload.db".into()),
        (&TASK[..12], format!("/ecs/{TASK}")),
        (&format!("{TASK}-42"), format!("/ecs/{TASK}/{TASK}-42")),
        ("foo-bar", "/system.slice/foo\\x2dbar.service".into()),
        ("foo-bar.service", "/system.slice/foo\\x2dbar.service".into()),
        ("foo\\x2dbar", "/system.slice/foo\\x2dbar.service".into()),
        ("s5K1KKYAYG5D00", "/system.slice/slurmstepd.scope/s5K1KKYAYG5D00".into()),
        ("7", "/system.slice/n1_slurmstepd.scope/job_7".into()),
        ("8", "/slurm_n2/uid_1000/job_8".into()),
    ] {
        assert_eq!(host.one(name), cgroup, "{name}");
    }
    assert!(host.one("app-note-book@1").ends_with("app-note\\x2dbook@1.service"));
    // By a part of the name.
    for (part, whole) in [
        ("server", "x2dserver.scope"),
        ("payload", "/lxc.payload.db"),
        ("n1_slurmstepd", "n1_slurmstepd.scope"),
        (&docker[..11], &*docker),
    ] {
        assert!(host.refused(&[part]).contains(whole), "{part}: {}", host.refused(&[part]));
    }
    assert!(host.refused(&["containerd://3fa0"]).contains("the closest"));
}

#[test]
fn names_that_are_no_text_are_told_apart_and_found() {
    use std::os::unix::ffi::OsStrExt;
    let host = Fixture::v2(&["plain\\xff"]);
    let name = |bytes| Path::new(std::ffi::OsStr::from_bytes(bytes)).to_owned();
    for bytes in [&b"a\xfe"[..], b"a\xff"] {
        fs::create_dir(host.path("cgroup").join(name(bytes)).join("")).unwrap();
        fs::create_dir(host.path("cgroup").join(name(bytes)).join("in")).unwrap();
    }
    let workloads = host.workloads(&["a*"]);
    assert_eq!(cgroups(&workloads), ["/a\\xfe", "/a\\xff"]);
    assert_eq!((&*workloads[0].name, &*workloads[1].name), ("a\\xfe", "a\\xff"));
    // As they are shown, they can be asked for.
    assert_eq!(cgroups(&host.workloads(&["a\\xff/in", "a\\xfe"])), ["/a\\xff/in", "/a\\xfe"]);
    assert_eq!(cgroups(&host.workloads(&["a?"])), ["/a\\xfe", "/a\\xff"]);
    let path = host.path("cgroup/a\\xff/in");
    assert_eq!(host.one(path.to_str().unwrap()), "/a\\xff/in");
    // What only looks like it is shown so that it can be told, and is found either way.
    assert_eq!(host.one("plain\\x5cxff"), "/plain\\x5cxff");
    assert_eq!(host.one("plain\\xff"), "/plain\\x5cxff");
    let message = host.refused(&["in"]);
    assert!(message.contains("/a\\xfe/in, /a\\xff/in"), "{message}");
}

#[test]
fn no_match_names_the_closest_and_several_are_listed() {
    let host = Fixture::v2(&["job123", "batch/job124", "system.slice/nginx.service", "x/a", "y/a"]);
    assert!(host.refused(&["jbo123"]).contains("/job123"));
    assert!(host.refused(&["ngnix"]).contains("/system.slice/nginx.service"));
    assert!(host.refused(&["qqqqqqqq"]).contains("systemd-cgls"));
    let missing = host.path("cgroup/job12");
    assert!(host.refused(&[missing.to_str().unwrap()]).contains("/job123"));
    // A path does not climb out of the mount.
    host.refused(&["../pods"]);
    host.refused(&["/job123/.."]);
    // Where the shell is says nothing about cgroups.
    host.refused(&["."]);
    host.refused(&["./job123"]);
    // A file is not a cgroup.
    host.refused(&["job123/cgroup.procs"]);

    let message = host.refused(&["a"]);
    assert!(message.contains("/x/a") && message.contains("/y/a"), "{message}");
    // One name that is missing is enough.
    assert!(host.refused(&["job123", "nope"]).contains("`nope`"));
    assert!(matches!(host.resolve(&[""]), Err(Error::Usage(_))));
    assert!(matches!(host.resolve(&[]), Err(Error::Usage(_))));
}

#[test]
fn one_cgroup_is_one_workload_and_nesting_is_said() {
    let host = Fixture::v2(&["batch/job1", "batch/job2"]);
    let mut selection = host.resolve(&["job1", "batch/job1", "batch/*", "batch"]).unwrap();
    let workloads = workloads(&mut selection);
    let names: Vec<_> = workloads.iter().map(|workload| &*workload.name).collect();
    assert_eq!(names, ["job1", "batch/job2", "batch"]);
    let [same, nested] = &selection.warnings[..] else { panic!("{:?}", selection.warnings) };
    assert!(same.contains("`job1` and `batch/job1`"), "{same}");
    assert!(nested.contains("`batch` is reported without"), "{nested}");
    assert!(nested.contains("`job1`, `batch/job2`"), "{nested}");
}

#[test]
fn a_hybrid_host_is_followed_where_the_tasks_are() {
    let host = Fixture::hybrid(&[
        "unified/both",
        "unified/two",
        "cpu,cpuacct/both/inner",
        "cpu,cpuacct/one",
        "memory/mem",
    ]);
    let version = |names: &[&str]| {
        let selection = host.resolve(names).unwrap();
        assert_eq!(selection.hierarchy.kind(), "hybrid");
        selection.hierarchy.version
    };
    let v1 = |controller: &str| Version::V1 { controller: controller.into() };
    assert_eq!(version(&["both"]), Version::V2);
    host.populate("cpu,cpuacct/both/inner");
    assert_eq!(version(&["both"]), v1("cpuacct"));
    host.populate("unified/both");
    assert_eq!(version(&["both"]), Version::V2);
    assert_eq!(version(&["one", "both"]), v1("cpuacct"));
    assert_eq!(version(&["/"]), Version::V2);
    // Another controller only where it is asked for.
    assert!(host.refused(&["mem"]).contains("`mem`"));
    assert_eq!(version(&[host.path("cgroup/memory/mem").to_str().unwrap()]), v1("memory"));

    let message = host.refused(&["one", "two"]);
    assert!(message.contains("cgroup v2") && message.contains("(cpuacct)"), "{message}");
    let explicit = host.path("cgroup/memory/mem");
    let message = host.refused(&["two", explicit.to_str().unwrap()]);
    assert!(message.contains("run ecoprobe once for each"), "{message}");
}

#[test]
fn ten_thousand_cgroups_are_no_trouble() {
    let host = Fixture::v2(&[]);
    let batch = host.path("cgroup/batch");
    for job in 0..100 {
        for step in 0..100 {
            fs::create_dir_all(batch.join(format!("job{job}/step{step}"))).unwrap();
        }
    }
    let start = Instant::now();
    let mut selection = host.resolve(&["batch/*/*", "job7", "step*"]).unwrap();
    assert_eq!(selection.start().len(), 10_001);
    assert_eq!(selection.warnings.len(), 1);
    assert!(selection.update(&[], &[], true).is_empty());
    host.refused(&["jobb7"]);
    // Tens of milliseconds when built for release; quadratic would take minutes.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// On this machine's own cgroups.
mod real {
    use super::*;
    use crate::sim::cgroup::TestCgroup;

    fn host() -> Roots {
        Roots {
            procfs: "/proc".into(),
            cgroupfs: None,
            hostfs: Some("/nonexistent".into()),
            ..Roots::default()
        }
    }

    fn resolve_one(name: &str) -> Workload {
        let mut workloads = workloads(&mut resolve(&[name.to_owned()], &host()).unwrap());
        assert_eq!(workloads.len(), 1);
        workloads.remove(0)
    }

    fn last(path: &Path) -> &str {
        path.file_name().unwrap().to_str().unwrap()
    }

    #[test]
    #[ignore = "needs root: it makes cgroups"]
    fn a_v2_cgroup_answers_to_all_its_names() {
        let job = TestCgroup::v2("names");
        let inner = job.child("inner");
        let name = format!("{}/inner", job.cgroup());
        for name in [
            inner.path().to_str().unwrap(),
            &name,
            name.trim_start_matches('/'),
            &inner.id().to_string(),
        ] {
            let workload = resolve_one(name);
            assert_eq!((&*workload.cgroup, workload.cgroup_id), (&*inner.cgroup(), inner.id()));
        }
        assert_eq!(resolve_one(last(job.path())).cgroup_id, job.id());
    }

    #[test]
    #[ignore = "needs root: it makes cgroups"]
    fn the_whole_machine_is_the_root_and_no_warning() {
        let mut selection = resolve(&["/".to_owned()], &host()).unwrap();
        assert_eq!(selection.warnings, [""; 0]);
        let root = workloads(&mut selection).remove(0);
        assert_eq!((&*root.cgroup, root.cgroup_id), ("/", 1));
    }

    #[test]
    #[ignore = "needs root: it makes cgroups"]
    fn cgroups_made_later_are_found_by_a_glob() {
        let job = TestCgroup::v2("glob");
        let _first = job.child("a");
        let mut selection = resolve(&[format!("{}/*", job.cgroup())], &host()).unwrap();
        assert_eq!(selection.start().len(), 1);
        let second = job.child("b");
        let ids = [1, second.id(), u64::MAX];
        let new = began(selection.update(&made(&ids), &[], false));
        assert_eq!(new.len(), 1);
        assert_eq!((&*new[0].cgroup, new[0].cgroup_id), (&*second.cgroup(), second.id()));
        assert!(selection.update(&made(&ids), &[], false).is_empty());
        assert!(selection.update(&[], &[], true).is_empty());

        // Without knowing which.
        let third = job.child("c");
        assert_eq!(selection.update(&[], &[], true).len(), 1);
        // Gone before anybody asked, or outside of the glob.
        let (gone, inner) = (job.child("d").id(), third.child("e"));
        assert!(selection.update(&made(&[gone, inner.id()]), &[], false).is_empty());
    }

    #[test]
    #[ignore = "needs root: it makes cgroups"]
    fn a_cgroup_that_is_made_again_is_the_same_workload() {
        let job = TestCgroup::v2("again");
        let name = format!("{}/s", job.cgroup());
        let mut service = Some(job.child("s"));
        let mut selection = resolve(std::slice::from_ref(&name), &host()).unwrap();
        let first = workloads(&mut selection).remove(0);
        for _ in 0..10 {
            let old = service.take().unwrap().id();
            let new = service.insert(job.child("s")).id();
            let news = selection.update(&made(&[new]), &[old], false);
            let [Change::Gone { id, cgroup_id }, Change::Moved { workload }] = &news[..] else {
                panic!("{news:?}")
            };
            assert_eq!((*id, *cgroup_id), (first.id, old));
            assert_eq!((workload.id, workload.cgroup_id), (first.id, new));
            assert_eq!((&workload.name, &workload.cgroup), (&name, &name));
        }
    }

    /// Of this process.
    fn resident_bytes() -> usize {
        let pages = fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    #[test]
    #[ignore = "needs root: it makes cgroups"]
    fn any_number_of_cgroups_under_a_glob_takes_no_more_memory() {
        const MANY: usize = 30_000;
        let job = TestCgroup::v2("churn");
        let _first = job.child("first");
        let mut selection = resolve(&[format!("{}/*", job.cgroup())], &host()).unwrap();
        selection.start();
        let mut before = 0;
        let (mut began, mut gone) = (0, 0);
        for number in 0..MANY {
            if number == MANY / 3 {
                before = resident_bytes();
            }
            let path = job.path().join(format!("job-{number}"));
            fs::create_dir(&path).unwrap();
            let id = std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
            began += selection.update(&made(&[id]), &[], false).len();
            fs::remove_dir(&path).unwrap();
            gone += selection.update(&[], &[id], false).len();
            assert_eq!(selection.count(), 1);
        }
        assert_eq!((began, gone), (MANY, MANY));
        // Other tests of this process take some meanwhile.
        let grown = resident_bytes().saturating_sub(before);
        assert!(grown < 4 << 20, "{grown} bytes");
    }

    #[test]
    #[ignore = "needs root and a cgroup v1 mount"]
    fn v1_a_renamed_cgroup_is_the_same_workload() {
        let job = TestCgroup::v1("cpuacct", "rename");
        let (named, matched) = (job.child("a"), job.child("g"));
        let ids = [named.id(), matched.id()];
        let names = [job.path().join("a"), job.path().join("g*")];
        let names = names.map(|path| path.to_str().unwrap().to_owned());
        let mut selection = resolve(&names, &host()).unwrap();
        let first = workloads(&mut selection);
        fs::rename(job.path().join("a"), job.path().join("b")).unwrap();
        fs::rename(job.path().join("g"), job.path().join("h")).unwrap();
        let news = selection.update(&[], &[], false);
        let renamed = news.iter().map(|change| match change {
            Change::Renamed(workload) => (workload.id, workload.cgroup_id, &*workload.cgroup),
            other => panic!("{other:?}"),
        });
        let [b, h] = ["b", "h"].map(|name| format!("{}/{name}", job.cgroup()));
        let expected = [(first[0].id, ids[0], &*b), (first[1].id, ids[1], &*h)];
        assert_eq!(renamed.collect::<Vec<_>>(), expected);
        assert!(selection.update(&[], &[], true).is_empty());
        // The name is the path's.
        let again = job.child("a");
        let news = selection.update(&made(&[again.id()]), &[], false);
        let [Change::Moved { workload }] = &news[..] else { panic!("{news:?}") };
        assert_eq!((workload.id, workload.cgroup_id), (first[0].id, again.id()));
    }

    #[test]
    #[ignore = "needs root and a cgroup v1 mount"]
    fn v1_a_cgroup_is_found_beside_v2_and_wins_if_it_has_the_tasks() {
        let job = TestCgroup::v1("cpuacct", "names");
        let mut selection = resolve(&[last(job.path()).to_owned()], &host()).unwrap();
        assert_eq!(selection.hierarchy.version, Version::V1 { controller: "cpuacct".into() });
        assert_eq!(workloads(&mut selection)[0].cgroup_id, job.id());

        // The same path in both hierarchies.
        let name = last(job.path());
        let _twin = job.twin_in_v2();
        let version =
            || resolve(&[name.to_owned()], &host()).map(|it| it.hierarchy.version).unwrap();
        assert_eq!(version(), Version::V2);
        let _sleeper = sleeper_in(&job);
        assert_eq!(version(), Version::V1 { controller: "cpuacct".into() });
    }

    struct Sleeper(std::process::Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn sleeper_in(cgroup: &TestCgroup) -> Sleeper {
        let sleeper =
            Sleeper(std::process::Command::new("sleep").arg("60").spawn().expect("sleep"));
        cgroup.add(sleeper.0.id());
        sleeper
    }
}
