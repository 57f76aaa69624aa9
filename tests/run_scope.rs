//! The cgroup and the child of `ecoprobe run`, on real cgroups. The command line on top of them is
//! tested with the command.

#![allow(clippy::unwrap_used)]

mod sim;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use ecoprobe::base::error::Error;
use ecoprobe::door::{
    Child, Hierarchies, Place, Roots, Scope, Signals, SpawnError, Version, clean_up_stale,
    exit_code,
};
use ecoprobe::event::WorkloadKind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::sim::cgroup::TestCgroup;
use crate::sim::load::{Load, Shape};

fn host() -> Roots {
    Roots {
        procfs: "/proc".into(),
        cgroupfs: None,
        hostfs: Some("/nonexistent".into()),
        ..Roots::default()
    }
}

/// Nothing here takes long: what does not end is a failure.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("it ends soon")
}

async fn code_of(child: &mut Child) -> u8 {
    exit_code(soon(child.wait()).await.unwrap())
}

/// A host whose cgroups are below `top`: scopes of tests that run side by side in one process have
/// the same name.
fn host_below(top: &TestCgroup) -> Roots {
    Roots { cgroupfs: Some(top.path().into()), ..host() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn shell(script: &str) -> Vec<OsString> {
    ["sh", "-c", script].map(OsString::from).to_vec()
}

#[test]
#[ignore = "needs root: it makes cgroups"]
fn the_scope_is_a_child_of_our_own_cgroup_and_goes_with_us() {
    let scope = Scope::create(&host()).unwrap();
    let path = scope.directory().to_owned();
    assert_eq!(scope.hierarchy().version, Version::V2);
    let workload = scope.workload("sleep");
    assert_eq!((&*workload.name, workload.kind), ("sleep", WorkloadKind::Run));
    let Place::Below(own) = scope.hierarchy().own_place() else { panic!() };
    let own = scope.hierarchy().cgroup(&own);
    let expected = format!("{}/ecoprobe-run-{}", own.trim_end_matches('/'), std::process::id());
    assert_eq!(workload.cgroup, expected);
    // What the command may make inside goes too.
    fs::create_dir_all(path.join("inner/most")).unwrap();
    drop(scope);
    assert!(!path.exists());
}

#[test]
#[ignore = "needs root: it makes cgroups"]
fn the_command_is_in_its_cgroup_before_it_executes() {
    let top = TestCgroup::v2("exec");
    let scope = Scope::create(&host_below(&top)).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let script = format!("cat /proc/self/cgroup > {}; exit 7", file.path().display());
    let status = runtime().block_on(async {
        Child::spawn(&shell(&script), &scope, Stdio::inherit()).unwrap().wait().await.unwrap()
    });
    assert_eq!(exit_code(status), 7);
    let seen = fs::read_to_string(file.path()).unwrap();
    let name = scope.directory().file_name().unwrap().to_str().unwrap().to_owned();
    let expected = format!("0::{}/{name}", top.cgroup());
    assert!(seen.lines().any(|line| line == expected), "{seen}");
    assert_eq!(scope.close(), None);
}

#[test]
#[ignore = "needs root: it makes cgroups"]
fn what_does_not_start_is_told_as_a_shell_would() {
    let top = TestCgroup::v2("bad");
    let scope = Scope::create(&host_below(&top)).unwrap();
    let files = tempfile::tempdir().unwrap();
    let plain = files.path().join("plain");
    fs::write(&plain, "").unwrap();
    let script = files.path().join("script");
    fs::write(&script, "#!/nonexistent/interpreter\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();

    let runtime = runtime();
    let _context = runtime.enter();
    let refused = |command: &Path| {
        let error = Child::spawn(&[command.into()], &scope, Stdio::inherit()).unwrap_err();
        (error.exit_code(), error.to_string())
    };
    let (code, message) = refused(Path::new("no-such-command"));
    assert!(code == 127 && message.contains("`no-such-command` was not found"), "{message}");
    for path in [&plain, files.path(), &script] {
        let (code, message) = refused(path);
        assert!(code == 126 && message.contains("cannot be executed"), "{message}");
    }
    assert!(matches!(Child::spawn(&[], &scope, Stdio::inherit()), Err(SpawnError::Missing)));

    // A cgroup that cannot be entered is not taken for a command that cannot be executed: below a
    // threaded cgroup no process may move in.
    fs::write(top.path().join("cgroup.type"), "threaded").unwrap();
    let error = Child::spawn(&shell("true"), &scope, Stdio::inherit()).unwrap_err();
    assert!(matches!(error, SpawnError::Cgroup { .. }), "{error}");
    assert_eq!(error.exit_code(), 4, "{error}");
    drop(scope);
    assert!(matches!(Scope::create(&host_below(&top)), Err(Error::Cannot(_))));
    // Nor one that is gone.
    let top = TestCgroup::v2("gone");
    let scope = Scope::create(&host_below(&top)).unwrap();
    fs::remove_dir(scope.directory()).unwrap();
    let error = Child::spawn(&shell("true"), &scope, Stdio::inherit()).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
}

#[test]
#[ignore = "needs root: it makes cgroups"]
fn signals_reach_the_command() {
    let top = TestCgroup::v2("signals");
    let scope = Scope::create(&host_below(&top)).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let ready = file.path().display();
    runtime().block_on(async {
        let mut signals = Signals::listen().unwrap();
        let script = format!(
            "trap 'exit 9' USR1; echo > {ready}; for i in $(seq 1000); do sleep 0.01; done"
        );
        let mut child = Child::spawn(&shell(&script), &scope, Stdio::inherit()).unwrap();
        while fs::read(file.path()).unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        kill(Pid::this(), Signal::SIGUSR1).unwrap();
        let signal = soon(signals.next()).await;
        assert_eq!(signal, Signal::SIGUSR1);
        child.forward(signal).unwrap();
        assert_eq!(code_of(&mut child).await, 9);
        // After its end there is nobody to signal.
        assert_eq!(child.pid(), None);
        child.forward(Signal::SIGTERM).unwrap();

        let mut child = Child::spawn(&shell("sleep 60"), &scope, Stdio::inherit()).unwrap();
        child.forward(Signal::SIGTERM).unwrap();
        assert_eq!(code_of(&mut child).await, 128 + 15);
    });
}

#[test]
#[ignore = "needs root: it makes cgroups"]
fn a_cgroup_that_is_still_in_use_stays_and_is_cleaned_up_later() {
    let top = TestCgroup::v2("outlive");
    let scope = Scope::create(&host_below(&top)).unwrap();
    let path = scope.directory().to_owned();
    let load = Load::start(Shape::QUARTER, &path, None);
    let message = scope.close().unwrap();
    assert!(message.contains("still run in it"), "{message}");
    assert!(path.exists());
    drop(load);

    // Our pid lives, so it is not stale; under a dead one's name it is.
    let hierarchies = Hierarchies::find(&host_below(&top)).unwrap();
    assert_eq!(clean_up_stale(&hierarchies), 0);
    let dead = top.child("ecoprobe-run-2000000001");
    fs::create_dir(dead.path().join("inner")).unwrap();
    let load = Load::start(Shape::QUARTER, &dead.path().join("inner"), None);
    assert_eq!(clean_up_stale(&hierarchies), 0);
    drop(load);
    let start = Instant::now();
    while clean_up_stale(&hierarchies) == 0 {
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    assert!(!dead.path().exists());
}

#[test]
#[ignore = "needs root: it makes cgroups"]
fn one_left_by_an_earlier_owner_of_our_pid_is_replaced() {
    let top = TestCgroup::v2("again");
    let left = top.child(&format!("ecoprobe-run-{}", std::process::id()));
    let old = left.id();
    let scope = Scope::create(&host_below(&top)).unwrap();
    assert_ne!(scope.workload("x").cgroup_id, old);
    // But not one that lives.
    assert!(Scope::create(&host_below(&top)).is_err());
}

#[test]
#[ignore = "needs root: it makes cgroups"]
fn the_kernel_accounts_for_the_loads_of_the_tests() {
    let share = |shape: Shape| {
        let cgroup = TestCgroup::v2("load");
        let _load = Load::start(shape, cgroup.path(), Some(0));
        let start = Instant::now();
        let before = cgroup.usage_ns();
        std::thread::sleep(Duration::from_millis(400));
        let used = cgroup.usage_ns() - before;
        used as f64 / start.elapsed().as_nanos() as f64
    };
    // Bounds for a machine that is busy with other tests on the same CPU.
    let hog = share(Shape::Hog);
    assert!((0.2..1.05).contains(&hog), "{hog}");
    let quarter = share(Shape::QUARTER);
    assert!((0.05..0.35).contains(&quarter), "{quarter}");
    let forks = share(Shape::MILLISECOND_CHILDREN);
    assert!((0.1..1.05).contains(&forks), "{forks}");
}

#[test]
#[ignore = "needs root and a cgroup v1 mount"]
fn v1_holds_the_command_where_there_is_no_v2() {
    let top = TestCgroup::v1("cpuacct", "run");
    let scope = Scope::create(&host_below(&top)).unwrap();
    assert_eq!(scope.hierarchy().version, Version::V1 { controller: "cpuacct".into() });
    let code = runtime().block_on(async {
        let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; kill -9 $$";
        code_of(&mut Child::spawn(&shell(script), &scope, Stdio::inherit()).unwrap()).await
    });
    assert_eq!(code, 128 + 9);
    let usage = fs::read_to_string(scope.directory().join("cpuacct.usage")).unwrap();
    assert!(usage.trim().parse::<u64>().unwrap() > 1_000_000, "{usage}");
    assert_eq!(scope.close(), None);
    assert!(top.usage_ns() > 1_000_000);
}
