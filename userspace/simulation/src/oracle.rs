// SPDX-License-Identifier: GPL-2.0-only

//! What must be true, whatever presnap says: the oracle saw every request that reached the origin, and
//! has the origin's content at each T0.

use crate::inspect::Region;
use presnap_engine::crc32c::combine;
use presnap_engine::manifest::Chunk;
use presnap_engine::region::root::SNAPSHOT_SUPERSET;
use presnap_engine::region::{Scope, SlotKind, SnapshotRecord, SnapshotState};
use presnap_machine::blocks::{Blocks, BLOCK, BLOCK_SECTORS};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// The origin at a T0.
pub(crate) struct Taken {
    /// Its content.
    pub(crate) image: Blocks,
    /// The last write of each block, by its number.
    last: Rc<Vec<u64>>,
    /// The last write of all.
    seq: u64,
    /// How often power had failed.
    era: u32,
}

/// What presnap has told.
#[derive(Clone, Default)]
pub(crate) struct Told {
    /// Snapshots whose state is `sealed`.
    pub(crate) sealed: BTreeSet<u32>,
    /// Of them, those whose image can be read.
    pub(crate) images: BTreeSet<u32>,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Oracle {
    seq: u64,
    era: u32,
    last: Rc<Vec<u64>>,
    /// By number.
    pub(crate) taken: BTreeMap<u32, Rc<Taken>>,
    /// Of them, those that were sealed at some time: a base may have been deleted since.
    pub(crate) sealed: BTreeSet<u32>,
    /// Asked to be deleted: may be gone.
    pub(crate) deleting: BTreeSet<u32>,
    /// Deleted for good.
    pub(crate) gone: BTreeSet<u32>,
    /// Their images may be wrong: the region failed while they were there.
    pub(crate) tainted: BTreeSet<u32>,
    /// The last write before which the region failed. What it missed from there on it cannot know, if it took not
    /// even a last word.
    pub(crate) failed_at: Option<u64>,
    /// Writes to the origin fail: a part of such a one may come to light when power fails, much later.
    pub(crate) writes_fail: bool,
    /// The highest operation number seen.
    pub(crate) op: u64,
}

impl Oracle {
    pub(crate) fn new(blocks: u64) -> Self {
        Self {
            seq: 0,
            era: 0,
            last: Rc::new(vec![0; blocks as usize]),
            taken: BTreeMap::new(),
            sealed: BTreeSet::new(),
            deleting: BTreeSet::new(),
            gone: BTreeSet::new(),
            tainted: BTreeSet::new(),
            failed_at: None,
            writes_fail: false,
            op: 0,
        }
    }

    /// A request that changes these sectors of the origin is on its way to it.
    pub(crate) fn written(&mut self, sector: u64, sectors: u64) {
        self.seq += 1;
        let last = Rc::make_mut(&mut self.last);
        for block in sector / BLOCK_SECTORS..(sector + sectors).div_ceil(BLOCK_SECTORS) {
            last[block as usize] = self.seq;
        }
    }

    /// The origin grows to so many blocks: of those that are new no replica has the content.
    pub(crate) fn origin_grows(&mut self, before: u64, after: u64) {
        self.seq += 1;
        let last = Rc::make_mut(&mut self.last);
        last.resize(after as usize, self.seq);
        last[before as usize..].fill(self.seq);
    }

    /// The region has failed.
    pub(crate) fn region_failed(&mut self) {
        self.failed_at = Some(self.seq);
    }

    /// The instant T0 of a snapshot.
    pub(crate) fn t0(&mut self, id: u32, image: Blocks) {
        let taken = Taken { image, last: self.last.clone(), seq: self.seq, era: self.era };
        self.taken.insert(id, Rc::new(taken));
    }

    /// Power failed, and the region was opened again; it has these snapshots. The base of what comes is the last one that was
    /// sealed, also after its end.
    pub(crate) fn recovered(&mut self, present: &BTreeSet<u32>, base: u32) {
        self.era += 1;
        // The numbers of others may be used again.
        self.sealed.extend(present);
        self.taken.retain(|id, _| self.sealed.contains(id) || *id == base);
        self.gone.extend(self.deleting.difference(present));
        // That somebody wanted them deleted is forgotten.
        self.deleting.clear();
    }

    /// Checks a region against all that was taken and told.
    pub(crate) fn check(&self, region: &Region<'_>, told: &Told) -> Result<(), String> {
        for record in region.root.iter() {
            if record.state == SnapshotState::Sealed {
                self.check_snapshot(region, record)
                    .map_err(|e| format!("snapshot {}: {e}", record.id))?;
            }
        }
        for id in told.sealed.difference(&self.deleting) {
            let record = region.root.find(*id).ok_or(format!("snapshot {id}, sealed, is gone"))?;
            if told.images.contains(id) && record.scope != Scope::Image {
                return Err(format!("the image of snapshot {id} is gone"));
            }
        }
        match self.gone.iter().find(|id| region.root.find(**id).is_some()) {
            Some(id) => Err(format!("snapshot {id} was deleted, and is back")),
            None => Ok(()),
        }
    }

    fn check_snapshot(&self, region: &Region<'_>, record: &SnapshotRecord) -> Result<(), String> {
        let taken = self.taken.get(&record.id).ok_or("it was never taken")?;
        let (chunks, pages) = region.manifest(record)?;
        for (number, slot) in (0..).zip(&pages) {
            let entry = region.index.get(slot).copied();
            let right = entry.is_some_and(|e| {
                e.kind == SlotKind::Manifest && e.snapshot == record.id && e.block == number
            });
            if !right {
                return Err(format!(
                    "manifest page {number} in slot {slot}: the index says {entry:?}"
                ));
            }
        }
        let mut delta = vec![false; taken.image.len() as usize];
        for chunk in &chunks {
            check_chunk(region, record.id, chunk, &taken.image)?;
            for block in chunk.start_block..chunk.start_block + u64::from(chunk.length_blocks) {
                delta[block as usize] = true;
            }
        }
        let blocks = delta.iter().filter(|&&is| is).count() as u64;
        if blocks != record.delta_blocks {
            return Err(format!("{blocks} blocks, the record says {}", record.delta_blocks));
        }
        if record.base_id != 0 {
            self.check_coverage(record, taken, &delta)?;
        }
        Ok(())
    }

    /// A delta has what differs from its base, and all that was written since.
    fn check_coverage(
        &self,
        record: &SnapshotRecord,
        taken: &Taken,
        delta: &[bool],
    ) -> Result<(), String> {
        let base = self.taken.get(&record.base_id);
        let base = base.ok_or(format!("its base {} was never taken", record.base_id))?;
        if self.failed_at.is_some_and(|seq| seq >= base.seq) {
            return Ok(());
        }
        for (block, &has) in (0u64..).zip(delta) {
            if block >= base.image.len() {
                if !has {
                    return Err(format!(
                        "block {block} is new since the base, and not in the delta"
                    ));
                }
                continue;
            }
            let lost_power = taken.era != base.era;
            let forgiven = lost_power && self.writes_fail;
            if !has && !forgiven && !taken.image.same(&base.image, block) {
                return Err(format!(
                    "block {block} is not in the delta, and differs from snapshot {}",
                    record.base_id
                ));
            }
            // What was written in another life may have been lost.
            let written = taken.last[block as usize] > base.seq;
            if taken.era == base.era && !has && written {
                return Err(format!("block {block} was written, and is not in the delta"));
            }
            let says_so = record.flags & SNAPSHOT_SUPERSET != 0;
            if has && !written && !says_so {
                return Err(format!("block {block} is in the delta, and was not written"));
            }
        }
        Ok(())
    }

    /// Checks what passes for changed since a snapshot against what has, on the origin.
    pub(crate) fn check_changes(
        &self,
        base: u32,
        origin: &Blocks,
        changed: impl Fn(u64) -> bool,
    ) -> Result<(), String> {
        let base_id = base;
        let base = self.taken.get(&base_id).ok_or(format!("base {base_id} was never taken"))?;
        if self.failed_at.is_some_and(|seq| seq >= base.seq) {
            return Ok(());
        }
        let same = |b| b < base.image.len() && origin.same(&base.image, b);
        match (0..origin.len()).find(|&b| !changed(b) && !same(b)) {
            Some(b) => {
                Err(format!("block {b} differs from base {base_id}, and passes for unchanged"))
            }
            None => Ok(()),
        }
    }

    /// Checks what a region that was closed in order has beyond its deltas.
    pub(crate) fn check_closed(&self, region: &Region<'_>) -> Result<(), String> {
        // Beyond a delta, entries count only if an image needs them. Entries of snapshots that the
        // root does not have mean nothing.
        let oldest =
            region.root.iter().find(|r| r.scope == Scope::Image).map_or(u32::MAX, |r| r.id);
        for (slot, entry) in &region.index {
            let counts = entry.snapshot >= oldest && region.root.find(entry.snapshot).is_some();
            if entry.kind != SlotKind::Data || !counts {
                continue;
            }
            let Some(taken) = self.taken.get(&entry.snapshot) else { continue };
            if entry.block >= taken.image.len() {
                // The origin has grown since: there is no image of that.
                continue;
            }
            if **region.slot(*slot) != **taken.image.block(entry.block) {
                let content = &region.slot(*slot)[..];
                let same = |(_, t): &(&u32, &Rc<Taken>)| {
                    entry.block < t.image.len() && t.image.block(entry.block)[..] == *content
                };
                let of: Vec<u32> = self.taken.iter().filter(same).map(|(id, _)| *id).collect();
                let has = crc32c::crc32c(content);
                return Err(format!(
                    "slot {slot} does not hold what it should: {entry:x?}, but {has:x}, as in {of:?}"
                ));
            }
            let crc = crc32c::crc32c(&region.slot(*slot)[..]);
            if entry.crc != crc {
                return Err(format!("slot {slot} has checksum {crc:08x}, the index: {entry:x?}"));
            }
        }
        Ok(())
    }
}

fn check_chunk(region: &Region<'_>, id: u32, chunk: &Chunk, image: &Blocks) -> Result<(), String> {
    let mut checksum = None;
    for i in 0..chunk.length_blocks {
        let block = chunk.start_block + u64::from(i);
        if chunk.is_zero() {
            if image.block(block).iter().any(|&byte| byte != 0) {
                return Err(format!("block {block} is not zero"));
            }
            continue;
        }
        let slot = chunk.slot + i;
        let entry = region.index.get(&slot).copied();
        let right =
            entry.is_some_and(|e| e.kind == SlotKind::Data && e.snapshot == id && e.block == block);
        if !right {
            return Err(format!("block {block} in slot {slot}: the index says {entry:?}"));
        }
        let content = region.slot(slot);
        if content != image.block(block) {
            return Err(format!("block {block} in slot {slot} is not as it was at T0"));
        }
        let crc = crc32c::crc32c(&content[..]);
        checksum = Some(checksum.map_or(crc, |before| combine(before, crc, BLOCK as u64)));
    }
    if checksum.is_some_and(|sum| sum != chunk.checksum) {
        return Err(format!("the checksum of the chunk at block {} is wrong", chunk.start_block));
    }
    Ok(())
}
