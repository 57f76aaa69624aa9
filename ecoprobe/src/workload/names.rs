//! From what a person types to cgroups.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::Roots;
use super::closest::Closest;
use super::glob::{Glob, Verdict};
use super::handle::Handles;
use super::hierarchy::{Hierarchies, Hierarchy, clean};
use super::metadata::{self, Identity};
use super::pods::Pods;
use super::tree::{self, Node};
use crate::base::{Error, WorkloadId};
use crate::event::Workload;

static NEXT_ID: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

/// How many names an error or a warning lists.
const LISTED: usize = 8;

/// The workloads that the user named.
#[derive(Debug)]
pub struct Selection {
    pub hierarchy: Hierarchy,
    /// In the order of the names; the matches of a glob by path.
    pub workloads: Vec<Workload>,
    pub warnings: Vec<String>,
    globs: Vec<Glob>,
    known: HashSet<u64>,
    handles: Option<Handles>,
    pod_logs: PathBuf,
}

impl Selection {
    /// Whether cgroups that are made later may belong to it.
    pub fn has_globs(&self) -> bool {
        !self.globs.is_empty()
    }

    /// Those of the cgroups `ids`, which were just made, that the globs select. What these methods
    /// return is the caller's: `workloads` stays what it was at the start.
    pub fn made(&mut self, ids: &[u64]) -> Vec<Workload> {
        if self.globs.is_empty() || ids.iter().all(|id| self.known.contains(id)) {
            return Vec::new();
        }
        let Some(handles) = &self.handles else { return self.rescan() };
        let is_match = |node: &Node| {
            let path = node.path.to_string_lossy();
            self.globs.iter().any(|glob| glob.test(&path).matches)
        };
        let nodes = ids.iter().filter_map(|id| handles.find(*id)).filter(is_match);
        let new = nodes.filter(|node| self.known.insert(node.id)).collect();
        self.name(new)
    }

    /// Looks at all cgroups again for matches of the globs that were not there before: where it is
    /// not known which ones were made.
    pub fn rescan(&mut self) -> Vec<Workload> {
        let mut new: Vec<Node> = Vec::new();
        if self.globs.is_empty() {
            return Vec::new();
        }
        tree::walk(&self.hierarchy.mount, |path, id| {
            let text = path.to_string_lossy();
            let verdicts = self.globs.iter().map(|glob| glob.test(&text));
            let verdict = verdicts.fold(Verdict::default(), Verdict::or);
            if verdict.matches && self.known.insert(id) {
                new.push(Node { path: path.to_owned(), id });
            }
            verdict.enter
        });
        self.name(new)
    }

    /// New matches of globs as workloads, by path.
    fn name(&self, mut new: Vec<Node>) -> Vec<Workload> {
        new.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        // Read again, but only now: a pod's log directory is made shortly before its cgroups.
        let pods = if new.is_empty() { Pods::default() } else { Pods::read(&self.pod_logs) };
        new.iter().map(|node| workload(&path_name(node), &self.hierarchy, node, &pods)).collect()
    }
}

/// Finds the cgroups that `names` mean, all in one hierarchy: the ids of different hierarchies
/// overlap, so the probe follows one. Every name must have a match.
pub fn resolve(names: &[String], roots: &Roots) -> Result<Selection, Error> {
    if names.is_empty() {
        return Err(Error::Usage("name at least one workload with --cgroup".into()));
    }
    let hierarchies = Hierarchies::find(roots)?;
    let pods = Pods::read(&roots.pod_logs());
    let queries = names
        .iter()
        .map(|name| Query::parse(name, &hierarchies, &pods))
        .collect::<Result<Vec<_>, _>>()?;
    let (index, answers) = choose(&queries, &hierarchies, &pods)?;
    let hierarchy = hierarchies.get(index).clone();

    let mut warnings = Vec::new();
    let mut found: Vec<(Node, Workload)> = Vec::new();
    let mut positions: HashMap<PathBuf, usize> = HashMap::new();
    let mut globs = Vec::new();
    for (query, answer) in queries.into_iter().zip(answers) {
        if answer.rank != Rank::Glob && answer.nodes.len() > 1 {
            return Err(ambiguous(query.name, &hierarchy, &answer.nodes));
        }
        if let (Rank::CgroupId, [node], [other, ..]) =
            (answer.rank, &answer.nodes[..], &answer.others[..])
        {
            warnings.push(format!(
                "{} is taken as the id of cgroup {}; the workload of that name is {}",
                query.name,
                hierarchy.cgroup(&node.path),
                hierarchy.cgroup(&other.path)
            ));
        }
        let is_glob = answer.rank == Rank::Glob;
        for node in answer.nodes {
            if let Some(position) = positions.get(&node.path) {
                let (_, earlier) = &found[*position];
                if !is_glob && earlier.name != query.name {
                    warnings.push(format!(
                        "`{}` and `{}` are the same cgroup, {}: it is reported once, as `{}`",
                        earlier.name, query.name, earlier.cgroup, earlier.name
                    ));
                }
                continue;
            }
            let name = if is_glob { path_name(&node) } else { query.name.to_owned() };
            let workload = workload(&name, &hierarchy, &node, &pods);
            positions.insert(node.path.clone(), found.len());
            found.push((node, workload));
        }
        if is_glob {
            globs.extend(query.glob);
        }
    }
    let selects_top = found.iter().any(|(node, _)| node.path.as_os_str().is_empty());
    if selects_top && !hierarchy.is_whole() {
        warnings.push(format!(
            "{} shows a part of this machine's cgroups only, so `/` is not the whole machine; give \
             ecoprobe the host's cgroup mount with --cgroupfs",
            hierarchy.mount.display()
        ));
    }
    warnings.extend(nesting(&found));
    let known = found.iter().map(|(node, _)| node.id).collect();
    let workloads = found.into_iter().map(|(_, workload)| workload).collect();
    let pod_logs = roots.pod_logs();
    let handles = Handles::of(&hierarchy.mount, &roots.procfs);
    Ok(Selection { hierarchy, workloads, warnings, globs, known, handles, pod_logs })
}

/// The ways to read a name, in the order in which they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    MountPath,
    RootPath,
    Glob,
    LastComponent,
    CgroupId,
    WorkloadName,
}

/// What a name means in one hierarchy: the matches of the first way to read it that has any.
#[derive(Debug)]
struct Answer {
    rank: Rank,
    /// Never empty.
    nodes: Vec<Node>,
    /// What it would have meant read in another way.
    others: Vec<Node>,
}

/// A name, taken apart once for all hierarchies.
#[derive(Debug)]
struct Query<'a> {
    name: &'a str,
    /// The mount that it lies under, by index, and the path below.
    under: Option<(usize, PathBuf)>,
    glob: Option<Glob>,
    id: Option<u64>,
    /// The uids of the pods that it names.
    pod_uids: Vec<&'a str>,
}

impl<'a> Query<'a> {
    fn parse(name: &'a str, hierarchies: &Hierarchies, pods: &'a Pods) -> Result<Self, Error> {
        if name.is_empty() {
            return Err(Error::Usage(
                "a workload's name is empty; `/` is the whole machine".into(),
            ));
        }
        let is_glob = |text: &str| text.contains(['*', '?', '[']);
        let path = Path::new(name);
        let literal =
            path.components().take_while(|part| !is_glob(&part.as_os_str().to_string_lossy()));
        let under = hierarchies.locate(path, literal.count());
        let glob = if is_glob(name) {
            // Under a mount, the pattern is anchored by the slash that stood there.
            let pattern = under.as_ref().map(|(_, rest)| format!("/{}", rest.to_string_lossy()));
            Some(
                Glob::parse(pattern.as_deref().unwrap_or(name))
                    .map_err(|error| Error::Usage(format!("`{name}` is not a pattern: {error}")))?,
            )
        } else {
            None
        };
        let pod_uids = match name.split_once('/') {
            Some((namespace, pod)) => pods.uids(namespace, pod),
            None => Vec::new(),
        };
        Ok(Self { name, under, glob, id: name.parse().ok(), pod_uids })
    }

    /// The cgroup at the path that the name is, under the mount or from the hierarchy's root.
    fn exact(&self, index: usize, hierarchy: &Hierarchy) -> Option<Answer> {
        let at = |rank, path| {
            let node = Node::at(&hierarchy.mount, path)?;
            Some(Answer { rank, nodes: vec![node], others: Vec::new() })
        };
        match &self.under {
            Some((mount, rest)) if *mount == index => at(Rank::MountPath, rest.clone()),
            Some(_) => None,
            None => hierarchy
                .relative(self.name)
                .and_then(|path| at(Rank::RootPath, path))
                // As seen from inside of a container that was given a part of the tree.
                .or_else(|| at(Rank::RootPath, clean(Path::new(self.name))?)),
        }
    }

    /// Whether a cgroup answers to the name, and how.
    fn test(&self, last: &str, id: u64, identity: Option<&Identity<'_>>) -> Option<Rank> {
        if last == self.name {
            Some(Rank::LastComponent)
        } else if self.id == Some(id) {
            Some(Rank::CgroupId)
        } else {
            self.is_workload(identity?).then_some(Rank::WorkloadName)
        }
    }

    fn is_workload(&self, identity: &Identity<'_>) -> bool {
        /// The length of the ids that `docker ps` prints.
        const SHORT_ID: usize = 12;
        match identity {
            Identity::Container { id, .. } => {
                self.name.len() >= SHORT_ID && id.starts_with(self.name)
            }
            Identity::Pod { uid } => uid == self.name || self.pod_uids.contains(&&**uid),
            Identity::Job(job) => *job == self.name,
            Identity::Unit { name, .. } => name.strip_suffix(".service") == Some(self.name),
            Identity::Step(_) | Identity::SlurmUser(_) => false,
        }
    }
}

/// A query that takes a walk to answer.
#[derive(Debug)]
struct Open<'a> {
    position: usize,
    query: &'a Query<'a>,
    matches: BTreeMap<Rank, Vec<Node>>,
}

/// Answers every query in one hierarchy, with at most one walk for all of them.
fn search(queries: &[Query<'_>], hierarchies: &Hierarchies, index: usize) -> Vec<Option<Answer>> {
    let hierarchy = hierarchies.get(index);
    let mut answers: Vec<_> = queries.iter().map(|query| query.exact(index, hierarchy)).collect();
    let mut open: Vec<Open<'_>> = Vec::new();
    for (position, (query, answer)) in queries.iter().zip(&answers).enumerate() {
        let searched = match (&query.under, &query.glob) {
            (None, _) => true,
            (Some((mount, _)), Some(_)) => *mount == index,
            // What begins as a path under a mount is that path or nothing.
            (Some(_), None) => false,
        };
        if answer.is_none() && searched {
            open.push(Open { position, query, matches: BTreeMap::new() });
        }
    }
    if !open.is_empty() {
        tree::walk(&hierarchy.mount, |path, id| {
            let text = path.to_string_lossy();
            let last = text.rsplit('/').next().unwrap_or(&text);
            let identity = metadata::identity(&text);
            let mut enter = false;
            for Open { query, matches, .. } in &mut open {
                let rank = match &query.glob {
                    Some(glob) => {
                        let verdict = glob.test(&text);
                        enter |= verdict.enter;
                        verdict.matches.then_some(Rank::Glob)
                    }
                    None => {
                        enter = true;
                        query.test(last, id, identity.as_ref())
                    }
                };
                if let Some(rank) = rank {
                    matches.entry(rank).or_default().push(Node { path: path.to_owned(), id });
                }
            }
            enter
        });
    }
    for Open { position, mut matches, .. } in open {
        answers[position] = matches.pop_first().map(|(rank, mut nodes)| {
            nodes.sort_unstable_by(|a, b| a.path.cmp(&b.path));
            Answer { rank, nodes, others: matches.into_values().flatten().collect() }
        });
    }
    answers
}

/// The hierarchy in which every name has a match, and the matches. Among several: the one where the
/// names are read in the better way, then the one where more of them have processes, then v2.
fn choose(
    queries: &[Query<'_>],
    hierarchies: &Hierarchies,
    pods: &Pods,
) -> Result<(usize, Vec<Answer>), Error> {
    let pinned: BTreeSet<usize> =
        queries.iter().filter_map(|query| Some(query.under.as_ref()?.0)).collect();
    let preferred = hierarchies.preferred().into_iter().filter(|index| !pinned.contains(index));

    let mut complete = Vec::new();
    // Where each name has a match at all, for the error.
    let mut places: Vec<Vec<usize>> = vec![Vec::new(); queries.len()];
    for index in pinned.iter().copied().chain(preferred) {
        // Beside the hierarchy of an explicit path, the others can only help to word the error.
        if !pinned.is_empty() && !complete.is_empty() {
            break;
        }
        let answers = search(queries, hierarchies, index);
        for (places, _) in places.iter_mut().zip(&answers).filter(|(_, answer)| answer.is_some()) {
            places.push(index);
        }
        complete.extend(answers.into_iter().collect::<Option<Vec<_>>>().map(|it| (index, it)));
    }
    if let Some(missing) = places.iter().position(Vec::is_empty) {
        return Err(not_found(&queries[missing], hierarchies, pods));
    }
    if complete.len() > 1 {
        complete.sort_by_cached_key(|(index, answers): &(usize, Vec<Answer>)| {
            let ranks: Vec<Rank> = answers.iter().map(|answer| answer.rank).collect();
            let top = &hierarchies.get(*index).mount;
            let populated = |answer: &&Answer| {
                answer.nodes.iter().any(|node| tree::populated(&top.join(&node.path)))
            };
            (ranks, std::cmp::Reverse(answers.iter().filter(populated).count()))
        });
    }
    complete.into_iter().next().ok_or_else(|| {
        let places = queries.iter().zip(&places).map(|(query, places)| {
            let places: Vec<_> =
                places.iter().map(|index| hierarchies.get(*index).to_string()).collect();
            format!("`{}` is in {}", query.name, places.join(" and "))
        });
        Error::NoWorkload(format!(
            "{}: one run follows one hierarchy; run ecoprobe once for each",
            places.collect::<Vec<_>>().join(", ")
        ))
    })
}

fn not_found(query: &Query<'_>, hierarchies: &Hierarchies, pods: &Pods) -> Error {
    let wanted = match &query.under {
        Some((_, rest)) => rest.to_string_lossy(),
        None => query.name.trim_matches('/').into(),
    };
    let mut closest = Closest::new(&wanted);
    let mut cgroups = 0_usize;
    for hierarchy in hierarchies.iter() {
        tree::walk(&hierarchy.mount, |path, _| {
            cgroups += 1;
            let path = path.to_string_lossy();
            let last = path.rsplit('/').next().unwrap_or(&path);
            let stem = last.strip_suffix(".service").unwrap_or(last);
            closest.offer(&[&path, last, stem], || format!("/{path}"));
            true
        });
    }
    for name in pods.names() {
        closest.offer(&[&name], || name.clone());
    }
    let what = if query.glob.is_some() { "no cgroup matches" } else { "no workload is called" };
    let hint = match closest.names() {
        names if names.is_empty() => {
            let mounts: Vec<_> =
                hierarchies.iter().map(|hierarchy| hierarchy.mount.display().to_string()).collect();
            format!(
                "none of the {cgroups} cgroups in {} is called anything like it; try a path, as \
                 `systemd-cgls` shows them",
                mounts.join(", ")
            )
        }
        names => format!("the closest: {}", names.join(", ")),
    };
    Error::NoWorkload(format!("{what} `{}`; {hint}", query.name))
}

fn ambiguous(name: &str, hierarchy: &Hierarchy, nodes: &[Node]) -> Error {
    let paths = nodes.iter().map(|node| hierarchy.cgroup(&node.path));
    Error::NoWorkload(format!(
        "`{name}` may be any of {} cgroups, say which, or use a glob to select them all: {}",
        nodes.len(),
        list(paths)
    ))
}

fn path_name(node: &Node) -> String {
    node.path.to_string_lossy().into_owned()
}

fn workload(name: &str, hierarchy: &Hierarchy, node: &Node, pods: &Pods) -> Workload {
    let cgroup = hierarchy.cgroup(&node.path);
    let mut metadata = metadata::describe(&cgroup);
    if let Some(pod) = metadata.labels.get("pod_uid").and_then(|uid| pods.get(uid)) {
        metadata.labels.insert("namespace".into(), pod.namespace.clone());
        metadata.labels.insert("pod".into(), pod.name.clone());
    }
    Workload {
        id: WorkloadId(NEXT_ID.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
        name: name.to_owned(),
        cgroup,
        cgroup_id: node.id,
        kind: metadata.kind,
        labels: metadata.labels,
    }
}

/// A sentence for each selected cgroup that has selected ones below it.
fn nesting(found: &[(Node, Workload)]) -> Vec<String> {
    let mut sorted: Vec<_> =
        found.iter().map(|(node, workload)| (&*node.path, &*workload.name)).collect();
    sorted.sort_unstable();
    // Those that enclose the current one; in this order a parent comes before its children.
    let mut enclosing: Vec<(&Path, &str)> = Vec::new();
    let mut inner: BTreeMap<&Path, (&str, Vec<&str>)> = BTreeMap::new();
    for (path, name) in sorted {
        while enclosing.last().is_some_and(|(outer, _)| !path.starts_with(outer)) {
            enclosing.pop();
        }
        if let Some((outer, outer_name)) = enclosing.last() {
            inner.entry(outer).or_insert((outer_name, Vec::new())).1.push(name);
        }
        enclosing.push((path, name));
    }
    let sentences = inner.into_values().map(|(outer, inner)| {
        let names = list(inner.iter().map(|name| format!("`{name}`")));
        format!("`{outer}` is reported without what is selected inside of it: {names}")
    });
    let more = sentences.len().saturating_sub(LISTED);
    let mut sentences: Vec<_> = sentences.take(LISTED).collect();
    if more > 0 {
        sentences.push(format!("{more} more are reported without what is selected inside of them"));
    }
    sentences
}

/// The first few, and how many more.
fn list(mut names: impl Iterator<Item = String>) -> String {
    let first: Vec<_> = names.by_ref().take(LISTED).collect();
    match names.count() {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}
