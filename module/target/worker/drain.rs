// SPDX-License-Identifier: GPL-2.0-only

//! After T0: copying the rest of the delta, most likely overwritten first.

use super::copy::{cost_of, NotStarted, Purpose};
use super::Worker;
use kernel::prelude::*;
use presnap_abi::memory::array_of;
use presnap_engine::freeze::{Event, Phase};
use presnap_engine::geometry::{bit_of, blocks_of_mask, lowest_bits};
use presnap_engine::policy::drain_value;
use presnap_engine::rank::sort_descending;
use presnap_engine::region::Layout;

/// Areas looked at for one ordering.
const BATCH: usize = 1024;

/// An area to be copied.
#[derive(Clone, Copy, Default)]
struct Candidate {
    value: u32,
    area: u64,
}

/// See the module.
pub(crate) struct Drain {
    batch: KVVec<Candidate>,
    /// Candidates of the batch that are left, from the front.
    next: usize,
    len: usize,
    /// Area from which on the delta was not looked at.
    pub(super) cursor: u64,
    /// Every area of the delta was put into a batch.
    scanned: bool,
    /// Nothing of the delta is lacking.
    covered: bool,
    /// Blocks of the delta that guards preserved.
    pub(super) guarded_in_delta: u64,
    /// Area where the search for blocks that mirrors wrote goes on.
    rewritten: u64,
}

impl Drain {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            batch: array_of(BATCH, Candidate::default())?,
            next: 0,
            len: 0,
            cursor: 0,
            scanned: false,
            covered: false,
            guarded_in_delta: 0,
            rewritten: 0,
        })
    }

    /// Begins at the start of the delta.
    pub(super) fn restart(&mut self) {
        self.next = 0;
        self.len = 0;
        self.cursor = 0;
        self.scanned = false;
        self.covered = false;
        self.rewritten = 0;
    }
}

impl Worker {
    /// Blocks of an area that the snapshot still lacks.
    pub(super) fn lacking(&self, area: u64) -> u16 {
        let g = &self.dev.generations;
        g.delta().area_mask(area) & !g.preserved().area_mask(area)
    }

    /// Fills the batch with the next areas of the delta, best first.
    fn refill(&mut self, now: u64) {
        self.drain.next = 0;
        self.drain.len = 0;
        while self.drain.len < BATCH {
            let Some(area) = self.dev.generations.delta().next_area(self.drain.cursor) else {
                self.drain.scanned = true;
                break;
            };
            self.drain.cursor = area.saturating_add(1);
            let mask = self.lacking(area);
            if mask == 0 {
                continue;
            }
            let value = drain_value(self.stage.score_after(area, now), mask.count_ones());
            if let Some(place) = self.drain.batch.get_mut(self.drain.len) {
                *place = Candidate { value, area };
                self.drain.len = self.drain.len.saturating_add(1);
            }
            if self.drain.len % 16 == 0 {
                self.breathe();
            }
        }
        if let Some(batch) = self.drain.batch.get_mut(..self.drain.len) {
            sort_descending(batch, |c| c.value);
        }
    }

    /// Copies what the snapshot lacks of its delta.
    pub(super) fn run_drain(&mut self, now: u64) {
        if self.snapshot.phase() != Phase::Draining {
            return;
        }
        // Writers that wait come first: their copies are the ones that the drain would make next. But
        // one copy may always go on, or a steady load would put off the seal for ever.
        while self.jobs.room()
            && (self.jobs.guards == 0 || self.jobs.drains == 0)
            && self.pacer.ready()
        {
            if self.drain.next >= self.drain.len {
                if self.drain.scanned {
                    break;
                }
                self.refill(now);
                continue;
            }
            let Some(c) = self.drain.batch.get(self.drain.next).copied() else { break };
            if !self.drain_area(c.area) {
                return;
            }
            self.drain.next = self.drain.next.saturating_add(1);
        }
        if !self.drain.scanned || self.drain.next < self.drain.len {
            return;
        }
        if self.copies_of(self.record.id) {
            return;
        }
        if !self.drain.covered {
            // A copy may have failed to start because another one covered its blocks: look again.
            if let Some(area) = self.first_lacking() {
                self.drain.restart();
                self.drain.cursor = area;
                self.progress = true;
                return;
            }
            self.drain.covered = true;
        }
        if self.checksum_rewritten() {
            return;
        }
        self.report(Event::Covered);
    }

    fn first_lacking(&self) -> Option<u64> {
        let mut area = 0;
        while let Some(next) = self.dev.generations.delta().next_area(area) {
            if self.lacking(next) != 0 {
                return Some(next);
            }
            area = next.saturating_add(1);
        }
        None
    }

    /// Starts the copies of one area; `false` if it has to be tried again, or all is over.
    fn drain_area(&mut self, area: u64) -> bool {
        let mask = self.lacking(area);
        match self.start_copy(Purpose::Drain, self.record.id, area, mask) {
            Ok(started) => {
                self.pacer.spend(cost_of(started));
                self.progress = true;
                true
            }
            // Covered by a guard's copy, or no job: `first_lacking` finds what is left.
            Err(NotStarted::Busy) => self.jobs.room(),
            Err(NotStarted::Full) => {
                if self.drop_staged() == 0 {
                    self.overflow();
                }
                false
            }
        }
    }

    /// Takes the checksums of slots that mirrors wrote; whether there is still something to do.
    fn checksum_rewritten(&mut self) -> bool {
        let id = self.record.id;
        while let Some(area) = self.dev.generations.rewritten.next_area(self.drain.rewritten) {
            let g = &self.dev.generations;
            let marked = g.rewritten.area_mask(area);
            let ours = marked & g.preserved().area_mask(area) & g.delta().area_mask(area);
            // Others went stale and were copied again, which took the checksum.
            g.rewritten.clear_area(area, marked & !ours);
            let open = ours & !self.jobs.copying(area);
            if open == 0 {
                self.drain.rewritten = area.saturating_add(1);
                continue;
            }
            if !self.pacer.ready() {
                return true;
            }
            let Some((mask, slot)) = self.neighbours(id, area, open) else {
                g.rewritten.clear_area(area, lowest_bits(open, 1));
                continue;
            };
            if self.start_checksum(id, area, mask, slot).is_err() {
                return true;
            }
            self.pacer.spend(cost_of(mask));
            self.progress = true;
        }
        if self.copies_of(id) {
            return true;
        }
        // Those that were started have cleared their bits by now.
        self.drain.rewritten = 0;
        self.dev.generations.rewritten.next_set(0).is_some()
    }

    /// The first blocks of a mask whose slots lie next to each other, and the first slot.
    fn neighbours(&self, snapshot: u32, area: u64, mask: u16) -> Option<(u16, u32)> {
        let slots = self.dev.slots.lock();
        let mut found: Option<(u16, u32, u32)> = None;
        for block in blocks_of_mask(area, mask) {
            let slot = slots.lookup(snapshot, block);
            found = match (found, slot) {
                (None, None) => return None,
                (None, Some(slot)) => Some((bit_of(block), slot, slot.saturating_add(1))),
                (Some((mask, first, next)), Some(slot))
                    if slot == next
                        && Layout::contiguous(first, mask.count_ones().wrapping_add(1)) =>
                {
                    Some((mask | bit_of(block), first, next.saturating_add(1)))
                }
                _ => break,
            };
        }
        found.map(|(mask, first, _)| (mask, first))
    }
}
