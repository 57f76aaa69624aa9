use super::*;
use crate::workload::names::resolve;

/// A directory that stands for a v2 mount. Nothing in it can be opened by its id, and events are ours
/// to tell.
struct Host {
    top: tempfile::TempDir,
    removed: u32,
}

impl Host {
    fn new(cgroups: &[&str]) -> Self {
        let host = Self { top: tempfile::tempdir().unwrap(), removed: 0 };
        fs::create_dir(host.top.path().join("cgroup")).unwrap();
        fs::write(host.at("cgroup.controllers"), "").unwrap();
        cgroups.iter().for_each(|path| {
            host.make(path);
        });
        host
    }

    fn at(&self, path: &str) -> PathBuf {
        self.top.path().join("cgroup").join(path)
    }

    fn id(&self, path: &str) -> u64 {
        fs::metadata(self.at(path)).unwrap().ino()
    }

    fn make(&self, path: &str) -> u64 {
        fs::create_dir_all(self.at(path)).unwrap();
        self.id(path)
    }

    /// Out of the tree, not out of the world: a file system gives the number of what is deleted to
    /// the next, a cgroup file system does not.
    fn remove(&mut self, path: &str) -> u64 {
        let id = self.id(path);
        self.removed += 1;
        fs::rename(self.at(path), self.top.path().join(format!("gone-{}", self.removed))).unwrap();
        id
    }

    fn select(&self, names: &[&str]) -> Selection {
        let roots = Roots {
            procfs: "/nonexistent".into(),
            cgroupfs: Some(self.top.path().join("cgroup")),
            hostfs: Some("/nonexistent".into()),
            ..Roots::default()
        };
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        resolve(&names, &roots).unwrap()
    }
}

/// Made, and the kernel does not say where.
fn ids(ids: &[u64]) -> Vec<Made> {
    ids.iter().map(|id| Made { id: *id, path: None }).collect()
}

/// Made there, as the kernel says.
fn made(id: u64, path: &str) -> Made {
    Made { id, path: Some(path.into()) }
}

/// As a sentence each: what, id, name, cgroup.
fn told(news: &[Change]) -> Vec<String> {
    let of = |what: &str, it: &Workload| format!("{what} {} {} {}", it.id.0, it.name, it.cgroup);
    let news = news.iter().map(|change| match change {
        Change::Began(workload) => of("began", workload),
        Change::Moved { workload } => of("moved", workload),
        Change::Renamed(workload) => of("renamed", workload),
        Change::Gone { id, .. } => format!("gone {}", id.0),
    });
    news.collect()
}

fn cgroup_id(change: &Change) -> u64 {
    match change {
        Change::Began(workload) | Change::Moved { workload } | Change::Renamed(workload) => {
            workload.cgroup_id
        }
        Change::Gone { cgroup_id, .. } => *cgroup_id,
    }
}

#[test]
fn a_service_that_restarts_is_one_workload() {
    let mut host = Host::new(&["s/a.service", "s/b.service"]);
    let mut selection = host.select(&["a.service", "b.service"]);
    let began = selection.start();
    assert_eq!(told(&began), ["began 1 a.service /s/a.service", "began 2 b.service /s/b.service"]);
    assert_eq!(selection.count(), 2);
    assert!(selection.start().is_empty());

    for _ in 0..10 {
        let old = host.remove("s/a.service");
        let new = host.make("s/a.service");
        assert_ne!(old, new);
        let news = selection.update(&ids(&[new]), &[old], false);
        assert_eq!(told(&news), ["gone 1", "moved 1 a.service /s/a.service"]);
        assert_eq!(news.iter().map(cgroup_id).collect::<Vec<_>>(), [old, new]);
    }
    // The end first, the beginning much later.
    let old = host.remove("s/a.service");
    assert_eq!(told(&selection.update(&[], &[old], false)), ["gone 1"]);
    for _ in 0..10 {
        assert!(selection.update(&[], &[], false).is_empty());
    }
    assert_eq!((selection.count(), selection.over_at()), (1, None));
    // Its parent goes and comes too.
    host.remove("s");
    let new = host.make("s/a.service");
    let news = selection.update(&ids(&[host.id("s"), new]), &[], false);
    assert_eq!(told(&news), ["moved 1 a.service /s/a.service"]);
}

#[test]
fn several_lives_in_one_batch_are_the_last_one() {
    let mut host = Host::new(&["a"]);
    let mut selection = host.select(&["a"]);
    selection.start();
    let mut removed = Vec::new();
    let mut made = Vec::new();
    for _ in 0..3 {
        removed.push(host.remove("a"));
        made.push(host.make("a"));
    }
    let news = selection.update(&ids(&made), &removed, false);
    assert_eq!(told(&news), ["gone 1", "moved 1 a /a"]);
    assert_eq!(cgroup_id(&news[1]), host.id("a"));
    // Its events come again: late, and twice.
    assert!(selection.update(&ids(&made), &removed[..2], false).is_empty());
    // And gone for good in the end.
    removed.push(host.remove("a"));
    assert_eq!(told(&selection.update(&ids(&made), &removed, false)), ["gone 1"]);
}

#[test]
fn what_cannot_be_found_at_once_is_looked_for_again() {
    // The kernel tells of a cgroup just before it can be found.
    let mut host = Host::new(&["a"]);
    let mut selection = host.select(&["a"]);
    selection.start();
    assert_eq!(selection.wake_at(), None);
    let old = host.remove("a");
    assert_eq!(told(&selection.update(&ids(&[7]), &[old], false)), ["gone 1"]);
    let (now, over) = (monotonic_ns(), selection.over_at().unwrap());
    assert!(selection.wake_at().is_some_and(|at| at < over && at < now + 2_000_000));
    host.make("a");
    assert_eq!(told(&selection.update(&[], &[], false)), ["moved 1 a /a"]);
    assert_eq!(selection.over_at(), None);
    assert_eq!(selection.wake_at(), None);
    // Not for ever.
    let old = host.remove("a");
    assert_eq!(selection.update(&[], &[old], false).len(), 1);
    (0..LOOKS).for_each(|_| assert!(selection.update(&[], &[], false).is_empty()));
    assert_eq!(selection.wake_at(), selection.over_at());
}

#[test]
fn what_was_lost_is_looked_for() {
    let mut host = Host::new(&["a", "g/x", "g/y"]);
    let mut selection = host.select(&["a", "g/*"]);
    assert_eq!(told(&selection.start()), ["began 1 a /a", "began 2 g/x /g/x", "began 3 g/y /g/y"]);
    host.remove("a");
    host.make("a");
    host.remove("g/x");
    host.make("g/z");
    let mut news = told(&selection.update(&[], &[], true));
    news.sort();
    assert_eq!(news, ["began 4 g/z /g/z", "gone 1", "gone 2", "moved 1 a /a"]);
    assert!(selection.update(&[], &[], true).is_empty());
}

#[test]
fn a_match_of_a_glob_that_comes_back_is_known() {
    let mut host = Host::new(&["g/x"]);
    let mut selection = host.select(&["g/*"]);
    selection.start();
    let old = host.remove("g/x");
    let new = host.make("g/x");
    assert_eq!(
        told(&selection.update(&ids(&[new]), &[old], false)),
        ["gone 1", "moved 1 g/x /g/x"]
    );
    // No glob is ever over.
    let old = host.remove("g/x");
    assert_eq!(told(&selection.update(&[], &[old], false)), ["gone 1"]);
    assert!(!selection.is_over() && selection.over_at().is_none());
}

#[test]
fn only_so_many_ends_are_remembered_and_names_always() {
    let mut host = Host::new(&["g/first", "g/named"]);
    let mut selection = host.select(&["g/named", "g/*"]);
    selection.start();
    let gone = [host.remove("g/first"), host.remove("g/named")];
    assert_eq!(told(&selection.update(&[], &gone, false)), ["gone 2", "gone 1"]);
    // Without the tree, so that it takes no time: as `match_globs` and `update` do.
    let end = |selection: &mut Selection, number: u64| {
        let node = Node { path: format!("g/{number}").into(), id: u64::MAX - number };
        let mut news = Vec::new();
        selection.appear(node, number.to_string(), false, &mut LazyPods::default(), &mut news);
        selection.leave(u64::MAX - number, &mut news);
        selection.forget();
        assert_eq!(news.len(), 2);
    };
    (0..REMEMBERED as u64 - 1).for_each(|number| end(&mut selection, number));
    let new = host.make("g/first");
    assert_eq!(told(&selection.update(&ids(&[new]), &[], false)), ["moved 2 g/first /g/first"]);
    host.remove("g/first");
    selection.update(&[], &[new], false);
    (0..20_000).for_each(|number| end(&mut selection, number));
    assert!(selection.known.len() <= REMEMBERED + 1, "{}", selection.known.len());
    assert!(selection.ended.len() <= REMEMBERED);
    let new = [host.make("g/first"), host.make("g/named")];
    let news = selection.update(&ids(&new), &[], false);
    assert_eq!(told(&news[..1]), ["moved 1 g/named /g/named"]);
    let Change::Began(workload) = &news[1] else { panic!("{news:?}") };
    assert!(workload.id.0 > REMEMBERED as u64, "an id is never used again");
}

#[test]
fn a_run_is_over_a_while_after_the_last_is_gone() {
    let mut host = Host::new(&["a", "b"]);
    let mut selection = host.select(&["a", "b"]);
    selection.start();
    let gone = [host.remove("a")];
    selection.update(&[], &gone, false);
    assert_eq!(selection.over_at(), None);
    let gone = [host.remove("b")];
    let before = monotonic_ns();
    selection.update(&[], &gone, false);
    let at = selection.over_at().unwrap();
    assert!((before + GRACE_NS..=monotonic_ns() + GRACE_NS).contains(&at));
    assert!(!selection.is_over());
    // Looking again does not put it off.
    selection.update(&[], &[], false);
    assert_eq!(selection.over_at(), Some(at));
    // Who comes back in time goes on.
    let new = host.make("b");
    assert_eq!(told(&selection.update(&ids(&[new]), &[], false)), ["moved 2 b /b"]);
    assert_eq!(selection.over_at(), None);
    host.remove("b");
    selection.update(&[], &[new], false);
    selection.gone_since = Some(monotonic_ns() - GRACE_NS);
    assert!(selection.is_over());
}

#[test]
fn a_renamed_cgroup_stays_what_it_is() {
    let host = Host::new(&["a", "g/x"]);
    let mut selection = host.select(&["a", "g/*"]);
    selection.start();
    let (a, x) = (host.id("a"), host.id("g/x"));
    let mut news = Vec::new();
    for (from, to, id) in [("a", "other", a), ("g/x", "g/y", x)] {
        fs::rename(host.at(from), host.at(to)).unwrap();
        selection.rename(id, Path::new(to).into(), &mut news);
    }
    assert_eq!(told(&news), ["renamed 1 a /other", "renamed 2 g/y /g/y"]);
    // The name is the path's: what is made there is the workload too, with all that it was.
    let new = host.make("a");
    assert_eq!(told(&selection.update(&ids(&[new]), &[], false)), ["moved 1 a /a"]);
    assert_eq!(told(&selection.update(&[], &[a], false)), ["gone 1"]);
    // A match of a glob took its name along.
    let new = host.make("g/x");
    assert_eq!(told(&selection.update(&ids(&[new]), &[], false)), ["began 3 g/x /g/x"]);
    // And back again.
    let mut news = Vec::new();
    selection.rename(x, Path::new("g/z").into(), &mut news);
    selection.rename(host.id("a"), Path::new("b").into(), &mut news);
    selection.rename(host.id("a"), Path::new("a").into(), &mut news);
    assert_eq!(told(&news), ["renamed 2 g/z /g/z", "renamed 1 a /b", "renamed 1 a /a"]);
    assert!(selection.vacant.is_empty());
}

#[test]
fn what_lived_between_two_looks_is_told_where_the_kernel_says_where_it_was() {
    let mut host = Host::new(&["a", "g/first"]);
    let mut selection = host.select(&["a", "g/*"]);
    selection.sees_all = true;
    assert_eq!(told(&selection.start()), ["began 1 a /a", "began 2 g/first /g/first"]);

    // None of these is there any more but the last life of `a`.
    let old = host.remove("a");
    let news = selection.update(
        &[
            made(1_001, "/g/job"),
            made(1_002, "/a"),
            made(1_003, "/elsewhere/job"),
            made(1_004, "/g/job/inner"),
            made(1_005, "/a"),
            made(1_006, "/g/job"),
            made(1_007, "/a"),
        ],
        &[old, 1_002, 1_004, 1_001, 1_003, 1_005],
        false,
    );
    let expected = [
        "gone 1",
        "began 3 g/job /g/job",
        "gone 3",
        "moved 1 a /a",
        "gone 1",
        "moved 1 a /a",
        "gone 1",
        "moved 3 g/job /g/job",
        "moved 1 a /a",
    ];
    assert_eq!(told(&news), expected);
    let of = |wanted: u64| news.iter().filter(|change| cgroup_id(change) == wanted).count();
    assert_eq!([1_001, 1_002, 1_005, 1_006, 1_007].map(of), [2, 2, 2, 1, 1]);
    assert_eq!([1_003, 1_004].map(of), [0, 0]);
    assert!(!selection.is_undecided(1_003), "what is nobody's is so at once");
    assert_eq!(told(&selection.update(&[], &[1_006, 1_007], false)), ["gone 3", "gone 1"]);
}

#[test]
fn a_path_is_not_taken_for_one_below_a_mount_that_shows_a_part() {
    let mut host = Host::new(&["g/first"]);
    let mut selection = host.select(&["g/*"]);
    selection.start();
    assert!(!selection.sees_all);
    assert!(selection.update(&[made(1_001, "/g/job")], &[1_001], false).is_empty());
    // What is there is found.
    let new = host.make("g/x");
    assert_eq!(
        told(&selection.update(&[made(new, "/part/g/x")], &[], false)),
        ["began 2 g/x /g/x"]
    );
    // What is not may be in the making, until it was looked for often enough.
    selection.update(&[made(1_002, "/part/g/y")], &[], false);
    assert!(selection.is_undecided(1_002) && !selection.is_undecided(1_001));
    (0..LOOKS).for_each(|_| drop(selection.update(&[], &[], false)));
    assert!(!selection.is_undecided(1_002));
    host.remove("g/x");
}
