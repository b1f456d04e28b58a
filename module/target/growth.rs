// SPDX-License-Identifier: GPL-2.0-only

//! A region that grows while it is in use: the memory for what is new is had here, by whoever asks for it;
//! the worker does the rest (`worker/grow.rs`). The worker itself must not wait for memory: what gives some back may be
//! a write that waits for the worker.

use crate::device::{block_map, BlockMap, Device, Health};
use crate::region::IndexState;
use kernel::prelude::*;
use presnap_abi::io::{Client, Transfer};
use presnap_abi::memory::array_of;
use presnap_engine::geometry::{BLOCK_BYTES, BLOCK_SECTORS};
use presnap_engine::region::layout::SEGMENT_SLOTS;
use presnap_engine::region::Layout;
use presnap_engine::slots::{Entries, SlotEntry};

/// The most that is written at once: the index blocks of a segment.
const BUFFER_BYTES: usize = 32 * BLOCK_BYTES as usize;

/// The memory of the slot table: one piece for what the region had when it was opened, and one for each segment that
/// was added.
pub(crate) struct Segments {
    first: KVVec<SlotEntry>,
    more: KVVec<KVVec<SlotEntry>>,
}

impl Segments {
    /// Room for `slots` slots: for whole segments, so that nothing lies in two pieces. Sleeps.
    pub(crate) fn new(slots: u32) -> Result<Self> {
        let rounded = (slots as usize).next_multiple_of(SEGMENT_SLOTS as usize);
        Ok(Self {
            first: KVVec::from_elem(SlotEntry::ZERO, rounded, GFP_KERNEL)?,
            more: KVVec::new(),
        })
    }

    /// Adds pieces; `list` has room for all, and keeps what is to be freed.
    pub(crate) fn add(
        &mut self,
        added: &mut KVVec<KVVec<SlotEntry>>,
        list: &mut KVVec<KVVec<SlotEntry>>,
    ) {
        for pieces in [&mut self.more, added] {
            for piece in pieces.iter_mut() {
                let _ = list.push_within_capacity(core::mem::take(piece));
            }
        }
        core::mem::swap(&mut self.more, list);
    }

    /// The piece of a slot, `None` for the first, and where the slot is in it.
    fn place(&self, slot: usize) -> (Option<usize>, usize) {
        match slot.checked_sub(self.first.len()) {
            None => (None, slot),
            Some(beyond) => {
                (Some(beyond / SEGMENT_SLOTS as usize), beyond % SEGMENT_SLOTS as usize)
            }
        }
    }
}

impl Entries for Segments {
    fn count(&self) -> usize {
        let more = self.more.len().saturating_mul(SEGMENT_SLOTS as usize);
        self.first.len().saturating_add(more)
    }

    fn run(&self, slot: usize) -> &[SlotEntry] {
        let (piece, at) = self.place(slot);
        let piece = match piece {
            None => Some(&self.first),
            Some(i) => self.more.get(i),
        };
        piece.and_then(|piece| piece.get(at..)).unwrap_or(&[])
    }

    fn run_mut(&mut self, slot: usize) -> &mut [SlotEntry] {
        let (piece, at) = self.place(slot);
        let piece = match piece {
            None => Some(&mut self.first),
            Some(i) => self.more.get_mut(i),
        };
        piece.and_then(|piece| piece.get_mut(at..)).unwrap_or_default()
    }
}

/// All the memory that growing needs.
pub(crate) struct Growth {
    pub(crate) layout: Layout,
    /// Of the new segments.
    pub(crate) pieces: KVVec<KVVec<SlotEntry>>,
    /// Room for all of the slot table's pieces.
    pub(crate) list: KVVec<KVVec<SlotEntry>>,
    /// For all of the index.
    pub(crate) states: KVVec<IndexState>,
    pub(crate) maps: [BlockMap; 3],
    pub(crate) transfer: KBox<Transfer>,
}

impl Growth {
    /// Sleeps.
    fn new(dev: &Device, before: &Layout, layout: Layout) -> Result<Self> {
        let segments = |layout: &Layout| layout.slots.div_ceil(SEGMENT_SLOTS);
        let added = segments(&layout).saturating_sub(segments(before)) as usize;
        let mut pieces = KVVec::with_capacity(added, GFP_KERNEL)?;
        for _ in 0..added {
            let piece = KVVec::from_elem(SlotEntry::ZERO, SEGMENT_SLOTS as usize, GFP_KERNEL)?;
            pieces.push_within_capacity(piece).map_err(|_| ENOMEM)?;
        }
        let index_blocks = layout.index_blocks.into();
        let map = || block_map(index_blocks);
        Ok(Self {
            layout,
            pieces,
            list: KVVec::with_capacity(segments(&layout) as usize, GFP_KERNEL)?,
            states: array_of(layout.index_blocks as usize, IndexState::BLANK)?,
            maps: [map()?, map()?, map()?],
            transfer: Transfer::new(&Client::new()?, &dev.wake, BUFFER_BYTES)?,
        })
    }
}

impl Device {
    /// Uses what the region device has more than the region; returns the slots there are and will be. Sleeps.
    pub(crate) fn grow(&self) -> Result<(u32, u32), (&'static str, Error)> {
        if self.health() == Health::Invalid {
            return Err(("the region has failed; open the device again", EIO));
        }
        let before = self.layout();
        let blocks = self.region.sectors() / u64::from(BLOCK_SECTORS);
        let after = Layout::for_region(blocks).map_err(|e| (e.as_str(), EINVAL))?;
        if after.slots < before.slots {
            return Err(("the region device is smaller than the region", EINVAL));
        }
        if after.slots == before.slots {
            return Ok((before.slots, before.slots));
        }
        let busy = ("the region is growing", EBUSY);
        if self.control.lock().growing {
            return Err(busy);
        }
        let no_memory = ("no memory for a larger region", ENOMEM);
        let growth = Growth::new(self, &before, after).map_err(|_| no_memory)?;
        {
            let mut control = self.control.lock();
            if control.growing {
                return Err(busy);
            }
            control.growing = true;
            control.growth = Some(growth);
        }
        self.wake.wake();
        Ok((before.slots, after.slots))
    }
}
