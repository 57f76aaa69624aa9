//! Process lists, as a driver may have laid them out.
//!
//! The lists of `_v2` and `_v3` have entries of 24 bytes: pid, memory, and the two ids of a MIG
//! instance. Early 535 drivers (535.43 to 535.86) fill the same functions' buffers with entries of
//! 32: eight more for protected memory. Nothing in the call says which, so the content has to: the
//! buffer is roomy and holds a pattern that no driver writes, and the entries must make sense.

use nvml_wrapper_sys::bindings::nvmlProcessInfo_t;

use crate::meter::gpu::driver::Process;

/// What the buffer is filled with beforehand, eight bytes at a time. As a pid it is far above any.
const UNTOUCHED: u64 = 0xa5a5_a5a5_a5a5_a5a5;

/// Room for an entry, in words of eight bytes: twice the largest known, so that entries of yet
/// another size end inside of the buffer.
const WORDS: usize = 8;

/// PID_MAX_LIMIT of 64-bit kernels, include/linux/threads.h
const MOST_PIDS: u32 = 4 << 20;

/// More than any device has: memory beyond this was no figure of memory.
const MOST_BYTES: u64 = 1 << 50;

/// NVML_VALUE_NOT_AVAILABLE: all ones.
const NOT_AVAILABLE: u64 = u64::MAX;

/// Sizes of an entry, in words; the usual one first.
const USUAL: usize = 3;
const LARGE: usize = 4;

/// The buffer of one call.
#[derive(Debug)]
pub(super) struct Buffer {
    words: Vec<u64>,
}

impl Buffer {
    pub(super) fn new(entries: usize) -> Self {
        Self { words: vec![UNTOUCHED; entries * WORDS] }
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut nvmlProcessInfo_t {
        const { assert!(align_of::<nvmlProcessInfo_t>() <= align_of::<u64>()) };
        const { assert!(size_of::<nvmlProcessInfo_t>() == USUAL * size_of::<u64>()) };
        self.words.as_mut_ptr().cast()
    }

    /// The first `count` entries, if there is a size of entries in which all of them make sense.
    pub(super) fn read(&self, count: usize) -> Option<Vec<Process>> {
        let usual_end = self.words.get(USUAL * count..)?;
        let large_end = self.words.get(LARGE * count..)?;
        let untouched = |words: &[u64]| words.iter().all(|word| *word == UNTOUCHED);
        // A driver that clears all of the buffer first tells nothing by what it has touched.
        let looks_large = untouched(large_end) && !untouched(usual_end);
        let sizes = if looks_large { [LARGE, USUAL] } else { [USUAL, LARGE] };
        sizes.into_iter().find_map(|size| self.entries(count, size))
    }

    fn entries(&self, count: usize, size: usize) -> Option<Vec<Process>> {
        self.words.chunks(size).take(count).map(entry).collect()
    }
}

/// An entry that can be true: one without a pid, or with one that no kernel gives, is not.
fn entry(words: &[u64]) -> Option<Process> {
    // The first four bytes; the other four of that word are padding.
    let [b0, b1, b2, b3, ..] = words.first()?.to_ne_bytes();
    let pid = u32::from_ne_bytes([b0, b1, b2, b3]);
    let bytes = *words.get(1)?;
    let sane = (1..=MOST_PIDS).contains(&pid) && (bytes == NOT_AVAILABLE || bytes < MOST_BYTES);
    sane.then(|| Process { pid, bytes: (bytes != NOT_AVAILABLE).then_some(bytes) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    /// What a driver with entries of `size` words leaves behind. `rest` is in the words after the
    /// usual three.
    fn filled(room: usize, size: usize, entries: &[(u32, u64)], rest: u64) -> Buffer {
        let mut buffer = Buffer::new(room);
        for (entry, (pid, bytes)) in buffer.words.chunks_mut(size).zip(entries) {
            // Padding keeps what was there.
            let pattern = UNTOUCHED.to_ne_bytes();
            let mut first = pattern;
            first[..4].copy_from_slice(&pid.to_ne_bytes());
            entry[0] = u64::from_ne_bytes(first);
            entry[1] = *bytes;
            entry[2] = u64::MAX;
            entry[3..].fill(rest);
        }
        buffer
    }

    fn pids(list: &[Process]) -> Vec<u32> {
        list.iter().map(|process| process.pid).collect()
    }

    #[test]
    fn entries_of_the_usual_size() {
        let list = filled(128, USUAL, &[(10, GIB), (11, u64::MAX), (12, 0)], 0).read(3).unwrap();
        assert_eq!(pids(&list), [10, 11, 12]);
        assert_eq!(list[0].bytes, Some(GIB));
        assert_eq!((list[1].bytes, list[2].bytes), (None, Some(0)));
        assert_eq!(filled(128, USUAL, &[], 0).read(0).unwrap(), []);
        // No room to spare.
        assert_eq!(pids(&filled(2, USUAL, &[(1, 0), (2, 0)], 0).read(2).unwrap()), [1, 2]);
    }

    #[test]
    fn entries_of_the_large_size_whatever_is_in_the_rest() {
        // Nothing protected, not told, some, and left alone.
        for rest in [0, u64::MAX, 2 << 20, UNTOUCHED] {
            for count in 1..5 {
                let entries: Vec<(u32, u64)> = (0..count).map(|i| (100 + i, GIB)).collect();
                let list = filled(128, LARGE, &entries, rest).read(count as usize);
                let list = list.unwrap_or_else(|| panic!("{count} entries, rest {rest:x}"));
                assert_eq!(pids(&list), (100..100 + count).collect::<Vec<_>>(), "{rest:x}");
                assert!(list.iter().all(|process| process.bytes == Some(GIB)));
            }
        }
    }

    #[test]
    fn a_driver_that_clears_the_buffer_first_is_read_by_what_makes_sense() {
        for size in [USUAL, LARGE] {
            let mut buffer = Buffer::new(16);
            buffer.words[..16 * size].fill(0);
            let filled = filled(16, size, &[(10, GIB), (11, 2 << 20)], 0);
            buffer.words[..2 * size].copy_from_slice(&filled.words[..2 * size]);
            assert_eq!(pids(&buffer.read(2).unwrap()), [10, 11], "{size}");
        }
    }

    #[test]
    fn what_makes_no_sense_in_any_size_is_no_list() {
        // Never filled; without a pid; five words; more than there is room for.
        assert_eq!(Buffer::new(8).read(1), None);
        assert_eq!(filled(8, USUAL, &[(10, GIB), (0, GIB)], 0).read(2), None);
        assert_eq!(filled(8, USUAL, &[(u32::MAX, GIB)], 0).read(1), None);
        assert_eq!(filled(8, 5, &[(10, GIB), (11, GIB), (12, GIB)], 0).read(3), None);
        assert_eq!(filled(2, USUAL, &[(10, GIB)], 0).read(1 << 20), None);
    }

    proptest! {
        #[test]
        fn a_list_is_read_as_it_was_written_or_not_at_all(
            large in any::<bool>(),
            entries in prop::collection::vec((1..MOST_PIDS, 0..80 * 512_u64), 0..40),
        ) {
            // Memory is held in pages of two megabytes.
            let entries: Vec<(u32, u64)> =
                entries.into_iter().map(|(pid, pages)| (pid, pages << 21)).collect();
            let size = if large { LARGE } else { USUAL };
            let list = filled(64, size, &entries, 0).read(entries.len());
            let list = list.ok_or_else(|| TestCaseError::fail("refused"))?;
            prop_assert_eq!(pids(&list), entries.iter().map(|e| e.0).collect::<Vec<_>>());
        }
    }
}
