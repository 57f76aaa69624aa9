//! Who used a domain in a window, and how much.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::base::{Seconds, User};

/// Weights are relative to one another: CPU time on that package, use of that GPU. Those that are not
/// above zero count for nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage<'a> {
    pub(crate) users: &'a [(User, f64)],
    /// By what idle energy is shared, of the same users in the same order; without it, as all else.
    pub(crate) idle: Option<&'a [(User, f64)]>,
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

    /// Each user with its part of the whole, and of the idle energy where that is shared, 0 to 1.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (User, f64, f64)> {
        let inverse = self.total().recip();
        let known = if inverse.is_finite() { self.users } else { &[] };
        let idle = self.idle.filter(|idle| idle.len() == self.users.len());
        let of_idle = idle.map(|users| Usage { users, ..Self::default() }.total().recip());
        let of_idle = of_idle.filter(|inverse| inverse.is_finite());
        let parts = known.iter().enumerate().map(move |(index, &(user, weight))| {
            let part = weight * inverse;
            let of_idle = match (idle, of_idle) {
                (Some(idle), Some(inverse)) => idle[index].1.max(0.0) * inverse,
                _ => part,
            };
            (user, part, of_idle)
        });
        parts.filter(|(_, part, _)| *part > 0.0)
    }

    /// The part of those who cannot be told.
    pub(crate) fn untold_part(&self) -> f64 {
        let total = self.total();
        if total > 0.0 { self.untold.max(0.0) / total } else { 0.0 }
    }
}

/// CPU time of one user, nanoseconds, and the part of it beside a busy thread of the same core.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ran {
    pub(crate) user: User,
    pub(crate) ns: f64,
    pub(crate) paired_ns: f64,
}

/// What everybody did on one package.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Running<'a> {
    /// A user stands there once.
    pub(crate) users: &'a [Ran],
    /// Paired time is measured.
    pub(crate) paired: bool,
    /// How long any CPU of the machine was awake, where that is measured.
    pub(crate) awake: Option<Seconds>,
}

/// The running of several samples together, for a counter that could not be read meanwhile.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gathered {
    by_user: FxHashMap<User, (f64, f64)>,
    users: Vec<Ran>,
    paired: bool,
    awake: Option<Seconds>,
    samples: u32,
}

impl Gathered {
    pub(crate) fn add(&mut self, running: Running<'_>) {
        for ran in running.users {
            let sum = self.by_user.entry(ran.user).or_default();
            sum.0 += ran.ns;
            sum.1 += ran.paired_ns;
        }
        self.join(running.paired, running.awake, 1);
    }

    /// All that another one gathered, which is empty then.
    pub(crate) fn take(&mut self, other: &mut Self) {
        for (user, (ns, paired_ns)) in other.by_user.drain() {
            let sum = self.by_user.entry(user).or_default();
            sum.0 += ns;
            sum.1 += paired_ns;
        }
        self.join(other.paired, other.awake, std::mem::take(&mut other.samples));
        (other.paired, other.awake) = (false, None);
    }

    /// A sum is known where all of it is.
    fn join(&mut self, paired: bool, awake: Option<Seconds>, samples: u32) {
        if samples == 0 {
            return;
        }
        if self.samples == 0 {
            (self.paired, self.awake) = (paired, awake);
        } else {
            self.paired &= paired;
            self.awake = self.awake.zip(awake).map(|(sum, more)| sum + more);
        }
        self.samples = self.samples.saturating_add(samples);
    }

    pub(crate) fn clear(&mut self) {
        self.by_user.clear();
        (self.paired, self.awake, self.samples) = (false, None, 0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_user.is_empty()
    }

    /// What was gathered, by who it is billed to: `row` says that of a user.
    pub(crate) fn running(&mut self, row: impl Fn(User) -> User) -> Running<'_> {
        let mut gathered: Vec<_> = self.by_user.iter().collect();
        gathered.sort_unstable_by_key(|(user, _)| **user);
        let mut rows: BTreeMap<User, (f64, f64)> = BTreeMap::new();
        for (user, (ns, paired_ns)) in gathered {
            let sum = rows.entry(row(*user)).or_default();
            sum.0 += ns;
            sum.1 += paired_ns;
        }
        self.users.clear();
        let rows = rows.into_iter();
        self.users.extend(rows.map(|(user, (ns, paired_ns))| Ran { user, ns, paired_ns }));
        Running { users: &self.users, paired: self.paired, awake: self.awake }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_which_a_part_is_not_known_is_not_known() {
        let users = [Ran { user: User::Other, ns: 5.0, paired_ns: 2.0 }];
        let known = Running { users: &users, paired: true, awake: Some(Seconds(1.0)) };
        let unknown = Running { paired: false, awake: None, ..known };
        let told = |all: &[Running<'_>]| {
            let mut gathered = Gathered::default();
            all.iter().for_each(|running| gathered.add(*running));
            let mut taken = Gathered::default();
            taken.take(&mut gathered);
            let Running { users, paired, awake } = taken.running(|user| user);
            assert_eq!(users[0].ns, 5.0 * all.len() as f64);
            (paired, awake)
        };
        assert_eq!(told(&[known, known]), (true, Some(Seconds(2.0))));
        assert_eq!(told(&[known, unknown]), (false, None));
        assert_eq!(told(&[unknown, known]), (false, None));
    }
}
