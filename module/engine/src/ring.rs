// SPDX-License-Identifier: GPL-2.0-only

//! The ring of I/O records: many producers that never wait, readers with cursors of their own, the oldest overwritten.
//!
//! A producer takes a position from `head`, claims the slot of that position, writes and publishes. The
//! slot's stamp tells its state: `2 * position + 1` while written, `2 * position + 2` once whole, so that a
//! reader sees a torn or overwritten slot as such (a sequence lock per slot). A producer that finds its slot
//! claimed by another, because the ring went all round during one push, drops its record and notes the
//! position in `skipped`: the loss is counted, and nobody waits.

use core::ops::Deref;

#[cfg(not(loom))]
use core::sync::atomic::{fence, AtomicU64, Ordering};
#[cfg(loom)]
use loom::sync::atomic::{fence, AtomicU64, Ordering};

use crate::record::IoRecord;

/// A place for one record.
pub struct RingSlot {
    stamp: AtomicU64,
    /// 1 + the highest position that was dropped here; 0 if none.
    skipped: AtomicU64,
    words: [AtomicU64; 4],
}

impl RingSlot {
    /// Returns an empty slot.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Self {
            stamp: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            words: [const { AtomicU64::new(0) }; 4],
        }
    }

    /// Returns an empty slot.
    #[cfg(loom)]
    pub fn new() -> Self {
        Self {
            stamp: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            words: core::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Default for RingSlot {
    fn default() -> Self {
        Self::new()
    }
}

/// What [`RecordRing::read`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadOutcome {
    /// Records put into the output.
    pub count: usize,
    /// Records that were overwritten or dropped before they could be read.
    pub lost: u64,
}

/// A position as a reader finds it.
enum Found {
    Record(IoRecord),
    /// Its producer is not done.
    Pending,
    Lost,
}

/// The ring; `S` holds the slots, a power of two of them.
pub struct RecordRing<S> {
    slots: S,
    head: AtomicU64,
}

impl<S: Deref<Target = [RingSlot]>> RecordRing<S> {
    /// Makes a ring of fresh slots; `None` unless their number is a power of two.
    pub fn new(slots: S) -> Option<Self> {
        if !slots.len().is_power_of_two() {
            return None;
        }
        Some(Self { slots, head: AtomicU64::new(0) })
    }

    /// Returns the number of slots.
    pub fn capacity(&self) -> u64 {
        self.slots.len() as u64
    }

    /// Returns the position of the next record, the cursor of a reader that wants only what comes.
    pub fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    fn slot(&self, position: u64) -> Option<&RingSlot> {
        let mask = self.capacity().wrapping_sub(1);
        self.slots.get(usize::try_from(position & mask).ok()?)
    }

    /// Appends a record, in a bounded number of steps whatever the others do.
    pub fn push(&self, record: IoRecord) {
        let position = self.head.fetch_add(1, Ordering::AcqRel);
        let Some(slot) = self.slot(position) else { return };
        let writing = position.wrapping_mul(2).wrapping_add(1);
        let stamp = slot.stamp.load(Ordering::Relaxed);
        if stamp > writing {
            return; // a later round was faster: readers count this position as lost
        }
        // Acquire: our words come after those of the producer before.
        let claimed = stamp & 1 == 0
            && slot
                .stamp
                .compare_exchange(stamp, writing, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
        if !claimed {
            slot.skipped.fetch_max(position.wrapping_add(1), Ordering::Release);
            return;
        }
        // A reader that sees one of the words below sees the claim too.
        fence(Ordering::Release);
        for (word, value) in slot.words.iter().zip(record.to_words()) {
            word.store(value, Ordering::Relaxed);
        }
        slot.stamp.store(writing.wrapping_add(1), Ordering::Release);
    }

    fn look(&self, position: u64) -> Found {
        let Some(slot) = self.slot(position) else { return Found::Lost };
        let whole = position.wrapping_mul(2).wrapping_add(2);
        let stamp = slot.stamp.load(Ordering::Acquire);
        if stamp > whole {
            return Found::Lost;
        }
        if stamp < whole {
            return if slot.skipped.load(Ordering::Acquire) > position {
                Found::Lost
            } else {
                Found::Pending
            };
        }
        let mut words = [0; 4];
        for (value, word) in words.iter_mut().zip(&slot.words) {
            *value = word.load(Ordering::Relaxed);
        }
        fence(Ordering::Acquire);
        if slot.stamp.load(Ordering::Relaxed) != whole {
            return Found::Lost;
        }
        IoRecord::from_words(words).map_or(Found::Lost, Found::Record)
    }

    /// Reads records from `cursor` on, in order, and moves it; stops at a record that is still being written.
    ///
    /// A cursor ahead of the ring is put at its head.
    pub fn read(&self, cursor: &mut u64, out: &mut [IoRecord]) -> ReadOutcome {
        let head = self.head();
        let oldest = head.saturating_sub(self.capacity());
        let mut outcome = ReadOutcome { count: 0, lost: oldest.saturating_sub(*cursor) };
        *cursor = (*cursor).clamp(oldest, head);
        let mut out = out.iter_mut();
        let mut place = out.next();
        while *cursor < head {
            let Some(to) = place.take() else { break };
            match self.look(*cursor) {
                Found::Record(record) => {
                    *to = record;
                    outcome.count = outcome.count.wrapping_add(1);
                    place = out.next();
                }
                Found::Lost => {
                    outcome.lost = outcome.lost.wrapping_add(1);
                    place = Some(to);
                }
                Found::Pending => break,
            }
            *cursor = (*cursor).wrapping_add(1);
        }
        outcome
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::record::IoKind;

    fn record(n: u64) -> IoRecord {
        IoRecord { time_ns: n, op: n, sector: n, sectors: n as u32, kind: IoKind::Write }
    }

    fn ring(slots: usize) -> RecordRing<Vec<RingSlot>> {
        RecordRing::new((0..slots).map(|_| RingSlot::new()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn in_order_and_resumable() {
        let ring = ring(8);
        let mut out = [record(0); 3];
        let mut cursor = 0;
        assert_eq!(ring.read(&mut cursor, &mut out), ReadOutcome::default());
        (1..=5).for_each(|n| ring.push(record(n)));
        assert_eq!(ring.read(&mut cursor, &mut out), ReadOutcome { count: 3, lost: 0 });
        assert_eq!(out, [record(1), record(2), record(3)]);
        assert_eq!(ring.read(&mut cursor, &mut out), ReadOutcome { count: 2, lost: 0 });
        assert_eq!(out[..2], [record(4), record(5)]);
        assert_eq!((cursor, ring.head()), (5, 5));
        assert_eq!(ring.read(&mut cursor, &mut []), ReadOutcome::default());
    }

    #[test]
    fn overwritten_are_counted() {
        let ring = ring(4);
        (1..=10).for_each(|n| ring.push(record(n)));
        let mut out = [record(0); 8];
        let mut cursor = 1;
        assert_eq!(ring.read(&mut cursor, &mut out), ReadOutcome { count: 4, lost: 5 });
        assert_eq!(out[..4], [record(7), record(8), record(9), record(10)]);
        cursor = 99;
        assert_eq!(ring.read(&mut cursor, &mut out), ReadOutcome::default());
        assert_eq!(cursor, 10);
    }

    #[test]
    fn a_stuck_producer_costs_records_not_time() {
        let ring = ring(2);
        // Position 0 is claimed and never finished, the ring goes round twice.
        let position = ring.head.fetch_add(1, Ordering::Relaxed);
        ring.slots[0].stamp.store(2 * position + 1, Ordering::Relaxed);
        let mut cursor = 0;
        let mut out = [record(0); 8];
        ring.push(record(1));
        assert_eq!(ring.read(&mut cursor, &mut out), ReadOutcome::default());
        ring.push(record(2));
        ring.push(record(3));
        assert_eq!(ring.read(&mut cursor, &mut out), ReadOutcome { count: 1, lost: 3 });
        assert_eq!((out[0], cursor), (record(3), 4));
    }

    #[test]
    fn size_must_be_a_power_of_two() {
        for (slots, ok) in [(0, false), (1, true), (3, false), (4, true)] {
            let slots = (0..slots).map(|_| RingSlot::new()).collect::<Vec<_>>();
            assert_eq!(RecordRing::new(slots).is_some(), ok);
        }
    }
}
