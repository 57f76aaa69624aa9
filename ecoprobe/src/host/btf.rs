//! Where the running kernel keeps the fields that the probe reads, from its BTF.
//!
//! A general BTF library builds a tree of every type: 20 MB and tens of milliseconds for some thirty
//! fields. This walks the two sections once each and keeps only what was asked for. The format is
//! <https://docs.kernel.org/bpf/btf.html>.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: u16 = 0xeb9f;
/// A vmlinux BTF is 4 to 10 MB; what claims to be far larger is not one.
const MAX_SECTION: u32 = 64 << 20;
/// Anonymous structs within structs, typedefs of typedefs: a few levels in practice.
const MAX_NESTING: u32 = 16;

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BtfError {
    #[error(
        "{path}: {error}; the probe needs a kernel built with CONFIG_DEBUG_INFO_BTF=y (every \
         current distribution's is)"
    )]
    Open { path: PathBuf, error: std::io::Error },
    #[error("{path}: not BTF: {what}")]
    Malformed { path: PathBuf, what: &'static str },
    #[error("this kernel's BTF has no {0}")]
    Missing(String),
}

/// What the probe needs to know about the running kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelLayout {
    /// Byte offsets by `(struct, member)`.
    offsets: HashMap<(&'static str, &'static str), u32>,
    /// Values of `enum cgroup_subsys_id` by controller name ("cpuacct").
    subsystems: HashMap<String, u32>,
    /// Type id of `btf_trace_NAME` by tracepoint name.
    tracepoints: HashMap<&'static str, u32>,
}

const MEMBERS: &[(&str, &str)] = &[
    ("task_struct", "tgid"),
    ("task_struct", "flags"),
    ("task_struct", "se"),
    ("task_struct", "cgroups"),
    ("sched_entity", "sum_exec_runtime"),
    ("sched_entity", "prev_sum_exec_runtime"),
    ("sched_entity", "exec_start"),
    ("css_set", "dfl_cgrp"),
    ("css_set", "subsys"),
    ("cgroup_subsys_state", "cgroup"),
    ("cgroup_subsys_state", "parent"),
    ("cgroup", "self"),
    ("cgroup", "kn"),
    ("cgroup", "root"),
    ("cgroup_root", "hierarchy_id"),
    ("kernfs_node", "id"),
    ("task_struct", "signal"),
    ("signal_struct", "nr_threads"),
];

/// Where the CPU of a task is: in the one or in the other, by architecture and version.
const TASK_CPU: &[(&str, &str)] =
    &[("task_struct", "cpu"), ("task_struct", "thread_info"), ("thread_info", "cpu")];

/// The tracepoints that the probe attaches to; each has a typedef `btf_trace_NAME`.
const TRACEPOINTS: &[(&str, &str)] = &[
    ("sched_switch", "btf_trace_sched_switch"),
    ("cgroup_attach_task", "btf_trace_cgroup_attach_task"),
    ("cgroup_mkdir", "btf_trace_cgroup_mkdir"),
    ("cgroup_rmdir", "btf_trace_cgroup_rmdir"),
    ("sched_process_exit", "btf_trace_sched_process_exit"),
];

const SUBSYSTEMS: &str = "cgroup_subsys_id";
const SUBSYSTEM_SUFFIX: &str = "_cgrp_id";

impl KernelLayout {
    /// Reads `/sys/kernel/btf/vmlinux` or the like.
    pub(crate) fn read(path: &Path) -> Result<Self, BtfError> {
        Sections::open(path)?.layout()
    }

    /// Offset of a member in bytes.
    pub(crate) fn offset(&self, of: &'static str, member: &'static str) -> Result<u64, BtfError> {
        let offset = self.offsets.get(&(of, member));
        offset.map(|&offset| offset.into()).ok_or_else(|| missing(of, member))
    }

    /// A kernel that says something else.
    #[cfg(test)]
    pub(crate) fn set_offset(&mut self, of: &'static str, member: &'static str, offset: u32) {
        self.offsets.insert((of, member), offset);
    }

    /// Index of a controller in `css_set.subsys`; `None` if this kernel lacks it.
    pub(crate) fn subsystem(&self, controller: &str) -> Option<u32> {
        self.subsystems.get(controller).copied()
    }

    /// Whether `tp_btf` programs can be attached to all the tracepoints that we need.
    pub(crate) fn has_typed_tracepoints(&self) -> bool {
        self.tracepoints.len() == TRACEPOINTS.len()
    }

    /// A BTF in which the tracepoints' typedefs have the same ids as in the kernel's, and nothing
    /// else has a name: all that loading a `tp_btf` program takes, at a fraction of the memory.
    pub(crate) fn tracepoint_btf(&self) -> Vec<u8> {
        let last = self.tracepoints.values().copied().max().unwrap_or(0);
        let mut strings = vec![0];
        let mut names = HashMap::new();
        for (tracepoint, typedef) in TRACEPOINTS {
            if let Some(&id) = self.tracepoints.get(tracepoint) {
                names.insert(id, strings.len() as u32);
                strings.extend_from_slice(typedef.as_bytes());
                strings.push(0);
            }
        }
        let types_len = last * 12;
        let mut btf = Vec::with_capacity(24 + types_len as usize + strings.len());
        btf.extend_from_slice(&MAGIC.to_ne_bytes());
        btf.extend_from_slice(&[1, 0]);
        for field in [24, 0, types_len, types_len, strings.len() as u32] {
            btf.extend_from_slice(&field.to_ne_bytes());
        }
        for id in 1..=last {
            // A typedef of void.
            for field in [names.get(&id).copied().unwrap_or(0), KIND_TYPEDEF << 24, 0] {
                btf.extend_from_slice(&field.to_ne_bytes());
            }
        }
        btf.extend_from_slice(&strings);
        btf
    }
}

fn missing(of: &str, member: &str) -> BtfError {
    BtfError::Missing(format!("`{member}` in `struct {of}`"))
}

/// The file, and where its two sections are.
struct Sections<'a> {
    path: &'a Path,
    file: File,
    types: (u64, u32),
    strings: (u64, u32),
}

impl<'a> Sections<'a> {
    fn open(path: &'a Path) -> Result<Self, BtfError> {
        let open_error = |error| BtfError::Open { path: path.into(), error };
        let malformed = |what| BtfError::Malformed { path: path.into(), what };
        let file = super::open(path).map_err(open_error)?;
        let mut header = [0; 24];
        file.read_exact_at(&mut header, 0).map_err(open_error)?;
        if u16::from_ne_bytes([header[0], header[1]]) != MAGIC {
            return Err(malformed("wrong magic number"));
        }
        let field = |at: usize| word(&header, at).unwrap_or(0);
        let section = |offset: u32, len: u32| {
            let start = u64::from(field(4)) + u64::from(offset);
            (len <= MAX_SECTION).then_some((start, len)).ok_or(malformed("a section is too large"))
        };
        let types = section(field(8), field(12))?;
        let strings = section(field(16), field(20))?;
        Ok(Self { path, file, types, strings })
    }

    fn section(&self, (start, len): (u64, u32)) -> Result<Vec<u8>, BtfError> {
        let mut bytes = vec![0; len as usize];
        match self.file.read_exact_at(&mut bytes, start) {
            Ok(()) => Ok(bytes),
            Err(error) => Err(BtfError::Open { path: self.path.into(), error }),
        }
    }

    fn layout(&self) -> Result<KernelLayout, BtfError> {
        // One section at a time: each is megabytes, and our peak memory is a promise.
        let (names, subsystems) = self.names()?;
        let bytes = self.section(self.types)?;
        let types = Types { bytes: &bytes };

        let mut structs: HashMap<&'static str, u32> = HashMap::new();
        let mut tracepoints = HashMap::new();
        let mut subsystem_ids = HashMap::new();
        for (id, ty) in types.iter() {
            match ty.kind {
                KIND_STRUCT => {
                    if let Some(name) = names.get(&ty.name)
                        && !ty.tail.is_empty()
                    {
                        structs.entry(name).or_insert(id);
                    }
                }
                KIND_TYPEDEF => {
                    let name = names.get(&ty.name);
                    let wanted = TRACEPOINTS.iter().find(|(_, typedef)| name == Some(typedef));
                    if let Some((tracepoint, _)) = wanted {
                        tracepoints.entry(*tracepoint).or_insert(id);
                    }
                }
                KIND_ENUM if names.get(&ty.name) == Some(&SUBSYSTEMS) => {
                    for entry in ty.tail.chunks_exact(8) {
                        let (name, value) = (word(entry, 0), word(entry, 4));
                        if let (Some(name), Some(value)) = (name, value)
                            && let Some(controller) = subsystems.get(&name)
                        {
                            subsystem_ids.insert(controller.clone(), value);
                        }
                    }
                }
                _ => {}
            }
        }
        let mut offsets = HashMap::new();
        for &(of, member) in MEMBERS.iter().chain(TASK_CPU) {
            let id = structs.get(of).ok_or_else(|| BtfError::Missing(format!("`struct {of}`")))?;
            if let Some(offset) = types.member_offset(*id, &names, member, 0) {
                offsets.insert((of, member), offset);
            }
        }
        Ok(KernelLayout { offsets, subsystems: subsystem_ids, tracepoints })
    }

    /// String offsets of the names we look for, and of the controllers' enumerators.
    #[allow(clippy::type_complexity)]
    fn names(&self) -> Result<(HashMap<u32, &'static str>, HashMap<u32, String>), BtfError> {
        let strings = self.section(self.strings)?;
        let wanted: HashMap<&[u8], &'static str> = MEMBERS
            .iter()
            .chain(TASK_CPU)
            .flat_map(|&(of, member)| [of, member])
            .chain(TRACEPOINTS.iter().map(|&(_, typedef)| typedef))
            .chain([SUBSYSTEMS])
            .map(|name| (name.as_bytes(), name))
            .collect();
        let mut names = HashMap::new();
        let mut subsystems = HashMap::new();
        let mut offset = 0;
        for text in strings.split(|&byte| byte == 0) {
            if let Some(name) = wanted.get(text) {
                names.insert(offset, *name);
            } else if let Some(controller) = text.strip_suffix(SUBSYSTEM_SUFFIX.as_bytes()) {
                subsystems.insert(offset, String::from_utf8_lossy(controller).into_owned());
            }
            offset += text.len() as u32 + 1;
        }
        Ok((names, subsystems))
    }
}

#[derive(Clone, Copy)]
struct Types<'a> {
    bytes: &'a [u8],
}

#[derive(Clone, Copy)]
struct Type<'a> {
    /// Offset of the name in the string section.
    name: u32,
    kind: u32,
    /// Member offsets carry a bit-field size in their upper byte.
    kind_flag: bool,
    tail: &'a [u8],
}

impl<'a> Types<'a> {
    /// Every type with its id; ends early at the first that makes no sense.
    fn iter(self) -> impl Iterator<Item = (u32, Type<'a>)> {
        let mut rest = self.bytes;
        let mut id = 0;
        std::iter::from_fn(move || {
            let (name, info) = (word(rest, 0)?, word(rest, 4)?);
            let kind = info >> 24 & 0x1f;
            let count = (info & 0xffff) as usize;
            let len = match kind {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
                _ => 0,
            };
            let tail = rest.get(12..12 + len)?;
            rest = &rest[12 + len..];
            id += 1;
            Some((id, Type { name, kind, kind_flag: info >> 31 == 1, tail }))
        })
    }

    /// Byte offset of a member, also of one inside an anonymous struct or union.
    fn member_offset(
        self,
        id: u32,
        names: &HashMap<u32, &'static str>,
        member: &str,
        depth: u32,
    ) -> Option<u32> {
        if depth > MAX_NESTING {
            return None;
        }
        let (_, ty) = self.iter().nth(id.checked_sub(1)? as usize)?;
        if !matches!(ty.kind, KIND_STRUCT | KIND_UNION) {
            return None;
        }
        let member_at = |entry: &[u8]| {
            let (name, of, offset) = (word(entry, 0)?, word(entry, 4)?, word(entry, 8)?);
            let bits = if ty.kind_flag { offset & 0x00ff_ffff } else { offset };
            Some((name, of, bits / 8))
        };
        let members = || ty.tail.chunks_exact(12).filter_map(member_at);
        let direct = members().find(|(name, _, _)| names.get(name) == Some(&member));
        if let Some((_, _, offset)) = direct {
            return Some(offset);
        }
        let anonymous = members().filter(|&(name, _, _)| name == 0);
        anonymous.into_iter().find_map(|(_, of, offset)| {
            Some(offset + self.member_offset(of, names, member, depth + 1)?)
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

    #[test]
    fn finds_what_the_probe_needs_in_the_running_kernel() {
        let layout = KernelLayout::read(Path::new(VMLINUX)).unwrap();
        for &(of, member) in MEMBERS {
            layout.offset(of, member).unwrap();
        }
        assert!(layout.has_typed_tracepoints());
        // The first member of a css is its cgroup.
        assert_eq!(layout.offset("cgroup_subsys_state", "cgroup").unwrap(), 0);
        assert_eq!(layout.subsystem("no such controller"), None);
    }

    #[test]
    fn the_reduced_btf_keeps_the_ids() {
        let layout = KernelLayout::read(Path::new(VMLINUX)).unwrap();
        let reduced = layout.tracepoint_btf();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &reduced).unwrap();
        let sections = Sections::open(file.path()).unwrap();
        let (names, _) = sections.names().unwrap();
        let bytes = sections.section(sections.types).unwrap();
        let types = Types { bytes: &bytes };
        for (tracepoint, typedef) in TRACEPOINTS {
            let id = types.iter().find(|(_, ty)| names.get(&ty.name) == Some(typedef));
            assert_eq!(id.map(|(id, _)| id), layout.tracepoints.get(tracepoint).copied());
        }
    }

    #[test]
    fn damaged_btf_is_an_error_and_never_a_panic() {
        let whole = std::fs::read(VMLINUX).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let cuts = [0, 1, 23, 24, 25, 1000, whole.len() / 2, whole.len() - 1];
        for cut in cuts {
            std::fs::write(file.path(), &whole[..cut]).unwrap();
            KernelLayout::read(file.path()).unwrap_err();
        }
        let mut noisy = whole[..300_000].to_vec();
        // Lengths that fit the shortened file, contents that make no sense.
        for (at, value) in [(8, 0u32), (12, 200_000), (16, 200_000), (20, 90_000)] {
            noisy[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        for i in (24..noisy.len()).step_by(7) {
            noisy[i] = noisy[i].wrapping_mul(31).wrapping_add(i as u8);
        }
        std::fs::write(file.path(), &noisy).unwrap();
        KernelLayout::read(file.path()).unwrap_err();
        let error = KernelLayout::read(Path::new("/nonexistent/vmlinux")).unwrap_err();
        assert!(error.to_string().contains("CONFIG_DEBUG_INFO_BTF"), "{error}");
    }
}
