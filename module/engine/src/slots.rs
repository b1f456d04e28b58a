// SPDX-License-Identifier: GPL-2.0-only

//! The slot table: what each slot of the region holds, in memory.
//!
//! Three questions in bounded time: "where is block b of snapshot N", "who is the next to have preserved b"
//! (reading image N), and "where is room". Blocks hang in hash chains; several snapshots may have the same one.
//!
//! Free slots are found by *groups* of 16. A group with free slots is a member of one of two lists: those all
//! free and those free in part. The links lie in the group's lowest free slot, so they cost no memory, and
//! no operation looks at more than a few groups, however full the region is. A run never leaves its group.

use core::ops::DerefMut;

use crate::region::index::INDEX_ENTRIES;
use crate::region::{IndexEntry, SlotKind, MAX_ORIGIN_BLOCKS};

/// Slots of a group, and the longest run.
pub const GROUP_SLOTS: u32 = 16;
/// Partly free groups that an allocation looks at.
const GROUPS_TRIED: usize = 8;
/// Steps a slot that loading a table may take. Where each block was preserved by all snapshots that there can be, it is
/// some hundred.
const LOAD_STEPS: u64 = 1024;
/// End of a list or chain.
const NONE: u32 = u32::MAX;

/// The state of a slot. All but the last are those of [`SlotKind`].
const FREE: u8 = SlotKind::Free as u8;
const DATA: u8 = SlotKind::Data as u8;
const MANIFEST: u8 = SlotKind::Manifest as u8;
const DIRTY: u8 = SlotKind::Dirty as u8;
const UNCONFIRMED: u8 = SlotKind::Unconfirmed as u8;
/// Handed out by `alloc_run`, not filled yet.
const RESERVED: u8 = 5;

/// What the table keeps of a slot: 20 bytes.
#[derive(Clone, Copy, Debug)]
pub struct SlotEntry {
    block_low: u32,
    block_high: u16,
    state: u8,
    /// In use: its snapshot. Lowest free slot of a group: the group before in the list.
    snapshot: u32,
    crc: u32,
    /// In use: the next slot of the hash chain. Lowest free slot of a group: the group after in the list.
    next: u32,
}

impl SlotEntry {
    /// A free slot.
    pub const ZERO: Self =
        Self { block_low: 0, block_high: 0, state: FREE, snapshot: NONE, crc: 0, next: NONE };

    fn block(&self) -> u64 {
        u64::from(self.block_low) | u64::from(self.block_high) << 32
    }

    /// Whether it hangs in the chain of its block.
    fn is_chained(&self) -> bool {
        matches!(self.state, DATA | UNCONFIRMED)
    }

    fn index_entry(&self) -> Option<IndexEntry> {
        let kind = match self.state {
            DATA => SlotKind::Data,
            MANIFEST => SlotKind::Manifest,
            DIRTY => SlotKind::Dirty,
            UNCONFIRMED => SlotKind::Unconfirmed,
            _ => return None,
        };
        Some(IndexEntry { block: self.block(), kind, snapshot: self.snapshot, crc: self.crc })
    }
}

impl Default for SlotEntry {
    fn default() -> Self {
        Self::ZERO
    }
}

/// Why a slot was not filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotError {
    /// There is no such slot.
    NoSlot,
    /// The slot is in use already, or not in use when it should be.
    State,
    /// The snapshot has the block in another slot.
    Duplicate,
    /// The block number, the snapshot number or the kind cannot be.
    Value,
    /// Too many entries hang in one chain.
    Crowded,
}

impl SlotError {
    /// Returns the words for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSlot => "the slot is outside of the region",
            Self::State => "the slot is in the wrong state",
            Self::Duplicate => "the snapshot has the block in another slot",
            Self::Value => "the block, the snapshot or the kind is impossible",
            Self::Crowded => "too many entries hang in one chain",
        }
    }
}

/// Why a slot that was loaded perhaps does not hold what its entry says: only its checksum tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The entry was written at the same time as the data.
    Unconfirmed,
    /// Another slot has the same block of the same snapshot: one of the two was free in memory, and perhaps in use for
    /// something else, but not yet on disk.
    Double {
        /// The lowest such slot.
        other: u32,
    },
}

/// A list of groups.
#[derive(Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
}

impl List {
    const EMPTY: Self = Self { head: NONE, tail: NONE };
}

/// Which list a group is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// All 16 slots are free.
    Whole,
    /// Some are.
    Part,
}

fn class(free: u16) -> Option<Class> {
    match free {
        0 => None,
        u16::MAX => Some(Class::Whole),
        _ => Some(Class::Part),
    }
}

/// The masks of the slots of a group.
const GROUP_BITS: [u16; GROUP_SLOTS as usize] = {
    let mut bits = [1; GROUP_SLOTS as usize];
    let mut i = 1;
    while i < bits.len() {
        bits[i] = bits[i - 1] << 1;
        i += 1;
    }
    bits
};

/// Returns the mask of `length` slots from `first`.
fn run_mask(first: u32, length: u32) -> u16 {
    let ones = (1u32 << length.min(GROUP_SLOTS)).wrapping_sub(1);
    (ones << first.min(GROUP_SLOTS)) as u16
}

/// Returns the first run of `want` set bits, or else the longest, as (first, length).
fn find_run(free: u16, want: u32) -> (u32, u32) {
    let mut best = (0, 0);
    let mut rest = u32::from(free);
    while rest != 0 {
        let first = rest.trailing_zeros();
        let length = (rest >> first).trailing_ones();
        if length >= want {
            return (first, want);
        }
        if length > best.1 {
            best = (first, length);
        }
        rest &= !u32::from(run_mask(first, length));
    }
    best
}

/// The memory of a table's entries, in one piece or several: a region may grow.
///
/// No group and no index block lies in two pieces: all but the last are multiples of a segment's slots.
pub trait Entries {
    /// Returns the number of entries in all pieces.
    fn count(&self) -> usize;
    /// Returns the entries from `slot` to the end of their piece.
    fn run(&self, slot: usize) -> &[SlotEntry];
    /// [`Self::run`], to be changed.
    fn run_mut(&mut self, slot: usize) -> &mut [SlotEntry];
}

impl<T: DerefMut<Target = [SlotEntry]>> Entries for T {
    fn count(&self) -> usize {
        self.len()
    }

    fn run(&self, slot: usize) -> &[SlotEntry] {
        self.get(slot..).unwrap_or(&[])
    }

    fn run_mut(&mut self, slot: usize) -> &mut [SlotEntry] {
        self.get_mut(slot..).unwrap_or_default()
    }
}

/// The table; `E` holds the slots, `B` the heads of the hash chains (about as many as slots; any number will do).
pub struct SlotTable<E, B> {
    entries: E,
    buckets: B,
    total: u32,
    used: u32,
    whole: List,
    part: List,
    /// The group of the last allocation.
    current: u32,
}

impl<E, B> SlotTable<E, B>
where
    E: Entries,
    B: DerefMut<Target = [u32]>,
{
    /// Makes a table of the first `total` entries, in which all slots are free; `None` if there are no buckets, or too few
    /// or too many entries.
    pub fn new(entries: E, buckets: B, total: u32) -> Option<Self> {
        u32::try_from(entries.count()).ok().filter(|&n| n < NONE - GROUP_SLOTS && n >= total)?;
        if buckets.is_empty() || u32::try_from(buckets.len()).is_err() {
            return None;
        }
        let mut table = Self {
            entries,
            buckets,
            total,
            used: 0,
            whole: List::EMPTY,
            part: List::EMPTY,
            current: NONE,
        };
        let mut at = 0usize;
        loop {
            let piece = table.entries.run_mut(at);
            if piece.is_empty() {
                break;
            }
            piece.fill(SlotEntry::ZERO);
            at = at.saturating_add(piece.len());
        }
        table.buckets.fill(NONE);
        for group in 0..total.div_ceil(GROUP_SLOTS) {
            table.link(group, table.free_mask(group));
        }
        Some(table)
    }

    /// Returns the number of slots.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Returns the number of slots in use, the reserved ones included.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Returns the memory of the entries. What is added to it must be free, and is in use when [`Self::grow`] says so.
    pub fn memory(&mut self) -> &mut E {
        &mut self.entries
    }

    /// Takes at most `most` groups more into use, until there are `total` slots; returns whether there are.
    ///
    /// The chains get longer by as much: `buckets` stay.
    pub fn grow(&mut self, total: u32, most: u32) -> bool {
        let end = total.min(u32::try_from(self.entries.count()).unwrap_or(0));
        for _ in 0..most {
            if self.total >= end {
                break;
            }
            let group = self.total / GROUP_SLOTS;
            let before = self.free_mask(group);
            if let (Some(class), Some(links)) =
                (class(before), self.get(Self::link_slot(group, before)).copied())
            {
                self.unlink(class, links.snapshot, links.next);
                // These were links.
                if let Some(entry) = self.get_mut(Self::link_slot(group, before)) {
                    *entry = SlotEntry::ZERO;
                }
            }
            self.total = group.saturating_add(1).saturating_mul(GROUP_SLOTS).min(end);
            self.link(group, self.free_mask(group));
        }
        self.total >= end
    }

    fn get(&self, slot: u32) -> Option<&SlotEntry> {
        if slot >= self.total {
            return None;
        }
        self.entries.run(slot as usize).first()
    }

    fn get_mut(&mut self, slot: u32) -> Option<&mut SlotEntry> {
        if slot >= self.total {
            return None;
        }
        self.entries.run_mut(slot as usize).first_mut()
    }

    /// The slots that exist from `first` on, to the end of their piece.
    fn run_from(&self, first: u32) -> impl Iterator<Item = &SlotEntry> {
        self.entries.run(first as usize).iter().take(self.total.saturating_sub(first) as usize)
    }

    // Groups and their lists.

    fn free_mask(&self, group: u32) -> u16 {
        let slots = self.run_from(group.saturating_mul(GROUP_SLOTS));
        let free = slots.zip(GROUP_BITS).filter(|(slot, _)| slot.state == FREE);
        free.fold(0, |mask, (_, bit)| mask | bit)
    }

    /// Returns the slot that holds the links of a group with these free slots.
    fn link_slot(group: u32, free: u16) -> u32 {
        group.saturating_mul(GROUP_SLOTS).saturating_add(free.trailing_zeros())
    }

    /// Returns the entry that holds the links of a group.
    fn links_mut(&mut self, group: u32) -> Option<&mut SlotEntry> {
        let slot = Self::link_slot(group, self.free_mask(group));
        self.get_mut(slot)
    }

    fn list_mut(&mut self, class: Class) -> &mut List {
        match class {
            Class::Whole => &mut self.whole,
            Class::Part => &mut self.part,
        }
    }

    /// Puts a group with these free slots at the end of its list.
    fn link(&mut self, group: u32, free: u16) {
        let Some(class) = class(free) else { return };
        let tail = self.list_mut(class).tail;
        if let Some(entry) = self.get_mut(Self::link_slot(group, free)) {
            (entry.snapshot, entry.next) = (tail, NONE);
        }
        if tail == NONE {
            self.list_mut(class).head = group;
        } else if let Some(links) = self.links_mut(tail) {
            links.next = group;
        }
        self.list_mut(class).tail = group;
    }

    /// Takes a group off its list; `before` and `after` are those in its links.
    fn unlink(&mut self, class: Class, before: u32, after: u32) {
        if before == NONE {
            self.list_mut(class).head = after;
        } else if let Some(links) = self.links_mut(before) {
            links.next = after;
        }
        if after == NONE {
            self.list_mut(class).tail = before;
        } else if let Some(links) = self.links_mut(after) {
            links.snapshot = before;
        }
    }

    /// Moves the slots of `mask` in a group from free to reserved, or back.
    fn toggle(&mut self, group: u32, mask: u16, to: u8) {
        let before = self.free_mask(group);
        let after = before ^ mask;
        let links = self.get(Self::link_slot(group, before)).copied().filter(|_| before != 0);
        let first = group.saturating_mul(GROUP_SLOTS) as usize;
        let slots = self.entries.run_mut(first).iter_mut();
        for (slot, bit) in slots.zip(GROUP_BITS) {
            if mask & bit != 0 {
                *slot = SlotEntry { state: to, ..SlotEntry::ZERO };
            }
        }
        let same_class = class(before) == class(after);
        if let (Some(links), true) = (links, same_class) {
            // The group keeps its place, the links move with the lowest free slot.
            if let Some(entry) = self.get_mut(Self::link_slot(group, after)) {
                (entry.snapshot, entry.next) = (links.snapshot, links.next);
            }
            return;
        }
        if let (Some(links), Some(class)) = (links, class(before)) {
            self.unlink(class, links.snapshot, links.next);
        }
        self.link(group, after);
    }

    /// Reserves up to `want` neighbouring slots (at most 16), preferably all of them; returns (slot, length).
    ///
    /// `None` if no slot is free. The slots are then either filled with [`Self::insert`] or given back with [`Self::free`].
    pub fn alloc_run(&mut self, want: u32) -> Option<(u32, u32)> {
        let want = want.clamp(1, GROUP_SLOTS);
        let (group, (first, length)) = self.choose(want)?;
        self.current = group;
        self.toggle(group, run_mask(first, length), RESERVED);
        self.used = self.used.saturating_add(length);
        Some((group.saturating_mul(GROUP_SLOTS).saturating_add(first), length))
    }

    /// Chooses a group and a run in it.
    fn choose(&self, want: u32) -> Option<(u32, (u32, u32))> {
        let mut best = (NONE, (0, 0));
        if self.current != NONE {
            best = (self.current, find_run(self.free_mask(self.current), want));
        }
        // A whole group is broken only if none of a few broken ones will do.
        let mut group = self.part.head;
        for _ in 0..GROUPS_TRIED {
            if best.1 .1 >= want || group == NONE || want == GROUP_SLOTS {
                break;
            }
            let free = self.free_mask(group);
            let run = find_run(free, want);
            if run.1 > best.1 .1 {
                best = (group, run);
            }
            group = self.get(Self::link_slot(group, free))?.next;
        }
        if best.1 .1 < want {
            if self.whole.head != NONE {
                return Some((self.whole.head, (0, want)));
            }
            if best.1 .1 == 0 && self.part.head != NONE {
                best = (self.part.head, find_run(self.free_mask(self.part.head), want));
            }
        }
        Some(best).filter(|best| best.1 .1 != 0)
    }

    // Chains.

    fn bucket_mut(&mut self, block: u64) -> Option<&mut u32> {
        let hash = self.bucket_of(block);
        self.buckets.get_mut(hash)
    }

    fn bucket_of(&self, block: u64) -> usize {
        // Fibonacci hashing; the high half scaled to the number of buckets, which fits in 32 bits.
        let hash = block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (hash.wrapping_mul(self.buckets.len() as u64) >> 32) as usize
    }

    /// The slots of a block.
    fn chain(&self, block: u64) -> impl Iterator<Item = (u32, &SlotEntry)> {
        self.links(block).filter(move |(_, entry)| entry.block() == block)
    }

    /// The slots of all blocks that share a chain with this one.
    fn links(&self, block: u64) -> impl Iterator<Item = (u32, &SlotEntry)> {
        let mut next = self.buckets.get(self.bucket_of(block)).copied().unwrap_or(NONE);
        core::iter::from_fn(move || {
            let slot = next;
            let entry = self.get(slot)?;
            next = entry.next;
            Some((slot, entry))
        })
    }

    fn chain_in(&mut self, slot: u32, block: u64) {
        let Some(bucket) = self.bucket_mut(block) else { return };
        let next = core::mem::replace(bucket, slot);
        if let Some(entry) = self.get_mut(slot) {
            entry.next = next;
        }
    }

    fn chain_out(&mut self, slot: u32, block: u64) {
        let Some(after) = self.get(slot).map(|entry| entry.next) else { return };
        let Some(bucket) = self.bucket_mut(block) else { return };
        if *bucket == slot {
            *bucket = after;
            return;
        }
        let mut at = *bucket;
        while let Some(entry) = self.get_mut(at) {
            if entry.next == slot {
                entry.next = after;
                return;
            }
            at = entry.next;
        }
    }

    /// Fills a free or reserved slot.
    pub fn insert(
        &mut self,
        slot: u32,
        snapshot: u32,
        block: u64,
        kind: SlotKind,
        crc: u32,
    ) -> Result<(), SlotError> {
        let of_origin = matches!(kind, SlotKind::Data | SlotKind::Unconfirmed);
        if of_origin && self.lookup(snapshot, block).is_some() {
            self.check(slot, snapshot, block, kind)?;
            return Err(SlotError::Duplicate);
        }
        self.fill(slot, IndexEntry { block, kind, snapshot, crc })
    }

    /// Whether a slot can be filled so.
    fn check(&self, slot: u32, snapshot: u32, block: u64, kind: SlotKind) -> Result<(), SlotError> {
        let state = self.get(slot).ok_or(SlotError::NoSlot)?.state;
        if state != FREE && state != RESERVED {
            return Err(SlotError::State);
        }
        if snapshot == 0 || block >= MAX_ORIGIN_BLOCKS || kind == SlotKind::Free {
            return Err(SlotError::Value);
        }
        Ok(())
    }

    fn fill(&mut self, slot: u32, held: IndexEntry) -> Result<(), SlotError> {
        let IndexEntry { block, kind, snapshot, crc } = held;
        self.check(slot, snapshot, block, kind)?;
        if self.get(slot).is_some_and(|entry| entry.state == FREE) {
            self.toggle(slot / GROUP_SLOTS, run_mask(slot % GROUP_SLOTS, 1), RESERVED);
            self.used = self.used.saturating_add(1);
        }
        if let Some(entry) = self.get_mut(slot) {
            *entry = SlotEntry {
                block_low: block as u32,
                block_high: (block >> 32) as u16,
                state: kind as u8,
                snapshot,
                crc,
                next: NONE,
            };
        }
        if self.get(slot).is_some_and(SlotEntry::is_chained) {
            self.chain_in(slot, block);
        }
        Ok(())
    }

    /// Returns what [`Self::load`] may cost in all.
    pub fn load_budget(&self) -> u64 {
        u64::from(self.total).saturating_mul(LOAD_STEPS)
    }

    /// [`Self::insert`] of an entry that was read. Each step along its chain costs one of `budget`: an index made for the
    /// purpose hangs all of its entries in one chain, and the work would grow with the square of their number.
    ///
    /// A snapshot may have a block twice, see [`Self::doubt`]. With such a slot, what is looked up is one of the two.
    pub fn load(
        &mut self,
        slot: u32,
        entry: &IndexEntry,
        budget: &mut u64,
    ) -> Result<(), SlotError> {
        if matches!(entry.kind, SlotKind::Data | SlotKind::Unconfirmed) {
            for _ in self.links(entry.block) {
                *budget = budget.checked_sub(1).ok_or(SlotError::Crowded)?;
            }
        }
        self.fill(slot, *entry)
    }

    /// Returns why a slot that was loaded perhaps does not hold what its entry says.
    pub fn doubt(&self, slot: u32) -> Option<Doubt> {
        let entry = self.get(slot).filter(|entry| entry.is_chained())?;
        let same = |&(other, e): &(u32, &SlotEntry)| e.snapshot == entry.snapshot && other != slot;
        match self.chain(entry.block()).filter(same).map(|(other, _)| other).min() {
            Some(other) => Some(Doubt::Double { other }),
            None => (entry.state == UNCONFIRMED).then_some(Doubt::Unconfirmed),
        }
    }

    /// A slot holds what its entry says.
    pub fn confirm(&mut self, slot: u32) {
        if let Some(entry) = self.get_mut(slot).filter(|entry| entry.state == UNCONFIRMED) {
            entry.state = DATA;
        }
    }

    /// Sets the checksum of a slot in use; whether it is one.
    pub fn set_crc(&mut self, slot: u32, crc: u32) -> bool {
        match self.get_mut(slot) {
            Some(entry) if entry.state == DATA || entry.state == MANIFEST => {
                entry.crc = crc;
                true
            }
            _ => false,
        }
    }

    /// Returns what a slot holds; `None` if it is free, reserved, or does not exist.
    pub fn entry(&self, slot: u32) -> Option<IndexEntry> {
        self.get(slot)?.index_entry()
    }

    /// Returns the slot in which a snapshot preserves a block.
    pub fn lookup(&self, snapshot: u32, block: u64) -> Option<u32> {
        self.chain(block).find(|(_, entry)| entry.snapshot == snapshot).map(|(slot, _)| slot)
    }

    /// Returns the oldest snapshot from `snapshot` on that preserves a block, and the slot.
    ///
    /// Its content there is that of image `snapshot`; if there is none, the origin has it.
    pub fn lookup_at_or_after(&self, snapshot: u32, block: u64) -> Option<(u32, u32)> {
        self.chain(block)
            .filter(|(_, entry)| entry.snapshot >= snapshot)
            .map(|(slot, entry)| (entry.snapshot, slot))
            .min()
    }

    /// [`Self::lookup_at_or_after`] for who is going to read the slot: leaves out slots whose data is still on its way.
    ///
    /// Whoever was let go meanwhile has been because a later snapshot has the block, too; else the origin has it still.
    pub fn lookup_to_read(&self, snapshot: u32, block: u64) -> Option<(u32, u32)> {
        self.chain(block)
            .filter(|(_, entry)| entry.snapshot >= snapshot && entry.state == DATA)
            .map(|(slot, entry)| (entry.snapshot, slot))
            .min()
    }

    /// Frees a slot in use or reserved; returns what it held, `None` if nothing.
    pub fn free(&mut self, slot: u32) -> Option<IndexEntry> {
        let entry = *self.get(slot)?;
        match entry.state {
            FREE => return None,
            DATA | UNCONFIRMED => self.chain_out(slot, entry.block()),
            _ => {}
        }
        self.toggle(slot / GROUP_SLOTS, run_mask(slot % GROUP_SLOTS, 1), FREE);
        self.used = self.used.saturating_sub(1);
        entry.index_entry()
    }

    /// Takes out what a slot holds; the slot is reserved then, until [`Self::free`]. Returns what it held.
    ///
    /// For content that counts until the index on disk is without it: nobody may write there before.
    pub fn vacate(&mut self, slot: u32) -> Option<IndexEntry> {
        let entry = *self.get(slot)?;
        let held = entry.index_entry()?;
        if entry.is_chained() {
            self.chain_out(slot, entry.block());
        }
        if let Some(entry) = self.get_mut(slot) {
            *entry = SlotEntry { state: RESERVED, ..SlotEntry::ZERO };
        }
        Some(held)
    }

    /// Frees what a snapshot holds among the next `max_steps` slots from `cursor`, which moves on.
    ///
    /// Returns how many were freed. Done when the cursor has come to [`Self::total`].
    pub fn free_snapshot_step(&mut self, snapshot: u32, cursor: &mut u32, max_steps: u32) -> u32 {
        let end = cursor.saturating_add(max_steps).min(self.total);
        let mut freed = 0u32;
        while *cursor < end {
            let mine = self.entry(*cursor).is_some_and(|entry| entry.snapshot == snapshot);
            if mine && self.free(*cursor).is_some() {
                freed = freed.saturating_add(1);
            }
            *cursor = cursor.wrapping_add(1);
        }
        freed
    }

    /// Gives a slot in use to another snapshot.
    pub fn reassign(&mut self, slot: u32, new_snapshot: u32) -> Result<(), SlotError> {
        let entry = self.get(slot).ok_or(SlotError::NoSlot)?;
        let held = entry.index_entry().ok_or(SlotError::State)?;
        if new_snapshot == 0 {
            return Err(SlotError::Value);
        }
        if entry.is_chained()
            && self.lookup(new_snapshot, held.block).is_some_and(|other| other != slot)
        {
            return Err(SlotError::Duplicate);
        }
        if let Some(entry) = self.get_mut(slot) {
            entry.snapshot = new_snapshot;
        }
        Ok(())
    }

    /// Returns the entries of an index block, as [`crate::region::IndexBlock::encode`] takes them.
    pub fn index_entries(&self, index_no: u32) -> impl Iterator<Item = IndexEntry> + '_ {
        self.run_from(index_no.saturating_mul(INDEX_ENTRIES))
            .take(INDEX_ENTRIES as usize)
            .map(|entry| entry.index_entry().unwrap_or(IndexEntry::FREE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Table = SlotTable<Vec<SlotEntry>, Vec<u32>>;

    fn table(slots: usize) -> Table {
        SlotTable::new(vec![SlotEntry::ZERO; slots], vec![0; 7], slots as u32).unwrap()
    }

    #[test]
    fn entry_is_small() {
        assert_eq!(size_of::<SlotEntry>(), 20);
    }

    #[test]
    fn a_vacated_slot_is_not_used_again_before_it_is_free() {
        let mut t = table(16);
        let (slot, _) = t.alloc_run(1).unwrap();
        t.insert(slot, 3, 7, SlotKind::Data, 9).unwrap();
        assert_eq!(t.vacate(slot).map(|e| (e.block, e.snapshot, e.crc)), Some((7, 3, 9)));
        assert_eq!(
            (t.entry(slot), t.lookup(3, 7), t.vacate(slot), t.used()),
            (None, None, None, 1)
        );
        assert_eq!(t.index_entries(0).filter(|e| *e != IndexEntry::FREE).count(), 0);
        assert_eq!(t.alloc_run(16), Some((1, 15)));
        assert_eq!((t.free(slot), t.used()), (None, 15));
        assert_eq!(t.alloc_run(16), Some((slot, 1)));
        assert_eq!(t.vacate(99), None);
    }

    #[test]
    fn allocates_runs_next_to_each_other_until_full() {
        let mut t = table(40);
        assert_eq!(t.alloc_run(16), Some((0, 16)));
        // 16 from a whole group, smaller ones from the broken last one (slots 32..40).
        assert_eq!(t.alloc_run(5), Some((32, 5)));
        assert_eq!(t.alloc_run(16), Some((16, 16)));
        assert_eq!(t.alloc_run(16), Some((37, 3)));
        assert_eq!((t.alloc_run(1), t.used()), (None, 40));
        assert_eq!(t.free(20), None);
        assert_eq!(t.free(22), None);
        assert_eq!(t.alloc_run(0), Some((20, 1)));
        assert_eq!(t.alloc_run(9), Some((22, 1)));
        assert_eq!(t.alloc_run(9), None);
    }

    #[test]
    fn loading_ends() {
        let loaded = |slots: u32, entry: &dyn Fn(u32) -> (u32, u64)| {
            let heads = vec![0; slots.next_power_of_two() as usize];
            let mut t =
                SlotTable::new(vec![SlotEntry::ZERO; slots as usize], heads, slots).unwrap();
            let mut budget = t.load_budget();
            let refused = (0..slots).find(|&slot| {
                let (snapshot, block) = entry(slot);
                let entry = IndexEntry { block, kind: SlotKind::Data, snapshot, crc: 0 };
                t.load(slot, &entry, &mut budget) == Err(SlotError::Crowded)
            });
            (refused, t.used())
        };
        // As many snapshots as there can be, of the same blocks, next to each other or far apart.
        for stride in [1, 16, 1 << 20, 7919] {
            let honest = loaded(30_000, &|i| (i % 120 + 1, u64::from(i / 120) * stride));
            assert_eq!(honest, (None, 30_000), "{stride}");
        }
        // One block in every slot, of snapshots that there never were.
        let (refused, used) = loaded(30_000, &|i| (i + 1, 7));
        assert!(refused.is_some_and(|slot| slot == used && slot < 8_000), "{refused:?} {used}");
        // Few are let be.
        assert_eq!(loaded(2_000, &|i| (i + 1, 7)), (None, 2_000));
    }

    #[test]
    fn doubts_are_settled_one_by_one() {
        let mut t = table(64);
        let mut budget = t.load_budget();
        let mut load = |slot, snapshot, block, kind| {
            let entry = IndexEntry { block, kind, snapshot, crc: slot };
            t.load(slot, &entry, &mut budget).unwrap();
        };
        load(1, 4, 77, SlotKind::Data);
        load(2, 4, 77, SlotKind::Unconfirmed);
        load(3, 4, 78, SlotKind::Unconfirmed);
        load(4, 5, 77, SlotKind::Data);
        load(5, 4, 77, SlotKind::Manifest);
        let doubts = |t: &Table| [1, 2, 3, 4, 5, 6].map(|slot| t.doubt(slot));
        let (first, second) = (Doubt::Double { other: 2 }, Doubt::Double { other: 1 });
        let unconfirmed = Some(Doubt::Unconfirmed);
        assert_eq!(doubts(&t), [Some(first), Some(second), unconfirmed, None, None, None]);
        t.free(1);
        assert_eq!(doubts(&t), [None, unconfirmed, unconfirmed, None, None, None]);
        assert_eq!(t.lookup(4, 77), Some(2));
        assert_eq!((t.lookup_to_read(4, 77), t.lookup_to_read(4, 78)), (Some((5, 4)), None));
        t.confirm(2);
        t.confirm(4);
        assert_eq!((t.lookup_to_read(4, 77), t.lookup_to_read(6, 77)), (Some((4, 2)), None));
        assert_eq!(doubts(&t), [None, None, unconfirmed, None, None, None]);
        assert_eq!(t.entry(2).map(|e| e.kind), Some(SlotKind::Data));
        // One that was never settled is looked up and freed as others are.
        assert_eq!(t.lookup_at_or_after(1, 78), Some((4, 3)));
        t.free(3);
        assert_eq!(t.lookup(4, 78), None);
    }

    #[test]
    fn finds_blocks_of_snapshots() {
        let mut t = table(64);
        for (slot, snapshot) in [(3, 5), (4, 2), (60, 9)] {
            t.insert(slot, snapshot, 77, SlotKind::Data, slot * 10).unwrap();
        }
        t.insert(5, 2, 77, SlotKind::Manifest, 0).unwrap();
        assert_eq!((t.lookup(5, 77), t.lookup(6, 77), t.lookup(5, 78)), (Some(3), None, None));
        assert_eq!(t.lookup_at_or_after(1, 77), Some((2, 4)));
        assert_eq!(t.lookup_at_or_after(3, 77), Some((5, 3)));
        assert_eq!(t.lookup_at_or_after(6, 77), Some((9, 60)));
        assert_eq!(t.lookup_at_or_after(10, 77), None);
        assert!(t.set_crc(3, 1) && !t.set_crc(10, 1));
        assert_eq!(t.entry(3).unwrap().crc, 1);
        assert_eq!(t.reassign(3, 9), Err(SlotError::Duplicate));
        assert_eq!(t.reassign(3, 0), Err(SlotError::Value));
        assert_eq!(t.reassign(10, 6), Err(SlotError::State));
        assert_eq!(t.reassign(3, 6), Ok(()));
        assert_eq!(t.lookup_at_or_after(3, 77), Some((6, 3)));
        let mut cursor = 0;
        assert_eq!(t.free_snapshot_step(2, &mut cursor, 5), 1);
        assert_eq!(t.free_snapshot_step(2, &mut cursor, 500), 1);
        assert_eq!((cursor, t.used()), (64, 2));
    }

    #[test]
    fn refuses_what_cannot_be() {
        let mut t = table(20);
        let mut insert = |slot, snapshot, block, kind| t.insert(slot, snapshot, block, kind, 0);
        assert_eq!(insert(20, 1, 1, SlotKind::Data), Err(SlotError::NoSlot));
        assert_eq!(insert(1, 0, 1, SlotKind::Data), Err(SlotError::Value));
        assert_eq!(insert(1, 1, 1 << 48, SlotKind::Data), Err(SlotError::Value));
        assert_eq!(insert(1, 1, 1, SlotKind::Free), Err(SlotError::Value));
        assert_eq!(insert(1, 1, (1 << 48) - 1, SlotKind::Data), Ok(()));
        assert_eq!(insert(1, 1, 2, SlotKind::Data), Err(SlotError::State));
        assert_eq!(insert(2, 1, (1 << 48) - 1, SlotKind::Data), Err(SlotError::Duplicate));
        assert!(SlotTable::new(vec![SlotEntry::ZERO; 4], vec![], 4).is_none());
        assert!(SlotTable::new(vec![SlotEntry::ZERO; 4], vec![0], 5).is_none());
        assert!(SlotTable::new(vec![], vec![0], 0).unwrap().alloc_run(1).is_none());
        assert_eq!(t.entry(1).unwrap().block, (1 << 48) - 1);
        assert_eq!((t.free(20), t.free(0)), (None, None));
    }

    #[test]
    fn index_entries_of_a_block() {
        let mut t = table(300);
        t.insert(0, 1, 5, SlotKind::Data, 6).unwrap();
        t.insert(299, 1, 7, SlotKind::Data, 8).unwrap();
        assert_eq!(t.alloc_run(1), Some((288, 1))); // the last group is a broken one
        let first: Vec<_> = t.index_entries(0).collect();
        assert_eq!((first.len(), first[0].block, first[1]), (254, 5, IndexEntry::FREE));
        let second: Vec<_> = t.index_entries(1).collect();
        assert_eq!((second.len(), second[45].block, second[34]), (46, 7, IndexEntry::FREE));
        assert_eq!(t.index_entries(2).count(), 0);
    }
}
