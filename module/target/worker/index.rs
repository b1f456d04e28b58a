// SPDX-License-Identifier: GPL-2.0-only

//! Writing the index: blocks whose entries changed, to their two copies in turn.

use super::Worker;
use crate::device::{add, block_map, BlockMap, Device};
use crate::region::IndexState;
use kernel::prelude::*;
use kernel::sync::Arc;
use presnap_abi::clock::crc32c;
use presnap_abi::io::{Client, Durability, Transfer};
use presnap_abi::thread::Wake;
use presnap_engine::geometry::{BLOCK_BYTES, BLOCK_SECTORS};
use presnap_engine::region::{region_tag, IndexBlock, Layout, UnconfirmedSlots};

/// Index blocks written at a time.
const WRITES: usize = 16;
/// Index blocks on disk that may have unconfirmed entries: what has to be read after a crash.
const UNCONFIRMED: u64 = 64;

struct Write {
    transfer: KBox<Transfer>,
    index_no: Option<u32>,
}

/// See the module.
pub(crate) struct IndexWriter {
    states: KVVec<IndexState>,
    /// Blocks that differ from disk.
    dirty: BlockMap,
    /// Of them, those that somebody waits for.
    urgent: BlockMap,
    /// Blocks whose newest version on disk, or on its way there, has unconfirmed entries.
    unconfirmed: BlockMap,
    writes: KVec<Write>,
    in_flight: usize,
    /// Write all that differs, urgent or not.
    pub(super) flush: bool,
    /// The region failed: nothing will be durable any more.
    failed: bool,
}

impl IndexWriter {
    pub(crate) fn new(
        client: &Arc<Client>,
        wake: &Arc<Wake>,
        states: KVVec<IndexState>,
    ) -> Result<Self> {
        let mut writes = KVec::with_capacity(WRITES, GFP_KERNEL)?;
        for _ in 0..WRITES {
            let transfer = Transfer::new(client, wake, BLOCK_BYTES as usize)?;
            writes.push_within_capacity(Write { transfer, index_no: None }).map_err(|_| ENOMEM)?;
        }
        let n = states.len() as u64;
        let (dirty, urgent, unconfirmed) = (block_map(n)?, block_map(n)?, block_map(n)?);
        for (i, state) in (0..n).zip(states.iter()) {
            if state.outdated {
                dirty.set_range(i, 1);
            }
        }
        Ok(Self {
            states,
            dirty,
            urgent,
            unconfirmed,
            writes,
            in_flight: 0,
            flush: false,
            failed: false,
        })
    }

    /// Index blocks with entries that were not confirmed when they were written are written again; `urgent`: at once.
    pub(super) fn confirm(&mut self, urgent: bool) {
        let mut from = 0;
        while let Some(i) = self.unconfirmed.next_set(from) {
            self.unconfirmed.clear_range(i, 1);
            self.dirty.set_range(i, 1);
            if urgent {
                self.urgent.set_range(i, 1);
            }
            from = i.saturating_add(1);
        }
    }

    /// The region has grown: from now on with this memory, that of a longer index.
    pub(super) fn enlarge(
        &mut self,
        states: &mut KVVec<IndexState>,
        [dirty, urgent, unconfirmed]: &mut [BlockMap; 3],
    ) {
        for (new, old) in states.iter_mut().zip(self.states.iter()) {
            *new = *old;
        }
        core::mem::swap(&mut self.states, states);
        let pairs = [
            (&mut self.dirty, dirty),
            (&mut self.urgent, urgent),
            (&mut self.unconfirmed, unconfirmed),
        ];
        for (old, new) in pairs {
            let mut from = 0;
            while let Some(i) = old.next_set(from) {
                new.set_range(i, 1);
                from = i.saturating_add(1);
            }
            core::mem::swap(old, new);
        }
    }

    /// Notes that the entries of a run of slots changed. Returns the index blocks, each with the
    /// version that will have the change.
    pub(crate) fn mark(
        &self,
        layout: &Layout,
        slot: u32,
        len: u32,
        urgent: bool,
    ) -> [Option<(u32, u64)>; 2] {
        let first = layout.index_block(slot).0;
        let last = layout.index_block(slot.saturating_add(len.saturating_sub(1))).0;
        let mut out = [None; 2];
        for (place, index_no) in out.iter_mut().zip(first..=last) {
            self.dirty.set_range(index_no.into(), 1);
            if urgent {
                self.urgent.set_range(index_no.into(), 1);
            }
            let Some(state) = self.states.get(index_no as usize) else { continue };
            // A version being written now was encoded before the change.
            let ahead = if state.in_flight { 2 } else { 1 };
            *place = Some((index_no, state.seq.saturating_add(ahead)));
        }
        out
    }

    /// The region failed: who waits for an index block waits no longer.
    pub(super) fn fail(&mut self) {
        self.failed = true;
    }

    /// Whether version `seq` of an index block, or a later one, is durable, or never will be.
    pub(crate) fn durable(&self, index_no: u32, seq: u64) -> bool {
        self.failed || self.states.get(index_no as usize).is_some_and(|s| s.seq >= seq)
    }

    /// Whether an index block on disk is as in memory. If not, it will be soon.
    pub(super) fn settled(&self, index_no: u32) -> bool {
        let dirty = self.dirty.test(index_no.into());
        if dirty {
            self.urgent.set_range(index_no.into(), 1);
        }
        !dirty && self.states.get(index_no as usize).is_some_and(|s| !s.in_flight)
    }

    /// Whether disk and memory are the same.
    pub(crate) fn clean(&self) -> bool {
        self.in_flight == 0 && self.dirty.next_set(0).is_none()
    }

    pub(crate) fn in_flight(&self) -> bool {
        self.in_flight > 0
    }

    /// The next block to write: not one that is being written.
    fn next(&self) -> Option<u32> {
        let map = if self.flush { &self.dirty } else { &self.urgent };
        let mut from = 0;
        while let Some(i) = map.next_set(from) {
            if self.states.get(i as usize).is_some_and(|s| !s.in_flight) {
                return u32::try_from(i).ok();
            }
            from = i.saturating_add(1);
        }
        None
    }

    /// Of the slots that `writing` names, the data is on its way.
    fn start(
        &mut self,
        dev: &Device,
        index_no: u32,
        writing: impl Iterator<Item = (u32, u32)>,
    ) -> Result {
        let state = self.states.get_mut(index_no as usize).ok_or(EINVAL)?;
        let write = self.writes.iter_mut().find(|w| w.index_no.is_none()).ok_or(EBUSY)?;
        self.dirty.clear_range(index_no.into(), 1);
        self.urgent.clear_range(index_no.into(), 1);
        let seq = state.seq.saturating_add(1);
        let writing = UnconfirmedSlots::new(index_no, writing);
        if writing.any() {
            self.unconfirmed.set_range(index_no.into(), 1);
        } else {
            self.unconfirmed.clear_range(index_no.into(), 1);
        }
        let out = write
            .transfer
            .buffer()
            .and_then(|b| b.first_chunk_mut::<{ BLOCK_BYTES as usize }>())
            .ok_or(EIO)?;
        {
            let slots = dev.slots.lock();
            let tag = region_tag(&dev.region_uuid);
            let entries = slots.index_entries(index_no);
            if writing.any() {
                let entries = writing.mark(entries);
                IndexBlock::encode_with(out, tag, index_no, seq, entries, crc32c);
            } else {
                IndexBlock::encode_with(out, tag, index_no, seq, entries, crc32c);
            }
        }
        let block = dev.layout().index_copy_block(index_no, state.next);
        let sector = block.saturating_mul(BLOCK_SECTORS.into());
        let durability = if dev.region_cached { Durability::Barrier } else { Durability::Cached };
        write.transfer.write(&dev.region, sector, BLOCK_BYTES as usize, durability)?;
        add(&dev.totals.region_bytes, BLOCK_BYTES.into());
        write.index_no = Some(index_no);
        state.in_flight = true;
        self.in_flight = self.in_flight.saturating_add(1);
        Ok(())
    }
}

impl Worker {
    /// Takes the results of index writes.
    pub(super) fn reap_index(&mut self) {
        let mut failed = false;
        let index = &mut self.index;
        for write in index.writes.iter_mut() {
            let Some(number) = write.index_no else { continue };
            let Some(result) = write.transfer.result() else { continue };
            self.progress = true;
            self.parked.retry |= core::mem::take(&mut self.parked.for_index);
            write.index_no = None;
            index.in_flight = index.in_flight.saturating_sub(1);
            if let Some(state) = index.states.get_mut(number as usize) {
                state.in_flight = false;
                if result.is_ok() {
                    state.seq = state.seq.saturating_add(1);
                    state.next = state.next.other();
                } else {
                    failed = true;
                }
            }
        }
        if failed {
            add(&self.dev.totals.io_errors, 1);
            self.region_failed();
        }
    }

    /// Starts index writes.
    pub(super) fn write_index(&mut self) {
        if self.index.unconfirmed.count() > UNCONFIRMED {
            self.index.confirm(true);
        }
        while self.healthy() && self.index.in_flight < WRITES {
            let Some(index_no) = self.index.next() else { break };
            if !self.root_covers_index() {
                break;
            }
            self.progress = true;
            if self.index.start(&self.dev, index_no, self.jobs.writing_entered()).is_err() {
                self.region_failed();
                break;
            }
        }
    }
}
