//! The way to a window's edge: a close look at the counter, a wait for the samples, a survey.
//!
//! Users that come and go around the edge of a window are told apart as well as it is known when the
//! energy at that edge was reached. The counter says so only when it is seen to move, so it is read
//! every few milliseconds until it does; and what was computed up to then is known once the driver
//! has delivered its samples.

use super::Device;
use crate::base::id::User;
use crate::base::monotonic_ns;
use crate::meter::gpu::owner::PidOwner;
use crate::meter::gpu::poller::{CLOSE_LOOK, Context, LOOK_AT_MOST};
use crate::meter::gpu::shares::Shares;

/// How well the time of an edge is to be known, ns.
pub(super) const SHARP_NS: u64 = CLOSE_LOOK.as_nanos() as u64;

/// After so many windows with the same sole user, or none, the counter is not looked at closely:
/// all edges are alike then. Who comes next may be billed half a refresh too much or too little,
/// once.
const SAME_FOR_LONG: u32 = 10;

/// How far a device is on its way to the end of a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Idle,
    /// Its counter is read closely, until it moves or it is `until_ns`.
    Look { since_ns: u64, until_ns: u64 },
    /// It can be surveyed from then on.
    Wait { until_ns: u64 },
}

/// The one who was alone on a device in the latest windows (`None`: nobody), and in how many of them.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SameUser {
    user: Option<User>,
    windows: u32,
}

impl SameUser {
    pub(super) fn note(&mut self, shares: &Shares) {
        let user = match &shares.usage[..] {
            [] => None,
            [user] => Some(user.user),
            _ => return *self = Self::default(),
        };
        if shares.lost_weight > 0.0 {
            *self = Self::default();
        } else if user == self.user {
            self.windows += 1;
        } else {
            *self = Self { user, windows: 1 };
        }
    }
}

impl Device {
    /// A survey is due.
    pub(in super::super) fn begin(&mut self) {
        let now = monotonic_ns();
        // Integrated power has no refresh to look for.
        let look = !self.lost
            && self.source == super::EnergySource::Counter
            && self.state.same_user.windows < SAME_FOR_LONG;
        self.state.phase = if look {
            Phase::Look { since_ns: now, until_ns: now + LOOK_AT_MOST.as_nanos() as u64 }
        } else {
            Phase::Wait { until_ns: now }
        };
    }

    /// Reads the energy if the device is being looked at.
    pub(in super::super) fn look<O: PidOwner>(&mut self, context: &mut Context<O>) {
        let Phase::Look { since_ns, until_ns } = self.state.phase else { return };
        self.read_energy(context);
        let state = &mut self.state;
        let now = monotonic_ns();
        if let Some(moved_ns) = state.curve().knot_within(SHARP_NS, since_ns, u64::MAX) {
            state.phase = Phase::Wait { until_ns: moved_ns + state.sampling.lag_ns() };
        } else if now >= until_ns {
            state.phase = Phase::Wait { until_ns: now };
        }
    }

    pub(in super::super) fn rests(&self) -> bool {
        self.state.phase == Phase::Idle
    }

    pub(in super::super) fn is_looked_at(&self) -> bool {
        matches!(self.state.phase, Phase::Look { .. })
    }

    /// When its survey can be, CLOCK_MONOTONIC; `None` if none is due or that is not known yet.
    pub(in super::super) fn ready_ns(&self) -> Option<u64> {
        match self.state.phase {
            Phase::Wait { until_ns } => Some(until_ns),
            _ => None,
        }
    }

    /// The slow group: who is on the device and what they did; then a window, up to the last moment
    /// that is known sharply, if there is one, and up to which the samples reach.
    pub(in super::super) fn survey<O: PidOwner>(&mut self, context: &mut Context<O>) {
        self.state.phase = Phase::Idle;
        if self.lost && !self.regain(context) {
            return;
        }
        let expected = self.state.sampling.lag_ns();
        let census = self.take_census(context);
        let lag = self.state.sampling.lag_ns();
        let polled = self.state.polled_ns;
        if lag > expected {
            // Only now is it known how late the samples are: those up to the edge are still to come.
            self.state.phase = Phase::Wait { until_ns: polled + (lag - expected) };
            return self.state.census.merge(census);
        }
        let curve = self.state.curve();
        let before = self.state.edge_ns.or(curve.first_ns());
        let edge =
            |off_ns| curve.knot_within(off_ns, before.unwrap_or(0), polled.saturating_sub(lag));
        let edge = edge(SHARP_NS).or_else(|| edge(u64::MAX)).or(before);
        self.window(context, edge, census);
    }
}
