//! Which pod a uid in a cgroup path belongs to, from the names of the kubelet's log directories.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// Pods of this node by uid.
#[derive(Debug, Default)]
pub(super) struct Pods {
    by_uid: HashMap<String, Pod>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Pods {
    /// Reads `<namespace>_<pod>_<uid>` names below `directory`; a node without Kubernetes has none.
    pub(super) fn read(directory: &Path) -> Self {
        let entries = fs::read_dir(directory).into_iter().flatten().map_while(Result::ok);
        let by_uid = entries.filter_map(|entry| parse(entry.file_name().to_str()?)).collect();
        Self { by_uid }
    }

    pub(super) fn get(&self, uid: &str) -> Option<&Pod> {
        self.by_uid.get(uid)
    }

    /// The uids that `namespace/name` has or had: the logs of a pod outlive it for a while.
    pub(super) fn uids(&self, namespace: &str, name: &str) -> Vec<&str> {
        let matches = |pod: &Pod| pod.namespace == namespace && pod.name == name;
        self.by_uid.iter().filter(|(_, pod)| matches(pod)).map(|(uid, _)| uid.as_str()).collect()
    }

    /// What a person would type: `namespace/name`.
    pub(super) fn names(&self) -> impl Iterator<Item = String> {
        self.by_uid.values().map(|pod| format!("{}/{}", pod.namespace, pod.name))
    }
}

/// Neither a namespace nor the name of a pod can hold an underscore.
fn parse(directory: &str) -> Option<(String, Pod)> {
    let mut parts = directory.split('_');
    let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
    let complete = parts.next().is_none() && !uid.is_empty();
    complete.then(|| (uid.to_owned(), Pod { namespace: namespace.into(), name: name.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_found_by_uid_and_by_name() {
        let logs = tempfile::tempdir().unwrap();
        for name in ["ml_train-0_1111", "ml_train-0_2222", "ml_other_3333", "lost+found", "a_b"] {
            fs::create_dir(logs.path().join(name)).unwrap();
        }
        let pods = Pods::read(logs.path());
        assert_eq!(pods.get("3333"), Some(&Pod { namespace: "ml".into(), name: "other".into() }));
        let mut uids = pods.uids("ml", "train-0");
        uids.sort_unstable();
        assert_eq!(uids, ["1111", "2222"]);
        assert_eq!(pods.names().count(), 3);
        assert!(Pods::read(Path::new("/nonexistent")).uids("ml", "train-0").is_empty());
    }
}
