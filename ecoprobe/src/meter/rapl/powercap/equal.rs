//! Whether counters of one socket are one counter, seen several times.
//!
//! The dies of Zen 1 and 2 have a zone each, and all of them show the counter of their socket. Those
//! of Cascade Lake-AP have counters of their own. Names do not tell the two apart, the counts do.

use std::time::{Duration, Instant};

use super::counter::{Counter, ReadError};
use crate::host::powercap::Zone;

/// Two counters are one if they showed the same at so many of its moves, over at least so long.
/// A register moves every millisecond; an idle pair may be equal once, but does not stay so.
const MOVES: usize = 4;
const AT_LEAST: Duration = Duration::from_millis(10);
/// What does not move so often in this time is not known to be one. No register takes as long: it is
/// for counters that a program keeps, on a machine that is busy.
const AT_MOST: Duration = Duration::from_secs(1);
/// Looks at one pair before it counts as different: whoever writes the counts of a test tree may be
/// between the two.
const LOOKS: usize = 3;

/// For each zone the first one of the same socket and kind whose counter it shows as well. Takes no
/// time where no two zones could be one, or where their counts differ.
pub(super) fn equal_counters(
    zones: &[Zone],
    counters: &mut [Option<Counter>],
    failed: &[Option<ReadError>],
) -> Vec<Option<usize>> {
    let mut equals = vec![None; zones.len()];
    let readable = |index: usize| failed.get(index).is_some_and(Option::is_none);
    for later in (0..zones.len()).filter(|&index| readable(index)) {
        for earlier in (0..later).filter(|&index| readable(index)) {
            if equals[earlier].is_none()
                && may_be_one(&zones[earlier], &zones[later])
                && are_one(counters, earlier, later)
            {
                equals[later] = Some(earlier);
                break;
            }
        }
    }
    equals
}

/// Dies of one socket, or what lies in them.
fn may_be_one(a: &Zone, b: &Zone) -> bool {
    let dies = a.package.zip(b.package).filter(|(a, b)| a.socket == b.socket && a.die != b.die);
    a.kind == b.kind && !a.mmio && !b.mmio && dies.is_some()
}

fn are_one(counters: &mut [Option<Counter>], a: usize, b: usize) -> bool {
    let mut count = |index: usize| counters.get_mut(index)?.as_mut()?.read().ok().map(|r| r.count);
    let began = Instant::now();
    let (mut moves, mut last) = (0, None);
    while began.elapsed() < AT_MOST {
        let mut looks = (0..LOOKS).map(|look| {
            if look > 0 {
                std::thread::sleep(Duration::from_micros(200));
            }
            // Refreshed between the two, the counter of both lies between its own two counts.
            let (before, other, after) = (count(a)?, count(b)?, count(a)?);
            Some((before..=after).contains(&other).then_some(after))
        });
        let Some(seen) = looks.find_map(|look| look.flatten()) else { return false };
        if last.replace(seen) != Some(seen) {
            moves += 1;
        }
        // The count that it began with is no move.
        if moves > MOVES && began.elapsed() >= AT_LEAST {
            return true;
        }
        // Dead counters are another matter.
        if seen == 0 && began.elapsed() >= AT_LEAST {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}
