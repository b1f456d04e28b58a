// SPDX-License-Identifier: GPL-2.0-only

//! Writes in flight: the gate that a freeze closes, and the write generations that tell a torn
//! copy from a good one.
//!
//! Both count what has begun and what has ended apart. Ends are read before begins: if the two are
//! equal then, nothing was in flight when the ends were read, as neither ever decreases and no end
//! comes before its begin.

use core::ops::Deref;

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

#[cfg(not(loom))]
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// The counters of one CPU, in a cache line of their own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Shard {
    entered: AtomicU64,
    left: AtomicU64,
}

impl Shard {
    /// A shard with nothing in flight.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { entered: AtomicU64::new(0), left: AtomicU64::new(0) }
    }

    /// A shard with nothing in flight.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { entered: AtomicU64::new(0), left: AtomicU64::new(0) }
    }
}

/// The gate that writes pass on their way to the origin, and that a freeze closes.
///
/// A write that enters does so entirely before or entirely after the gate closes: it counts itself
/// in first and looks at the gate then, while the freeze closes the gate first and counts then.
pub struct Gate<S> {
    shards: S,
    closed: AtomicBool,
}

impl<S: Deref<Target = [Shard]>> Gate<S> {
    /// An open gate; `None` without a shard.
    pub fn new(shards: S) -> Option<Self> {
        (!shards.is_empty()).then(|| Self { shards, closed: AtomicBool::new(false) })
    }

    fn shard(&self, hint: usize) -> Option<&Shard> {
        self.shards.get(hint.checked_rem(self.shards.len()).unwrap_or(0))
    }

    /// Counts a write in, if the gate is open; every `true` needs one [`Gate::leave`].
    ///
    /// `hint` is the number of the CPU, or any other: it only spreads the load.
    pub fn enter(&self, hint: usize) -> bool {
        let Some(shard) = self.shard(hint) else { return false };
        shard.entered.fetch_add(1, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) {
            shard.left.fetch_add(1, Ordering::SeqCst);
            return false;
        }
        true
    }

    /// Counts a write out. Whoever freezes must be woken if the gate [is closed](Self::is_closed).
    pub fn leave(&self, hint: usize) {
        if let Some(shard) = self.shard(hint) {
            shard.left.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Closes the gate: from now on nobody enters.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Opens the gate.
    pub fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    /// Whether the gate is closed.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Writes in flight; exact when the gate is closed and the answer is 0, else an estimate.
    pub fn in_flight(&self) -> u64 {
        let sum = |f: fn(&Shard) -> &AtomicU64| {
            self.shards.iter().fold(0u64, |n, s| n.wrapping_add(f(s).load(Ordering::SeqCst)))
        };
        let left = sum(|s| &s.left);
        sum(|s| &s.entered).wrapping_sub(left)
    }
}

/// The write generation of the areas that hash to it.
#[derive(Debug, Default)]
pub struct TrackSlot {
    begun: AtomicU32,
    ended: AtomicU32,
}

impl TrackSlot {
    /// A slot that has seen no write.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self { begun: AtomicU32::new(0), ended: AtomicU32::new(0) }
    }

    /// A slot that has seen no write.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self { begun: AtomicU32::new(0), ended: AtomicU32::new(0) }
    }
}

/// The write generation of an area at an instant when no write to it was in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp(u32);

/// Write generations, hashed by area, so that memory is bounded; a collision can only make a good
/// copy look torn.
pub struct WriteTracker<S> {
    slots: S,
}

impl<S: Deref<Target = [TrackSlot]>> WriteTracker<S> {
    /// A tracker; `None` unless the number of slots is a power of two.
    pub fn new(slots: S) -> Option<Self> {
        slots.len().is_power_of_two().then_some(Self { slots })
    }

    fn slot(&self, area: u64) -> Option<&TrackSlot> {
        // Neighbouring areas get neighbouring slots: a long write touches few cache lines.
        let mask = (self.slots.len() as u64).wrapping_sub(1);
        self.slots.get((area & mask) as usize)
    }

    /// A write to `count` areas from `first` is about to be issued. Returns whether it is alone:
    /// no other write to them was in flight.
    pub fn begin(&self, first: u64, count: u64) -> bool {
        let mut alone = true;
        for area in first..first.saturating_add(count) {
            if let Some(slot) = self.slot(area) {
                let ended = slot.ended.load(Ordering::SeqCst);
                alone &= slot.begun.fetch_add(1, Ordering::SeqCst) == ended;
            }
        }
        alone
    }

    /// A write announced by [`WriteTracker::begin`] has ended.
    pub fn end(&self, first: u64, count: u64) {
        for area in first..first.saturating_add(count) {
            if let Some(slot) = self.slot(area) {
                slot.ended.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// The generation of an area, to be taken before a copy reads it; `None` while a write is in
    /// flight.
    pub fn stamp(&self, area: u64) -> Option<Stamp> {
        let slot = self.slot(area)?;
        let ended = slot.ended.load(Ordering::SeqCst);
        (slot.begun.load(Ordering::SeqCst) == ended).then_some(Stamp(ended))
    }

    /// Whether no write to the area has begun since the stamp was taken.
    pub fn unchanged(&self, area: u64, stamp: Stamp) -> bool {
        self.slot(area).is_some_and(|slot| slot.begun.load(Ordering::SeqCst) == stamp.0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn gate_counts_and_closes() {
        let gate = Gate::new(vec![Shard::new(), Shard::new()]).unwrap();
        assert!(gate.enter(0));
        assert!(gate.enter(5));
        gate.close();
        assert!(!gate.enter(1));
        assert_eq!(gate.in_flight(), 2);
        gate.leave(1);
        gate.leave(0);
        assert_eq!(gate.in_flight(), 0);
        gate.open();
        assert!(gate.enter(3));
        assert_eq!(gate.in_flight(), 1);
    }

    #[test]
    fn gate_without_shards_is_refused() {
        assert!(Gate::new(Vec::<Shard>::new()).is_none());
    }

    fn tracker(n: usize) -> WriteTracker<Vec<TrackSlot>> {
        WriteTracker::new((0..n).map(|_| TrackSlot::new()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_write_in_flight_has_no_stamp() {
        let t = tracker(8);
        let before = t.stamp(3).unwrap();
        assert!(t.begin(2, 3));
        assert_eq!(t.stamp(3), None);
        assert!(!t.unchanged(3, before));
        assert!(!t.begin(4, 1), "another write is in flight");
        t.end(4, 1);
        t.end(2, 3);
        let after = t.stamp(3).unwrap();
        assert_ne!(before, after);
        assert!(t.unchanged(3, after));
    }

    #[test]
    fn collisions_only_look_torn() {
        let t = tracker(8);
        let stamp = t.stamp(1).unwrap();
        assert!(t.begin(9, 1));
        assert!(!t.unchanged(1, stamp));
        t.end(9, 1);
        assert!(t.stamp(1).is_some());
    }
}
