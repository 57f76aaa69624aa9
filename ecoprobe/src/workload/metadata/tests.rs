use super::*;

const ID: &str = "3fa0d7c1e6b24a598c0f1d2e3b4a5968776554433221100ffeeddccbbaa99887";
const UID: &str = "0b5c3a1e-7d42-4f6b-9a80-c1d2e3f40516";

/// In the expected labels ID and UID stand for the constants.
#[track_caller]
fn check(path: &str, kind: WorkloadKind, labels: &[(&str, &str)]) {
    let path = path.replace("UID_", &UID.replace('-', "_")).replace("UID", UID).replace("ID", ID);
    let expected: BTreeMap<_, _> = labels
        .iter()
        .map(|(key, value)| {
            let value = match *value {
                "ID" => ID,
                "UID" => UID,
                value => value,
            };
            ((*key).to_owned(), value.to_owned())
        })
        .collect();
    assert_eq!(describe(&path), Metadata { kind, labels: expected }, "{path}");
}

#[test]
fn docker_and_podman() {
    use WorkloadKind::*;
    check("/system.slice/docker-ID.scope", Container, &[("container", "ID")]);
    check("/docker/ID", Container, &[("container", "ID")]);
    check("/machine.slice/libpod-ID.scope", Container, &[("container", "ID")]);
    check("/libpod_parent/libpod-ID", Container, &[("container", "ID")]);
    check(
        "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
        Container,
        &[("container", "ID"), ("uid", "1000")],
    );
    // Pods of podman, which are no containers, with both drivers.
    check("/machine.slice/machine-libpod_pod_ID.slice", Pod, &[("pod_uid", "ID")]);
    check("/libpod_parent/ID", Pod, &[("pod_uid", "ID")]);
    for path in [
        "/machine.slice/machine-libpod_pod_ID.slice/libpod-ID.scope",
        "/user.slice/user-libpod_pod_ID.slice/libpod-ID.scope",
        "/libpod_parent/ID/libpod-ID",
    ] {
        check(path, Container, &[("container", "ID"), ("pod_uid", "ID")]);
    }
    check("/libpod_parent/conmon", Cgroup, &[]);
    // Inside of a container: a cgroup of its own, that says where it is.
    check("/machine.slice/libpod-ID.scope/container", Cgroup, &[("container", "ID")]);
    check(
        "/docker/ID/system.slice/nginx.service",
        Systemd,
        &[("container", "ID"), ("unit", "nginx.service")],
    );
    check(
        "/machine.slice/libpod-conmon-ID.scope",
        Systemd,
        &[("unit", &format!("libpod-conmon-{ID}.scope"))],
    );
}

#[test]
fn kubernetes() {
    use WorkloadKind::*;
    let pod = [("pod_uid", "UID")];
    let container = [("container", "ID"), ("pod_uid", "UID")];
    for qos in ["kubepods-burstable-", "kubepods-besteffort-", "kubepods-"] {
        let slice = format!("/kubepods.slice/{qos}podUID_.slice");
        check(&slice, Pod, &pod);
        for runtime in ["cri-containerd", "crio", "docker"] {
            check(&format!("{slice}/{runtime}-ID.scope"), Container, &container);
        }
    }
    for qos in ["/burstable", "/besteffort", ""] {
        let group = format!("/kubepods{qos}/podUID");
        check(&group, Pod, &pod);
        check(&format!("{group}/ID"), Container, &container);
        check(&format!("{group}/crio-ID"), Container, &container);
    }
    // kind, which puts the kubelet into a slice of its own, in a container.
    check(
        "/docker/ID/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podUID_.slice",
        Pod,
        &[("container", "ID"), ("pod_uid", "UID")],
    );
    check(
        "/system.slice/kubepods-burstable-podUID_.slice:cri-containerd:ID",
        Container,
        &container,
    );
    // A static pod, whose uid is a hash.
    let hash = &ID[..32];
    check(&format!("/kubepods/burstable/pod{hash}"), Pod, &[("pod_uid", hash)]);
    check("/kubepods.slice", Systemd, &[("unit", "kubepods.slice")]);
    check("/kubepods/burstable", Cgroup, &[]);
    check("/pods/podUID", Cgroup, &[]);
}

#[test]
fn slurm_jobs() {
    use WorkloadKind::*;
    check("/slurm/uid_1000/job_123", Slurm, &[("job", "123"), ("uid", "1000")]);
    check("/slurm_n1/uid_0/job_7/step_0", Slurm, &[("job", "7"), ("step", "0"), ("uid", "0")]);
    check("/system.slice/slurmstepd.scope/job_123", Slurm, &[("job", "123")]);
    check(
        "/system.slice/n1_slurmstepd.scope/job_123/step_batch/user/task_0",
        Cgroup,
        &[("job", "123"), ("step", "batch")],
    );
    check("/slurm/uid_1000", Cgroup, &[("uid", "1000")]);
    check("/batch/job_123", Cgroup, &[]);
    check("/slurm/uid_x/job_", Cgroup, &[]);
}

#[test]
fn slurm_jobs_without_a_number() {
    use WorkloadKind::*;
    let job = ("job", "s5K1KKYAYG5D00");
    for scope in ["slurmstepd.scope", "n1_slurmstepd.scope"] {
        let path = format!("/system.slice/{scope}/s5K1KKYAYG5D00");
        check(&path, Slurm, &[job]);
        check(&format!("{path}/step_0"), Slurm, &[job, ("step", "0")]);
        check(&format!("{path}/step_0/user/task_0"), Cgroup, &[job, ("step", "0")]);
        let unit = [("unit", scope)];
        for own in ["system", "slurmd", "s5K1", "t5K1KKYAYG5D00", "s5K1KKYAYG5D00x"] {
            check(&format!("/system.slice/{scope}/{own}"), Cgroup, &unit);
        }
    }
    let v1 = "/slurm_n1/uid_1000/s5K1KKYAYG5D00/step_extern";
    check(v1, Slurm, &[job, ("step", "extern"), ("uid", "1000")]);
    // Nowhere else.
    check("/s5K1KKYAYG5D00", Cgroup, &[]);
    let deeper = "/system.slice/slurmstepd.scope/job_1/step_0/user/s5K1KKYAYG5D00";
    check(deeper, Cgroup, &[("job", "1"), ("step", "0")]);
}

#[test]
fn what_goes_by_names() {
    use WorkloadKind::*;
    let db = [("container", "db")];
    for path in ["/lxc.payload.db", "/lxc/db", "/lxc.payload/db"] {
        check(path, Container, &db);
        check(&format!("{path}/init.scope"), Systemd, &[db[0], ("unit", "init.scope")]);
    }
    check("/lxc.monitor.db", Cgroup, &[]);
    check("/lxc.monitor/db", Cgroup, &[]);
    check("/lxc.payload.", Cgroup, &[]);
    check("/lxc", Cgroup, &[]);

    let unit = "machine-qemu\\x2d1\\x2dweb\\x2dserver.scope";
    let labels = [("machine", "web-server"), ("unit", unit)];
    check(&format!("/machine.slice/{unit}"), Systemd, &labels);
    check(&format!("/machine.slice/{unit}/libvirt/emulator"), Cgroup, &labels);
    check("/machine/qemu-12-web.libvirt-qemu", Cgroup, &[("machine", "web")]);
    let nspawn = [("machine", "bookworm"), ("unit", "machine-bookworm.scope")];
    check("/machine.slice/machine-bookworm.scope", Systemd, &nspawn);
    check("/machine.slice/machine-.scope", Systemd, &[("unit", "machine-.scope")]);

    let task = "0123456789abcdef0123456789abcdef";
    let container = format!("{task}-123456789");
    check(&format!("/ecs/{task}"), Cgroup, &[("task", task)]);
    let labels = [("container", &*container), ("task", task)];
    check(&format!("/ecs/{task}/{container}"), Container, &labels);
    check(&format!("/ecs/{container}"), Container, &labels[..1]);
    check(&format!("/{task}"), Cgroup, &[]);
    check(&format!("/{task}-x"), Cgroup, &[]);
}

#[test]
fn escapes_of_systemd_are_undone() {
    assert_eq!(unescape("foo\\x2dbar"), "foo-bar");
    assert_eq!(unescape("caf\\xc3\\xa9"), "café");
    assert_eq!(unescape("caf\\x5cxc3\\x5cxa9"), "café", "as systemd writes it, and we show it");
    for plain in ["foo", "a\\", "\\x2", "\\xzz"] {
        assert_eq!(unescape(plain), plain);
    }
    assert_eq!(machine_name("qemu-x-web"), "qemu-x-web");
    assert_eq!(machine_name("lxc-3-a-b"), "a-b");
}

#[test]
fn systemd_units() {
    use WorkloadKind::*;
    check("/system.slice/nginx.service", Systemd, &[("unit", "nginx.service")]);
    check("/system.slice", Systemd, &[("unit", "system.slice")]);
    check("/system.slice/nginx.service/worker", Cgroup, &[("unit", "nginx.service")]);
    check(
        "/user.slice/user-1000.slice/session-3.scope",
        Systemd,
        &[("uid", "1000"), ("unit", "session-3.scope")],
    );
    check(
        "/user.slice/user-1000.slice/user@1000.service/app.slice/app-foo@1.service",
        Systemd,
        &[("uid", "1000"), ("unit", "app-foo@1.service")],
    );
    check("/a.b", Cgroup, &[]);
    check("/.service", Cgroup, &[]);
}

#[test]
fn what_says_nothing_is_a_cgroup() {
    for path in ["", "/", "/job123", "//a//b/", "/docker", "/-", "/:", "/pod", "/\u{fffd}"] {
        check(path, WorkloadKind::Cgroup, &[]);
    }
}
