// SPDX-License-Identifier: GPL-2.0-only

//! Copying runs of blocks from the origin to slots of the region.
//!
//! A copy made before T0 counts only if no write to its areas was in flight when the read began and
//! none was issued before it ended (design, section 8.1). A copy made after T0 cannot be torn: the
//! guard holds the writers of a block that is not preserved yet.

use super::Worker;
use crate::device::{add, BlockMap};
use crate::route::areas_of;
use core::sync::atomic::{fence, Ordering};
use kernel::prelude::*;
use kernel::sync::Arc;
use presnap_abi::clock::crc32c;
use presnap_abi::io::{Client, Durability, Transfer};
use presnap_abi::thread::Wake;
use presnap_engine::freeze::{DropReason, Event};
use presnap_engine::geometry::{AREA_BLOCKS, BLOCK_BYTES, BLOCK_SECTORS};
use presnap_engine::inflight::Stamp;
use presnap_engine::region::SlotKind;

/// Copies at a time, and with them the memory: 64 x 64 KiB.
const JOBS: usize = 64;
/// Of them, kept for writers that wait.
const JOBS_FOR_GUARD: usize = 24;
/// Longest run of one copy.
pub(crate) const RUN_BLOCKS: u32 = AREA_BLOCKS;

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
    start: u64,
    len: u32,
    slot: u32,
    /// Write generations of the areas before the read.
    stamps: [Option<Stamp>; 2],
    crcs: [u32; RUN_BLOCKS as usize],
    /// Entries are in the slot table.
    inserted: bool,
    /// The index block, and the version of it that has the entries; for guards.
    index_wait: [Option<(u32, u64)>; 2],
}

impl Job {
    fn overlaps(&self, start: u64, len: u64) -> bool {
        self.state != State::Idle
            && self.start < start.saturating_add(len)
            && start < self.start.saturating_add(self.len.into())
    }

    fn bytes(&self) -> usize {
        self.len as usize * BLOCK_BYTES as usize
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
            let bytes = RUN_BLOCKS as usize * BLOCK_BYTES as usize;
            let job = Job {
                transfer: Transfer::new(client, wake, bytes)?,
                state: State::Idle,
                purpose: Purpose::Drain,
                snapshot: 0,
                start: 0,
                len: 0,
                slot: 0,
                stamps: [None; 2],
                crcs: [0; RUN_BLOCKS as usize],
                inserted: false,
                index_wait: [None; 2],
            };
            jobs.push(job, GFP_KERNEL)?;
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

    /// Whether a copy of one of these blocks is under way.
    pub(crate) fn covers(&self, start: u64, len: u64) -> bool {
        self.jobs.iter().any(|job| job.overlaps(start, len))
    }
}

impl Worker {
    /// The number of the coming snapshot: that of staged blocks.
    pub(crate) fn coming_id(&self) -> u32 {
        self.dev.coming()
    }

    /// The bitmap that says which blocks a snapshot has.
    ///
    /// A guard's copy may end after the next T0: it belongs to the snapshot before then, and the
    /// new one does not have the block.
    fn map_of(&self, snapshot: u32) -> &BlockMap {
        if snapshot == self.coming_id() {
            self.dev.generations.staged()
        } else if snapshot == self.dev.newest() {
            self.dev.generations.preserved()
        } else {
            self.dev.generations.former()
        }
    }

    /// Starts to copy `len` blocks (at most [`RUN_BLOCKS`]) from `start` for `snapshot`; returns
    /// how many blocks the copy covers, fewer when the slots come in pieces.
    pub(crate) fn start_copy(
        &mut self,
        purpose: Purpose,
        snapshot: u32,
        start: u64,
        len: u32,
    ) -> Result<u32, NotStarted> {
        if purpose != Purpose::Guard && !self.jobs.room() {
            return Err(NotStarted::Busy);
        }
        let len = len.clamp(1, RUN_BLOCKS);
        let before_t0 = matches!(purpose, Purpose::Stage { .. } | Purpose::StageClean);
        if self.jobs.covers(start, len.into()) {
            return Err(NotStarted::Busy);
        }
        // What the snapshot has must not be copied again: while it was, its slot would be gone with
        // the bit still set, and a mirror might be writing to it.
        if self.map_of(snapshot).any_set(start, len.into()) {
            return Err(NotStarted::Busy);
        }
        let mut stamps = [None; 2];
        if before_t0 {
            let (area, areas) = areas_of(start, len.into());
            for (i, stamp) in (0..areas).zip(stamps.iter_mut()) {
                *stamp = self.dev.tracker.stamp(area.saturating_add(i));
                if stamp.is_none() {
                    return Err(NotStarted::Busy);
                }
            }
        }
        let Some(number) = self.jobs.jobs.iter().position(|job| job.state == State::Idle) else {
            return Err(NotStarted::Busy);
        };
        let (slot, len) = self.reserve_slots(snapshot, start, len).ok_or(NotStarted::Full)?;
        let sector = start.saturating_mul(BLOCK_SECTORS.into());
        let Some(job) = self.jobs.jobs.get_mut(number) else { return Err(NotStarted::Busy) };
        job.purpose = purpose;
        job.snapshot = snapshot;
        job.start = start;
        job.len = len;
        job.slot = slot;
        job.stamps = stamps;
        job.inserted = false;
        job.index_wait = [None; 2];
        // The last block of an origin may be cut short by the target's end, never by the device's.
        let bytes = job.bytes();
        if job.transfer.read(&self.dev.origin, sector, 0, bytes).is_err() {
            self.free_slots(slot, len);
            return Err(NotStarted::Busy);
        }
        job.state = State::Reading;
        self.jobs.begun(purpose);
        Ok(len)
    }

    /// Starts to take the checksum of a slot that mirrors wrote.
    pub(crate) fn start_checksum(
        &mut self,
        snapshot: u32,
        block: u64,
        slot: u32,
    ) -> Result<(), NotStarted> {
        if !self.jobs.room() || self.jobs.covers(block, 1) {
            return Err(NotStarted::Busy);
        }
        let sector = self.dev.layout.slot_block(slot).saturating_mul(BLOCK_SECTORS.into());
        let region = self.dev.region;
        let job = self.jobs.jobs.iter_mut().find(|job| job.state == State::Idle);
        let Some(job) = job else { return Err(NotStarted::Busy) };
        job.purpose = Purpose::Checksum;
        job.snapshot = snapshot;
        job.start = block;
        job.len = 1;
        job.slot = slot;
        job.inserted = true;
        if job.transfer.read(&region, sector, 0, BLOCK_BYTES as usize).is_err() {
            return Err(NotStarted::Busy);
        }
        job.state = State::Reading;
        self.jobs.begun(Purpose::Checksum);
        Ok(())
    }

    /// Reserves neighbouring slots for a run, giving back those of older copies of its blocks.
    fn reserve_slots(&mut self, snapshot: u32, start: u64, len: u32) -> Option<(u32, u32)> {
        let mut stale = [None; RUN_BLOCKS as usize];
        let (slot, got) = {
            let mut slots = self.dev.slots.lock();
            let (slot, got) = slots.alloc_run(len)?;
            for (i, place) in (0..u64::from(got)).zip(stale.iter_mut()) {
                let old = slots.lookup(snapshot, start.saturating_add(i));
                if let Some(old) = old {
                    slots.free(old);
                    *place = Some(old);
                }
            }
            (slot, got)
        };
        for old in stale.into_iter().flatten() {
            self.index.mark(&self.dev.layout, old, 1, false);
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
        self.index.mark(&self.dev.layout, slot, len, false);
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
        let (purpose, slot, len) = (job.purpose, job.slot, job.len);
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
            let crc = job.crcs.first().copied().unwrap_or(0);
            self.dev.slots.lock().set_crc(slot, crc);
            self.dev.generations.rewritten.clear_range(job.start, 1);
            self.index.mark(&self.dev.layout, slot, 1, false);
            self.finish(number);
            return;
        }
        if !self.still_whole(number) {
            add(&self.dev.totals.stale, len.into());
            self.give_up(number);
            return;
        }
        // Index and data may be written at the same time: the entry has the data's checksum, so
        // one without the other is found out. With a volatile cache the entry's write is the
        // barrier for the data, and has to come after it. A view must not find the entry before
        // the data.
        let views = self.dev.views.load(Ordering::SeqCst) > 0;
        if purpose == Purpose::Guard && !self.dev.region_cached && !views {
            self.insert(number, true);
        }
        let Some(job) = self.jobs.jobs.get_mut(number) else { return };
        let sector = self.dev.layout.slot_block(job.slot).saturating_mul(BLOCK_SECTORS.into());
        let bytes = job.bytes();
        add(&self.dev.totals.region_bytes, bytes as u64);
        let region = self.dev.region;
        if job.transfer.write(&region, sector, 0, bytes, Durability::Cached).is_err() {
            self.give_up(number);
            self.region_failed();
            return;
        }
        job.state = State::Writing;
    }

    /// Whether no write has begun since the read did; always so after T0.
    fn still_whole(&self, number: usize) -> bool {
        let Some(job) = self.jobs.jobs.get(number) else { return false };
        if !matches!(job.purpose, Purpose::Stage { .. } | Purpose::StageClean) {
            return true;
        }
        let (area, areas) = areas_of(job.start, job.len.into());
        (0..areas).zip(job.stamps).all(|(i, stamp)| {
            stamp.is_some_and(|s| self.dev.tracker.unchanged(area.saturating_add(i), s))
        })
    }

    /// Enters the run into the slot table; `urgent` entries are written to the index at once.
    fn insert(&mut self, number: usize, urgent: bool) {
        let Some(job) = self.jobs.jobs.get_mut(number) else { return };
        {
            let mut slots = self.dev.slots.lock();
            for (i, crc) in (0..job.len).zip(job.crcs) {
                let slot = job.slot.saturating_add(i);
                let block = job.start.saturating_add(i.into());
                let _ = slots.insert(slot, job.snapshot, block, SlotKind::Data, crc);
            }
        }
        job.inserted = true;
        job.index_wait = self.index.mark(&self.dev.layout, job.slot, job.len, urgent);
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
        if !job.inserted {
            self.insert(number, purpose == Purpose::Guard);
        }
        match purpose {
            Purpose::Guard => {
                if let Some(job) = self.jobs.jobs.get_mut(number) {
                    job.state = State::Indexing;
                }
            }
            _ => self.copy_ended(number),
        }
    }

    /// The copy is where it belongs: say so.
    fn copy_ended(&mut self, number: usize) {
        let Some(job) = self.jobs.jobs.get(number) else { return };
        let (purpose, snapshot, start, len) = (job.purpose, job.snapshot, job.start, job.len);
        let blocks = u64::from(len);
        let totals = &self.dev.totals;
        match purpose {
            Purpose::Stage { .. } | Purpose::StageClean => {
                let g = &self.dev.generations;
                g.rewritten.clear_range(start, blocks);
                if purpose == (Purpose::Stage { mirror: true }) {
                    g.mirrored.set_range(start, blocks);
                } else {
                    g.mirrored.clear_range(start, blocks);
                }
                g.staged().set_range(start, blocks);
                // Pairs with the fence of the writers: either we see their generation, or they
                // our bit.
                fence(Ordering::SeqCst);
                if !self.still_whole(number) {
                    let stale = g.staged().clear_range(start, blocks);
                    add(&totals.stale, stale);
                }
                add(&totals.precopied_blocks, blocks);
                if purpose == Purpose::StageClean {
                    self.record.staged_clean_blocks =
                        self.record.staged_clean_blocks.saturating_add(blocks);
                }
            }
            Purpose::Final => {
                self.map_of(snapshot).set_range(start, blocks);
                add(&totals.final_copy_blocks, blocks);
                self.record.final_copy_blocks =
                    self.record.final_copy_blocks.saturating_add(blocks);
            }
            Purpose::Guard => {
                self.map_of(snapshot).set_range(start, blocks);
                add(&totals.guarded_blocks, blocks);
                self.count_guarded(start, len);
            }
            Purpose::Drain => {
                self.map_of(snapshot).set_range(start, blocks);
                add(&totals.drained_blocks, blocks);
                self.record.drained_blocks = self.record.drained_blocks.saturating_add(blocks);
            }
            Purpose::Checksum => {}
        }
        self.record.copied_blocks_total = self.record.copied_blocks_total.saturating_add(blocks);
        self.finish(number);
    }

    fn count_guarded(&mut self, start: u64, len: u32) {
        if !self.snapshot.phase().after_t0() {
            return;
        }
        let delta = self.dev.generations.delta();
        let in_delta =
            (0..u64::from(len)).filter(|&i| delta.test(start.saturating_add(i))).count() as u64;
        self.record.guarded_blocks = self.record.guarded_blocks.saturating_add(len.into());
        self.drain.guarded_in_delta = self.drain.guarded_in_delta.saturating_add(in_delta);
    }

    /// Ends a job that leads nowhere, giving its slots back.
    fn give_up(&mut self, number: usize) {
        if let Some(job) = self.jobs.jobs.get(number) {
            let (slot, len, purpose) = (job.slot, job.len, job.purpose);
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
        self.report(Event::Fail(DropReason::IoError));
        self.lose_images(DropReason::IoError);
    }

    /// Ends the copies for a snapshot that is no more, as far as they have not reached the table.
    pub(super) fn copies_of(&self, snapshot: u32) -> bool {
        self.jobs.jobs.iter().any(|job| job.state != State::Idle && job.snapshot == snapshot)
    }
}
