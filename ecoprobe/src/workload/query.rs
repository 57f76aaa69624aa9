//! What a name may mean, and which cgroups answer to it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::closest::Closest;
use super::glob::Glob;
use super::hierarchy::{Hierarchies, Hierarchy, clean};
use super::metadata::{self, Identity};
use super::pods::Pods;
use super::shown::{parsed, shown_path};
use super::tree::{self, Node};
use crate::base::error::Error;

/// The ways to read a name, in the order in which they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    MountPath,
    RootPath,
    LastComponent,
    CgroupId,
    WorkloadName,
    /// Last: what is called exactly so comes before whatever the name would match as a pattern.
    Glob,
}

/// What a name means in one hierarchy: the matches of the first way to read it that has any.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) rank: Rank,
    /// Never empty; by path.
    pub(super) nodes: Vec<Node>,
    /// What it would have meant read in another way.
    pub(super) others: Vec<Node>,
}

impl Answer {
    /// The one cgroup that is meant, if there is no doubt: the only one, or the one that encloses all
    /// the others (a container that runs its own cgroups inside under its own name).
    pub(super) fn one(mut self) -> Result<Self, Vec<Node>> {
        let Some(outer) = self.nodes.first() else { return Ok(self) };
        if self.nodes.iter().all(|node| node.path.starts_with(&outer.path)) {
            self.nodes.truncate(1);
            Ok(self)
        } else {
            Err(self.nodes)
        }
    }
}

/// A name, taken apart once for all hierarchies.
#[derive(Debug)]
pub(super) struct Query<'a> {
    pub(super) name: &'a str,
    /// The bytes that it stands for.
    bytes: PathBuf,
    /// The mount that it lies under, by index, and the path below.
    under: Option<(usize, PathBuf)>,
    /// As a pattern, or why it is none although it looks like one.
    pub(super) glob: Option<Result<Glob, String>>,
    id: Option<u64>,
    /// The container that `containerd://ID` names, as kubectl prints it.
    container: Option<&'a str>,
    /// The uids of the pods that it names.
    pod_uids: Vec<&'a str>,
}

impl<'a> Query<'a> {
    pub(super) fn parse(
        name: &'a str,
        hierarchies: &Hierarchies,
        pods: &'a Pods,
    ) -> Result<Self, Error> {
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
        let glob = is_glob(name).then(|| {
            // Under a mount, the pattern is anchored by the slash that stood there.
            let pattern = under.as_ref().map(|(_, rest)| format!("/{}", rest.to_string_lossy()));
            Glob::parse(pattern.as_deref().unwrap_or(name)).map_err(|error| error.to_string())
        });
        let container = name.split_once("://").map(|(_, id)| id);
        let pod_uids = match name.split_once('/') {
            Some((namespace, pod)) => pods.uids(namespace, pod),
            None => Vec::new(),
        };
        let (bytes, id) = (parsed(name), name.parse().ok());
        Ok(Self { name, bytes, under, glob, id, container, pod_uids })
    }

    /// What a search that found nothing was for, to compare with what there is.
    pub(super) fn wanted(&self) -> Cow<'_, str> {
        match (&self.under, self.container) {
            (Some((_, rest)), _) => rest.to_string_lossy(),
            (None, Some(id)) => id.into(),
            (None, None) => self.name.trim_matches('/').into(),
        }
    }

    /// The cgroup at the path that the name is, under the mount or from the hierarchy's root.
    fn exact(&self, index: usize, hierarchy: &Hierarchy) -> Option<Answer> {
        let at = |rank, path: PathBuf| {
            // As it stands, then with the escapes that stand for bytes.
            let escaped = parsed(&path.to_string_lossy());
            let node =
                Node::at(&hierarchy.mount, path).or_else(|| Node::at(&hierarchy.mount, escaped))?;
            Some(Answer { rank, nodes: vec![node], others: Vec::new() })
        };
        let name = Path::new(self.name);
        match &self.under {
            Some((mount, rest)) if *mount == index => at(Rank::MountPath, rest.clone()),
            Some(_) => None,
            None => hierarchy
                .relative(name)
                .and_then(|path| at(Rank::RootPath, path))
                // As seen from inside of a container that was given a part of the tree.
                .or_else(|| at(Rank::RootPath, clean(name)?))
                // As seen from this process's cgroup namespace.
                .or_else(|| at(Rank::RootPath, hierarchy.in_namespace(name)?)),
        }
    }

    /// Whether a cgroup answers to the name, and how, if it is not read as a pattern.
    fn test(&self, last: &OsStr, id: u64, identity: Option<&Identity<'_>>) -> Option<Rank> {
        if last == self.name || last == self.bytes {
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
        let is_id = |id: &str| {
            let name = self.container.unwrap_or(self.name);
            name.len() >= SHORT_ID && id.starts_with(name)
        };
        match identity {
            Identity::Container { id, .. } | Identity::Task(id) => is_id(id),
            Identity::Pod { uid } => {
                uid == self.name || is_id(uid) || self.pod_uids.contains(&&**uid)
            }
            Identity::SystemContainer(name) => *name == self.name,
            Identity::Machine { registered, unit } => {
                registered == self.name
                    || metadata::machine_name(registered) == self.name
                    || unit.is_some_and(|unit| self.is_unit(unit))
            }
            Identity::Job(job) => *job == self.name,
            Identity::Unit { name, .. } => self.is_unit(name),
            Identity::Step(_) | Identity::SlurmUser(_) => false,
        }
    }

    /// By its name without `.service`, and without systemd's escapes.
    fn is_unit(&self, unit: &str) -> bool {
        let is_name =
            |unit: &str| unit == self.name || unit.strip_suffix(".service") == Some(self.name);
        is_name(unit) || (unit.contains('\\') && is_name(&metadata::unescape(unit)))
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
            (Some((mount, _)), Some(Ok(_))) => *mount == index,
            // What begins as a path under a mount is that path or nothing.
            (Some(_), _) => false,
        };
        if answer.is_none() && searched {
            open.push(Open { position, query, matches: BTreeMap::new() });
        }
    }
    if !open.is_empty() {
        tree::walk(&hierarchy.mount, |path, id| {
            let text = shown_path(path);
            let last = path.file_name().unwrap_or_default();
            let identity = metadata::identity(&text);
            let mut enter = false;
            for Open { query, matches, .. } in &mut open {
                let mut found = |rank| {
                    let node = Node { path: path.to_owned(), id };
                    matches.entry(rank).or_default().push(node);
                };
                query.test(last, id, identity.as_ref()).map(&mut found);
                match &query.glob {
                    Some(Ok(glob)) => {
                        let verdict = glob.test_path(path);
                        enter |= verdict.enter;
                        verdict.matches.then(|| found(Rank::Glob));
                    }
                    _ => enter = true,
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
pub(super) fn choose(
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
    if let Some(Err(why)) = &query.glob {
        return Error::Usage(format!("`{}` is not a pattern: {why}", query.name));
    }
    let wanted = query.wanted();
    let mut closest = Closest::new(&wanted);
    let mut cgroups = 0_usize;
    for hierarchy in hierarchies.iter() {
        tree::walk(&hierarchy.mount, |path, _| {
            cgroups += 1;
            let path = shown_path(path);
            let last = path.rsplit('/').next().unwrap_or(&path);
            let plain = metadata::unescape(last);
            let stem = plain.strip_suffix(".service").unwrap_or(&plain);
            closest.offer(&[&path, last, stem], || format!("/{path}"));
            true
        });
    }
    for name in pods.names() {
        let pod = name.rsplit('/').next().unwrap_or(&name);
        closest.offer(&[&name, pod], || name.clone());
    }
    let what = if query.glob.is_some() { "no cgroup matches" } else { "no workload is called" };
    let hint = match closest.names() {
        names if names.is_empty() => {
            let mounts: Vec<_> = hierarchies
                .iter()
                .map(|hierarchy| shown_path(&hierarchy.mount).into_owned())
                .collect();
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
