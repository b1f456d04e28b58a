// SPDX-License-Identifier: GPL-2.0-only

//! A bitmap of blocks that many CPUs use at once without locks.
//!
//! Two levels: a *leaf* of one bit a block and a *summary* of one bit a leaf word, so that a search skips
//! empty stretches (64 words, 16 MiB of device, at a time). Setting writes the leaf, then the summary; clearing
//! writes the leaf only. A search that meets an empty leaf word under a set summary bit sweeps that bit.
//!
//! What holds: a bit whose `set_*` call returned before a search began, and that nobody clears, is found.
//! The danger is a sweep that read the leaf before the bit was set and clears the summary after. So a sweep
//! reads the leaf once more and repairs, and it announces itself in `sweepers` first: a search that begins
//! while one is under way does not trust the summary; a sweep that begins later reads a leaf with the bit in it.
//! This argument takes one total order of all accesses, hence `SeqCst` (on x86 the loads remain plain).

use core::ops::Deref;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

#[cfg(not(loom))]
pub use core::sync::atomic::AtomicU64;
#[cfg(loom)]
pub use loom::sync::atomic::AtomicU64;

use crate::geometry::AREA_BLOCKS_SHIFT;

const WORD_BITS: u64 = 64;
/// Areas in a leaf word.
const WORD_AREAS: u64 = 4;

/// A two-level bitmap; `L` and `S` hold the leaf and the summary words.
pub struct Bitmap<L, S> {
    leaf: L,
    summary: S,
    bits: u64,
    count: AtomicU64,
    /// Sweeps under way.
    sweepers: AtomicU64,
}

#[cfg(not(loom))]
fn load(word: &AtomicU64) -> u64 {
    word.load(SeqCst)
}

// Loom takes a SeqCst load for an acquire load. A read-modify-write reads the newest value, which is what
// SeqCst means where every access is SeqCst.
#[cfg(loom)]
fn load(word: &AtomicU64) -> u64 {
    word.fetch_or(0, SeqCst)
}

/// The words that a range of bits touches, each with the mask of its bits.
struct Words {
    next: u64,
    end: u64,
}

impl Iterator for Words {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let left = self.end.checked_sub(self.next).filter(|&n| n != 0)?;
        let offset = self.next % WORD_BITS;
        let n = left.min(WORD_BITS.wrapping_sub(offset)); // 1..=64
        let mask = (u64::MAX >> WORD_BITS.wrapping_sub(n)) << offset;
        let word = self.next / WORD_BITS;
        self.next = self.next.wrapping_add(n);
        Some((word, mask))
    }
}

impl<L, S> Bitmap<L, S>
where
    L: Deref<Target = [AtomicU64]>,
    S: Deref<Target = [AtomicU64]>,
{
    /// Makes a bitmap of `bits` bits from the given words, and takes over the bits set in `leaf`.
    ///
    /// `None` if there are too few words.
    pub fn new(leaf: L, summary: S, bits: u64) -> Option<Self> {
        if leaf.len() < leaf_words(bits) || summary.len() < summary_words(bits) {
            return None;
        }
        let map =
            Self { leaf, summary, bits, count: AtomicU64::new(0), sweepers: AtomicU64::new(0) };
        for word in map.summary.iter() {
            word.store(0, SeqCst);
        }
        let mut count = 0u64;
        for (word, mask) in (Words { next: 0, end: bits }) {
            let value = map.leaf_word(word)?.fetch_and(mask, SeqCst) & mask;
            if value != 0 {
                count = count.wrapping_add(u64::from(value.count_ones()));
                map.mark(word);
            }
        }
        map.count.store(count, Relaxed);
        Some(map)
    }

    /// Returns the number of bits.
    pub fn bits(&self) -> u64 {
        self.bits
    }

    /// Returns the number of areas that the bits cover, the last one perhaps in part.
    pub fn areas(&self) -> u64 {
        self.bits.div_ceil(1 << AREA_BLOCKS_SHIFT)
    }

    /// Returns the number of set bits; exact when nobody is setting or clearing.
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    fn leaf_word(&self, word: u64) -> Option<&AtomicU64> {
        self.leaf.get(usize::try_from(word).ok()?)
    }

    fn summary_word(&self, word: u64) -> Option<&AtomicU64> {
        self.summary.get(usize::try_from(word).ok()?)
    }

    fn range(&self, start: u64, len: u64) -> Words {
        Words { next: start, end: start.saturating_add(len).min(self.bits) }
    }

    /// Sets the summary bit of a leaf word.
    fn mark(&self, word: u64) {
        let bit = 1u64 << (word % WORD_BITS);
        if let Some(summary) = self.summary_word(word / WORD_BITS) {
            if load(summary) & bit == 0 {
                summary.fetch_or(bit, SeqCst);
            }
        }
    }

    /// Clears the summary bit of a leaf word if the word is empty.
    fn sweep(&self, word: u64) {
        let bit = 1u64 << (word % WORD_BITS);
        let Some(leaf) = self.leaf_word(word) else { return };
        let Some(summary) = self.summary_word(word / WORD_BITS) else { return };
        self.sweepers.fetch_add(1, SeqCst);
        if load(leaf) == 0 {
            summary.fetch_and(!bit, SeqCst);
            if load(leaf) != 0 {
                summary.fetch_or(bit, SeqCst);
            }
        }
        self.sweepers.fetch_sub(1, SeqCst);
    }

    fn set_word(&self, word: u64, mask: u64) -> u64 {
        let Some(leaf) = self.leaf_word(word) else { return 0 };
        let new = mask & !leaf.fetch_or(mask, SeqCst);
        // Also when nothing is new: whoever set the bits may not have come to the summary yet.
        self.mark(word);
        if new != 0 {
            self.count.fetch_add(u64::from(new.count_ones()), Relaxed);
        }
        new
    }

    fn clear_word(&self, word: u64, mask: u64) -> u64 {
        let Some(leaf) = self.leaf_word(word) else { return 0 };
        // Spare the cache line where there is nothing to clear.
        if load(leaf) & mask == 0 {
            return 0;
        }
        let cleared = mask & leaf.fetch_and(!mask, SeqCst);
        if cleared != 0 {
            self.count.fetch_sub(u64::from(cleared.count_ones()), Relaxed);
        }
        cleared
    }

    /// Whether bit `i` is set; `false` out of range.
    pub fn test(&self, i: u64) -> bool {
        self.any_set(i, 1)
    }

    /// Sets the bits of a range, clamped to the bitmap; returns how many were clear.
    pub fn set_range(&self, start: u64, len: u64) -> u64 {
        self.range(start, len)
            .map(|(word, mask)| u64::from(self.set_word(word, mask).count_ones()))
            .fold(0, u64::wrapping_add)
    }

    /// Clears the bits of a range, clamped to the bitmap; returns how many were set.
    pub fn clear_range(&self, start: u64, len: u64) -> u64 {
        self.range(start, len)
            .map(|(word, mask)| u64::from(self.clear_word(word, mask).count_ones()))
            .fold(0, u64::wrapping_add)
    }

    /// Whether all bits of a range, clamped to the bitmap, are set; `true` if nothing remains of the range.
    pub fn all_set(&self, start: u64, len: u64) -> bool {
        self.range(start, len)
            .all(|(word, mask)| self.leaf_word(word).is_some_and(|w| load(w) & mask == mask))
    }

    /// Whether any bit of a range, clamped to the bitmap, is set.
    pub fn any_set(&self, start: u64, len: u64) -> bool {
        self.range(start, len)
            .any(|(word, mask)| self.leaf_word(word).is_some_and(|w| load(w) & mask != 0))
    }

    /// The leaf word of an area, the shift of the area in it, and the mask (unshifted) of the area's bits that exist.
    fn area_place(&self, area: u64) -> Option<(u64, u32, u16)> {
        let start = area.checked_mul(1 << AREA_BLOCKS_SHIFT)?;
        let left = self.bits.checked_sub(start).filter(|&n| n != 0)?.min(16);
        let exists = u16::MAX >> 16u64.wrapping_sub(left);
        Some((area / WORD_AREAS, ((area % WORD_AREAS) << AREA_BLOCKS_SHIFT) as u32, exists))
    }

    /// Returns the 16 bits of an area, the first block lowest; 0 out of range.
    pub fn area_mask(&self, area: u64) -> u16 {
        let Some((word, shift, exists)) = self.area_place(area) else { return 0 };
        self.leaf_word(word).map_or(0, |w| (load(w) >> shift) as u16 & exists)
    }

    /// Returns the bits of an area that exist and are clear.
    pub fn missing(&self, area: u64) -> u16 {
        self.area_place(area).map_or(0, |(_, _, exists)| exists & !self.area_mask(area))
    }

    /// Sets the bits of `mask` in an area; returns those that were clear.
    pub fn set_area(&self, area: u64, mask: u16) -> u16 {
        let Some((word, shift, exists)) = self.area_place(area) else { return 0 };
        let mask = mask & exists;
        if mask == 0 {
            return 0;
        }
        (self.set_word(word, u64::from(mask) << shift) >> shift) as u16
    }

    /// Clears the bits of `mask` in an area; returns those that were set.
    pub fn clear_area(&self, area: u64, mask: u16) -> u16 {
        let Some((word, shift, exists)) = self.area_place(area) else { return 0 };
        (self.clear_word(word, u64::from(mask & exists) << shift) >> shift) as u16
    }

    /// Returns the first leaf word from `from` that is not empty, with its value, and sweeps on the way.
    fn next_word(&self, from: u64) -> Option<(u64, u64)> {
        let words = self.bits.div_ceil(WORD_BITS);
        let mut word = from;
        while word < words {
            let group = word / WORD_BITS;
            let ahead = u64::MAX << (word % WORD_BITS);
            // The order of the two loads matters, see the top.
            let trusted = load(&self.sweepers) == 0;
            let summary = load(self.summary_word(group)?);
            let mut candidates = if trusted { summary & ahead } else { ahead };
            while candidates != 0 {
                let bit = candidates.trailing_zeros();
                let candidate = group.wrapping_mul(WORD_BITS).wrapping_add(u64::from(bit));
                if candidate >= words {
                    return None;
                }
                let value = load(self.leaf_word(candidate)?);
                if value != 0 {
                    return Some((candidate, value));
                }
                if trusted {
                    self.sweep(candidate);
                }
                candidates &= candidates.wrapping_sub(1);
            }
            word = group.wrapping_add(1).wrapping_mul(WORD_BITS);
        }
        None
    }

    /// Returns the first leaf word with a bit of `first_mask` in word `from`, or any bit in a later word.
    fn search(&self, from: u64, first_mask: u64) -> Option<(u64, u64)> {
        let (word, value) = self.next_word(from)?;
        if word != from {
            return Some((word, value));
        }
        if value & first_mask != 0 {
            return Some((word, value & first_mask));
        }
        self.next_word(from.checked_add(1)?)
    }

    /// Returns the first set bit at or after `from`.
    pub fn next_set(&self, from: u64) -> Option<u64> {
        let (word, value) = self.search(from / WORD_BITS, u64::MAX << (from % WORD_BITS))?;
        let bit = word.wrapping_mul(WORD_BITS).wrapping_add(u64::from(value.trailing_zeros()));
        Some(bit).filter(|&bit| bit < self.bits)
    }

    /// Returns the first area at or after `from_area` that has a set bit.
    pub fn next_area(&self, from_area: u64) -> Option<u64> {
        let shift = (from_area % WORD_AREAS) << AREA_BLOCKS_SHIFT;
        let (word, value) = self.search(from_area / WORD_AREAS, u64::MAX << shift)?;
        let inner = u64::from(value.trailing_zeros()) >> AREA_BLOCKS_SHIFT;
        Some(word.wrapping_mul(WORD_AREAS).wrapping_add(inner))
    }

    /// Clears all bits that are set when it passes them; returns how many it cleared.
    pub fn clear_all(&self) -> u64 {
        let mut cleared = 0u64;
        let mut from = 0u64;
        while let Some((word, _)) = self.next_word(from) {
            cleared = cleared.wrapping_add(u64::from(self.clear_word(word, u64::MAX).count_ones()));
            self.sweep(word);
            from = word.wrapping_add(1);
        }
        cleared
    }
}

/// Returns how many leaf words a bitmap of `bits` bits takes.
pub fn leaf_words(bits: u64) -> usize {
    usize::try_from(bits.div_ceil(WORD_BITS)).unwrap_or(usize::MAX)
}

/// Returns how many summary words a bitmap of `bits` bits takes.
pub fn summary_words(bits: u64) -> usize {
    usize::try_from(bits.div_ceil(WORD_BITS).div_ceil(WORD_BITS)).unwrap_or(usize::MAX)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn bitmap(bits: u64) -> Bitmap<Vec<AtomicU64>, Vec<AtomicU64>> {
        let words = |n| (0..n).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        Bitmap::new(words(leaf_words(bits)), words(summary_words(bits)), bits).unwrap()
    }

    #[test]
    fn ranges_at_word_borders() {
        let map = bitmap(1000);
        assert_eq!(map.set_range(60, 70), 70);
        assert_eq!(map.set_range(64, 64), 0);
        assert_eq!(map.count(), 70);
        assert!(map.all_set(60, 70) && !map.all_set(59, 2) && !map.all_set(129, 2));
        assert!(map.any_set(0, 61) && !map.any_set(0, 60) && !map.any_set(130, 870));
        assert_eq!(map.clear_range(0, 64), 4);
        assert_eq!((map.count(), map.next_set(0), map.next_set(130)), (66, Some(64), None));
        assert_eq!(map.clear_all(), 66);
        assert_eq!((map.count(), map.next_set(0)), (0, None));
    }

    #[test]
    fn out_of_range_is_clamped() {
        let map = bitmap(100);
        assert_eq!(map.set_range(90, u64::MAX), 10);
        assert_eq!(map.set_range(100, 5), 0);
        assert_eq!(map.set_range(u64::MAX, u64::MAX), 0);
        assert!(map.test(99) && !map.test(100) && !map.test(u64::MAX));
        assert!(map.all_set(100, 1) && map.all_set(95, 50) && !map.any_set(100, 1));
        assert_eq!(map.area_mask(5), 0xfc00);
        assert_eq!(map.area_mask(6), 0x000f);
        assert_eq!(map.set_area(6, 0xffff), 0);
        assert_eq!(map.clear_area(6, 0xfff1), 1);
        assert_eq!(map.area_mask(7), 0);
        assert_eq!(map.set_area(u64::MAX, 1), 0);
        assert_eq!(map.next_set(u64::MAX), None);
        assert_eq!(map.next_area(u64::MAX), None);
        assert_eq!(map.areas(), 7);
    }

    #[test]
    fn next_area_skips_and_sweeps() {
        let map = bitmap(1 << 20);
        map.set_area(3, 0x8000);
        map.set_area(60_000, 0x0001);
        assert_eq!(map.next_area(0), Some(3));
        assert_eq!(map.next_area(4), Some(60_000));
        assert_eq!(map.next_area(60_001), None);
        assert_eq!(map.clear_area(3, 0xffff), 0x8000);
        assert_eq!(map.next_area(0), Some(60_000));
        assert_eq!(load(&map.summary[0]), 0);
    }

    #[test]
    fn new_takes_over_and_checks() {
        let words = |n: usize, v| (0..n).map(|_| AtomicU64::new(v)).collect::<Vec<_>>();
        assert!(Bitmap::new(words(1, 0), words(1, 0), 65).is_none());
        assert!(Bitmap::new(words(65, 0), words(1, 0), 65 * 64).is_none());
        let map = Bitmap::new(words(2, u64::MAX), words(1, u64::MAX), 100).unwrap();
        assert_eq!(map.count(), 100);
        assert_eq!(load(&map.leaf[1]), (1 << 36) - 1);
        assert_eq!(load(&map.summary[0]), 3);
        assert!(bitmap(0).next_set(0).is_none());
    }
}
