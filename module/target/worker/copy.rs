// SPDX-License-Identifier: GPL-2.0-only

//! Copying blocks of an area from the origin to slots of the region: as many reads as the blocks have
//! runs, into one buffer, and from there one write to slots that lie next to each other.
//!
//! A copy made before T0 counts only if no write to its area was in flight when the read began and
//! none was issued before it ended (design, section 8.1). A copy made after T0 cannot be torn until the
//! next one: the guard holds the writers of a block that is not preserved yet.

use super::Worker;
use crate::device::{add, BlockMap, Guard};
use core::sync::atomic::{fence, Ordering};
use kernel::prelude::*;
use kernel::sync::Arc;
use presnap_abi::clock::crc32c;
use presnap_abi::io::{Client, Durability, Piece, Transfer};
use presnap_abi::thread::Wake;
use presnap_engine::chunker;
use presnap_engine::fixed::Prob;
use presnap_engine::freeze::{DropReason, Event, Phase};
use presnap_engine::geometry::{
    area_of, bit_of, blocks_of_mask, lowest_bits, AREA_BLOCKS, AREA_BLOCKS_SHIFT, BLOCK_BYTES,
    BLOCK_SECTORS,
};
use presnap_engine::inflight::Stamp;
use presnap_engine::region::SlotKind;

/// Copies at a time, and with them the memory: 64 x 64 KiB.
const JOBS: usize = 64;
/// Of them, kept for writers that wait.
const JOBS_FOR_GUARD: usize = 24;

/// What a copy is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// Ahead of T0, dirty blocks.
    Stage {
        /// Writes are mirrored from then on.
        mirror: bool,
    },
    /// Ahead of T0, clean blocks.
    StageClean,
    /// In the freeze.
    Final,
    /// A writer waits for it.
    Guard,
    /// In the background after T0.
    Drain,
    /// Not a copy: the checksum of a slot that a mirror wrote is taken.
    Checksum,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Reading,
    Writing,
    /// The data is written; the index entry is not durable yet.
    Indexing,
}

struct Job {
    transfer: KBox<Transfer>,
    state: State,
    purpose: Purpose,
    snapshot: u32,
    area: u64,
    /// The blocks, a bit each; never empty.
    mask: u16,
    /// That of the first block; the others follow.
    slot: u32,
    /// Write generation of the area before the read.
    stamp: Option<Stamp>,
    crcs: [u32; AREA_BLOCKS as usize],
    /// Entries are in the slot table.
    inserted: bool,
    /// The index block, and the version of it that has the entries; for guards.
    index_wait: [Option<(u32, u64)>; 2],
}

impl Job {
    fn len(&self) -> u32 {
        self.mask.count_ones()
    }

    fn bytes(&self) -> usize {
        (self.len() as usize).saturating_mul(BLOCK_BYTES as usize)
    }
}

/// Why a copy was not started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotStarted {
    /// All jobs are taken, the blocks are being copied, or written: later.
    Busy,
    /// The region is full.
    Full,
}

/// What a copy costs, in small copies: a read for each run, and four blocks as much as another.
pub(crate) fn cost_of(mask: u16) -> u32 {
    let runs = (mask & !mask.wrapping_shl(1)).count_ones();
    runs.saturating_add(mask.count_ones() / 4)
}

/// The copies under way.
pub(crate) struct Jobs {
    jobs: KVec<Job>,
    active: usize,
    /// Copies before T0 under way.
    pub(crate) staging: usize,
    /// Copies under way that writers wait for.
    pub(crate) guards: usize,
    /// Copies under way by the drain.
    pub(crate) drains: usize,
}

impl Jobs {
    pub(crate) fn new(client: &Arc<Client>, wake: &Arc<Wake>) -> Result<Self> {
        let mut jobs = KVec::with_capacity(JOBS, GFP_KERNEL)?;
        for _ in 0..JOBS {
            let bytes = AREA_BLOCKS as usize * BLOCK_BYTES as usize;
            let job = Job {
                transfer: Transfer::new(client, wake, bytes)?,
                state: State::Idle,
                purpose: Purpose::Drain,
                snapshot: 0,
                area: 0,
                mask: 0,
                slot: 0,
                stamp: None,
                crcs: [0; AREA_BLOCKS as usize],
                inserted: false,
                index_wait: [None; 2],
            };
            jobs.push_within_capacity(job).map_err(|_| ENOMEM)?;
        }
        Ok(Self { jobs, active: 0, staging: 0, guards: 0, drains: 0 })
    }

    pub(crate) fn any_active(&self) -> bool {
        self.active > 0
    }

    /// Whether a job other than a writer's may be started.
    pub(crate) fn room(&self) -> bool {
        self.active < JOBS.saturating_sub(JOBS_FOR_GUARD)
    }

    /// The counter of copies like this one.
    fn counter(&mut self, purpose: Purpose) -> Option<&mut usize> {
        match purpose {
            Purpose::Stage { .. } | Purpose::StageClean => Some(&mut self.staging),
            Purpose::Guard => Some(&mut self.guards),
            Purpose::Drain => Some(&mut self.drains),
            Purpose::Final | Purpose::Checksum => None,
        }
    }

    fn begun(&mut self, purpose: Purpose) {
        self.active = self.active.saturating_add(1);
        if let Some(n) = self.counter(purpose) {
            *n = n.saturating_add(1);
        }
    }

    fn ended(&mut self, purpose: Purpose) {
        self.active = self.active.saturating_sub(1);
        if let Some(n) = self.counter(purpose) {
            *n = n.saturating_sub(1);
        }
    }

    /// The slots that have entries in the slot table and are being written, as runs: first and number.
    pub(super) fn writing_entered(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let writing = |job: &&Job| job.state == State::Writing && job.inserted;
        self.jobs.iter().filter(writing).map(|job| (job.slot, job.len()))
    }

    /// Whether a block is being copied.
    pub(crate) fn covers(&self, block: u64) -> bool {
        self.copying(area_of(block)) & bit_of(block) != 0
    }

    /// The blocks of an area that are being copied.
    pub(super) fn copying(&self, area: u64) -> u16 {
        let active = |job: &&Job| job.area == area && job.state != State::Idle;
        self.jobs.iter().filter(active).fold(0, |mask, job| mask | job.mask)
    }
}

impl Worker {
    /// The number of the coming snapshot: that of staged blocks.
    pub(crate) fn coming_id(&self) -> u32 {
        self.dev.coming()
    }

    /// The bitmap that says which blocks a snapshot has, if there still is one.
    ///
    /// A guard's copy may end after the next T0: it belongs to the snapshot before then, and the
    /// new one does not have the block. When that is sealed, the bitmap of the one before is cleared, to
    /// be that of the coming one.
    fn map_of(&self, snapshot: u32) -> Option<&BlockMap> {
        let g = &self.dev.generations;
        if snapshot == self.coming_id() {
            Some(g.staged())
        } else if snapshot == self.dev.newest() {
            Some(g.preserved())
        } else {
            (snapshot == self.base_id).then(|| g.former())
        }
    }

    /// A snapshot has these blocks now.
    fn note_kept(&self, snapshot: u32, area: u64, mask: u16) {
        if let Some(map) = self.map_of(snapshot) {
            map.set_area(area, mask);
        }
    }

    /// Starts to copy the blocks `mask` of an area for `snapshot`; returns those that are being copied
    /// now: not those that the snapshot has, nor those of another copy under way, and fewer when the
    /// free slots come in pieces.
    pub(crate) fn start_copy(
        &mut self,
        purpose: Purpose,
        snapshot: u32,
        area: u64,
        mask: u16,
    ) -> Result<u16, NotStarted> {
        if purpose != Purpose::Guard && !self.jobs.room() {
            return Err(NotStarted::Busy);
        }
        // What the snapshot has must not be copied again: while it was, its slot would be gone with
        // the bit still set, and a mirror might be writing to it.
        let has = self.map_of(snapshot).map_or(0, |map| map.area_mask(area));
        let mask = mask & !self.jobs.copying(area) & !has;
        let mask = match purpose {
            Purpose::Guard => mask & !self.inherited(snapshot, area, mask),
            _ => mask,
        };
        if mask == 0 {
            return Err(NotStarted::Busy);
        }
        let before_t0 = matches!(purpose, Purpose::Stage { .. } | Purpose::StageClean);
        let stamp = if before_t0 { self.dev.tracker.stamp(area) } else { None };
        if before_t0 && stamp.is_none() {
            return Err(NotStarted::Busy);
        }
        let Some(number) = self.jobs.jobs.iter().position(|job| job.state == State::Idle) else {
            return Err(NotStarted::Busy);
        };
        let (slot, mask) = self.reserve_slots(snapshot, area, mask).ok_or(NotStarted::Full)?;
        let Some(job) = self.jobs.jobs.get_mut(number) else { return Err(NotStarted::Busy) };
        job.purpose = purpose;
        job.snapshot = snapshot;
        job.area = area;
        job.mask = mask;
        job.slot = slot;
        job.stamp = stamp;
        job.inserted = false;
        job.index_wait = [None; 2];
        let first = area << AREA_BLOCKS_SHIFT;
        // The last block of an origin may be cut short by the target's end, never by the device's.
        let runs = chunker::chunks(mask, Prob::ONE).map(|(at, blocks)| Piece {
            sector: first.saturating_add(at.into()).saturating_mul(BLOCK_SECTORS.into()),
            bytes: (blocks as usize).saturating_mul(BLOCK_BYTES as usize),
        });
        if job.transfer.read(&self.dev.origin, runs).is_err() {
            self.free_slots(slot, mask.count_ones());
            return Err(NotStarted::Busy);
        }
        job.state = State::Reading;
        self.jobs.begun(purpose);
        Ok(mask)
    }

    /// Of these blocks, those that a sealed snapshot has been given by one that was given up (`remove.rs undo_step`). They are kept
    /// from the moment that the index on disk says so.
    ///
    /// Another copy must not take their place: the slot would be free, and be written again, while the index on disk still
    /// has the entry.
    fn inherited(&mut self, snapshot: u32, area: u64, mask: u16) -> u16 {
        if snapshot != self.base_id {
            return 0;
        }
        let (mut inherited, mut kept) = (0u16, 0u16);
        for block in blocks_of_mask(area, mask) {
            let Some(slot) = self.dev.slots.lock().lookup(snapshot, block) else { continue };
            inherited |= bit_of(block);
            if self.index.settled(self.dev.layout().index_block(slot).0) {
                kept |= bit_of(block);
            }
        }
        if kept != 0 {
            self.note_kept(snapshot, area, kept);
            self.parked.retry = true;
            self.progress = true;
        }
        if inherited != kept {
            self.parked.for_index = true;
        }
        inherited
    }

    /// Starts to take the checksums of neighbouring slots that mirrors wrote: those of the blocks `mask`
    /// of an area, the first one in `slot`.
    pub(crate) fn start_checksum(
        &mut self,
        snapshot: u32,
        area: u64,
        mask: u16,
        slot: u32,
    ) -> Result<(), NotStarted> {
        if !self.jobs.room() || self.jobs.copying(area) & mask != 0 {
            return Err(NotStarted::Busy);
        }
        let sector = self.dev.layout().slot_block(slot).saturating_mul(BLOCK_SECTORS.into());
        let region = self.dev.region;
        let job = self.jobs.jobs.iter_mut().find(|job| job.state == State::Idle);
        let Some(job) = job else { return Err(NotStarted::Busy) };
        job.purpose = Purpose::Checksum;
        job.snapshot = snapshot;
        job.area = area;
        job.mask = mask;
        job.slot = slot;
        job.inserted = true;
        let piece = Piece { sector, bytes: job.bytes() };
        if job.transfer.read(&region, [piece].into_iter()).is_err() {
            return Err(NotStarted::Busy);
        }
        job.state = State::Reading;
        self.jobs.begun(Purpose::Checksum);
        Ok(())
    }

    /// Reserves neighbouring slots for blocks of an area, or for the first of them, giving back those
    /// of older copies; returns the first slot and the blocks.
    fn reserve_slots(&mut self, snapshot: u32, area: u64, mask: u16) -> Option<(u32, u16)> {
        let mut stale = [None; AREA_BLOCKS as usize];
        let (slot, got) = {
            let mut slots = self.dev.slots.lock();
            let (slot, n) = slots.alloc_run(mask.count_ones())?;
            let got = lowest_bits(mask, n);
            for (block, place) in blocks_of_mask(area, got).zip(stale.iter_mut()) {
                if let Some(old) = slots.lookup(snapshot, block) {
                    slots.free(old);
                    *place = Some(old);
                }
            }
            (slot, got)
        };
        for old in stale.into_iter().flatten() {
            self.index.mark(&self.dev.layout(), old, 1, false);
        }
        Some((slot, got))
    }

    fn free_slots(&mut self, slot: u32, len: u32) {
        {
            let mut slots = self.dev.slots.lock();
            for i in 0..len {
                slots.free(slot.saturating_add(i));
            }
        }
        self.index.mark(&self.dev.layout(), slot, len, false);
    }

    /// Takes the results of copies.
    pub(super) fn reap_copies(&mut self) {
        if self.jobs.active == 0 {
            return;
        }
        for number in 0..self.jobs.jobs.len() {
            let Some(job) = self.jobs.jobs.get_mut(number) else { break };
            match job.state {
                State::Idle => {}
                State::Reading => {
                    if let Some(result) = job.transfer.result() {
                        self.progress = true;
                        self.read_ended(number, result);
                        self.breathe();
                    }
                }
                State::Writing => {
                    if let Some(result) = job.transfer.result() {
                        self.progress = true;
                        self.write_ended(number, result);
                    }
                }
                State::Indexing => {
                    let waits = job.index_wait;
                    if waits.into_iter().flatten().all(|(i, seq)| self.index.durable(i, seq)) {
                        self.progress = true;
                        self.copy_ended(number);
                    }
                }
            }
        }
    }

    fn read_ended(&mut self, number: usize, result: Result) {
        let Some(job) = self.jobs.jobs.get_mut(number) else { return };
        let (purpose, slot, len) = (job.purpose, job.slot, job.len());
        if result.is_err() {
            add(&self.dev.totals.io_errors, 1);
            self.give_up(number);
            match purpose {
                Purpose::Stage { .. } | Purpose::StageClean => {}
                Purpose::Checksum => self.region_failed(),
                _ => self.copy_failed(),
            }
            return;
        }
        if let Some(data) = job.transfer.buffer() {
            for (crc, block) in
                job.crcs.iter_mut().zip(data.chunks_exact(BLOCK_BYTES as usize)).take(len as usize)
            {
                *crc = crc32c(block);
            }
        }
        if purpose == Purpose::Checksum {
            {
                let mut slots = self.dev.slots.lock();
                for (i, crc) in (0..len).zip(job.crcs) {
                    slots.set_crc(slot.saturating_add(i), crc);
                }
            }
            self.dev.generations.rewritten.clear_area(job.area, job.mask);
            self.index.mark(&self.dev.layout(), slot, len, false);
            self.finish(number);
            return;
        }
        if !self.still_whole(number) {
            if purpose != Purpose::Guard {
                add(&self.dev.totals.stale, len.into());
            }
            self.give_up(number);
            return;
        }
        // Index and data may be written at the same time: the entry says that it is not confirmed, and has the
        // data's checksum, so one without the other is found out. With a volatile cache the entry's write is the
        // barrier for the data, and has to come after it. A view leaves the entry out until
        // the data is there.
        let views = self.dev.views.load(Ordering::SeqCst) > 0;
        if purpose == Purpose::Guard && !self.dev.region_cached && !views {
            self.insert(number, SlotKind::Unconfirmed, true);
        }
        let Some(job) = self.jobs.jobs.get_mut(number) else { return };
        let sector = self.dev.layout().slot_block(job.slot).saturating_mul(BLOCK_SECTORS.into());
        let bytes = job.bytes();
        add(&self.dev.totals.region_bytes, bytes as u64);
        let region = self.dev.region;
        if job.transfer.write(&region, sector, bytes, Durability::Cached).is_err() {
            self.give_up(number);
            self.region_failed();
            return;
        }
        job.state = State::Writing;
    }

    /// Whether no write has begun since the read did.
    fn still_whole(&self, number: usize) -> bool {
        let Some(job) = self.jobs.jobs.get(number) else { return false };
        match job.purpose {
            Purpose::Stage { .. } | Purpose::StageClean => {
                job.stamp.is_some_and(|s| self.dev.tracker.unchanged(job.area, s))
            }
            // Another T0 has come, whose snapshot may have the block already: then its writers are
            // not held any more. That snapshot's copy serves this one too.
            Purpose::Guard => job.snapshot == self.dev.newest(),
            _ => true,
        }
    }

    /// Enters the blocks into the slot table; `urgent` entries are written to the index at once.
    fn insert(&mut self, number: usize, kind: SlotKind, urgent: bool) {
        let Some(job) = self.jobs.jobs.get_mut(number) else { return };
        {
            let mut slots = self.dev.slots.lock();
            let blocks = blocks_of_mask(job.area, job.mask);
            for ((i, block), crc) in (0..AREA_BLOCKS).zip(blocks).zip(job.crcs) {
                let slot = job.slot.saturating_add(i);
                if slots.insert(slot, job.snapshot, block, kind, crc).is_err() {
                    // The snapshot was given the block by another way meanwhile.
                    slots.free(slot);
                }
            }
        }
        job.inserted = true;
        job.index_wait = self.index.mark(&self.dev.layout(), job.slot, job.len(), urgent);
    }

    fn write_ended(&mut self, number: usize, result: Result) {
        let Some(job) = self.jobs.jobs.get_mut(number) else { return };
        let purpose = job.purpose;
        if result.is_err() {
            add(&self.dev.totals.io_errors, 1);
            self.give_up(number);
            self.region_failed();
            return;
        }
        let (inserted, slot, len) = (job.inserted, job.slot, job.len());
        let indexed_first = match purpose {
            Purpose::Guard => true,
            Purpose::Final | Purpose::Drain => self.speaks_for_images(),
            _ => false,
        };
        if inserted {
            let mut slots = self.dev.slots.lock();
            for i in 0..len {
                slots.confirm(slot.saturating_add(i));
            }
        } else {
            self.insert(number, SlotKind::Data, indexed_first);
        }
        if !indexed_first {
            self.copy_ended(number);
        } else if let Some(job) = self.jobs.jobs.get_mut(number) {
            job.state = State::Indexing;
        }
    }

    /// Whether copies of the delta may be the only ones of what an older image has.
    ///
    /// What was written since that image it has itself. But of what passed for changed at the opening some perhaps was not
    /// written: after a crash, however long ago. If a writer passed because the unfinished snapshot has such a
    /// block, and power failed again, nobody would have it.
    fn speaks_for_images(&self) -> bool {
        self.dev.opened_dirty.load(Ordering::Relaxed) && self.dev.guard() == Guard::Image
    }

    /// The copy is where it belongs: say so.
    fn copy_ended(&mut self, number: usize) {
        let Some(job) = self.jobs.jobs.get(number) else { return };
        let (purpose, snapshot, area, mask) = (job.purpose, job.snapshot, job.area, job.mask);
        let blocks = u64::from(mask.count_ones());
        let totals = &self.dev.totals;
        match purpose {
            Purpose::Stage { .. } | Purpose::StageClean => {
                let g = &self.dev.generations;
                g.rewritten.clear_area(area, mask);
                if purpose == (Purpose::Stage { mirror: true }) {
                    g.mirrored.set_area(area, mask);
                } else {
                    g.mirrored.clear_area(area, mask);
                }
                g.staged().set_area(area, mask);
                // Pairs with the fence of the writers: either we see their generation, or they
                // our bit.
                fence(Ordering::SeqCst);
                if !self.still_whole(number) {
                    let stale = g.staged().clear_area(area, mask);
                    add(&totals.stale, stale.count_ones().into());
                }
                add(&totals.precopied_blocks, blocks);
                if purpose == Purpose::StageClean {
                    self.record.staged_clean_blocks =
                        self.record.staged_clean_blocks.saturating_add(blocks);
                }
            }
            Purpose::Final => {
                self.note_kept(snapshot, area, mask);
                add(&totals.final_copy_blocks, blocks);
                self.record.final_copy_blocks =
                    self.record.final_copy_blocks.saturating_add(blocks);
            }
            Purpose::Guard => {
                self.note_kept(snapshot, area, mask);
                add(&totals.guarded_blocks, blocks);
                self.count_guarded(area, mask);
            }
            Purpose::Drain => {
                self.note_kept(snapshot, area, mask);
                add(&totals.drained_blocks, blocks);
                self.record.drained_blocks = self.record.drained_blocks.saturating_add(blocks);
            }
            Purpose::Checksum => {}
        }
        self.record.copied_blocks_total = self.record.copied_blocks_total.saturating_add(blocks);
        self.finish(number);
    }

    fn count_guarded(&mut self, area: u64, mask: u16) {
        if !self.snapshot.phase().after_t0() {
            return;
        }
        let in_delta = self.dev.generations.delta().area_mask(area) & mask;
        self.record.guarded_blocks =
            self.record.guarded_blocks.saturating_add(mask.count_ones().into());
        self.drain.guarded_in_delta =
            self.drain.guarded_in_delta.saturating_add(in_delta.count_ones().into());
    }

    /// Ends a job that leads nowhere, giving its slots back.
    fn give_up(&mut self, number: usize) {
        if let Some(job) = self.jobs.jobs.get(number) {
            let (slot, len, purpose) = (job.slot, job.len(), job.purpose);
            if purpose != Purpose::Checksum {
                self.free_slots(slot, len);
            }
        }
        self.finish(number);
    }

    fn finish(&mut self, number: usize) {
        if let Some(job) = self.jobs.jobs.get_mut(number) {
            job.state = State::Idle;
            let purpose = job.purpose;
            self.jobs.ended(purpose);
        }
        self.parked.retry = true;
    }

    /// A copy that the snapshot cannot do without has failed.
    fn copy_failed(&mut self) {
        // One that is being sealed has all of its delta, and needs the copy for its image only.
        if self.snapshot.phase() != Phase::Sealing {
            self.report(Event::Fail(DropReason::IoError));
        }
        self.lose_images(DropReason::IoError);
    }

    /// Whether copies for a snapshot are under way.
    pub(super) fn copies_of(&self, snapshot: u32) -> bool {
        self.jobs.jobs.iter().any(|job| job.state != State::Idle && job.snapshot == snapshot)
    }
}
