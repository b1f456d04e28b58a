// SPDX-License-Identifier: GPL-2.0-only

//! Growing the region: the index of the new part is made blank, then the superblocks say that it belongs to the
//! region, then its slots are free. Power may fail at any step: before the first superblock is durable
//! nothing has happened, after it the region is the larger one.
//!
//! Also puts right a superblock of which one copy was found damaged, or of before.

use super::Worker;
use crate::growth::Growth;
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use presnap_abi::dm::BlockDevice;
use presnap_abi::io::{Durability, Transfer};
use presnap_engine::geometry::{BLOCK_BYTES, BLOCK_SECTORS};
use presnap_engine::region::{Copy2, Layout, Superblock};

/// Groups of slots taken into use in one pass: the slot table is locked meanwhile.
const GROUPS: u32 = 512;

enum Step {
    /// Nothing is begun.
    Idle,
    /// The index blocks of so many runs are blank.
    Blank(usize),
    /// This copy of the superblock is being written.
    Superblock(Copy2),
    /// The slots come into use.
    Slots,
}

/// See the module.
pub(crate) struct Grower {
    /// As the region has it.
    superblock: Superblock,
    step: Step,
    growth: Option<Growth>,
    /// A copy to be put right, and what for.
    mend: Option<(Copy2, KBox<Transfer>)>,
}

impl Grower {
    pub(crate) fn new(superblock: Superblock, mend: Option<(Copy2, KBox<Transfer>)>) -> Self {
        Self { superblock, step: Step::Idle, growth: None, mend }
    }

    pub(crate) fn in_flight(&self) -> bool {
        self.growth.as_ref().is_some_and(|g| g.transfer.in_flight())
            || self.mend.as_ref().is_some_and(|(_, transfer)| transfer.in_flight())
    }
}

/// Starts to write a copy of the superblock, behind all that was written before.
fn write_superblock(
    transfer: &mut Transfer,
    region: &BlockDevice,
    superblock: &Superblock,
    layout: &Layout,
    copy: Copy2,
) -> Result {
    let sector = layout.superblock_block(copy).saturating_mul(BLOCK_SECTORS.into());
    let out = transfer.buffer().and_then(|b| b.first_chunk_mut()).ok_or(EIO)?;
    superblock.encode(out);
    transfer.write(region, sector, BLOCK_BYTES as usize, Durability::Barrier)
}

impl Worker {
    /// Goes on with growing, if asked to.
    pub(super) fn run_growth(&mut self) {
        if !self.healthy() {
            return;
        }
        if self.go_on_growing().is_err() {
            self.region_failed();
        }
    }

    /// Begins.
    pub(super) fn start_growth(&mut self, growth: Growth) {
        self.progress = true;
        self.grower.growth = Some(growth);
        self.grower.step = Step::Idle;
    }

    fn go_on_growing(&mut self) -> Result {
        let layout = self.dev.layout();
        let region = self.dev.region;
        let grower = &mut self.grower;
        if let Some((copy, transfer)) = &mut grower.mend {
            match (transfer.in_flight(), transfer.result()) {
                (false, None) => {
                    self.progress = true;
                    return write_superblock(transfer, &region, &grower.superblock, &layout, *copy);
                }
                (_, None) => return Ok(()),
                (_, Some(result)) => {
                    self.progress = true;
                    grower.mend = None;
                    return result;
                }
            }
        }
        let Some(growth) = &mut grower.growth else { return Ok(()) };
        match grower.step {
            Step::Idle => self.blank(0),
            Step::Blank(runs) => {
                let Some(result) = growth.transfer.result() else { return Ok(()) };
                self.progress = true;
                result?;
                self.blank(runs.saturating_add(1))
            }
            Step::Superblock(copy) => {
                let Some(result) = growth.transfer.result() else { return Ok(()) };
                self.progress = true;
                result?;
                if copy == Copy2::A {
                    return self.write_grown(Copy2::B);
                }
                self.enlarge();
                Ok(())
            }
            Step::Slots => {
                self.progress = true;
                if self.dev.slots.lock().grow(layout.slots, GROUPS) {
                    self.grown();
                }
                Ok(())
            }
        }
    }

    /// Starts to write the blank index blocks of a run, or the superblock when there are no more.
    fn blank(&mut self, run: usize) -> Result {
        let before = self.dev.layout();
        let region = self.dev.region;
        let Some(growth) = &mut self.grower.growth else { return Ok(()) };
        let Some((block, blocks)) = growth.layout.added_index(&before).nth(run) else {
            return self.write_grown(Copy2::A);
        };
        let bytes = blocks.saturating_mul(BLOCK_BYTES) as usize;
        growth.transfer.buffer().and_then(|b| b.get_mut(..bytes)).ok_or(EIO)?.fill(0);
        self.grower.step = Step::Blank(run);
        let sector = block.saturating_mul(BLOCK_SECTORS.into());
        growth.transfer.write(&region, sector, bytes, Durability::Cached)
    }

    /// Starts to write a copy of the superblock of the larger region.
    fn write_grown(&mut self, copy: Copy2) -> Result {
        let grower = &mut self.grower;
        let Some(growth) = &mut grower.growth else { return Ok(()) };
        grower.superblock.region_blocks = growth.layout.region_blocks;
        grower.superblock.slots = growth.layout.slots;
        grower.step = Step::Superblock(copy);
        write_superblock(
            &mut growth.transfer,
            &self.dev.region,
            &grower.superblock,
            &growth.layout,
            copy,
        )
    }

    /// The region is the larger one, on disk: so it is in memory.
    fn enlarge(&mut self) {
        self.grower.step = Step::Slots;
        let Some(growth) = &mut self.grower.growth else { return };
        self.index.enlarge(&mut growth.states, &mut growth.maps);
        self.dev.slots.lock().memory().add(&mut growth.pieces, &mut growth.list);
        self.dev.region_blocks.store(growth.layout.region_blocks, Ordering::Release);
    }

    fn grown(&mut self) {
        self.grower.step = Step::Idle;
        self.grower.growth = None;
        self.dev.control.lock().growing = false;
        let slots = self.dev.layout().slots;
        pr_info!("{}: the region has grown to {slots} slots\n", self.dev.region.number());
        self.parked.retry = true;
        self.dev.raise_event();
    }
}
