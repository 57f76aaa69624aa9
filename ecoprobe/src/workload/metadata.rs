//! What a cgroup's path says about who lives in it. Pure functions on strings.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::shown::{parsed, shown};
use crate::event::WorkloadKind;

/// What could be told from a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Metadata {
    /// What the cgroup itself is, by its last component.
    pub(super) kind: WorkloadKind,
    /// `container`, `pod_uid`, `task`, `machine`, `job`, `step`, `uid`, `unit`: of the cgroup, or of
    /// what it lies in.
    pub(super) labels: BTreeMap<String, String>,
}

/// What one component of a path stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Identity<'a> {
    Container {
        id: &'a str,
        pod_uid: Option<String>,
    },
    /// Of LXC and those that stand on it, which go by names.
    SystemContainer(&'a str),
    /// Of systemd-machined (a virtual machine of libvirt, for one), as it is registered and as it is
    /// called.
    Machine {
        registered: String,
        unit: Option<&'a str>,
    },
    Pod {
        uid: String,
    },
    /// Of ECS: its containers lie inside.
    Task(&'a str),
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
pub(super) fn describe(path: &str) -> Metadata {
    let mut kind = WorkloadKind::Cgroup;
    let mut labels = BTreeMap::new();
    let mut label = |key: &str, value: &str| {
        labels.insert(key.to_owned(), value.to_owned());
    };
    // The unit that encloses a container, pod or job is the runtime's affair; one inside counts.
    let mut unit = None;
    for identity in identities(path) {
        kind = match &identity {
            Some(Identity::Container { .. } | Identity::SystemContainer(_)) => {
                WorkloadKind::Container
            }
            Some(Identity::Pod { .. }) => WorkloadKind::Pod,
            Some(Identity::Job(_) | Identity::Step(_)) => WorkloadKind::Slurm,
            Some(Identity::Unit { .. } | Identity::Machine { unit: Some(_), .. }) => {
                WorkloadKind::Systemd
            }
            Some(Identity::SlurmUser(_) | Identity::Task(_) | Identity::Machine { .. }) | None => {
                WorkloadKind::Cgroup
            }
        };
        match identity {
            Some(Identity::Container { id, pod_uid }) => {
                unit = None;
                label("container", id);
                if let Some(uid) = pod_uid {
                    label("pod_uid", &uid);
                }
            }
            Some(Identity::SystemContainer(name)) => {
                unit = None;
                label("container", name);
            }
            Some(Identity::Machine { registered, unit: scope }) => {
                unit = scope;
                label("machine", machine_name(&registered));
            }
            Some(Identity::Task(id)) => {
                unit = None;
                label("task", id);
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
    let (mut in_kubernetes, mut in_slurm, mut parent) = (false, false, "");
    path.split('/').filter(|component| !component.is_empty()).map(move |component| {
        let identity = inside(parent, component)
            .or_else(|| container(component))
            .or_else(|| pod(component, in_kubernetes))
            .or_else(|| if in_slurm { slurm(parent, component) } else { None })
            .or_else(|| machine(component))
            .or_else(|| unit(component));
        in_kubernetes |= component.contains("kubepods");
        in_slurm |= is_slurm(component);
        parent = component;
        identity
    })
}

/// What is known by what it lies directly in: podman's pods (cgroupfs driver), ECS' tasks, LXC's
/// containers.
fn inside<'a>(parent: &str, component: &'a str) -> Option<Identity<'a>> {
    match parent {
        "libpod_parent" if is_hex(component, CONTAINER_ID) => {
            Some(Identity::Pod { uid: component.to_owned() })
        }
        "ecs" if is_hex(component, TASK_ID) => Some(Identity::Task(component)),
        "lxc" | "lxc.payload" => Some(Identity::SystemContainer(component)),
        _ => {
            let name = component.strip_prefix("lxc.payload.").filter(|name| !name.is_empty());
            name.map(Identity::SystemContainer)
        }
    }
}

/// Hexadecimal digits in the id of a container, and of podman's pods.
const CONTAINER_ID: usize = 64;
/// Hexadecimal digits in the id of an ECS task.
const TASK_ID: usize = 32;

/// The bare id (cgroupfs drivers), `RUNTIME-ID` (podman, CRI-O), `RUNTIME-ID.scope` (systemd
/// drivers), containerd's `SLICE:RUNTIME:ID`, which it makes of a systemd path when its own driver
/// is cgroupfs, or `TASK-NUMBER` (ECS).
fn container(component: &str) -> Option<Identity<'_>> {
    let (pod_uid, name) = match component.rsplit_once(':') {
        Some((prefix, id)) => (prefix.split(':').next().and_then(pod_of_slice), id),
        None => (None, component.strip_suffix(".scope").unwrap_or(component)),
    };
    let id = match name.rsplit_once('-') {
        // The monitor of a container has a scope of its own that carries the container's id.
        Some((runtime, _)) if runtime.ends_with("conmon") => return None,
        Some((task, number)) if is_hex(task, TASK_ID) && is_number(number) => {
            return Some(Identity::Container { id: name, pod_uid });
        }
        Some((_, id)) => id,
        None => name,
    };
    is_hex(id, CONTAINER_ID).then_some(Identity::Container { id, pod_uid })
}

fn pod(component: &str, in_kubernetes: bool) -> Option<Identity<'_>> {
    let uid = match component.strip_prefix("pod") {
        Some(uid) if in_kubernetes && is_uid(uid) => Some(uid.to_owned()),
        _ => pod_of_slice(component).or_else(|| podman_pod(component)),
    };
    uid.map(|uid| Identity::Pod { uid })
}

/// `machine-libpod_pod_ID.slice`, and `user-libpod_pod_ID.slice` without root.
fn podman_pod(component: &str) -> Option<String> {
    let (_, id) = component.strip_suffix(".slice")?.rsplit_once("-libpod_pod_")?;
    is_hex(id, CONTAINER_ID).then(|| id.to_owned())
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

/// `job_ID`, or since Slurm 26.05 the job's SLUID alone; steps; the jobs of a user (v1).
fn slurm<'a>(parent: &str, component: &'a str) -> Option<Identity<'a>> {
    let holds_jobs = is_slurm(parent) || parent.starts_with("uid_");
    if holds_jobs && is_sluid(component) {
        return Some(Identity::Job(component));
    }
    let (key, value) = component.split_once('_')?;
    let is_number = is_number(value);
    match key {
        "job" if is_number || is_sluid(value) => Some(Identity::Job(value)),
        "uid" if is_number => Some(Identity::SlurmUser(value)),
        "step" => Some(Identity::Step(value)),
        _ => None,
    }
}

/// An `s` and 64 bits in 13 digits to the base of 32: `s5K1KKYAYG5D00`. slurmd's own cgroups, `system`
/// and `slurmd`, lie beside them.
fn is_sluid(text: &str) -> bool {
    const DIGITS: usize = 13;
    text.strip_prefix('s').is_some_and(|digits| {
        digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// `machine-NAME.scope` with the name escaped, or libvirt's own form from before it asked machined.
fn machine(component: &str) -> Option<Identity<'_>> {
    let scope = component.strip_prefix("machine-").and_then(|rest| rest.strip_suffix(".scope"));
    if let Some(escaped) = scope.filter(|name| !name.is_empty()) {
        return Some(Identity::Machine { registered: unescape(escaped), unit: Some(component) });
    }
    let old = component.strip_suffix(".libvirt-qemu");
    let name = old.or_else(|| component.strip_suffix(".libvirt-lxc"))?;
    Some(Identity::Machine { registered: name.to_owned(), unit: None })
}

/// What people call a machine: libvirt registers it as DRIVER-NUMBER-NAME.
pub(super) fn machine_name(registered: &str) -> &str {
    let mut parts = registered.splitn(3, '-');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("qemu" | "lxc" | "xen" | "bhyve" | "ch"), Some(number), Some(name))
            if is_number(number) && !name.is_empty() =>
        {
            name
        }
        _ => registered,
    }
}

/// Without the escapes of systemd.unit(5), which writes `\x2d` for a dash that is part of a name.
pub(super) fn unescape(name: &str) -> String {
    let name = parsed(name);
    let bytes = name.as_os_str().as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = match bytes.get(at..at + 4) {
            Some([b'\\', b'x', digits @ ..]) => std::str::from_utf8(digits)
                .ok()
                .filter(|_| digits.iter().all(u8::is_ascii_hexdigit))
                .and_then(|digits| u8::from_str_radix(digits, 16).ok()),
            _ => None,
        };
        plain.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 4 } else { 1 };
    }
    shown(OsStr::from_bytes(&plain)).into_owned()
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
mod tests;
