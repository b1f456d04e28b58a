// SPDX-License-Identifier: GPL-2.0-only

//! Index blocks: what each slot holds. An index block describes 254 slots and has two copies, written in turn.

use super::bytes::{is_zero, put_u32, Reader, Writer};
use super::{has_room, pick_newer, Fault, FormatError, Limits, Part, Picked, MAX_ORIGIN_BLOCKS};
use crate::crc32c::{crc32c, with_hole};
use crate::geometry::BLOCK_BYTES;

/// Slots that an index block describes.
pub const INDEX_ENTRIES: u32 = 254;
/// Bytes of an index block.
pub const INDEX_BYTES: usize = BLOCK_BYTES as usize;
/// The magic number, "PSIX".
pub const INDEX_MAGIC: u32 = u32::from_le_bytes(*b"PSIX");

/// Blocks that a page of the dirty map describes: 128 MiB of the origin.
pub const DIRTY_PAGE_BLOCKS: u64 = BLOCK_BYTES as u64 * 8;

const HEADER_BYTES: usize = 32;
const ENTRY_BYTES: usize = 16;
/// Offset of the checksum.
const CRC_AT: usize = 24;

/// What a slot holds. The numbers are the format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum SlotKind {
    /// Nothing.
    #[default]
    Free = 0,
    /// The content of an origin block.
    Data = 1,
    /// A manifest page; the block number of the entry is the page number.
    Manifest = 2,
    /// A page of the dirty map, a bit a block; the block number of the entry is the page number, its snapshot the
    /// coming one, whose delta the blocks belong to.
    Dirty = 3,
    /// [`SlotKind::Data`] that was being written when the entry was: it counts if its checksum is right.
    Unconfirmed = 4,
}

impl SlotKind {
    /// Returns the kind of a number, `None` if there is no such kind.
    pub const fn from_wire(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Free),
            1 => Some(Self::Data),
            2 => Some(Self::Manifest),
            3 => Some(Self::Dirty),
            4 => Some(Self::Unconfirmed),
            _ => None,
        }
    }
}

/// What the index says of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexEntry {
    /// The origin block preserved, or the number of the manifest page; below 2^48.
    pub block: u64,
    /// What the slot holds.
    pub kind: SlotKind,
    /// The snapshot it belongs to, 0 if free.
    pub snapshot: u32,
    /// CRC32C of the slot's 4 KiB.
    pub crc: u32,
}

impl IndexEntry {
    /// The entry of a free slot: all zero.
    pub const FREE: Self = Self { block: 0, kind: SlotKind::Free, snapshot: 0, crc: 0 };

    /// The entry's bytes: little-endian, the block lowest.
    fn encode(&self) -> [u8; ENTRY_BYTES] {
        let block = self.block & (MAX_ORIGIN_BLOCKS - 1);
        let low = block | u64::from(self.kind as u8) << 48;
        let high = u64::from(self.snapshot) | u64::from(self.crc) << 32;
        (u128::from(low) | u128::from(high) << 64).to_le_bytes()
    }

    fn decode(bytes: &[u8], limits: &Limits) -> Result<Self, Fault> {
        let mut r = Reader::new(bytes);
        let word = r.u64();
        let block = word & (MAX_ORIGIN_BLOCKS - 1);
        let kind = SlotKind::from_wire((word >> 48) as u8).ok_or(Fault::Kind)?;
        if word >> 56 != 0 {
            return Err(Fault::Reserved);
        }
        let entry = Self { block, kind, snapshot: r.u32(), crc: r.u32() };
        let blocks = match kind {
            SlotKind::Free if entry == Self::FREE => return Ok(entry),
            SlotKind::Free => return Err(Fault::Reserved),
            SlotKind::Data | SlotKind::Unconfirmed => limits.origin_blocks,
            SlotKind::Manifest => u64::from(limits.slots),
            SlotKind::Dirty => limits.origin_blocks.div_ceil(DIRTY_PAGE_BLOCKS),
        };
        if block >= blocks {
            return Err(Fault::Block);
        }
        if !limits.snapshot_ok(entry.snapshot) {
            return Err(Fault::SnapshotId);
        }
        Ok(entry)
    }
}

/// Slots of an index block whose data is on its way while the block is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnconfirmedSlots {
    mask: [u64; INDEX_ENTRIES.div_ceil(u64::BITS) as usize],
}

impl UnconfirmedSlots {
    /// Of an index block, with all slots that are being written, as runs: first and number.
    pub fn new(index_no: u32, runs: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut mask = [0u64; INDEX_ENTRIES.div_ceil(u64::BITS) as usize];
        let begin = index_no.saturating_mul(INDEX_ENTRIES);
        let end = begin.saturating_add(INDEX_ENTRIES);
        for (first, number) in runs {
            for slot in first.max(begin)..first.saturating_add(number).min(end) {
                let at = slot.wrapping_sub(begin);
                if let Some(word) = mask.get_mut((at / u64::BITS) as usize) {
                    *word |= 1u64.wrapping_shl(at % u64::BITS);
                }
            }
        }
        Self { mask }
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.mask.iter().any(|&word| word != 0)
    }

    /// The entries of the index block, the data of these slots as unconfirmed.
    pub fn mark(
        self,
        entries: impl Iterator<Item = IndexEntry>,
    ) -> impl Iterator<Item = IndexEntry> {
        let mut bits = self
            .mask
            .into_iter()
            .flat_map(|word| (0..u64::BITS).map(move |i| word.wrapping_shr(i)));
        entries.map(move |entry| match (entry.kind, bits.next().unwrap_or(0) & 1) {
            (SlotKind::Data, 1) => IndexEntry { kind: SlotKind::Unconfirmed, ..entry },
            _ => entry,
        })
    }
}

/// A checked index block.
#[derive(Clone, Copy, Debug)]
pub struct IndexBlock<'a> {
    index_no: u32,
    seq: u64,
    limits: Limits,
    entries: &'a [u8],
}

/// The outcome of [`IndexBlock::pick`].
#[derive(Clone, Copy, Debug)]
pub enum IndexPick<'a> {
    /// Never written whole: all of its slots are free. The next version goes to copy A, with sequence number 1.
    Blank {
        /// What is wrong with a copy that is not blank: a torn first write.
        fault: Option<FormatError>,
    },
    /// The newer valid copy.
    Found(Picked<IndexBlock<'a>>),
}

impl<'a> IndexBlock<'a> {
    /// Encodes an index block; entries beyond [`INDEX_ENTRIES`] are ignored, missing ones are free.
    pub fn encode(
        out: &mut [u8; INDEX_BYTES],
        region_tag: u64,
        index_no: u32,
        seq: u64,
        entries: impl Iterator<Item = IndexEntry>,
    ) {
        Self::encode_with(out, region_tag, index_no, seq, entries, |bytes| crc32c(0, bytes));
    }

    /// [`IndexBlock::encode`] with another implementation of CRC-32C: the CPU may have one.
    ///
    /// Writers wait for this, so it is made to cost little.
    pub fn encode_with(
        out: &mut [u8; INDEX_BYTES],
        region_tag: u64,
        index_no: u32,
        seq: u64,
        entries: impl Iterator<Item = IndexEntry>,
        crc32c: impl FnOnce(&[u8]) -> u32,
    ) {
        let mut w = Writer::new(out);
        w.u32(INDEX_MAGIC);
        w.u32(index_no);
        w.u64(seq);
        w.u64(region_tag);
        w.u64(0);
        let mut entries = entries;
        let places = out.get_mut(HEADER_BYTES..).unwrap_or_default();
        for place in places.chunks_exact_mut(ENTRY_BYTES) {
            let entry = entries.next().unwrap_or(IndexEntry::FREE);
            if let Some(place) = place.first_chunk_mut() {
                *place = entry.encode();
            }
        }
        // Its own place is zero still, as it has to be.
        let crc = crc32c(out);
        put_u32(out, CRC_AT, crc);
    }

    /// Decodes and checks an index block and all of its entries. Entries of slots that do not exist must be free.
    pub fn decode(bytes: &'a [u8], index_no: u32, limits: &Limits) -> Result<Self, FormatError> {
        let fail = |fault| FormatError::new(Part::Index, fault);
        let block = bytes.first_chunk::<INDEX_BYTES>().ok_or(fail(Fault::Short))?;
        let (_, entries) = block.split_at_checked(HEADER_BYTES).ok_or(fail(Fault::Short))?;
        let mut r = Reader::new(block);
        if r.u32() != INDEX_MAGIC {
            return Err(fail(Fault::Magic));
        }
        let (stored_no, seq, tag, crc, reserved) = (r.u32(), r.u64(), r.u64(), r.u32(), r.u32());
        if crc != with_hole(block, CRC_AT) {
            return Err(fail(Fault::Checksum));
        }
        if tag != limits.region_tag() {
            return Err(fail(Fault::Foreign));
        }
        if stored_no != index_no {
            return Err(fail(Fault::Misplaced));
        }
        if reserved != 0 {
            return Err(fail(Fault::Reserved));
        }
        let this = Self { index_no, seq, limits: *limits, entries };
        for (slot, bytes) in this.slots() {
            let entry = IndexEntry::decode(bytes, limits).map_err(fail)?;
            if slot >= limits.slots && entry.kind != SlotKind::Free {
                return Err(fail(Fault::Slot));
            }
        }
        Ok(this)
    }

    /// Picks the newer valid copy.
    ///
    /// A copy that is zero, or a valid one of an earlier format, was never written. One that is damaged
    /// beside such a blank one is a first write that did not complete.
    pub fn pick(
        a: &'a [u8],
        b: &'a [u8],
        index_no: u32,
        limits: &Limits,
    ) -> Result<IndexPick<'a>, FormatError> {
        let blank = |bytes: &[u8], fault: FormatError| {
            fault.fault == Fault::Foreign
                || (fault.fault == Fault::Magic
                    && bytes.first_chunk::<INDEX_BYTES>().is_some_and(|block| is_zero(block)))
        };
        let decoded = (Self::decode(a, index_no, limits), Self::decode(b, index_no, limits));
        if let (Err(fault_a), Err(fault_b)) = decoded {
            match (blank(a, fault_a), blank(b, fault_b)) {
                (true, true) => return Ok(IndexPick::Blank { fault: None }),
                (false, true) => return Ok(IndexPick::Blank { fault: Some(fault_a) }),
                (true, false) => return Ok(IndexPick::Blank { fault: Some(fault_b) }),
                (false, false) => return Err(fault_a),
            }
        }
        let mut picked = pick_newer(decoded.0, decoded.1, |block| block.seq)?;
        if picked
            .other_fault
            .is_some_and(|fault| blank(if picked.copy.index() == 0 { b } else { a }, fault))
        {
            picked.other_fault = None;
        }
        Ok(IndexPick::Found(picked))
    }

    /// Returns the sequence number; the next version has the next higher one.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Checks that its sequence number can be counted on from: to be asked before the region is written to.
    pub fn check_room(&self) -> Result<(), FormatError> {
        if has_room(self.seq, u64::MAX) {
            Ok(())
        } else {
            Err(FormatError::new(Part::Index, Fault::Exhausted))
        }
    }

    /// The slots described and the bytes of their entries.
    fn slots(&self) -> impl Iterator<Item = (u32, &'a [u8])> {
        let first = self.index_no.saturating_mul(INDEX_ENTRIES);
        self.entries.chunks_exact(ENTRY_BYTES).scan(first, |next, bytes| {
            let slot = *next;
            *next = slot.wrapping_add(1);
            Some((slot, bytes))
        })
    }

    /// Returns the slots in use and what they hold.
    pub fn used(&self) -> impl Iterator<Item = (u32, IndexEntry)> + 'a {
        let limits = self.limits;
        self.slots().filter_map(move |(slot, bytes)| {
            let entry = IndexEntry::decode(bytes, &limits).ok()?;
            (entry.kind != SlotKind::Free).then_some((slot, entry))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Copy2;
    use super::*;

    const LIMITS: Limits =
        Limits { region_uuid: [7; 16], slots: 1000, origin_blocks: 5000, next_snapshot: 10 };

    fn entry(i: u64) -> IndexEntry {
        match i % 4 {
            0 => IndexEntry::FREE,
            3 => IndexEntry { block: i, kind: SlotKind::Manifest, snapshot: 9, crc: 1 },
            2 => IndexEntry { block: i, kind: SlotKind::Unconfirmed, snapshot: 9, crc: 1 },
            _ => IndexEntry { block: 4999 - i, kind: SlotKind::Data, snapshot: 1, crc: i as u32 },
        }
    }

    fn encoded(index_no: u32, seq: u64, count: u64) -> [u8; INDEX_BYTES] {
        let mut block = [0xaa; INDEX_BYTES];
        IndexBlock::encode(&mut block, LIMITS.region_tag(), index_no, seq, (0..count).map(entry));
        block
    }

    fn fault(bytes: &[u8], index_no: u32) -> Fault {
        IndexBlock::decode(bytes, index_no, &LIMITS).unwrap_err().fault
    }

    #[test]
    fn what_is_on_its_way_is_unconfirmed() {
        // Index block 2: slots 508 to 761.
        let kinds = |runs: &[(u32, u32)]| {
            let writing = UnconfirmedSlots::new(2, runs.iter().copied());
            let data = IndexEntry { block: 1, kind: SlotKind::Data, snapshot: 1, crc: 1 };
            let marked: Vec<_> = writing.mark((0..254).map(|_| data)).collect();
            assert_eq!(writing.any(), marked.iter().any(|e| e.kind != SlotKind::Data));
            let is_new = |e: &&(u32, IndexEntry)| e.1.kind == SlotKind::Unconfirmed;
            let slots: Vec<_> = (508..).zip(marked).collect();
            slots.iter().filter(is_new).map(|(slot, _)| *slot).collect::<Vec<_>>()
        };
        assert_eq!(kinds(&[]), []);
        assert_eq!(kinds(&[(0, 508), (762, 16), (u32::MAX, 16)]), []);
        assert_eq!(kinds(&[(500, 9), (570, 3), (761, 16)]), [508, 570, 571, 572, 761]);
        let writing = UnconfirmedSlots::new(2, [(508, 254)].into_iter());
        let manifest = IndexEntry { block: 1, kind: SlotKind::Manifest, snapshot: 1, crc: 1 };
        assert!(writing
            .mark([IndexEntry::FREE, manifest].into_iter())
            .eq([IndexEntry::FREE, manifest]));
    }

    #[test]
    fn round_trip_and_every_byte_counts() {
        let mut block = encoded(2, 77, 254);
        let decoded = IndexBlock::decode(&block, 2, &LIMITS).unwrap();
        assert_eq!(decoded.seq(), 77);
        let expected: Vec<_> =
            (0..254).filter(|i| i % 4 != 0).map(|i| (508 + i as u32, entry(i))).collect();
        assert_eq!(decoded.used().collect::<Vec<_>>(), expected);
        for i in 0..block.len() {
            block[i] ^= 0x10;
            assert!(IndexBlock::decode(&block, 2, &LIMITS).is_err(), "byte {i}");
            block[i] ^= 0x10;
        }
        assert_eq!(fault(&block[..4000], 2), Fault::Short);
        assert_eq!(fault(&block, 1), Fault::Misplaced);
        let other = Limits { region_uuid: [8; 16], ..LIMITS };
        assert_eq!(IndexBlock::decode(&block, 2, &other).unwrap_err().fault, Fault::Foreign);
    }

    #[test]
    fn a_sequence_that_could_end_is_not_gone_on_from() {
        let room = |seq| IndexBlock::decode(&encoded(2, seq, 9), 2, &LIMITS).unwrap().check_room();
        assert_eq!(room(u64::MAX >> 1), Ok(()));
        assert_eq!(room(1 << 63).unwrap_err().fault, Fault::Exhausted);
        assert_eq!(room(u64::MAX).unwrap_err().fault, Fault::Exhausted);
    }

    #[test]
    fn entries_are_checked_behind_a_good_checksum() {
        let data = IndexEntry { block: 1, kind: SlotKind::Data, snapshot: 1, crc: 0 };
        for (bad, expected) in [
            (IndexEntry { block: 5000, ..data }, Fault::Block),
            (IndexEntry { snapshot: 0, ..data }, Fault::SnapshotId),
            (IndexEntry { snapshot: 12, ..data }, Fault::SnapshotId),
            (IndexEntry { block: 1000, kind: SlotKind::Manifest, ..data }, Fault::Block),
            (IndexEntry { kind: SlotKind::Free, ..data }, Fault::Reserved),
        ] {
            let mut block = [0; INDEX_BYTES];
            IndexBlock::encode(&mut block, LIMITS.region_tag(), 0, 1, [bad].into_iter());
            assert_eq!(fault(&block, 0), expected);
        }
        // 1000 slots: the last index block has 238 of its 254 entries in use.
        assert!(IndexBlock::decode(&encoded(3, 1, 238), 3, &LIMITS).is_ok());
        assert_eq!(fault(&encoded(3, 1, 254), 3), Fault::Slot);
        for (at, value, expected) in [
            (32 + 16 + 6, 9, Fault::Kind),
            (32 + 16 + 7, 1, Fault::Reserved),
            (28, 1, Fault::Reserved),
        ] {
            let mut block = encoded(0, 1, 254);
            block[at] = value;
            let crc = with_hole(&block, CRC_AT);
            put_u32(&mut block, CRC_AT, crc);
            assert_eq!(fault(&block, 0), expected);
        }
    }

    #[test]
    fn picks() {
        let (old, new, blank) = (encoded(0, 5, 9), encoded(0, 6, 10), [0; INDEX_BYTES]);
        let mut torn = encoded(0, 7, 100);
        torn[3000] ^= 1;
        let mut foreign = [0; INDEX_BYTES];
        IndexBlock::encode(&mut foreign, 1, 0, 900, [].into_iter());
        let found = |a: &[u8], b: &[u8]| match IndexBlock::pick(a, b, 0, &LIMITS) {
            Ok(IndexPick::Found(p)) => (p.copy, p.value.seq(), p.other_fault.map(|f| f.fault)),
            other => panic!("{other:?}"),
        };
        assert_eq!(found(&old, &new), (Copy2::B, 6, None));
        assert_eq!(found(&new, &old), (Copy2::A, 6, None));
        assert_eq!(found(&torn, &old), (Copy2::B, 5, Some(Fault::Checksum)));
        assert_eq!(found(&old, &torn), (Copy2::A, 5, Some(Fault::Checksum)));
        assert_eq!(found(&old, &blank), (Copy2::A, 5, None));
        assert_eq!(found(&foreign, &old), (Copy2::B, 5, None));
        let none = |a: &[u8], b: &[u8]| match IndexBlock::pick(a, b, 0, &LIMITS) {
            Ok(IndexPick::Blank { fault }) => Ok(fault.map(|f| f.fault)),
            Ok(other) => panic!("{other:?}"),
            Err(e) => Err(e.fault),
        };
        assert_eq!(none(&blank, &blank), Ok(None));
        assert_eq!(none(&foreign, &blank), Ok(None));
        assert_eq!(none(&torn, &blank), Ok(Some(Fault::Checksum)));
        assert_eq!(none(&blank, &torn), Ok(Some(Fault::Checksum)));
        assert_eq!(none(&torn, &torn), Err(Fault::Checksum));
        assert_eq!(none(&[], &torn), Err(Fault::Short));
    }
}
