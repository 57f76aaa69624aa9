//! Who used a domain in a window, and how much.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::base::User;

/// Weights are relative to one another: CPU time on that package, use of that GPU. Those that are not
/// above zero count for nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage<'a> {
    pub(crate) users: &'a [(User, f64)],
    /// Weight of those who used it and cannot be told.
    pub(crate) untold: f64,
    /// Those who held the domain, whether they used it or not.
    pub(crate) holders: &'a [User],
}

impl Usage<'_> {
    /// Of all together; 0 if nobody used it.
    pub(crate) fn total(&self) -> f64 {
        let users = self.users.iter().map(|(_, weight)| *weight);
        let total: f64 = users.chain([self.untold]).filter(|weight| *weight > 0.0).sum();
        if total.is_normal() { total } else { 0.0 }
    }

    /// Each user with its part of the whole, 0 to 1.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (User, f64)> {
        let inverse = self.total().recip();
        let known = if inverse.is_finite() { self.users } else { &[] };
        let used = known.iter().filter(|(_, weight)| *weight > 0.0);
        used.map(move |(user, weight)| (*user, weight * inverse))
    }

    /// The part of those who cannot be told.
    pub(crate) fn untold_part(&self) -> f64 {
        let total = self.total();
        if total > 0.0 { self.untold.max(0.0) / total } else { 0.0 }
    }
}

/// CPU time of several samples together, for a counter that could not be read meanwhile.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gathered {
    by_user: FxHashMap<User, f64>,
    users: Vec<(User, f64)>,
}

impl Gathered {
    pub(crate) fn add(&mut self, users: &[(User, f64)]) {
        for (user, weight) in users {
            *self.by_user.entry(*user).or_default() += weight;
        }
    }

    /// All that another one gathered, which is empty then.
    pub(crate) fn take(&mut self, other: &mut Self) {
        for (user, weight) in other.by_user.drain() {
            *self.by_user.entry(user).or_default() += weight;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.by_user.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_user.is_empty()
    }

    /// What was gathered, by who it is billed to: `row` says that of a user.
    pub(crate) fn users(&mut self, row: impl Fn(User) -> User) -> &[(User, f64)] {
        let mut gathered: Vec<_> = self.by_user.iter().collect();
        gathered.sort_unstable_by_key(|(user, _)| **user);
        let mut rows: BTreeMap<User, f64> = BTreeMap::new();
        for (user, weight) in gathered {
            *rows.entry(row(*user)).or_default() += weight;
        }
        self.users.clear();
        self.users.extend(rows);
        &self.users
    }
}
