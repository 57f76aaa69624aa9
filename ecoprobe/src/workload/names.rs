//! From what a person types to cgroups.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::Roots;
use super::hierarchy::{Hierarchies, Hierarchy};
use super::pods::Pods;
use super::query::{Query, Rank, choose};
pub use super::selection::{Change, Made, Selection};
use super::selection::{Found, path_name};
use super::shown::shown_path;
use super::tree::Node;
use crate::base::error::Error;

/// How many names an error or a warning lists.
const LISTED: usize = 8;

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
    let mut found: Vec<Found> = Vec::new();
    let mut positions: HashMap<PathBuf, usize> = HashMap::new();
    let mut globs = Vec::new();
    for (query, answer) in queries.into_iter().zip(answers) {
        let is_glob = answer.rank == Rank::Glob;
        let answer = if is_glob { Ok(answer) } else { answer.one() };
        let answer = answer.map_err(|nodes| ambiguous(query.name, &hierarchy, &nodes))?;
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
        for node in answer.nodes {
            if let Some(position) = positions.get(&node.path) {
                let earlier: &mut Found = &mut found[*position];
                if !is_glob && earlier.name != query.name {
                    warnings.push(format!(
                        "`{}` and `{}` are the same cgroup, {}: it is reported once, as `{}`",
                        earlier.name,
                        query.name,
                        hierarchy.cgroup(&node.path),
                        earlier.name
                    ));
                }
                earlier.named |= !is_glob;
                continue;
            }
            let name = if is_glob { path_name(&node.path) } else { query.name.to_owned() };
            positions.insert(node.path.clone(), found.len());
            found.push(Found { name, named: !is_glob, node });
        }
        if is_glob {
            globs.extend(query.glob.and_then(Result::ok));
        }
    }
    let selects_top = found.iter().any(|found| found.node.path.as_os_str().is_empty());
    if selects_top && !hierarchy.is_whole() {
        warnings.push(format!(
            "{} shows a part of this machine's cgroups only, so `/` is not the whole machine; give \
             ecoprobe the host's cgroup mount with --cgroupfs",
            shown_path(&hierarchy.mount)
        ));
    }
    warnings.extend(nesting(&found));
    Ok(Selection::new(hierarchy, found, warnings, globs, roots))
}

fn ambiguous(name: &str, hierarchy: &Hierarchy, nodes: &[Node]) -> Error {
    let paths = nodes.iter().map(|node| hierarchy.cgroup(&node.path));
    Error::NoWorkload(format!(
        "`{name}` may be any of {} cgroups, say which, or use a glob to select them all: {}",
        nodes.len(),
        list(paths)
    ))
}

/// A sentence for each selected cgroup that has selected ones below it.
fn nesting(found: &[Found]) -> Vec<String> {
    let mut sorted: Vec<_> = found.iter().map(|found| (&*found.node.path, &*found.name)).collect();
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
