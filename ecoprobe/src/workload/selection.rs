//! The workloads that the user named, as their cgroups come and go: who begins, moves and ends.
//!
//! A cgroup is its id. A workload is what the user means by a name: the cgroup at a path, whichever
//! that is at the time.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Roots;
use super::glob::{Glob, Verdict};
use super::handle::Handles;
use super::hierarchy::{Hierarchy, Version};
use super::metadata;
use super::pods::Pods;
use super::shown::shown_path;
use super::tree::{self, Node};
use crate::base::{WorkloadId, monotonic_ns};
use crate::event::Workload;

/// For so long a cgroup may be gone before the run is over: systemd starts a service again after
/// 100 ms if nothing else is asked for, and seconds where somebody restarts it by hand.
pub(crate) const GRACE_NS: u64 = 2_000_000_000;

/// So many ends ago a match of a glob is still known by its path; the same path later is another
/// workload, with another id. What was named outright is never forgotten.
const REMEMBERED: usize = 4096;

/// How often a cgroup is looked for that was said to be made: the kernel says so just before it can
/// be found.
const LOOKS: u8 = 3;
/// How many of those are kept; beyond, they are looked for by what the globs match.
const PENDING: usize = 4096;

/// How many cgroups are looked at for a new path at a time, in the hierarchies where a cgroup can be
/// renamed (v1): nothing tells.
const CHECKED: usize = 8;

/// What became of a workload.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A workload that was not there before.
    Began(Workload),
    /// A workload has this cgroup from now on: its path was made again.
    Moved { workload: Workload },
    /// The cgroup of a workload has another path, and a match of a glob another name.
    Renamed(Workload),
    /// A cgroup of a workload is gone. The workload may have another by now, or get one later.
    Gone { id: WorkloadId, cgroup_id: u64 },
}

impl Change {
    /// The workload, of a change that has one.
    pub fn workload(self) -> Option<Workload> {
        match self {
            Self::Began(workload) | Self::Moved { workload } | Self::Renamed(workload) => {
                Some(workload)
            }
            Self::Gone { .. } => None,
        }
    }
}

/// A cgroup that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub id: u64,
    /// From the root of the hierarchy, as the kernel had it then; `None`: it did not tell.
    pub path: Option<PathBuf>,
}

/// What a name was found to mean.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: String,
    /// Outright, not by a glob.
    pub(super) named: bool,
    pub(super) node: Node,
}

/// The workloads that the user named.
#[derive(Debug)]
pub struct Selection {
    pub hierarchy: Hierarchy,
    pub warnings: Vec<String>,
    /// Until the start.
    found: Vec<Found>,
    globs: Vec<Glob>,
    handles: Option<Handles>,
    pod_logs: PathBuf,
    next_id: u64,
    /// By path below the mount.
    known: HashMap<Arc<Path>, Known>,
    /// By cgroup id.
    living: BTreeMap<u64, Living>,
    /// Named outright, and no cgroup there now.
    vacant: Vec<Arc<Path>>,
    /// Matches of globs without a cgroup, in the order of their ends.
    ended: VecDeque<(Arc<Path>, u64)>,
    ends: u64,
    /// Whether the kernel's paths are those below the mount.
    sees_all: bool,
    /// Said to be made and not found yet, and how often to look again.
    pending: Vec<(u64, u8)>,
    /// Made of late, and where is not known yet.
    unplaced: HashSet<u64>,
    looks: u8,
    /// CLOCK_MONOTONIC when, nanoseconds.
    look_at: Option<u64>,
    /// The last one that was looked at for a new path.
    checked: u64,
    /// CLOCK_MONOTONIC since when there has been no cgroup, nanoseconds.
    gone_since: Option<u64>,
}

/// A workload, by the path that it follows.
#[derive(Debug)]
struct Known {
    id: WorkloadId,
    name: String,
    named: bool,
    /// How many cgroups it has: one, or none; more after one was renamed and its path made again.
    living: u32,
    /// The cgroup at the path.
    home: Option<u64>,
    /// The number of its latest end.
    end: u64,
}

/// A cgroup of a workload.
#[derive(Debug)]
struct Living {
    /// The path that the workload follows.
    key: Arc<Path>,
    /// Where the cgroup is.
    path: Arc<Path>,
}

impl Selection {
    pub(super) fn new(
        hierarchy: Hierarchy,
        found: Vec<Found>,
        warnings: Vec<String>,
        globs: Vec<Glob>,
        roots: &Roots,
    ) -> Self {
        let handles = Handles::of(&hierarchy.mount, &roots.procfs);
        let sees_all = hierarchy.is_whole();
        Self {
            hierarchy,
            warnings,
            found,
            globs,
            handles,
            pod_logs: roots.pod_logs(),
            next_id: 1,
            known: HashMap::new(),
            living: BTreeMap::new(),
            vacant: Vec::new(),
            ended: VecDeque::new(),
            ends: 0,
            sees_all,
            pending: Vec::new(),
            unplaced: HashSet::new(),
            looks: 0,
            look_at: None,
            checked: 0,
            gone_since: None,
        }
    }

    /// How many cgroups there are.
    pub fn count(&self) -> usize {
        self.found.len() + self.living.len()
    }

    /// Whether cgroups that are made later may be workloads of their own.
    pub fn has_globs(&self) -> bool {
        !self.globs.is_empty()
    }

    /// What was found, in the order of the names; the matches of a glob by path. Whatever happened
    /// between that and the first event of the probe is for an [`update`](Self::update) after the
    /// probe was attached, with `lost`.
    pub fn start(&mut self) -> Vec<Change> {
        let found = std::mem::take(&mut self.found);
        let mut news = Vec::with_capacity(found.len());
        let mut pods = LazyPods::default();
        for Found { name, named, node } in found {
            self.appear(node, name, named, &mut pods, &mut news);
        }
        news
    }

    /// What follows from cgroups that were made and removed, each in the order of events. A cgroup may
    /// be in both: if it is said where it was, it has lived. `lost`: there were more. To be called with
    /// nothing as well, at every tick and at [`wake_at`](Self::wake_at): a cgroup that was said to be
    /// made may not be found at once.
    pub fn update(&mut self, made: &[Made], removed: &[u64], lost: bool) -> Vec<Change> {
        let mut news = Vec::new();
        let mut pods = LazyPods::default();
        for id in removed {
            self.leave(*id, &mut news);
        }
        if lost {
            let ids: Vec<u64> = self.living.keys().copied().collect();
            ids.into_iter().for_each(|id| self.check(id, true, &mut news));
        } else if self.hierarchy.version != Version::V2 {
            self.check_some(&mut news);
        }
        let removed: HashSet<u64> = removed.iter().copied().collect();
        let mut elsewhere = Vec::new();
        for made in made {
            let path = made.path.as_deref().filter(|_| self.sees_all);
            match path.and_then(|path| self.hierarchy.relative(path)) {
                Some(path) => {
                    let node = Node { path, id: made.id };
                    self.appear_at(node, removed.contains(&made.id), &mut pods, &mut news);
                }
                None => elsewhere.push(made.id),
            }
        }
        if !made.is_empty() || !news.is_empty() || lost {
            self.looks = LOOKS;
        }
        if self.looks > 0 {
            self.looks -= 1;
            self.fill_vacant(&mut pods, &mut news);
            self.match_globs(&elsewhere, &removed, lost, &mut pods, &mut news);
        }
        let elsewhere = elsewhere.into_iter().filter(|id| !removed.contains(id));
        self.unplaced.extend(elsewhere.take(PENDING.saturating_sub(self.unplaced.len())));
        self.forget();
        self.look_at = self.next_look();
        if self.look_at.is_none() {
            self.unplaced.clear();
        }
        self.gone_since = match self.living.is_empty() {
            true => self.gone_since.or_else(|| Some(monotonic_ns())),
            false => None,
        };
        news
    }

    /// Whether a cgroup that was made may yet turn out to be a workload's.
    pub fn is_undecided(&self, cgroup_id: u64) -> bool {
        self.unplaced.contains(&cgroup_id)
    }

    /// When [`update`](Self::update) wants to be called again although nothing was told, CLOCK_MONOTONIC
    /// nanoseconds: to look once more for what was said to be made, or because it will be over then.
    pub fn wake_at(&self) -> Option<u64> {
        [self.look_at, self.over_at()].into_iter().flatten().min()
    }

    /// Whether all that was named is gone, for longer than a restart takes, and no glob can match
    /// anything later.
    pub fn is_over(&self) -> bool {
        self.over_at().is_some_and(|at| monotonic_ns() >= at)
    }

    /// When it will be over if nothing comes back, CLOCK_MONOTONIC nanoseconds; `None` while something
    /// lives, or a glob may match later.
    pub fn over_at(&self) -> Option<u64> {
        let since = self.gone_since.filter(|_| self.globs.is_empty())?;
        Some(since.saturating_add(GRACE_NS))
    }

    /// When to look again. In a moment it is there, unless whoever makes it was stopped in the middle.
    fn next_look(&self) -> Option<u64> {
        let scans = self.handles.is_none() && self.has_globs();
        let wanted = !self.vacant.is_empty() || !self.pending.is_empty() || scans;
        let pause = match self.looks {
            0 => return None,
            1 => 10_000_000,
            _ => 1_000_000,
        };
        wanted.then(|| monotonic_ns().saturating_add(pause))
    }

    /// A cgroup of a workload is there.
    fn appear(
        &mut self,
        node: Node,
        name: String,
        named: bool,
        pods: &mut LazyPods,
        news: &mut Vec<Change>,
    ) {
        if self.living.contains_key(&node.id) {
            return;
        }
        let key: Arc<Path> = node.path.into();
        let is_new = !self.known.contains_key(&key);
        let known = self.known.entry(Arc::clone(&key)).or_insert_with(|| {
            let id = WorkloadId(self.next_id);
            self.next_id += 1;
            Known { id, name, named, living: 0, home: None, end: 0 }
        });
        known.living += 1;
        known.home = Some(node.id);
        self.living.insert(node.id, Living { key: Arc::clone(&key), path: key });
        news.extend(self.workload(node.id, pods).map(|workload| match is_new {
            true => Change::Began(workload),
            false => Change::Moved { workload },
        }));
    }

    /// A cgroup was made, and may be `gone` again by now.
    fn appear_at(&mut self, node: Node, gone: bool, pods: &mut LazyPods, news: &mut Vec<Change>) {
        let named = self.known.get(node.path.as_path()).is_some_and(|known| known.named);
        if !named && !self.globs.iter().any(|glob| glob.test_path(&node.path).matches) {
            return;
        }
        self.vacant.retain(|key| **key != *node.path);
        let (id, name) = (node.id, path_name(&node.path));
        self.appear(node, name, named, pods, news);
        if gone {
            self.leave(id, news);
        }
    }

    /// A cgroup is gone.
    fn leave(&mut self, cgroup_id: u64, news: &mut Vec<Change>) {
        let Some(Living { key, .. }) = self.living.remove(&cgroup_id) else { return };
        let Some(known) = self.known.get_mut(&key) else { return };
        news.push(Change::Gone { id: known.id, cgroup_id });
        known.living -= 1;
        if known.home == Some(cgroup_id) {
            known.home = None;
            if known.named {
                self.vacant.push(Arc::clone(&key));
            }
        }
        if known.living == 0 && !known.named {
            self.ends += 1;
            known.end = self.ends;
            self.ended.push_back((key, self.ends));
        }
    }

    /// Looks whether a cgroup is where it was. Unless it is `sure` to be gone if it is nowhere, its
    /// end is left for an event to tell.
    fn check(&mut self, id: u64, sure: bool, news: &mut Vec<Change>) {
        let Some(living) = self.living.get(&id) else { return };
        let found = fs::metadata(self.hierarchy.mount.join(&living.path));
        if found.is_ok_and(|metadata| metadata.ino() == id) {
            return;
        }
        match self.handles.as_ref().and_then(|handles| handles.find(id)) {
            // Found again where it was: it was being made.
            Some(node) if *node.path == *living.path => {}
            Some(node) => self.rename(id, node.path.into(), news),
            None if sure => self.leave(id, news),
            None => {}
        }
    }

    fn check_some(&mut self, news: &mut Vec<Change>) {
        let next = self.living.range(self.checked.saturating_add(1)..).map(|(id, _)| *id);
        let ids: Vec<u64> = next.take(CHECKED).collect();
        // From the beginning, once the end is reached.
        self.checked = if ids.len() == CHECKED { ids[CHECKED - 1] } else { 0 };
        ids.into_iter().for_each(|id| self.check(id, false, news));
    }

    /// A cgroup has another path. What was named outright goes on following the path that was named;
    /// a match of a glob is called by its new path.
    fn rename(&mut self, cgroup_id: u64, path: Arc<Path>, news: &mut Vec<Change>) {
        let Some(living) = self.living.get_mut(&cgroup_id) else { return };
        living.path = Arc::clone(&path);
        let key = Arc::clone(&living.key);
        let Some(known) = self.known.get_mut(&key) else { return };
        if known.named {
            let was_home = known.home == Some(cgroup_id);
            known.home = (path == key).then_some(cgroup_id);
            match known.home {
                Some(_) => self.vacant.retain(|other| *other != key),
                None if was_home => self.vacant.push(key),
                None => {}
            }
        } else if known.living == 1
            && self.known.get(&path).is_none_or(|other| other.living == 0 && !other.named)
            && let Some(mut known) = self.known.remove(&key)
        {
            known.name = path_name(&path);
            known.home = Some(cgroup_id);
            self.known.insert(Arc::clone(&path), known);
            if let Some(living) = self.living.get_mut(&cgroup_id) {
                living.key = path;
            }
        }
        news.extend(self.workload(cgroup_id, &mut LazyPods::default()).map(Change::Renamed));
    }

    /// Looks whether what was named and is gone has been made again.
    fn fill_vacant(&mut self, pods: &mut LazyPods, news: &mut Vec<Change>) {
        for key in std::mem::take(&mut self.vacant) {
            let node = Node::at(&self.hierarchy.mount, key.to_path_buf());
            match node.filter(|node| !self.living.contains_key(&node.id)) {
                Some(node) => self.appear(node, String::new(), true, pods, news),
                None => self.vacant.push(key),
            }
        }
    }

    fn match_globs(
        &mut self,
        made: &[u64],
        removed: &HashSet<u64>,
        lost: bool,
        pods: &mut LazyPods,
        news: &mut Vec<Change>,
    ) {
        if self.globs.is_empty() {
            return;
        }
        let mut matches = match &self.handles {
            Some(handles) if !lost => {
                let mut pending = std::mem::take(&mut self.pending);
                pending.extend(made.iter().map(|id| (*id, LOOKS)));
                let mut found = Vec::new();
                for (id, looks) in pending {
                    if self.living.contains_key(&id) || removed.contains(&id) {
                        continue;
                    }
                    match handles.find(id) {
                        Some(node) => found.push(node),
                        None if looks > 1 && self.pending.len() < PENDING => {
                            self.pending.push((id, looks - 1));
                        }
                        None => {}
                    }
                }
                let is_match =
                    |node: &Node| self.globs.iter().any(|glob| glob.test_path(&node.path).matches);
                found.retain(is_match);
                found
            }
            _ => {
                self.pending.clear();
                self.scan()
            }
        };
        matches.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        for node in matches {
            let name = path_name(&node.path);
            self.appear(node, name, false, pods, news);
        }
    }

    /// All matches of the globs that are not known to live.
    fn scan(&self) -> Vec<Node> {
        let mut found = Vec::new();
        tree::walk(&self.hierarchy.mount, |path, id| {
            let verdicts = self.globs.iter().map(|glob| glob.test_path(path));
            let verdict = verdicts.fold(Verdict::default(), Verdict::or);
            if verdict.matches && !self.living.contains_key(&id) {
                found.push(Node { path: path.to_owned(), id });
            }
            verdict.enter
        });
        found
    }

    /// Forgets the oldest of what has ended, so that no number of jobs fills the memory.
    fn forget(&mut self) {
        while self.ended.len() > REMEMBERED {
            let Some((key, end)) = self.ended.pop_front() else { return };
            // Unless it has come back since.
            if self.known.get(&key).is_some_and(|known| known.living == 0 && known.end == end) {
                self.known.remove(&key);
            }
        }
    }

    fn workload(&self, cgroup_id: u64, pods: &mut LazyPods) -> Option<Workload> {
        let living = self.living.get(&cgroup_id)?;
        let known = self.known.get(&living.key)?;
        let cgroup = self.hierarchy.cgroup(&living.path);
        let mut metadata = metadata::describe(&cgroup);
        if let Some(uid) = metadata.labels.get("pod_uid")
            && let Some(pod) = pods.read(&self.pod_logs).get(uid)
        {
            metadata.labels.insert("namespace".into(), pod.namespace.clone());
            metadata.labels.insert("pod".into(), pod.name.clone());
        }
        Some(Workload {
            id: known.id,
            name: known.name.clone(),
            cgroup,
            cgroup_id,
            kind: metadata.kind,
            labels: metadata.labels,
        })
    }
}

/// Pods, read when the first is asked for: their log directories are made shortly before their
/// cgroups.
#[derive(Debug, Default)]
struct LazyPods(Option<Pods>);

impl LazyPods {
    fn read(&mut self, logs: &Path) -> &Pods {
        self.0.get_or_insert_with(|| Pods::read(logs))
    }
}

/// What a match of a glob is called.
pub(super) fn path_name(path: &Path) -> String {
    shown_path(path).into_owned()
}

#[cfg(test)]
mod tests;
