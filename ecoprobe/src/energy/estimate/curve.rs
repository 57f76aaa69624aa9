//! How a server's power rises with its load, and how far servers are from what is said of them.
//!
//! Both are computed from the results of SPECpower_ssj2008 that SPEC publishes, as
//! <https://github.com/green-coding-solutions/spec-power-model> collects them
//! (`data/spec_data_cleaned_unmelted.csv` at commit 9739f29c03f5d4c05bc63ab95cbed5cac846c6f8): the 147
//! servers whose hardware has been available since 2019, 52 with AMD's processors and 95 with Intel's.

/// Thousandths of the way from idle to full power, at 0, 10, … 100 % load: the medians of the servers.
const ALL: Points = [0, 170, 239, 304, 369, 432, 510, 601, 715, 859, 1000];
const AMD: Points = [0, 256, 335, 424, 498, 570, 642, 719, 799, 881, 1000];
const INTEL: Points = [0, 149, 213, 278, 342, 399, 479, 566, 692, 854, 1000];

type Points = [u32; 11];

/// Whose servers speak for this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Maker {
    Amd,
    Intel,
    /// Another one, or one that is not known: all servers speak for it.
    Other,
}

impl Maker {
    pub(super) fn of(vendor: &str) -> Self {
        match vendor {
            "AuthenticAMD" => Self::Amd,
            "GenuineIntel" => Self::Intel,
            _ => Self::Other,
        }
    }

    pub(super) fn servers(self) -> &'static str {
        match self {
            Self::Amd => "AMD servers",
            Self::Intel => "Intel servers",
            Self::Other => "all servers",
        }
    }

    fn points(self) -> &'static Points {
        match self {
            Self::Amd => &AMD,
            Self::Intel => &INTEL,
            Self::Other => &ALL,
        }
    }

    /// `capacity` weighed by how far power has risen, in thousandths of its unit: with CPUs × time and
    /// the CPU time used of it, the time at full power that costs the same above idle. In integers and
    /// without a division, so exact. More than all of it is all of it.
    pub(super) fn rise(self, busy: u64, capacity: u128) -> u128 {
        let points = self.points();
        let steps = (points.len() - 1) as u128;
        let busy = u128::from(busy).min(capacity);
        // Of nothing, nothing is used.
        let Some(step) = (steps * busy).checked_div(capacity) else { return 0 };
        // Full load is the end of the last step.
        let step = step.min(steps - 1);
        let beyond = steps * busy - step * capacity;
        let (from, to) = (points[step as usize], points[step as usize + 1]);
        // The first term is above 0 only with a tenth of the capacity used, which had 64 bits.
        u128::from(from) * capacity + u128::from(to - from) * beyond
    }
}

/// How far servers are from what the estimate says: the root mean square of measured ÷ estimated − 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    /// Of what load adds to idle.
    pub(super) dynamic: f64,
    /// Of idle.
    pub(super) idle: f64,
}

impl Spread {
    /// Each server's published power per thread is held against the row of `cpu_power.csv` that the
    /// program would take and the curve: idle, and what each of the loads 10, 20, … 100 % adds.
    ///
    /// With figures of its `own` microarchitecture (52 servers of AMD, 81 of Intel) that is the row of
    /// that microarchitecture. Without, it is the last row, which is anybody's, held against all 52, 95
    /// or 147; Intel's idle, which happens to come out nearer so (0.55), is not called surer for it.
    ///
    /// What a `guest` adds depends on how busy the server is, which it does not see. So a guest of
    /// each load is put on a server of each load, every pair counting the same: its due is its share of
    /// what that load adds there. Idle is not touched by that.
    ///
    /// SPEC's servers are sparsely equipped and run one benchmark, and a guest's CPU is taken for a
    /// whole hardware thread: the errors of other machines, programs and overcommitted hosts come on top.
    pub(super) fn of(maker: Maker, own: bool, guest: bool) -> Self {
        let (alone, among_others, idle) = match (maker, own) {
            (Maker::Amd, true) => (0.20, 0.55, 0.25),
            (Maker::Amd, false) => (0.58, 0.58, 0.55),
            (Maker::Intel, true) => (0.26, 0.40, 0.82),
            (Maker::Intel, false) => (0.29, 0.44, 0.82),
            (Maker::Other, _) => (0.36, 0.44, 0.55),
        };
        Self { dynamic: if guest { among_others } else { alone }, idle }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAKERS: [Maker; 3] = [Maker::Amd, Maker::Intel, Maker::Other];

    #[test]
    fn the_points_are_met_and_joined_by_straight_lines() {
        for maker in MAKERS {
            for (tenths, &point) in maker.points().iter().enumerate() {
                assert_eq!(maker.rise(tenths as u64 * 700, 7_000), u128::from(point) * 7_000);
            }
        }
        // A quarter of the way from 10 to 20 %, half of it from 90 to 100 %, all but a thousandth of
        // the way from 0 to 10 %.
        assert_eq!(Maker::Amd.rise(1_250, 10_000), 2_560_000 + 790_000 / 4);
        assert_eq!(Maker::Intel.rise(9_500, 10_000), 8_540_000 + 1_460_000 / 2);
        assert_eq!(Maker::Other.rise(999, 10_000), 1_700_000 / 1_000 * 999);
    }

    #[test]
    fn vendors() {
        assert_eq!(Maker::of("AuthenticAMD"), Maker::Amd);
        assert_eq!(Maker::of("GenuineIntel"), Maker::Intel);
        for other in ["HygonGenuine", "0x41", ""] {
            assert_eq!(Maker::of(other), Maker::Other);
        }
    }

    #[test]
    fn more_than_all_is_all_and_of_nothing_nothing() {
        for maker in MAKERS {
            assert_eq!(maker.rise(11, 10), 10_000);
            assert_eq!(maker.rise(u64::MAX, 10), 10_000);
            assert_eq!((maker.rise(0, 0), maker.rise(5, 0)), (0, 0));
        }
    }

    #[test]
    fn nobody_is_surer_of_a_stand_in_or_of_a_guest() {
        for maker in MAKERS {
            for guest in [false, true] {
                let (own, other) =
                    (Spread::of(maker, true, guest), Spread::of(maker, false, guest));
                assert!(other.dynamic >= own.dynamic && other.idle >= own.idle);
            }
            for own in [false, true] {
                let (host, guest) = (Spread::of(maker, own, false), Spread::of(maker, own, true));
                assert!(guest.dynamic >= host.dynamic && guest.idle == host.idle);
            }
        }
    }

    proptest! {
        #[test]
        fn more_load_never_costs_less(
            capacity in prop_oneof![0..100_u128, 0..=u128::MAX],
            busy in prop_oneof![0..100_u64, 0..=u64::MAX],
            more in prop_oneof![0..100_u64, 0..=u64::MAX],
        ) {
            for maker in MAKERS {
                let rise = maker.rise(busy, capacity);
                prop_assert!(rise <= capacity.saturating_mul(1000));
                prop_assert!(maker.rise(busy.saturating_add(more), capacity) >= rise);
            }
        }
    }
}
