//! (window, usage, model) → postings: the one accounting of every domain.
//!
//! Of the energy `E` of a window, what the domain draws with nothing running is set apart first, and
//! the rest goes by use:
//!
//! ```text
//! dynamic = max(0, E − S·t)        a user's share = dynamic·w/Σw        idle = E − dynamic
//! ```
//!
//! with the static power `S` in watts and `t` the seconds of the window at static power. Nothing is
//! negative, and the postings add up to `E`.

use super::usage::Usage;
use crate::base::{Account, Joules, Seconds, Watts};

/// What a domain drew between two readings.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Window {
    pub(crate) energy: Joules,
    pub(crate) time: Seconds,
}

/// Where idle energy goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum IdleTo {
    /// It is a line of its own.
    #[default]
    Nobody,
    /// Those who used the domain, by use.
    Users,
    /// Those who held it, used or not, in equal parts.
    Holders,
}

/// What is known of a domain's power in a window.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Static {
    /// Drawn with nothing running; 0 where that is not known.
    pub(crate) power: Watts,
    /// How long the window can have been at that power.
    pub(crate) time: Seconds,
}

/// Joules to one account. A correction of what was posted before is a posting too, and may be
/// negative; what [`attribute`] makes is not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Posting {
    pub(crate) account: Account,
    /// What running added. Of the account `idle`: nothing.
    pub(crate) dynamic: Joules,
    /// The account's part of the idle energy.
    pub(crate) idle: Joules,
}

/// A remainder smaller than this part of the whole is what rounding leaves: none.
pub(super) const ROUNDING: f64 = 1e-12;

/// Splits a window.
pub(crate) fn attribute(
    window: Window,
    usage: Usage<'_>,
    floor: Static,
    idle_to: IdleTo,
    mut post: impl FnMut(Posting),
) {
    const NOTHING: Joules = Joules(0.0);
    let dynamic = Joules((window.energy.0 - (floor.power * floor.time).0).max(0.0));
    let idle = window.energy - dynamic;
    let shared_by_use = idle_to == IdleTo::Users;
    let mut left = idle;
    for (user, part, of_idle) in usage.parts() {
        let idle = if shared_by_use { idle * of_idle } else { NOTHING };
        left = left - idle;
        post(Posting { account: user.into(), dynamic: dynamic * part, idle });
    }
    let nobody = if usage.total() > 0.0 { usage.untold_part() } else { 1.0 };
    if nobody > 0.0 && dynamic.0 > 0.0 {
        let account = Account::Unattributed;
        post(Posting { account, dynamic: dynamic * nobody, idle: NOTHING });
    }
    if idle_to == IdleTo::Holders && !usage.holders.is_empty() {
        let each = idle * (usage.holders.len() as f64).recip();
        for user in usage.holders {
            post(Posting { account: (*user).into(), dynamic: NOTHING, idle: each });
        }
        left = NOTHING;
    }
    // What rounding leaves of an idle energy that was shared out whole is none.
    if left.0 > idle.0 * ROUNDING {
        post(Posting { account: Account::Idle, dynamic: NOTHING, idle: left });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::{User, WorkloadId};

    const A: User = User::Workload(WorkloadId(1));

    fn postings(joules: f64, usage: Usage<'_>, watts: f64, idle_to: IdleTo) -> Vec<Posting> {
        let window = Window { energy: Joules(joules), time: Seconds(1.0) };
        let floor = Static { power: Watts(watts), time: Seconds(1.0) };
        let mut postings = Vec::new();
        attribute(window, usage, floor, idle_to, |posting| postings.push(posting));
        postings
    }

    fn posting(account: Account, dynamic: f64, idle: f64) -> Posting {
        Posting { account, dynamic: Joules(dynamic), idle: Joules(idle) }
    }

    #[test]
    fn static_energy_is_set_apart_and_the_rest_goes_by_use() {
        let users = [(User::Other, 1.0), (A, 3.0)];
        let usage = Usage { users: &users, ..Usage::default() };
        let expected = [
            posting(Account::Other, 10.0, 0.0),
            posting(A.into(), 30.0, 0.0),
            posting(Account::Idle, 0.0, 20.0),
        ];
        assert_eq!(postings(60.0, usage, 20.0, IdleTo::Nobody), expected);
        let shared = postings(60.0, usage, 20.0, IdleTo::Users);
        assert_eq!(shared, [posting(Account::Other, 10.0, 5.0), posting(A.into(), 30.0, 15.0)]);
    }

    #[test]
    fn what_nobody_is_known_to_have_used_is_unattributed() {
        let nobody = postings(60.0, Usage::default(), 20.0, IdleTo::Users);
        let expected =
            [posting(Account::Unattributed, 40.0, 0.0), posting(Account::Idle, 0.0, 20.0)];
        assert_eq!(nobody, expected);
        let users = [(A, 3.0)];
        let usage = Usage { users: &users, untold: 1.0, ..Usage::default() };
        let some = postings(60.0, usage, 20.0, IdleTo::Nobody);
        assert_eq!(some[0], posting(A.into(), 30.0, 0.0));
        assert_eq!(some[1], posting(Account::Unattributed, 10.0, 0.0));
    }

    #[test]
    fn holders_share_idle_energy_alike() {
        let users = [(A, 1.0)];
        let holders = [User::Other, A];
        let usage = Usage { users: &users, holders: &holders, ..Usage::default() };
        let shared = postings(150.0, usage, 50.0, IdleTo::Holders);
        let expected = [
            posting(A.into(), 100.0, 0.0),
            posting(Account::Other, 0.0, 25.0),
            posting(A.into(), 0.0, 25.0),
        ];
        assert_eq!(shared, expected);
    }

    #[test]
    fn where_nothing_was_drawn_nothing_is_posted_but_zeros() {
        let users = [(A, 0.1), (User::Other, 0.2)];
        for idle_to in [IdleTo::Nobody, IdleTo::Users] {
            let usage = Usage { users: &users, ..Usage::default() };
            for posting in postings(0.0, usage, 3.0, idle_to) {
                assert_eq!((posting.dynamic.0, posting.idle.0), (0.0, 0.0));
            }
        }
    }

    proptest! {
        #[test]
        fn postings_add_up_and_none_is_negative(
            joules in 0.0..1e6f64,
            weights in proptest::collection::vec(prop_oneof![Just(0.0), Just(-1.0), 0.0..1e10f64], 0..8),
            untold in prop_oneof![Just(0.0), 0.0..10.0f64],
            watts in 0.0..500.0f64,
            policy in 0..3usize,
        ) {
            let users: Vec<_> = weights.iter().zip(1..)
                .map(|(weight, id)| (User::Workload(WorkloadId(id)), *weight)).collect();
            let holders: Vec<_> = users.iter().map(|(user, _)| *user).step_by(2).collect();
            let usage = Usage { users: &users, untold, holders: &holders, ..Usage::default() };
            let idle_to = [IdleTo::Nobody, IdleTo::Users, IdleTo::Holders][policy];
            let postings = postings(joules, usage, watts, idle_to);
            let mut sum = 0.0;
            for posting in &postings {
                prop_assert!(posting.dynamic.0 >= 0.0 && posting.idle.0 >= 0.0, "{postings:?}");
                sum += posting.dynamic.0 + posting.idle.0;
            }
            prop_assert!((sum - joules).abs() <= 1e-9 * joules, "{sum} {joules}");
        }
    }
}
