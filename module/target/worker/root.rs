// SPDX-License-Identifier: GPL-2.0-only

//! Writing the root: whole, to its two copies in turn, each write a barrier.

use super::{Known, Worker};
use crate::device::add;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;
use presnap_abi::io::{Client, Durability, Transfer};
use presnap_abi::thread::Wake;
use presnap_engine::freeze::{Event, Phase};
use presnap_engine::geometry::BLOCK_SECTORS;
use presnap_engine::region::root::{
    OP_RESERVE, ROOT_AFTER_CRASH, ROOT_BYTES, ROOT_CLEAN, ROOT_FULL_NEEDED,
};
use presnap_engine::region::Copy2;

/// See the module.
pub(crate) struct RootWriter {
    transfer: KBox<Transfer>,
    next: Copy2,
    /// The root in memory is newer than the one on disk or on its way there.
    dirty: bool,
    writing: bool,
    /// The write under way has the record of the snapshot that is being sealed.
    sealing: bool,
    /// Images are gone, and the root on disk does not say so yet: until it does, their blocks are
    /// still guarded, or a crash would leave images that are not what the origin was.
    relax: bool,
    /// The region failed, and a last write of the root was tried.
    last_tried: bool,
    /// Numbers of operations are reserved below this.
    reserved: u64,
    /// The number of the next snapshot, in the root being written and in the one on disk.
    next_written: u32,
    next_durable: u32,
}

impl RootWriter {
    /// `next` says where the next version goes; `next_snapshot` is on disk already.
    pub(crate) fn new(
        client: &Arc<Client>,
        wake: &Arc<Wake>,
        next: Copy2,
        next_snapshot: u32,
    ) -> Result<Self> {
        let transfer = Transfer::new(client, wake, ROOT_BYTES)?;
        Ok(Self {
            transfer,
            next,
            dirty: false,
            writing: false,
            sealing: false,
            relax: false,
            last_tried: false,
            reserved: 0,
            next_written: next_snapshot,
            next_durable: next_snapshot,
        })
    }

    pub(crate) fn in_flight(&self) -> bool {
        self.writing
    }

    pub(crate) fn dirty(&self) -> bool {
        self.dirty
    }

    /// The root changed.
    pub(crate) fn mark(&mut self) {
        self.dirty = true;
    }

    /// The root changed, and when that is durable the guard has less to do.
    pub(super) fn mark_relax(&mut self) {
        self.dirty = true;
        self.relax = true;
    }
}

impl Worker {
    /// The root has a new record: seal when it is durable.
    pub(super) fn write_record(&mut self) {
        self.root.dirty = true;
        self.root.sealing = true;
    }

    /// The guard still stands for images that are gone, until the root on disk says so.
    pub(super) fn must_not_relax(&self) -> bool {
        self.root.relax && self.healthy()
    }

    /// Whether the index may be written: its entries may be of the coming snapshot, and a reader takes
    /// no number higher than the one after the root's next.
    pub(super) fn root_covers_index(&mut self) -> bool {
        let covers = self.dev.coming() <= self.root.next_durable.saturating_add(1);
        if !covers && self.root.next_written < self.dev.coming() {
            self.root.mark();
        }
        covers
    }

    /// Encodes the root and returns its place.
    fn encode_root(&mut self, clean: bool) -> Result<u64> {
        let (base_id, op_first, known) = self.durable_generation();
        let mut flags = if clean { ROOT_CLEAN } else { 0 };
        if known.full_needed {
            flags |= ROOT_FULL_NEEDED;
        }
        if known.after_crash {
            flags |= ROOT_AFTER_CRASH;
        }
        let op = self.dev.op.load(Ordering::Relaxed).saturating_add(1);
        let block = self.dev.layout().root_block(self.root.next);
        let blocks = self.dev.origin_sectors.div_ceil(BLOCK_SECTORS.into());
        let mut root = self.dev.root.lock();
        root.header.seq = root.header.seq.saturating_add(1);
        root.header.next_op = if clean { op } else { op.saturating_add(OP_RESERVE) };
        root.header.flags = flags;
        root.header.base_id = base_id;
        root.header.op_first = op_first;
        root.header.superset_blocks = known.superset_blocks.min(blocks);
        self.root.reserved = root.header.next_op;
        self.root.next_written = root.header.next_snapshot;
        let out = self.root.transfer.buffer().and_then(|b| b.first_chunk_mut::<ROOT_BYTES>());
        root.encode_into(out.ok_or(EIO)?);
        Ok(block.saturating_mul(BLOCK_SECTORS.into()))
    }

    /// What is known of the changes now.
    pub(super) fn known(&self) -> Known {
        Known {
            full_needed: self.dev.full_needed.load(Ordering::Relaxed),
            after_crash: self.dev.after_crash.load(Ordering::Relaxed),
            superset_blocks: self.dev.superset_blocks.load(Ordering::Relaxed),
        }
    }

    /// The generation that the root on disk is to speak of: the one since the last snapshot whose record is in it.
    fn durable_generation(&self) -> (u32, u64, Known) {
        let known = self.known();
        match self.snapshot.phase() {
            Phase::Sealing => (self.record.id, self.op_first, known),
            Phase::Draining | Phase::Manifest => {
                // If it comes to nothing, its writes are part of the generation again.
                let unsealed = self.unsealed;
                let both = Known {
                    full_needed: known.full_needed || unsealed.full_needed,
                    after_crash: known.after_crash || unsealed.after_crash,
                    superset_blocks: known.superset_blocks.saturating_add(unsealed.superset_blocks),
                };
                (self.base_id, self.record.op_first, both)
            }
            _ => (self.base_id, self.op_first, known),
        }
    }

    /// Starts to write the root if it changed.
    pub(super) fn write_root(&mut self) {
        if !self.root.dirty || self.root.writing {
            return;
        }
        if !self.healthy() && core::mem::replace(&mut self.root.last_tried, true) {
            return;
        }
        let Ok(sector) = self.encode_root(false) else { return };
        let region = self.dev.region;
        self.progress = true;
        let transfer = &mut self.root.transfer;
        if transfer.write(&region, sector, ROOT_BYTES, Durability::Barrier).is_err() {
            self.region_failed();
            self.last_words_spoken();
            return;
        }
        add(&self.dev.totals.region_bytes, ROOT_BYTES as u64);
        self.root.next = self.root.next.other();
        self.root.dirty = false;
        self.root.writing = true;
    }

    /// Takes the result of a root write.
    pub(super) fn reap_root(&mut self) {
        if !self.root.writing {
            return;
        }
        let Some(result) = self.root.transfer.result() else { return };
        self.progress = true;
        self.root.writing = false;
        if result.is_err() {
            add(&self.dev.totals.io_errors, 1);
            // The copy may be torn: never the other one next.
            self.root.next = self.root.next.other();
            self.region_failed();
            self.last_words_spoken();
            return;
        }
        self.root.next_durable = self.root.next_written;
        self.last_words_spoken();
        if !self.root.dirty {
            if core::mem::take(&mut self.root.relax) && !self.snapshot.phase().after_t0() {
                self.relax_guard();
            }
            self.removal.root_durable();
            if core::mem::take(&mut self.root.sealing) {
                self.report(Event::RecordDurable);
            }
        }
    }

    /// The region failed, and it was tried to write the root once more, or that write failed it.
    fn last_words_spoken(&mut self) {
        if !self.healthy() && self.root.last_tried {
            self.give_intent_up();
        }
    }

    /// Writes the root with the mark of an orderly close, and waits for it.
    pub(super) fn close_root(&mut self) {
        let healthy = self.healthy();
        if self.root.writing {
            return;
        }
        let Ok(sector) = self.encode_root(healthy) else { return };
        let region = self.dev.region;
        let transfer = &mut self.root.transfer;
        if transfer.write_wait(&region, sector, ROOT_BYTES, Durability::Barrier).is_err() {
            pr_err!("{}: the region could not be closed in order\n", region.number());
        }
    }
}
