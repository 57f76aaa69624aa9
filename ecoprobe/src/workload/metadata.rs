//! What a cgroup's path says about who lives in it. Pure functions on strings.

use std::collections::BTreeMap;

use crate::event::WorkloadKind;

/// What could be told from a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// What the cgroup itself is, by its last component.
    pub kind: WorkloadKind,
    /// `container`, `pod_uid`, `job`, `step`, `uid`, `unit`: of the cgroup, or of what it lies in.
    pub labels: BTreeMap<String, String>,
}

/// What one component of a path stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identity<'a> {
    Container {
        id: &'a str,
        pod_uid: Option<String>,
    },
    Pod {
        uid: String,
    },
    Job(&'a str),
    Step(&'a str),
    /// The cgroup of all jobs of a user.
    SlurmUser(&'a str),
    Unit {
        name: &'a str,
        uid: Option<&'a str>,
    },
}

/// Kind and labels of the cgroup at `path`.
pub fn describe(path: &str) -> Metadata {
    let mut kind = WorkloadKind::Cgroup;
    let mut labels = BTreeMap::new();
    let mut label = |key: &str, value: &str| {
        labels.insert(key.to_owned(), value.to_owned());
    };
    // The unit that encloses a container, pod or job is the runtime's affair; one inside counts.
    let mut unit = None;
    for identity in identities(path) {
        kind = match &identity {
            Some(Identity::Container { .. }) => WorkloadKind::Container,
            Some(Identity::Pod { .. }) => WorkloadKind::Pod,
            Some(Identity::Job(_) | Identity::Step(_)) => WorkloadKind::Slurm,
            Some(Identity::Unit { .. }) => WorkloadKind::Systemd,
            Some(Identity::SlurmUser(_)) | None => WorkloadKind::Cgroup,
        };
        match identity {
            Some(Identity::Container { id, pod_uid }) => {
                unit = None;
                label("container", id);
                if let Some(uid) = pod_uid {
                    label("pod_uid", &uid);
                }
            }
            Some(Identity::Pod { uid }) => {
                unit = None;
                label("pod_uid", &uid);
            }
            Some(Identity::Job(id)) => {
                unit = None;
                label("job", id);
            }
            Some(Identity::Step(id)) => label("step", id),
            Some(Identity::SlurmUser(uid)) => {
                unit = None;
                label("uid", uid);
            }
            Some(Identity::Unit { name, uid }) => {
                unit = Some(name);
                if let Some(uid) = uid {
                    label("uid", uid);
                }
            }
            None => {}
        }
    }
    if let Some(unit) = unit {
        label("unit", unit);
    }
    Metadata { kind, labels }
}

/// What the cgroup at `path` itself is, by its last component.
pub(super) fn identity(path: &str) -> Option<Identity<'_>> {
    identities(path).last().flatten()
}

/// What each component of `path` stands for.
fn identities(path: &str) -> impl Iterator<Item = Option<Identity<'_>>> {
    let (mut in_kubernetes, mut in_slurm) = (false, false);
    path.split('/').filter(|component| !component.is_empty()).map(move |component| {
        let identity = container(component)
            .or_else(|| pod(component, in_kubernetes))
            .or_else(|| if in_slurm { slurm(component) } else { None })
            .or_else(|| unit(component));
        in_kubernetes |= component.contains("kubepods");
        in_slurm |= is_slurm(component);
        identity
    })
}

/// The bare id (cgroupfs drivers), `RUNTIME-ID` (podman, CRI-O), `RUNTIME-ID.scope` (systemd
/// drivers), or containerd's `SLICE:RUNTIME:ID`, which it makes of a systemd path when its own
/// driver is cgroupfs.
fn container(component: &str) -> Option<Identity<'_>> {
    let (pod_uid, name) = match component.rsplit_once(':') {
        Some((prefix, id)) => (prefix.split(':').next().and_then(pod_of_slice), id),
        None => (None, component.strip_suffix(".scope").unwrap_or(component)),
    };
    let id = match name.rsplit_once('-') {
        // The monitor of a container has a scope of its own that carries the container's id.
        Some((runtime, _)) if runtime.ends_with("conmon") => return None,
        Some((_, id)) => id,
        None => name,
    };
    is_hex(id, 64).then_some(Identity::Container { id, pod_uid })
}

fn pod(component: &str, in_kubernetes: bool) -> Option<Identity<'_>> {
    let uid = match component.strip_prefix("pod") {
        Some(uid) if in_kubernetes && is_uid(uid) => Some(uid.to_owned()),
        _ => pod_of_slice(component),
    };
    uid.map(|uid| Identity::Pod { uid })
}

/// `kubepods-burstable-pod<uid>.slice`, where the uid's dashes are underscores because a dash in
/// the name of a slice means a level of nesting.
fn pod_of_slice(component: &str) -> Option<String> {
    let (parents, uid) = component.strip_suffix(".slice")?.rsplit_once("-pod")?;
    let uid = uid.replace('_', "-");
    (parents.contains("kubepods") && is_uid(&uid)).then_some(uid)
}

/// `slurm` (v1), `slurm_NODE` (v1, several slurmd on a machine), `slurmstepd.scope` and
/// `NODE_slurmstepd.scope` (v2).
fn is_slurm(component: &str) -> bool {
    component == "slurm"
        || component.starts_with("slurm_")
        || component == "slurmstepd.scope"
        || component.ends_with("_slurmstepd.scope")
}

fn slurm(component: &str) -> Option<Identity<'_>> {
    let (key, value) = component.split_once('_')?;
    let is_number = is_number(value);
    match key {
        "job" if is_number => Some(Identity::Job(value)),
        "uid" if is_number => Some(Identity::SlurmUser(value)),
        "step" => Some(Identity::Step(value)),
        _ => None,
    }
}

fn unit(component: &str) -> Option<Identity<'_>> {
    let (stem, kind) = component.rsplit_once('.')?;
    if stem.is_empty() || !["service", "scope", "slice", "socket", "mount", "swap"].contains(&kind)
    {
        return None;
    }
    let uid = match kind {
        "slice" => stem.strip_prefix("user-"),
        "service" => stem.strip_prefix("user@"),
        _ => None,
    };
    Some(Identity::Unit { name: component, uid: uid.filter(|uid| is_number(uid)) })
}

pub(super) fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A UUID, or the 32 digits of the hash that stands for one in static pods.
fn is_uid(text: &str) -> bool {
    let groups = text.split('-').map(str::len);
    is_hex(text, 32)
        || (groups.eq([8, 4, 4, 4, 12])
            && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3fa0d7c1e6b24a598c0f1d2e3b4a5968776554433221100ffeeddccbbaa99887";
    const UID: &str = "0b5c3a1e-7d42-4f6b-9a80-c1d2e3f40516";

    /// In the expected labels ID and UID stand for the constants.
    #[track_caller]
    fn check(path: &str, kind: WorkloadKind, labels: &[(&str, &str)]) {
        let path =
            path.replace("UID_", &UID.replace('-', "_")).replace("UID", UID).replace("ID", ID);
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
}
